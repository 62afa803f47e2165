"""The run folder: its file names, checkpoints, logs, grids and plots. No other file knows where anything lies.

    checkpoints/<name>/
        options.json            every option, and the script
        environment.json        for each start: command line, versions, device, git commit
        data.json               the images trained on, held out and skipped
        log.txt                 what the terminal showed
        losses.csv              step, every loss, lr
        losses.png              the same as curves, with that of the evaluations
        metrics.csv             what evaluations measured, a row per number
        evaluation-000400-pixels.json   the same for one evaluation by evaluate.py, with its protocol
        nearest-000400-pixels.png       generated images beside the nearest real ones; with two domains -X-Y, -Y-X
        samples/                real-000000.png, sample-000200.png; with two domains real-000000-X.png,
                                sample-000200-X-Y.png and so on
        checkpoint-000500.pt    everything that a run needs to go on
        best.pt                 the same, of the best evaluation while training
        events.out.tfevents.*   TensorBoard

A file appears whole or not at all: it is written under a temporary name, synced, and then renamed. Only the three logs
grow line by line; losses.csv is cut back to the checkpoint when a run goes on.
"""

import contextlib
import csv
import dataclasses
import datetime
import gc
import glob
import hashlib
import io
import itertools
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from utils import (
    NonFiniteError,
    UserError,
    append,
    count_processes,
    few,
    is_launch,
    launch,
    make_folder,
    name_trouble,
    printable,
    rank,
    restarts,
    sync,
    tell_all,
    write_bytes,
    write_json,
)

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None

BEST = "best.pt"
FORMAT = 2  # of checkpoints; raised when an older program could not read a newer one's. 2: sealed
METRICS = (
    "step", "source", "task", "split", "metric", "value", "std", "features", "resize", "generated", "reference", "seed",
)  # fmt: skip
_PLOT_SECONDS = 10.0  # least time between two drawings of losses.png, ...
_PLOT_SHARE = 0.02  # ... and largest share of the time that they take

Options = TypeVar("Options")


def describe_environment(device: torch.device, precision: str) -> dict[str, Any]:
    """Return the command line, versions, device, precision and git commit of this process, as plain types."""
    root = Path(__file__).parent
    commit = None
    try:
        git = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
        top, head = subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.split("\n")[:2]
        commit = head if Path(top).resolve() == root.resolve() else None
    except (OSError, subprocess.SubprocessError, ValueError):
        pass  # no git, or no repository: the code came as an archive
    return {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.argv],
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "pillow": Image.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": precision,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "processes": count_processes(),
        "process": os.getpid(),
        "host": platform.node(),
        "launch": launch(),
        "git_commit": commit,
    }


# What a run that goes on must share with the one that began, to equal one that never stopped to the last bit.
_EXACT = ("torch", "device", "precision", "cpu", "threads", "processes")
_WHERE = {"name", "checkpoint_dir", "resume"}  # options that say where a run is


