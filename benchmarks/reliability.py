"""Put every promise of reliability to the test, beside a control that must fail, and write the figures.

    python benchmarks/reliability.py                       # all, about a quarter of an hour on two cores
    python benchmarks/reliability.py --only crashes        # one of them, printed

The trouble itself is in tests/faults, where a part of it is tested at every change. The table goes to
benchmarks/RELIABILITY.md, with the seed and the commit. Linux only.
"""

import argparse
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SEED = 11
SCRIPTS = ("vanilla_gan.py", "cycle_gan.py")
sys.path.insert(0, str(ROOT))


class Figures(NamedTuple):
    """How often something was tried and held, and how often its control was tried and failed, as it must."""

    tried: int
    held: int
    control_tried: int
    control_failed: int


def count(held: Iterable[bool], control_held: Iterable[bool]) -> Figures:
    """Count what held, and what failed of the control."""
    held, control = list(held), list(control_held)
    return Figures(len(held), sum(held), len(control), len(control) - sum(control))


def new_folder(folder: Path) -> Path:
    """Make a folder, and return it."""
    folder.mkdir()
    return folder


def trainings(folder: Path) -> list:
    """Return a training of each script."""
    from tests.faults.trainings import Training

    return [Training.make(new_folder(folder / script.removesuffix(".py")), script) for script in SCRIPTS]


def crash(folder: Path) -> Figures:
    """End the process in and after every operation on files."""
    from tests.faults import crashes

    held = []
    for training in trainings(folder):
        log = crashes.operations_of(training, folder)
        held += [
            crashes.crash(training, folder, number, moment)
            for number, moment in itertools.product(range(len(log)), ("in", "after"))
            # What is no write is done or not: to end after the one before is to end in it.
            if moment == "after" or log[number].operation.startswith("write")
        ]
    return count(held, crashes.naive_points(folder, "in"))


def power(folder: Path) -> Figures:
    """Cut the power after every operation on files; new names are lost, or happened to be on the disk."""
    from tests.faults import crashes

    held, unsynced = [], []
    for training in trainings(folder):
        log = crashes.operations_of(training, folder)
        held += [crashes.lose_power(training, folder, disk, survive) for disk in log for survive in (False, True)]
        log = crashes.operations_of(training, folder, syncs=False)
        unsynced += [crashes.lose_power(training, folder, disk, True) for disk in log[::10]]
    return count(held, unsynced)


def resumption(folder: Path) -> Figures:
    """Go on from every step, with every option that carries a state from one to the next."""
    from tests.faults.trainings import STATES, resumptions

    held, forgetful = [], []
    for script in SCRIPTS:
        for number, case in enumerate(STATES[script]):
            held += resumptions(new_folder(folder / f"{script}-{number}"), script, case)
        forgetful += resumptions(new_folder(folder / f"{script}-naive"), script, "default", forget=True)
    return count(held, forgetful)


def signals(folder: Path) -> Figures:
    """Four signals, in five moments."""
    from tests.faults.trainings import MOMENTS, SIGNALS, stop_by_signal

    cases = list(itertools.product(SIGNALS, MOMENTS))
    both = trainings(folder)
    held = []
    for training in both:
        of_script = [case for case in cases if case[1] != "an evaluation" or training is both[0]]
        held += [stop_by_signal(training, folder, *case) for case in of_script]
    return count(held, [stop_by_signal(both[0], folder, *case, prepared=False) for case in cases])


def disk(folder: Path) -> Figures:
    """Have the disk be full from every write on."""
    from tests.faults import crashes

    held = []
    for training in trainings(folder):
        log = crashes.operations_of(training, folder)
        writes = [number for number, disk in enumerate(log) if disk.operation.startswith("write")]
        held += [crashes.fill_disk(training, folder, number) for number in writes]
    return count(held, crashes.naive_points(folder, "full"))


def poison(folder: Path) -> Figures:
    """Poison a batch, a weight, a gradient, a moment of Adam, a moving average."""
    from tests.faults.trainings import POISONS, poison

    both = trainings(folder)
    cases = [(training, what) for training in both for what in POISONS]
    return count(
        [poison(training, folder, what) for training, what in cases],
        [poison(training, folder, what, checked=False) for training, what in cases],
    )


def images(folder: Path) -> Figures:
    """Every kind of file that breaks loaders."""
    from tests.faults.images import outcomes

    found = outcomes(folder).values()
    return count([held for held, _ in found], [not failed for _, failed in found])


def damage(folder: Path) -> Figures:
    """600 random damages to checkpoints; the control is torch.load."""
    from tests.faults.damages import outcomes

    found = [outcomes(next(t.begun.glob("checkpoint-*.pt")), 300, SEED) for t in trainings(folder)]
    return Figures(600, sum(held for held, _ in found), 600, sum(failed for _, failed in found))


def newest(folder: Path) -> Figures:
    """The highest step that is whole, whatever dates and names say; the controls go by the date, or by the name."""
    from runs import read_checkpoint, seal
    from tests.faults.damages import damage

    chance = random.Random(SEED)
    held, control = [], []
    for number in range(100):
        run = folder / f"{number}"
        run.mkdir()
        steps = chance.sample((2, 9, 10, 99, 100, 101, 999, 1000, 20000), 5)
        whole = chance.sample(steps, 3)
        for step in steps:
            path = run / f"checkpoint-{step}.pt"
            content = bytes(seal({"format": 2, "script": "vanilla_gan.py", "step": step}))
            path.write_bytes(content if step in whole else damage(content, chance))
            os.utime(path, (chance.choice((946684800, 4070908800)) + chance.random() * 1e6,) * 2)
        paths = [run / f"checkpoint-{step}.pt" for step in whole]
        held.append(read_checkpoint(run, warn=str)["step"] == max(whole))
        for choice in (max(paths), max(paths, key=lambda path: path.stat().st_mtime)):
            control.append(choice == run / f"checkpoint-{max(whole)}.pt")
    return count(held, control)


