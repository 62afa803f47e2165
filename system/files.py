"""Files: written whole or not at all and flushed to disk, and checks of the paths before writing."""

import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from utils import UserError, one_line

FSYNC_UNSUPPORTED_ERRNOS = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF)
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAX_NAME_BYTES = 140  # of a temporary file: most file systems allow 255, encrypted ones only 143


def describe_write_error(path: Path, error: OSError, size: int) -> Exception:
    """Return an error that says which file could not be written; on a full disk also how many bytes it needs."""
    if error.errno not in DISK_FULL_ERRNOS:
        return OSError(error.errno, error.strerror or str(error), str(path))
    free = shutil.disk_usage(path.parent).free
    return UserError(
        f"{path}: {error.strerror}: it needs {size / 1e6:.3g} MB, and {free / 1e6:.3g} MB are free; free some space "
        "(a training then continues with --resume)"
    )


def fsync_path(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk (fsync). A new file is safe once its folder is, too."""
    if os.name != "posix" and path.is_dir():
        return
    try:
        opened = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        if not (path.is_dir() and error.errno in FSYNC_UNSUPPORTED_ERRNOS):
            raise


def make_durable_folder(folder: Path) -> None:
    """Make a folder and its parents, if they do not exist, and flush their names to disk."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        fsync_path(path.parent)


def append(path: Path, text: str) -> None:
    """Add text to the end of a file, which is made if it does not exist. Raises UserError if the disk is full."""
    is_new = not path.exists()
    try:
        with open(path, "a", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
    except OSError as error:
        raise describe_write_error(path, error, len(text)) from None
    if is_new:
        fsync_path(path.parent)


def temporary_path(path: Path) -> Path:
    """Return the path of the temporary file for `path`, in the same folder: `.<name>.<process>.tmp`.

    A long name is cut between two characters, and gets a checksum of the whole name.
    """
    name, ending = path.name, f".{os.getpid()}.tmp"
    if len(os.fsencode(name)) + len(ending) >= MAX_NAME_BYTES:
        ending = f".{zlib.crc32(os.fsencode(name)):08x}{ending}"
        while len(os.fsencode(name)) + len(ending) >= MAX_NAME_BYTES:
            name = name[:-1]
    return path.with_name(f".{name}{ending}")


def atomic_write(path: Path, write: Callable[[BinaryIO], Any], size: int | None = None) -> None:
    """Write a file whole or not at all, even if the power fails: temporary file, fsync, rename, fsync of the folder.

    Args:
        write: writes the content to an open file.
        size: in bytes, for the message about a full disk, if it is known before.

    Raises:
        UserError: the disk is full.
    """
    temporary = temporary_path(path)
    try:
        with open(temporary, "w+b") as file:  # Pillow reads what it wrote of a TIFF
            write(file)
            size = size or file.tell()
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        written = temporary.stat().st_size if temporary.exists() else 0
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise describe_write_error(path, error, max(size or 0, written)) from None
        raise
    fsync_path(path.parent)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write bytes to a file, whole or not at all."""
    atomic_write(path, lambda file: file.write(content), len(content))


def write_json(path: Path, content: Any) -> None:
    """Write plain types as indented JSON, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # A file name may contain bytes that are not valid text: JSON has an escape for those.
    write_bytes(path, text.encode(errors="backslashreplace"))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of a run. Raises UserError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({one_line(error)}); restore it, or start a new run") from None


def _exists(path: Path) -> bool:
    """Whether a path exists, even as a broken link. Raises OSError if it cannot exist: pathlib returns False then."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def require_writable(folder: Path, flag: str) -> None:
    """Raise UserError unless the folder can be written to, or can be made because its parent can."""
    parent = folder.absolute()
    try:
        while not _exists(parent):
            parent = parent.parent
    except OSError as error:  # such as a name that is too long
        raise UserError(f"{flag}: {parent}: {error.strerror}; choose another folder") from None
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"{flag}: {parent} is not a writable folder; choose another folder")


def check_new_file(path: Path, endings: Iterable[str], overwrite: bool, flag: str = "--out") -> None:
    """Raise UserError unless the file can be written: its extension, its folder, and nothing would be lost."""
    if not path.suffix:
        raise UserError(f"{flag}: {path} needs one of the endings {', '.join(endings)}")
    if path.suffix.lower() not in endings:
        raise UserError(f"{flag}: {path} has an extension that cannot be written; use one of {', '.join(endings)}")
    if path.is_dir():
        raise UserError(f"{flag}: {path} is a folder; give a file, such as {path / ('name' + next(iter(endings)))}")
    if path.exists() and not overwrite:
        raise UserError(f"{flag}: {path} exists; give another name, or add --overwrite")
    require_writable(path.parent, flag)


def check_new_folder(path: Path, overwrite: bool, flag: str = "--out") -> None:
    """Raise UserError unless files can be written there: to a new or empty folder, or to any with `overwrite`."""
    if path.is_file():
        raise UserError(f"{flag}: {path} is a file; give a folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UserError(f"{flag}: {path} contains files; give another folder, or add --overwrite")
    require_writable(path, flag)
