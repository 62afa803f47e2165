"""grids.png: a picture with a row of images for each setting of a sweep, from the same latents or the same inputs."""

import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from generation.sampling import seed_latent
from generation.trained import Trained, load_trained
from images.decoding import decode_some, describe_error
from images.files import write_image
from runs.records import read_images, with_recorded_folders
from sources.contact_sheets import load_font
from sources.domains import find_domains
from sweeps.grid import Job, Sweep
from system.progress import ProgressBar
from utils import LOG, UserError, from_uint8, printable, to_uint8

MAX_PIXELS = 400_000  # of all images, as far as MIN_COLUMNS allows: the file then has about 0.5 MB
MIN_COLUMNS, MAX_COLUMNS = 4, 8  # images in a row
SMALL, LARGE = 64, 96  # pixels that an image takes: up to 64x64, and above
GAP, MARGIN, LINE = 2, 10, 15  # pixels between images, around the picture, of a line of text
LABEL_WIDTH, LABEL_LINES = 30, 4  # characters of a line of a label, and lines with the note


@dataclass(frozen=True)
class Strip:
    """A row of the picture.

    Attributes:
        groups: images that stand together, each uint8 (n, 3, S, S): samples, or translations of each direction.
        note: a remark under the label, in gray.
    """

    label: str
    groups: list[Tensor] = field(default_factory=list)
    note: str = ""


def write_grids(path: Path, sweep: Sweep, checkpoint: str = "newest") -> bool:
    """Write the picture of a sweep as PNG; return False, and write nothing, if no run has images to show.

    The picture shows the first seed of each setting. The rows of DCGANs show the images that `generate.py sample`
    draws for the seeds 0, 1, 2 and so on. The rows of CycleGANs show translations of the same images: from X to Y on
    the left, from Y to X on the right, under a row of the inputs.

    Args:
        checkpoint: of each run: newest, best, or an iteration.
    """
    jobs = [job for job in sweep.jobs if job.seed == sweep.seeds[0]]
    strips: list[Strip] = []
    inputs: list[Tensor] = []
    with ProgressBar(None, "draw", "settings", total=len(jobs)) as bar:
        for job in jobs:
            strip, found = _draw(job, checkpoint)
            if found and not (inputs and all(map(torch.equal, inputs, found))):
                inputs = found  # another size, or other images, than in the row above
                strips.append(Strip("input", inputs))
            strips.append(strip)
            bar.update()
    if not any(strip.groups for strip in strips):
        return False
    is_translation = sweep.script == "cycle_gan.py"
    same, headings = ("input images", ["X to Y", "Y to X"]) if is_translation else ("latents", [])
    title = f"{sweep.name}: the same {same} in all rows, training seed {sweep.seeds[0]}"
    write_image(path, np.asarray(draw_strips(strips, title, headings)))
    return True


def _draw(job: Job, checkpoint: str) -> tuple[Strip, list[Tensor]]:
    """Return the row of a run, and the inputs of its translations in each direction."""
    label = job.case.label
    try:
        trained = load_trained(job.folder, checkpoint)
    except UserError:
        return Strip(label, note="no trained network"), []
    note = f"iteration {trained.step:,}"
    if not trained.is_translator:
        G = trained.generators["z"]
        # One by one: in a batch the last bits of an image depend on the other images.
        images = torch.cat([G(seed_latent(seed, G.noise_size)) for seed in range(MAX_COLUMNS)])  # (n, 3, S, S)
        return Strip(label, [to_uint8(images)], note), []
    try:
        inputs = read_inputs(job.folder, trained, MAX_COLUMNS // 2)
    except (UserError, OSError, ValueError, SyntaxError) as error:  # Pillow's errors for a broken file, too
        LOG.warning("%s: its images cannot be read (%s); its row stays empty", job.folder, describe_error(error))
        return Strip(label, note="its images cannot be read"), []
    made = [trained.generators[way](from_uint8(x)) for way, x in zip(("X2Y", "Y2X"), inputs, strict=True)]
    return Strip(label, [to_uint8(images) for images in made], note), inputs


def read_inputs(folder: Path, trained: Trained, count: int) -> list[Tensor]:
    """Return the first images of X and of Y of a CycleGAN, uint8 (n, 3, S, S): test images, if there are any.

    Raises:
        UserError: the images cannot be found.
        OSError, ValueError, SyntaxError: an image cannot be decoded.
    """
    options: Any = with_recorded_folders(trained.options, folder)
    found = []
    domains = find_domains(options, read_images(folder, options))
    for domain, value_range in zip(domains.values(), options.value_ranges(), strict=True):
        source = domain.test if domain.test is not None and domain.test.names else domain.train
        found.append(decode_some(source, range(min(count, len(source.names))), options.image_size, value_range))
    return found


def draw_strips(strips: list[Strip], title: str, headings: list[str]) -> Image.Image:
    """Return the picture: the title, and below it each row with its label on the left.

    Args:
        headings: of the groups of each row; none for a single group.
    """
    font, small = load_font(12), load_font(10)
    sizes = [group.shape[-1] for strip in strips for group in strip.groups]
    side = SMALL if max(sizes) <= SMALL else LARGE
    columns = max(MIN_COLUMNS, min(MAX_COLUMNS, MAX_PIXELS // (side**2 * len(strips)))) // max(1, len(headings))
    labels = [_wrap(strip) for strip in strips]
    title = textwrap.shorten(printable(title), 120, placeholder="…")
    widths = [font.getlength(line) for lines in labels for line in lines]
    left = 2 * MARGIN + round(max([*widths, *(small.getlength(strip.note) for strip in strips)]))
    group_width = columns * (side + GAP) + MARGIN
    top = MARGIN + LINE * (2 if headings else 1) + GAP
    width = max(left + group_width * max(1, len(headings)), round(font.getlength(title)) + 2 * MARGIN)
    page = Image.new("RGB", (width, top + len(strips) * (side + GAP) + MARGIN), "white")
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN // 2), title, "black", font)
    for number, heading in enumerate(headings):
        draw.text((left + number * group_width, MARGIN // 2 + LINE), heading, "black", font)
    for number, (strip, lines) in enumerate(zip(strips, labels, strict=True)):
        y = top + number * (side + GAP)
        middle = y + (side - LINE * (len(lines) + bool(strip.note))) // 2
        for line, text in enumerate(lines):
            draw.text((MARGIN, middle + line * LINE), text, "black", font)
        draw.text((MARGIN, middle + len(lines) * LINE + 1), strip.note, "dimgray", small)
        for at, group in enumerate(strip.groups):
            for column, image in enumerate(group[:columns]):
                page.paste(_resize(image, side), (left + at * group_width + column * (side + GAP), y))
    return page


def _wrap(strip: Strip) -> list[str]:
    """Return the label of a row in lines; a longer label loses its end."""
    lines = LABEL_LINES - bool(strip.note)
    return textwrap.wrap(printable(strip.label), LABEL_WIDTH, max_lines=lines, placeholder=" …")


def _resize(image: Tensor, side: int) -> Image.Image:
    """Return an image uint8 (3, S, S) with `side` pixels; an enlarged image shows its own pixels as squares."""
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy())  # (S, S, 3)
    how = Image.Resampling.LANCZOS if pixels.width > side else Image.Resampling.NEAREST
    return pixels.resize((side, side), how)
