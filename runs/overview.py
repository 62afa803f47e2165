"""What a run folder tells about its run, for pages and tables. Reads only; missing or damaged files become problems."""

import contextlib
import hashlib
import json
import math
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np

from runs.checkpoints import BEST, list_checkpoints
from runs.records import read_sessions
from runs.tables import find_scores, last_logged_step, read_metrics, read_rows
from system.files import read_json
from utils import UserError, one_line

if TYPE_CHECKING:
    from options.common import CommonOptions

_START = re.compile(r"Training to iteration (\d+) in ")
_PROGRESS = re.compile(r"\d+/\d+, .*?(\d+(?:\.\d+)?) it/s, ")
_FINISHED = re.compile(r"Finished (\d+) iterations: ")
_STOPPED = re.compile(r"Stopped by (\w+) at iteration (\d+) of (\d+)\. ")


@dataclass(kw_only=True)
class RunOverview:
    """A run as its folder describes it.

    Attributes:
        folder: the run folder, as the caller named it.
        script: the script that trains it, such as "vanilla_gan.py".
        options: every option by name.
        sessions: the sessions of environment.json, the first one first.
        state: "running", "finished", "stopped" by a signal, or "failed".
        reason: why it stopped or failed; "" for other states.
        step, total: iterations done and wanted; None for a total that is not known.
        speed: iterations per second in the newest session; None if log.txt has no line of progress.
        warnings: the warnings in log.txt, each once.
        losses: column of losses.csv -> (n,) numbers, NaN where a value is missing; "step" first. Empty without rows.
        metrics: rows of metrics.csv whose value is a number.
        score_name, scores: the evaluations while training, as `find_scores` returns them.
        grids: name of a grid, such as "sample" or "sample-X-Y" -> iteration -> file.
        nearest: task, "" or such as "X-Y" -> the newest picture of nearest training images.
        has_best: whether best.pt exists.
        images: a checksum of the names and sizes of the training and test images; "" if they are not known.
        problems: what is missing or damaged, in words for the user.
    """

    folder: Path
    script: str
    options: dict[str, Any]
    sessions: list[dict[str, Any]] = field(default_factory=list)
    state: str = "failed"
    reason: str = ""
    step: int = 0
    total: int | None = None
    speed: float | None = None
    warnings: list[str] = field(default_factory=list)
    losses: dict[str, np.ndarray] = field(default_factory=dict)
    metrics: list[dict[str, str]] = field(default_factory=list)
    score_name: str = ""
    scores: dict[int, dict[str, float]] = field(default_factory=dict)
    grids: dict[str, dict[int, Path]] = field(default_factory=dict)
    nearest: dict[str, Path] = field(default_factory=dict)
    has_best: bool = False
    images: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def best_step(self) -> int | None:
        """The iteration of the best evaluation while training; None without evaluations."""
        return find_best_step(self.scores)


def find_best_step(scores: dict[int, dict[str, float]]) -> int | None:
    """Return the iteration with the best of the scores that `find_scores` returns; None if there are none."""
    return min(scores, key=lambda step: statistics.mean(scores[step].values()), default=None)


def read_iterations(folder: Path, options: "CommonOptions") -> tuple[int, int | None]:
    """Return how many iterations a run has done, and how many it has with these options.

    A length in epochs is known once data.json lists the training images; until then it is None.
    """
    newest = max((step for step, _ in list_checkpoints(folder)), default=0)
    done, total = max(newest, last_logged_step(folder)), options.train_iters
    if total is None:
        try:
            count = len(read_json(folder / "data.json")["images"]["train"])
        except (OSError, UserError, LookupError, TypeError):
            return done, None
        total = math.ceil(options.num_epochs * count / options.batch_size)  # type: ignore[attr-defined]
    return done, total


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """Return what each call of evaluate.py recorded about a run: its options, `step` and `rows`.

    Damaged files are left out.
    """
    found = []
    for path in sorted(folder.glob("evaluation-*.json")):
        with contextlib.suppress(OSError, UserError, LookupError, TypeError):
            content = read_json(path)
            if content["step"] >= 0 and content["rows"][0]["features"]:
                found.append(content)
    return found


def is_locked(folder: Path) -> bool:
    """Whether a process trains in a run folder now. A file system without locks answers no."""
    path = folder / ".lock"
    if not path.exists():
        return False
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
    lock.release()
    return False


def read_overview(folder: Path) -> RunOverview:
    """Return what a run folder tells about its run.

    Raises:
        UserError: it is not a run folder. Other files may be missing or damaged: `problems` lists them.
    """
    try:
        saved = json.loads((folder / "options.json").read_text(encoding="utf-8"))
        script, options, samples = saved["script"], dict(saved["options"]), saved["samples"]
        if not isinstance(script, str) or not isinstance(samples, str):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError):
        runs = sorted(path.parent.name for path in folder.glob("*/options.json")) if folder.is_dir() else []
        remedy = f"it contains runs: give {folder}/*" if runs else "give the folder of a run, such as checkpoints/NAME"
        raise UserError(f"{folder} is not a run folder (no readable options.json); {remedy}") from None
    run = RunOverview(folder=folder, script=script, options=options)
    for read in (_read_sessions, _read_losses, _read_metrics, _read_images):
        try:
            read(run)
        except UserError as error:  # its remedy is for a training
            run.problems.append(str(error).partition(";")[0])
        except OSError as error:
            run.problems.append(f"{error.filename} cannot be read ({error.strerror})")
    _find_pictures(run, folder / samples)
    checkpoints = list_checkpoints(folder)
    run.has_best = (folder / BEST).is_file()
    newest_grid = max((step for grids in run.grids.values() for step in grids), default=0)
    run.step = max([newest_grid, *run.losses.get("step", [0]), *(step for step, _ in checkpoints[:1])], key=int)
    run.step = int(run.step)
    _read_log(run)
    return run


