"""Command lines made of the declared options, and what must hold of each: a run, or one line that names the flag.

The values come from the declarations in options/training.py (type, choices, bounds, aliases, the value of a flag
without an argument), so that a new option is covered without a new test. `try_command_lines` is the long form of the
test in tests/options/test_random_command_lines.py:

    python -c "from pathlib import Path; from tests.helpers.command_lines import try_command_lines
    print(try_command_lines(Path('/tmp/flags'), 'cycle_gan.py', 1000, seed=1))"
"""

import contextlib
import io
import json
import math
import os
import shutil
import signal
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints
from unittest import mock

import torch
from hypothesis import HealthCheck, Phase, configuration, given, seed, settings
from hypothesis import strategies as st
from torch import nn

import training.loop
from images.toy_cats import check_size
from options.common import CommonOptions
from options.fields import MAX_INT, option_fields
from sources import domains, folders
from tests.conftest import MODULES, OPTIONS, ROOT, TINY, make_domains, resume

SECONDS = 60.0  # the time limit of a tiny run
MEMORY = 2**31  # bytes of addresses that a run may take beside those of the tests


class Part(NamedTuple):
    """A piece of a command line.

    Attributes:
        words: arguments.
        name: of the option, or "" for a word that is not an option.
        is_wrong: the declaration says that this value has to be refused.
    """

    words: tuple[str, ...]
    name: str = ""
    is_wrong: bool = False


class Workspace:
    """The folders in which the command lines are tried.

    Attributes:
        folder: holds all the others.
        domains: images, in trainA, trainB, testA, testB.
        case: what a command line may change: `runs` with the run `finished`, and `here`, its working directory.
    """

    def __init__(self, folder: Path, script: str):
        self.folder, self.script = folder, script
        self.domains, self.case, self._pristine = folder / "domains", folder / "case", folder / "pristine"
        make_domains(self.domains)
        self.photos = self.domains / "trainA"
        self.images = {"vanilla_gan.py": self.photos, "cycle_gan.py": self.domains}[script]
        # The images of the presets.
        for name, folder_name in {
            (name, values[name])
            for _, values in OPTIONS[script].PRESETS.values()
            for name in OPTIONS[script].DATA_FLAGS
            if name in values
        }:
            place = folder / "data" / folder_name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(self.images if name == "data" else self.photos)
        # A run to resume, and files that are in the way.
        (self._pristine / "here").mkdir(parents=True)
        (self._pristine / "here" / "file").write_text("precious")
        (self._pristine / "here" / "empty").mkdir()
        shutil.copytree(self._pristine, self.case)
        with contextlib.redirect_stdout(io.StringIO()):
            assert resume(*self.base(), f"--data={self.images}", "--name=finished", script=script) == 0
        shutil.copytree(self.case, self._pristine, dirs_exist_ok=True)

    def base(self) -> list[str]:
        """Return the flags of a run of two tiny steps; the drawn flags come after them and override them."""
        return [*TINY[self.script], "--train_iters=2", "--log_step=1", f"--checkpoint_dir={self.case / 'runs'}"]

    def reset(self) -> None:
        """Restore `case` as it was at the start."""
        shutil.rmtree(self.case)
        shutil.copytree(self._pristine, self.case)

    def paths(self) -> dict[str, Any]:
        """Return everything that could change: every path of the workspace, with sizes of files, and of the project."""
        inside = {str(path): path.stat().st_size for path in self.folder.rglob("*") if path.is_file()}
        outside = {str(path): 0 for folder in (ROOT, ROOT / "data", ROOT / "checkpoints") for path in folder.glob("*")}
        outside = {path: 0 for path in outside if "__pycache__" not in path and ".pytest_cache" not in path}
        return {**{str(path): None for path in self.folder.rglob("*")}, **inside, **outside}


# ----------------------------------------------------------------------------------------------------------------------
# The strategy

_GARBAGE = [
    "",
    " ",
    "nan",
    "-1",
    "0",
    "none",
    "None",
    "--",
    "-",
    "a\nb",
    "\t",
    "~",
    "~no-such-user",
    "\udcff",
    "日本",
    "x" * 300,
]


