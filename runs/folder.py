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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from runs.checkpoints import BEST, list_checkpoints, prune_checkpoints, read_checkpoint, read_newest, write_checkpoint
from runs.logs import TRACKER, LogFile, RunLogs
from runs.new_run import clear_unused, default_stem, make_numbered_folder, refuse_taken_name
from runs.records import describe_changes, describe_environment, read_images, read_sessions, why_inexact
from runs.tables import last_logged_step
from runs.trackers import TRACKERS
from system.files import make_durable_folder, read_json, write_json
from system.processes import broadcast, main_process_only, rank
from utils import LOG, NonFiniteError, UserError

if TYPE_CHECKING:
    import torch

    from options.common import CommonOptions


class Run:
    """One run folder. `open_run` makes it; as a context it makes the folder if it is new, and holds its lock.

    It keeps the messages since it was made, and writes them to log.txt when it changes the run: in `begin_session`.

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
        self._log_file = LogFile.attach()
        self._resources.callback(LOG.removeHandler, self._log_file)
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
        """Make the folder if the run is new, and take the lock."""
        if self._is_new:
            self._make_folder()
        self._take_lock()
        if self._is_new:
            refuse_taken_name(self._options)  # again: another process may have been faster
            clear_unused(self.folder)
            make_durable_folder(self.samples)
            self.save_options(self._options)

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

    @property
    def recorded_images(self) -> dict[str, dict[str, Any]] | None:
        """The images that a resumed run began with, by domain, as data.json lists them; None for a new run."""
        return None if self._is_new else read_images(self.folder, self._options)

    @main_process_only
    def record_data(self, data: dict[str, dict[str, Any]]) -> None:
        """Write data.json; if the run is resumed, compare with it, and write only in which folders the images are now.

        Args:
            data: domain -> what `ImageBatches.describe_data` returns.

        Raises:
            UserError: the images are not those that the run began with.
        """
        path, recorded = self.folder / "data.json", self.recorded_images
        if recorded is None:
            if not self._is_new and list_checkpoints(self.folder):
                LOG.warning("%s is missing, so the run now has the images that its folders hold today", path)
            return write_json(path, data)
        for domain, now in data.items():
            changes = describe_changes(recorded[domain], now)
            if changes:
                raise UserError(
                    f"--resume: the images in {now['folder']} are not those that the run began with: {changes}. "
                    "Restore the original images, or start a new run"
                )
        current = {
            domain: {**recorded[domain], "folder": now["folder"], "test_folder": now["test_folder"]}
            for domain, now in data.items()
        }
        if current != recorded:
            write_json(path, current)

    @main_process_only
    def record_moved_images(self) -> None:
        """Write to options.json which folders the images are in now, if they differ; all else in the file stays."""
        path = self.folder / "options.json"
        content, options = read_json(path), self._options
        folders = {name: getattr(options, name) for name in options.DATA_FLAGS}
        moved = {name: folder for name, folder in folders.items() if folder != content["options"].get(name)}
        if moved:
            write_json(path, {**content, "options": content["options"] | moved})
            self._log_file.open(self.folder / "log.txt")
            text = ", ".join(f"--{name} {folder}" for name, folder in moved.items())
            LOG.info("%s now says where the images are: %s", path, text)

    @property
    def starts_from_the_beginning(self) -> bool:
        """Whether there is no checkpoint to continue from."""
        return self._is_new or not list_checkpoints(self.folder)

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
    def begin_session(self, options: "CommonOptions", device: "torch.device", precision: str, reason: str = "") -> None:
        """Record options and environment of this session, and open the tracker, before training.

        Reports changes of the environment because of which results may differ from an uninterrupted run.

        Args:
            precision: of the forward passes, such as "bfloat16".
            reason: why this precision.
        """
        self._log_file.open(self.folder / "log.txt")
        make_durable_folder(self.samples)
        self.save_options(options)
        sessions, now = read_sessions(self.folder), describe_environment(device, precision, reason, options.threads)
        write_json(self.folder / "environment.json", [*sessions, now])
        if self.resumed_step is not None and sessions:
            changes = why_inexact(sessions[-1], now)
            if changes:
                LOG.info("Note: %s, so results may differ by rounding from an uninterrupted run", changes)
        with self.logs.continue_after_errors(TRACKER):
            self.logs.tracker = TRACKERS[options.tracker](self.folder, options.to_dict(), self.resumed_step)
        self._resources.callback(self.logs.close_tracker)

    @main_process_only
    def save_checkpoint(self, step: int, content: dict[str, Any], is_best: bool = False) -> None:
        """Write checkpoint-<step>.pt, or best.pt: `content`, of tensors and plain types, with script and step."""
        path = self.folder / (BEST if is_best else f"checkpoint-{step:06d}.pt")
        write_checkpoint(path, {"script": self.script, "step": step, **content})

    @main_process_only
    def prune_checkpoints(self, keep: int) -> None:
        """Delete all checkpoints older than the newest `keep` readable ones."""
        prune_checkpoints(self.folder, keep)