class Run:
    """One run folder, open for writing. Make one with `Run.create` or `Run.find`.

    Attributes:
        folder: the run folder.
        samples: the folder of its grids.
        resumed_step: iteration of the checkpoint that it goes on from; None for a run from the start.
        rows: the rows of losses.csv, column -> number.
        metrics: the rows of metrics.csv.
    """

    def __init__(self, folder: Path, options: Any, script: str):
        self.folder, self.script = folder, script
        self.resumed_step: int | None = None
        self.samples = Path(options.sample_dir).resolve() / folder.name if options.sample_dir else folder / "samples"
        self.rows: list[dict[str, float]] = []
        self.metrics: list[dict[str, str]] = []
        self._lock = None
        self._whole: set[Path] = set()  # checkpoints that are known to be whole
        self._made: list[Path] = []  # folders that were not there before the run, those inside others first
        self._writer = None
        self._excepthook: Any = None  # what showed the errors of threads before
        self._next_plot = time.monotonic() + _PLOT_SECONDS

    # ---- Opening and closing

    @classmethod
    def create(cls, options: Any, script: str) -> "Run":
        """Make a new run folder in options.checkpoint_dir.

        Args:
            options: an options dataclass; its `name` names the folder. The default is made of the script, what
                `name_parts` returns, and a number above that of every folder with the same beginning.
            script: file name of the training script, for messages and for `find`.

        Of several processes the first makes it, and the others get an `Onlooker`.

        Raises:
            UserError: the folder exists, or can't be made or written to.
        """
        if rank() > 0:
            return Onlooker(Path(tell_all(None)), options, script)
        parent = Path(options.checkpoint_dir)
        stem = "-".join([script.removesuffix(".py"), *options.name_parts()])
        stem = re.sub(r"[^\w.,=+ -]", "_", stem)[:60]  # a folder of images may have any name
        cls._refuse_taken_name(options)
        made = _missing(parent)
        try:
            make_folder(parent)
            while True:
                folder = parent / options.name if options.name is not None else cls._next_folder(parent, stem)
                try:
                    folder.mkdir()
                    sync(parent)
                    break
                except FileExistsError:  # another run was faster: take the next number, or refuse the name
                    cls._refuse_taken_name(options)
        except OSError as error:
            _remove_empty(made)
            raise UserError(
                f"--checkpoint_dir: no run folder can be made in {parent} ({error.strerror}); use a folder that "
                "you can write to"
            ) from None
        run = cls(folder, options, script)
        run._made = [folder, *made]
        try:
            run.save_options(options)
            run._made = [*_missing(run.samples), *run._made]
            make_folder(run.samples.parent)
            run.samples.mkdir()
            sync(run.samples.parent)
        except (OSError, UserError) as error:
            run.discard()
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"--sample_dir: {error.filename or folder}: {error.strerror}; use another folder or --name"
            ) from None
        tell_all(str(folder))
        return run

    @staticmethod
    def _next_folder(parent: Path, stem: str) -> Path:
        """Return `<stem>-<number>`, one above the highest number that is taken."""
        pattern = re.compile(re.escape(stem) + r"-(\d+)")
        taken = [int(match[1]) for path in parent.iterdir() if (match := pattern.fullmatch(path.name))]
        return parent / f"{stem}-{max(taken, default=0) + 1:03d}"

    @staticmethod
    def _refuse_taken_name(options: Any) -> None:
        """Raise UserError if the folder that options.name asks for exists, or no run folder can be made at all."""
        parent = Path(options.checkpoint_dir)
        while not os.path.lexists(parent) and parent != parent.parent:
            parent = parent.parent
        if not (parent.is_dir() and os.access(parent, os.W_OK)):
            raise UserError(f"--checkpoint_dir: {parent} is no folder that you can write to; use another")
        folder = Path(options.checkpoint_dir) / (options.name or "")
        if options.name is not None and os.path.lexists(folder):
            raise UserError(f"--name: {folder} exists; use --resume {folder} to go on with it, or another name")

    @classmethod
    def find(cls, request: Options, script: str) -> tuple["Run | None", Options]:
        """Return the run that a command resumes, with its own options changed by the command's flags.

        Without `--resume` there is none: returns None and the request, whose name must be free. But when torchrun
        starts its processes anew after one has died, they resume what they began.

        Raises:
            UserError: a name that is taken, no such run, the run of another script, or a flag that may not differ.
        """
        if request.resume is None and restarts():
            request = dataclasses.replace(request, resume=cls._find_begun(request, script))
        if request.resume is None:
            cls._refuse_taken_name(request)
            return None, request.with_absolute_folders()
        folder = Path(request.resume or Path(request.checkpoint_dir) / request.name)
        if not os.path.exists(folder) and os.path.exists(Path(request.checkpoint_dir) / folder):
            folder = Path(request.checkpoint_dir) / folder  # the run was named without its parent
        try:
            saved = json.loads((folder / "options.json").read_text(encoding="utf-8"))
            saved_script, values, samples = saved["script"], saved["options"], saved["samples"]
        except (OSError, ValueError, KeyError, TypeError):
            example = Path(request.checkpoint_dir) / "NAME"
            raise UserError(
                f"--resume: {folder} is no run folder (it has no readable options.json); give one, such as {example}"
            ) from None
        if saved_script != script:
            raise UserError(f"--resume: {folder} is a run of {saved_script}; use that script")
        folder = folder.resolve() if folder.name in ("", "..") else folder  # "." and ".." have no name of their own
        if "name" in request.given and request.name != folder.name:
            raise UserError(f"--name: the run to resume is called {folder.name}, not {request.name}; leave --name out")
        try:
            options = type(request).from_dict(values).resumed_with(request)
            # The folder may have been moved or renamed since.
            where = {"name": folder.name, "checkpoint_dir": str(folder.parent), "resume": str(folder)}
            options = dataclasses.replace(options, **where).with_absolute_folders()
            options.check()
            options.check_together()
        except (ValueError, TypeError) as error:
            raise UserError(f"--resume {folder}: {error}") from None
        # Where `auto` chose float32 the run keeps it: it must not lose digits on its way to a newer CPU.
        starts = _read_starts(folder)
        if "amp" not in request.given and options.amp == "auto" and starts and _precision(starts[-1]) == "float32":
            options = dataclasses.replace(options, amp="off")
        run = (cls if rank() == 0 else Onlooker)(folder, options, script)
        run.samples = folder / samples  # where they have been: a run that was renamed keeps a folder of --sample_dir
        return run, options

    @staticmethod
    def _find_begun(request: Any, script: str) -> str | None:
        """Return the run folder that this launch of torchrun began with the same options, before it started anew."""
        asked, begun = request.with_absolute_folders().to_dict(), {}
        for folder in Path(request.checkpoint_dir).glob(glob.escape(request.name) if request.name else "*"):
            with contextlib.suppress(UserError, OSError, LookupError, TypeError, AttributeError):  # no run of ours
                newest, saved = _read_starts(folder)[-1], _read_json(folder / "options.json")
                same = all(saved["options"][key] == asked[key] for key in asked.keys() - _WHERE)
                if same and saved["script"] == script and is_launch(newest["launch"]):
                    begun[newest["started"]] = str(folder)
        return begun[max(begun)] if begun else None  # the name of a launch may have been given before

    def start(self, options: Any, device: torch.device, precision: str) -> None:
        """Record options and environment of this start, and open the logs. Call it once, before training.

        Says what is no longer as it was, so that a run that goes on may differ from one that never stopped.

        Args:
            precision: of the networks' passes, such as "bfloat16".
        """
        make_folder(self.samples)
        self.save_options(options)
        starts, now = _read_starts(self.folder), describe_environment(device, precision)
        write_json(self.folder / "environment.json", [*starts, now])
        if starts and _precision(starts[-1]):
            starts[-1]["precision"] = _precision(starts[-1])
        changed = [key for key in _EXACT if starts and starts[-1].get(key, now[key]) != now[key]]
        if self.resumed_step is not None and changed:
            differences = ", ".join(f"{key} {starts[-1][key]} became {now[key]}" for key in changed)
            self.say(f"Note: {differences}: from here on the run may differ, by rounding, from one that never stopped")
        elif self.resumed_step is not None and device.type != "cpu" and not now["deterministic"]:
            self.say("Note: without --deterministic the run may differ, by rounding, from one that never stopped")

        # TensorBoard writes in a thread of its own and raises the errors of that thread in this one, too.
        tell = self._excepthook = threading.excepthook
        threading.excepthook = lambda about: None if isinstance(about.exc_value, OSError) else tell(about)
        from torch.utils.tensorboard import SummaryWriter  # here, because it takes its time to import

        # What TensorBoard has after the checkpoint will come again.
        purge_step = None if self.resumed_step is None else self.resumed_step + 1
        self._writer = SummaryWriter(str(self.folder), purge_step=purge_step)

    def __enter__(self) -> "Run":
        """Take the lock of the run, which lasts as long as this process. Raises UserError if another one has it."""
        if fcntl is None:
            return self
        with contextlib.suppress(OSError):  # a file system without locks, or to read only
            self._lock = open(self.folder / "log.txt", "a", encoding="utf-8")  # the one file that is never replaced
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                newest = (_read_starts(self.folder) or [{}])[-1]
                holder = f"process {newest.get('process', '?')} on {newest.get('host', '?')}"
                raise UserError(f"--resume: {self.folder} is in use by {holder}; wait for it, or stop it") from None
            for path in [*self.folder.glob(".*.tmp"), *self.samples.glob(".*.tmp")]:  # of a process that was killed
                if not path.name.startswith((".evaluation", ".nearest")):  # evaluate.py may be at work here
                    path.unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        """Finish the logs, say in log.txt what ended a run whose numbers were no longer finite, and free the lock."""
        try:
            if isinstance(error, NonFiniteError):
                self.log(f"Stopped: {error}")
            if self._writer is not None:
                self._writer.close()
        except (OSError, UserError):
            if error is None:
                raise
        finally:
            if self._excepthook is not None:
                threading.excepthook = self._excepthook
            if self._lock is not None:
                self._lock.close()

    def discard(self) -> None:
        """Remove what this process has made for a new run in which no step was taken, so that its name is free again.

        A run that goes on stays as it is.
        """
        if self._writer is not None:
            self._writer.close()
        for folder in {self.samples, self.folder} & {*self._made}:
            shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(self._made)

    def save_options(self, options: Any) -> None:
        """Write options.json."""
        samples = self.samples if self.samples.parent != self.folder else self.samples.name
        content = {"script": self.script, "samples": str(samples), "options": options.to_dict()}
        write_json(self.folder / "options.json", content)

    def record_data(self, data: dict[str, Any]) -> None:
        """Write data.json; when the run goes on, compare with it instead.

        Args:
            data: domain -> its images: paths `files` to train on, `test`, and `skipped` with the reason for each.

        Raises:
            UserError: the images are not those that the run began with.
        """
        path = self.folder / "data.json"
        content = {
            domain: {
                "folder": str(images.files[0].parent.resolve()),
                "train": {file.name: file.stat().st_size for file in images.files},
                "test_folder": str(images.test[0].parent.resolve()) if images.test else None,
                "test": [file.name for file in images.test],
                "skipped": {f"{file.parent.name}/{file.name}": why for file, why in images.skipped.items()},
            }
            for domain, images in data.items()
        }
        if not path.exists():
            return write_json(path, content)
        recorded = _read_json(path)
        if isinstance(recorded, dict) and "train" in recorded:
            recorded = {"images": recorded}  # an early format
        if not isinstance(recorded, dict) or recorded.keys() != content.keys():
            raise UserError(f"{path} doesn't list the images of {', '.join(content)}; put it back, or start a new run")
        for domain, before in recorded.items():
            now = content[domain]
            old, new = before["train"], now["train"]
            differences = {
                "new": new.keys() - old.keys(),
                "gone": old.keys() - new.keys(),
                "of another size": {name for name in old.keys() & new.keys() if old[name] != new[name]},
                "no longer or newly to test on": {*before["test"]} ^ {*now["test"]},
            }
            lines = [
                f"{len(names)} {how} ({few(sorted(map(str, names)))})" for how, names in differences.items() if names
            ]
            if lines:
                raise UserError(
                    f"--resume: the images in {now['folder']} are not those that the run began with: "
                    f"{', '.join(lines)}. Make them what they were, or start a new run"
                )

    # ---- Logs

    def say(self, text: str) -> None:
        """Print a line, which may name any folder, above the progress bar if there is one; keep it in log.txt."""
        text = printable(text)
        with contextlib.suppress(OSError):  # a terminal that was closed, or a pipe, must not end a training
            tqdm.write(text)
        self.log(text)

    def log(self, text: str) -> None:
        """Add a line to log.txt."""
        append(self.folder / "log.txt", text + "\n")

    def add_losses(self, step: int, losses: dict[str, float], lr: float) -> None:
        """Add a row to losses.csv and to TensorBoard."""
        row = {"step": step, **losses, "lr": lr}
        path = self.folder / "losses.csv"
        header = "" if path.exists() else ",".join(row) + "\n"
        values = [f"{value:.6g}" if key != "step" else str(step) for key, value in row.items()]
        append(path, header + ",".join(values) + "\n")
        self.rows.append(dict(zip(row, map(float, values), strict=True)))  # as a run that goes on reads them
        self._board("add_scalar", {**{f"losses/{name}": value for name, value in losses.items()}, "lr": lr}, step)

    def _board(self, method: str, values: dict[str, Any], step: int) -> None:
        """Give values to TensorBoard, by a method of SummaryWriter."""
        try:
            for name, value in values.items():
                getattr(self._writer, method)(name, value, step)
        except OSError as error:
            raise name_trouble(Path(self._writer.file_writer.event_writer._file_name), error, 0) from None

    def add_metrics(self, step: int, rows: list[dict[str, Any]]) -> bool:
        """Add an evaluation while training to metrics.csv and TensorBoard; return whether it is the best so far."""
        rows = [{"step": step, "source": "training", **row} for row in rows]
        append_metrics(self.folder, rows)
        self.metrics = read_metrics(self.folder)
        for row in rows:
            name = "/".join(filter(None, ["metrics", row["task"], row["split"], row["metric"]]))
            self._board("add_scalar", {name.replace(" ", "_"): row["value"]}, step)
        name, scores = find_scores(self.metrics)
        now = statistics.mean(scores[step].values())
        is_best = all(now < statistics.mean(of.values()) for at, of in scores.items() if at != step)
        self.say(f"Iteration {step}: {name} {now:.4g}" + (f", the best so far: {BEST}" if is_best else ""))
        return is_best

    def _cut_metrics(self, step: int) -> None:
        """Drop what was measured while training after `step`, and a torn last row: it will be measured again."""
        path = self.folder / "metrics.csv"
        kept = [row for row in read_metrics(self.folder) if row["source"] != "training" or int(row["step"]) <= step]
        self.metrics = kept
        if path.exists() and check_metrics(self.folder) != ",".join(METRICS) + "\n" + _as_csv(kept):
            write_bytes(path, (",".join(METRICS) + "\n" + _as_csv(kept)).encode())

    def has_losses(self) -> bool:
        """Whether losses.csv and losses.png have anything to show."""
        return bool(self.rows)

    def _cut_losses(self, step: int) -> None:
        """Drop the rows of losses.csv after `step`, and a torn last one: they will be computed again."""
        path = self.folder / "losses.csv"
        if not path.exists():
            return
        header, *rows = [line.split(",") for line in path.read_text(encoding="utf-8", errors="replace").split("\n")]
        if not rows or header[0] != "step":  # the crash came before the first line was whole
            return path.unlink()
        kept = [row for row in rows if len(row) == len(header) and row[0].isdecimal() and int(row[0]) <= step]
        text = "".join(",".join(row) + "\n" for row in [header, *kept])
        write_bytes(path, text.encode())
        self.rows = [{key: float(value) for key, value in zip(header, row, strict=True)} for row in kept]

    def _last_row(self) -> int:
        """Return the iteration of the last row of losses.csv; 0 if there is none."""
        path = self.folder / "losses.csv"
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
        return max((int(line.split(",")[0]) for line in lines if line.split(",")[0].isdecimal()), default=0)

    def plot_losses(self, panels: dict[str, list[str]], now: bool = False) -> None:
        """Draw losses.png, now or, if the last drawing was not long ago, not at all.

        Args:
            panels: title of each panel -> the losses that it shows.
        """
        started = time.monotonic()
        if not self.rows or not (now or started >= self._next_plot):
            return
        figure = draw_losses(self.rows, panels, self.folder.name, *find_scores(self.metrics))
        drawn = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # the run may be named in letters that the font has not
            figure.savefig(drawn, format="png", dpi=100)
        write_bytes(self.folder / "losses.png", drawn.getvalue())
        figure = None
        gc.collect()  # a figure is full of cycles: dozens would pile up, megabytes each, before Python looks for them
        finished = time.monotonic()
        self._next_plot = finished + max(_PLOT_SECONDS, (finished - started) / _PLOT_SHARE)

    def save_grid(self, name: str, step: int, grid: Tensor) -> Path:
        """Write a uint8 image (3, H, W) to samples/ and to TensorBoard; return its path.

        The step follows the first word of the name: "sample-X-Y" at 200 is sample-000200-X-Y.png.
        """
        first, *rest = name.split("-")
        path = self.samples / ("-".join([first, f"{step:06d}", *rest]) + ".png")
        write_bytes(path, _to_png(grid))
        self._board("add_image", {name: grid}, step)
        return path

    # ---- Checkpoints

    def save_checkpoint(self, step: int, content: dict[str, Any], name: str | None = None) -> Path:
        """Write checkpoint-<step>.pt: `content`, of tensors and plain types, with the format, script and step.

        Args:
            name: of the file, if it is another one.
        """
        for log in ("losses.csv", "metrics.csv"):  # a checkpoint must not outlive the logs that it belongs to
            if (self.folder / log).exists():
                sync(self.folder / log)
        path = self.folder / (name or f"checkpoint-{step:06d}.pt")
        write_bytes(path, seal({"format": FORMAT, "script": self.script, "step": step, **content}))
        self._whole.add(path)
        return path

    def prune_checkpoints(self, keep: int) -> None:
        """Delete all checkpoints that are older than the newest `keep` whole ones."""
        checkpoints = list_checkpoints(self.folder)
        whole = 0
        for step, path in checkpoints if checkpoints[keep:] else ():
            if whole == keep:
                path.unlink(missing_ok=True)
            elif path in self._whole or self._is_whole(path, step):
                whole += 1

    def _is_whole(self, path: Path, step: int) -> bool:
        """Whether a checkpoint can be read."""
        try:
            _read_file(path, step)
        except Exception:  # torch.load has no one exception for a broken file
            return False
        self._whole.add(path)
        return True

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the newest complete checkpoint, on the CPU, and cut losses.csv back to its step.

        A run that ended before its first checkpoint has none: returns None, and the run starts over.

        Raises:
            UserError: none is complete, or the newest is of a newer program.
        """
        if not list_checkpoints(self.folder):
            if (self.folder / BEST).exists() and self._last_row() > _read_file(self.folder / BEST)["step"]:
                raise UserError(
                    f"--resume: the checkpoints of {self.folder} are gone, all but {BEST}; put them back, or start a "
                    "new run"
                )
            self._cut_metrics(0)
            return self._cut_losses(0)
        content = read_checkpoint(self.folder, warn=self.say)
        self._cut_losses(content["step"])
        self._cut_metrics(content["step"])
        self.resumed_step = content["step"]
        return content


class Onlooker(Run):
    """A run folder as the processes beside the first have it: they read from it and write nothing."""

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        pass

    discard = start = save_options = record_data = say = log = add_losses = add_metrics = __exit__ = _nothing
    _cut_losses = _cut_metrics = plot_losses = save_grid = save_checkpoint = prune_checkpoints = _nothing

    def __enter__(self) -> "Run":
        return self


def _read_json(path: Path) -> Any:
    """Return the content of a JSON file of a run. Raises UserError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); put it back, or start a new run") from None


