"""Runs the jobs of a sweep on a SLURM cluster, through submitit: an array of tasks that train, measure and requeue."""

import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys
import time
from types import ModuleType
from typing import TYPE_CHECKING

from options.sweep import SweepOptions
from sweeps.grid import ROOT, Job, Sweep, commands_of, job_state, progress_of
from sweeps.local import describe, last_message
from system.files import make_durable_folder, read_json, write_json
from system.progress import ProgressBar
from utils import LOG, UserError, one_line

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

DEFAULT_MINUTES = 60  # time limit of a task; a training that needs longer continues in the same task, started again
MAX_STARTS = 100  # how often a task is started again after its time limit
MAX_AT_A_TIME = 1000  # tasks at a time without --jobs; clusters have limits of their own
POLL_SECONDS = (2.0, 30.0)  # between two looks at the queue: at the beginning, and after five minutes
STOP_SECONDS = 600  # how long a stopped task waits for SLURM to end or requeue it: more than usual grace times
# Shell commands before a task: where it finds this project, the signal that saves a checkpoint, and its CPUs, which
# srun does not take over from sbatch.
_SETUP = (
    f"export PYTHONPATH={shlex.quote(str(ROOT))}:$PYTHONPATH PYTHONUNBUFFERED=1 SUBMITIT_PREEMPT_SIGNAL=USR1",
    "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_ON_NODE}",
    '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK',
)


class Task:
    """One job of a sweep as submitit runs it on a node: trains or resumes, then measures.

    SLURM sends SIGUSR1 before the time limit: the training saves a checkpoint, and the task goes back to the queue.
    """

    def __init__(self, sweep: Sweep, job: Job):
        self._sweep, self._job = sweep, job
        self._process: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Run the commands that the job still needs. Raises UserError with the last line of output if one fails."""
        log = self._sweep.folder / "logs" / f"{self._job.folder.name}.txt"
        make_durable_folder(log.parent)
        for command in commands_of(self._sweep, self._job):
            with open(log, "ab") as file:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
                )
                code = self._process.wait()
            if abs(code) % 128 in (signal.SIGTERM, signal.SIGUSR1):  # SLURM signals every process, then ends the task
                time.sleep(STOP_SECONDS)
            if code:
                raise UserError(f"{last_message(log, code)}; see {log}")

    def checkpoint(self) -> "DelayedSubmission":
        """Let the training save and end, and return the task that continues. submitit calls this after SIGUSR1.

        The process is not collected here: `__call__`, which the signal has interrupted, waits for it, too.
        """
        from submitit.helpers import DelayedSubmission

        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._process.pid, signal.SIGUSR1)
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Task(self._sweep, self._job))


def _import_submitit() -> ModuleType:
    """Return the package submitit. Raises UserError if it is not installed."""
    try:
        import submitit
    except ImportError as error:
        raise UserError(f"--slurm needs {error.name or error}; pip install -r requirements-cluster.txt") from None
    return submitit


def read_queue() -> set[str]:
    """Return the ids of the user's tasks that wait or run, such as "12_3". Raises UserError if SLURM fails."""
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise UserError("--slurm: squeue is not installed; call sweep.py on a login node of the cluster") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]  # the others repeat it
        remedy = "call sweep.py on a login node of the cluster, or try again later"
        raise UserError(f"--slurm: squeue failed: {reason}; {remedy}") from None
    return set(found.stdout.split())


def submit(sweep: Sweep, jobs: list[Job], at_a_time: int | None) -> list[str]:
    """Submit jobs as one array, and return the id of each task.

    Args:
        at_a_time: the largest number of tasks that run at a time; None for no limit.

    Raises:
        UserError: submitit is missing, a value of [slurm] is wrong, or SLURM refuses the jobs.
    """
    submitit = _import_submitit()
    table = {name: value for name, value in sweep.slurm.items() if value is not False}
    minutes, setup = table.pop("time", DEFAULT_MINUTES), table.pop("setup", [])
    if type(minutes) is not int or minutes < 1:
        raise UserError(f"[slurm] time: {minutes!r} is not a whole number of minutes; write one such as 120")
    if not isinstance(setup, list) or not all(isinstance(line, str) for line in setup):
        raise UserError(f"[slurm] setup: {setup!r} is not a list of texts; write the shell commands as a list")
    table.setdefault("signal", f"USR1@{min(90, minutes * 30)}")  # seconds before the time limit
    executor = submitit.SlurmExecutor(sweep.folder / "slurm", max_num_timeout=MAX_STARTS)
    executor.update_parameters(
        job_name=sweep.name, time=minutes, array_parallelism=at_a_time or MAX_AT_A_TIME,
        setup=[*_SETUP, *setup], stderr_to_stdout=True, additional_parameters=table,
    )  # fmt: skip
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what the exception says
            return [task.job_id for task in executor.submit_array([Task(sweep, job) for job in jobs])]
    except submitit.core.utils.FailedJobError as error:
        raise UserError(f"[slurm]: SLURM refused the runs: {one_line(error)}; change the table [slurm]") from None


