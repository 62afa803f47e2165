"""The folder of a new run: its default name, and when a name that exists can be used again."""

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from runs.tables import last_logged_step
from system.files import fsync_path, read_json, require_writable
from utils import UserError

if TYPE_CHECKING:
    from options.common import CommonOptions

# The files of a run that failed before its first step; grids of the untrained networks are in samples/.
_OWN_FILES = re.compile(
    r"(options|environment|data)\.json|log\.txt|losses\.(csv|png)|metrics\.csv|samples|\.lock|wandb|events\.out\..*|.*\.tmp"
)


def default_stem(options: "CommonOptions") -> str:
    """Return the default name of a run, without its number: script, data, augmentation, losses."""
    folders = [getattr(options, name) for name in options.DATA_FLAGS if getattr(options, name) is not None]
    parts = [options.SCRIPT.removesuffix(".py"), *(Path(folder).resolve().name for folder in folders or ["toy_cats"])]
    parts += [options.data_aug, options.gan_mode]
    if getattr(options, "use_cycle_consistency_loss", False):
        parts += ["cycle", getattr(options, "cycle_loss", "")]
    parts += ["identity"] * getattr(options, "use_identity_loss", False) + ["diffaug"] * bool(options.use_diffaug)
    return re.sub(r"[^\w.,=+ -]", "_", "-".join(parts))[:60]  # a folder of images may have any name


def make_numbered_folder(parent: Path, stem: str) -> Path:
    """Make `<stem>-<number>`, one above the highest number in use; return it."""
    pattern = re.compile(re.escape(stem) + r"-(\d+)")
    while True:
        used = [int(match[1]) for path in parent.iterdir() if (match := pattern.fullmatch(path.name))]
        folder = parent / f"{stem}-{max(used, default=0) + 1:03d}"
        with contextlib.suppress(FileExistsError):  # another run was faster: take the next number
            folder.mkdir()
            fsync_path(parent)
            return folder


def is_unused(folder: Path) -> bool:
    """Whether a folder contains nothing but the files of a run that failed before its first step."""
    names = {path.name for path in folder.iterdir()}
    if not names <= {".lock", "samples"}:
        try:
            is_ours = read_json(folder / "options.json").keys() == {"script", "samples", "options"}
        except (OSError, UserError, AttributeError):
            return False
        if not is_ours or not all(map(_OWN_FILES.fullmatch, names)) or last_logged_step(folder):
            return False
    return all(re.fullmatch(r"(real|sample)-000000.*\.png|.*\.tmp", path.name) for path in folder.glob("samples/*"))


def clear_unused(folder: Path) -> None:
    """Delete what a run that failed before its first step has left in its folder, but for the lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


def refuse_taken_name(options: "CommonOptions") -> None:
    """Raise UserError if a new run cannot have the folder of --name, or no folder can be made at all.

    The folder of a run that failed before its first step can be used again.
    """
    require_writable(Path(options.checkpoint_dir), "--checkpoint_dir")
    if options.sample_dir is not None:
        require_writable(Path(options.sample_dir), "--sample_dir")
    if options.name is None:
        return
    folder = Path(options.checkpoint_dir) / options.name
    try:
        os.lstat(folder)
    except FileNotFoundError:
        return
    except OSError as error:  # such as a name that is too long
        raise UserError(f"--name: {options.name[:20]}: {error.strerror}; use another name") from None
    if not (folder.is_dir() and is_unused(folder)):
        raise UserError(f"--name: {folder} exists; use --resume {folder} to continue it, or another name")
