"""Checkpoint files: written whole, verified when they are read, the newest readable one first.

A checkpoint is a dict of tensors and plain types: torch.load(path, weights_only=True)["networks"]["G"].
"""

import io
import re
from pathlib import Path
from typing import Any

from runs.authors_models import find_files, name_of, to_checkpoint, to_our_names
from runs.file_kinds import unpack
from system.files import fsync_path, write_bytes
from utils import LOG, UserError, one_line

BEST = "best.pt"
FORMAT = 3  # raised when an older program could not read a newer file. 1 and 3: plain torch.save; 2: with a SHA-256


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of every checkpoint in a run folder, the newest first."""
    matches = [(re.fullmatch(r"checkpoint-(\d+)\.pt", path.name), path) for path in folder.iterdir()]
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)


def is_run(where: Path) -> bool:
    """Whether `where` is a run folder, a folder of the CycleGAN authors' models, or a file that may be a checkpoint."""
    if where.is_file() or (where / "options.json").is_file():
        return True
    return where.is_dir() and bool(list_checkpoints(where) or find_files(where))


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all, after the logs beside it have reached the disk."""
    import torch  # here, because report.py lists checkpoints and does not need torch

    for log in (path.parent / "losses.csv", path.parent / "metrics.csv"):
        if log.exists():
            fsync_path(log)
    file = io.BytesIO()
    torch.save({"format": FORMAT, **content}, file)
    write_bytes(path, file.getbuffer())


def read_file(path: Path, step: int | None = None) -> dict[str, Any]:
    """Return the content of a checkpoint file, or of a generator of the CycleGAN authors as one, on the CPU.

    Args:
        step: the iteration in its name.

    Raises:
        UserError: a newer program wrote it, or the disk fails.
        Exception: the file is damaged or something else; torch.load has no single exception for that.
    """
    content = _read(path)
    is_ours = isinstance(content, dict) and isinstance(content.get("format"), int) and "step" in content
    if not is_ours:
        return to_checkpoint({(name := name_of(path)): to_our_names(content, name)})
    if content["format"] > FORMAT:
        raise UserError(f"{path} has format {content['format']}, this program reads {FORMAT}; update it")
    if step not in (None, content["step"]):
        raise ValueError(f"it is of iteration {content['step']}")
    return content


def _read(path: Path) -> Any:
    """Return the content of any file that torch.save wrote. Raises as `read_file`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); fix this and try again") from None
    return unpack(data)


def _reraise_unless_damaged(error: Exception) -> None:
    """Raise an error again if it does not mean that the file is damaged."""
    if isinstance(error, UserError | MemoryError) or "can't allocate memory" in str(error):
        raise error


def read_newest(folder: Path) -> dict[str, Any] | None:
    """Return the newest readable checkpoint of a run folder; None if there is no checkpoint at all.

    Raises:
        UserError: none is readable, or the newest was written by a newer program.
    """
    checkpoints = list_checkpoints(folder)
    for step, path in checkpoints:
        try:
            return read_file(path, step)
        except Exception as error:
            _reraise_unless_damaged(error)
            rest = "; trying the previous one" if (step, path) != checkpoints[-1] else ""
            LOG.warning("%s is not readable (%s)%s", path, one_line(error, 120), rest)
    if checkpoints:
        raise UserError(f"{folder} contains no readable checkpoint; use another run, or start a new one")
    return None


def read_checkpoint(where: Path, which: str = "newest") -> dict[str, Any]:
    """Return a checkpoint, on the CPU. Changes nothing.

    Models of the CycleGAN authors become a checkpoint of iteration 0 without optimizers, with the key `origin`.

    Args:
        where: run folder, or a checkpoint file; or a file or folder of models of the CycleGAN authors.
        which: of a run folder: "newest" for the newest readable one, "best" for the one of the best evaluation while
            training, or an iteration.

    Raises:
        UserError: no such checkpoint, none that is readable, or one of a newer program.
    """
    path = where
    if where.is_dir() and not list_checkpoints(where):
        label = "latest" if which == "newest" else which
        if files := find_files(where, label):
            return _read_authors_models(files)
    if where.is_dir() and which == "newest":
        content = read_newest(where)
        if content is None:
            raise UserError(f"{where} contains no readable checkpoint; use another run, or start a new one")
        return content
    if where.is_dir():
        steps = {str(step): path for step, path in list_checkpoints(where)}
        step = which.lstrip("0")
        if which != "best" and step not in steps:
            available = ["newest"] * bool(steps) + ["best"] * (where / BEST).exists() + list(reversed(steps))
            listed = ", ".join(available) or "none"
            raise UserError(f"--checkpoint: {where} has no checkpoint {which}; available: {listed}")
        path = where / BEST if which == "best" else steps[step]
    if not path.is_file():
        remedy = "training with --eval_every writes it" if path.name == BEST else "give a run folder or a checkpoint"
        raise UserError(f"{path} does not exist; {remedy}")
    try:
        return read_file(path)
    except Exception as error:
        _reraise_unless_damaged(error)
        raise UserError(
            f"{path} is not a readable checkpoint ({one_line(error)}); give a run folder, or a checkpoint from one"
        ) from None


def _read_authors_models(files: dict[str, Path]) -> dict[str, Any]:
    """Return models of the CycleGAN authors as one checkpoint; a discriminator of another shape than ours is left out.

    Args:
        files: our name of the network -> file.

    Raises:
        UserError: a generator cannot be read, or there is none.
    """
    networks = {}
    for name, path in files.items():
        try:
            networks[name] = to_our_names(_read(path), name)
        except Exception as error:
            _reraise_unless_damaged(error)
            if name.startswith("G"):
                raise UserError(f"{path} is not a readable checkpoint ({one_line(error)}); use another") from None
            LOG.info("%s is left out (%s)", path, one_line(error))
    if not any(name.startswith("G") for name in networks):
        raise UserError(f"{next(iter(files.values())).parent} contains no generator; give a folder with net_G_A.pth")
    return to_checkpoint(networks)


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Delete checkpoints that are older than the newest `keep` readable ones."""
    checkpoints = list_checkpoints(folder)
    readable = 0
    for step, path in checkpoints if len(checkpoints) > keep else ():
        if readable == keep:
            path.unlink(missing_ok=True)
            continue
        try:
            read_file(path, step)
            readable += 1
        except Exception:  # it is damaged, so an older one has to stay
            LOG.debug("%s is not readable", path)
