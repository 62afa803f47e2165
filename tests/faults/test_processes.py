"""Several processes: what is left when one of them dies, when all are told to stop, and mistakes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, TINY, FinishedRun, resume
from tests.faults.launches import workers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@pytest.fixture
def start(photos, tmp_path):
    """Start two processes of a training that would go on for ever; return torchrun's, with its folder."""
    started = []

    def start(*flags: str, name: str | None = "--name=run", launcher: str = "--max-restarts=0") -> subprocess.Popen:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", launcher]
        flags = [*TINY["vanilla_gan.py"], f"--data={photos}", f"--checkpoint_dir={tmp_path}", *flags]
        flags += [name] if name else []
        settings = ["--train_iters=1000000", "--log_step=5", "--sample_every=1000000", "--checkpoint_every=5"]
        started.append(
            subprocess.Popen(
                [*command, ROOT / "vanilla_gan.py", *settings, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        process.kill()


def wait_for_checkpoint(folder) -> None:
    deadline = time.monotonic() + 60
    while not list(folder.glob("checkpoint-*.pt")):
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.1)


def test_one_process_dies(start, tmp_path):
    process = start()
    wait_for_checkpoint(tmp_path / "run")
    os.kill(workers(process)[1], signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0 and "lost the others" in error and "--resume" in error
    step = FinishedRun(tmp_path / "run").steps("checkpoint-*.pt")[-1]
    assert not list((tmp_path / "run").glob(".*.tmp"))
    assert resume(f"--resume={tmp_path / 'run'}", f"--train_iters={step + 2}") == 0, "with one process"
    assert FinishedRun(tmp_path / "run").steps("checkpoint-*.pt")[-1] == step + 2


def test_torchrun_starts_anew(start, tmp_path):
    """By itself, in the same folder, also of a run without a name. That of another launch is let alone."""
    earlier = tmp_path / "vanilla_gan-photos-basic-lsgan-001"
    earlier.mkdir()
    (earlier / "environment.json").write_text('[{"launch": "another"}]')
    process = start("--train_iters=200", name=None, launcher="--max-restarts=1")
    run = tmp_path / earlier.name.replace("001", "002")
    wait_for_checkpoint(run)
    os.kill(workers(process)[1], signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert FinishedRun(run).steps("checkpoint-*.pt")[-1] == 200 and not list(run.rglob(".*"))
    assert [int(row["step"]) for row in FinishedRun(run).rows()] == list(range(5, 201, 5))
    assert ", from " in FinishedRun(run).log and list(earlier.iterdir()) == [earlier / "environment.json"]


def test_one_is_told_to_stop(start, tmp_path):
    process = start("--checkpoint_every=1000000")
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "losses.csv").exists():
        assert time.monotonic() < deadline, "no row"
        time.sleep(0.1)
    os.kill(workers(process)[1], signal.SIGTERM)  # the other learns of it
    output, error = process.communicate(timeout=60)
    run = FinishedRun(tmp_path / "run")
    [step] = run.steps("checkpoint-*.pt")
    assert run.checkpoint(step)["step"] == step
    assert f"Stopped by SIGTERM at iteration {step}" in output and "torchrun --nproc_per_node=2" in output
    assert "lost the others" not in error


def test_a_batch_that_can_not_be_shared(start, tmp_path):
    process = start("--batch_size=5")
    _, error = process.communicate(timeout=60)
    assert error.count("--batch_size: 5 images can't be shared by 2 processes; use a multiple") == 1
    assert process.returncode != 0 and not (tmp_path / "run").exists()
