"""Experiment trackers: they show losses, metrics and grids beside those of other runs."""

import io
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from system.files import describe_write_error
from utils import UserError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image


class Tracker(Protocol):
    """Records numbers and images of a run. Made with (run folder, options as a dict, step to resume at or None)."""

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Record numbers by name."""

    def image(self, name: str, png: bytes, step: int) -> None:
        """Record an image, given as the content of a PNG file."""

    def close(self) -> None:
        """Finish writing."""


def _open(png: bytes) -> "Image":
    from PIL import Image

    return Image.open(io.BytesIO(png))


class TensorBoardTracker:
    """Writes an events file into the run folder."""

    def __init__(self, folder: Path, config: dict[str, Any], resumed_step: int | None):
        from torch.utils.tensorboard import SummaryWriter  # here, because its import takes a while

        self._path = folder / "events.out.tfevents"  # TensorBoard adds to this name
        # TensorBoard hides the steps after the checkpoint: the run records them again.
        self._writer = SummaryWriter(str(folder), purge_step=0 if resumed_step is None else resumed_step + 1)
        # TensorBoard raises the errors of its own thread again in ours, so their traceback there is not needed.
        self._excepthook = threading.excepthook
        threading.excepthook = self._show_unless_from_disk

    def _show_unless_from_disk(self, error: Any) -> None:
        if not isinstance(error.exc_value, OSError):
            self._excepthook(error)

    def scalars(self, values: dict[str, float], step: int) -> None:
        try:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        except OSError as error:
            raise describe_write_error(self._path, error, 0) from None

    def image(self, name: str, png: bytes, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        # The writer's add_image would encode the image a second time.
        width, height = _open(png).size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        try:
            writer: Any = self._writer.file_writer
            writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
        except OSError as error:
            raise describe_write_error(self._path, error, 0) from None

    def close(self) -> None:
        try:
            self._writer.close()
        finally:
            threading.excepthook = self._excepthook


class WandbTracker:
    """Sends everything to Weights & Biases. With WANDB_MODE=offline everything stays in the run folder's wandb/."""

    def __init__(self, folder: Path, config: dict[str, Any], resumed_step: int | None):
        try:
            import wandb
        except ImportError:
            raise UserError("--tracker: wandb is not installed; pip install wandb, or use tensorboard") from None
        self._wandb = wandb
        # A resumed run continues its curves: W&B ignores the steps that it has already. A new run has a new identity,
        # even in the folder of another one. Folders are called <time>-<identity>.
        past = sorted(folder.glob("wandb/*run-*-*"), key=lambda path: path.name.partition("run-")[2])
        identity = past[-1].name.rpartition("-")[2] if past and resumed_step is not None else uuid.uuid4().hex
        settings = wandb.Settings(silent=True, console="off")  # log.txt has the text of the terminal
        try:
            self._run = wandb.init(
                project="gan", name=folder.name, id=identity, resume="allow", dir=folder, config=config,
                settings=settings,
            )  # fmt: skip
        except wandb.Error as error:  # no account, or no connection
            raise UserError(
                f"--tracker: wandb: {one_line(error).rstrip('.')}; fix this, set WANDB_MODE=offline, or use tensorboard"
            ) from None

    def scalars(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def image(self, name: str, png: bytes, step: int) -> None:
        self._run.log({name: self._wandb.Image(_open(png))}, step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, dict[str, Any], int | None], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
}
