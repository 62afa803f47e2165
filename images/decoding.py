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
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from system.files import atomic_write
from system.progress import ProgressBar
from utils import UserError, one_line

# isort: split
# After utils, which reports in one line if torchvision does not fit torch.
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

if TYPE_CHECKING:
    from images.sources import ImageSource

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # GIFs are often saved with another extension
MAX_PIXELS = 50_000_000  # of one image; larger ones are scans, panoramas, or made to exhaust the memory
MAX_RATIO = 4  # of an image's sides; of longer ones the middle is enough for a square
CACHE_VERSION = 3  # raised when the same files would be decoded to other pixels, or the cache has another format
CACHE_SECONDS = 2.0  # sets of images that decode faster are not cached

# Pillow warns about large images and about damaged metadata; its warnings would disturb the progress bar.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(UserError):
    """A file that cannot be used as an image. The message is the reason, in words for the user."""


def open_image(path: Path) -> Image.Image:
    """Open an image file, of FORMATS only; close it after use. Its pixels are not decoded yet.

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
    too_large = f"megapixels, more than {MAX_PIXELS / 1e6:.0f}"
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:  # Pillow's own limit, far above ours
        [pixels] = re.findall(r"\((\d+) pixels\)", str(error)) or ["0"]
        raise ImageError(f"{int(pixels) / 1e6:.1f} {too_large}") from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ImageError(f"{image.width * image.height / 1e6:.1f} {too_large}")
    return image


def apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Rotate an image as its EXIF tag says. If the tag is not readable the image stays as it is."""
    image.load()  # first, so that an error in the pixels is raised
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's reader raises any exception for broken metadata
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB: rotated by its EXIF tag, transparent pixels on white."""
    image = apply_exif_orientation(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits or more: convert() would clip at 255, not scale
        values = np.nan_to_num(np.asarray(image, dtype=np.float32))
        # Only 16-bit modes define white; 32-bit images follow any of three conventions.
        scales: tuple[float, ...] = (1.0, 255.0)
        if image.mode.startswith("I"):
            scales = (65535.0,) if image.mode.startswith("I;16") else (255.0, 65535.0)
        full_scale = next((scale for scale in scales if values.max() <= scale), 65535.0)
        gray = np.clip(values * (255.0 / full_scale), 0, 255).round().astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")
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


def decode(file: Image.Image, size: int | None = None) -> Decoded:
    """Decode an opened image, and close it: shorter side resized to `size` (bicubic, antialiased), center crop.

    Without `size` the image keeps its own size.

    Raises:
        OSError, ValueError, SyntaxError: whatever Pillow raises for a broken file.
    """
    with file:
        image, more = to_rgb(file), has_more_frames(file)
    if size is not None:
        image = crop_extreme_aspect_ratio(image)
        image = TF.center_crop(TF.resize(image, size, InterpolationMode.BICUBIC), [size, size])
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
        note: a text for the user, if decoding took long or the images come from the cache.
    """

    images: Tensor
    readable: list[int]
    skipped: dict[int, str]
    multi_frame: list[int]
    note: str = ""


def _read_cache(path: Path, size: int) -> DecodedSet | None:
    """Return the images that an earlier run decoded, or None. They stay on disk until they are used."""
    try:
        found = DecodedSet(**torch.load(path, mmap=True, weights_only=True))
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
        atomic_write(path, lambda file: torch.save({**decoded._asdict(), "note": ""}, file))
    except (OSError, RuntimeError, UserError):
        return False
    return True


def decode_all(
    source: "ImageSource", size: int, pool: Executor, keep: bool = True, cache: Path | None = None, part: str = "train"
) -> DecodedSet:
    """Decode images in parallel, or read them from `cache` if an earlier run decoded the same images.

    Args:
        size: R of the squares.
        pool: the threads that decode.
        keep: False to learn only which images are readable.
        cache: folder in which images that take long to decode are kept; None: they are not kept.
    """
    count = len(source.names)
    images = torch.empty(count if keep else 0, 3, size, size, dtype=torch.uint8)
    if not count:
        return DecodedSet(images, [], {}, [])
    place = f"{source.location.resolve()}, {part}, {size}, {keep}"
    version = f"{CACHE_VERSION}, {PIL.__version__}, {source.fingerprint()}"
    outdated, newest = (hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest() for text in (place, version))
    path = None if cache is None else cache / f"{outdated[:16]}-{newest[:32]}.pt"
    if path is not None and (found := _read_cache(path, size)) is not None:
        return found
    started = time.monotonic()

    def decode_to(index: int) -> bool | Exception:
        """Decode an image to its place; return whether it has more frames, or the error."""
        try:
            decoded = decode(source.open(index), size)
        except MemoryError:  # not the file's fault
            raise
        except Exception as error:  # Pillow's decoders raise any exception for broken bytes
            return error
        if keep:
            images[index] = decoded.pixels
        return decoded.has_more_frames

    Image.init()  # or the threads import Pillow's plugins, and Ctrl-C in another import would block them for ever
    results = list(ProgressBar(pool.map(decode_to, range(count)), "decode", "images", count))
    readable = [index for index, result in enumerate(results) if isinstance(result, bool)]
    if keep and len(readable) < count:
        for i, index in enumerate(readable):  # one by one: there may be no room for a second copy
            images[i] = images[index]
        images = images[: len(readable)]
    skipped = {i: describe_error(error) for i, error in enumerate(results) if isinstance(error, Exception)}
    multi_frame = [index for index, result in enumerate(results) if result is True]
    decoded = DecodedSet(images, readable, skipped, multi_frame)
    seconds = time.monotonic() - started
    # A system error, such as a missing permission, may be gone at the next start, although the file is the same.
    may_pass = any(isinstance(error, OSError) and error.errno for error in results)
    if path is not None and seconds > CACHE_SECONDS and not may_pass:
        kept = f", kept in {cache}" if _write_cache(path, decoded, outdated=outdated[:16]) else ""
        decoded = decoded._replace(note=f" (decoded in {seconds:.0f} s{kept})")
    return decoded


def decode_some(source: "ImageSource", indices: Sequence[int], size: int) -> Tensor:
    """Return some images of a source, uint8 (n, 3, R, R)."""
    return torch.stack([decode(source.open(index), size).pixels for index in indices])
