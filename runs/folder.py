"""The run folder. Only this package knows its file names.

    checkpoints/<name>/
        options.json            every option, and the script
        environment.json        for each session: command line, versions, device, git commit
        data.json               the images trained on, held out and skipped
        log.txt                 what the terminal showed
        losses.csv              step, every loss, lr
        losses.png              the same as curves, and the evaluations while training
        metrics.csv             what evaluations measured, a row per number
        evaluation-000400-pixels.json   the same for one call of evaluate.py, with its protocol
        nearest-000400-pixels.png       generated images beside the nearest real ones; with two domains -X-Y, -Y-X
        samples/                real-000000.png, sample-000200.png; with two domains real-000000-X.png,
                                sample-000200-X-Y.png and so on
        checkpoint-000500.pt    everything that a run needs to continue
        best.pt                 the same, of the best evaluation while training
        events.out.tfevents.*   TensorBoard
        .lock                   locked by the process that trains

A file appears whole or not at all: it is written under a temporary name, flushed to disk, and then renamed. Only the
logs grow line by line; losses.csv and metrics.csv are cut back to the checkpoint when a run is resumed.
"""

import contextlib
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import torch

from runs.checkpoints import BEST, prune_checkpoints, read_checkpoint, read_newest, write_checkpoint
from runs.logs import LogFile, RunLogs
from runs.new_run import clear_unused, default_stem, make_numbered_folder, refuse_taken_name
from runs.records import describe_changes, describe_environment, read_sessions, why_inexact
from runs.tables import last_logged_step
from runs.trackers import TRACKERS
from system.files import make_durable_folder, read_json, write_json
from system.processes import broadcast, main_process_only, rank, restarts
from system.program import LineFormatter, set_up_log
from utils import LOG, NonFiniteError, UserError

if TYPE_CHECKING:
    from options.training import CommonOptions, Options

LOCATION_OPTIONS = {"name", "checkpoint_dir", "resume"}  # options that say where a run is


