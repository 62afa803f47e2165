"""Image files to uint8 tensors: decoded in parallel, once, and kept for the next run of the same data.

Threads do the decoding, not processes: Pillow decodes and resizes without Python's lock, and threads need no copies,
no second start of Python, and no rules for signals and forks.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor

from utils import progress, write_json, write_whole

# isort: split
# After utils, which says in one line what to do if torchvision doesn't fit torch.
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_CACHE_VERSION = 1  # raised when the same files would be decoded to other pixels
_CACHE_SECONDS = 2.0  # what takes less to decode is not kept


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB: upright by its EXIF tag, composed on white where it is transparent."""
    image = ImageOps.exif_transpose(image)
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


def decode(path: Path, size: int | None) -> Tensor:
    """Read an image: shorter side resized to `size` (bicubic, antialiased), center crop. uint8 (3, size, size).

    Without a size it stays as it is, uint8 (3, H, W).

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: whatever Pillow says of a broken file.
    """
    with Image.open(path, formats=FORMATS) as image:
        image = to_rgb(image)
    if size is not None:
        image = TF.center_crop(TF.resize(image, size, InterpolationMode.BICUBIC), [size, size])
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, size, size)


def try_decode(path: Path, size: int | None) -> Tensor | str:
    """Return the decoded image, or in one line what is wrong with the file."""
    try:
        return decode(path, size)
    except MemoryError:  # no fault of the file
        raise
    except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
        return " ".join(f"{type(error).__name__}: {error}".split())


class Decoded(NamedTuple):
    """What became of a list of files.

    Attributes:
        images: uint8 (N, 3, R, R) of the readable files, in their order; N is 0 if they were only tried.
        files: the readable files.
        skipped: unreadable file -> what is wrong with it.
        source: how they came, for the user, if it took long or an earlier run had them.
    """

    images: Tensor
    files: list[Path]
    skipped: dict[Path, str]
    source: str = ""


def _key(files: Sequence[Path], size: int, keep: bool) -> tuple[str, str]:
    """Return names for the decoded files.

    Returns:
        One for the folder, size and kind, and one that is another for other files, sizes, times or another Pillow.
    """
    stats = [(path.name, stat.st_size, stat.st_mtime_ns) for path in files for stat in [path.stat()]]
    what = [str(files[0].parent.resolve()), size, keep]
    hashes = [
        hashlib.sha256(json.dumps(content).encode()) for content in (what, [_CACHE_VERSION, PIL.__version__, stats])
    ]
    return hashes[0].hexdigest()[:16], hashes[1].hexdigest()[:32]


def _read_cache(folder: Path, key: str, files: Sequence[Path], size: int) -> Decoded | None:
    """Return what an earlier run decoded, or None. The images stay on disk until they are used."""
    try:
        skipped = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))["skipped"]
        # Copy-on-write: torch wants arrays that may be written to.
        images = np.load(folder / f"{key}.npy", mmap_mode="c", allow_pickle=False)
        readable = [path for path in files if path.name not in skipped]
        fits = images.dtype == np.uint8 and images.shape in ((len(readable), 3, size, size), (0, 3, size, size))
    except Exception:  # NumPy has no one exception for a damaged file
        return None
    if not fits:
        return None
    skipped = {path: skipped[path.name] for path in files if path.name in skipped}
    return Decoded(torch.from_numpy(images), readable, skipped, f"; decoded before, in {folder}")


def _write_cache(folder: Path, key: str, decoded: Decoded, outdated: str) -> bool:
    """Keep what was decoded in place of what has names that begin with `outdated`; return whether there was room."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"{outdated}*"):
            path.unlink()
        write_whole(folder / f"{key}.npy", lambda file: np.save(file, decoded.images.numpy(), allow_pickle=False))
        write_json(folder / f"{key}.json", {"skipped": {path.name: text for path, text in decoded.skipped.items()}})
    except (OSError, ValueError):  # ValueError: a file name that is no text
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
        return Decoded(torch.empty(0, 3, size, size, dtype=torch.uint8), [], {})
    what, which = _key(files, size, keep)
    key = f"{what}-{which}"
    if cache is not None and (decoded := _read_cache(cache, key, files, size)) is not None:
        return decoded
    started = time.monotonic()
    images = torch.empty(len(files) if keep else 0, 3, size, size, dtype=torch.uint8)

    def decode_to(place: int) -> str | None:
        """Decode a file to its place; return what is wrong with it, if anything is."""
        image = try_decode(files[place], size)
        if isinstance(image, str):
            return image
        if keep:
            images[place] = image
        return None

    troubles = list(progress(pool.map(decode_to, range(len(files))), "decode", "images", len(files)))
    skipped = {path: trouble for path, trouble in zip(files, troubles, strict=True) if trouble is not None}
    places = [place for place, trouble in enumerate(troubles) if trouble is None]
    if keep and skipped:
        for i, place in enumerate(places):  # one by one: there may be no room for a second copy
            images[i] = images[place]
    decoded = Decoded(images[: len(places)] if keep else images, [files[place] for place in places], skipped)
    seconds = time.monotonic() - started
    if cache is not None and seconds > _CACHE_SECONDS:
        kept = f", kept in {cache}" if _write_cache(cache, key, decoded, outdated=what) else ""
        decoded = decoded._replace(source=f"; decoded in {seconds:.0f} s{kept}")
    return decoded
