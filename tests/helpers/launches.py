"""Two processes under torchrun, of which one is killed, or fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT, TINY, FinishedRun, resume, temporary_files
from tests.helpers.trainings import make_images, run_in_fork

ITERATIONS = 200

# vanilla_gan.py, with a change.
PROGRAM = """
import sys
sys.path.insert(0, {root!r})
import runs.open_run
import vanilla_gan
from options import VanillaOptions, parse_command_line
from system.processes import rank, restarts
from system.program import run_main
{change}
options = parse_command_line(VanillaOptions, "")
sys.exit(run_main(lambda: vanilla_gan.main(options), VanillaOptions.SCRIPT))
"""

# For the control: after a restart the processes do not look for the run.
FORGETS = """
runs.open_run._resume_after_restart = lambda request: request
"""

# The second process fails at its eighth step, unless it was restarted.
FAILS = """
train_step = vanilla_gan.train_step

def failing_train_step(state, *arguments):
    if state.step == 7 and rank() == 1 and restarts() == 0:
        raise RuntimeError("an error of the second process")
    return train_step(state, *arguments)

vanilla_gan.train_step = failing_train_step
"""


def workers(process: subprocess.Popen) -> list[int]:
    """Return the training processes that torchrun started, in the order of their ranks."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return sorted(map(int, listed.stdout.split()))


def lose_one(folder: Path, rank: int | None, restart: bool, finds: bool = True) -> bool:
    """Lose one of two processes after the first checkpoint; return whether all end, and the run is then completed.

    Args:
        rank: of the process to kill; None: the second process fails by itself.
        restart: let torchrun restart both processes; otherwise the run is resumed with one process.
        finds: False for the control.
    """
    folder.mkdir()
    script = folder / "vanilla_gan.py"
    change = (FAILS if rank is None else "") + ("" if finds else FORGETS)
    script.write_text(PROGRAM.format(root=str(ROOT), change=change))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", f"--max-restarts={int(restart)}"]
    flags = [*TINY["vanilla_gan.py"], f"--data={make_images(folder, 'vanilla_gan.py')}", f"--checkpoint_dir={folder}"]
    flags += ["--name=run", f"--train_iters={ITERATIONS}", "--log_step=1", "--checkpoint_every=5"]
    process = subprocess.Popen(
        [sys.executable, *launcher, script, *flags, "--sample_every=1000"], stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        while not list(folder.glob("run/checkpoint-*.pt")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        if rank is not None:
            os.kill(workers(process)[rank], signal.SIGKILL)
        _, error = process.communicate(timeout=60 + 60 * restart)
    except subprocess.TimeoutExpired:
        return False
    finally:
        process.kill()
    run = folder / "run"
    if restart:
        held = process.returncode == 0
    else:
        held = process.returncode != 0 and "lost contact with the others" in error and "--resume" in error
        held = held and run_in_fork(lambda: resume(f"--resume={run}")) == 0
    finished = FinishedRun(run)
    return (
        held and finished.steps("checkpoint-*.pt")[-1] == ITERATIONS and not temporary_files(run)
        and [int(row["step"]) for row in finished.rows()] == list(range(1, ITERATIONS + 1))
    )  # fmt: skip
