"""Two runs in one folder: the second is refused and the first goes on; a lock dies with its process."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, TINY, FinishedRun, resume, train

pytest.importorskip("fcntl")


@pytest.fixture
def training(photos, tmp_path):
    """A process that trains for ever in tmp_path/run, at its third iteration or later."""
    flags = [*TINY["vanilla_gan.py"], f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", "--log_step=1"]
    process = subprocess.Popen(
        [sys.executable, ROOT / "vanilla_gan.py", *flags, "--train_iters=1000000", "--checkpoint_every=2"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("run/checkpoint-*.pt")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


def test_the_second_is_refused(training, tmp_path, capsys):
    started = time.monotonic()
    assert resume(f"--resume={tmp_path / 'run'}") == 2
    assert time.monotonic() - started < 10
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"is in use by process {training.pid} on {os.uname().nodename} since 20" in err
    training.send_signal(signal.SIGTERM)
    training.wait(timeout=60)
    run = FinishedRun(tmp_path / "run")
    assert training.returncode == 143 and not list(run.folder.glob(".*")), "the first was left alone, and cleaned up"
    assert [int(row["step"]) for row in run.rows()] == list(range(1, run.steps("checkpoint-*.pt")[-1] + 1))
    assert len(__import__("json").loads((run.folder / "environment.json").read_text())) == 1


def test_a_killed_one_holds_nothing(training, tmp_path):
    training.kill()
    training.wait()
    (tmp_path / "run" / ".checkpoint-000999.pt.99999.tmp").write_text("what a killed process leaves")
    step = FinishedRun(tmp_path / "run").steps("checkpoint-*.pt")[-1]
    assert (tmp_path / "run" / ".lock").exists()
    assert resume(f"--resume={tmp_path / 'run'}", f"--train_iters={step + 4}", "--checkpoint_every=2") == 0
    run = FinishedRun(tmp_path / "run")
    assert [int(row["step"]) for row in run.rows()] == list(range(1, step + 5)) and not list(run.folder.glob(".*"))


def test_without_the_lock_two_would_mix_their_rows(photos, tmp_path, monkeypatch):
    """The control: the same folder, opened twice."""
    import runs

    monkeypatch.setattr(runs, "fcntl", None)
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--log_step=1", "--name=run", "--train_iters=2"]
    real, opened = runs.Run.add_losses, []

    def add_losses(run, *arguments):
        real(run, *arguments)
        if not opened:
            opened.append(1)
            assert resume(f"--resume={tmp_path / 'run'}") == 0

    monkeypatch.setattr(runs.Run, "add_losses", add_losses)
    assert train(*flags) == 0
    assert [row["step"] for row in FinishedRun(tmp_path / "run").rows()] != ["1", "2"]
