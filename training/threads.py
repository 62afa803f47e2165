"""PyTorch's threads on a CPU that other programs use, too."""

import contextlib
import logging
import time
from collections.abc import Iterator

import torch

from utils import LOG


class SparingThreads:
    """The number of PyTorch's threads, as a context; fewer of them work while other programs use the cores.

    PyTorch's threads wait for each other at every layer. If another program takes the core of one thread, the others
    wait for it: beside one busy program, two threads on two cores make about half of the progress of one.

    The processor time of this process shows whether each thread had a core. If a third of a core or more is missing in
    two windows one after the other, only as many threads work as had a core, if steps are faster then. Later all
    threads are tried again. Threads of this process that decode images count as if they were PyTorch's.

    Args:
        threads: the number of threads; 0: as many as PyTorch has.
        is_fixed: whether the number stays.
    """

    WINDOW = 2.0  # seconds of steps after which they are judged
    TRIAL = 0.5  # the same while all threads are tried again
    REST = 20  # windows before that, and after fewer threads were not faster

    def __init__(self, threads: int = 0, is_fixed: bool = False):
        self.all = threads or torch.get_num_threads()
        self._is_fixed = is_fixed or self.all == 1
        self._before = self.all  # to be restored
        self._start_window()
        self._lacking = 0  # windows one after the other in which a core was missing
        self._rest = 0  # windows until all threads are tried again
        self._slow = self._fast = 0.0  # seconds of a step with all threads beside other programs, and with fewer
        self._is_trial = self._is_announced = False

    def __enter__(self) -> "SparingThreads":
        self._before = torch.get_num_threads()
        torch.set_num_threads(self.all)
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)

    def _start_window(self) -> None:
        self._steps = 0
        self._seconds = self._core_seconds = 0.0  # of the steps: by the clock, and the sum over the cores

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Measure a step; after a window, decide how many threads the next steps have."""
        if self._is_fixed:
            yield
            return
        seconds, core_seconds = time.monotonic(), time.process_time()
        yield
        self._steps += 1
        self._seconds += time.monotonic() - seconds
        self._core_seconds += time.process_time() - core_seconds
        if self._seconds >= (self.TRIAL if self._is_trial else self.WINDOW):
            decide = self._judge_all if torch.get_num_threads() == self.all else self._judge_fewer
            decide(self._seconds / self._steps, self._core_seconds / self._seconds)
            self._start_window()

    def _judge_all(self, step: float, cores: float) -> None:
        """Decide after a window of all threads, with steps of so many seconds, and so many cores on average."""
        fewer = max(1, int(cores + 1 / 3))
        if self._is_trial:
            self._is_trial = False
            if step < self._fast or fewer >= self.all:
                LOG.debug("All %d threads work again", self.all)
                return
            LOG.debug("All %d threads were tried; %d work from here on", self.all, fewer)
        else:
            self._lacking = self._lacking + 1 if fewer < self.all else 0
            if self._lacking < 2:
                return
            LOG.log(
                logging.DEBUG if self._is_announced else logging.INFO,
                "Other programs use the cores, so %d of %d threads work for now. Results may differ by rounding; "
                "--threads %d keeps all threads, and is slower", fewer, self.all, self.all,
            )  # fmt: skip
            self._is_announced = True
        torch.set_num_threads(fewer)
        self._slow, self._fast, self._lacking, self._rest = step, 0.0, 0, self.REST

    def _judge_fewer(self, step: float, _: float) -> None:
        """Decide after a window of fewer threads, with steps of so many seconds."""
        if not self._fast and step > 0.9 * self._slow:  # no gain: the cores were not missed
            LOG.debug("All %d threads work again: fewer were not faster", self.all)
            self._lacking = -self.REST
            torch.set_num_threads(self.all)
            return
        self._fast = step
        self._rest -= 1
        if self._rest <= 0:
            self._is_trial = True
            torch.set_num_threads(self.all)
