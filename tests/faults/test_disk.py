"""Real limits of the system: files that may not grow, folders that can't be written to."""

import os
import resource
import subprocess
import sys
import threading

import pytest

from tests.conftest import ROOT, FinishedRun, assert_same, resume, train

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits of processes")


@pytest.fixture
def begun(photos, tmp_path):
    """A run with a checkpoint at 2, to go on to 6."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--log_step=1", "--checkpoint_every=2"]
    assert train(*flags, "--name=run", "--train_iters=2", "--sample_every=1000", "--conv_dim=24") == 0
    assert train(*flags, "--name=whole", "--train_iters=6", "--sample_every=1000", "--conv_dim=24") == 0
    return tmp_path / "run"


def go_on(run, largest: int) -> subprocess.CompletedProcess:
    """Resume in a process whose files may have `largest` bytes."""
    return subprocess.run(
        [sys.executable, ROOT / "vanilla_gan.py", f"--resume={run}", "--train_iters=6"], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)),
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip


def test_a_checkpoint_that_has_no_room(begun, tmp_path):
    """torch.save into the file would end in a traceback about positions in an archive."""
    size = (begun / "checkpoint-000002.pt").stat().st_size
    done = go_on(begun, size - 1000)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    words = ("checkpoint-000004.pt", "File too large", f"it needs {size / 1e6:.3g} MB", "MB are free", "--resume")
    assert not [word for word in words if word not in done.stderr], done.stderr
    assert FinishedRun(begun).steps("checkpoint-*.pt") == [2], "nothing torn"
    assert not list(begun.rglob(".*")), "nothing temporary"
    assert resume(f"--resume={begun}", "--train_iters=6") == 0
    assert_same(FinishedRun(tmp_path / "whole").checkpoint()["networks"], FinishedRun(begun).checkpoint()["networks"])


def test_tensorboard_has_no_room(begun, monkeypatch, capfd):
    """It writes in a thread of its own, whose error comes again in ours, and whose traceback is not shown."""
    from torch.utils.tensorboard import SummaryWriter

    def add_scalar(*arguments):
        failing = threading.Thread(target=add_image)
        failing.start()
        failing.join()
        add_image()

    def add_image(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # put back what a run sets
    monkeypatch.setattr(SummaryWriter, "add_scalar", add_scalar)
    assert resume(f"--resume={begun}", "--train_iters=6") == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "events.out.tfevents" in err and "No space left" in err, err
    assert not list(begun.rglob(".*"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_can_not_be_written_to(begun, capsys):
    begun.chmod(0o500)
    try:
        assert resume(f"--resume={begun}", "--train_iters=6") == 2
    finally:
        begun.chmod(0o700)
    assert capsys.readouterr().err.count("\n") == 1