class Run:
    """One run folder. `open_run` makes it; as a context it makes the folder if it is new, and holds its lock.

    Attributes:
        folder: the run folder. The folder of a new run without a name is known only within the context.
        samples: the folder of its grids.
        resumed_step: iteration of the checkpoint that the run continues from; None for a run from the start.
        logs: its losses, metrics and grids.
    """

    def __init__(self, options: "CommonOptions", folder: Path | None = None, samples: Path | None = None):
        self.script = options.SCRIPT
        self.resumed_step: int | None = None
        self._options = options
        self._is_new = folder is None
        self._resources = contextlib.ExitStack()  # what `__exit__` closes: tracker, log.txt, lock
        if folder is None and options.name is not None:
            folder = Path(options.checkpoint_dir) / options.name
        if folder is not None:
            self._set_folder(folder, samples)

    def _set_folder(self, folder: Path, samples: Path | None = None) -> None:
        sample_dir = self._options.sample_dir
        default = Path(sample_dir).resolve() / folder.name if sample_dir else folder / "samples"
        self.folder, self.samples = folder, samples or default
        self.logs = RunLogs(self.folder, self.samples)

    def __enter__(self) -> "Run":
        """Make the folder of a new run; lock the folder until the end of the context or of this process.

        Raises:
            UserError: the folder cannot be made, or another process uses it.
        """
        try:
            if rank() == 0:
                self._open()
            folder = broadcast(str(self.folder) if rank() == 0 else None)
            if self._is_new and rank() > 0:
                self._set_folder(Path(folder))
        except BaseException:
            self._resources.close()
            raise
        return self

    def _open(self) -> None:
        """Make the folder if the run is new, take the lock, and write messages to log.txt from now on."""
        if self._is_new:
            self._make_folder()
        self._take_lock()
        if self._is_new:
            refuse_taken_name(self._options)  # again: another process may have been faster
            clear_unused(self.folder)
            make_durable_folder(self.samples)
            self.save_options(self._options)
        log_file = LogFile(self.folder / "log.txt")
        log_file.setFormatter(LineFormatter())
        LOG.addHandler(log_file)
        self._resources.callback(LOG.removeHandler, log_file)

    def _make_folder(self) -> None:
        """Make the folder of a new run, with its name or the next free number, and the folder of its grids."""
        parent = Path(self._options.checkpoint_dir)
        try:
            make_durable_folder(parent)
            if self._options.name is not None:
                make_durable_folder(self.folder)
            else:
                self._set_folder(make_numbered_folder(parent, default_stem(self._options)))
        except OSError as error:
            raise UserError(
                f"--checkpoint_dir: cannot make a run folder in {parent} ({error.strerror}); choose another folder"
            ) from None
        try:
            if self.samples.parent != self.folder:
                self._refuse_taken_samples()
            make_durable_folder(self.samples)
        except OSError as error:
            raise UserError(
                f"--sample_dir: {error.filename or self.samples}: {error.strerror}; use another folder or --name"
            ) from None

    def _refuse_taken_samples(self) -> None:
        """Raise FileExistsError if the folder of the grids is the run folder or contains files that are not ours."""
        if self.samples == self.folder.resolve():
            raise FileExistsError(0, "it is the run folder", str(self.samples))
        with contextlib.suppress(UserError, OSError, LookupError, TypeError):  # files of a run without a checkpoint
            if read_json(self.folder / "options.json")["samples"] == str(self.samples):
                return
        if self.samples.exists() and any(self.samples.iterdir()):
            raise FileExistsError(0, "it contains files", str(self.samples))

    def _take_lock(self) -> None:
        """Lock the folder, and delete the temporary files of a process that was killed."""
        lock = filelock.FileLock(self.folder / ".lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            last = (read_sessions(self.folder) or [{}])[-1]
            holder = f"process {last.get('process', '?')} on {last.get('host', '?')}"
            flag = "--name" if self._is_new else "--resume"
            raise UserError(f"{flag}: {self.folder} is in use by {holder}; wait for it, or stop it") from None
        except (OSError, NotImplementedError):  # a file system without locks, or read-only
            return
        self._resources.callback(lock.release)
        for path in [*self.folder.glob(".*.tmp"), *self.samples.glob(".*.tmp")]:
            if not path.name.startswith((".evaluation", ".nearest")):  # evaluate.py may be at work here
                path.unlink(missing_ok=True)

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        """Close the logs and free the lock. A loss that became NaN or infinite is also reported in log.txt."""
        if isinstance(error, NonFiniteError):
            with contextlib.suppress(OSError, UserError):  # a full disk
                LOG.debug("Stopped: %s", error)
        try:
            self._resources.close()
        except (OSError, UserError):
            if error is None:
                raise

    @main_process_only
    def save_options(self, options: "CommonOptions") -> None:
        """Write options.json."""
        samples = self.samples if self.samples.parent != self.folder else self.samples.name
        content = {"script": self.script, "samples": str(samples), "options": options.to_dict()}
        write_json(self.folder / "options.json", content)

    @main_process_only
    def record_data(self, data: dict[str, dict[str, Any]]) -> None:
        """Write data.json; compare with it instead if the run is resumed.

        Args:
            data: domain -> what `ImageBatches.describe_data` returns.

        Raises:
            UserError: the images are not those that the run began with.
        """
        path = self.folder / "data.json"
        if self._is_new or not path.exists():
            return write_json(path, data)
        recorded = read_json(path)
        if not isinstance(recorded, dict) or recorded.keys() != data.keys():
            raise UserError(f"{path} does not list the images of {', '.join(data)}; restore it, or start a new run")
        for domain, now in data.items():
            changes = describe_changes(recorded[domain], now)
            if changes:
                raise UserError(
                    f"--resume: the images in {now['folder']} are not those that the run began with: {changes}. "
                    "Restore the original images, or start a new run"
                )

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the newest readable checkpoint, on the CPU, and cut the logs back to its step.

        Returns None, and the run starts from the beginning, if it ended before its first checkpoint.

        Raises:
            UserError: none is readable, or the newest was written by a newer program.
        """
        content = read_newest(self.folder)
        if content is None and (self.folder / BEST).exists():
            if last_logged_step(self.folder) > read_checkpoint(self.folder, "best")["step"]:
                raise UserError(
                    f"--resume: the checkpoints of {self.folder} are missing, except {BEST}; restore them, or start a "
                    "new run"
                )
        if content is None and not self._is_new:
            LOG.info("%s has no checkpoint yet, so the run starts from the beginning", self.folder)
        self.logs.truncate(content["step"] if content is not None else 0)
        self.resumed_step = content["step"] if content is not None else None
        return content

    @main_process_only
    def begin_session(self, options: "CommonOptions", device: torch.device, precision: str) -> None:
        """Record options and environment of this session, and open the tracker, before training.

        Reports changes of the environment because of which results may differ from an uninterrupted run.

        Args:
            precision: of the forward passes, such as "bfloat16".
        """
        make_durable_folder(self.samples)
        self.save_options(options)
        sessions, now = read_sessions(self.folder), describe_environment(device, precision)
        write_json(self.folder / "environment.json", [*sessions, now])
        if self.resumed_step is not None and sessions:
            reason = why_inexact(sessions[-1], now)
            if reason:
                LOG.info("Note: %s, so results may differ by rounding from an uninterrupted run", reason)
        tracker = TRACKERS[options.tracker](self.folder, options.to_dict(), self.resumed_step)
        self._resources.callback(tracker.close)
        self.logs.tracker = tracker

    @main_process_only
    def save_checkpoint(self, step: int, content: dict[str, Any], is_best: bool = False) -> None:
        """Write checkpoint-<step>.pt, or best.pt: `content`, of tensors and plain types, with script and step."""
        path = self.folder / (BEST if is_best else f"checkpoint-{step:06d}.pt")
        write_checkpoint(path, {"script": self.script, "step": step, **content})

    @main_process_only
    def prune_checkpoints(self, keep: int) -> None:
        """Delete all checkpoints older than the newest `keep` readable ones."""
        prune_checkpoints(self.folder, keep)


# ----------------------------------------------------------------------------------------------------------------------
# New and resumed runs


def open_run(request: "Options") -> "tuple[Run, Options]":
    """Return the run that a command starts or resumes, and its options. Nothing is written before the run is entered.

    A resumed run has its own options, changed by the flags of the command.

    Raises:
        UserError: a name that is in use, no such run, a run of another script, or a flag that may not differ.
    """
    set_up_log()  # also for a `main` that is called from a notebook
    if request.resume is None and restarts():
        request = _resume_after_restart(request)
    if request.resume is None:
        refuse_taken_name(request)
        options = request.with_absolute_paths()
        return Run(options), options
    folder = Path(request.resume or Path(request.checkpoint_dir) / (request.name or ""))
    if not os.path.exists(folder) and os.path.exists(Path(request.checkpoint_dir) / folder):
        folder = Path(request.checkpoint_dir) / folder  # the run was given without its parent
    try:
        saved = json.loads((folder / "options.json").read_text(encoding="utf-8"))
        script, values, samples = saved["script"], saved["options"], saved["samples"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"--resume: {folder} is not a run folder (no readable options.json); use a run such as "
            f"{Path(request.checkpoint_dir) / 'NAME'}"
        ) from None
    if script != request.SCRIPT:
        raise UserError(f"--resume: {folder} is a run of {script}; use that script")
    folder = folder.resolve() if folder.name in ("", "..") else folder  # "." and ".." are not names
    if "name" in request.explicit and request.name != folder.name:
        raise UserError(f"--name: the run to resume is called {folder.name}, not {request.name}; leave --name out")
    try:
        options = type(request).from_dict(values).merge_resume_request(request)
        # The folder may have been moved or renamed since.
        location: dict[str, Any] = {"name": folder.name, "checkpoint_dir": str(folder.parent), "resume": str(folder)}
        options = dataclasses.replace(options, **location).with_absolute_paths()
        options.check()
        options.check_combinations()
    except (ValueError, TypeError) as error:
        raise UserError(f"--resume {folder}: {error}") from None
    # A run for which `auto` chose float32 keeps it: it must not lose digits on its way to a newer CPU.
    sessions = read_sessions(folder)
    if "amp" not in request.explicit and options.amp == "auto" and sessions:
        if sessions[-1].get("precision") == "float32":
            options = dataclasses.replace(options, amp="off")
    return Run(options, folder, folder / samples), options


def _resume_after_restart(request: "Options") -> "Options":
    """Return the request to resume the run of --name, if this is a restart by torchrun and the run has these options.

    Raises UserError without --name: nothing else tells which run the processes began.
    """
    if request.name is None:
        raise UserError("--name: missing, so torchrun cannot resume the run after a restart; use --resume RUN_FOLDER")
    folder = Path(request.checkpoint_dir) / request.name
    if not (folder / "options.json").is_file():
        return request
    saved, asked = read_json(folder / "options.json")["options"], request.with_absolute_paths().to_dict()
    is_same = all(
        saved.get(name) == asked[name] for name in asked.keys() - LOCATION_OPTIONS - {"amp"}
    )  # it may be fixed
    return dataclasses.replace(request, resume=str(folder)) if is_same else request
