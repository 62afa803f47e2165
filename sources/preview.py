"""The picture of `dataset.py check`: what training sees of some images, and what the discriminator sees."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from diff_augment import POLICIES, diff_augment
from images.augment import AUGMENTATIONS
from images.decoding import decode, to_rgb
from images.values import ValueRange
from options.fields import DIFFAUGMENT_ALL
from sources.contact_sheets import fit_text, load_font
from system.files import atomic_write
from utils import printable, to_pixels

DRAWS = 2  # of each augmentation with random numbers
CELL, GAP, GROUP_GAP, LINE = 128, 6, 22, 16  # pixels: side of a picture, between pictures, between groups, of a line
HEAD = 3 * LINE + 22  # height of the title and of the labels above the columns
SIGNATURE = ("Software", "dataset.py check")  # in the metadata of the file
TRAINING, DISCRIMINATOR = "training sees, with --data_aug", "D sees, with --use_diffaug (here after basic)"
RED, LABEL = (214, 40, 40), (70, 70, 70)


class Shown(NamedTuple):
    """An image of the picture.

    Attributes:
        name: of the image.
        size: (width, height) in pixels.
        original: the cell of the whole image.
        stored: for each --data_aug the square that training would store, uint8 (3, R, R).
    """

    name: str
    size: tuple[int, int]
    original: Image.Image
    stored: dict[str, Tensor]


class Column(NamedTuple):
    """A column of the picture: the group that it belongs to, its own label, and its images (N, 3, S, S)."""

    group: str
    label: str
    images: Tensor


def is_preview(path: Path) -> bool:
    """Whether a file was written by `write_preview`."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get(SIGNATURE[0]) == SIGNATURE[1]
    except Exception:  # Pillow raises any exception for broken bytes
        return False


def prepare(name: str, file: Image.Image, image_size: int, value_range: ValueRange | None = None) -> Shown:
    """Decode an opened image for the picture, and close it. Raises whatever Pillow raises for a broken file."""
    with file:
        image = to_rgb(file, value_range)
    sides = {how: augmentation.stored_size(image_size) for how, augmentation in AUGMENTATIONS.items()}
    stored = {how: decode(image.copy(), side).pixels for how, side in sides.items()}
    return Shown(name, image.size, _draw_original(image), stored)


def augment(shown: Sequence[Shown], image_size: int, generator: torch.Generator) -> list[Column]:
    """Return what training sees of images under each --data_aug, and what D sees of them under --use_diffaug.

    Args:
        image_size: S of the results (N, 3, S, S) in [-1, 1]; DiffAugment may leave this range.
        generator: draws the random numbers.
    """
    columns, count = [], len(shown)
    for name, augmentation in AUGMENTATIONS.items():
        stored = torch.stack([one.stored[name] for one in shown])  # uint8 (N, 3, R, R)
        for _ in range(DRAWS if augmentation.uniforms else 1):
            uniforms = torch.rand(count, augmentation.uniforms, generator=generator)
            columns.append(Column(TRAINING, name, augmentation.apply(stored, image_size, uniforms)))
    basic = columns[0].images
    for policy in (*POLICIES, DIFFAUGMENT_ALL):
        needed = sum(number for name in policy.split(",") for _, number in POLICIES[name])
        for _ in range(DRAWS if policy == DIFFAUGMENT_ALL else 1):
            drawn = diff_augment(basic, policy, torch.rand(count, needed, generator=generator))
            columns.append(Column(DISCRIMINATOR, "all three" if policy == DIFFAUGMENT_ALL else policy, drawn))
    return columns


def draw_preview(shown: Sequence[Shown], image_size: int, title: str) -> Image.Image:
    """Return the picture: a row for each image, first the original, then what `augment` makes of it."""
    columns = augment(shown, image_size, torch.Generator().manual_seed(0))
    groups = ["", *(column.group for column in columns)]
    lefts = [GAP]
    for before, group in itertools.pairwise(groups):
        lefts.append(lefts[-1] + CELL + (GAP if group == before else GROUP_GAP))
    row_height = CELL + LINE + GAP
    page = Image.new("RGB", (lefts[-1] + CELL + GAP, HEAD + len(shown) * row_height), "white")
    draw, font, bold = ImageDraw.Draw(page), load_font(12), load_font(15)
    draw.text((GAP, 4), title, "black", bold)
    _draw_labels(draw, font, columns, lefts)
    for row, one in enumerate(shown):
        top = HEAD + row * row_height
        page.paste(one.original, (lefts[0], top))
        draw.text((lefts[0], top + CELL + 1), fit_text(printable(one.name), font), LABEL, font)
        draw.text((lefts[1], top + CELL + 1), f"{one.size[0]}x{one.size[1]} to {image_size}x{image_size}", LABEL, font)
        for left, column in zip(lefts[1:], columns, strict=True):
            cell = Image.fromarray(to_pixels(column.images[row]))
            how = Image.Resampling.NEAREST if image_size <= CELL else Image.Resampling.LANCZOS
            page.paste(cell.resize((CELL, CELL), how), (left, top))
    return page


def _draw_labels(
    draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, columns: Sequence[Column], lefts: Sequence[int]
) -> None:
    """Write the labels above the columns: the groups, with a line below, and the columns; each once."""
    draw.text((lefts[0], HEAD - LINE - 2), "original", LABEL, font)
    for group in dict.fromkeys(column.group for column in columns):
        of_group = [left for left, column in zip(lefts[1:], columns, strict=True) if column.group == group]
        top = HEAD - 2 * LINE - 6
        draw.text((of_group[0], top), group, "black", font)
        draw.line((of_group[0], top + LINE + 1, of_group[-1] + CELL, top + LINE + 1), LABEL)
    for before, column, left in zip((None, *columns), columns, lefts[1:], strict=False):
        label = column.label if before is None or before.label != column.label else "another draw"
        draw.text((left, HEAD - LINE - 2), label, LABEL, font)


def _draw_original(image: Image.Image) -> Image.Image:
    """Return a whole image as a square cell: a frame shows the center crop, and what the crop cuts off is pale."""
    scale = CELL / max(image.size)
    width, height = (max(round(length * scale), 1) for length in image.size)
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    faded = Image.blend(small, Image.new("RGB", small.size, "white"), 0.6)
    faded.paste(small.crop(box), box)
    if width != height:
        ImageDraw.Draw(faded).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=RED)
    cell = Image.new("RGB", (CELL, CELL), "white")
    cell.paste(faded, ((CELL - width) // 2, (CELL - height) // 2))
    return cell


def write_preview(path: Path, picture: Image.Image) -> None:
    """Write the picture as a PNG file with the signature that `is_preview` looks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = PngInfo()
    about.add_text(*SIGNATURE)
    atomic_write(path, lambda file: picture.save(file, format="PNG", pnginfo=about))
