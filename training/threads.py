"""PyTorch's threads on a CPU that other programs use, too."""

import contextlib
import time
from collections.abc import Iterator

import torch

from utils import LOG


class SparingThreads:
    """Uses fewer threads of PyTorch while other programs use the cores.

    PyTorch's threads wait for each other at every layer. If another program takes the core of one thread, the others
    wait for it: beside one busy program, two threads on two cores make a third to a half of the progress of one.

    The processor time of this process shows whether each thread had a core. If one core is missing for a third of the
    time or more, in two windows one after the other, only as many threads work as had a core. Later all threads are
    tried again. As a context it restores the number of threads at the end.

    Args:
        fixed: do nothing.
    """

    WINDOW = 2.0  # seconds of work after which the use of the cores is judged
    TRIAL = 0.5  # the same while all threads are tried again
    REST = 20  # windows before that

    def __init__(self, fixed: bool = False):
        self.all = torch.get_num_threads()
        self._fixed = fixed or self.all == 1
        self._seconds = self._core_seconds = 0.0  # in this window: by the clock, and the sum over the cores
        self._lacking = 0  # windows one after the other in which a core was missing
        self._rest = 0  # windows until all threads are tried again
        self._is_trial = self._is_announced = False

    def __enter__(self) -> "SparingThreads":
        return self

    def __exit__(self, *_: object) -> None:
        if not self._fixed:
            torch.set_num_threads(self.all)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Measure work that keeps all threads busy; after a window, decide how many threads the next one has."""
        if self._fixed:
            yield
            return
        seconds, core_seconds = time.monotonic(), time.process_time()
        yield
        self._seconds += time.monotonic() - seconds
        self._core_seconds += time.process_time() - core_seconds
        if self._seconds >= (self.TRIAL if self._is_trial else self.WINDOW):
            self._decide(self._core_seconds / self._seconds)
            self._seconds = self._core_seconds = 0.0

    def _decide(self, cores: float) -> None:
        """Decide at the end of a window in which the threads had so many cores on average."""
        threads = torch.get_num_threads()
        if cores > threads - 1 / 3:
            if self._is_trial:
                LOG.debug("All %d threads work again", threads)
            self._lacking, self._is_trial = 0, False
            self._rest -= 1
            if threads < self.all and self._rest <= 0:
                self._is_trial = True
                torch.set_num_threads(self.all)
            return
        self._lacking += 1
        if self._is_trial or self._lacking == 2:
            fewer = max(1, int(cores + 1 / 3))
            torch.set_num_threads(fewer)
            if not self._is_announced:
                LOG.info(
                    "Other programs use the cores, so %d of %d threads work until the cores are free again. Results "
                    "may differ by rounding; --threads %d keeps all threads", fewer, self.all, self.all,
                )  # fmt: skip
            elif not self._is_trial:
                LOG.debug("%d of %d threads work", fewer, self.all)
            self._lacking, self._rest, self._is_trial, self._is_announced = 0, self.REST, False, True
