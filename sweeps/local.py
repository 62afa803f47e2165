"""Runs the jobs of a sweep on this machine: a queue of processes, `--jobs` of them at a time."""

import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from typing import TYPE_CHECKING

import filelock

from options.sweep import SweepOptions
from runs.overview import is_locked
from sweeps.grid import Job, Sweep, commands_of, job_state, options_of, progress_of
from system.files import make_durable_folder
from system.program import StopSignals
from system.progress import ProgressBar
from utils import LOG, UserError

if TYPE_CHECKING:
    from io import BufferedWriter

POLL_SECONDS = 0.2  # between two looks at the processes
PROGRESS_SECONDS = 2.0  # between two looks at the run folders


def find_gpus() -> list[str]:
    """Return the GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [part.strip() for part in chosen.split(",")][:count] if chosen else list(map(str, range(count)))


def share_machine(jobs: int, gpus: list[str]) -> list[dict[str, str]]:
    """Return the environment variables of each of `jobs` trainings at a time: its GPU, and its share of the threads.

    Args:
        gpus: the GPUs that may be used. A single one needs no variable.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares: list[dict[str, str]] = []
    for number in range(jobs):
        share = {"PYTHONUNBUFFERED": "1"}
        if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
            share["OMP_NUM_THREADS"] = str(max(1, cores // jobs))
        if len(gpus) > 1:
            share["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
        shares.append(share)
    return shares


class RunningJob:
    """A job that runs now: its commands one after the other, with their output in one file.

    Attributes:
        is_measuring: whether the command that runs now is evaluate.py.
    """

    def __init__(self, job: Job, commands: list[list[str]], share: dict[str, str], log: Path):
        self.job, self.share, self.log = job, share, log
        self._commands = list(commands)
        with contextlib.suppress(OSError):  # a process that an earlier call left may still write to the old file
            log.unlink()
        self._file: BufferedWriter = open(log, "wb")
        self._start()

    def _start(self) -> None:
        command = self._commands.pop(0)
        self.is_measuring = Path(command[1]).name == "evaluate.py"
        LOG.info("%s: %s %s", describe(self.job), "measuring" if self.is_measuring else "started in", self.job.folder)
        # A session of its own: Ctrl-C on the terminal reaches this program only, which then asks each training to stop.
        self._process = Popen(
            command, stdin=DEVNULL, stdout=self._file, stderr=STDOUT,
            env={**os.environ, **self.share}, start_new_session=True,
        )  # fmt: skip

    def advance(self) -> int | None:
        """Start the next command if one has ended well; return the exit code once all have ended, or one failed."""
        code = self._process.poll()
        if code == 0 and self._commands:
            self._start()
            return None
        if code is not None:
            self._file.close()
        return code

    def stop(self) -> None:
        """Ask the training to save a checkpoint and to end; what comes after it is not started."""
        self._commands.clear()
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        self._file.close()


def describe(job: Job) -> str:
    """Return how messages name a job."""
    return f"{job.case.label}, seed {job.seed}"


def last_message(log: Path, code: int) -> str:
    """Return the last line of output of a process, and how it ended."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{lines[-1].strip()} ({ended})" if lines else ended


class Queue:
    """The jobs of a sweep that wait, and those that run.

    Attributes:
        busy: jobs that had to wait for another process; each is told once.
        failed: how many jobs have failed.
    """

    def __init__(self, sweep: Sweep, jobs: list[Job], shares: list[dict[str, str]]):
        self.sweep, self.waiting, self.free = sweep, list(jobs), list(shares)
        self.running: list[RunningJob] = []
        self.busy: list[Job] = []
        self.failed = 0
        self.logs = sweep.folder / "logs"
        make_durable_folder(self.logs)

    def start(self) -> None:
        """Start jobs while there is room for one. A run that another process trains waits until that has ended."""
        for job in list(self.waiting) if self.free else ():
            if not self.free:
                break
            if is_locked(job.folder):
                if job not in self.busy:
                    self.busy.append(job)
                    LOG.warning("%s: %s is in use by another process; waiting for it", describe(job), job.folder)
                continue
            self.waiting.remove(job)
            commands = commands_of(self.sweep, job)
            if commands:  # the other process may have finished the job
                log = self.logs / f"{job.folder.name}.txt"
                self.running.append(RunningJob(job, commands, self.free.pop(0), log))

    def collect(self, is_stopping: bool) -> None:
        """Take the jobs out that have ended, and report them."""
        for one in list(self.running):
            code = one.advance()
            if code is None:
                continue
            self.running.remove(one)
            self.free.append(one.share)
            if code == 0 and not is_stopping:
                LOG.info("%s: done", describe(one.job))
            elif not is_stopping:
                self.failed += 1
                LOG.warning("%s: failed: %s; see %s", describe(one.job), last_message(one.log, code), one.log)

    def stop(self) -> None:
        """Ask all trainings to save and end; jobs that wait are not started."""
        self.waiting.clear()
        for one in self.running:
            one.stop()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a sweep's folder. Raises UserError if another sweep.py holds it."""
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise UserError(f"{folder} is in use by another sweep.py; wait for it, or stop it") from None
    except (OSError, NotImplementedError):  # a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()


def run_here(sweep: Sweep, options: SweepOptions) -> int:
    """Train and measure on this machine what the sweep still needs.

    Returns:
        0; 1 if a job failed; 128 + signal if a signal stopped the sweep.
    """
    todo = [job for job in sweep.jobs if job_state(sweep, job) != "done"]
    if len(todo) < len(sweep.jobs):
        LOG.info("%d of %d runs are done", len(sweep.jobs) - len(todo), len(sweep.jobs))
    if not todo:
        return 0
    uses_gpu = any(options_of(sweep, job).get("device", "auto") in ("auto", "cuda") for job in todo)
    gpus = find_gpus() if uses_gpu else []
    queue = Queue(sweep, todo, share_machine(options.jobs or max(1, len(gpus)), gpus))
    with _locked(sweep.folder):
        stopped_by = _work(queue)
    if stopped_by:
        LOG.info("Stopped by %s. The same command continues:", signal.Signals(stopped_by).name)
        LOG.info("    python %s", shlex.join(sys.argv))
        return 128 + stopped_by
    if queue.failed:
        LOG.warning("%d of %d runs failed; the same command tries them again", queue.failed, len(sweep.jobs))
    return 1 if queue.failed else 0


def _work(queue: Queue) -> int:
    """Work through the queue; return the number of the signal that stopped it, 0 if none did."""
    done, total = progress_of(queue.sweep, queue.sweep.jobs)
    is_stopping, looked = False, time.monotonic()
    before = looked
    with StopSignals() as stop, ProgressBar(None, "sweep", "it", total, initial=done) as bar:
        try:
            queue.start()
            while queue.running or queue.waiting:
                time.sleep(POLL_SECONDS)
                now = time.monotonic()
                if queue.running and all(one.is_measuring for one in queue.running):
                    bar.last_print_t += now - before  # the speed counts trainings only
                before = now
                if stop.received and not is_stopping:
                    is_stopping = True
                    LOG.info("Stopping; each training saves a checkpoint (Ctrl-C again ends them at once)")
                    queue.stop()
                queue.collect(is_stopping)
                queue.start()
                if time.monotonic() - looked >= PROGRESS_SECONDS or not queue.running:
                    done, bar.total = progress_of(queue.sweep, queue.sweep.jobs)
                    count = len(queue.sweep.jobs)
                    ended = count - len(queue.waiting) - len(queue.running)
                    bar.set_postfix_str(f"{ended} of {count} runs", refresh=False)
                    bar.update(done - bar.n)
                    looked = time.monotonic()
        finally:
            for one in queue.running:
                one.kill()
        return stop.received or 0
