"""A sweep on a SLURM cluster: what is submitted, waited for and reported, and tasks that save, requeue and continue."""

import json
import os
import re
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from options.command_line import parse_command
from options.sweep import SweepOptions
from sweeps import cluster
from sweeps.cluster import Task
from sweeps.grid import Sweep
from sweeps.reading import read_sweep
from system.program import run_main
from tests.sweeps.test_reading import HEAD, write
from utils import UserError

submitit = pytest.importorskip("submitit", reason="needs pip install -r requirements-cluster.txt")

PYTHON = [sys.executable, "-I", "-S", "-c"]
# A training: it saves when SLURM's signal comes, which takes a moment.
SAVE = """
import signal, sys, time
def save(*arguments):
    time.sleep(0.2); open(sys.argv[1], "w").write("saved"); sys.exit(138)
signal.signal(signal.SIGUSR1, save)
open(sys.argv[1] + "-began", "w").close()
time.sleep(30)
"""


class Slurm:
    """SLURM's commands as shell scripts: sbatch keeps the script that it gets, squeue prints the file `queue`."""

    def __init__(self, folder: Path):
        self.folder, self.queue, self.script = folder, folder / "queue", folder / "script"
        self.set("sbatch", f'cp "$1" "{self.script}"; echo "Submitted batch job 7"')
        self.set("squeue", f'cat "{self.queue}"')
        self.set("srun", "")
        self.set_queue()

    def set(self, name: str, script: str) -> None:
        """Replace a command."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def set_queue(self, *tasks: str) -> None:
        """Set which tasks wait or run."""
        self.queue.write_text("\n".join(tasks))


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Slurm:
    """A cluster without nodes."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(cluster, "POLL_SECONDS", (0.0, 0.0))
    return Slurm(tmp_path / "bin")


@pytest.fixture
def states(monkeypatch) -> dict[int, str]:
    """Seed -> state of its run, where it is not "missing"."""
    states: dict[int, str] = {}
    monkeypatch.setattr(cluster, "job_state", lambda sweep, job: states.get(job.seed, "missing"))
    return states


@pytest.fixture
def make(tmp_path) -> Callable[[str], Sweep]:
    """A function that returns a sweep of four runs; it takes the table [slurm]."""

    def make(table: str = "") -> Sweep:
        text = HEAD.replace("[base]", "seeds = [1, 2, 3, 4]\n[base]") + f"\n[slurm]\n{table}\n"
        return read_sweep(write(tmp_path, text), tmp_path / "runs")

    return make


def run(sweep: Sweep, **options: object) -> int:
    """Call `run_on_cluster` as the command does; return the exit code."""
    return run_main(lambda: cluster.run_on_cluster(sweep, SweepOptions(file="x", slurm=True, **options)), "sweep.py")


def seeds_of(sweep: Sweep) -> list[int]:
    """Return the seeds of the tasks that were submitted, in the order of the array."""
    paths = sorted((sweep.folder / "slurm").glob("7_*_submitted.pkl"))
    return [submitit.core.utils.DelayedSubmission.load(path).function._job.seed for path in paths]


def test_the_runs_are_one_array_with_a_limit(make, slurm, states, capsys):
    sweep = make(
        'time = 120\npartition = "gpu"\ngpus_per_node = 1\nexclusive = true\nrequeue = false\nsetup = ["module load x"]'
    )
    assert run(sweep, jobs=2, no_wait=True) == 0
    assert seeds_of(sweep) == [1, 2, 3, 4]
    lines = slurm.script.read_text().splitlines()
    asked = {
        "array=0-3%2",
        "time=120",
        "partition=gpu",
        "gpus-per-node=1",
        "exclusive",
        "signal=USR1@90",
        "job-name=try",
    }
    assert asked <= {line.removeprefix("#SBATCH --") for line in lines} and "requeue" not in slurm.script.read_text()
    assert lines.index("module load x") < next(n for n, line in enumerate(lines) if "submitit.core._submit" in line)
    assert json.loads((sweep.folder / "slurm/jobs.json").read_text()) == {f"try-{n + 1}": f"7_{n}" for n in range(4)}
    assert "4 runs were submitted as job 7\n" in capsys.readouterr().out


