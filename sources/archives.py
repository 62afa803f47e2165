"""Zip files of images, unpacked so that a hostile one can do no harm."""

import lzma
import re
import stat
import zipfile
import zlib
from pathlib import Path

from system.downloads import require_space
from system.progress import ProgressBar
from utils import UserError, one_line

MAX_RATIO = 4  # of unpacked to packed bytes; images are compressed already, so a zip file hardly makes them smaller
MAX_FILES = 100_000
_DAMAGES = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError
)  # fmt: skip


def unpack(file: Path, folder: Path, name: str) -> None:
    """Unpack a zip file into a folder.

    Args:
        name: how messages refer to the file.

    Raises:
        UserError: not a readable zip file, an entry that would leave the folder, or more bytes than images can have.
        OSError: the files cannot be written.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if not entry.filename.startswith("__MACOSX/")]
            _check(entries, file.stat().st_size, name)
            require_space(folder.parent, sum(entry.file_size for entry in entries))
            folder.mkdir(parents=True, exist_ok=True)
            for entry in ProgressBar(entries, "unpack", "files"):
                archive.extract(entry, folder)  # never more bytes than the file_size of the entry
    except _DAMAGES as error:
        raise UserError(f"{name} is not a readable zip file ({one_line(error)}); nothing of it is kept") from None


def _check(entries: list[zipfile.ZipInfo], packed: int, name: str) -> None:
    """Raise UserError if an entry would leave the folder, or if the entries are a bomb."""
    for entry in entries:
        parts = re.split(r"[/\\]", entry.filename)
        leaves = parts[0] == "" or ".." in parts or re.match("[A-Za-z]:", parts[0])
        if leaves or stat.S_ISLNK(entry.external_attr >> 16):
            raise UserError(
                f"{name} contains {entry.filename!r}, which leads out of its folder; nothing of it is kept. Do not "
                "trust this file"
            )
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MAX_RATIO * packed + 2**20 or len(entries) > MAX_FILES:
        raise UserError(
            f"{name} would become {len(entries):,} files of {unpacked / 1e6:,.0f} MB, out of {packed / 1e6:,.0f} MB: "
            "too much for images; nothing of it is kept. Do not trust this file"
        )


def find_root(folder: Path) -> Path:
    """Return the folder below `folder` at which the data begin: a folder that contains only a folder is passed."""
    while True:
        inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
        if len(inside) != 1 or not inside[0].is_dir():
            return folder
        folder = inside[0]
