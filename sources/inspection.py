"""What can be said about the images of a folder before training: facts of each image, and copies among them."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from images.decoding import describe_error, has_more_frames, to_rgb
from images.source import ImageSource
from images.values import Scale, ValueRange, find_scale
from options.dataset import CheckOptions
from options.value_range import read_value_ranges
from sources.copies import EDGES, LENGTH, find_matches, find_near_copies, make_fingerprint
from sources.domains import read_images
from sources.folders import find_folder
from system.progress import ProgressBar
from utils import UserError

GRAY = 3  # the largest difference between the channels of a gray image, in levels; JPEG makes some


class Facts(NamedTuple):
    """What is known of a readable image, rotated by its EXIF tag.

    Attributes:
        size: (width, height) in pixels.
        mode: Pillow's mode of the file, such as RGB or L.
        digest: a hash of the pixels, as training sees them.
        fingerprint: see `make_fingerprint`.
        color: mean of each channel, (R, G, B) in [0, 255].
        contrast: standard deviation of the gray values, in levels.
        is_gray: whether all pixels are gray, whatever the mode is.
        has_more_frames: whether the file has more frames or pages than the first.
    """

    size: tuple[int, int]
    mode: str
    digest: bytes
    fingerprint: np.ndarray
    color: np.ndarray
    contrast: float
    is_gray: bool
    has_more_frames: bool

    @property
    def area(self) -> int:
        return self.size[0] * self.size[1]

    @property
    def brightness(self) -> float:
        """Mean of all values, in [0, 255]."""
        return float(self.color.mean())

    @property
    def ratio(self) -> float:
        """The longer side divided by the shorter side."""
        return max(self.size) / min(self.size)


class Part:
    """The images of one folder, such as trainA.

    Args:
        name: how the report calls the folder.
        source: its images.
        domain: 0 or 1 (X or Y); the parts of a domain train and test the same network.

    Attributes:
        indices: the readable images, by their numbers in `source`.
        facts: of the readable images, in the same order.
        unreadable: name of each unreadable image -> the reason.
        scale: how images with more than 8 bits become 8 bits; None if there are none.
        copies: what is a copy of what, by position in `facts`: `exact`, the same pixels, and `near`.
    """

    def __init__(self, name: str, source: ImageSource, domain: int = 0):
        self.name, self.source, self.domain = name, source, domain
        self.indices: list[int] = []
        self.facts: list[Facts] = []
        self.unreadable: dict[str, str] = {}
        self.scale: Scale | None = None
        self.exact: dict[int, int] = {}
        self.near: dict[int, int] = {}

    @property
    def names(self) -> list[str]:
        """The names of the readable images."""
        return [self.source.names[index] for index in self.indices]

    @property
    def value_range(self) -> ValueRange | None:
        return self.scale.range if self.scale else None

    def fingerprints(self, positions: Sequence[int] | None = None) -> np.ndarray:
        """Return the fingerprints of the readable images, or of some of them, (N, LENGTH)."""
        chosen = self.facts if positions is None else [self.facts[position] for position in positions]
        return np.stack([one.fingerprint for one in chosen]) if chosen else np.zeros((0, LENGTH), np.float32)

    def inspect(self, pool: Executor, value_range: ValueRange | None, near_copy: float) -> None:
        """Decode all images, and find the copies among them. `value_range` is as in `to_8_bits`."""
        self.scale = find_scale(self.source, pool, value_range)
        count = len(self.source.names)
        results = pool.map(self._try_look, range(count))
        for index, found in enumerate(ProgressBar(results, f"look at {self.name}", "images", count)):
            if isinstance(found, Facts):
                self.indices.append(index)
                self.facts.append(found)
            else:
                self.unreadable[self.source.names[index]] = describe_error(found)
        first: dict[bytes, int] = {}
        for position, one in enumerate(self.facts):
            if first.setdefault(one.digest, position) != position:
                self.exact[position] = first[one.digest]
        single = [position for position in range(len(self.facts)) if position not in self.exact]
        areas = [self.facts[position].area for position in single]
        near = find_near_copies(self.fingerprints(single), areas, near_copy)
        self.near = {single[copy]: single[original] for copy, original in near.items()}

    def _try_look(self, index: int) -> Facts | Exception:
        try:
            with self.source.open(index) as file:
                return look(file, self.value_range)
        except MemoryError:  # not the file's fault
            raise
        except Exception as error:  # Pillow's decoders raise any exception for broken bytes
            return error


def look(file: Image.Image, value_range: ValueRange | None = None) -> Facts:
    """Return the facts of an opened image. Raises whatever Pillow raises for a broken file."""
    mode = file.mode
    image = to_rgb(file, value_range)
    pixels = np.asarray(image)  # (H, W, 3)
    small = np.asarray(image.resize((EDGES, EDGES), Image.Resampling.BOX))
    sampled = np.asarray(image.resize((64, 64), Image.Resampling.NEAREST).convert("L"))
    return Facts(
        size=image.size,
        mode=mode,
        digest=hashlib.blake2b(pixels.data, digest_size=16, key=f"{image.size}".encode()).digest(),
        fingerprint=make_fingerprint(small),
        color=small.mean(axis=(0, 1)),
        contrast=float(sampled.std()),
        is_gray=int(np.ptp(small, axis=2).max()) <= GRAY,
        has_more_frames=has_more_frames(file),
    )


def find_shared(part: Part, other: Part, near_copy: float) -> dict[int, int]:
    """Return which images of `part` are copies, exact or near, of images of `other`: position -> position."""
    digests = {one.digest: position for position, one in reversed(list(enumerate(other.facts)))}
    exact = {i: digests[one.digest] for i, one in enumerate(part.facts) if one.digest in digests}
    return find_matches(part.fingerprints(), other.fingerprints(), near_copy) | exact


def find_parts(options: CheckOptions) -> list[Part]:
    """Return the folders to look at: two domains, trainA, trainB, testA and testB of one folder, or the folder.

    Raises:
        UserError: no such folder, no image in it, or twice the same folder.
    """
    root = find_folder(options.folder, "FOLDER")
    if options.other is not None:
        other = find_folder(options.other, "OTHER")
        if root.resolve() == other.resolve():
            raise UserError(f"OTHER: {other} is the same folder as FOLDER; give the folder of the other domain")
        folders = {"X": (root, "FOLDER"), "Y": (other, "OTHER")}
        return [
            Part(name, read_images(folder, flag=flag), int(name == "Y")) for name, (folder, flag) in folders.items()
        ]
    if not ((root / "trainA").is_dir() and (root / "trainB").is_dir()):
        return [Part("images", read_images(root, flag="FOLDER"))]
    names = [name for name in ("trainA", "trainB", "testA", "testB") if (root / name).is_dir()]
    return [Part(name, read_images(root / name, flag="FOLDER"), int(name[-1] == "B")) for name in names]


def inspect_parts(parts: Sequence[Part], options: CheckOptions) -> None:
    """Look at all images. Raises UserError if a folder has no readable one."""
    ranges = dict(enumerate(read_value_ranges(options.value_range, 2)))
    Image.init()  # or the threads import Pillow's plugins, and Ctrl-C in another import would block them for ever
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in parts:
            part.inspect(pool, ranges[part.domain], options.near_copy)
            ranges[part.domain] = part.value_range or ranges[part.domain]  # test images get the range of training
            if not part.facts:
                name, reason = next(iter(part.unreadable.items()))
                raise UserError(
                    f"FOLDER: none of the {len(part.unreadable)} images in {part.source.location} is readable (first: "
                    f"{name}, {reason}); give a folder of images"
                )
