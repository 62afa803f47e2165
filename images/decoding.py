"""Image files to uint8 tensors: decoded in parallel, once, and kept for the next run of the same data.

Threads do the decoding, not processes: Pillow decodes and resizes without Python's lock, and threads need no copies,
no second start of Python, and no rules for signals and forks.
"""

import hashlib
import os
import re
import stat
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from images.values import Scale, ValueRange, find_scale, fix_transparency, to_8_bits
from system.files import atomic_write
from system.progress import ProgressBar
from utils import UserError, one_line

if TYPE_CHECKING:
    from images.source import ImageSource

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # GIFs are often saved with another extension
MAX_PIXELS = 50_000_000  # of one image; larger ones are scans, panoramas, or made to exhaust the memory
MAX_RATIO = 4  # of an image's sides; of longer ones the middle is enough for a square
CACHE_VERSION = 5  # raised when the same files would be decoded to other pixels, or the cache has another format
CACHE_SECONDS = 2.0  # sets of images that decode faster are not cached

# Pillow warns about large images and about damaged metadata; its warnings would disturb the progress bar.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(UserError):
    """A file that cannot be used as an image. The message is the reason, in words for the user."""


def open_image(path: Path, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Open an image file, of these formats only; close it after use. Its pixels are not decoded yet.

    Only regular files are opened: a pipe without a writer would block forever.

    Raises:
        ImageError: not a regular file, or more than MAX_PIXELS.
        OSError, ValueError, SyntaxError: whatever Pillow raises for a broken file.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if path.is_symlink():
            raise ImageError(f"a broken link ({error.strerror})") from None
        raise
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        raise ImageError(f"a {kinds.get(stat.S_IFMT(mode), 'device')}, not a file")
    return open_checked(path, formats)


def open_checked(file: Path | BinaryIO, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Open the bytes of an image file, as `open_image` does.

    Raises:
        ImageError: more than MAX_PIXELS.
        OSError, ValueError, SyntaxError: whatever Pillow raises for a broken file.
    """
    too_large = f"megapixels, more than {MAX_PIXELS / 1e6:.0f}"
    try:
        image = Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:  # Pillow's own limit, far above ours
        [pixels] = re.findall(r"\((\d+) pixels\)", str(error)) or ["0"]
        raise ImageError(f"{int(pixels) / 1e6:.1f} {too_large}") from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ImageError(f"{image.width * image.height / 1e6:.1f} {too_large}")
    fix_transparency(image)
    return image


def apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Rotate an image as its EXIF tag says. If the tag is not readable the image stays as it is."""
    image.load()  # first, so that an error in the pixels is raised
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's reader raises any exception for broken metadata
        return image


def to_rgb(image: Image.Image, value_range: ValueRange | None = None) -> Image.Image:
    """Convert an image of any mode to RGB: rotated by its EXIF tag, transparent pixels on white.

    Args:
        value_range: the values of an image with more than 8 bits that become 0 and 255; see `to_8_bits`.
    """
    image = to_8_bits(apply_exif_orientation(image), value_range)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def crop_extreme_aspect_ratio(image: Image.Image) -> Image.Image:
    """Crop a very long image to its middle, about MAX_RATIO times as long as wide; others stay as they are.

    Without it, an image of 1x10000 would be resized to 64x640000. The center stays in place, to half a pixel.
    """
    short, long = sorted(image.size)
    kept = MAX_RATIO * short + (long - MAX_RATIO * short) % 2
    if long <= kept:
        return image
    start = (long - kept) // 2
    is_wide = image.width > image.height
    return image.crop((start, 0, start + kept, short) if is_wide else (0, start, short, start + kept))


def resize_to_square(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` (bicubic, antialiased), and crop the center, as torchvision does."""
    short = min(image.size)
    width, height = (size * side // short for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))


def has_more_frames(file: Image.Image) -> bool:
    """Whether a decoded file has more frames or pages than the first, even broken ones."""
    if file.format == "MPO":  # MPO: the second image that some cameras append is ignored
        return False
    try:
        return bool(getattr(file, "is_animated", False))
    except Exception:  # Pillow looks for the second frame of a GIF only now
        return True


class Decoded(NamedTuple):
    """A decoded image: uint8 (3, H, W), and whether its file has more frames or pages, which are ignored."""

    pixels: Tensor
    has_more_frames: bool


def reduce_jpeg(file: Image.Image, least: int) -> None:
    """Let an opened JPEG be decoded at 1/8, 1/4 or 1/2 of its size, if its shorter side keeps `least` pixels.

    A photo of 12 megapixels then takes a seventh to a third of the time. Both sides must be multiples, so that nothing
    moves. Other formats stay as they are. On photos the result differs by less than one of 256 levels on average; the
    contrast of fine regular lines may change more.
    """
    for factor in (8, 4, 2):
        width, height = (side // factor for side in file.size)
        if (width * factor, height * factor) == file.size and min(width, height) >= least:
            file.draft(None, (width, height))
            return


def decode(file: Image.Image, size: int | None = None, value_range: ValueRange | None = None) -> Decoded:
    """Decode an opened image, and close it: shorter side resized to `size` (bicubic, antialiased), center crop.

    Without `size` the image keeps its own size. `value_range` is as in `to_8_bits`.

    Raises:
        OSError, ValueError, SyntaxError: whatever Pillow raises for a broken file.
    """
    with file:
        if size is not None:
            reduce_jpeg(file, 2 * size)
        image, more = to_rgb(file, value_range), has_more_frames(file)
    if size is not None:
        image = resize_to_square(crop_extreme_aspect_ratio(image), size)
    return Decoded(torch.from_numpy(np.array(image)).permute(2, 0, 1), more)  # (3, size, size)


def describe_error(error: Exception) -> str:
    """Return in one line why a file could not be decoded."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or a format that Pillow does not know"
    is_self_explanatory = isinstance(error, UserError | OSError | SyntaxError) and str(error)
    return one_line(error) if is_self_explanatory else f"{type(error).__name__}: {one_line(error)}"


class DecodedSet(NamedTuple):
    """The result of decoding a source.

    Attributes:
        images: uint8 (N, 3, R, R) of the readable images, in their order; N is 0 if they were only tried.
        readable: indices of the readable images.
        skipped: index of an unreadable image -> the reason.
        multi_frame: indices of the readable images with more frames or pages than the first, which is used.
        scale: how images with more than 8 bits became 8 bits; None if there are none.
        note: a text for the user, if decoding took long or the images come from the cache.
    """

    images: Tensor
    readable: list[int]
    skipped: dict[int, str]
    multi_frame: list[int]
    scale: Scale | None = None
    note: str = ""


def _read_cache(path: Path, size: int, value_range: ValueRange | None) -> DecodedSet | None:
    """Return the images that an earlier run decoded, or None. They stay on disk until they are used.

    They must have the range of values that is asked for; None asks for the one that their values give.
    """
    try:
        found = DecodedSet(**torch.load(path, mmap=True, weights_only=True))
        found = found._replace(scale=found.scale and Scale(*found.scale))
        if found.scale is not None and not (found.scale.is_measured if value_range is None else
                                            found.scale.range == value_range):  # fmt: skip
            return None
        shapes = ((len(found.readable), 3, size, size), (0, 3, size, size))
        if found.images.dtype != torch.uint8 or found.images.shape not in shapes:
            return None
    except Exception:  # torch.load has no single exception for a damaged file
        return None
    return found._replace(note=f" (from the cache {path.parent})")


def _write_cache(path: Path, decoded: DecodedSet, outdated: str) -> bool:
    """Write images to the cache, delete files whose names begin with `outdated`, and return whether it worked."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in [*path.parent.glob(f"{outdated}*"), *path.parent.glob(f".{outdated}*.tmp")]:  # .tmp: process killed
            old.unlink()
        plain = {**decoded._asdict(), "scale": decoded.scale and tuple(decoded.scale), "note": ""}
        atomic_write(path, lambda file: torch.save(plain, file))
    except (OSError, RuntimeError, UserError):
        return False
    return True


def decode_all(
    source: "ImageSource",
    size: int,
    pool: Executor,
    keep: bool = True,
    cache: Path | None = None,
    part: str = "train",
    value_range: ValueRange | None = None,
) -> DecodedSet:
    """Decode images in parallel, or read them from `cache` if an earlier run decoded the same images.

    Args:
        size: R of the squares.
        pool: the threads that decode.
        keep: False to learn only which images are readable.
        cache: folder in which images that take long to decode are kept; None: they are not kept.
        value_range: the values of images with more than 8 bits that become 0 and 255; None: chosen from their values.
    """
    count = len(source.names)
    images = torch.empty(count if keep else 0, 3, size, size, dtype=torch.uint8)
    if not count:
        return DecodedSet(images, [], {}, [])
    place = f"{source.location.resolve()}, {part}, {size}, {keep}"
    version = f"{CACHE_VERSION}, {PIL.__version__}, {source.fingerprint()}"
    outdated, newest = (hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest() for text in (place, version))
    path = None if cache is None else cache / f"{outdated[:16]}-{newest[:32]}.pt"
    if path is not None and (found := _read_cache(path, size, value_range)) is not None:
        return found
    started = time.monotonic()
    Image.init()  # or the threads import Pillow's plugins, and Ctrl-C in another import would block them for ever
    scale = find_scale(source, pool, value_range)

    def decode_to(index: int) -> bool | Exception:
        """Decode an image to its place; return whether it has more frames, or the error."""
        try:
            decoded = decode(source.open(index), size, scale and scale.range)
        except MemoryError:  # not the file's fault
            raise
        except Exception as error:  # Pillow's decoders raise any exception for broken bytes
            return error
        if keep:
            images[index] = decoded.pixels
        return decoded.has_more_frames

    results = list(ProgressBar(pool.map(decode_to, range(count)), "decode", "images", count))
    readable = [index for index, result in enumerate(results) if isinstance(result, bool)]
    if keep and len(readable) < count:
        for i, index in enumerate(readable):  # one by one: there may be no room for a second copy
            images[i] = images[index]
        images = images[: len(readable)]
    skipped = {i: describe_error(error) for i, error in enumerate(results) if isinstance(error, Exception)}
    multi_frame = [index for index, result in enumerate(results) if result is True]
    decoded = DecodedSet(images, readable, skipped, multi_frame, scale)
    seconds = time.monotonic() - started
    # A system error, such as a missing permission, may be gone at the next start, although the file is the same.
    may_pass = any(isinstance(error, OSError) and error.errno for error in results)
    if path is not None and seconds > CACHE_SECONDS and not may_pass:
        kept = f", kept in {cache}" if _write_cache(path, decoded, outdated=outdated[:16]) else ""
        decoded = decoded._replace(note=f" (decoded in {seconds:.0f} s{kept})")
    return decoded


def decode_some(
    source: "ImageSource", indices: Sequence[int], size: int, value_range: ValueRange | None = None
) -> Tensor:
    """Return some images of a source, uint8 (n, 3, R, R). `value_range` is as in `to_8_bits`."""
    return torch.stack([decode(source.open(index), size, value_range).pixels for index in indices])
