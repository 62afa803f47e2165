"""Signals to a training: it finishes the iteration, saves, prints how to resume, and the resumed run is the same."""

import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from runs.checkpoints import list_checkpoints, read_checkpoint
from tests.conftest import ROOT, TINY, FinishedRun, temporary_files, train
from tests.helpers.trainings import MOMENTS, Training, signals_during, stop_by_signal

pytestmark = pytest.mark.faults
fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")


def test_a_signal_saves_and_prints_how_to_resume(photos, tmp_path):
    """SLURM sends SIGUSR1 before it kills."""
    number, code = signal.SIGUSR1, 138
    arguments = [
        *TINY["vanilla_gan.py"],
        f"--data={photos}",
        f"--checkpoint_dir={tmp_path}",
        "--name=run",
        "--train_iters=1000000",
    ]
    process = subprocess.Popen(
        [sys.executable, ROOT / "vanilla_gan.py", *arguments, "--log_step=1", "--sample_every=1000000"],
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
    assert int(rows[-1]["step"]) == step == len(rows), "no iteration was lost or cut short"
    assert (run.folder / "losses.png").stat().st_size > 0 and not temporary_files(run.folder)
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
    """The operation is finished and a checkpoint written; the resumed run equals an uninterrupted one."""
    assert stop_by_signal(training, tmp_path, signal.SIGUSR1, moment)


def test_without_signal_handlers_steps_are_lost(training, tmp_path):
    """The control."""
    assert not stop_by_signal(training, tmp_path, signal.SIGTERM, "a step", handled=False)


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_second_ctrl_c_stops_at_once(moment, training, tmp_path, capsys):
    """And leaves only complete files."""
    run = shutil.copytree(training.stopped, tmp_path / "run")
    with signals_during(moment, training.script, signal.SIGINT, signal.SIGINT):
        assert training.finish(run) == 130
    assert capsys.readouterr().err == "vanilla_gan.py: interrupted\n"
    assert not temporary_files(run)
    for path in run.glob("*.pt"):
        read_checkpoint(path)
    assert training.finish(run) == 0 and training.is_same(run)


def test_nohup_is_respected(photos, tmp_path):
    """A signal that is ignored when the run starts does not stop it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_during("a step", "vanilla_gan.py", signal.SIGHUP):
            assert train(f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=4") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_closes(training, tmp_path):
    """SIGHUP arrives, and nothing can be printed any more: the run is saved anyway."""
    run = shutil.copytree(training.stopped, tmp_path / "run")
    ours, theirs = os.openpty()

    def take_the_terminal():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and a training keeps it ignored
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
    """`| head -1` does not end a training."""
    run = shutil.copytree(training.stopped, tmp_path / "run")

    lines = []

    def write(line):
        lines.append(line)
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("tqdm.tqdm.write", write)
    assert training.finish(run) == 0 and training.is_same(run)
    assert len(lines) > 3 and set(lines) <= {*(run / "log.txt").read_text().split("\n")}


def test_a_training_in_a_thread(photos, tmp_path):
    """As a notebook or a server may start it: without handlers of signals, and otherwise as ever."""
    before = signal.getsignal(signal.SIGINT)
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=2"]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(train, *flags).result() == 0
    assert FinishedRun(tmp_path / "run").steps("checkpoint-*.pt") == [2]
    assert signal.getsignal(signal.SIGINT) is before
