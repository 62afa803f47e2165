"""Test every promise of reliability beside a control that must fail, and write the figures.

    python benchmarks/reliability.py                       # all, about a quarter of an hour on two cores
    python benchmarks/reliability.py --only crashes        # one of them, printed

The faults come from tests/helpers; the tests try a part of them at every change. The table goes to
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
    """How often a promise was tried and held, and how often its control was tried and failed, as it must."""

    tried: int
    held: int
    control_tried: int
    control_failed: int


def count(held: Iterable[bool], control_held: Iterable[bool]) -> Figures:
    """Count how often the promise held and the control failed."""
    held, control = list(held), list(control_held)
    return Figures(len(held), sum(held), len(control), len(control) - sum(control))


def new_folder(folder: Path) -> Path:
    """Make a folder, and return it."""
    folder.mkdir()
    return folder


def trainings(folder: Path) -> list:
    """Return a training of each script."""
    from tests.helpers.trainings import Training

    return [Training.make(new_folder(folder / script.removesuffix(".py")), script) for script in SCRIPTS]


def crash(folder: Path) -> Figures:
    """End the process in and after every operation on files."""
    from tests.helpers import crashes

    held = []
    for training in trainings(folder):
        log = crashes.operations_of(training, folder)
        held += [
            crashes.crash(training, folder, number, moment)
            for number, moment in itertools.product(range(len(log)), ("in", "after"))
            # Only a write can be half done. To end during another operation is to end after the previous one.
            if moment == "after" or log[number].operation.startswith("write")
        ]
    return count(held, crashes.naive_points(folder, "in"))


def power(folder: Path) -> Figures:
    """Cut the power after every operation on files; new names are lost, or have reached the disk already."""
    from tests.helpers import crashes

    held, unsynced = [], []
    for training in trainings(folder):
        log = crashes.operations_of(training, folder)
        held += [crashes.lose_power(training, folder, disk, survive) for disk in log for survive in (False, True)]
        log = crashes.operations_of(training, folder, syncs=False)
        unsynced += [crashes.lose_power(training, folder, disk, True) for disk in log[::10]]
    return count(held, unsynced)


def resumption(folder: Path) -> Figures:
    """Resume after every step, with every option that adds to the state."""
    from tests.helpers.trainings import STATES, resumptions

    held, forgetful = [], []
    for script in SCRIPTS:
        for number, case in enumerate(STATES[script]):
            held += resumptions(new_folder(folder / f"{script}-{number}"), script, case)
        forgetful += resumptions(new_folder(folder / f"{script}-naive"), script, "default", forget=True)
    return count(held, forgetful)


def signals(folder: Path) -> Figures:
    """Four signals, in five moments."""
    from tests.helpers.trainings import MOMENTS, SIGNALS, stop_by_signal

    cases = list(itertools.product(SIGNALS, MOMENTS))
    both = trainings(folder)
    held = []
    for training in both:
        of_script = [case for case in cases if case[1] != "an evaluation" or training is both[0]]
        held += [stop_by_signal(training, folder, *case) for case in of_script]
    return count(held, [stop_by_signal(both[0], folder, *case, handled=False) for case in cases])


def disk(folder: Path) -> Figures:
    """Let the disk be full from every write on."""
    from tests.helpers import crashes

    held = []
    for training in trainings(folder):
        log = crashes.operations_of(training, folder)
        writes = [number for number, disk in enumerate(log) if disk.operation.startswith("write")]
        held += [crashes.fill_disk(training, folder, number) for number in writes]
    return count(held, crashes.naive_points(folder, "full"))


def poison(folder: Path) -> Figures:
    """Put NaN or infinity into a batch, a weight, a gradient, a moment of Adam, a moving average."""
    from tests.helpers.trainings import POISONS, poison

    both = trainings(folder)
    cases = [(training, what) for training in both for what in POISONS]
    return count(
        [poison(training, folder, what) for training, what in cases],
        [poison(training, folder, what, checked=False) for training, what in cases],
    )


def images(folder: Path) -> Figures:
    """Every kind of file that breaks loaders."""
    from tests.helpers.corpus import try_kinds

    found = try_kinds(folder).values()
    return count([held for held, _ in found], [not failed for _, failed in found])


def damage(folder: Path) -> Figures:
    """600 random damages to checkpoints; the control is torch.load."""
    from tests.helpers.damages import try_damages

    found = [try_damages(next(training.stopped.glob("checkpoint-*.pt")), 300, SEED) for training in trainings(folder)]
    return Figures(600, sum(held for held, _, _ in found), 600, sum(failed for _, _, failed in found))


def newest(folder: Path) -> Figures:
    """The highest step that is readable, whatever the dates and names; the controls use the date, or the name."""
    from runs.checkpoints import read_checkpoint, write_checkpoint
    from tests.helpers.damages import make_unreadable

    chance = random.Random(SEED)
    held, control = [], []
    for number in range(100):
        run = folder / f"{number}"
        run.mkdir()
        steps = chance.sample((2, 9, 10, 99, 100, 101, 999, 1000, 20000), 5)
        readable = chance.sample(steps, 3)
        for step in steps:
            path = run / f"checkpoint-{step}.pt"
            write_checkpoint(path, {"script": "vanilla_gan.py", "step": step})
            if step not in readable:
                make_unreadable(path, chance)
            os.utime(path, (chance.choice((946684800, 4070908800)) + chance.random() * 1e6,) * 2)
        paths = [run / f"checkpoint-{step}.pt" for step in readable]
        held.append(read_checkpoint(run)["step"] == max(readable))
        for choice in (max(paths), max(paths, key=lambda path: path.stat().st_mtime)):
            control.append(choice == run / f"checkpoint-{max(readable)}.pt")
    return count(held, control)


def locks(folder: Path) -> Figures:
    """A second training in the folder of a running one, or of one that was killed."""
    from tests.helpers.trainings import two_in_one_folder

    both = trainings(folder)
    held = [
        two_in_one_folder(training, folder, killed) for _ in range(5) for training in both for killed in (False, True)
    ]
    return count(held, [two_in_one_folder(training, folder, False, locked=False) for training in both])


def command_lines(folder: Path) -> Figures:
    """Random command lines of all options; the control has no checks."""
    from tests.helpers.command_lines import try_command_lines, try_without_checks

    ours = [try_command_lines(folder / script, script, 200, SEED) for script in SCRIPTS]
    naive = [try_without_checks(folder / f"{script}-naive", script, 40, SEED) for script in SCRIPTS]
    (tried, held), (control_tried, control_held) = (map(sum, zip(*both, strict=True)) for both in (ours, naive))
    return Figures(tried, held, control_tried, control_tried - control_held)


def long_runs(folder: Path) -> Figures:
    """From iteration 200 to 2,000 memory grows by at most 3%, and the number of open files does not grow."""
    from tests.helpers.long_runs import growth

    def stays(script: str, *steps: int, leaks: bool = False) -> bool:
        memory, files = growth(new_folder(folder / f"{script}-{leaks}"), script, *steps, leaks=leaks)
        print(f"{script}: memory {100 * memory:+.1f}%, open files {files:+d}" + ", with a leak" * leaks)
        return memory <= 0.03 and files <= 0

    return count([stays(script, 200, 2000) for script in SCRIPTS], [stays("cycle_gan.py", 60, 260, leaks=True)])


def processes(folder: Path) -> Figures:
    """Lose one of two processes: all end within a minute; one process resumes the run, or torchrun restarts both."""
    from tests.helpers.launches import lose_one

    cases = enumerate(itertools.product((0, 1, None), (False, True)))
    held = [lose_one(folder / f"{number}", rank, restart) for number, (rank, restart) in cases]
    return count(held, [lose_one(folder / "naive", 1, restart=True, finds=False)])


# Name -> the promise, its control, and the function that tries both.
PROMISES: dict[str, tuple[str, str, Callable[[Path], Figures]]] = {
    "crashes": ("a crash in any operation on files loses nothing: the run ends bit-identical to one that never stopped",
                "torch.save over the checkpoint before", crash),
    "power": ("a loss of power after any of these operations loses nothing", "the same without fsync", power),
    "resumption": ("a run resumes exactly from every step", "random generators are not restored", resumption),
    "signals": ("SIGINT, SIGTERM, SIGHUP, SIGUSR1 at any moment end a step and save", "no handlers", signals),
    "disk": ("a disk that is full at any write is reported in one line, and nothing is lost",
             "torch.save over the checkpoint before", disk),
    "poison": ("numbers that are not finite stop the run before they are saved", "no check", poison),
    "images": ("files that break loaders are used or reported", "Image.open(path).convert, as course code has it",
               images),
    "damage": ("no damaged content of a checkpoint is ever loaded", "torch.load(weights_only=True)", damage),
    "newest": ("the newest checkpoint is the highest step that is readable", "the newest date, the last name", newest),
    "locks": ("of two trainings in one folder the second is refused, unless the first is dead", "no lock", locks),
    "processes": ("one process of two is killed or fails: all end, and `--resume` continues the run, or torchrun "
                  "itself with `--max-restarts` and `--name`",
                  "torchrun starts the same command again, and nothing finds the run", processes),
    "command lines": ("any command line runs, or ends with one line and leaves at most its own run folder", "no checks",
                      command_lines),
    "long runs": ("memory and the number of open files do not grow", "every batch and a file for every row are kept",
                  long_runs),
}  # fmt: skip


def try_one(name: str) -> dict:
    """Try one promise in its own process; return its figures and the seconds that it took."""
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
    """Try one promise or all; return 0 if every promise held and every control failed at least once."""
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
        f"{time.strftime('%d %B %Y')}. A control is the same trouble for code written the usual way. If the "
        "control does not fail, the test proves nothing.\n",
        "| promise | tried | held | control | control tried | control failed | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    good = True
    for name, (promise, control, _) in PROMISES.items():
        figures = found[name]["figures"]
        if figures is None:
            good, cells = False, ["failed", "", control, "", ""]
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
