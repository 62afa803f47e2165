"""`dataset.py check --fix`: a new folder with the images, without unreadable files and copies."""

import io
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageFile, ImageOps

from images.decoding import has_more_frames, open_checked
from images.files import IMAGE_FORMATS
from sources.inspection import Part
from sources.tfrecords import is_record_file
from system.files import fsync_path, make_durable_folder, require_writable
from system.progress import ProgressBar
from utils import UserError

_ORIENTATION = 0x0112  # EXIF tag; 1: the image is upright
_SETTINGS = dict(IMAGE_FORMATS.values())  # Pillow's format -> its settings


def check_output(folder: Path, parts: Sequence[Part]) -> None:
    """Raise UserError unless the cleaned copy can be written to `folder`: new or empty, and not among the images."""
    if folder.is_file():
        raise UserError(f"--fix: {folder} is a file; give a new folder")
    require_outside(folder, parts, "--fix")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--fix: {folder} contains files; give a new folder")
    require_writable(folder, "--fix")


def require_outside(path: Path, parts: Sequence[Part], flag: str) -> None:
    """Raise UserError if a path that is to be written lies in a folder of images, or is that folder."""
    for part in parts:
        location = part.source.location.resolve()
        location = location.parent if is_record_file(location) and location.is_file() else location
        roots = {location, location.parent} if part.name.startswith(("train", "test")) else {location}
        if roots & {path.resolve(), *path.resolve().parents}:
            raise UserError(f"{flag}: {path} lies in the folder of the images; give a path outside of it")


def write_clean_copy(folder: Path, parts: Sequence[Part], left_out: Mapping[str, set[int]]) -> None:
    """Write the readable images of all parts, but for those in `left_out`, under the same names.

    One part becomes the folder itself, several become folders in it: trainA and trainB for two domains. The work is
    done in a hidden folder beside it, which is then renamed, so that the copy is whole or not there.

    Args:
        left_out: name of a part -> positions of the images that are left out.

    Raises:
        UserError: an image cannot be read any more, or not be written.
    """
    work = folder.with_name(f".{folder.name}.partial")
    make_durable_folder(folder.parent)
    shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
    try:
        for part in parts:
            target = work / {"X": "trainA", "Y": "trainB", "images": ""}.get(part.name, part.name)
            target.mkdir(parents=True)
            kept = [position for position in range(len(part.facts)) if position not in left_out[part.name]]
            for position in ProgressBar(kept, f"copy {part.name}", "images"):
                with part.source.open(part.indices[position]) as image:
                    _copy(image, target / part.names[position])
        if folder.is_dir():  # empty; Windows does not rename onto it
            folder.rmdir()
        os.rename(work, folder)
        fsync_path(folder.parent)
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"--fix: {where}: {error.strerror or error}; fix this, then repeat the command") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _copy(image: Image.Image, path: Path) -> None:
    """Copy the bytes of an opened image; if its EXIF tag rotates it, write the rotated pixels in the same format."""
    assert isinstance(image, ImageFile.ImageFile) and image.fp is not None  # its pixels are not decoded yet
    image.fp.seek(0)
    data = image.fp.read()
    with open_checked(io.BytesIO(data)) as image:
        try:
            is_rotated = image.getexif().get(_ORIENTATION) in range(2, 9) and not has_more_frames(image)
        except Exception:  # Pillow's reader raises any exception for broken metadata; training ignores the tag, too
            is_rotated = False
        if is_rotated:
            kind = "JPEG" if image.format == "MPO" else str(image.format)  # MPO: of some phones, with a second image
            file = io.BytesIO()
            profile = image.info.get("icc_profile")
            ImageOps.exif_transpose(image).save(file, format=kind, icc_profile=profile, **_SETTINGS.get(kind, {}))
            data = file.getvalue()
    path.write_bytes(data)