def _read_sessions(run: RunOverview) -> None:
    run.sessions = read_sessions(run.folder)
    if not run.sessions:
        run.problems.append("environment.json is missing, so device and command line are not known")


def _to_number(text: str) -> float:
    """Return the number in a cell; NaN for an empty or damaged one."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _read_losses(run: RunOverview) -> None:
    """Read losses.csv; rows that a crash has torn, and rows without an iteration, are left out."""
    columns, rows = read_rows(run.folder / "losses.csv")
    if rows and columns[0] != "step":
        run.problems.append("losses.csv is damaged: its first column is not called step")
        return
    kept = [row for row in rows if re.fullmatch(r"\d{1,15}", row["step"])]
    if len(kept) < len(rows):
        run.problems.append(f"losses.csv: {len(rows) - len(kept)} damaged rows are left out")
    if kept:
        run.losses = {name: np.array([_to_number(row[name]) for row in kept]) for name in columns}
    else:
        run.problems.append("losses.csv has no rows yet")


def _read_metrics(run: RunOverview) -> None:
    """Read metrics.csv; rows whose value or iteration is not a number are left out."""
    rows = read_metrics(run.folder)
    run.metrics = [row for row in rows if np.isfinite(_to_number(row["value"])) and row["step"].isdecimal()]
    if len(run.metrics) < len(rows):
        run.problems.append(f"metrics.csv: {len(rows) - len(run.metrics)} damaged rows are left out")
    run.score_name, run.scores = find_scores(run.metrics)


def _read_images(run: RunOverview) -> None:
    """Compute the checksum of the images that data.json lists."""
    path = run.folder / "data.json"
    if not path.exists():
        run.problems.append("data.json is missing, so the training images are not known")
        return
    data = read_json(path)
    try:
        images = {domain: [one["train"], one["test"]] for domain, one in data.items()}
    except (AttributeError, LookupError, TypeError):
        run.problems.append("data.json is damaged")
        return
    run.images = hashlib.sha256(json.dumps(images, sort_keys=True).encode()).hexdigest()


def _find_pictures(run: RunOverview, samples: Path) -> None:
    """Find the grids by name and iteration, and the newest pictures of nearest training images."""
    for path in sorted(samples.glob("*.png")):
        if match := re.fullmatch(r"(real|sample)-(\d{1,15})(-\w+(?:-\w+)?)?\.png", path.name):
            run.grids.setdefault(match[1] + (match[3] or ""), {})[int(match[2])] = path
    if not any(name.startswith("sample") for name in run.grids):
        run.problems.append(f"{samples} has no grids")
    newest: dict[str, tuple[int, float]] = {}
    for path in sorted(run.folder.glob("nearest-*.png")):
        if match := re.fullmatch(r"nearest-(\d{1,15})-.+?(?:-([XY]-[XY]))?\.png", path.name):
            task, age = match[2] or "", (int(match[1]), path.stat().st_mtime)
            if age >= newest.get(task, (0, 0.0)):
                newest[task], run.nearest[task] = age, path


def _read_log(run: RunOverview) -> None:
    """Read total, speed, warnings and state of a run from log.txt and its lock."""
    total = run.options.get("train_iters")
    run.total = total if isinstance(total, int) else None
    try:
        lines = (run.folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        lines = []
        run.problems.append(f"log.txt cannot be read ({one_line(error)})" if error.errno != 2 else "log.txt is missing")
    run.warnings = [*dict.fromkeys(line.removeprefix("Warning: ") for line in lines if line.startswith("Warning: "))]
    starts = [i for i, line in enumerate(lines) if _START.match(line)]
    session = lines[starts[-1] :] if starts else lines
    if starts and (match := _START.match(session[0])):
        run.total = int(match[1])
    speeds = [float(match[1]) for line in session if (match := _PROGRESS.match(line))]
    run.speed = statistics.median(speeds) if speeds else None
    for line in session:
        if _FINISHED.match(line):
            run.state = "finished"
        elif match := _STOPPED.match(line):
            run.state, run.reason = "stopped", f"by {match[1]}"
        elif line.startswith("Stopped: "):
            run.state, run.reason = "failed", line.removeprefix("Stopped: ")
    # The lock is tried only where it is needed: a training that starts at this moment could not take it.
    if run.state == "failed" and not run.reason:
        if is_locked(run.folder):
            run.state = "running"
        elif not lines and run.total is not None and run.step >= run.total:
            run.state = "finished"
        else:
            run.reason = "it ended without a message: it was killed, or an error stopped it"
