"""The queue of one machine: jobs at a time, shares of the machine, failures, and signals that save every run."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

from options.sweep import SweepOptions
from sweeps import local
from sweeps.grid import Sweep
from sweeps.reading import read_sweep
from system.program import run_main
from tests.sweeps.test_reading import HEAD, write

PYTHON = [sys.executable, "-I", "-S", "-c"]
# A command that notes when it ran and what it sees.
NOTE = """
import os, sys, time
start = time.time(); time.sleep(float(sys.argv[2]))
names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
open(sys.argv[1], "a").write(repr((start, time.time(), *map(os.environ.get, names))) + "\\n")
print("noted")
"""
# A training: it saves when a signal asks for it. The second one has its last iteration then.
SAVE = """
import signal, sys, time
def save(*arguments):
    open(sys.argv[1], "w").write("saved"); sys.exit(0 if sys.argv[1].endswith("2") else 143)
signal.signal(signal.SIGTERM, save)
open(sys.argv[1] + "-began", "w").close()
time.sleep(30)
"""
# A training that does not react to signals.
DEAF = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").write(str(os.getpid()))
os.rename(sys.argv[1], sys.argv[1] + "-began")
time.sleep(30)
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> Sweep:
    """A sweep of four runs."""
    monkeypatch.setattr(local, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(local, "find_gpus", lambda: [])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    text = HEAD.replace("[base]", "seeds = [1, 2, 3, 4]\n[base]")
    return read_sweep(write(tmp_path, text), tmp_path / "runs")


@pytest.fixture
def run(sweep, monkeypatch) -> Callable[..., int]:
    """A function that runs a sweep with other commands: it takes a function from a seed to the commands."""

    def run(make: Callable[[int], list[list[str]]], jobs: int | None = None) -> int:
        monkeypatch.setattr(local, "commands_of", lambda sweep, job: make(job.seed))
        return run_main(lambda: local.run_here(sweep, SweepOptions(file="x", jobs=jobs)), "sweep.py")

    return run


def most_at_a_time(rows: list[tuple]) -> int:
    """Return how many of the intervals (start, end) of rows contain the start of one of them."""
    return max(sum(start <= row[0] < end for start, end, *_ in rows) for row in rows)


@pytest.mark.parametrize("jobs, most", [(None, 1), (2, 2)])
def test_at_most_n_jobs_run_at_a_time(jobs, most, run, tmp_path):
    def note(seed: int) -> list[list[str]]:
        return [
            [*PYTHON, NOTE, str(tmp_path / f"{seed}.txt"), "0.1"],
            [*PYTHON, NOTE, str(tmp_path / f"{seed}.txt"), "0"],
        ]

    assert run(note, jobs) == 0
    rows = [eval(line) for path in sorted(tmp_path.glob("*.txt")) for line in path.read_text().splitlines()]
    assert len(rows) == 8 and most_at_a_time(rows) == most
    cores = len(os.sched_getaffinity(0))
    assert {row[2:] for row in rows} == {(None if jobs is None else str(max(1, cores // 2)), None)}
    log = tmp_path / "runs" / "try" / "logs" / "try-1.txt"
    assert log.read_text() == "noted\nnoted\n"


def test_each_training_has_a_gpu(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(9)), raising=False)
    shares = local.share_machine(4, ["2", "5", "7"])
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["2", "5", "7", "2"]
    assert {share["OMP_NUM_THREADS"] for share in shares} == {"2"}
    assert local.share_machine(1, ["0"]) == [{"PYTHONUNBUFFERED": "1"}]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "OMP_NUM_THREADS" not in local.share_machine(2, [])[0]


@pytest.mark.parametrize("chosen, expected", [(None, ["0", "1"]), ("3,GPU-a", ["3", "GPU-a"])])
def test_the_gpus_are_those_that_this_program_may_use(chosen, expected, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert local.find_gpus() == expected


def test_several_gpus_train_several_runs(run, tmp_path, monkeypatch):
    """Without --jobs there is a training for each GPU; the base of the file must not forbid GPUs."""
    monkeypatch.setattr(local, "find_gpus", lambda: ["4", "6"])
    monkeypatch.setattr(local, "options_of", lambda sweep, job: {})
    assert run(lambda seed: [[*PYTHON, NOTE, str(tmp_path / "all.txt"), "0.1"]]) == 0
    rows = [eval(line) for line in (tmp_path / "all.txt").read_text().splitlines()]
    assert sorted(row[3] for row in rows) == ["4", "4", "6", "6"] and most_at_a_time(rows) == 2


def test_measuring_is_told_and_is_not_in_the_speed(run, tmp_path, monkeypatch, capsys):
    """A run of this sweep is trained in no time, then measured; the others are measured only."""
    bars = []

    class Bar(local.ProgressBar):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            bars.append(self)

    monkeypatch.setattr(local, "ProgressBar", Bar)
    measure = [sys.executable, str(tmp_path / "evaluate.py")]
    Path(measure[1]).write_text("import time; time.sleep(0.1)")
    assert run(lambda seed: [[*PYTHON, ""], measure] if seed == 1 else [measure]) == 0
    out = capsys.readouterr().out
    assert out.count("started in") == 1 and out.count(": measuring ") == 4
    assert out.index("try, seed 1: started in ") < out.index("try, seed 1: measuring ")
    assert bars[0].last_print_t - bars[0].start_t > 0.3


@pytest.mark.faults
def test_a_job_that_fails_is_told_and_the_others_continue(run, tmp_path, capsys):
    failing = "import sys; print('a', flush=True); sys.stderr.write('vanilla_gan.py: error: no images\\n'); sys.exit(2)"
    killed = "import os; os.kill(os.getpid(), 9)"

    def make(seed: int) -> list[list[str]]:
        note = [*PYTHON, NOTE, str(tmp_path / f"{seed}.txt"), "0"]
        return {1: [[*PYTHON, failing], note], 2: [note, [*PYTHON, killed]]}.get(seed, [note])

    assert run(make) == 1
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == ["2.txt", "3.txt", "4.txt"]
    out = capsys.readouterr().out
    log = tmp_path / "runs" / "try" / "logs" / "try-1.txt"
    assert f"try, seed 1: failed: vanilla_gan.py: error: no images (exit code 2); see {log}\n" in out
    assert "try, seed 2: failed: noted (ended by SIGKILL)" in out and "try, seed 4: done" in out
    assert "2 of 4 runs failed; the same command tries them again" in out


def send_when_began(folder: Path, number: int) -> None:
    """Send a signal to this process when two trainings have begun."""
    for _ in range(1000):
        if len(list(folder.glob("*-began"))) == 2:
            return os.kill(os.getpid(), number)
        time.sleep(0.01)


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_every_training(number, run, tmp_path, capsys):
    sender = threading.Thread(target=send_when_began, args=(tmp_path, number))
    sender.start()
    note = [*PYTHON, NOTE, str(tmp_path / "after"), "0"]
    started = time.monotonic()
    assert run(lambda seed: [[*PYTHON, SAVE, str(tmp_path / str(seed))], note], jobs=2) == 128 + number
    sender.join()
    assert time.monotonic() - started < 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "1-began", "2", "2-began", "runs", "try.toml"]
    out = capsys.readouterr().out
    assert re.search(rf"Stopped by {number.name}\. The same command continues:\n    python ", out)
    assert "failed" not in out


@pytest.mark.faults
def test_a_run_that_another_process_trains_is_waited_for(run, sweep, tmp_path, capsys):
    """Trainings live on when sweep.py is killed; the same command continues a run when its training has ended."""
    for job in sweep.jobs[:2]:
        job.folder.mkdir(parents=True)
    locks = [filelock.FileLock(job.folder / ".lock") for job in sweep.jobs[:2]]
    for lock in locks:
        lock.acquire()

    def make(seed: int) -> list[list[str]]:
        if seed == 4:
            for lock in locks:
                lock.release()
        return [] if seed == 2 else [[*PYTHON, NOTE, str(tmp_path / f"{seed}.txt"), "0"]]  # run 2 is done then

    assert run(make) == 0
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == ["1.txt", "3.txt", "4.txt"]
    out = capsys.readouterr().out
    assert out.count("try-1 is in use by another process; waiting for it") == 1 and "failed" not in out
    assert out.index("try, seed 4: started") < out.index("try, seed 1: started")


@pytest.mark.faults
def test_the_output_of_a_process_that_was_left_is_not_mixed_with_ours(run, sweep, tmp_path, capsys):
    log = sweep.folder / "logs" / "try-1.txt"
    log.parent.mkdir(parents=True)
    with open(log, "wb") as left:
        left.write(b"old" * 100)
        left.flush()
        assert run(lambda seed: [[*PYTHON, f"print({seed}, flush=True)"]]) == 0
        left.write(b"older")
    assert log.read_text() == "1\n"


@pytest.mark.faults
def test_two_calls_at_the_same_time(run, sweep, capsys):
    sweep.folder.mkdir(parents=True)
    with filelock.FileLock(sweep.folder / ".lock"):
        assert run(lambda seed: [[*PYTHON, "raise"]]) == 2
    assert (
        capsys.readouterr().err
        == f"sweep.py: error: {sweep.folder} is in use by another sweep.py; wait for it, or stop it\n"
    )


@pytest.mark.faults
def test_a_second_ctrl_c_ends_the_trainings_at_once(run, tmp_path, monkeypatch):
    """The trainings do not react to the first one; afterwards none of them runs."""
    stop = local.Queue.stop

    def stop_twice(queue: local.Queue) -> None:
        stop(queue)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(local.Queue, "stop", stop_twice)
    sender = threading.Thread(target=send_when_began, args=(tmp_path, signal.SIGINT))
    sender.start()
    assert run(lambda seed: [[*PYTHON, DEAF, str(tmp_path / str(seed))]], jobs=2) == 130
    sender.join()
    for path in tmp_path.glob("*-began"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
