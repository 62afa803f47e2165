"""Image files to uint8 tensors: decoded in parallel, once, and kept for the next run of the same data.

Threads do the decoding, not processes: Pillow decodes and resizes without Python's lock, and threads need no copies,
no second start of Python, and no rules for signals and forks.
"""

import hashlib
import json
import os
import re
import stat
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from utils import UserError, progress, write_json, write_whole

# isort: split
# After utils, which says in one line what to do if torchvision doesn't fit torch.
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # GIFs go by other endings, as downloads do
MAX_PIXELS = 50_000_000  # of one image; what has more is a scan, a panorama, or made to exhaust the memory
_MAX_RATIO = 4  # of an image's sides; of longer ones the middle is enough for a square
_CACHE_VERSION = 2  # raised when the same files would be decoded to other pixels, or another thing is kept of them
_CACHE_SECONDS = 2.0  # what takes less to decode is not kept

# Of large images, and of damaged notes in files that are fine otherwise: it would stand among our lines.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(UserError):
    """A file that is no image for us. The message is the reason, in words for the user."""


def open_image(path: Path) -> Image.Image:
    """Open an image file, of FORMATS only; close it after use. Its pixels are not decoded yet.

    What is no regular file is not opened: a pipe without a writer would never answer.

    Raises:
        ImageError: no regular file, or more than MAX_PIXELS.
        OSError, ValueError, SyntaxError: whatever Pillow says of a broken file.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if path.is_symlink():
            raise ImageError(f"a link that leads nowhere ({error.strerror})") from None
        raise
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        raise ImageError(f"a {kinds.get(stat.S_IFMT(mode), 'device')}, not a file")
    too_large = f"megapixels, more than {MAX_PIXELS / 1e6:.0f}"
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:  # Pillow's own ceiling, far above ours
        [pixels] = re.findall(r"\((\d+) pixels\)", str(error)) or ["0"]
        raise ImageError(f"{int(pixels) / 1e6:.1f} {too_large}") from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ImageError(f"{image.width * image.height / 1e6:.1f} {too_large}")
    return image


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF tag says. One whose tag can't be read stays as it is: its pixels are good."""
    image.load()  # first, so that what is wrong with the pixels is raised
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's reader raises whatever the bytes lead it to
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB: upright by its EXIF tag, composed on white where it is transparent."""
    image = upright(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits or more: convert() would clip at 255, not scale
        values = np.asarray(image, dtype=np.float32)
        values = np.nan_to_num(values)
        # Only 16-bit modes say what white is; 32-bit ones hold any of three conventions.
        scales = (
            (65535.0,) if image.mode.startswith("I;16") else (255.0, 65535.0) if image.mode == "I" else (1.0, 255.0)
        )
        full_scale = next((scale for scale in scales if values.max() <= scale), 65535.0)
        gray = np.clip(values * (255.0 / full_scale), 0, 255).round().astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def cut_middle(image: Image.Image) -> Image.Image:
    """Cut a very long image to its middle, about _MAX_RATIO times as long as wide; others stay as they are.

    Resized whole, one of 1x10000 would become a strip of 64x640000. The center stays where it is, to half a pixel.
    """
    short, long = sorted(image.size)
    kept = _MAX_RATIO * short + (long - _MAX_RATIO * short) % 2
    if long <= kept:
        return image
    start = (long - kept) // 2
    is_wide = image.width > image.height
    return image.crop((start, 0, start + kept, short) if is_wide else (0, start, short, start + kept))


def has_more(file: Image.Image) -> bool:
    """Whether a decoded file has more frames or pages than the first, even broken ones."""
    if file.format == "MPO":  # of the second image that some cameras put into a JPEG nobody needs to know
        return False
    try:
        return bool(getattr(file, "is_animated", False))
    except Exception:  # a GIF looks for its second frame only now
        return True


class Picture(NamedTuple):
    """A decoded image: uint8 (3, H, W), and whether its file has more frames or pages, which were left."""

    pixels: Tensor
    is_cut: bool


def read(path: Path, size: int | None) -> Picture:
    """Decode the first image of a file: shorter side resized to `size` (bicubic, antialiased), center crop.

    Without a size it stays as it is.

    Raises:
        ImageError: no regular file, or more than MAX_PIXELS.
        OSError, ValueError, SyntaxError: whatever Pillow says of a broken file.
    """
    with open_image(path) as file:
        image, is_cut = to_rgb(file), has_more(file)
    if size is not None:
        image = TF.center_crop(TF.resize(cut_middle(image), size, InterpolationMode.BICUBIC), [size, size])
    return Picture(torch.from_numpy(np.array(image)).permute(2, 0, 1), is_cut)  # (3, size, size)


def decode(path: Path, size: int | None) -> Tensor:
    """Return the pixels that `read` reads, uint8 (3, size, size), with the same errors."""
    return read(path, size).pixels


def reason(error: Exception) -> str:
    """Return in one line what is wrong with a file that could not be decoded."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a kind that Pillow does not know"
    speaks = isinstance(error, UserError | OSError | SyntaxError) and str(error)  # "image file is truncated" says it
    return " ".join((str(error) if speaks else f"{type(error).__name__}: {error}").split())


