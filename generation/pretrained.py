"""Generators of the CycleGAN authors, downloaded once into the folder of torch's downloaded weights."""

from pathlib import Path

import torch

from options.pretrained import CREDIT, PREFIX, PRETRAINED
from runs.file_kinds import unpack
from system.downloads import fetch, record_checksum
from utils import LOG, UserError, one_line, suggest

ADDRESS = "https://efrosgans.eecs.berkeley.edu/cyclegan/pretrained_models"


def fetch_pretrained(name: str) -> Path:
    """Return the file of a generator of the CycleGAN authors, downloaded at the first call, and credit the authors.

    The authors publish no checksums. The checksum of the first download is recorded beside the file, and each call
    compares the file with it.

    Raises:
        UserError: unknown name, or the file cannot be downloaded.
    """
    if name not in PRETRAINED:
        hint = suggest(name, PRETRAINED, PREFIX)
        raise UserError(f"RUN: {PREFIX}{name} is unknown; {hint}{PREFIX}list shows all names")
    address = f"{ADDRESS}/{name}.pth"
    file = Path(torch.hub.get_dir()) / "checkpoints" / f"cyclegan-{name}.pth"
    record = file.with_name(f"{file.name}.sha256")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        is_new = not file.exists()
        fetch(address, file, f"get the file in another way and put it at {file}", record=record)
        if not record.exists():
            _check(file, address, is_new)
            record_checksum(file, record)
    except OSError as error:  # a full disk or a missing permission
        where = error.filename or file
        raise UserError(f"{where}: {error.strerror or error}; set TORCH_HOME to another folder") from None
    LOG.info("%s%s: %s, %s, from %s", PREFIX, name, PRETRAINED[name], CREDIT, address)
    return file


def _check(file: Path, address: str, is_new: bool) -> None:
    """Raise UserError if a file does not contain weights, such as a page to log in; a new one is then deleted."""
    try:
        unpack(file.read_bytes())
    except Exception as error:  # of torch.load, which has no single exception for damaged files
        if is_new:
            file.unlink()
        where, remedy = (address, "try again later") if is_new else (file, "delete it, and use the name again")
        raise UserError(f"{where}: no weights ({one_line(error)}); {remedy}") from None