def _texts() -> st.SearchStrategy[str]:
    """Any text that a shell can pass on, except paths that lead out of the folder of the case."""
    letters = st.characters(blacklist_categories=["Cs"], blacklist_characters="\0/")
    return st.one_of(st.sampled_from(_GARBAGE), st.text(letters, max_size=8))


def _kind(cls: type[CommonOptions], name: str) -> type:
    """Return the type of an option's values; for `int | None` int."""
    kind = get_type_hints(cls)[name]
    if get_origin(kind) is types.UnionType:
        kind = next(part for part in get_args(kind) if part is not type(None))
    return kind


def _numbers(kind: type, limits: Any) -> tuple[list[str], list[str]]:
    """Return values within the bounds of an option and values outside, for an int or a float."""
    low = limits["above"] if limits["at_least"] is None else limits["at_least"]
    high = limits["below"] if limits["at_most"] is None else limits["at_most"]
    if kind is int:
        # Small values, because a large valid one takes memory and time; a declared bound is small enough.
        right = [*range(low, low + 8), *([high - 1, high] if high is not None else [])]
        wrong = [low - 1, -(10**30), (MAX_INT if high is None else high) + 1, 10**30]
        texts = [f"+{low + 2}", f" {low + 3} ", f"{low}" if low < 1 else f"0{low}"]
        right = [*(number for number in right if high is None or number <= high), *texts]
        return list(map(str, right)), [*map(str, wrong), "1.5", "1e3", "0x10", "", "nan", "9" * 5000]
    # Nothing smaller than 1e-30: training turns subnormal numbers off, in this process, too.
    inner = [low, 1e-30, 1e-3, 0.25, 0.5, 0.9]
    inner += [2.0, 1e8, 1e30, 1e308] if high is None else [math.nextafter(high, -math.inf), high]
    is_inside = {
        at: (at > low or (at == low and limits["above"] is None))
        and (high is None or at < high or (at == high and limits["below"] is None))
        for at in inner
    }
    right = [repr(at) for at, inside in is_inside.items() if inside]
    wrong = [repr(at) for at, inside in is_inside.items() if not inside]
    below = low - 1e-30 if low == 0 else math.nextafter(low, -math.inf)
    wrong += [repr(below), "-1e300", "nan", "inf", "-inf", "1e999", "", "0,5", "1/2"]
    return right, wrong


def _values(workspace: Workspace, field: Any, kind: type) -> tuple[list[str], list[str]]:
    """Return values for one option: some to try, and some that are wrong by its declaration."""
    limits = field.metadata
    if limits["choices"] is not None:
        right = list(map(str, limits["choices"]))
        return right, ["", right[0] + "x", right[-1].upper() + "_", ",".join(right), " " + right[0] + "?"]
    if kind in (int, float):
        return _numbers(kind, limits)
    folders = [str(workspace.images), str(workspace.photos), "new/folder", "empty", "file", "file/below", "/proc/no"]
    right = {
        "FOLDER": [*folders, ".", "new/" + "x" * 300, "new/\udcff"],
        "RUN_FOLDER": [str(workspace.case / "runs" / "finished"), "finished", "nowhere", "file", "x" * 300],
        "POLICY": ["color", "color,translation,cutout", " cutout , color", ",", "color,blur", "color;cutout"],
    }.get(limits["metavar"], [])
    if field.name == "preset":
        return [*OPTIONS[workspace.script].PRESETS], []
    photo = str(workspace.photos / "0.png")
    words = ["png", "*.PNG", "jpg", "inception", "pixels", photo, "a b", "ü", "finished", "$x$"]
    return (right * 2 if right else words) + words[:: 3 if right else 1], []


def _part(workspace: Workspace, field: Any, random: Random, text: str) -> Part:
    """Draw the words of one option on a command line."""
    cls, limits, name = OPTIONS[workspace.script], field.metadata, field.name
    kind, flag = _kind(cls, name), random.choice([f"--{name}", *limits["aliases"]])
    if kind is bool:
        flag = f"--{random.choice(['', 'no-'])}{name}"
        return Part((f"{flag}={text or 1}",), name, True) if random.random() < 0.1 else Part((flag,), name)
    if random.random() < (0.05 if limits["const"] is None else 0.4):  # the word after it, if any, becomes its value
        return Part((f"--no-{name}" if limits["const"] and random.random() < 0.3 else flag,), name)
    right, wrong = _values(workspace, field, kind)
    value, is_wrong = random.choice(right), False
    if random.random() < 0.25:
        value, is_wrong = (random.choice(wrong), True) if wrong else (random.choice([text, *_GARBAGE]), False)
    return Part((f"{flag}={value}",) if random.random() < 0.5 else (flag, value), name, is_wrong)


