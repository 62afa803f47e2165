"""Real signals to a real process: it finishes the iteration, saves, says how to go on, and the run continues."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, TINY, FinishedRun


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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
