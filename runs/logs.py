"""What a run records while it trains: log.txt, losses.csv, metrics.csv, grids, and a tracker such as TensorBoard."""

import contextlib
import logging
import statistics
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.checkpoints import BEST
from runs.plots import save_losses
from runs.tables import (
    METRICS,
    append_rows,
    find_scores,
    format_cell,
    keep_rows,
    read_metrics,
    read_rows,
)
from runs.trackers import Tracker
from system.files import append, write_bytes
from system.processes import main_process_only
from system.program import LineFormatter
from utils import LOG, NonFiniteError, UserError, one_line, to_png

if TYPE_CHECKING:
    from torch import Tensor

TRACKER = "the tracker (--tracker)"  # in words for the user


class LogFile(logging.Handler):
    """Adds messages to log.txt; those that come before `open` are kept, and written then.

    Unlike logging's own handler it raises errors, such as a full disk.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(LineFormatter())
        self.path: Path | None = None
        self._kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record) + "\n"
        if self.path is None:
            self._kept.append(line)
        else:
            append(self.path, line)

    def open(self, path: Path) -> None:
        """Write the messages so far to a file, and later ones when they come."""
        self.path = path
        append(path, "".join(self._kept))
        self._kept.clear()

    @classmethod
    def attach(cls) -> "LogFile":
        """Return a new one that gets all messages from now on, in place of one whose run has never begun."""
        for handler in LOG.handlers[:]:
            if isinstance(handler, cls) and handler.path is None:
                LOG.removeHandler(handler)
        log_file = cls()
        LOG.addHandler(log_file)
        return log_file


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
        self._failed: set[str] = set()  # parts whose first error was reported

    @contextlib.contextmanager
    def continue_after_errors(self, part: str, stop_for: type[Exception] = UserError) -> Iterator[None]:
        """Let the training continue if the code in this context fails; a warning reports the first error of each part.

        Args:
            part: what may fail, in words for the user.
            stop_for: an error that is raised nevertheless, as NonFiniteError always is. UserError: a full disk.
        """
        try:
            yield
        except (NonFiniteError, stop_for):
            raise
        except Exception as error:
            if part not in self._failed:
                self._failed.add(part)
                LOG.warning(
                    "%s failed (%s: %s). This does not stop the training; further errors of this part are not shown",
                    part, type(error).__name__, one_line(error),
                )  # fmt: skip
                LOG.debug("%s", "".join(traceback.format_exception(error)))

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
        if new:  # in the first row; or if the file was deleted in the middle of the run
            self._columns += new
            keep_rows(path, self._columns, read_rows(path)[1])
        append_rows(path, self._columns, [row])
        self.rows.append(
            {name: float(format_cell(value)) for name, value in row.items()}
        )  # as a resumed run reads them
        with self.continue_after_errors(TRACKER):
            if self.tracker is not None:
                self.tracker.scalars({**{f"losses/{name}": value for name, value in losses.items()}, "lr": lr}, step)

    def add_metrics(self, step: int, rows: list[dict[str, Any]]) -> bool:
        """Add an evaluation while training to metrics.csv; return whether it is the best so far. Rank 0 only."""
        rows = [{"step": step, "source": "training", **row} for row in rows]
        with self.continue_after_errors("writing metrics.csv"):
            append_rows(self.folder / "metrics.csv", METRICS, rows)
        cells = [{name: format_cell(value) for name, value in row.items()} for row in rows]
        self.metrics += [{name: "" if cell is None else str(cell) for name, cell in row.items()} for row in cells]
        with self.continue_after_errors(TRACKER):
            names = ["/".join(filter(None, ("metrics", row["task"], row["split"], row["metric"]))) for row in rows]
            values = {name.replace(" ", "_"): row["value"] for name, row in zip(names, rows, strict=True)}
            if self.tracker is not None:
                self.tracker.scalars(values, step)
        name, scores = find_scores(self.metrics)
        if step not in scores:
            LOG.warning("Iteration %d: %s has no finite value", step, name)
            return False
        now = statistics.mean(scores[step].values())
        is_best = all(now < statistics.mean(values.values()) for at, values in scores.items() if at != step)
        LOG.info("Iteration %d: %s %.4g%s", step, name, now, f", the best so far: {BEST}" if is_best else "")
        return is_best

    @main_process_only
    def save_grid(self, name: str, step: int, grid: "Tensor") -> None:
        """Write a uint8 image (3, H, W) to samples/.

        The step follows the first word of the name: "sample-X-Y" at 200 is sample-000200-X-Y.png.
        """
        first, *rest = name.split("-")
        png = to_png(grid)
        write_bytes(self.samples / ("-".join([first, f"{step:06d}", *rest]) + ".png"), png)
        with self.continue_after_errors(TRACKER):
            if self.tracker is not None:
                self.tracker.image(name, png, step)

    def close_tracker(self) -> None:
        """Let the tracker finish writing, if there is one."""
        with self.continue_after_errors(TRACKER):
            if self.tracker is not None:
                self.tracker.close()

    @main_process_only
    def plot_losses(self, panels: dict[str, list[str]]) -> None:
        """Draw losses.png, if there are losses.

        Args:
            panels: title of each panel -> the losses that it shows.
        """
        if not self.rows:
            return
        with self.continue_after_errors("drawing losses.png"):
            save_losses(self.folder / "losses.png", self.rows, panels, self.folder.name, *find_scores(self.metrics))
