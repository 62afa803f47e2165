"""Several processes under torchrun: one is killed, they are restarted, one gets a signal, and mistakes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, TINY, FinishedRun, resume, temporary_files
from tests.helpers.launches import workers

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform == "win32", reason="signals")]


@pytest.fixture
def start(photos, tmp_path):
    """A function that starts two processes of an endless training and returns the process of torchrun."""
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


def test_one_process_is_killed(start, tmp_path):
    process = start()
    wait_for_checkpoint(tmp_path / "run")
    os.kill(workers(process)[1], signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0 and "lost contact with the others" in error and "--resume" in error
    step = FinishedRun(tmp_path / "run").steps("checkpoint-*.pt")[-1]
    assert not temporary_files(tmp_path / "run")
    assert resume(f"--resume={tmp_path / 'run'}", f"--train_iters={step + 2}") == 0, "with one process"
    assert FinishedRun(tmp_path / "run").steps("checkpoint-*.pt")[-1] == step + 2


def test_torchrun_restarts_the_processes(start, tmp_path):
    """They resume the run with the same --name by themselves."""
    process = start("--train_iters=200", launcher="--max-restarts=1")
    run = tmp_path / "run"
    wait_for_checkpoint(run)
    os.kill(workers(process)[1], signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert FinishedRun(run).steps("checkpoint-*.pt")[-1] == 200 and not temporary_files(run)
    assert [int(row["step"]) for row in FinishedRun(run).rows()] == list(range(5, 201, 5))
    assert ", from " in FinishedRun(run).log


def test_a_restart_without_a_name(start, tmp_path):
    """Nothing tells which run to resume: the message says that --name is needed, and no second run begins."""
    process = start(name=None, launcher="--max-restarts=1")
    run = tmp_path / "vanilla_gan-photos-basic-lsgan-001"
    wait_for_checkpoint(run)
    os.kill(workers(process)[1], signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode != 0
    assert error.count("--name: missing, so torchrun cannot resume the run after a restart; use --resume RUN") == 1, (
        error
    )
    assert [path.name for path in tmp_path.glob("vanilla_gan-*")] == [run.name]
    step = FinishedRun(run).steps("checkpoint-*.pt")[-1]
    assert resume(f"--resume={run}", f"--train_iters={step + 2}") == 0


def test_a_signal_to_one_process_stops_all(start, tmp_path):
    process = start("--checkpoint_every=1000000")
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "losses.csv").exists():
        assert time.monotonic() < deadline, "no row"
        time.sleep(0.1)
    os.kill(workers(process)[1], signal.SIGTERM)  # the other process gets none
    output, error = process.communicate(timeout=60)
    run = FinishedRun(tmp_path / "run")
    [step] = run.steps("checkpoint-*.pt")
    assert run.checkpoint(step)["step"] == step
    assert f"Stopped by SIGTERM at iteration {step}" in output and "torchrun --nproc_per_node=2" in output
    assert "lost contact with the others" not in error


def test_a_batch_that_cannot_be_shared(start, tmp_path):
    process = start("--batch_size=5")
    _, error = process.communicate(timeout=60)
    assert error.count("--batch_size: 5 images cannot be shared by 2 processes; use a multiple") == 1
    assert process.returncode != 0 and not (tmp_path / "run").exists()