def try_decode(path: Path, size: int | None) -> Tensor | str:
    """Return the decoded image, or in one line what is wrong with the file."""
    try:
        return decode(path, size)
    except MemoryError:  # no fault of the file
        raise
    except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
        return reason(error)


class Decoded(NamedTuple):
    """What became of a list of files.

    Attributes:
        images: uint8 (N, 3, R, R) of the readable files, in their order; N is 0 if they were only tried.
        files: the readable files.
        skipped: unreadable file -> what is wrong with it.
        cut: the readable files that have more frames or pages than the first, which was used.
        source: how they came, for the user, if it took long or an earlier run had them.
    """

    images: Tensor
    files: list[Path]
    skipped: dict[Path, str]
    cut: list[Path]
    source: str = ""


def _key(files: Sequence[Path], size: int, keep: bool) -> tuple[str, str]:
    """Return names for the decoded files.

    Returns:
        One for the folder, size and kind, and one that is another for other files, sizes, times or another Pillow.
    """
    stats = []
    for path in files:
        try:
            found = path.stat()
            stats.append((path.name, found.st_size, found.st_mtime_ns))
        except OSError as error:  # gone, or a link that leads nowhere
            stats.append((path.name, error.errno))
    what = [str(files[0].parent.resolve()), size, keep]
    hashes = [
        hashlib.sha256(json.dumps(content).encode()) for content in (what, [_CACHE_VERSION, PIL.__version__, stats])
    ]
    return hashes[0].hexdigest()[:16], hashes[1].hexdigest()[:32]


def _read_cache(folder: Path, key: str, files: Sequence[Path], size: int) -> Decoded | None:
    """Return what an earlier run decoded, or None. The images stay on disk until they are used."""
    try:
        content = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        skipped, cut = content["skipped"], set(content["cut"])
        # Copy-on-write: torch wants arrays that may be written to.
        images = np.load(folder / f"{key}.npy", mmap_mode="c", allow_pickle=False)
        readable = [path for path in files if path.name not in skipped]
        fits = images.dtype == np.uint8 and images.shape in ((len(readable), 3, size, size), (0, 3, size, size))
    except Exception:  # NumPy has no one exception for a damaged file
        return None
    if not fits:
        return None
    skipped = {path: skipped[path.name] for path in files if path.name in skipped}
    more = [path for path in readable if path.name in cut]
    return Decoded(torch.from_numpy(images), readable, skipped, more, f"; decoded before, in {folder}")


def _write_cache(folder: Path, key: str, decoded: Decoded, outdated: str) -> bool:
    """Keep what was decoded in place of what has names that begin with `outdated`; return whether there was room."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in [*folder.glob(f"{outdated}*"), *folder.glob(f".{outdated}*.tmp")]:  # the second: of a killed one
            path.unlink()
        write_whole(folder / f"{key}.npy", lambda file: np.save(file, decoded.images.numpy(), allow_pickle=False))
        skipped, cut = {path.name: text for path, text in decoded.skipped.items()}, [path.name for path in decoded.cut]
        write_json(folder / f"{key}.json", {"skipped": skipped, "cut": cut})
    except (OSError, ValueError, UserError):  # ValueError: a file name that is no text
        return False
    return True


def decode_all(
    files: Sequence[Path], size: int, pool: Executor, keep: bool = True, cache: Path | None = None
) -> Decoded:
    """Decode files in parallel, or take from `cache` what an earlier run decoded of the same files.

    Args:
        size: R of the squares.
        keep: False to learn only which files are readable.
        cache: folder for what takes long to decode; None for none.
    """
    if not files:
        return Decoded(torch.empty(0, 3, size, size, dtype=torch.uint8), [], {}, [])
    what, which = _key(files, size, keep)
    key = f"{what}-{which}"
    if cache is not None and (decoded := _read_cache(cache, key, files, size)) is not None:
        return decoded
    started = time.monotonic()
    images = torch.empty(len(files) if keep else 0, 3, size, size, dtype=torch.uint8)

    def decode_to(place: int) -> bool | Exception:
        """Decode a file to its place; return whether it has more than its first image, or what is wrong with it."""
        try:
            image = read(files[place], size)
        except MemoryError:  # no fault of the file
            raise
        except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
            return error
        if keep:
            images[place] = image.pixels
        return image.is_cut

    results = list(progress(pool.map(decode_to, range(len(files))), "decode", "images", len(files)))
    errors = {path: error for path, error in zip(files, results, strict=True) if isinstance(error, Exception)}
    skipped = {path: reason(error) for path, error in errors.items()}
    cut = [path for path, is_cut in zip(files, results, strict=True) if is_cut is True]
    places = [place for place, result in enumerate(results) if isinstance(result, bool)]
    if keep and skipped:
        for i, place in enumerate(places):  # one by one: there may be no room for a second copy
            images[i] = images[place]
    decoded = Decoded(images[: len(places)] if keep else images, [files[place] for place in places], skipped, cut)
    seconds = time.monotonic() - started
    # What the system refused, such as a permission, it may grant the next time, to the same file.
    may_pass = any(isinstance(error, OSError) and error.errno for error in errors.values())
    if cache is not None and seconds > _CACHE_SECONDS and not may_pass:
        kept = f", kept in {cache}" if _write_cache(cache, key, decoded, outdated=what) else ""
        decoded = decoded._replace(source=f"; decoded in {seconds:.0f} s{kept}")
    return decoded
