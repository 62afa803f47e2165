"""Images with more than 8 bits per value: one range of values for all images of a folder becomes 0 to 255.

Files of 16 and 32 bits and of floating-point numbers do not say which values mean black and white: 12-bit data lie in
16-bit files, CT images have negative values. A range for each image would change the brightness of images relative to
each other, so one range is chosen for all.
"""

import itertools
import math
from concurrent.futures import Executor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageSequence

from system.progress import ProgressBar

if TYPE_CHECKING:
    from images.source import ImageSource

ValueRange = tuple[float, float]  # the values that become 0 and 255
INTEGER_RANGES = ((0, 255), (0, 1023), (0, 4095), (0, 16383), (0, 65535))  # of 8, 10, 12, 14 and 16 bits
FLOAT_RANGES = ((0, 1), (-1, 1), (0, 255))
TOLERANCE = 0.05  # a resize makes values that lie outside of a range by a few percent of its width
MIN_USED = 0.25  # the least part of a range that the values use; with less, images would be nearly black, or flat


class Extent(NamedTuple):
    """The smallest and the largest finite value of an image, and whether its values are floating-point numbers.

    Without a finite value `low` is infinity and `high` minus infinity.
    """

    low: float
    high: float
    is_float: bool


class Scale(NamedTuple):
    """How the images of a source with more than 8 bits become 8 bits: `low` becomes 0 and `high` 255.

    Attributes:
        num_images: the number of these images.
        is_measured: whether the range was chosen from the values of the images.
        is_mixed: whether some of the images have whole numbers and others floating-point numbers.
    """

    low: float
    high: float
    num_images: int
    is_measured: bool
    is_mixed: bool = False

    @property
    def range(self) -> ValueRange:
        return self.low, self.high

    def describe(self, origin: str = "the range that was set") -> str:
        """Return one line for the log. `origin` says where a range comes from that was not measured."""
        have = "images have" if self.num_images > 1 else "image has"
        low, high = f"{self.low:.9g}", f"{self.high:.9g}"
        how = "chosen from all their values; --value_range=LOW,HIGH sets another range" if self.is_measured else origin
        mixed = "; whole numbers and floats share this range, so check the result" if self.is_mixed else ""
        return f"{self.num_images} {have} more than 8 bits: values {low} to {high} become 0 to 255 ({how}{mixed})"


def is_wide(image: Image.Image) -> bool:
    """Whether an image has values of more than 8 bits. Only its header is needed."""
    return image.mode.startswith("I") or image.mode == "F"


def measure_extent(image: Image.Image) -> Extent:
    """Return the extent of an image for which `is_wide` is true, without its transparent value."""
    values = np.asarray(image)
    is_float, transparent = values.dtype.kind == "f", image.info.get("transparency")
    values = values[np.isfinite(values)]
    values = values if transparent is None else values[values != transparent]
    if not values.size:
        return Extent(math.inf, -math.inf, is_float)
    return Extent(float(values.min()), float(values.max()), is_float)


def choose_range(extents: list[Extent]) -> ValueRange:
    """Return the range of values that becomes 0 to 255, for all images with these extents.

    The range is the first usual one that contains all values and of which the values use a quarter; if there is none,
    as for CT images, the range is from the smallest to the largest value. Ranges of more than 8 bits have many more
    values than gray levels, so of these the values must use a quarter from the smallest to the largest value: thermal
    images and CT images with an offset use a small part far from 0. Of other ranges the quarter begins at 0.
    """
    low, high = min((one.low for one in extents), default=0.0), max((one.high for one in extents), default=0.0)
    for black, white in FLOAT_RANGES if any(one.is_float for one in extents) else INTEGER_RANGES:
        margin = TOLERANCE * (white - black)
        used = high - (low if white > 255 and low < high else min(low, 0))
        if black - margin <= low and high <= white + margin and used >= MIN_USED * (white - black):
            return float(black), float(white)
    if low < high:
        return low, high
    return (low, low + 1) if low == high else (0.0, 1.0)  # all values are the same, or none is finite


def find_scale(
    source: "ImageSource", pool: Executor, value_range: ValueRange | None = None, all_pages: bool = False
) -> Scale | None:
    """Return the scale of a source's images with more than 8 bits; None if it has none.

    Headers tell which images these are. Only their pixels are read, and only without `value_range`. What is not
    readable is ignored: decoding reports it.

    Args:
        all_pages: measure all pages of a file, not only the first one.
    """

    def look(index: int) -> list[Extent] | None:
        """Return the extents of an image's pages, none if the range is given; None for an image of 8 bits."""
        extents: list[Extent] | None = None
        if not source.may_be_wide(index):
            return None
        try:
            with source.open(index) as image:
                if is_wide(image):
                    extents = []
                    for page in ImageSequence.Iterator(image) if value_range is None else ():
                        extents += [measure_extent(page)] if is_wide(page) else []
                        if not all_pages:
                            break
        except MemoryError:  # not the file's fault
            raise
        except Exception:  # Pillow's decoders raise any exception for broken bytes
            pass
        return extents

    count = len(source.names)
    results = ProgressBar(pool.map(look, range(count)), "measure", "images", count)
    found = [extents for extents in results if extents is not None]
    if not found:
        return None
    if value_range is not None:
        return Scale(*value_range, len(found), is_measured=False)
    extents = list(itertools.chain(*found))
    return Scale(*choose_range(extents), len(found), True, len({one.is_float for one in extents}) > 1)


def to_8_bits(image: Image.Image, value_range: ValueRange | None = None) -> Image.Image:
    """Convert an image with more than 8 bits to gray, "L", or to "LA" if one of its values is transparent.

    Other images are returned as they are.

    Args:
        value_range: (low, high): values up to `low` become 0, from `high` on 255. None: chosen from this image alone.
    """
    if not is_wide(image):
        return image
    low, high = choose_range([measure_extent(image)]) if value_range is None else value_range
    values = np.asarray(image)
    # 32-bit integers have more digits than float32.
    wide = values.astype(np.float64 if values.dtype.kind in "iu" and values.dtype.itemsize > 2 else np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = (wide - low) * (255.0 / (high - low))
    gray = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255).round().astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is None:
        return Image.fromarray(gray)
    return Image.fromarray(np.dstack([gray, np.where(values == transparent, 0, 255).astype(np.uint8)]))


def fix_transparency(image: Image.Image) -> None:
    """Scale the transparent color of an opened PNG file as Pillow scales the pixels; Pillow leaves it in file units."""
    tiles = getattr(image, "tile", None) if image.format == "PNG" else None
    color, raw = image.info.get("transparency"), tiles[0][3] if tiles else None  # such as "L;2": as in the file
    raw = raw[0] if isinstance(raw, tuple) else raw
    if isinstance(color, int) and raw in ("L;2", "L;4"):
        image.info["transparency"] = color * {"L;2": 85, "L;4": 17}[raw]
    elif isinstance(color, tuple) and raw == "RGB;16B":  # Pillow keeps the upper 8 of 16 bits
        image.info["transparency"] = tuple(value >> 8 for value in color)