def locks(folder: Path) -> Figures:
    """A second training in the folder of one that is at work, or that was killed."""
    from tests.faults.trainings import two_in_one_folder

    both = trainings(folder)
    held = [
        two_in_one_folder(training, folder, killed) for _ in range(5) for training in both for killed in (False, True)
    ]
    return count(held, [two_in_one_folder(training, folder, False, locked=False) for training in both])


def command_lines(folder: Path) -> Figures:
    """Random command lines of all options; the control has no checks."""
    from tests.faults.flags import control_outcomes, outcomes

    ours = [outcomes(new_folder(folder / script), script, 200, SEED) for script in SCRIPTS]
    naive = [control_outcomes(new_folder(folder / f"{script}-naive"), script, 40, SEED) for script in SCRIPTS]
    (tried, held), (control_tried, control_held) = (map(sum, zip(*both, strict=True)) for both in (ours, naive))
    return Figures(tried, held, control_tried, control_tried - control_held)


def long_runs(folder: Path) -> Figures:
    """Memory at most 3% larger, no more open files, from iteration 200 to 2,000."""
    from tests.faults.long_runs import growth

    def stays(script: str, *steps: int, leaks: bool = False) -> bool:
        memory, files = growth(new_folder(folder / f"{script}-{leaks}"), script, *steps, leaks=leaks)
        print(f"{script}: memory {100 * memory:+.1f}%, open files {files:+d}" + ", with a leak" * leaks)
        return memory <= 0.03 and files <= 0

    return count([stays(script, 200, 2000) for script in SCRIPTS], [stays("cycle_gan.py", 60, 260, leaks=True)])


def processes(folder: Path) -> Figures:
    """Lose one of two processes: all end within a minute, and one goes on, or torchrun starts both anew."""
    from tests.faults.launches import lose_one

    cases = enumerate(itertools.product((0, 1, None), (False, True)))
    held = [lose_one(folder / f"{number}", rank, restart) for number, (rank, restart) in cases]
    return count(held, [lose_one(folder / "naive", 1, restart=True, finds=False)])


# Name -> what is promised, what its control is, and what tries both.
PROMISES: dict[str, tuple[str, str, Callable[[Path], Figures]]] = {
    "crashes": ("a crash in any operation on files loses nothing: the run ends as one never stopped, to the last bit",
                "torch.save over the checkpoint before", crash),
    "power": ("nor does a loss of power after any of them", "the same without fsync", power),
    "resumption": ("a run goes on exactly from every step", "random generators are not restored", resumption),
    "signals": ("SIGINT, SIGTERM, SIGHUP, SIGUSR1 at any moment end a step and save", "no handlers", signals),
    "disk": ("a disk that is full, at any write, is told in one line and loses nothing",
             "torch.save over the checkpoint before", disk),
    "poison": ("numbers that are not finite stop the run before they are saved", "no look at them", poison),
    "images": ("files that break loaders are used or named", "Image.open(path).convert, as course code has it", images),
    "damage": ("every damage to a checkpoint is noticed", "torch.load(weights_only=True)", damage),
    "newest": ("the newest checkpoint is the highest step that is whole", "the newest date, the last name", newest),
    "locks": ("of two trainings in one folder the second is refused, unless the first is dead", "no lock", locks),
    "processes": ("one process of two is killed or fails: all end, and the run goes on, if asked for by itself",
                  "torchrun starts the same command anew, and nothing finds the run", processes),
    "command lines": ("any command line runs, or ends with one line and leaves nothing", "no checks", command_lines),
    "long runs": ("memory and open files stay", "every batch and a file for every row are kept", long_runs),
}  # fmt: skip


def try_one(name: str) -> dict:
    """Try one promise in a process of its own; return its figures, and the seconds that it took."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, "--only", name, "--json"], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    seconds = time.monotonic() - started
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        return {"figures": None, "seconds": seconds}
    print(f"{name}: {done.stdout.splitlines()[-1]}, {seconds:.0f} s", flush=True)
    return {"figures": json.loads(done.stdout.splitlines()[-1]), "seconds": seconds}


def main() -> int:
    """Try what the command line says; return 0 if every promise held and every control failed somewhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PROMISES, help="one promise, printed instead of written")
    parser.add_argument("--json", action="store_true", help="print the figures of --only as one line")
    options = parser.parse_args()
    if options.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            figures = PROMISES[options.only][2](Path(folder))
        print(json.dumps(figures) if options.json else figures)
        return 0

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(PROMISES, pool.map(try_one, PROMISES), strict=True))
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    import torch

    lines = [
        "# Reliability\n",
        f"`python benchmarks/reliability.py`, seed {SEED}, commit {commit.stdout.strip()}, "
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}, two cores, "
        f"{time.strftime('%d %B %Y')}. A control is the same trouble for code written the usual way; where it doesn't "
        "fail, the test proves nothing.\n",
        "| promise | tried | held | control | control tried | control failed | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    good = True
    for name, (promise, control, _) in PROMISES.items():
        figures = found[name]["figures"]
        if figures is None:
            good, cells = False, ["did not end", "", control, "", ""]
        else:
            tried, held, control_tried, control_failed = figures
            good = good and held == tried and control_failed > 0
            cells = [tried, held, control, control_tried, control_failed]
        lines.append(f"| {promise} | {' | '.join(map(str, cells))} | {found[name]['seconds']:.0f} |")
    (ROOT / "benchmarks" / "RELIABILITY.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
