"""The results of a sweep: sweep.csv, sweep.md, sweep.json, grids.png and report.html, beside its run folders."""

import re
import shutil
from pathlib import Path
from typing import Any

from pages.comparison import best_of, compare_options
from pages.curves import Shown
from pages.pictures import PictureEncoder
from pages.report import make_page, read_runs
from pages.summary import Cell, Summary, SummaryTable
from runs.tables import to_csv
from sweeps.figure import write_grids
from sweeps.grid import Sweep
from sweeps.numbers import Comparison, Measured, compare_settings, read_measurements
from system.files import write_bytes, write_json
from utils import LOG, printable, shorten

# Parts of the names of metrics that depend on the real images only; the tables leave these metrics out.
OF_REAL_IMAGES = ("untranslated", "between real images")
STATES = {"missing": "Not trained yet", "unfinished": "Not finished", "unmeasured": "Not measured"}


def write_results(sweep: Sweep) -> list[Path]:
    """Write the results of a sweep, as far as its runs are finished and measured; print the tables; return the files.

    Raises:
        UserError: a file cannot be written, or metrics.csv of a run has other columns than this program writes.
    """
    measured = read_measurements(sweep)
    folders = [one.job.folder for one in measured if one.state != "missing"]
    runs = read_runs(folders)[0] if folders else []
    comparisons = compare_settings(sweep, measured, {one.run.folder: one for one in runs})
    written = [sweep.folder / name for name in ("sweep.csv", "sweep.md", "sweep.json")]
    sweep.folder.mkdir(parents=True, exist_ok=True)
    write_bytes(written[0], _to_csv(measured, runs).encode())
    write_json(written[2], _to_plain(sweep, measured, comparisons))
    picture = sweep.folder / "grids.png"
    has_picture = write_grids(picture, sweep, str(sweep.evaluate.get("checkpoint", "newest")))
    written += [picture] * has_picture
    summary = summarize(sweep, measured, comparisons, picture if has_picture else None)
    write_bytes(written[1], to_markdown(summary).encode(errors="backslashreplace"))
    if runs:
        written.append(sweep.folder / "report.html")
        page = make_page(runs, [], PictureEncoder(), summary)
        write_bytes(written[-1], page.encode(errors="backslashreplace"))
    for line in to_lines(summary, shutil.get_terminal_size((120, 24)).columns):
        LOG.info("%s", line)
    return written


def summarize(sweep: Sweep, measured: list[Measured], comparisons: list[Comparison], picture: Path | None) -> Summary:
    """Return the tables of a sweep as texts, with notes about what is missing or cannot be compared."""
    steps: dict[str, set[int]] = {}
    for one in measured:
        if one.step is not None:
            steps.setdefault(one.job.case.label, set()).add(one.step)
    different = sorted(set().union(*steps.values()))
    about = f"{sweep.script}, training {_name_seeds(sweep.seeds)}"
    about += f", {different[0]:,} iterations." if len(different) == 1 else "."
    if len(sweep.seeds) > 1:
        about += " Each number is the mean ± the sample standard deviation over the seeds."
    tables = [_make_table(sweep, one, steps if len(different) > 1 else {}) for one in comparisons]
    notes = []
    if len(sweep.seeds) > 1 and any(comparison.numbers for comparison in comparisons):
        notes.append("A difference that is smaller than the deviations may be chance.")
    for state, words in STATES.items():
        of_case: dict[str, list[int]] = {}
        for one in measured:
            if one.state == state:
                of_case.setdefault(one.job.case.label, []).append(one.job.seed)
        names = [f"{label} ({_name_seeds(seeds)})" for label, seeds in of_case.items()]
        notes += [f"{words}: {shorten(names, 10, '; ')}."] if names else []
    asked = sweep.evaluate.get("features", "inception")
    used = {row["features"] for one in measured for row in one.rows} - {asked}
    if used and asked in ("inception", "imagenet"):
        notes.append(
            f"The weights of the features {asked} were missing, so evaluate.py used {' and '.join(sorted(used))}. The "
            "files in logs/ say how to get them; after that, the same command measures these runs again."
        )
    for comparison in comparisons:
        if comparison.differences:
            notes.append(
                f"{comparison.title}: the runs differ in {', '.join(comparison.differences)}, so their numbers cannot "
                "be compared, and none is bold."
            )
        alone = sorted({*_published_metrics(comparison)} - {*comparison.metrics})
        if alone and comparison.numbers:
            notes.append(
                f"No run is measured by {', '.join(alone)}: compare the published numbers only with each other."
            )
    return Summary(sweep.name, about, tables, list(dict.fromkeys(notes)), picture)


