"""Where images come from: folders, the two domains of a CycleGAN, the toy cats, and the images held out for testing."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from PIL import Image

from images.decoding import open_image
from images.toy_cats import default_root, ensure_toy_cats
from utils import UserError, shorten

if TYPE_CHECKING:
    from options.training import CycleOptions, VanillaOptions

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
DATA_ROOT = Path(__file__).parent.parent / "data"


class ImageSource(Protocol):
    """Images that can be opened by number, in any thread.

    Attributes:
        location: the folder or file of the images, for messages.
        names: a name for each image, all different.
    """

    location: Path
    names: Sequence[str]

    def open(self, index: int) -> Image.Image:
        """Return an image before its pixels are decoded; a failure raises any exception that Pillow may raise."""

    def sizes(self) -> list[int]:
        """Return the size of each image, in bytes."""

    def fingerprint(self) -> str:
        """Return a text that changes when the images do."""

    def select(self, indices: Sequence[int]) -> "ImageSource":
        """Return the source of some of the images."""


class FolderSource:
    """Image files, usually of one folder.

    Args:
        files: the files. They need not exist or be readable: decoding reports it.
    """

    def __init__(self, files: Sequence[Path]):
        self.files = list(files)
        self.names: Sequence[str] = [path.name for path in self.files]
        self.location = self.files[0].parent if self.files else Path()

    def open(self, index: int) -> Image.Image:
        return open_image(self.files[index])

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
        return FolderSource([self.files[index] for index in indices])


class Domain(NamedTuple):
    """The images of one domain, to train on and to test on, and the flag that named them, for messages."""

    train: ImageSource
    test: ImageSource | None
    flag: str


# ----------------------------------------------------------------------------------------------------------------------
# Folders and files


def find_folder(name: str, flag: str = "--data") -> Path:
    """Return the folder that a data argument names: a path, or a name below data/. Raises UserError if none exists."""
    if not name.strip():
        raise UserError(f"{flag}: the name is empty; give a folder of images")
    for folder in (Path(os.path.expanduser(name)), DATA_ROOT / name):
        if os.path.isdir(folder):  # pathlib's is_dir raises an error for a name that is too long
            return folder
        if os.path.exists(folder):
            raise UserError(f"{flag}: {folder} is a file; give the folder that holds the images")
    nor = "" if os.path.isabs(name) else f", nor {os.path.normpath(DATA_ROOT / name)}"
    raise UserError(f"{flag}: there is no folder {name}{nor}; give the folder of the images")


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
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX")
    files = [path for path in visible if path.suffix.lower() in accepted]
    if any(not path.is_dir() for path in files):
        return files
    folders = [path.name for path in visible if path.is_dir()]
    if folders:
        raise UserError(f"{flag}: no image in {folder}, but folders: {shorten(folders)}; give one of them")
    raise UserError(f"{flag}: no image in {folder}; accepted extensions: {', '.join(accepted)}")


def hold_out(count: int, share: float) -> tuple[list[int], list[int]]:
    """Split `count` images into (train, test), with about `share` of them in test: the same ones at every call.

    A share above 0 holds out at least one image.

    Raises:
        UserError: no image would be left to train on.
    """
    held_out = max(round(count * share), 1) if share > 0 else 0
    if held_out >= count:
        raise UserError(f"--test_split: {share} of {count} images leaves none to train on; use a smaller share")
    test = sorted(np.random.default_rng(0).permutation(count)[:held_out].tolist())
    return sorted(set(range(count)) - set(test)), test


# ----------------------------------------------------------------------------------------------------------------------
# The images of a run


def toy_cats(image_size: int) -> Path:
    """Return the root of the embedded data set, drawn at `image_size` on first use. Raises UserError if it fails."""
    try:
        return ensure_toy_cats(default_root(image_size), image_size)
    except (OSError, UserError) as error:
        raise UserError(
            f"--image_size, --data: the toy cats cannot be drawn ({error}); use another size, or a folder of images"
        ) from None


def find_domains(options: "VanillaOptions | CycleOptions") -> dict[str, Domain]:
    """Return the domains that a run trains and tests on, by name. A DCGAN has one domain, "images".

    Raises:
        UserError: no such folder, no image in it, or for a CycleGAN no trainA and trainB in it.
    """
    if "X" not in options.DATA_FLAGS:
        folder = toy_cats(options.image_size) / "trainB" if options.data is None else options.data
        return {"images": _domain(folder, None, "data", options)}
    if options.X is not None:  # type: ignore[union-attr]
        return {name: _domain(getattr(options, name), None, name, options) for name in ("X", "Y")}
    flag = options.describe_flag("data")
    root = toy_cats(options.image_size) if options.data is None else find_folder(options.data, flag)
    domains = {}
    for name, letter in (("X", "A"), ("Y", "B")):
        train, test = root / f"train{letter}", root / f"test{letter}"
        if not train.is_dir():
            raise UserError(f"{flag}: {root} contains no folder {train.name}; a CycleGAN needs trainA and trainB "
                            "there, or the two folders as --X and --Y")  # fmt: skip
        domains[name] = _domain(train, test if test.is_dir() else None, "data", options)
    return domains


def _domain(train: Path | str, test: Path | None, option: str, options: "VanillaOptions | CycleOptions") -> Domain:
    """Return a domain: with --test_split some of the images of `train` are held out, and `test` is ignored."""
    flag = options.describe_flag(option)
    folder = find_folder(train, flag) if isinstance(train, str) else train
    source = FolderSource(list_images(folder, options.ext, flag))
    train_indices, test_indices = hold_out(len(source.names), options.test_split)
    if test_indices:
        return Domain(source.select(train_indices), source.select(test_indices), flag)
    return Domain(source, FolderSource(list_images(test, options.ext, flag)) if test is not None else None, flag)
