"""The page about runs: reads their folders, renders the templates, writes one HTML file; with --watch repeatedly."""

import datetime
import functools
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bokeh.resources import Resources
from jinja2 import Environment
from markupsafe import Markup

from options.report import ReportOptions
from pages.cards import commands_for, describe_command, describe_run
from pages.comparison import best_of, compare_metrics, compare_options
from pages.curves import COLORS, DASHES, Shown, draw_curves
from pages.pictures import Picture, PictureEncoder, choose_grids
from pages.rendering import make_environment
from pages.summary import Summary
from runs.overview import RunOverview, read_overview
from system.files import check_new_file, write_bytes
from utils import LOG, UserError, printable

MARK = "<!-- Written by report.py, which may replace this file. -->"  # in the head of every page
WATCH_SECONDS = 10
KINDS = {"vanilla_gan.py": "DCGAN", "cycle_gan.py": "CycleGAN"}


@dataclass
class Grids:
    """Grids of one run and direction.

    Attributes:
        pictures: (iteration, picture), the first iteration first.
        left_out: how many iterations the page does not show.
    """

    shown: Shown
    title: str
    pictures: list[tuple[int, Picture]]
    left_out: int


def report(options: ReportOptions) -> int:
    """Write the page of these options; return the exit code.

    Raises:
        UserError: no run folder is among the folders, or the page cannot be written.
    """
    path, encode = Path(options.out), PictureEncoder()
    check_new_file(path, (".html", ".htm"), options.overwrite or is_report(path))
    while True:
        runs, left_out = read_runs([Path(name) for name in options.runs])
        page = make_page(runs, left_out, encode)
        write_bytes(path, page.encode(errors="backslashreplace"))
        training = sum(one.run.state == "running" for one in runs)
        count = f"{len(runs)} run{'s' * (len(runs) > 1)}"
        LOG.info("wrote %s: %s, %d of them training, %.1f MB", path, count, training, len(page) / 1e6)
        if not (options.watch and training):
            return 0
        try:
            time.sleep(options.every or WATCH_SECONDS)
        except KeyboardInterrupt:
            LOG.info("stopped; %s stays as it is", path)
            return 0


def is_report(path: Path) -> bool:
    """Whether a file is a page that this command wrote."""
    try:
        with open(path, "rb") as file:
            return MARK.encode() in file.read(1000)
    except OSError:
        return False


def read_runs(folders: Sequence[Path]) -> tuple[list[Shown], list[str]]:
    """Return the runs, each once, those of one script together, and why other folders are left out.

    Raises:
        UserError: none of the folders is a run.
    """
    runs: dict[Path, RunOverview] = {}
    left_out: list[str] = []
    for folder in folders:
        try:
            runs.setdefault(folder.resolve(), read_overview(folder))
        except UserError as error:
            if len(folders) == 1:
                raise
            left_out.append(str(error).partition(";")[0])
            LOG.warning("%s; left out", left_out[-1])
    if not runs:
        raise UserError("RUN: none of these is a run folder; give folders such as checkpoints/NAME")
    found = sorted(runs.values(), key=lambda run: [*KINDS, run.script].index(run.script))
    times_used = Counter(run.folder.resolve().name for run in found)
    shown = []
    for number, run in enumerate(found):
        name = run.folder.resolve().name
        name = printable(name if times_used[name] == 1 else str(run.folder))
        dashes = number // len(COLORS) % len(DASHES)
        shown.append(Shown(run, name, COLORS[number % len(COLORS)], dashes, number))
    return shown, left_out


def collect_grids(runs: Sequence[Shown], encode: PictureEncoder) -> tuple[list[Grids], dict[int, dict[str, Picture]]]:
    """Return the grids of samples, and for each run its other pictures: real images and nearest training images.

    Files that cannot be read are added to the problems of their run.
    """
    series = [(one, name) for one in runs for name in one.run.grids if name.startswith("sample")]
    chosen = choose_grids([one.run.grids[name] for one, name in series])
    others: dict[int, dict[str, Path]] = {}
    for one in runs:
        real = {n: grids[min(grids)] for n, grids in one.run.grids.items() if n.startswith("real")}
        others[one.number] = real | {f"nearest-{task}": path for task, path in one.run.nearest.items()}
    files = [(one, path) for (one, _), grids in zip(series, chosen, strict=True) for path in grids.values()]
    files += [(one, path) for one in runs for path in others[one.number].values()]
    encoded = encode([path for _, path in files])
    for one, path in files:
        if path not in encoded:
            one.run.problems.append(f"{path.name} cannot be read as a picture")
    grids = []
    for (one, name), paths in zip(series, chosen, strict=True):
        pictures = [(step, encoded[path]) for step, path in paths.items() if path in encoded]
        if pictures:
            left_out = len(one.run.grids[name]) - len(paths)
            grids.append(Grids(one, name.removeprefix("sample").strip("-").replace("-", " to "), pictures, left_out))
    rest = {n: {name: encoded[path] for name, path in group.items() if path in encoded} for n, group in others.items()}
    return grids, rest


@functools.cache
def _environment() -> Environment:
    """Return the templates, with what the report needs beside them."""
    environment = make_environment()
    environment.globals["bokeh"] = Markup(Resources(mode="inline", components=["bokeh"]).js_raw[0])
    environment.filters["printable"] = printable
    # Long arguments break after these characters; <wbr> is not copied. join() escapes the parts.
    environment.filters["breakable"] = lambda word: Markup("<wbr>").join(re.split("(?<=[=/,])", word))
    return environment


def make_page(
    runs: Sequence[Shown], left_out: Sequence[str], encode: PictureEncoder, summary: Summary | None = None
) -> str:
    """Return the page as HTML.

    Args:
        left_out: why folders are not on the page.
        summary: of the sweep that the runs belong to, on top of the page.
    """
    grids, others = collect_grids(runs, encode)  # first, because it adds to the problems of the runs
    scripts = dict.fromkeys(one.run.script for one in runs)
    by_script = {script: [one for one in runs if one.run.script == script] for script in scripts}
    steps = sorted({step for one in grids for step, _ in one.pictures})
    content: dict[str, Any] = {
        "mark": Markup(MARK),
        "written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "title": summary.title if summary else runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        "runs": runs,
        "left_out": left_out,
        "summary": summary,
        "picture": encode([summary.picture]).get(summary.picture) if summary and summary.picture else None,
        "parts": by_script,
        "kinds": KINDS,
        "facts": {one.number: describe_run(one.run) for one in runs},
        "command": {one.number: describe_command(one.run) for one in runs},
        "commands": {one.number: commands_for(one.run) for one in runs},
        "grids": grids,
        "steps": steps,
        "others": others,
        "curves": draw_curves(runs),
        "options": {script: compare_options(members) for script, members in by_script.items()},
        "tables": {script: compare_metrics(members) for script, members in by_script.items()},
        "best_of": best_of,
        "lowest": min,
    }
    return _environment().get_template("report.html").render(content)
