"""What evaluate.py shows and saves: lines for the user, files, and pictures of nearest neighbors."""

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metrics.evaluation import Comparison
from runs.tables import append_metrics
from system.files import read_json, write_bytes, write_json
from utils import UserError, from_uint8, image_grid, to_png

MIN_IMAGES_FOR_FID = 2048  # with fewer a Frechet distance is far above its value for many images
MIN_IMAGES_FOR_RECALL = 100  # with fewer the third neighbor is far away, so that noise counts as near
MIN_IMAGES_FOR_COVERAGE = 20  # with fewer a few images by chance change the level of the variety


def save_evaluation(
    folder: Path,
    step: int,
    features: str,
    about: dict[str, Any],
    rows: list[dict[str, Any]],
    pictures: dict[str, Tensor],
) -> list[Path]:
    """Save an evaluation: rows in metrics.csv, everything as JSON, and pictures; return their paths.

    Args:
        features: the feature space, part of the file names.
        about: the options of the evaluation.
        rows: of metrics.csv.
        pictures: task -> uint8 (3, H, W) of generated images beside the nearest real ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {**about, "step": step, "rows": rows}
    for number in itertools.count(1):  # the same evaluation replaces itself, a different one gets a new name
        stem = f"{step:06d}-{features}" + (f"-{number}" if number > 1 else "")
        written = [folder / f"evaluation-{stem}.json"]
        if not written[0].exists():
            break
        with contextlib.suppress(UserError):  # a damaged file is a different one
            if read_json(written[0]) == content:
                break
    table = append_metrics(folder, rows)  # first, because it may fail
    write_json(written[0], content)
    for task, picture in pictures.items():
        name = f"nearest-{stem}" + (f"-{task[0]}-{task[-1]}" if "2" in task else "") + ".png"
        write_bytes(folder / name, to_png(picture))
        written.append(folder / name)
    return [*written, table]


def draw_nearest(comparison: Comparison, distances: Tensor, indices: Tensor) -> Tensor:
    """Return the 32 generated images nearest to a real image, the nearest first, each beside its real image.

    uint8 (3, H', W').
    """
    first = distances.argsort()[:32]
    real = comparison.reference[indices[first].long()]
    pairs = torch.cat([comparison.generated[first], real], dim=3)  # (n, 3, H, 2W)
    return image_grid(from_uint8(pairs), columns=8, padding=6)


# Metric, or the beginning of its name -> its interpretation.
INTERPRETATIONS = {
    "KID": "less is better",
    "kernel distance": "less is better",
    "FID": "less is better",
    "MiFID": "less is better",
    "Frechet distance": "less is better",
    "precision": "share of generated images that are like real ones; 1 is best",
    "recall": "share of real images that are like generated ones; 1 is best",
    "coverage": "share of real images with a generated image near them; 1 is best",
    "density": "real images around a generated one; about 1: as around a real one",
    "nearest distance ratio": "near 1: as new as real images; near 0: copies; far above 1: unlike all real images",
    "SSIM between": "1 would mean that all images are the same",
    "L1": "of pixels in [0, 1]; 0 is best",
    "SSIM with": "1 is best",
}


def describe(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the rows of one comparison as lines for the user."""
    width = max(len(row["metric"]) for row in rows)
    lines = []
    for row in rows:
        number = f"{row['value']:.4g}" + (f" ± {row['std']:.2g}" if row["std"] else "")
        meaning = next(text for start, text in INTERPRETATIONS.items() if row["metric"].startswith(start))
        lines.append(f"    {row['metric']:{width}}  {number:16}  {meaning}")
    return lines
