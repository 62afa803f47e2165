"""The tables of a run, losses.csv and metrics.csv: files that grow by rows and survive a crash in the middle of one."""

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

from system.files import append, write_bytes
from utils import UserError

METRICS = (
    "step", "source", "task", "split", "metric", "value", "std", "features", "resize", "generated", "reference", "seed",
)  # fmt: skip


def format_cell(value: Any) -> Any:
    """Return a value for a CSV file: a number as six digits, and text without control characters."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):  # a folder may have any name
        return re.sub(r"[\x00-\x1f\x7f]", "?", value.encode(errors="backslashreplace").decode())
    return value


def to_csv(columns: tuple[str, ...], rows: list[dict[str, Any]], header: bool) -> str:
    """Return rows as CSV text, one line each; missing values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({name: format_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _parse(line: str) -> tuple[str, ...]:
    """Return the cells of one line, so that a torn line does not swallow the next; none of an unreadable line."""
    try:
        return tuple(next(csv.reader([line]), ()))
    except csv.Error:
        return ()


def read_rows(path: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Return the columns and the complete rows of a CSV file; lines that a crash has torn are left out."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = [_parse(line) for line in text.split("\n")[:-1]]  # the last is empty, or torn
    if not lines:
        return (), []
    columns, *rows = lines
    return columns, [dict(zip(columns, row, strict=True)) for row in rows if len(row) == len(columns)]


def last_logged_step(folder: Path) -> int:
    """Return the iteration of the last row of losses.csv in a run folder, 0 if there is none."""
    _, rows = read_rows(folder / "losses.csv")
    return max((int(row["step"]) for row in rows if row.get("step", "").isdecimal()), default=0)


def append_rows(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """Add rows to a CSV file, all in one write."""
    with open(path, "rb") if path.exists() else io.BytesIO() as file:
        start = file.read(4096)
        file.seek(max(0, file.seek(0, io.SEEK_END) - 1))
        is_torn = file.read() != b"\n"
    if b"\n" not in start:  # a new file, or a crash came before the first line ended
        write_bytes(path, to_csv(columns, rows, header=True).encode())
    else:
        append(path, "\n" * is_torn + to_csv(columns, rows, header=False))


def keep_rows(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """Make `rows` the only rows of a CSV file; nothing is written if they already are."""
    text = to_csv(columns, rows, header=True).encode()
    if path.exists() and path.read_bytes() != text:
        write_bytes(path, text)


# ----------------------------------------------------------------------------------------------------------------------
# metrics.csv


def read_metrics(folder: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv in a folder. Raises UserError if it has other columns."""
    path = folder / "metrics.csv"
    columns, rows = read_rows(path)
    if columns not in ((), METRICS):
        raise UserError(f"{path} has other columns than this program writes; move it away")
    return rows


def append_metrics(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Add rows to metrics.csv in a folder; return its path. Raises UserError if it has other columns."""
    read_metrics(folder)
    append_rows(folder / "metrics.csv", METRICS, rows)
    return folder / "metrics.csv"


def find_scores(metrics: list[dict[str, str]]) -> tuple[str, dict[int, dict[str, float]]]:
    """Return the metric that counts in the evaluations while training: its name, and step -> task -> value.

    It is the metric of the first row of the newest evaluation, in the same split and features; less is better. Values
    that are not finite are left out: an earlier version of the program recorded them.
    """
    metrics = [row for row in metrics if row["source"] == "training"]
    if not metrics:
        return "", {}
    first = next(row for row in metrics if row["step"] == metrics[-1]["step"])
    scores: dict[int, dict[str, float]] = {}
    for row in metrics:
        value = float(row["value"])
        if math.isfinite(value) and all(row[key] == first[key] for key in ("metric", "split", "features")):
            scores.setdefault(int(row["step"]), {})[row["task"]] = value
    return f"{first['metric']} ({first['features']})", scores
