"""Parts of a batch, which threads of this process compute at the same time, each with cores of its own.

Threads that share one part, as OpenMP's do, wait for each other at every layer, and if another program takes one of
their cores, all of them wait. Threads with parts of their own wait only where they exchange something, such as
gradients. Outside of `Team.run` nothing here does anything.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # torch takes seconds to import, and report.py does not need it
    from torch import Tensor

Result = TypeVar("Result")
_here = threading.local()  # team and part of a thread within `Team.run`


class Team:
    """Threads that compute a part of each batch each. All call the functions of this module in the same order.

    As a context it gives the caller, one of the threads, its share of PyTorch's threads. This stays so between two
    calls of `run`: a thread that PyTorch adds for a short while takes a core from the other parts.

    Args:
        size: number of threads. They share the threads that PyTorch has now.
    """

    def __init__(self, size: int):
        import torch

        self.size = size
        self._threads = torch.get_num_threads()
        self._share = max(1, self._threads // size)
        self._barrier = threading.Barrier(size)
        self._values: list[Any] = [None] * size
        self._pool = ThreadPoolExecutor(size - 1, "part", initializer=lambda: torch.set_num_threads(self._share))

    def __enter__(self) -> "Team":
        import torch

        torch.set_num_threads(self._share)
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        self._pool.shutdown()
        torch.set_num_threads(self._threads)

    @contextlib.contextmanager
    def all_threads(self) -> Iterator[None]:
        """Give the caller all of PyTorch's threads, for work outside of `run`."""
        import torch

        torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            torch.set_num_threads(self._share)

    def run(self, function: Callable[[], Result]) -> list[Result]:
        """Call `function` in every thread, also in the caller's; return the results, or raise the first error."""
        others = [self._pool.submit(self._work, function, part) for part in range(1, self.size)]
        outcomes = [self._work(function, 0), *(other.result() for other in others)]
        errors = [error for _, error in outcomes if error is not None]
        if errors:
            self._barrier.reset()
            raise next((error for error in errors if not isinstance(error, threading.BrokenBarrierError)), errors[0])
        return [result for result, _ in outcomes]

    def _work(self, function: Callable[[], Any], part: int) -> tuple[Any, BaseException | None]:
        """Return the result of `function`, and its error, in the thread of a part."""
        _here.team, _here.part = self, part
        try:
            return function(), None
        except BaseException as error:  # also KeyboardInterrupt: the other threads must not wait for this one
            self._barrier.abort()
            return None, error
        finally:
            _here.team = None

    def exchange(self, value: Any) -> list[Any]:
        """Return the values of all parts, in every thread."""
        self._barrier.wait()  # until all have read the values of the exchange before
        self._values[_here.part] = value
        self._barrier.wait()
        return list(self._values)


def _team() -> Team | None:
    """Return the team that this thread works in."""
    return getattr(_here, "team", None)


def count_parts() -> int:
    """Return how many threads share the batch of this process."""
    team = _team()
    return 1 if team is None else team.size


def part() -> int:
    """Return the number of the part that this thread computes, from 0."""
    return 0 if _team() is None else _here.part


def once(make: Callable[[], Result]) -> Result:
    """Call `make` in the thread of part 0 only, and return its result in every thread."""
    team = _team()
    return make() if team is None else team.exchange(make() if part() == 0 else None)[0]


def gather_parts(tensor: "Tensor") -> "Tensor":
    """Return the batch (B, ...) from the parts (B / parts, ...) of all threads. No gradient flows through."""
    team = _team()
    if team is None:
        return tensor
    import torch

    return torch.cat(team.exchange(tensor.detach()))


def average_over_parts(tensors: "list[Tensor]") -> "list[Tensor]":
    """Return the mean of each tensor over all threads, in every thread. The tensors may be changed."""
    team = _team()
    if team is None:
        return tensors
    import torch

    parts = team.exchange(tensors)
    if part() == 0:
        for other in parts[1:]:
            torch._foreach_add_(tensors, other)
        torch._foreach_div_(tensors, team.size)
    return team.exchange(tensors)[0]
