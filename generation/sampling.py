"""Images and interpolations of a trained DCGAN."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from generation.trained import load_trained_by
from images.files import IMAGE_FORMATS, write_image
from images.video import VIDEO_FORMATS, Frame, write_video
from models import sample_latents
from options.commands import InterpolateOptions, SampleOptions
from system.files import check_new_file, check_new_folder
from system.progress import ProgressBar
from system.threads import map_in_threads
from utils import LOG, UserError, image_grid, to_pixels

SAMPLE_NAME = re.compile(r"seed-\d{6,}\.png")
WALK_STEP = 0.5  # largest step of a random walk, of each coordinate of z


def map_on_cores(
    G: nn.Module, function: Callable[[Any], Any], items: Iterable[Any], most: int | None = None
) -> Iterator[Any]:
    """Yield function(item), which calls G, for each item in order; on a CPU each core works on items of its own.

    Cores that share an item wait for each other at every layer, and for threads that decode and write. Any other device
    has two items in progress, so that one is written while the next one is computed. Until the last item is done,
    PyTorch uses the threads of one item only.

    Args:
        most: maximum number of items in progress, to limit memory; each then has several cores.
    """
    cores = torch.get_num_threads()
    workers = cores if next(G.parameters()).device.type == "cpu" else 2
    workers = min(workers, most or workers)
    try:
        yield from map_in_threads(function, items, workers, 1, lambda: torch.set_num_threads(max(1, cores // workers)))
    finally:
        torch.set_num_threads(cores)  # later threads start with the number that was set last


def seed_latent(seed: int, noise_size: int, count: int = 1) -> Tensor:
    """Return z (count, noise_size, 1, 1) of a seed, uniform in [-1, 1], on the CPU."""
    return sample_latents(count, noise_size, torch.device("cpu"), torch.Generator().manual_seed(seed))


def name_sample(seed: int) -> str:
    return f"seed-{seed:06d}.png"


def remove_other_samples(folder: Path, seeds: list[int]) -> int:
    """Remove the samples of other seeds from a folder, or they would be taken for new ones; return their number.

    Only files with the names of samples are removed.
    """
    drawn = {name_sample(seed) for seed in seeds}
    others = [path for path in folder.iterdir() if SAMPLE_NAME.fullmatch(path.name) and path.name not in drawn]
    for path in others:
        path.unlink()
    return len(others)


def sample(options: SampleOptions) -> int:
    """Draw the image of each seed; return the exit code."""
    # Check the output, then load the network.
    folder = None if options.out is None else Path(options.out)
    grid = None if options.grid is None else Path(options.grid)
    if folder is not None:
        if not folder.exists() and folder.suffix.lower() in (*IMAGE_FORMATS, *VIDEO_FORMATS):
            raise UserError(f"--out: {folder} has the extension of a file, but --out is a folder; for one picture use "
                            f"--grid {folder}")  # fmt: skip
        check_new_folder(folder, options.overwrite)
    if grid is not None:
        check_new_file(grid, IMAGE_FORMATS, options.overwrite, "--grid")
    G = load_trained_by("vanilla_gan.py", options).generators["z"]
    device, seeds = next(G.parameters()).device, options.chosen_seeds()

    # Draw and write the images one by one: in a batch the last bits would depend on the others.
    def draw(seed: int) -> Tensor:
        image = G(options.truncation * seed_latent(seed, G.noise_size).to(device))  # (1, 3, S, S)
        if folder is not None:
            write_image(folder / name_sample(seed), to_pixels(image[0]))
        return image

    images = []
    for image in ProgressBar(map_on_cores(G, draw, seeds), "sample", "images", len(seeds)):
        if grid is not None:
            images.append(image)

    # Arrange them as a grid, about as wide as high.
    if grid is not None:
        columns = math.ceil(math.sqrt(len(images)))
        write_image(grid, to_pixels(image_grid(torch.cat(images), columns)))
    LOG.info("sampled %d images to %s", len(seeds), " and ".join(str(path) for path in (folder, grid) if path))
    if folder is not None and (removed := remove_other_samples(folder, seeds)):
        LOG.info("removed %d earlier samples from %s, of other seeds", removed, folder)
    return 0


def blend(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return the point t in [0, 1] of the way from a to b, on a straight line."""
    return (1 - t) * a + t * b


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return the point t in [0, 1] of the way from a to b, on an arc (Shoemake 1985), within [-1, 1].

    The direction rotates at constant speed and the length is blended. If a and b point the same or the opposite way,
    no single arc connects them, and the point is on a straight line.
    """
    length_a, length_b = a.norm(), b.norm()
    angle = torch.acos((a.flatten() @ b.flatten() / (length_a * length_b)).clamp(-1, 1))
    if not torch.sin(angle) > 1e-3:
        return blend(a, b, t)
    direction = (torch.sin((1 - t) * angle) * a / length_a + torch.sin(t * angle) * b / length_b) / torch.sin(angle)
    return (direction * blend(length_a, length_b, t)).clamp(-1, 1)


def random_walk(seed: int, count: int, noise_size: int) -> Tensor:
    """Return points (count, noise_size, 1, 1) of a random walk that starts at z of the seed.

    Each step is uniform in [-0.5, 0.5] for every coordinate, reflected at -1 and 1, which keeps all points uniform.
    """
    draws = seed_latent(seed, noise_size, count)  # (count, Z, 1, 1); the first is z of the seed
    points = [draws[:1]]
    for step in draws[1:].split(1):
        point = points[-1] + WALK_STEP * step
        points.append(torch.where(point.abs() > 1, 2 * point.sign() - point, point))
    return torch.cat(points)


def walk(
    points: Tensor, frames: int, loop: bool, interpolation: Callable[[Tensor, Tensor, float], Tensor]
) -> Iterator[Tensor]:
    """Yield z (1, Z, 1, 1) of each frame, at even steps through `points` (N, Z, 1, 1).

    It ends at the last point, or with `loop` one step before the first one.
    """
    points = torch.cat([points, points[:1]]) if loop else points
    steps, ways = frames if loop else frames - 1, len(points) - 1
    at = [round(k * steps / ways) for k in range(ways + 1)]  # the frame of each point
    for k in range(ways):
        for i in range(at[k], at[k + 1]):
            yield interpolation(points[k], points[k + 1], (i - at[k]) / (at[k + 1] - at[k]))[None]
    if not loop:
        yield points[-1:]


def interpolate(options: InterpolateOptions) -> int:
    """Write the video of the walks; return the exit code."""
    # Check the output, then load the network.
    path = Path(options.out)
    check_new_file(path, VIDEO_FORMATS, options.overwrite)
    G = load_trained_by("vanilla_gan.py", options).generators["z"]
    device = next(G.parameters()).device

    # Choose the points of each walk.
    if options.random_walk:
        count = max(2, round(options.frames / options.fps) + (not options.loop))
        walks = [random_walk(seed, count, G.noise_size) for seeds in options.seeds for seed in seeds]
    else:
        walks = [torch.cat([seed_latent(seed, G.noise_size) for seed in seeds]) for seeds in options.seeds]
    interpolation = slerp if options.spherical else blend
    latents = zip(*(walk(points, options.frames, options.loop, interpolation) for points in walks), strict=True)

    # Draw and write frame by frame, each image alone, so that it equals the image that `sample` draws.
    def draw(zs: tuple[Tensor, ...]) -> np.ndarray:
        images = torch.cat([G(z.to(device)) for z in zs])  # (walks, 3, S, S)
        return to_pixels(image_grid(images, math.ceil(math.sqrt(len(images)))))

    rate = Fraction(options.fps).limit_denominator(1001)
    drawn = ProgressBar(map_on_cores(G, draw, latents), "draw", "frames", options.frames)
    frames = (Frame(i, 1, pixels) for i, pixels in enumerate(drawn))
    write_video(path, frames, rate, 1 / rate, plays=0 if options.loop else 1)
    LOG.info("wrote %d frames, %.1f s, to %s", options.frames, float(options.frames / rate), path)
    return 0
