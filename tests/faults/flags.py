"""Command lines made of the declared options, and what must hold of each: a run, or one line that names the flag.

The values come from the declarations in options.py (type, choices, bounds, aliases, what a bare flag means), so that a
new option is covered by itself. `outcomes` is the long form of the test in test_flags.py:

    python -c "from pathlib import Path; from tests.faults.flags import outcomes
    print(outcomes(Path('/tmp/flags'), 'cycle_gan.py', 1000, seed=1))"
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

import data_loader
import trainer
from data.toy_cats import check_size
from options import LARGEST, CommonOptions, option_fields
from tests.conftest import MODULES, OPTIONS, ROOT, TINY, make_domains, resume

SECONDS = 60.0  # within which a tiny run has to end
MEMORY = 2**31  # bytes of addresses that it may take besides


class Part(NamedTuple):
    """A piece of a command line.

    Attributes:
        words: arguments.
        name: of the option, or "" for what is none.
        is_wrong: its declaration says that this value has to be refused.
    """

    words: tuple[str, ...]
    name: str = ""
    is_wrong: bool = False


class World:
    """The folders in which the command lines are tried.

    Attributes:
        folder: holds all the others.
        domains: images, in trainA, trainB, testA, testB.
        case: what a command line may change: `runs` with the run `finished`, and `here`, where it is called.
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
        # A run to resume, and things that are in the way.
        (self._pristine / "here").mkdir(parents=True)
        (self._pristine / "here" / "file").write_text("precious")
        (self._pristine / "here" / "empty").mkdir()
        shutil.copytree(self._pristine, self.case)
        with contextlib.redirect_stdout(io.StringIO()):
            assert resume(*self.base(), f"--data={self.images}", "--name=finished", script=script) == 0
        shutil.copytree(self.case, self._pristine, dirs_exist_ok=True)

    def base(self) -> list[str]:
        """Return the flags of a run of two tiny steps; those drawn come after them and win."""
        return [*TINY[self.script], "--train_iters=2", "--log_step=1", f"--checkpoint_dir={self.case / 'runs'}"]

    def reset(self) -> None:
        """Put `case` back to what it was."""
        shutil.rmtree(self.case)
        shutil.copytree(self._pristine, self.case)

    def paths(self) -> dict[str, Any]:
        """Return all that could be changed: every path of the world, with the size of files, and the project's own."""
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
    "~nobody",
    "\udcff",
    "日本",
    "x" * 300,
]


def _texts() -> st.SearchStrategy[str]:
    """Any text that a shell can hand over, but for paths that lead out of the folder of the case."""
    letters = st.characters(blacklist_categories=["Cs"], blacklist_characters="\0/")
    return st.one_of(st.sampled_from(_GARBAGE), st.text(letters, max_size=8))


def _kind(cls: type[CommonOptions], name: str) -> type:
    """Return what the values of an option are; `int | None` is int."""
    kind = get_type_hints(cls)[name]
    if get_origin(kind) is types.UnionType:
        kind = next(part for part in get_args(kind) if part is not type(None))
    return kind


def _numbers(kind: type, limits: Any) -> tuple[list[str], list[str]]:
    """Return values within the bounds of an option and values outside, for an int or a float."""
    low = limits["above"] if limits["at_least"] is None else limits["at_least"]
    high = limits["below"] if limits["at_most"] is None else limits["at_most"]
    if kind is int:
        # Small ones, as a large valid one takes memory and time; only a bound that is declared is near enough.
        right = [*range(low, low + 8), *([high - 1, high] if high is not None else [])]
        wrong = [low - 1, -(10**30), (LARGEST if high is None else high) + 1, 10**30]
        texts = [f"+{low + 2}", f" {low + 3} ", f"{low}" if low < 1 else f"0{low}"]
        right = [*(number for number in right if high is None or number <= high), *texts]
        return list(map(str, right)), [*map(str, wrong), "1.5", "1e3", "0x10", "", "nan", "9" * 5000]
    # Nothing smaller than 1e-30: training turns subnormal numbers off, here too.
    inner = [low, 1e-30, 1e-3, 0.25, 0.5, 0.9]
    inner += [2.0, 1e8, 1e30, 1e308] if high is None else [math.nextafter(high, -math.inf), high]
    is_inside = {
        at: (at > low or (at == low and limits["above"] is None))
        and (high is None or at < high or (at == high and limits["below"] is None))
        for at in inner
    }
    right = [repr(at) for at, inside in is_inside.items() if inside]
    wrong = [repr(at) for at, inside in is_inside.items() if not inside]
    wrong += [
        repr(low - 1e-30 if low == 0 else math.nextafter(low, -math.inf)),
        "-1e300",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "",
        "0,5",
        "1/2",
    ]
    return right, wrong