def test_a_second_call_submits_what_is_missing_and_not_in_the_queue(make, slurm, states, capsys):
    sweep = make()
    run(sweep, no_wait=True)
    slurm.set_queue("7_1", "99_0")
    states[3] = "done"
    slurm.set("sbatch", 'echo "Submitted batch job 8"')
    assert run(sweep, no_wait=True) == 0
    tasks = json.loads((sweep.folder / "slurm/jobs.json").read_text())
    assert tasks == {"try-1": "8_0", "try-2": "7_1", "try-3": "7_2", "try-4": "8_1"}
    text = capsys.readouterr().out
    assert "1 of 4 runs are done\n" in text and "1 run is in the queue of the cluster already\n2 runs were" in text
    slurm.set_queue("7_1", "8_0", "8_1")
    slurm.set("sbatch", "exit 1")
    assert run(sweep, no_wait=True) == 0, "nothing is submitted"


def test_the_call_waits_and_names_the_runs_that_failed(make, slurm, states, monkeypatch, capsys):
    """A task that is absent from the queue once, as during a requeue, or that SLURM does not know, is not lost."""
    sweep, looks = make(), iter(["", "7_0 7_1 7_2 7_3", "", "7_0 7_1 7_2 7_3", None, "7_0", "7_0", "", ""])
    logs = {2: "Traceback\nutils.UserError: error: no images; see logs/x.txt\nsrun: error: 1\n"}
    logs[3] = "slurmstepd: error: *** CANCELLED ***\nsubmitit WARNING - Bypassing\n\n"

    def look() -> set[str]:
        queue = next(looks)
        if queue is None:
            raise UserError("squeue failed")
        if queue == "7_0":
            states.update({1: "done", 2: "done"})
            for number, text in logs.items():
                (sweep.folder / f"slurm/7_{number}_0_log.out").write_text(text)
        return set(queue.split())

    monkeypatch.setattr(cluster, "read_queue", look)
    assert run(sweep) == 1
    text = capsys.readouterr().out
    assert next(looks, "all") == "all" and "try, seed 1: done\n" in text
    assert "try, seed 2: done\n" in text and text.count("failed: ") == 2
    assert "try, seed 3: failed: error: no images; see logs/x.txt\n" in text
    assert (
        f"try, seed 4: failed: slurmstepd: error: *** CANCELLED ***; see {sweep.folder}/slurm/7_3_0_log.out\n" in text
    )
    assert "2 of 4 runs failed; the same command tries them again\n" in text


def test_a_task_without_a_message_is_named(make, slurm, states, capsys):
    assert run(make()) == 1, "the queue is empty at once"
    assert "try, seed 4: failed: task 7_3 left no message; `sacct -j 7_3` may say why" in capsys.readouterr().out


def test_control_c_leaves_the_cluster_alone(make, slurm, states, monkeypatch, capsys):
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "progress_of", interrupt)
    slurm.set("scancel", f"touch {slurm.folder}/cancelled")
    assert run(make()) == 130
    text = capsys.readouterr().out
    assert "The runs continue on the cluster." in text and "To cancel them: scancel 7\n" in text
    assert not (slurm.folder / "cancelled").exists()


@pytest.mark.parametrize(
    "table, sbatch, message",
    [
        ('time = "2:00:00"', "", "[slurm] time: '2:00:00' is not a whole number of minutes; write one such as 120"),
        ('setup = "module load x"', "", "[slurm] setup: 'module load x' is not a list of texts"),
        (
            "partitoin = 1",
            "echo 'sbatch: error: bad --partitoin' >&2; exit 1",
            "refused the runs: sbatch: error: bad --par",
        ),
    ],
)
def test_a_wrong_table_is_one_line(table, sbatch, message, make, slurm, states, capsys):
    slurm.set("sbatch", sbatch)
    sweep = make(table)
    assert run(sweep) == 2
    text = capsys.readouterr().err
    assert message in text and text.count("\n") == 1
    assert not (sweep.folder / "slurm/jobs.json").exists()


