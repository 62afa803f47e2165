"""Two processes under torchrun, of which one is killed, or fails."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT, TINY, FinishedRun
from tests.faults.trainings import in_a_fork, make_images, resume

ITERATIONS = 200

# The script, with a change.
PROGRAM = """
import sys
sys.path.insert(0, {root!r})
import runs, options, utils, vanilla_gan
from utils import run_main

{change}
request = options.parse_command_line(options.VanillaOptions, sys.argv[1:], vanilla_gan.SCRIPT, "")
sys.exit(run_main(lambda: vanilla_gan.main(request), vanilla_gan.SCRIPT))
"""
# For the control: when torchrun starts anew nothing finds the run that was begun.
FORGETS = "runs.Run._find_begun = staticmethod(lambda request, script: None)"
# The second process fails at its eighth step, at its first start.
FAILS = """
take = vanilla_gan.train_step

def train_step(state, *arguments):
    if state.step == 7 and utils.rank() == 1 and utils.restarts() == 0:
        raise RuntimeError("something of the second process")
    return take(state, *arguments)

vanilla_gan.train_step = train_step
"""


def workers(process: subprocess.Popen) -> list[int]:
    """Return the training processes that torchrun started, in the order of their ranks."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return sorted(map(int, listed.stdout.split()))


def lose_one(folder: Path, rank: int | None, restart: bool, finds: bool = True) -> bool:
    """Lose one of two processes once there is a checkpoint; return whether all end, and the run goes on to its end.

    Args:
        rank: the one to kill; None to have the second fail.
        restart: have torchrun start both anew, in place of going on with one process.
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
        held = process.returncode != 0 and "lost the others" in error and "--resume" in error
        held = held and in_a_fork(lambda: resume(f"--resume={run}")) == 0
    finished = FinishedRun(run)
    return (
        held and finished.steps("checkpoint-*.pt")[-1] == ITERATIONS and not list(run.rglob(".*"))
        and [int(row["step"]) for row in finished.rows()] == list(range(1, ITERATIONS + 1))
    )  # fmt: skip
