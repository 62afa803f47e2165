"""Contact sheets: pages of small pictures with a caption under each."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from images.files import write_image
from utils import import_matplotlib, printable

COLUMNS, ROWS = 8, 6  # of a page
SIDE, GAP, LINE, LINES = 128, 12, 14, 3  # pixels of a picture, between pictures, of a line; lines of a caption


class Tile(NamedTuple):
    """A picture of a contact sheet: an image file, and the text under it: a title, and a remark of up to two lines."""

    path: Path
    title: str
    remark: str


def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return a font with Latin, Greek and Cyrillic letters, `size` pixels high."""
    import_matplotlib()
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def draw_sheets(folder: Path, name: str, tiles: Sequence[Tile]) -> list[Path]:
    """Write NAME-01.jpg, NAME-02.jpg and so on, as many pages as the pictures need; older pages are replaced.

    A picture that cannot be read stays empty.
    """
    import numpy as np

    font = load_font(10)
    for old in folder.glob(f"{name}-*.jpg"):
        old.unlink()
    pages: list[Path] = []
    for start in range(0, len(tiles), COLUMNS * ROWS):
        page = _draw_page(tiles[start : start + COLUMNS * ROWS], font)
        pages.append(folder / f"{name}-{len(pages) + 1:02d}.jpg")
        write_image(pages[-1], np.asarray(page))
    return pages


def _draw_page(tiles: Sequence[Tile], font: ImageFont.FreeTypeFont) -> Image.Image:
    """Return a page with these pictures."""
    width, height = SIDE + GAP, SIDE + LINES * LINE + GAP
    columns, rows = min(COLUMNS, len(tiles)), -(-len(tiles) // COLUMNS)
    page = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    draw = ImageDraw.Draw(page)
    for index, tile in enumerate(tiles):
        left, top = GAP + index % COLUMNS * width, GAP + index // COLUMNS * height
        try:
            with Image.open(tile.path) as image:
                page.paste(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top))
        except OSError:
            draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline="gray")
        lines = [fit_text(printable(tile.title), font), *_wrap(printable(tile.remark), font)]
        for number, line in enumerate(lines[:LINES]):
            draw.text((left, top + SIDE + 2 + number * LINE), line, "black" if number == 0 else "dimgray", font)
    return page


def fit_text(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Return a text that is as wide as a picture at most: if it is too long, without its middle."""
    kept = len(text)
    short = text
    while kept > 1 and font.getlength(short) > SIDE:
        kept -= 1
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return short


def _wrap(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """Return a text in lines as wide as a picture at most."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= SIDE:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    return [fit_text(line, font) for line in lines]
