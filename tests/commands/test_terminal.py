"""What a run prints: a progress bar in a terminal, plain lines without one, and the same text in log.txt."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from tests.conftest import ROOT, TINY, FinishedRun, command


def test_in_a_terminal_one_line_shows_iteration_losses_speed_and_time_left(photos, tmp_path):
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 150, 0, 0))  # a new terminal has no columns
    arguments = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=60", "--log_step=5"]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "vanilla_gan.py"), *TINY["vanilla_gan.py"], *arguments],
        stdin=terminal, stdout=terminal, stderr=terminal, env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:  # fmt: skip
        os.close(terminal)
        shown = b""
        while True:
            try:
                shown += os.read(master, 65536)
            except OSError:  # the other end is closed
                break
    os.close(master)
    assert process.returncode == 0
    frames = [frame for frame in re.split(r"[\r\n]+", shown.decode()) if "it/s" in frame]
    assert len(frames) > 2
    assert any(
        re.search(r"\d+/60 \[.*<.*it/s.*D_real \d\.\d+  D_fake \d\.\d+  D_total \d\.\d+  G \d", f) for f in frames
    )
    assert shown.decode().count("Finished 60 iterations") == 1


def test_without_a_terminal_plain_lines(photos, tmp_path):
    arguments = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=20", "--log_step=10"]
    result = command(ROOT / "vanilla_gan.py", *TINY["vanilla_gan.py"], *arguments)
    assert result.returncode == 0 and "\r" not in result.stdout and result.stderr == ""
    assert re.search(r"^20/20, D_real \d\.\d+  .*  G \d\.\d+, \d+\.\d+ it/s, 00:00 left$", result.stdout, re.MULTILINE)
    log = FinishedRun(tmp_path / "run").log
    assert log == result.stdout, "log.txt holds what was shown"
    for word in (
        "10 images from",
        "Number of weights: G ",
        "Finished 20 iterations",
        "samples",
        "losses.png",
        "tensorboard",
        "--resume",
    ):
        assert word in log
