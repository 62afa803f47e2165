"""Real signals to a real process: it finishes the iteration, saves, says how to go on, and the run continues."""

import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from runs import list_checkpoints, read_checkpoint
from tests.conftest import ROOT, TINY, FinishedRun, train
from tests.faults.trainings import MOMENTS, Training, signals_in, stop_by_signal

fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")


def test_signal_saves_and_says_how_to_go_on(photos, tmp_path):
    """SIGUSR1 is what SLURM warns with."""
    number, code = signal.SIGUSR1, 138
    arguments = [
        *TINY["vanilla_gan.py"],
        f"--data={photos}",
        f"--checkpoint_dir={tmp_path}",
        "--name=run",
        "--train_iters=1000000",
    ]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "vanilla_gan.py"), *arguments, "--log_step=1", "--sample_every=1000000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        losses = tmp_path / "run" / "losses.csv"
        deadline = time.monotonic() + 90
        while not (losses.exists() and losses.read_text().count("\n") > 3) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, err
    run = FinishedRun(tmp_path / "run")
    (step,) = run.steps("checkpoint-*.pt")
    rows = run.rows()
    assert int(rows[-1]["step"]) == step == len(rows), "no iteration was lost, none was half done"
    assert (run.folder / "losses.png").stat().st_size > 0 and not list(run.folder.glob(".*"))
    words = shlex.split(out.splitlines()[-1])
    assert words == ["python", str(ROOT / "vanilla_gan.py"), "--resume", str(run.folder)], "the last line is a command"
    result = subprocess.run(
        [sys.executable, *words[1:], f"--train_iters={step + 2}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert result.returncode == 0, result.stderr
    assert [int(row["step"]) for row in FinishedRun(tmp_path / "run").rows()] == list(range(1, step + 3))


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return Training.make(tmp_path_factory.mktemp("signals"), "vanilla_gan.py")


@pytest.mark.parametrize("moment", MOMENTS)
def test_signal_at_any_moment(moment, training, tmp_path):
    """What is being done is finished, a checkpoint written, and the run goes on to what it would have become."""
    assert stop_by_signal(training, tmp_path, signal.SIGUSR1, moment)


def test_a_loop_that_knows_no_signals_loses_steps(training, tmp_path):
    """The control."""
    assert not stop_by_signal(training, tmp_path, signal.SIGTERM, "a step", prepared=False)


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_second_ctrl_c_stops_at_once(moment, training, tmp_path, capsys):
    """And leaves whole files only."""
    run = shutil.copytree(training.begun, tmp_path / "run")
    with signals_in(moment, training.script, signal.SIGINT, signal.SIGINT):
        assert training.go_on(run) == 130
    assert capsys.readouterr().err == "vanilla_gan.py: interrupted\n"
    assert not list(run.rglob(".*"))
    for path in run.glob("*.pt"):
        read_checkpoint(path, warn=pytest.fail)
    assert training.go_on(run) == 0 and training.is_same(run)


def test_nohup_is_respected(photos, tmp_path):
    """A signal that the user has had ignored doesn't stop a run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_in("a step", "vanilla_gan.py", signal.SIGHUP):
            assert train(f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=4") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_closes(training, tmp_path):
    """SIGHUP comes, and nothing can be shown any more: the run is saved all the same."""
    run = shutil.copytree(training.begun, tmp_path / "run")
    ours, theirs = os.openpty()

    def take_the_terminal():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and a training leaves it so
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, ROOT / "vanilla_gan.py", f"--resume={run}", "--train_iters=1000000"], stdin=theirs,
        stdout=theirs, stderr=theirs, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=take_the_terminal,
    )  # fmt: skip
    os.close(theirs)
    rows = lambda: (run / "losses.csv").read_text().count("\n")  # noqa: E731
    deadline = time.monotonic() + 90
    while rows() < 10 and time.monotonic() < deadline:
        select.select([ours], [], [], 0.05)[0] and os.read(ours, 10000)
    os.close(ours)
    try:
        assert process.wait(timeout=60) == 128 + signal.SIGHUP
    finally:
        process.kill()
    [newest, *_] = list_checkpoints(run)
    assert newest[0] == rows() - 1 > 5, "the last row is in the checkpoint"


def test_a_pipe_that_closes(training, tmp_path, monkeypatch):
    """`| head -1` must not end a training."""
    run = shutil.copytree(training.begun, tmp_path / "run")

    def write(text):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("runs.tqdm.write", write)
    assert training.go_on(run) == 0 and training.is_same(run)
