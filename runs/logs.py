"""What a run records while it trains: log.txt, losses.csv, metrics.csv, grids, and a tracker such as TensorBoard."""

import csv
import io
import logging
import re
import statistics
from pathlib import Path
from typing import Any

from torch import Tensor

from runs.checkpoints import BEST
from runs.plots import save_losses
from runs.trackers import Tracker
from system.files import append, write_bytes
from system.processes import main_process_only
from utils import LOG, UserError, to_png

METRICS = (
    "step", "source", "task", "split", "metric", "value", "std", "features", "resize", "generated", "reference", "seed",
)  # fmt: skip


class LogFile(logging.Handler):
    """Adds messages to log.txt. Unlike logging's own handler it raises errors, such as a full disk."""

    def __init__(self, path: Path):
        super().__init__(logging.DEBUG)
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        append(self.path, self.format(record) + "\n")


# ----------------------------------------------------------------------------------------------------------------------
# CSV files that grow by rows


def _cell(value: Any) -> Any:
    """Return a value for a CSV file: a number as six digits, and text without control characters."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):  # a folder may have any name
        return re.sub(r"[\x00-\x1f\x7f]", "?", value.encode(errors="backslashreplace").decode())
    return value


def _to_csv(columns: tuple[str, ...], rows: list[dict[str, Any]], header: bool) -> str:
    """Return rows as CSV text, one line each; missing values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def read_rows(path: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Return the columns and the complete rows of a CSV file; lines that a crash has torn are left out."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    # Each line by itself: a torn one must not swallow the next. The last is empty, or torn.
    lines = [tuple(next(csv.reader([line]), ())) for line in text.split("\n")[:-1]]
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
        write_bytes(path, _to_csv(columns, rows, header=True).encode())
    else:
        append(path, "\n" * is_torn + _to_csv(columns, rows, header=False))


def keep_rows(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    """Make `rows` the only rows of a CSV file; nothing is written if they already are."""
    text = _to_csv(columns, rows, header=True).encode()
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

    It is the metric of the first row of the newest evaluation, in the same split and features; less is better.
    """
    metrics = [row for row in metrics if row["source"] == "training"]
    if not metrics:
        return "", {}
    first = next(row for row in metrics if row["step"] == metrics[-1]["step"])
    scores: dict[int, dict[str, float]] = {}
    for row in metrics:
        if all(row[key] == first[key] for key in ("metric", "split", "features")):
            scores.setdefault(int(row["step"]), {})[row["task"]] = float(row["value"])
    return f"{first['metric']} ({first['features']})", scores


# ----------------------------------------------------------------------------------------------------------------------
# All of a run


class RunLogs:
    """Losses, metrics and grids of a run. Processes above rank 0 write nothing.

    Args:
        folder: the run folder.
        samples: the folder of the grids.

    Attributes:
        rows: the rows of losses.csv, column -> number, without missing values.
        metrics: the rows of metrics.csv.
        tracker: gets the same losses, metrics and grids, once it is set.
    """

    def __init__(self, folder: Path, samples: Path):
        self.folder, self.samples = folder, samples
        self.rows: list[dict[str, float]] = []
        self.metrics: list[dict[str, str]] = []
        self.tracker: Tracker | None = None
        self._columns: tuple[str, ...] = ()

    @main_process_only
    def truncate(self, step: int) -> None:
        """Drop what was recorded after `step`: a resumed run computes it again."""
        path = self.folder / "losses.csv"
        columns, rows = read_rows(path)
        if columns[:1] != ("step",):  # the crash came before the first line was written
            path.unlink(missing_ok=True)
            columns, rows = (), []
        kept = [row for row in rows if row["step"].isdecimal() and int(row["step"]) <= step]
        keep_rows(path, columns, kept)
        self._columns = columns
        self.rows = [{name: float(value) for name, value in row.items() if value} for row in kept]
        metrics = read_metrics(self.folder)
        self.metrics = [row for row in metrics if row["source"] != "training" or int(row["step"]) <= step]
        keep_rows(self.folder / "metrics.csv", METRICS, self.metrics)

    @main_process_only
    def add_losses(self, step: int, losses: dict[str, float], lr: float) -> None:
        """Add a row to losses.csv. A loss that was not computed since the last row is left out."""
        path = self.folder / "losses.csv"
        row: dict[str, Any] = {"step": step, **losses, "lr": float(lr)}
        new = tuple(name for name in row if name not in self._columns)
        if new:  # the first row; or the file was deleted, and its first row since lacks a loss
            self._columns += new
            keep_rows(path, self._columns, read_rows(path)[1])
        append_rows(path, self._columns, [row])
        self.rows.append({name: float(_cell(value)) for name, value in row.items()})  # as a resumed run reads them
        if self.tracker is not None:
            self.tracker.scalars({**{f"losses/{name}": value for name, value in losses.items()}, "lr": lr}, step)

    def add_metrics(self, step: int, rows: list[dict[str, Any]]) -> bool:
        """Add an evaluation while training to metrics.csv; return whether it is the best so far. Rank 0 only."""
        rows = [{"step": step, "source": "training", **row} for row in rows]
        append_metrics(self.folder, rows)
        self.metrics = read_metrics(self.folder)
        if self.tracker is not None:
            names = ["/".join(filter(None, ("metrics", row["task"], row["split"], row["metric"]))) for row in rows]
            values = {name.replace(" ", "_"): row["value"] for name, row in zip(names, rows, strict=True)}
            self.tracker.scalars(values, step)
        name, scores = find_scores(self.metrics)
        now = statistics.mean(scores[step].values())
        is_best = all(now < statistics.mean(values.values()) for at, values in scores.items() if at != step)
        LOG.info("Iteration %d: %s %.4g%s", step, name, now, f", the best so far: {BEST}" if is_best else "")
        return is_best

    @main_process_only
    def save_grid(self, name: str, step: int, grid: Tensor) -> None:
        """Write a uint8 image (3, H, W) to samples/.

        The step follows the first word of the name: "sample-X-Y" at 200 is sample-000200-X-Y.png.
        """
        first, *rest = name.split("-")
        write_bytes(self.samples / ("-".join([first, f"{step:06d}", *rest]) + ".png"), to_png(grid))
        if self.tracker is not None:
            self.tracker.image(name, grid, step)

    @main_process_only
    def plot_losses(self, panels: dict[str, list[str]]) -> None:
        """Draw losses.png, if there are losses.

        Args:
            panels: title of each panel -> the losses that it shows.
        """
        if self.rows:
            save_losses(self.folder / "losses.png", self.rows, panels, self.folder.name, *find_scores(self.metrics))