def test_without_slurm_or_submitit_there_is_one_line(make, slurm, states, monkeypatch, capsys):
    slurm.set("squeue", "echo 'error: DNS SRV\nslurm_load_jobs error: Unable to contact' >&2; exit 1")
    assert run(make()) == 2
    (slurm.folder / "squeue").unlink()
    monkeypatch.setenv("PATH", str(slurm.folder))
    assert run(make()) == 2
    slurm.set("squeue", "")
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert run(make()) == 2
    contact, installed, package = capsys.readouterr().err.splitlines()
    remedy = "call sweep.py on a login node of the cluster, or try again later"
    assert f"squeue failed: slurm_load_jobs error: Unable to contact; {remedy}" in contact
    assert "squeue is not installed; call sweep.py on a login node" in installed
    assert "--slurm needs submitit; pip install -r requirements-cluster.txt" in package


def test_no_wait_needs_slurm(capsys):
    with pytest.raises(SystemExit):
        parse_command(SweepOptions, "", ["x.toml", "--no_wait"])
    assert "--no_wait: does nothing without --slurm; leave it out" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------------------
# A task on its node


@pytest.fixture
def task(make, monkeypatch) -> Callable[..., Task]:
    """A function that returns a task with other commands."""

    def task(*commands: list[str], cls: type[Task] = Task) -> Task:
        monkeypatch.setattr(cluster, "commands_of", lambda sweep, job: list(commands))
        return cls(make(), make().jobs[0])

    return task


def test_a_task_trains_then_measures(task, tmp_path):
    task([*PYTHON, "print('trained')"], [*PYTHON, "print('measured')"])()
    assert (tmp_path / "runs/try/logs/try-1.txt").read_text() == "trained\nmeasured\n"
    task()()


def test_a_task_that_fails_names_the_reason(task, tmp_path):
    commands = [
        [*PYTHON, "print('progress', flush=True); raise SystemExit('error: no images')"],
        [*PYTHON, "print('measured')"],
    ]
    with pytest.raises(UserError, match=re.escape(f"error: no images (exit code 1); see {tmp_path}")):
        task(*commands)()


class Hasty(Task):
    """Does not wait until the training has saved. For the control."""

    def checkpoint(self):
        os.kill(self._process.pid, signal.SIGUSR1)
        return submitit.helpers.DelayedSubmission(Hasty(self._sweep, self._job))


@pytest.mark.faults
@pytest.mark.parametrize("cls, is_saved", [(Task, True), (Hasty, False)])
def test_a_signal_saves_before_the_task_is_requeued(cls, is_saved, task, tmp_path, monkeypatch):
    """The signal handler is submitit's own; SLURM may also signal the training itself."""
    from submitit.core.job_environment import SignalHandler

    saved, seen = tmp_path / "saved", []

    class Environment:
        global_rank = 0

        def _requeue(self, countdown: int) -> None:
            seen.append(saved.exists())

    submission = submitit.helpers.DelayedSubmission(task([*PYTHON, SAVE, str(saved)], cls=cls))
    submission.set_timeout(60, 100)
    paths = submitit.core.utils.JobPaths(tmp_path, "7_0")
    handler = SignalHandler(Environment(), paths, submission)  # type: ignore[arg-type]

    def interrupt() -> None:
        while not Path(f"{saved}-began").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler.checkpoint_and_try_requeue)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(SystemExit):
            submission.result()
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
    assert seen == [is_saved]
    again = submitit.core.utils.DelayedSubmission.load(paths.submitted_pickle).function
    assert isinstance(again, Task) and again._process is None and again._job.seed == 1


@pytest.mark.faults
def test_a_stopped_task_waits_for_slurm(task, monkeypatch):
    """SLURM sends SIGTERM to every process before it requeues a task: one that has ended would not be requeued."""
    waited = []
    monkeypatch.setattr(cluster.time, "sleep", waited.append)
    with pytest.raises(UserError):
        task([*PYTHON, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"])()
    with pytest.raises(UserError):
        task([*PYTHON, "raise SystemExit(138)"])()
    with pytest.raises(UserError):
        task([*PYTHON, "raise SystemExit(2)"])()
    assert waited == [cluster.STOP_SECONDS] * 2