_STRAYS = ["--help", "--preset=list", "stray", "a\nb", "--batch=3", "--colour", "-x", "--", "--lr5", "=", "--=", "é"]


def command_lines(workspace: Workspace) -> st.SearchStrategy[list[Part]]:
    """Return command lines of one to four options, some of them twice, and now and then something else.

    Hypothesis draws a number and a text; the rest follows from the two. Drawn piece by piece, most lines would be
    repetitions of others: it likes to copy one piece to the place of another.
    """
    fields = option_fields(OPTIONS[workspace.script])

    def build(number: int, text: str) -> list[Part]:
        random = Random(number)
        parts = [Part((f"--data={workspace.images}",), "data")] * (random.random() < 0.75)
        chosen = random.choices(fields, k=random.choice([1, 2, 2, 3, 3, 4]))
        if random.random() < 0.15:
            chosen.append(chosen[-1])
        parts += [_part(workspace, field, random, text) for field in chosen]
        return parts + [Part((random.choice(_STRAYS),))] * (random.random() < 0.08)

    return st.builds(build, st.integers(0, 2**64 - 1), _texts())


# ----------------------------------------------------------------------------------------------------------------------
# The property


class _TooLong(BaseException):
    """Not an Exception, so that no handler of errors catches it."""


@contextlib.contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """Limit the time and the memory of the code in this context."""
    import resource

    def stop(number: int, frame: Any) -> None:
        raise _TooLong

    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limits[1]))
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _find_fault_of_run(workspace: Workspace, before: dict[str, Any]) -> str | None:
    """Return what is missing or wrong in the folder of a run that ended with exit code 0, or None."""
    new = [Path(path).parent for path in workspace.paths() if path.endswith("/options.json") and path not in before]
    if len(new) > 1:
        return f"{len(new)} run folders"
    folder = new[0] if new else workspace.case / "runs" / "finished"
    options = json.loads((folder / "options.json").read_text())["options"]
    checkpoints = sorted(folder.glob("checkpoint-*.pt"))
    checkpoint = torch.load(checkpoints[-1], weights_only=True)
    if checkpoint["step"] != max(options["train_iters"], 2 if not new else 1):
        return f"the last checkpoint is of {checkpoint['step']}, not of {options['train_iters']}"
    for kind in ("networks", "ema"):
        for name, weights in checkpoint[kind].items():
            if not all(weight.isfinite().all() for weight in weights.values() if isinstance(weight, torch.Tensor)):
                return f"{name} is not finite"
    if options["log_step"] <= options["train_iters"]:
        lines = (folder / "losses.csv").read_text().splitlines()
        values = [value for line in lines[1:] for value in line.split(",") if value]  # a penalty is not in every row
        if not all(math.isfinite(float(value)) for value in values):
            return "a loss is not finite"
        if not (folder / "losses.png").exists():
            return "losses.png is missing"
    return f"left {left[0]}" if (left := list(workspace.case.rglob("*.tmp"))) else None