def _read_starts(folder: Path) -> list[dict[str, Any]]:
    """Return the starts of a run that environment.json lists; none if there is no such file."""
    path = folder / "environment.json"
    starts = _read_json(path) if path.exists() else []
    if not (isinstance(starts, list) and all(isinstance(start, dict) for start in starts)):
        raise UserError(f"{path} is no list of starts; put it back, or start a new run")
    return starts


def _precision(start: dict[str, Any]) -> str | None:
    """Return the precision of a start. Early ones didn't note it: it was float32 on CPUs, and is unknown elsewhere."""
    return start.get("precision", "float32" if start.get("device") == "cpu" else None)


def _missing(folder: Path) -> list[Path]:
    """Return which of a folder and those that it lies in are not there, from the inside out."""
    return [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def _remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders that are there and empty, in this order."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of every checkpoint in a run folder, the newest first."""
    matches = [(re.fullmatch(r"checkpoint-(\d+)\.pt", path.name), path) for path in folder.iterdir()]
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def is_run(where: Path) -> bool:
    """Whether `where` is a run folder, or a file that may be a checkpoint."""
    return where.is_file() or (where / "options.json").is_file() or (where.is_dir() and bool(list_checkpoints(where)))


def _as_csv(rows: list[dict[str, Any]]) -> str:
    """Return rows of metrics.csv as text, one line each."""

    def cell(value: Any) -> Any:
        if isinstance(value, float):
            return f"{value:.6g}"
        if isinstance(value, str):  # a folder may have any name
            return re.sub(r"[\x00-\x1f\x7f]", "?", value.encode(errors="backslashreplace").decode())
        return value

    text = io.StringIO()
    writer = csv.DictWriter(text, METRICS, lineterminator="\n")
    writer.writerows({key: cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def check_metrics(folder: Path) -> str:
    """Return the text of metrics.csv in a folder, "" if there is none. Raises UserError if it has other columns."""
    path = folder / "metrics.csv"
    text = path.read_bytes().decode(errors="replace").replace("\r\n", "\n") if path.exists() else ""
    header = ",".join(METRICS) + "\n"
    if not (text.startswith(header) or header.startswith(text)):  # the second: a crash came before the first line ended
        raise UserError(f"{path} has other columns than those of this program; move it away")
    return text


def read_metrics(folder: Path) -> list[dict[str, str]]:
    """Return the whole rows of metrics.csv in a folder. Raises UserError if it has other columns."""
    lines = check_metrics(folder).split("\n")[1:-1]
    rows = [next(csv.reader([line]), []) for line in lines]  # each by itself: a torn one must not swallow the next
    return [dict(zip(METRICS, row, strict=True)) for row in rows if len(row) == len(METRICS)]


def append_metrics(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Add rows to metrics.csv, in one piece; return its path. Raises UserError if it has other columns."""
    path, before = folder / "metrics.csv", check_metrics(folder)
    header = ",".join(METRICS) + "\n"
    start = header[len(before) :] or ("" if before.endswith("\n") else "\n")  # after a row that a crash has torn
    append(path, start + _as_csv(rows))
    return path


def find_scores(metrics: list[dict[str, str]]) -> tuple[str, dict[int, dict[str, float]]]:
    """Return the metric that counts in the evaluations while training: its name, and step -> task -> value.

    It is that of the first row of the newest evaluation, in the same split and features; less is better.
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


def save_evaluation(
    folder: Path,
    step: int,
    features: str,
    about: dict[str, Any],
    rows: list[dict[str, Any]],
    pictures: dict[str, Tensor],
) -> list[Path]:
    """Keep an evaluation by evaluate.py: rows in metrics.csv, all of it as JSON, pictures; return their paths.

    Args:
        features: what images were compared in; part of the names.
        about: what was measured.
        pictures: task -> uint8 (3, H, W) of generated images beside the nearest real ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"step": step, "source": "evaluate.py", **row} for row in rows]
    content = {**about, "step": step, "rows": rows}
    for number in itertools.count(1):  # the same evaluation again replaces itself, another one takes another name
        stem = f"{step:06d}-{features}" + (f"-{number}" if number > 1 else "")
        written = [folder / f"evaluation-{stem}.json"]
        if not written[0].exists():
            break
        with contextlib.suppress(UserError):  # a damaged one is another one
            if _read_json(written[0]) == content:
                break
    table = append_metrics(folder, rows)  # first, as it may be refused
    write_json(written[0], content)
    for task, picture in pictures.items():
        name = f"nearest-{stem}" + (f"-{task[0]}-{task[-1]}" if "2" in task else "") + ".png"
        write_bytes(folder / name, _to_png(picture))
        written.append(folder / name)
    return [*written, table]


def _to_png(picture: Tensor) -> bytes:
    """uint8 (3, H, W) -> a PNG file."""
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, format="PNG")
    return file.getvalue()


_DIGEST = 64  # characters of a SHA-256


def seal(content: dict[str, Any]) -> memoryview:
    """Return a checkpoint file: what torch.save makes, with the SHA-256 of it as the comment of the zip archive.

    torch.load doesn't notice a byte that has changed, and the archive's own checksums don't cover all bytes.
    """
    file = io.BytesIO()
    torch.save(content, file)
    with file.getbuffer() as data:
        data[-2:] = _DIGEST.to_bytes(2, "little")  # the length of the comment ends the archive
        digest = hashlib.sha256(data).hexdigest().encode()
    file.seek(0, io.SEEK_END)
    file.write(digest)
    return file.getbuffer()


def _is_sealed(data: bytes) -> bool:
    """Whether a file is what `seal` made, to the last bit."""
    return hashlib.sha256(memoryview(data)[:-_DIGEST]).hexdigest().encode() == data[-_DIGEST:]


def _read_file(path: Path, step: int | None = None) -> dict[str, Any]:
    """Return the content of a checkpoint file, on the CPU; raise whatever a damaged one leads to.

    Args:
        step: that its name says.

    Raises:
        UserError: it is of a newer program.
    """
    data = path.read_bytes()
    is_sealed = _is_sealed(data)
    if not is_sealed:  # damaged, or of format 1
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} is damaged")
    content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    version = content["format"]
    if version > FORMAT:
        raise UserError(f"{path} has format {version}, this program reads {FORMAT}; update it")
    if version > 1 and not is_sealed:
        raise ValueError("it is damaged")
    if step not in (None, content["step"]):
        raise ValueError(f"it is of iteration {content['step']}")
    return content


def find_differences(expected: dict[str, Any], found: Any, name: str) -> list[str]:
    """Return how a state dict differs from the expected one, in names, shapes, types, or by numbers that aren't finite.

    Args:
        expected, found: name -> tensor. Other values are not compared.
        name: of the network, for the lines that are returned.
    """
    if not isinstance(found, dict):
        return [f"{name} is missing"]
    lines = [f"{name}.{key} is missing" for key in expected.keys() - found.keys()]
    lines += [f"{name}.{key} is unknown" for key in found.keys() - expected.keys()]
    for key in expected.keys() & found.keys():
        old, new = expected[key], found[key]
        if not isinstance(old, Tensor):
            continue
        if not isinstance(new, Tensor) or new.shape != old.shape or new.dtype != old.dtype:
            is_like = [
                f"{tuple(one.shape)} {one.dtype}" if isinstance(one, Tensor) else type(one) for one in (new, old)
            ]
            lines.append(f"{name}.{key} is {is_like[0]}, not {is_like[1]}".replace("torch.", ""))
        elif not new.isfinite().all():
            lines.append(f"{name}.{key} is not finite")
    return sorted(lines)


def _raise_what_is_no_damage(path: Path, error: Exception) -> None:
    """Raise an error again that says nothing about the file: a newer program's, too little memory, a failing disk."""
    if isinstance(error, OSError) and error.errno is not None:
        raise UserError(f"{path} can't be read now ({error.strerror}); mend that, and try again") from None
    if isinstance(error, UserError | MemoryError) or "can't allocate memory" in str(error):
        raise error


def _in_one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def read_checkpoint(where: Path, warn: Callable[[str], None], which: str = "newest") -> dict[str, Any]:
    """Return a checkpoint, on the CPU. Changes nothing.

    Args:
        where: run folder, or a checkpoint file.
        warn: gets a line for each checkpoint that is not readable, if one before it may serve.
        which: of a run folder: "newest" takes the newest complete one, "best" the one of the best evaluation while
            training, and a number that of this iteration.

    Raises:
        UserError: no such checkpoint, none that is complete, or one of a newer program.
    """
    if where.is_dir() and which == "newest":
        checkpoints = list_checkpoints(where)
        for step, path in checkpoints:
            try:
                return _read_file(path, step)
            except Exception as error:  # torch.load has no one exception for a broken file
                _raise_what_is_no_damage(path, error)
                rest = "; trying the one before" if (step, path) != checkpoints[-1] else ""
                warn(f"Warning: {path} is not readable ({_in_one_line(error)}){rest}")
        raise UserError(f"{where} holds no complete checkpoint; take another run, or start a new one")
    path = where
    if where.is_dir():
        steps = {str(step): path for step, path in list_checkpoints(where)}
        name = which.lstrip("0")
        if which != "best" and name not in steps:
            has = ", ".join(reversed(steps)) or "none"
            raise UserError(f"--checkpoint: {which} is not there; {where} has newest, best or one of: {has}")
        path = where / BEST if which == "best" else steps[name]
    if not path.is_file():
        remedy = "it appears when training with --eval_every" if path.name == BEST else "give a run folder or a file"
        raise UserError(f"{path}: there is no such checkpoint; {remedy}")
    try:
        return _read_file(path)
    except Exception as error:
        _raise_what_is_no_damage(path, error)
        raise UserError(f"{path} is no checkpoint that can be read ({_in_one_line(error)}); give another") from None


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return the centered moving average over a tenth of a curve, at its ends over what there is; short ones as is."""
    width = len(values) // 20 * 2 + 1
    kernel = np.ones(min(width, 2 * len(values) - 1))
    half = len(kernel) // 2
    return (np.convolve(values, kernel) / np.convolve(np.ones_like(values), kernel))[half : half + len(values)]


def draw_losses(
    rows: list[dict[str, float]],
    panels: dict[str, list[str]],
    title: str,
    score_name: str = "",
    scores: dict[int, dict[str, float]] | None = None,
) -> Any:
    """Return a matplotlib figure of the rows of losses.csv, a panel per title: raw values faint, smoothed strong.

    Args:
        score_name, scores: of evaluations, step -> task -> value, for a panel of their own.
    """
    from matplotlib.figure import Figure  # here, because it takes its time to import

    steps = np.array([row["step"] for row in rows])
    panels = {panel: [name for name in names if name in rows[0]] for panel, names in panels.items()}
    count = len(panels) + bool(scores)
    height = 0.6 + 4.2 * count  # inches
    figure = Figure(figsize=(9, height))
    # Fixed margins, with room for the legends: to fit them to the text takes as long as the drawing itself.
    figure.subplots_adjust(left=0.08, right=0.8, top=1 - 0.7 / height, bottom=0.5 / height, hspace=0.25)
    figure.suptitle(title, fontsize=11, y=1 - 0.15 / height, parse_math=False)
    subplots = list(figure.subplots(count, squeeze=False)[:, 0])
    for axes, (panel, names) in zip(subplots[: len(panels)], panels.items(), strict=True):
        ceiling = 0.0
        for i, name in enumerate(names):
            values = np.array([row[name] for row in rows])
            smooth = _smooth(values)
            axes.plot(steps, values, color=f"C{i}", alpha=0.25, linewidth=0.8)
            axes.plot(steps, smooth, color=f"C{i}", linewidth=2, label=name.replace("_", " "))
            ceiling = max(ceiling, float(np.quantile(values, 0.99)), float(smooth.max()))
        floor = min(0.0, min(row[name] for row in rows for name in names))
        axes.set_ylim(floor, 1.1 * ceiling if ceiling > floor else None)  # a few early spikes must not flatten the rest
        axes.set(xlabel="iteration", ylabel="loss", title=panel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    if scores:
        axes = subplots[-1]
        tasks = list(scores[max(scores)])
        for task in tasks:
            values = [(step, of[task]) for step, of in sorted(scores.items()) if task in of]
            axes.plot(*zip(*values, strict=True), marker=".", label=task if len(tasks) > 1 else "samples")
        best = min(scores, key=lambda step: statistics.mean(scores[step].values()))
        axes.axvline(best, color="black", alpha=0.4, linestyle=":", label=f"best: {best}")
        values = [value for of in scores.values() for value in of.values()]
        axes.set(
            xlabel="iteration",
            title=score_name,
            ylim=(min(0.0, *values), 1.1 * max(values) if max(values) > 0 else None),
        )
        axes.set_xlim(subplots[0].get_xlim())
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure
