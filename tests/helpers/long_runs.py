"""How memory and open files grow in a long training, measured from outside.

The figures of a long run:

    python -c "from pathlib import Path; from tests.helpers.long_runs import growth
    print(growth(Path('/tmp/long'), 'cycle_gan.py', 200, 2000))"
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import OPTIONS, ROOT, TINY, make_domains

# Runs a training script, perhaps with a leak.
PROGRAM = """
import sys
sys.path.insert(0, {root!r})
import {module} as script
from options import {options}, parse_command_line
from runs.logs import RunLogs
from system.program import run_main
{leak}
options = parse_command_line({options}, "")
sys.exit(run_main(lambda: script.main(options), {options}.SCRIPT))
"""

# For the control: keeps every batch, and a file for every row of losses.csv.
LEAK = """
kept, train_step, add_losses = [], script.train_step, RunLogs.add_losses

def leaking_train_step(state, batch, options, with_penalty):
    kept.append([images.clone() for images in batch.values()])
    return train_step(state, batch, options, with_penalty)

def leaking_add_losses(logs, *arguments):
    kept.append(open(logs.folder / "options.json"))
    add_losses(logs, *arguments)

script.train_step, RunLogs.add_losses = leaking_train_step, leaking_add_losses
"""


def _usage(pid: int) -> tuple[int, int]:
    """Return the resident memory of a process in bytes, and its number of open files, without short-lived ones."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    files = []
    for _ in range(10):
        files.append(len(os.listdir(f"/proc/{pid}/fd")))
        time.sleep(0.01)
    return pages * os.sysconf("SC_PAGE_SIZE"), min(files)


def _wait_for_row(process: subprocess.Popen, losses: Path, step: int) -> None:
    """Wait until losses.csv has a row of iteration `step` or later."""
    while not losses.exists() or int(losses.read_text().split("\n")[-2].split(",")[0].replace("step", "0")) < step:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def growth(folder: Path, script: str, first: int, last: int, leaks: bool = False) -> tuple[float, int]:
    """Train tiny networks; return what changed from iteration `first` to `last`.

    Grids, plots, evaluations and checkpoints happen five times before `first`, rows every tenth iteration.

    Args:
        folder: for the images and the run.
        leaks: for the control, let the script keep every batch and a file for every row.

    Returns:
        Growth of the resident memory as a share, 0.03 for 3%, and of the number of open files.
    """
    make_domains(folder / "domains")
    program, module, options = folder / script, script.removesuffix(".py"), OPTIONS[script].__name__
    program.write_text(PROGRAM.format(root=str(ROOT), module=module, options=options, leak=LEAK if leaks else ""))
    data = folder / "domains" / ("trainA" if script == "vanilla_gan.py" else "")
    every = max(1, first // 5)
    flags = [
        *TINY[script],
        f"--data={data}",
        "--use_diffaug",
        "--batch_size=16",
        f"--checkpoint_dir={folder}",
        "--name=run",
    ]
    flags += [f"--train_iters={last + 50}", "--log_step=10"]
    flags += [f"--{name}={every}" for name in ("sample_every", "eval_every", "checkpoint_every")]
    flags += ["--features=pixels"]
    process = subprocess.Popen(
        [sys.executable, str(program), *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        usage = []
        for step in (first, last):
            _wait_for_row(process, folder / "run" / "losses.csv", step)
            usage.append(_usage(process.pid))
    finally:
        process.kill()
        process.communicate()
    (memory, files), (memory_then, files_then) = usage
    return memory_then / memory - 1, files_then - files
