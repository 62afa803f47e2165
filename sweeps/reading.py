"""Reads the TOML file of a sweep, and checks every command line of the sweep before the first training."""

import dataclasses
import itertools
import json
import math
import os
import re
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from options.fields import option_fields
from runs.overview import read_iterations
from sweeps.grid import SCRIPTS, Case, Job, Sweep, class_of, is_missing, merge, parse_evaluation, parse_job
from utils import UserError, printable, suggest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_SEED = 11
FEATURES = ("inception", "imagenet", "pixels")  # those with a name; all others are files
_KEYS = ("script", "name", "seeds", "base", "grid", "case", "evaluate", "slurm")
_SET_BY_SWEEP = {"name", "checkpoint_dir", "resume", "seed"}


def read_sweep(
    path: Path,
    checkpoint_dir: Path = Path("checkpoints"),
    changes: Mapping[str, Any] | None = None,
    evaluate: Mapping[str, Any] | None = None,
) -> Sweep:
    """Return the sweep of a TOML file. Nothing is written.

    Args:
        checkpoint_dir: the folder that holds the folder of the sweep.
        changes: options that replace those of [base].
        evaluate: options that replace those of [evaluate].

    Raises:
        UserError: a wrong key, type or value, or a run in the folder of the sweep that has other options.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows add a BOM
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: it is not TOML: {error}; texts need quotes, true and false are lower case") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not TOML: {error}"
        raise UserError(f"{path}: {reason}; give a file such as sweeps/leo-dcgan.toml") from None
    try:
        sweep = _make_sweep(content, path, checkpoint_dir, changes or {}, evaluate or {})
        for job in sweep.jobs:
            _check_options(sweep, job, changes or {})
        _check_evaluation(sweep)
    except ValueError as error:
        place = "" if str(error).startswith("--set: ") else f"{printable(str(path))}: "
        raise UserError(f"{place}{error}") from None
    for job in sweep.jobs:
        _refuse_other_options(sweep, job)
    return sweep


def check_images(sweep: Sweep) -> None:
    """Raise UserError if the images of a run that is missing cannot be found. Nothing is written."""
    asked = [parse_job(sweep, job) for job in sweep.jobs if is_missing(job.folder)]
    names = ("data", "X", "Y", "ext", "test_split")
    different = {tuple(getattr(options, name, None) for name in names): options for options in asked}
    for (*folders, _, _), options in different.items():
        if any(folder is not None for folder in folders):  # without a folder: the toy cats, which the training draws
            from sources.domains import find_domains  # torch takes seconds to import

            try:
                find_domains(options)  # type: ignore[arg-type]
            except UserError as error:
                remedy = "" if options.explicit & {*names} else "; or use --set data=FOLDER"
                raise UserError(str(error).removeprefix("--") + remedy) from None  # a file has no dashes


def _check_options(sweep: Sweep, job: Job, changes: Mapping[str, Any]) -> None:
    """Raise ValueError for a wrong option of a job: with the place where it stands."""
    try:
        parse_job(sweep, job)
    except ValueError as error:
        message, case = str(error), f"case {job.case.label!r}: "
        found = re.match(r"(?:argument )?(?:--)?(\w+)", message.removeprefix(case))
        name = found[1] if found else ""
        if name not in sweep.base:
            raise
        try:
            parse_job(sweep, dataclasses.replace(job, case=Case(label=job.case.label)))
        except ValueError:  # the options of the case do not matter
            place = "--set" if name in _canonical(changes, sweep.script) else "[base]"
            raise ValueError(f"{place}: {message.removeprefix(case)}") from None
        raise


def _check_evaluation(sweep: Sweep) -> None:
    """Raise ValueError for options of evaluate.py that it would refuse only after the first training."""
    asked = parse_evaluation(sweep, sweep.jobs[0])
    if asked.features not in FEATURES and not os.path.isfile(asked.features):
        raise ValueError(f"features: the file {asked.features} does not exist; choose a file, or {', '.join(FEATURES)}")
    for name in ("reference", "inception_weights"):
        if (path := getattr(asked, name)) is not None and not os.path.exists(path):
            raise ValueError(f"[evaluate]: {name}: {path} does not exist; correct the path")
    if asked.checkpoint not in ("newest", "best") and not asked.checkpoint.isdecimal():
        raise ValueError(f"[evaluate]: checkpoint: {asked.checkpoint!r} is neither newest, best nor an iteration")
    if asked.checkpoint == "best" and not all(parse_job(sweep, job).eval_every for job in sweep.jobs):
        raise ValueError("[evaluate]: checkpoint: 'best' needs eval_every in [base]; add it, or use 'newest'")


def _make_sweep(
    content: dict[str, Any], path: Path, checkpoint_dir: Path, changes: Mapping[str, Any], evaluate: Mapping[str, Any]
) -> Sweep:
    """Return the sweep of a TOML file's content. Raises ValueError for a mistake outside the options' own values."""
    for key in content:
        if key not in _KEYS:
            is_option = any(key in {one.name for one in option_fields(cls)} - _SET_BY_SWEEP for cls in SCRIPTS.values())
            hint = "options belong under [base]; " if is_option else suggest(key, _KEYS)
            raise ValueError(f"the key {key!r} is unknown; {hint}the keys are {', '.join(_KEYS)}")
    if "script" not in content:
        raise ValueError(f"script: missing; add a line such as script = {next(iter(SCRIPTS))!r}")
    script = content["script"]
    if script not in [*SCRIPTS]:  # it may be any type
        raise ValueError(f"script: {_show(script)} is unknown; choose from {', '.join(SCRIPTS)}")
    name = content.get("name", path.stem)
    if not isinstance(name, str):
        raise ValueError(f"name: {_show(name)} is not a text; write it in quotation marks")
    SCRIPTS[script](name=name).check()
    seeds = content.get("seeds", [DEFAULT_SEED])
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int for seed in seeds):
        raise ValueError(f"seeds: {_show(seeds)} is not a list of whole numbers; write one such as [11, 12]")
    if len(set(seeds)) < len(seeds):
        raise ValueError("seeds: a seed is given twice; give each once")

    tables = {key: content.get(key, {}) for key in ("base", "grid", "evaluate", "slurm")}
    for key, table in tables.items():
        if not isinstance(table, dict):
            remedy = f"write [{key}], and a line for each option below it"
            raise ValueError(f"{key}: {_show(table)} is not a table; {remedy}")
    changed = _read_options(changes, script, "--set")
    base = merge(_read_options(tables["base"], script, "[base]"), changed)
    cases = _read_cases(content, tables["grid"], script, name)
    for case in cases:
        kept = merge(base, case.options)
        for option, value in changed.items():
            if kept.get(option) != value:
                raise ValueError(f"--set: {option} is overridden by the case {case.label!r}; change it in the file")
    folder = checkpoint_dir / name
    jobs = [Job(case=case, seed=seed, folder=folder / f"{_folder_name(case.label)}-{seed}") for case in cases
            for seed in seeds]  # fmt: skip
    by_folder: dict[str, Job] = {}
    for job in jobs:
        other = by_folder.setdefault(str(job.folder).casefold(), job)
        if other is not job:
            raise ValueError(f"case: {other.case.label!r} and {job.case.label!r} need the same folder; rename one")
    return Sweep(
        name=name, script=script, base=base, cases=cases, seeds=seeds, folder=folder, jobs=jobs,
        evaluate={**_read_options(tables["evaluate"], "evaluate.py", "[evaluate]"), **evaluate}, slurm=tables["slurm"],
    )  # fmt: skip


def _read_cases(content: dict[str, Any], grid: dict[str, Any], script: str, name: str) -> list[Case]:
    """Return the cases of [grid] or [[case]]; one case without options of its own if the file has neither."""
    if "grid" in content and "case" in content:
        raise ValueError("the file has [grid] and [[case]]; leave one of them out")
    if "case" not in content and "grid" not in content:
        return [Case(label=name)]
    if "grid" in content:
        values = _canonical(grid, script)
        for option, choices in values.items():
            if not isinstance(choices, list) or not choices:
                raise ValueError(f"[grid] {option}: {_show(choices)} is not a list of values; write one such as [1, 2]")
        if not values:
            raise ValueError("[grid] is empty; add a line such as lr = [0.0002, 0.0005]")
        combinations = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
        cases = [Case(label=_describe(one), options=_read_options(one, script, "[grid]")) for one in combinations]
    else:
        tables = content["case"]
        if not isinstance(tables, list) or not tables or not all(isinstance(one, dict) for one in tables):
            raise ValueError("case: it is not a list of tables; write [[case]] above the options of each case")
        cases = [_read_case(table, number, script) for number, table in enumerate(tables, start=1)]
    labels = [case.label for case in cases]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"case: the label {label!r} is given twice; use another one")
    return cases


def _read_case(table: dict[str, Any], number: int, script: str) -> Case:
    """Return the case of a table [[case]]."""
    options = {key: value for key, value in table.items() if key not in ("label", "published")}
    label, published = table.get("label"), table.get("published", {})
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f'[[case]] number {number}: it has no label; add a line such as label = "wide"')
    if not isinstance(published, dict) or not all(
        type(value) in (int, float) and math.isfinite(value) for value in published.values()
    ):
        raise ValueError(f"[[case]] {label!r}: published: it is not a table of numbers; write such as {{FID = 55}}")
    for metric in published:
        if (script == "cycle_gan.py") != metric.endswith((", X to Y", ", Y to X")):
            example = "FID, X to Y" if script == "cycle_gan.py" else "FID"
            raise ValueError(
                f"[[case]] {label!r}: published: {metric!r} is not a metric of {script}; use such as {example!r}"
            )
    return Case(label=label, options=_read_options(options, script, f"[[case]] {label!r}"), published=dict(published))


def _show(value: Any) -> str:
    """Return a value as messages show it: true and false as in a TOML file."""
    if isinstance(value, list):
        return f"[{', '.join(map(_show, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _describe(options: Mapping[str, Any]) -> str:
    """Return the label of a combination of values, such as "lr=0.001, norm=batch"."""
    return ", ".join(f"{name}={value if isinstance(value, str) else _show(value)}" for name, value in options.items())


def _folder_name(label: str) -> str:
    """Return a label as a part of a folder name; a long one is cut, and gets a checksum of the whole label."""
    name = re.sub(r"[^\w.=]+", "-", label).strip("-.") or "case"
    return name if len(name) <= 60 else f"{name[:50]}-{zlib.crc32(label.encode()):08x}"


def _canonical(options: Mapping[str, Any], script: str) -> dict[str, Any]:
    """Return options with the name of the option instead of an alias. Raises ValueError for an unknown option."""
    names: dict[str, str] = {}
    for one in option_fields(class_of(script)):
        names |= {alias.lstrip("-"): one.name for alias in (one.name, *one.metadata["aliases"])}
    for name in options:
        if name not in names:
            hint = suggest(name, names) or f"`python {script} --help` lists the options"
            raise ValueError(f"the option {name!r} of {script} is unknown; {hint.strip()}")
    found: dict[str, Any] = {}
    for name, value in options.items():
        if names[name] in found:
            raise ValueError(f"{name} is another name of {names[name]}; leave one of them out")
        found[names[name]] = value
    return found


def _read_options(options: Mapping[str, Any], script: str, where: str) -> dict[str, Any]:
    """Return the options of a table by name. Raises ValueError for an unknown option, or a value of no usable type."""
    try:
        options = _canonical(options, script)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    forbidden = {"run", "out"} if script == "evaluate.py" else _SET_BY_SWEEP
    for name, value in options.items():
        if name in forbidden:
            remedy = "use the list seeds" if name == "seed" else "leave it out"
            raise ValueError(f"{where}: {name}: the sweep itself sets this option; {remedy}")
        if not isinstance(value, bool | int | float | str):
            remedy = "use a text, a number, true or false"
            remedy += "; a list belongs in [grid]" * (where == "[base]" and isinstance(value, list))
            raise ValueError(f"{where}: {name}: {_show(value)} is not a value; {remedy}")
    return dict(options)


def _refuse_other_options(sweep: Sweep, job: Job) -> None:
    """Raise UserError if the folder of a job is in use, by another run or by anything else."""
    folder = job.folder
    if is_missing(folder):
        return
    remedy = f"move {folder} away, or give the sweep another name"
    try:
        recorded = json.loads((folder / "options.json").read_text(encoding="utf-8"))
        script, values = recorded["script"], recorded["options"]
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{folder} exists and is not a run folder; {remedy}") from None
    if script != sweep.script:
        raise UserError(f"{folder} is a run of {script}, the sweep is one of {sweep.script}; {remedy}")
    asked = parse_job(sweep, job).with_absolute_paths()
    try:
        saved = type(asked).from_dict(values)
        asked = asked.with_value_ranges(saved.value_ranges())  # a run records the range that it found
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder}: {error}; {remedy}") from None
    for one in option_fields(type(asked)):
        before, now = getattr(saved, one.name), getattr(asked, one.name)
        if before != now and not one.metadata["resumable"]:
            raise UserError(f"{one.name}: {folder} has {_show(before)}, the sweep says {_show(now)}; {remedy}")
    step, total = read_iterations(folder, asked)
    if total is not None and step > total:
        raise UserError(f"{folder} has {step} iterations, the sweep says {total}; use at least {step}, or {remedy}")