def why_failed(sweep: Sweep, task: str) -> str:
    """Return the last line that a task, or SLURM about this task, has written."""
    log = sweep.folder / "slurm" / f"{task}_0_log.out"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    lines = [line.strip() for line in lines if line.strip() and not line.startswith(("srun: ", "submitit "))]
    if not lines:
        return f"task {task} left no message; `sacct -j {task}` may say why it ended"
    _, is_ours, message = lines[-1].partition("UserError: ")  # of `Task`
    return message if is_ours else f"{lines[-1]}; see {log}"


def _count(runs: int, one: str = "was", more: str = "were") -> str:
    return f"1 run {one}" if runs == 1 else f"{runs} runs {more}"


def run_on_cluster(sweep: Sweep, options: SweepOptions) -> int:
    """Submit the runs that are neither done nor in the queue, and wait for all of them, unless --no_wait is given.

    Returns:
        0; 1 if a run failed; 130 after Ctrl-C, and the cluster continues.
    """
    todo = [job for job in sweep.jobs if job_state(sweep, job) != "done"]
    if len(todo) < len(sweep.jobs):
        LOG.info("%d of %d runs are done", len(sweep.jobs) - len(todo), len(sweep.jobs))
    if not todo:
        return 0
    record = sweep.folder / "slurm" / "jobs.json"  # name of a run folder -> id of its newest task
    tasks: dict[str, str] = read_json(record) if record.exists() else {}
    queue = read_queue()
    new = [job for job in todo if tasks.get(job.folder.name) not in queue]
    if len(new) < len(todo):
        LOG.info("%s in the queue of the cluster already", _count(len(todo) - len(new), "is", "are"))
    if new:
        make_durable_folder(record.parent)
        ids = submit(sweep, new, options.jobs)
        tasks |= {job.folder.name: task for job, task in zip(new, ids, strict=True)}
        write_json(record, tasks)
        LOG.info("%s submitted as job %s", _count(len(new)), ids[0].partition("_")[0])
    waiting = {tasks[job.folder.name]: job for job in todo}
    if options.no_wait:
        LOG.info("The cluster trains. The same command without --no_wait waits and shows the results.")
        return 0
    try:
        failed = _wait(sweep, waiting)
    except KeyboardInterrupt:
        LOG.info("The runs continue on the cluster. The same command waits for them again:")
        LOG.info("    python %s", shlex.join(sys.argv))
        LOG.info("To cancel them: scancel %s", " ".join(sorted({task.partition("_")[0] for task in waiting})))
        return 130
    if failed:
        LOG.warning("%d of %d runs failed; the same command tries them again", failed, len(sweep.jobs))
    return 1 if failed else 0


def _wait(sweep: Sweep, waiting: dict[str, Job]) -> int:
    """Show the progress until no task is in the queue; return how many runs are not done then.

    Args:
        waiting: id of a task -> its job. Jobs that have ended are taken out.
    """
    started, absent, failed = time.monotonic(), set[str](), 0
    done, total = progress_of(sweep, sweep.jobs)
    with ProgressBar(None, "sweep", "it", total, initial=done) as bar:
        while waiting:
            time.sleep(min(POLL_SECONDS[1], POLL_SECONDS[0] + (time.monotonic() - started) / 10))
            with contextlib.suppress(UserError):  # SLURM may be busy; the next look will tell
                gone = waiting.keys() - read_queue()
                # At the second look: a task leaves the queue for a moment when it is requeued, and files may come late.
                for task in gone & absent:
                    failed += _report(sweep, waiting.pop(task), task)
                absent = gone
            done, bar.total = progress_of(sweep, sweep.jobs)
            bar.set_postfix_str(f"{len(sweep.jobs) - len(waiting)} of {len(sweep.jobs)} runs", refresh=False)
            bar.update(done - bar.n)
    return failed


def _report(sweep: Sweep, job: Job, task: str) -> bool:
    """Log how a job has ended; return whether it failed."""
    if job_state(sweep, job) == "done":
        LOG.info("%s: done", describe(job))
        return False
    LOG.warning("%s: failed: %s", describe(job), why_failed(sweep, task))
    return True