def _name_seeds(seeds: list[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {shorten([str(seed) for seed in seeds], 20)}"


def _published_metrics(comparison: Comparison) -> list[str]:
    """Return the metrics of the published numbers, each once."""
    return list(dict.fromkeys(metric for own in comparison.published.values() for metric in own))


def _make_table(sweep: Sweep, comparison: Comparison, steps: dict[str, set[int]]) -> SummaryTable:
    """Return the table of a comparison.

    Args:
        steps: label of the setting -> iterations of its runs, for a column of their own; {} for none.
    """
    metrics = [name for name in comparison.metrics if not any(words in name for words in OF_REAL_IMAGES)]
    published = _published_metrics(comparison)
    alone = [name for name in published if name not in metrics]  # first, as they are what the sweep is compared with
    columns = ["setting", *(["iterations"] if steps else [])]
    rows = {case.label: [Cell(case.label)] for case in sweep.cases}
    for label, row in rows.items() if steps else ():
        row.append(Cell(", ".join(f"{step:,}" for step in sorted(steps.get(label, ()))) or "-"))
    for metric in [*alone, *metrics]:
        if metric in metrics:
            columns.append(metric + {min: " ↓", max: " ↑"}.get(best_of(metric), ""))
        if metric in published:
            columns.append(f"{metric}, published")
        for label, row in rows.items():
            number = comparison.numbers.get(label, {}).get(metric)
            if metric in metrics:
                row.append(Cell(str(number), number.is_best) if number else Cell("-"))
            if metric in published:
                value = comparison.published.get(label, {}).get(metric)
                row.append(Cell("-" if value is None else f"{value:g}"))
    about = f"Measured with {comparison.shared}." if comparison.shared else "No run is measured yet."
    return SummaryTable(comparison.title, about, columns, list(rows.values()))


# ----------------------------------------------------------------------------------------------------------------------
# The tables as text


def _escape(text: str) -> str:
    """Return a text in one line that Markdown shows as it is; underscores inside words need no escape."""
    return re.sub(r"[\\`*<>|\[\]&~$#]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", printable(text))


def to_markdown(summary: Summary) -> str:
    """Return a summary as a Markdown file."""
    lines = [f"# {_escape(summary.title)}", "", _escape(summary.about), ""]
    for table in summary.tables:
        lines += [f"## {_escape(table.title)}", "", _escape(table.about), ""]
        lines.append("| " + " | ".join(map(_escape, table.columns)) + " |")
        lines.append("|---" + "|---:" * (len(table.columns) - 1) + "|")
        for row in table.rows:
            cells = [f"**{_escape(cell.text)}**" if cell.is_best else _escape(cell.text) for cell in row]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += [f"- {_escape(note)}" for note in summary.notes] + [""] * bool(summary.notes)
    if summary.picture is not None:
        lines += [f"![A row of images for each setting]({summary.picture.name})", ""]
    return "\n".join(lines)


def to_lines(summary: Summary, width: int) -> list[str]:
    """Return a summary as lines for a terminal with `width` columns; a star marks the best numbers.

    Columns that do not fit are left out.
    """
    lines = [printable(summary.about)]
    for table in summary.tables:
        shown = [""] * (1 + len(table.rows))
        for number, heading in enumerate(table.columns):
            cells = [row[number] for row in table.rows]
            marks = [" *" if cell.is_best else "  " for cell in cells] if any(cell.is_best for cell in cells) else []
            texts = [cell.text + mark for cell, mark in zip(cells, marks or [""] * len(cells), strict=True)]
            texts = [printable(text) for text in (heading, *texts)]
            size = max(map(len, texts))
            texts = [text.rjust(size + 2) if number else text.ljust(size) for text in texts]
            if number > 1 and len(shown[0]) + size + 2 > width:
                shown.append(f"({len(table.columns) - number} more columns are in sweep.md)")
                break
            shown = [line + text for line, text in zip(shown, texts, strict=True)]
        lines += ["", f"{printable(table.title)}. {printable(table.about)}", *(line.rstrip() for line in shown)]
    return [*lines, *([""] * bool(summary.notes)), *map(printable, summary.notes)]


# ----------------------------------------------------------------------------------------------------------------------
# The numbers of single runs


def _off_as_word(value: Any) -> Any:
    """Return an option's value, or a word if it is off: pandas takes an empty cell for missing and drops its row."""
    return "false" if value == "" else "none" if value is None else value


def _to_csv(measured: list[Measured], runs: list[Shown]) -> str:
    """Return a row for each run and metric, with the options in which the runs differ."""
    options = [name for name, _ in compare_options(runs)[0] if name != "seed"] if runs else []
    fixed = ("case", "seed", "iterations", "features", "task", "split", "metric", "value", "generated", "reference")
    names = {name: f"option_{name}" if name in fixed else name for name in options}
    of_run = {one.run.folder: one.run.options for one in runs}
    rows = []
    for one in measured:
        for row in one.rows:
            about = {name: row[name] for name in fixed[3:]}
            about |= {"case": one.job.case.label, "seed": one.job.seed, "iterations": one.step}
            own = of_run[one.job.folder]
            rows.append(about | {column: _off_as_word(own[name]) for name, column in names.items() if name in own})
    return to_csv((*fixed, *names.values()), rows, header=True)


def _to_plain(sweep: Sweep, measured: list[Measured], comparisons: list[Comparison]) -> dict[str, Any]:
    """Return the content of sweep.json."""
    runs = [{"setting": one.job.case.label, "seed": one.job.seed, "folder": one.job.folder.name, "state": one.state,
             "iterations": one.step} for one in measured]  # fmt: skip
    content = []
    for one in comparisons:
        settings = {}
        for case in sweep.cases:
            numbers = {name: {"mean": number.mean, "deviation": number.deviation, "is_best": number.is_best,
                              "values": {str(seed): value for seed, value in number.values.items()}}
                       for name, number in one.numbers.get(case.label, {}).items()}  # fmt: skip
            settings[case.label] = {"measured": numbers, "published": one.published.get(case.label, {})}
        content.append({"task": one.task, "split": one.split, "title": one.title, "measured_with": one.shared,
                        "differences": one.differences, "settings": settings})  # fmt: skip
    options = {case.label: case.options for case in sweep.cases}
    return {"name": sweep.name, "script": sweep.script, "seeds": sweep.seeds, "base": sweep.base, "settings": options,
            "runs": runs, "comparisons": content}  # fmt: skip