def _values(world: World, field: Any, kind: type) -> tuple[list[str], list[str]]:
    """Return values for one option: those to try, and those that its declaration says are wrong."""
    limits = field.metadata
    if limits["choices"] is not None:
        right = list(map(str, limits["choices"]))
        return right, ["", right[0] + "x", right[-1].upper() + "_", ",".join(right), " " + right[0] + "?"]
    if kind in (int, float):
        return _numbers(kind, limits)
    folders = [str(world.images), str(world.photos), "new/folder", "empty", "file", "file/below", "/proc/no", "."]
    right = {
        "FOLDER": [*folders, "new/" + "x" * 300, "new/\udcff"],
        "RUN_FOLDER": [str(world.case / "runs" / "finished"), "finished", "nowhere", "file", "x" * 300],
        "POLICY": ["color", "color,translation,cutout", " cutout , color", ",", "color,blur", "color;cutout"],
    }.get(limits["metavar"], [])
    if field.name == "preset":
        return [*OPTIONS[world.script].PRESETS], []
    words = ["png", "*.PNG", "jpg", "inception", "pixels", str(world.photos / "0.png"), "a b", "ü", "finished", "$x$"]
    return (right * 2 if right else words) + words[:: 3 if right else 1], []


def _part(world: World, field: Any, random: Random, text: str) -> Part:
    """Draw what stands for one option on a command line."""
    cls, limits, name = OPTIONS[world.script], field.metadata, field.name
    kind, flag = _kind(cls, name), random.choice([f"--{name}", *limits["aliases"]])
    if kind is bool:
        flag = f"--{random.choice(['', 'no-'])}{name}"
        return Part((f"{flag}={text or 1}",), name, True) if random.random() < 0.1 else Part((flag,), name)
    if random.random() < (0.05 if limits["bare"] is None else 0.4):  # the word after it, if any, becomes its value
        return Part((f"--no-{name}" if limits["bare"] and random.random() < 0.3 else flag,), name)
    right, wrong = _values(world, field, kind)
    value, is_wrong = random.choice(right), False
    if random.random() < 0.25:
        value, is_wrong = (random.choice(wrong), True) if wrong else (random.choice([text, *_GARBAGE]), False)
    return Part((f"{flag}={value}",) if random.random() < 0.5 else (flag, value), name, is_wrong)


_STRAYS = ["--help", "--preset=list", "stray", "a\nb", "--batch=3", "--colour", "-x", "--", "--lr5", "=", "--=", "é"]


def command_lines(world: World) -> st.SearchStrategy[list[Part]]:
    """Return command lines of one to four options, some of them twice, and now and then something else.

    Hypothesis draws a number and a text; the rest follows from the two. Drawn piece by piece, most lines would be
    repetitions of others: it likes to copy one piece to the place of another.
    """
    fields = option_fields(OPTIONS[world.script])

    def build(number: int, text: str) -> list[Part]:
        random = Random(number)
        parts = [Part((f"--data={world.images}",), "data")] * (random.random() < 0.75)
        chosen = random.choices(fields, k=random.choice([1, 2, 2, 3, 3, 4]))
        if random.random() < 0.15:
            chosen.append(chosen[-1])
        parts += [_part(world, field, random, text) for field in chosen]
        return parts + [Part((random.choice(_STRAYS),))] * (random.random() < 0.08)

    return st.builds(build, st.integers(0, 2**64 - 1), _texts())


# ----------------------------------------------------------------------------------------------------------------------
# The property


class _TooLong(BaseException):
    """No Exception, so that nothing takes it for a mistake of the user."""


@contextlib.contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """Bound the time and the memory of what happens within."""
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


def _what_is_wrong_with_the_run(world: World, before: dict[str, Any]) -> str | None:
    """Return what a run that ended well should have left and has not."""
    new = [Path(path).parent for path in world.paths() if path.endswith("/options.json") and path not in before]
    if len(new) > 1:
        return f"{len(new)} run folders"
    folder = new[0] if new else world.case / "runs" / "finished"
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
        if not all(math.isfinite(float(value)) for line in lines[1:] for value in line.split(",")):
            return "a loss is not finite"
        if not (folder / "losses.png").exists():
            return "losses.png is missing"
    return f"left {left[0]}" if (left := list(world.case.rglob("*.tmp"))) else None


