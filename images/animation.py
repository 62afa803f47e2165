"""Image files with several frames: animated WebP, PNG and GIF, and the pages of a TIFF, by Pillow. With alpha."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import AppendingTiffWriter

from images.decoding import describe_error, has_more_frames, open_image
from images.files import IMAGE_FORMATS, image_to_pixels
from images.values import ValueRange
from images.video import Frame, read_plays
from system.files import atomic_write
from utils import UserError

# Extensions of image files that hold several frames.
MULTI_FRAME_ENDINGS = tuple(ending for ending, (kind, _) in IMAGE_FORMATS.items() if kind in ("PNG", "WEBP", "TIFF"))
DEFAULT_MILLISECONDS = 100.0  # of a page, and of a frame that states no duration or 0, as in players


def is_animation(path: Path) -> bool:
    """Whether a file is a readable image with more than one frame or page."""
    try:
        with open_image(path) as image:
            return has_more_frames(image)
    except Exception:  # Pillow's decoders raise any exception for broken bytes; reading the image reports it
        return False


class Animation:
    """The frames of an image file, or the pages of a TIFF, decoded one by one while iterating.

    Args:
        value_range: the values of pages with more than 8 bits that become 0 and 255; see `to_8_bits`.

    Attributes:
        rate: frames per second, by the duration of the first frame.
        time_base: unit of the frames' times, in seconds.
        count: number of frames.
        plays: how many times the animation plays, 0 for endless.

    Raises:
        UserError: a frame is broken; also raised while iterating.
    """

    time_base = Fraction(1, 1000)

    def __init__(self, path: Path, value_range: ValueRange | None = None):
        self.path, self.value_range, self.plays = path, value_range, read_plays(path)
        try:
            with open_image(path) as image:
                self._first = int(getattr(image, "default_image", False))  # a PNG may begin with another picture
                self.count = getattr(image, "n_frames", 1) - self._first
        except Exception as error:  # Pillow's decoders raise any exception for broken bytes
            raise UserError(f"{path} is broken ({describe_error(error)}); give another") from None
        _, milliseconds = next(self._read())
        self.rate = (1000 / Fraction(milliseconds)).limit_denominator(1001)  # a delay of 1/30 s is 33.333 ms

    def _read(self) -> Iterator[tuple[np.ndarray, float]]:
        """Yield the pixels of each frame, and its duration in milliseconds."""
        index = 0
        try:
            with open_image(self.path) as image:
                for index in range(self.count):
                    image.seek(self._first + index)
                    pixels = image_to_pixels(image, self.value_range)
                    yield pixels, max(1.0, float(image.info.get("duration") or DEFAULT_MILLISECONDS))
        except Exception as error:  # Pillow's decoders raise any exception for broken bytes
            reason = describe_error(error)
            raise UserError(f"{self.path} is broken at frame {index + 1} ({reason}); give another") from None

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames from time 0 on: (H, W, 3), or (H, W, 4) with alpha. Pages may differ in size."""
        end = 0.0
        for pixels, milliseconds in self._read():
            start, end = end, end + milliseconds
            yield Frame(round(start), round(end) - round(start), pixels)


def write_animation(path: Path, frames: Iterable[Frame], time_base: Fraction, plays: int) -> int:
    """Write frames as an animated WebP or PNG, or as the pages of a TIFF, without metadata.

    All frames of a WebP or PNG are kept in memory, as Pillow needs them; the pages of a TIFF are not.

    Args:
        time_base: unit of the frames' times, in seconds.
        plays: how many times the animation plays, 0 for endless.

    Returns:
        The number of frames.

    Raises:
        UserError: the format cannot hold frames of different sizes.
        OSError, ValueError: whatever Pillow raises for a size that the format does not allow.
    """
    kind, how = IMAGE_FORMATS[path.suffix.lower()]
    durations: list[int] = []

    def images() -> Iterator[Image.Image]:
        for time, duration, pixels in frames:
            start, end = (round(1000 * moment * time_base) for moment in (time, time + duration))
            durations.append(end - start)
            yield Image.fromarray(pixels)

    def write(file: BinaryIO) -> None:
        if kind == "TIFF":
            with AppendingTiffWriter(file) as pages:
                for image in images():
                    image.save(pages, format=kind, **how)
                    pages.newFrame()
            return
        first, *others = images()
        sizes = sorted({image.size for image in (first, *others)})
        if len(sizes) > 1:
            listed = " and ".join(f"{width}x{height}" for width, height in sizes[:2])
            raise UserError(f"{path}: the pages differ in size ({listed}); write a .tiff instead")
        animated: dict[str, Any] = {"save_all": True, "append_images": others, "duration": durations, "loop": plays}
        first.save(file, format=kind, **animated, **how)

    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, write)
    return len(durations)