def find_leftovers(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the files that a failed command must not leave or change.

    A run that ends before its first checkpoint may leave folders, and its own run folder without a checkpoint.
    """
    changed = [path for path, size in after.items() if path not in before or before[path] != size]
    runs = [Path(path).parent for path in changed if path.endswith("/options.json") and path not in before]
    allowed = set(runs[:1])
    for run in runs[:1]:
        allowed.add(run / json.loads((run / "options.json").read_text())["samples"])
    wrong = [path for path in changed if path in before or path.endswith((".pt", ".tmp"))]
    wrong += [path for path in changed if after[path] is not None and Path(path).parent not in allowed]
    return sorted({*wrong, *(before.keys() - after.keys())})


def find_fault(workspace: Workspace, parts: list[Part], seconds: float = SECONDS) -> str | None:
    """Try one command line; return what is wrong with its result, or None."""
    argv = [*workspace.base(), *(word for part in parts for word in part.words)]
    workspace.reset()
    before, here = workspace.paths(), Path.cwd()
    small_grid = lambda size: 2  # noqa: E731
    out, err = io.StringIO(), io.StringIO()
    os.chdir(workspace.case / "here")
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(folders, "DATA_ROOT", workspace.folder / "data"),
            mock.patch.object(domains, "ensure_toy_cats", lambda root, size: check_size(size) or workspace.domains),
            mock.patch.object(nn.Module, "compile", lambda self: None),  # takes a minute for each
            mock.patch.dict(os.environ, {"WANDB_MODE": "disabled", "HOME": str(workspace.case / "home")}),
            mock.patch.multiple(training.loop, grid_columns=small_grid),
            mock.patch.multiple(MODULES[workspace.script], grid_columns=small_grid),
            warnings.catch_warnings(),
            _bounded(seconds),
        ):
            warnings.simplefilter("ignore")
            code = resume(*argv, script=workspace.script)
    except (Exception, _TooLong) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        os.chdir(here)

    words = {word for part in parts for word in part.words}
    last = {part.name: part.is_wrong for part in parts}  # of a repeated flag the last one counts
    if code == 0 and (words & {"--help", "--preset=list"} or ("--preset" in words and "list" in words)):
        return None if out.getvalue() and workspace.paths() == before else "more than a text"
    if code == 0:
        if any(last.values()):
            return "a wrong value was taken: " + ", ".join(name for name, is_wrong in last.items() if is_wrong)
        return _find_fault_of_run(workspace, before)
    lines = err.getvalue()
    if code not in (2, 3) or lines.count("\n") != 1 or not lines.startswith(f"{workspace.script}: "):
        return f"exit code {code}, {lines!r}"
    if code == 3:
        floats = {name for name in last if name and _kind(OPTIONS[workspace.script], name) is float}
        return None if floats else f"not finite: {lines!r}"
    names = [f"--{name}" for name in last if name] + [word.partition("=")[0] for word in words if word]
    names += [f"of the preset {part.words[-1].removeprefix('--preset=')}" for part in parts if part.name == "preset"]
    if not any(" ".join(name.split()) in lines for name in names):
        return f"no flag that was given is named: {lines!r}"
    leftovers = find_leftovers(before, workspace.paths())
    return f"left {leftovers[:3]} after {lines!r}" if leftovers else None


def _try_all(
    folder: Path, script: str, count: int, seed_: int, find_fault: Callable[[Workspace, list[Part]], str | None]
):
    """Draw command lines; return [(parts of a command line, its fault or None)]."""
    folder.mkdir(parents=True, exist_ok=True)
    configuration.set_hypothesis_home_dir(folder / "hypothesis")
    workspace, results = Workspace(folder / script, script), []

    @seed(seed_)
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
    )
    @given(command_lines(workspace))
    def draw(parts: list[Part]) -> None:
        try:
            results.append((parts, find_fault(workspace, parts)))
        except Exception as error:  # of `find_fault` itself: a file that it reads is missing
            results.append((parts, f"{type(error).__name__}: {error}"))

    draw()
    return results


def try_command_lines(
    folder: Path, script: str, count: int, seed: int, say: Callable[[str], None] = print
) -> tuple[int, int]:
    """Try `count` command lines; return how many were tried and for how many the property held.

    Args:
        folder: where to work, empty.
        say: called with a line for each command line for which the property did not hold.
    """
    results = _try_all(folder, script, count, seed, find_fault)
    for parts, wrong in results:
        if wrong is not None:
            say(f"{script} {' '.join(word[:60] for part in parts for word in part.words)!r}: {wrong[:300]}")
    return len(results), sum(wrong is None for _, wrong in results)


def try_without_checks(folder: Path, script: str, count: int, seed: int) -> tuple[int, int]:
    """The control: the same command lines for a naive script. argparse reads int and float, and nothing is checked."""

    def without_checks(workspace: Workspace, parts: list[Part]) -> str | None:
        nothing = {name: lambda self: None for name in ("check", "check_combinations")}
        with mock.patch.multiple(CommonOptions, **nothing), mock.patch.multiple(OPTIONS[script], **nothing):
            return find_fault(workspace, parts, seconds=5.0)

    results = _try_all(folder, script, count, seed, without_checks)
    return len(results), sum(wrong is None for _, wrong in results)