def fault(world: World, parts: list[Part], seconds: float = SECONDS) -> str | None:
    """Try one command line; return what is wrong with the way it ended, or None."""
    argv = [*world.base(), *(word for part in parts for word in part.words)]
    world.reset()
    before, here = world.paths(), Path.cwd()
    small_grid = lambda size: 2  # noqa: E731
    out, err = io.StringIO(), io.StringIO()
    os.chdir(world.case / "here")
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(data_loader, "_DATA_ROOT", world.folder / "data"),
            mock.patch.object(data_loader, "ensure_toy_cats", lambda root, size: check_size(size) or world.domains),
            mock.patch.object(nn.Module, "compile", lambda self: None),  # a minute for each
            mock.patch.multiple(trainer, grid_columns=small_grid),
            mock.patch.multiple(MODULES[world.script], grid_columns=small_grid),
            warnings.catch_warnings(),
            _bounded(seconds),
        ):
            warnings.simplefilter("ignore")
            code = resume(*argv, script=world.script)
    except (Exception, _TooLong) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        os.chdir(here)

    words = {word for part in parts for word in part.words}
    last = {part.name: part.is_wrong for part in parts}  # a flag that comes again replaces itself
    if code == 0 and (words & {"--help", "--preset=list"} or ("--preset" in words and "list" in words)):
        return None if out.getvalue() and world.paths() == before else "more than a text"
    if code == 0:
        if any(last.values()):
            return "a wrong value was taken: " + ", ".join(name for name, is_wrong in last.items() if is_wrong)
        return _what_is_wrong_with_the_run(world, before)
    lines = err.getvalue()
    if code not in (2, 3) or lines.count("\n") != 1 or not lines.startswith(f"{world.script}: "):
        return f"exit code {code}, {lines!r}"
    if code == 3:
        floats = {name for name in last if name and _kind(OPTIONS[world.script], name) is float}
        return None if floats else f"not finite: {lines!r}"
    names = [f"--{name}" for name in last if name] + [word.partition("=")[0] for word in words if word]
    names += [f"of the preset {part.words[-1].removeprefix('--preset=')}" for part in parts if part.name == "preset"]
    if not any(" ".join(name.split()) in lines for name in names):
        return f"no flag that was given is named: {lines!r}"
    if world.paths() != before:
        return f"left {sorted(dict(world.paths().items() - before.items()))[:3]} after {lines!r}"
    return None


def _tried(folder: Path, script: str, count: int, seed_: int, judge: Callable[[World, list[Part]], str | None]):
    """Draw command lines; return [(what was drawn, what is wrong or None)]."""
    folder.mkdir(parents=True, exist_ok=True)
    configuration.set_hypothesis_home_dir(folder / "hypothesis")
    world, results = World(folder / script, script), []

    @seed(seed_)
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
    )
    @given(command_lines(world))
    def draw(parts: list[Part]) -> None:
        try:
            results.append((parts, judge(world, parts)))
        except Exception as error:  # of the judge itself: what it looked for was not there
            results.append((parts, f"{type(error).__name__}: {error}"))

    draw()
    return results


def outcomes(folder: Path, script: str, count: int, seed: int, say: Callable[[str], None] = print) -> tuple[int, int]:
    """Try `count` command lines; return how many were tried and for how many the property held.

    Args:
        folder: where to work, empty.
        say: gets a line for each that did not hold.
    """
    results = _tried(folder, script, count, seed, fault)
    for parts, wrong in results:
        if wrong is not None:
            say(f"{script} {' '.join(word[:60] for part in parts for word in part.words)!r}: {wrong[:300]}")
    return len(results), sum(wrong is None for _, wrong in results)


def control_outcomes(folder: Path, script: str, count: int, seed: int) -> tuple[int, int]:
    """The same command lines before a naive script: argparse reads int and float, and nothing is checked."""

    def without_checks(world: World, parts: list[Part]) -> str | None:
        nothing = {name: lambda self: None for name in ("check", "check_together")}
        with mock.patch.multiple(CommonOptions, **nothing), mock.patch.multiple(OPTIONS[script], **nothing):
            return fault(world, parts, seconds=5.0)

    results = _tried(folder, script, count, seed, without_checks)
    return len(results), sum(wrong is None for _, wrong in results)
