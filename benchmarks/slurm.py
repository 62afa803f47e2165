"""Test a sweep on a real SLURM cluster of one node, which this script starts and stops. Needs root.

    apt-get install slurm-wlm munge
    python benchmarks/slurm.py                    # a few minutes

A sweep of four DCGANs runs there, two at a time. One has no images, and one gets SIGUSR1, as before its time limit.
Ctrl-C ends the first call of sweep.py, a second call waits for the same tasks, and a third call, once the images are
there, trains the run that is missing. The exit code is 1 if something did not hold.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from images.toy_cats import ensure_toy_cats
from runs.tables import last_logged_step
from system.program import run_main
from utils import UserError

# cred_expire: how long a requeued task waits. config_overrides: more CPUs than there are, so that only --jobs limits.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
AuthInfo=socket={folder}/socket,cred_expire=5
StateSaveLocation={folder}
SlurmdSpoolDir={folder}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
SWEEP = """
script = "vanilla_gan.py"
base = {data = "cats/trainA", image_size = 32, train_iters = 10, device = "cpu", log_step = 1}
evaluate = {features = "pixels", num_images = 10}
case = [{label = "long", train_iters = 120}, {label = "second", lr = 0.0001}, {label = "third", norm = "none"},
        {label = "failing", data = "missing"}]
"""


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` returns a true value. Raises UserError after two minutes."""
    end = time.monotonic() + 120
    while not condition():
        if time.monotonic() > end:
            raise UserError(f"{what} after two minutes")
        time.sleep(0.2)


def output_of(*command: str) -> list[str]:
    """Return the lines that a command of SLURM prints."""
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Run a SLURM cluster of one node within this context, with its files in `folder`."""
    os.environ |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    if os.geteuid() != 0 or shutil.which("slurmd") is None:
        raise UserError("start it as root, after apt-get install slurm-wlm munge")
    (folder / "slurm.conf").write_text(CONFIG.format(host=socket.gethostname().partition(".")[0], folder=folder))
    files = {name: folder / name for name in ("key-file", "socket", "pid-file")}
    files["key-file"].write_bytes(os.urandom(1024))
    files["key-file"].chmod(0o400)
    munged = ["munged", "--force", "--foreground", *(f"--{name}={path}" for name, path in files.items())]
    with contextlib.ExitStack() as started:
        for command in (munged, ["slurmctld", "-D", "-c"], ["slurmd", "-D"]):
            log = started.enter_context(open(folder / f"{command[0]}.log", "wb"))
            process = started.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
            started.callback(process.terminate)
            wait_for(files["socket"].exists, "munged has not started")
        wait_for(lambda: output_of("sinfo", "--noheader", "--format=%T") == ["idle"], "the node is not idle")
        started.callback(wait_for, lambda: not output_of("squeue", "--noheader"), "tasks have not ended")
        started.callback(output_of, "scancel", "--full", f"--user={os.getuid()}")
        yield


def check_sweep(folder: Path) -> dict[str, bool]:
    """Run the sweep in a folder; return what was checked, and whether it held."""
    checked = {}
    ensure_toy_cats(folder / "cats", 32, train=20, test=2)
    (folder / "four.toml").write_text(SWEEP)
    runs = folder / "checkpoints/four"
    command = [sys.executable, str(ROOT / "sweep.py"), "four.toml", "--slurm", "--jobs=2"]
    run = functools.partial(subprocess.run, command, cwd=folder, stdout=subprocess.PIPE, text=True)
    first = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: last_logged_step(runs / "long-11") >= 20, "the first run has not trained")
    states = sorted(output_of("squeue", "--noheader", "--array", "--format=%i %T"))
    task = states[0].partition(" ")[0]
    subprocess.run(["scancel", "--signal=USR1", task], check=True)
    first.send_signal(signal.SIGINT)
    text = first.communicate()[0]
    checked["no more than two tasks at a time"] = sum("RUNNING" in line for line in states) <= 2 < len(states)
    held = first.returncode == 130 and task in output_of("squeue", "--noheader", "--array", "--format=%i")
    checked["Ctrl-C leaves the tasks in the queue, and says how to cancel them"] = held and "scancel 1\n" in text

    second = run()
    held = json.loads((runs / "slurm/jobs.json").read_text())["long-11"] == task
    checked["a second call does not submit a task again"] = (
        held and "in the queue of the cluster already" in second.stdout
    )
    log, sessions = (runs / "long-11/log.txt").read_text(), json.loads((runs / "long-11/environment.json").read_text())
    held = "Stopped by SIGUSR1" in log and len(sessions) == 2 and "Finished 120 iterations" in log
    checked["SIGUSR1 saves a checkpoint, and the requeued task continues to the end"] = held
    held = second.returncode == 1 and "failing, seed 11: failed: vanilla_gan.py: error: --data: " in second.stdout
    held = held and len(list(runs.glob("*/metrics.csv"))) == 3
    checked["a failed run is reported with its reason, the others are measured"] = held

    shutil.copytree(folder / "cats/trainA", folder / "missing")
    third = run()
    held = third.returncode == 0 and (runs / "failing-11/metrics.csv").exists()
    checked["a third call trains the run that is missing"] = held and "\n1 run was submitted" in third.stdout
    print(text, second.stdout, third.stdout, sep="\n")
    return checked


def main() -> int:
    """Test and print; return the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the daemons must not outlive this script
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name, cluster(Path(name)):
        checked = check_sweep(Path(name))
        print(f"{output_of('sinfo', '--version')[0]}, {time.monotonic() - started:.0f} s")
    print("\n| checked | held |\n|---|---|")
    for what, held in checked.items():
        print(f"| {what} | {'yes' if held else 'NO'} |")
    return 0 if all(checked.values()) else 1


if __name__ == "__main__":
    sys.exit(run_main(main, "slurm.py"))
