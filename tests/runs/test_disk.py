"""Limits of the system: files that may not grow, a full disk for TensorBoard, folders that are not writable."""

import os
import resource
import subprocess
import sys
import threading

import pytest

from tests.conftest import ROOT, FinishedRun, assert_same, resume, temporary_files, train

pytestmark = [pytest.mark.faults, pytest.mark.skipif(os.name != "posix", reason="limits of processes")]


@pytest.fixture
def stopped(photos, tmp_path):
    """A run with a checkpoint at 2, beside a run to 6 without interruption."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--log_step=1", "--checkpoint_every=2"]
    assert train(*flags, "--name=run", "--train_iters=2", "--sample_every=1000", "--conv_dim=24") == 0
    assert train(*flags, "--name=whole", "--train_iters=6", "--sample_every=1000", "--conv_dim=24") == 0
    return tmp_path / "run"


def resume_with_limit(run, largest: int) -> subprocess.CompletedProcess:
    """Resume in a process whose files can have at most `largest` bytes."""
    return subprocess.run(
        [sys.executable, ROOT / "vanilla_gan.py", f"--resume={run}", "--train_iters=6"], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)),
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip


def test_no_room_for_a_checkpoint(stopped, tmp_path):
    """torch.save into the file would end with a traceback about positions in an archive."""
    size = (stopped / "checkpoint-000002.pt").stat().st_size
    done = resume_with_limit(stopped, size - 1000)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    words = ("checkpoint-000004.pt", "File too large", f"it needs {size / 1e6:.3g} MB", "MB are free", "--resume")
    assert not [word for word in words if word not in done.stderr], done.stderr
    assert FinishedRun(stopped).steps("checkpoint-*.pt") == [2], "nothing torn"
    assert not temporary_files(stopped)
    assert resume(f"--resume={stopped}", "--train_iters=6") == 0
    assert_same(FinishedRun(tmp_path / "whole").checkpoint()["networks"], FinishedRun(stopped).checkpoint()["networks"])


def test_no_room_for_tensorboard(stopped, tmp_path, monkeypatch, capfd):
    """TensorBoard writes in its own thread, and raises the error of that thread again in ours: one line reports it."""
    from torch.utils.tensorboard import SummaryWriter

    def add_image(*arguments):
        raise OSError(28, "No space left on device")

    def add_scalar(*arguments):
        failing = threading.Thread(target=add_image)
        failing.start()
        failing.join()
        add_image()

    shown_by = threading.excepthook

    with monkeypatch.context() as patch:
        patch.setattr(SummaryWriter, "add_scalar", add_scalar)
        assert resume(f"--resume={stopped}", "--train_iters=6") == 2
    assert threading.excepthook is shown_by, "the errors of other threads are shown again after the run"
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and f"{stopped / 'events.out.tfevents'}: No space left" in err, err
    assert not temporary_files(stopped)
    assert resume(f"--resume={stopped}", "--train_iters=6") == 0
    whole, run = FinishedRun(tmp_path / "whole"), FinishedRun(stopped)
    assert_same(whole.checkpoint()["networks"], run.checkpoint()["networks"])
    assert whole.rows() == run.rows()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root can write everywhere")
def test_a_folder_that_is_not_writable(stopped, capsys):
    stopped.chmod(0o500)
    try:
        assert resume(f"--resume={stopped}", "--train_iters=6") == 2
    finally:
        stopped.chmod(0o700)
    assert capsys.readouterr().err.count("\n") == 1
