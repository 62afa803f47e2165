"""Real signals to a real process: it finishes the iteration, saves, says how to go on, and the run continues."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import ROOT, TINY, FinishedRun, assert_same, make_photo, resume, train


# SIGUSR1 is what SLURM warns with.
@pytest.mark.parametrize(
    "number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)]
)
def test_signal_saves_and_says_how_to_go_on(number, code, photos, tmp_path):
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


MOMENTS = {
    "step": ("vanilla_gan", "train_step"),
    "grid": ("vanilla_gan", "draw_samples"),
    "evaluation": ("evaluate.Judge", "__call__"),
    "checkpoint": ("runs", "_seal"),
    "file": ("os", "replace"),
}


def raise_once_in(monkeypatch, moment: str, *numbers: int) -> None:
    """Have signals arrive in the middle of something, at its second time."""
    target = ".".join(MOMENTS[moment])
    owner, name = MOMENTS[moment]
    real = getattr(pytest.importorskip(owner.split(".")[0]), owner.split(".")[1] if "." in owner else name)
    real = getattr(real, name) if "." in owner else real
    calls = []

    def interrupted(*arguments, **named):
        if moment != "file" or "checkpoint" in str(arguments[1]):
            calls.append(1)
        result = real(*arguments, **named)
        for number in numbers if len(calls) == 2 else ():
            signal.raise_signal(number)
        return result

    monkeypatch.setattr(target, interrupted)


FLAGS = ["--log_step=1", "--sample_every=2", "--checkpoint_every=2", "--eval_every=2", "--train_iters=6"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that no signal stopped, and the flags of one like it."""
    folder = tmp_path_factory.mktemp("whole")
    for i in range(10):
        make_photo((40, 40), i).save(folder / f"{i}.png")
    flags = [f"--data={folder}", *FLAGS]
    assert train(*flags, f"--checkpoint_dir={folder}", "--name=whole") == 0
    return FinishedRun(folder / "whole"), flags


@pytest.mark.parametrize("moment", MOMENTS)
def test_signal_at_any_moment(moment, whole, tmp_path, monkeypatch):
    """What is being done is finished, a checkpoint written, and the run goes on to what it would have become."""
    whole, flags = whole
    with monkeypatch.context() as patch:
        raise_once_in(patch, moment, signal.SIGUSR1)
        assert train(*flags, f"--checkpoint_dir={tmp_path}", "--name=run") == 128 + signal.SIGUSR1
    run = FinishedRun(tmp_path / "run")
    assert len(run.rows()) == run.steps("checkpoint-*.pt")[-1] < 6 and "--resume" in run.log.split("\n")[-2]
    assert resume(f"--resume={run.folder}") == 0
    for name in ("losses.csv", "metrics.csv"):
        assert (run.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert_same(run.checkpoint()["networks"], whole.checkpoint()["networks"])


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_second_ctrl_c_stops_at_once(moment, photos, tmp_path, monkeypatch, capsys):
    """And leaves whole files only."""
    with monkeypatch.context() as patch:
        raise_once_in(patch, moment, signal.SIGINT, signal.SIGINT)
        assert train(f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", *FLAGS) == 130
    assert capsys.readouterr().err == "vanilla_gan.py: interrupted\n"
    assert not list((tmp_path / "run").rglob(".*"))
    for path in (tmp_path / "run").glob("*.pt"):
        torch.load(path, weights_only=True)
    assert resume(f"--resume={tmp_path / 'run'}") == 0


def test_nohup_is_respected(photos, tmp_path, monkeypatch):
    """A signal that the user has had ignored doesn't stop a run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        raise_once_in(monkeypatch, "step", signal.SIGHUP)
        assert train(f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=4") == 0
    finally:
        signal.signal(signal.SIGHUP, before)
