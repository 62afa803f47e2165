"""Pictures of a page: grids and nearest training images, as WebP inside the HTML."""

import base64
import io
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from system.progress import ProgressBar

QUALITY = 85
MAX_PIXELS = 30_000_000  # of all pictures of a page: about 100 grids of 530x530, 8 MB
MIN_GRIDS = 4  # of a run and direction, however large they are
MAX_SIDE = 8192  # of one picture


@dataclass(frozen=True)
class Picture:
    """A picture as a page needs it: the text of its `src`, width and height."""

    src: str
    width: int
    height: int


class PictureEncoder:
    """Encodes PNG files as WebP; a file that has not changed since the last page is not encoded again."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, int, int], Picture | None] = {}

    def __call__(self, paths: Sequence[Path]) -> dict[Path, Picture]:
        """Return path -> picture, without the files that cannot be read."""
        keys = {}
        for path in paths:
            try:
                about = path.stat()
            except OSError:  # deleted since the folder was listed
                continue
            keys[path] = (path, about.st_mtime_ns, about.st_size)
        new = [key for key in keys.values() if key not in self._known]
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            with ProgressBar(None, "pictures", "pictures", total=len(new)) as bar:
                for key, picture in zip(new, pool.map(lambda key: _encode(key[0]), new), strict=True):
                    self._known[key] = picture
                    bar.update()
        self._known = {key: self._known[key] for key in keys.values()}
        return {path: picture for path, key in keys.items() if (picture := self._known[key]) is not None}


def _encode(path: Path) -> Picture | None:
    """Return a PNG file as WebP; None if it is damaged or too large."""
    try:
        with Image.open(path) as image:
            if max(image.size) > MAX_SIDE:
                return None
            content = io.BytesIO()
            image.convert("RGB").save(content, format="WEBP", quality=QUALITY, method=2)
            text = base64.b64encode(content.getvalue()).decode()
            return Picture(f"data:image/webp;base64,{text}", *image.size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _count_pixels(path: Path) -> int:
    """Return width times height of a picture; 0 if it is damaged."""
    try:
        with Image.open(path) as image:
            return math.prod(image.size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 0


def thin_evenly(steps: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of the sorted iterations, evenly spaced in the list, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def choose_grids(series: Sequence[dict[int, Path]]) -> list[dict[int, Path]]:
    """Return the grids that a page shows of each series, iteration -> file: all, or as many as MAX_PIXELS allows."""
    pixels = [_count_pixels(grids[max(grids)]) for grids in series]
    total = sum(count * len(grids) for count, grids in zip(pixels, series, strict=True))
    chosen = []
    for grids in series:
        most = max(MIN_GRIDS, int(len(grids) * min(1.0, MAX_PIXELS / max(total, 1))))
        chosen.append({step: grids[step] for step in thin_evenly(sorted(grids), most)})
    return chosen
