"""Folders of image files: found by path or by a name below data/, and listed."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from images.decoding import open_image
from sources.catalogue import DATA_SETS
from sources.tfrecords import is_record_file
from utils import UserError, printable, shorten

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# Extensions of files that lie beside images and are not worth a message.
NOT_IMAGES = (".txt", ".json", ".csv", ".xmp", ".xml", ".yaml", ".yml", ".md", ".html", ".log", ".ini", ".db", ".py")
DATA_ROOT = Path(__file__).parent.parent / "data"


class FolderSource:
    """Image files, usually of one folder.

    Args:
        files: the files. They need not exist or be readable: decoding reports it.
        left_out: as in `ImageSource`.
    """

    def __init__(self, files: Sequence[Path], left_out: str = ""):
        self.files, self.left_out = list(files), left_out
        self.names: Sequence[str] = [path.name for path in self.files]
        self.location = self.files[0].parent if self.files else Path()

    def open(self, index: int) -> Image.Image:
        return open_image(self.files[index])

    def may_be_wide(self, index: int) -> bool:
        """Return True: the extension may be wrong, so only the opened file can tell."""
        return True

    def sizes(self) -> list[int]:
        return [path.stat().st_size for path in self.files]

    def fingerprint(self) -> str:
        """Return a hash of names, sizes and dates."""
        stats: list[tuple] = []
        for path in self.files:
            try:
                found = path.stat()
                stats.append((path.name, found.st_size, found.st_mtime_ns))
            except OSError as error:  # a missing file, or a broken link
                stats.append((path.name, error.errno))
        return hashlib.sha256(json.dumps(stats).encode()).hexdigest()

    def select(self, indices: Sequence[int]) -> "FolderSource":
        return FolderSource([self.files[index] for index in indices], self.left_out)


def find_folder(name: str, flag: str = "--data") -> Path:
    """Return the folder that a data argument names, or the TFRecord file: a path, or a name below data/.

    Raises:
        UserError: there is neither.
    """
    if not name.strip():
        raise UserError(f"{flag}: the name is empty; give a folder of images")
    for folder in (Path(name), DATA_ROOT / name):
        if os.path.isdir(folder):  # pathlib's is_dir raises an error for a name that is too long
            return folder
        if os.path.isfile(folder) and is_record_file(folder):
            return folder
        if os.path.exists(folder):
            raise UserError(f"{flag}: {folder} is a file; give the folder that holds the images")
    other = "" if os.path.isabs(name) else f", and neither does {os.path.normpath(DATA_ROOT / name)}"
    first = Path(name).parts[0]
    download = f"; to download it: python dataset.py download {first}" if first in DATA_SETS else ""
    raise UserError(f"{flag}: the folder {name} does not exist{other}{download or '; give the folder of the images'}")


def list_images(folder: Path, ext: str | None = None, flag: str = "--data") -> list[Path]:
    """Return the image files of a folder by their extensions, sorted by name, without hidden ones.

    Folders, pipes and broken links with an image's extension are among them: decoding reports them.

    Args:
        ext: only files with this extension: "png", ".png" and "*.png" mean the same. None: all of EXTENSIONS.

    Raises:
        UserError: unknown extension, or no such file in the folder.
    """
    accepted: tuple[str, ...] = EXTENSIONS
    if ext is not None:
        accepted = ("." + ext.lower().lstrip("*").lstrip("."),)
        if accepted[0] not in EXTENSIONS:
            raise UserError(f"--ext: {ext!r} is unknown; choose from {', '.join(e[1:] for e in EXTENSIONS)}")
        flag = f"{flag} with --ext {ext}"
    visible = _list_visible(folder)
    files = [path for path in visible if path.suffix.lower() in accepted]
    if any(not path.is_dir() for path in files):
        return files
    folders = [path.name for path in visible if path.is_dir()]
    if folders:
        raise UserError(f"{flag}: no image in {folder}, but folders: {shorten(folders)}; give one of them")
    others = describe_left_out(folder, [])
    but = f", but {others}" if others else ""
    raise UserError(f"{flag}: no image in {folder}{but}; accepted extensions: {', '.join(accepted)}")


def has_images(folder: Path) -> bool:
    """Whether a folder holds a file with the extension of an image."""
    return any(path.suffix.lower() in EXTENSIONS and not path.is_dir() for path in _list_visible(folder))


def _list_visible(folder: Path) -> list[Path]:
    """Return what lies in a folder, sorted by name, without hidden files and what macOS adds to archives."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX")


def describe_left_out(folder: Path, files: Sequence[Path]) -> str:
    """Return how many files of which kind lie in a folder beside `files`: "3 .heic, 1 .gif, 1 folder", or "".

    Hidden files and files beside images that never are images themselves (NOT_IMAGES) are not counted.
    """
    names = {path.name for path in files}
    others = [path for path in _list_visible(folder) if path.name not in names]
    kinds = ["" if path.is_dir() else path.suffix.lower() or "without extension" for path in others]
    counts = Counter(printable(kind) for kind in kinds if kind not in ("", *NOT_IMAGES))
    texts = [f"{count} {kind}" for kind, count in counts.most_common()]
    num_folders = kinds.count("")
    texts += [f"{num_folders} folder{'s' * (num_folders > 1)}"] * bool(num_folders)
    return shorten(texts, 8)


def read_folder(folder: Path, ext: str | None = None, flag: str = "--data") -> FolderSource:
    """Return the images of a folder as a source. Args, Raises: as `list_images`."""
    files = list_images(folder, ext, flag)
    return FolderSource(files, describe_left_out(folder, files))
