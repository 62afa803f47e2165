"""Where images come from: folders, the two domains of a CycleGAN, the toy cats, and the images held out for testing."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from images.catalogue import DATA_SETS
from images.decoding import open_image
from images.toy_cats import default_root, ensure_toy_cats
from utils import UserError, printable, shorten

if TYPE_CHECKING:
    from options.training import CycleOptions, VanillaOptions

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
# Extensions of files that lie beside images and are not worth a message.
NOT_IMAGES = (".txt", ".json", ".csv", ".xmp", ".xml", ".yaml", ".yml", ".md", ".html", ".log", ".ini", ".db", ".py")
DATA_ROOT = Path(__file__).parent.parent / "data"


class ImageSource(Protocol):
    """Images that can be opened by number, in any thread.

    Attributes:
        location: the folder or file of the images, for messages.
        names: a name for each image, all different.
        left_out: what else lies there and was not looked at, in words for the user; "" if nothing does.
    """

    location: Path
    names: Sequence[str]
    left_out: str

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
        left_out: as in `ImageSource`.
    """

    def __init__(self, files: Sequence[Path], left_out: str = ""):
        self.files, self.left_out = list(files), left_out
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
        return FolderSource([self.files[index] for index in indices], self.left_out)


class Domain(NamedTuple):
    """The images of one domain, to train on and to test on, and the flag that named them, for messages.

    `num_new` images were added to the folders after the run began, and are neither in `train` nor in `test`.
    """

    train: ImageSource
    test: ImageSource | None
    flag: str
    num_new: int = 0


# ----------------------------------------------------------------------------------------------------------------------
# Folders and files


def find_folder(name: str, flag: str = "--data") -> Path:
    """Return the folder that a data argument names: a path, or a name below data/. Raises UserError if none exists."""
    if not name.strip():
        raise UserError(f"{flag}: the name is empty; give a folder of images")
    for folder in (Path(name), DATA_ROOT / name):
        if os.path.isdir(folder):  # pathlib's is_dir raises an error for a name that is too long
            return folder
        if os.path.exists(folder):
            raise UserError(f"{flag}: {folder} is a file; give the folder that holds the images")
    nor = "" if os.path.isabs(name) else f", nor {os.path.normpath(DATA_ROOT / name)}"
    first = Path(name).parts[0]
    download = f"; to download it: python dataset.py download {first}" if first in DATA_SETS else ""
    raise UserError(f"{flag}: there is no folder {name}{nor}{download or '; give the folder of the images'}")


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


def find_domains(
    options: "VanillaOptions | CycleOptions", recorded: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, Domain]:
    """Return the domains that a run trains and tests on, by name. A DCGAN has one domain, "images".

    Args:
        recorded: what data.json says about each domain. The run then has these images, as far as they exist, whatever
            was added to the folders; images that cannot be found are left out. None: the run is new.

    Raises:
        UserError: no such folder, no image in it, none of the recorded ones, or for a CycleGAN no trainA and trainB.
    """
    recorded = recorded or {}
    if "X" not in options.DATA_FLAGS:
        folder = toy_cats(options.image_size) / "trainB" if options.data is None else options.data
        return {"images": _domain(folder, None, "data", options, recorded.get("images"))}
    if options.X is not None:  # type: ignore[union-attr]
        names = ("X", "Y")
        return {name: _domain(getattr(options, name), None, name, options, recorded.get(name)) for name in names}
    flag = options.describe_flag("data")
    root = toy_cats(options.image_size) if options.data is None else find_folder(options.data, flag)
    domains = {}
    for name, letter in (("X", "A"), ("Y", "B")):
        train, test = root / f"train{letter}", root / f"test{letter}"
        if not train.is_dir():
            raise UserError(f"{flag}: {root} contains no folder {train.name}; a CycleGAN needs trainA and trainB "
                            "there, or the two folders as --X and --Y")  # fmt: skip
        domains[name] = _domain(train, test if test.is_dir() else None, "data", options, recorded.get(name))
    return domains


def _domain(
    train: Path | str,
    test: Path | None,
    option: str,
    options: "VanillaOptions | CycleOptions",
    recorded: dict[str, Any] | None,
) -> Domain:
    """Return a domain: with --test_split some of the images of `train` are held out, and `test` is ignored."""
    flag = options.describe_flag(option)
    folder = find_folder(train, flag) if isinstance(train, str) else train
    source = read_folder(folder, options.ext, flag)
    tested: ImageSource | None = source
    if not options.test_split:
        tested = read_folder(test, options.ext, flag) if test is not None else None
    if recorded is not None:
        return _recorded_domain(source, tested, flag, recorded)
    if options.test_split:
        train_indices, test_indices = hold_out(len(source.names), options.test_split)
        return Domain(source.select(train_indices), source.select(test_indices), flag)
    return Domain(source, tested, flag)


def _recorded_domain(source: ImageSource, tested: ImageSource | None, flag: str, recorded: dict[str, Any]) -> Domain:
    """Return the images of `source` and `tested` that data.json lists; they are one source with --test_split."""
    train = _select(source, recorded["train"])
    if not train.names:
        first, count = next(iter(recorded["train"]), ""), len(recorded["train"])
        raise UserError(
            f"{flag}: none of the {count} images that the run trained on is in {source.location} (first: "
            f"{first}); give the folder that holds them now"
        )
    test = _select(tested, recorded["test"]) if tested is not None else None
    skipped = {name.partition("/")[2] for name in recorded["skipped"]}  # they are listed with their folder
    if tested is source:
        num_new = len({*source.names} - {*recorded["train"], *recorded["test"]} - skipped)
    else:
        num_new = len({*source.names} - {*recorded["train"]} - skipped)
        num_new += len({*tested.names} - {*recorded["test"]} - skipped) if tested is not None else 0
    return Domain(train, test if test is not None and test.names else None, flag, num_new)


def _select(source: ImageSource, names: Iterable[str]) -> ImageSource:
    """Return the images of a source with these names, in the order of the names, as far as it has them."""
    positions = {name: index for index, name in enumerate(source.names)}
    return source.select([positions[name] for name in names if name in positions])
