"""A sweep: its settings, the run of each setting with each seed, and what each run still needs."""

import contextlib
import dataclasses
import functools
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from options.command_line import parse_command, parse_command_line
from options.commands import EvaluateOptions
from options.common import CommonOptions
from options.fields import flag_of, option_fields
from options.training import CycleOptions, VanillaOptions
from runs.checkpoints import list_checkpoints
from runs.new_run import is_unused
from runs.overview import find_best_step, read_evaluations, read_iterations
from runs.tables import find_scores, read_metrics

Result = TypeVar("Result")
ROOT = Path(__file__).parent.parent
SCRIPTS: dict[str, type[CommonOptions]] = {"vanilla_gan.py": VanillaOptions, "cycle_gan.py": CycleOptions}
# Options of evaluate.py that do not change the numbers, or say where the run is.
_NOT_OF_NUMBERS = {"run", "out", "batch_size", "device", "inception_weights", "json"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One setting of a sweep.

    Attributes:
        label: as in the TOML file; for a [grid] made of the values, such as "lr=0.001, norm=batch".
        options: options of the training script beside those of [base].
        published: published numbers by metric, such as {"FID": 55} or {"FID, X to Y": 115, "FID, Y to X": 73}.
    """

    label: str
    options: dict[str, Any] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training of a sweep: a case with a seed, in a run folder."""

    case: Case
    seed: int
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep as its TOML file describes it. `read_sweep` makes it, and has checked every command line.

    Attributes:
        script: the training script.
        base: options that all cases share.
        folder: <checkpoint_dir>/<name>, the folder of the results and of the run folders.
        jobs: case by case, each with all seeds.
        evaluate: options of evaluate.py.
        slurm: the table [slurm].
    """

    name: str
    script: str
    base: dict[str, Any]
    cases: list[Case]
    seeds: list[int]
    folder: Path
    jobs: list[Job]
    evaluate: dict[str, Any] = field(default_factory=dict)
    slurm: dict[str, Any] = field(default_factory=dict)


# ----------------------------------------------------------------------------------------------------------------------
# Options


def class_of(script: str) -> type:
    """Return the options class of a training script or of evaluate.py."""
    return EvaluateOptions if script == "evaluate.py" else SCRIPTS[script]


def merge(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `base` changed by those of `own`, whose length and images replace those of `base`."""
    images = {"data", "X", "Y"}
    dropped = images if images & own.keys() else set()
    if "num_epochs" in own and "train_iters" not in own:
        dropped = dropped | {"train_iters"}
    return {**{name: value for name, value in base.items() if name not in dropped}, **own}


def to_flags(options: Mapping[str, Any], script: str) -> list[str]:
    """Return options as words of a command line; true and false become --flag and --no-flag."""
    words = []
    for one in option_fields(class_of(script)):
        if one.name not in options:
            continue
        value = options[one.name]
        if one.metadata["positional"]:
            words.append(str(value))
        elif isinstance(value, bool):
            words.append(flag_of(one) if value else f"--no-{one.name}")
        else:
            words.append(f"{flag_of(one)}={value}")
    return words


def _checked(where: str, parse: Callable[..., Result], *arguments: Any) -> Result:
    """Return the options that a parser makes; its message on stderr becomes a ValueError."""
    message, printed = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(message), contextlib.redirect_stdout(printed):
            return parse(*arguments)
    except SystemExit:
        text = message.getvalue().partition("error: ")[2].strip() or "preset: 'list' is not a preset; choose one"
        raise ValueError(f"{where}: {text.removesuffix(' (--help lists the options)')}") from None


def options_of(sweep: Sweep, job: Job) -> dict[str, Any]:
    """Return the options of a job that its command line names, but for its name, folder and seed."""
    return merge(sweep.base, job.case.options)


def _new_run_flags(sweep: Sweep, job: Job) -> list[str]:
    """Return the arguments that start the run of a job."""
    place = [f"--name={job.folder.name}", f"--checkpoint_dir={job.folder.parent}", f"--seed={job.seed}"]
    return [*to_flags(options_of(sweep, job), sweep.script), *place]


def parse_job(sweep: Sweep, job: Job) -> CommonOptions:
    """Return the checked options of a job. Raises ValueError for a wrong value."""
    return _parse_training(sweep.script, job.case.label, tuple(_new_run_flags(sweep, job)))


@functools.cache
def _parse_training(script: str, label: str, words: tuple[str, ...]) -> CommonOptions:
    cls: Any = SCRIPTS[script]
    return _checked(f"case {label!r}", parse_command_line, cls, "", words)


def parse_evaluation(sweep: Sweep, job: Job) -> EvaluateOptions:
    """Return the checked options of evaluate.py for a job. Raises ValueError for a wrong value."""
    return _checked("[evaluate]", parse_command, EvaluateOptions, "", _evaluate_flags(sweep, job))


def _evaluate_flags(sweep: Sweep, job: Job) -> list[str]:
    """Return the arguments that measure the run of a job, on the device that it was trained on."""
    device = {name: value for name, value in options_of(sweep, job).items() if name == "device"}
    return to_flags({"run": job.folder, **device, **sweep.evaluate}, "evaluate.py")


# ----------------------------------------------------------------------------------------------------------------------
# Run folders


def is_missing(folder: Path) -> bool:
    """Whether a run has to be started: its folder does not exist, or its training failed before the first step."""
    return not folder.exists() or (folder.is_dir() and is_unused(folder))


def job_state(sweep: Sweep, job: Job) -> str:
    """Return what a job is: "missing", "unfinished", "unmeasured" or "done"."""
    if is_missing(job.folder):
        return "missing"
    step = max((step for step, _ in list_checkpoints(job.folder)), default=0)
    _, total = read_iterations(job.folder, parse_job(sweep, job))
    if total is None or step < total:
        return "unfinished"
    found = find_evaluation(sweep, job)
    if found is None:
        return "unmeasured"
    if _is_fallback(sweep, job, found):  # evaluate.py did not have the weights; with them the run is measured again
        from metrics.features import is_on_this_machine  # torch takes seconds to import

        asked = parse_evaluation(sweep, job)
        return "unmeasured" if asked.inception_weights or is_on_this_machine(asked.features) else "done"
    return "done"


def find_evaluation(sweep: Sweep, job: Job) -> dict[str, Any] | None:
    """Return what evaluate.py recorded about the checkpoint of the sweep, with the options of the sweep.

    None: it has not measured this checkpoint so. An evaluation in the features that replace Inception comes last.
    """
    asked = dataclasses.asdict(parse_evaluation(sweep, job))
    default = dataclasses.asdict(EvaluateOptions())  # of options that an older program did not record
    newest = max((step for step, _ in list_checkpoints(job.folder)), default=0)
    best = find_best_step(find_scores(read_metrics(job.folder))[1])
    wanted = {"newest": newest, "best": best}.get(asked["checkpoint"], asked["checkpoint"])
    matching = [
        found for found in read_evaluations(job.folder) if str(found["step"]) == str(wanted)
        and all(found.get(name, default[name]) == value for name, value in asked.items() if name not in _NOT_OF_NUMBERS)
    ]  # fmt: skip
    return min(matching, key=lambda found: _is_fallback(sweep, job, found), default=None)


def _is_fallback(sweep: Sweep, job: Job, found: dict[str, Any]) -> bool:
    """Whether an evaluation has other features than the sweep asks for, because their weights were not available."""
    asked = parse_evaluation(sweep, job).features
    return asked in ("inception", "imagenet") and asked != found["rows"][0]["features"]


def commands_of(sweep: Sweep, job: Job) -> list[list[str]]:
    """Return the commands that finish a job, first to last: train or resume, then measure; none if it is done."""
    state = job_state(sweep, job)
    if state == "done":
        return []
    measure = [sys.executable, str(ROOT / "evaluate.py"), *_evaluate_flags(sweep, job)]
    script = [sys.executable, str(ROOT / sweep.script)]
    if state == "missing":
        return [[*script, *_new_run_flags(sweep, job)], measure]
    if state == "unfinished":
        kept = {name: value for name, value in options_of(sweep, job).items() if name != "value_range"}
        return [[*script, f"--resume={job.folder}", *to_flags(kept, sweep.script)], measure]
    return [measure]


def progress_of(sweep: Sweep, jobs: Sequence[Job]) -> tuple[int, int]:
    """Return the iterations that jobs have done, and those that they will have.

    The length of a run in epochs is known when the run has begun; until then it counts as much as the longest other.
    """
    pairs = [(0, parse_job(sweep, job).train_iters) if is_missing(job.folder)
             else read_iterations(job.folder, parse_job(sweep, job)) for job in jobs]  # fmt: skip
    longest = max((total for _, total in pairs if total is not None), default=0)
    totals = [longest if total is None else total for _, total in pairs]
    return sum(min(step, total) for (step, _), total in zip(pairs, totals, strict=True)), sum(totals)
