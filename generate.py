"""Use a trained generator: sample, interpolate, translate, export.

    python generate.py sample checkpoints/my-cats -n 64 --grid cats.png
    python generate.py interpolate checkpoints/my-cats --seeds 3,7,11 --frames 60 --loop -o walk.gif
    python generate.py translate checkpoints/my-fruit photos/apples --direction X2Y -o oranges
    python generate.py export checkpoints/my-cats --format onnx -o cats.onnx

The network is rebuilt from the options in the checkpoint, with the moving average of its weights if the run kept one.
The images that it was trained on are not needed. `python generate.py COMMAND --help` says more.
"""

import argparse
import importlib.util
import io
import itertools
import json
import math
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from options import DEVICES, OneLineParser, number

SCRIPT = "generate.py"
_MOST_SEEDS = 1_000_000

SAMPLE_HELP = """Draw images from a DCGAN.

    python generate.py sample checkpoints/my-cats -n 64 --grid cats.png
    python generate.py sample checkpoints/my-cats -n 1000 -o cats
    python generate.py sample checkpoints/my-cats --seeds 3,7,10-12 --truncation 0.7 --grid few.png -o few

Each image depends on its seed only: number 7 is the same, to the last bit, whatever is drawn beside it. Its file in the
folder is seed-000007.png.
"""

INTERPOLATE_HELP = """Film a walk from latent to latent of a DCGAN.

    python generate.py interpolate checkpoints/my-cats --seeds 3,7,11 --frames 60 --loop -o walk.gif
    python generate.py interpolate checkpoints/my-cats --seeds 0-3 --seeds 4-7 --frames 120 -o two.mp4
    python generate.py interpolate checkpoints/my-cats --seeds 0-8 --random_walk --frames 300 -o nine.mp4

The walk is at the image of each seed in turn. Several --seeds are several walks side by side, as a grid.
"""

TRANSLATE_HELP = """Translate an image, a folder of images or a video with a CycleGAN.

    python generate.py translate checkpoints/my-fruit apple.jpg --direction X2Y -o orange.png
    python generate.py translate checkpoints/my-fruit photos/apples --direction X2Y -o oranges
    python generate.py translate checkpoints/my-fruit film.mp4 --direction X2Y --image_size 256 --smooth 0.3 -o new.mp4

Any size will do, and the translation has the same: sides that the network can't halve often enough are continued by
reflection and cut back. A translator does best at the scale that it was trained at, which --image_size gives it. Files
of a folder keep their names; alpha is kept in PNG, WebP and TIFF, other metadata is not. Videos keep their rate and
length and lose their sound; they may be .mp4, .mov, .mkv, .webm or .gif, and .avi and .m4v to read. An odd row or
column of a video is repeated once, as its format needs even sizes; a GIF doesn't.
"""

EXPORT_HELP = """Write the network to one file for ONNX Runtime or for torch.jit.load.

    python generate.py export checkpoints/my-cats --format onnx -o cats.onnx
    python generate.py export checkpoints/my-fruit --format torchscript --direction X2Y -o apple2orange.pt

Batch size, and for translators height and width, stay free. Before the file is written its results are compared with
PyTorch's, at several sizes. The file carries its metadata: ranges, layout, direction, options, iteration. Needs
onnx, onnxscript and onnxruntime for --format onnx.
"""


# ----------------------------------------------------------------------------------------------------------------------
# Command line


def read_seeds(text: str) -> list[int]:
    """Return the seeds of "3,7,10-12": [3, 7, 10, 11, 12]."""
    seeds = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds; use one like 3,7,10-12")
        if len(seeds) + last - first >= _MOST_SEEDS:
            raise argparse.ArgumentTypeError(f"{text!r} are too many seeds; use at most {_MOST_SEEDS}")
        seeds.extend(range(first, last + 1))
    return seeds


def build_parser() -> tuple[OneLineParser, dict[str, OneLineParser]]:
    """Return the command line, and that of each sub-command by its name."""
    how = dict(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser = OneLineParser(prog=SCRIPT, description=__doc__, **how)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add_command(name: str, manual: str, out: str, out_required: bool = True) -> OneLineParser:
        """Add a sub-command, with what all of them take."""
        headline = manual.partition(".\n")[0]
        added = commands.add_parser(name, help=headline[0].lower() + headline[1:], description=manual, **how)
        added.add_argument("run", metavar="RUN", help="run folder, or a checkpoint file")
        added.add_argument("-o", "--out", required=out_required, metavar=out.split()[0], help=out.partition(" ")[2])
        added.add_argument("--overwrite", action="store_true", help="write over files that exist")
        added.add_argument(
            "--checkpoint",
            default="newest",
            metavar="{newest,best,ITERATION}",
            help="default: newest",
        )
        if name != "export":
            added.add_argument(
                "--device",
                default="auto",
                choices=DEVICES,
                help="CUDA, else MPS, else CPU",
            )
        return added

    sample = add_command("sample", SAMPLE_HELP, "FOLDER folder for a file of each image", out_required=False)
    at_least_1 = number(int, "at least 1", lambda n: 1 <= n <= _MOST_SEEDS)
    sample.add_argument("-n", type=at_least_1, metavar="N", help="number of images; alone: seeds 0 to N - 1")
    sample.add_argument("--seeds", type=read_seeds, help="list of seeds and ranges, such as 3,7,10-12")
    sample.add_argument("--grid", metavar="FILE", help="one picture of all images")
    sample.add_argument(
        "--truncation", default=1.0, type=number(float, "above 0 and at most 1", lambda t: 0 < t <= 1), metavar="T",
        help="scale z, uniform in [-1, 1], by T: images closer to the mean, and to each other (default: 1)",
    )  # fmt: skip

    walk = add_command("interpolate", INTERPOLATE_HELP, "FILE .gif, .mp4, .mov, .mkv or .webm")
    walk.add_argument(
        "--seeds", type=read_seeds, action="append", required=True, help="list of seeds and ranges; again: another walk"
    )
    walk.add_argument(
        "--frames", type=number(int, "at least 2", lambda n: n >= 2), default=60, help="in all (default: 60)"
    )
    walk.add_argument(
        "--fps", type=number(float, "from 1 to 120", lambda n: 1 <= n <= 120), default=20.0,
        help="frames a second (default: 20)",
    )  # fmt: skip
    walk.add_argument("--loop", action="store_true", help="lead back to the first frame; a GIF then never stops")
    walk.add_argument("--spherical", action="store_true", help="turn z (slerp) and blend its length")
    walk.add_argument(
        "--random_walk", action="store_true", help="let each seed begin a random walk of its own, about a step a second"
    )

    translate = add_command("translate", TRANSLATE_HELP, "OUTPUT what INPUT is: an image, a folder or a video")
    translate.add_argument("input", metavar="INPUT", help="image, folder of images, or video")
    translate.add_argument("--direction", metavar="{X2Y,Y2X}", help="from which domain to which; required")
    translate.add_argument(
        "--image_size", type=number(int, "from 8 to 8192", lambda s: 8 <= s <= 8192), metavar="S",
        help="resize the shorter side to S first, and leave the translation so; default: as it is",
    )  # fmt: skip
    translate.add_argument(
        "--smooth", type=number(float, "from 0 to below 1", lambda a: 0 <= a < 1), metavar="A",
        help="of a video: blend A of the frame before into each, against flicker (default: 0)",
    )  # fmt: skip

    export = add_command("export", EXPORT_HELP, "FILE .onnx, or .pt for torchscript")
    export.add_argument("--format", required=True, choices=("onnx", "torchscript"), help="kind of file")
    export.add_argument("--direction", metavar="{X2Y,Y2X}", help="of a CycleGAN: from which domain to which")
    return parser, commands.choices


def parse(argv: list[str]) -> argparse.Namespace:
    """Read and check a command line. Raises SystemExit: 0 after --help, 2 after one line on stderr for a mistake."""
    parser, commands = build_parser()
    options, unknown = parser.parse_known_args(argv)
    parser = commands[options.command]  # its mistakes are told as such, with the flags that it has
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.command == "sample":
        if options.n is None and options.seeds is None:
            parser.error("--seeds: missing; say how many images with -n, or which with --seeds")
        options.seeds = list(range(options.n)) if options.seeds is None else options.seeds
        if options.n not in (None, len(options.seeds)):
            parser.error(f"-n: {options.n} images, but --seeds names {len(options.seeds)}; leave one out")
        if len(set(options.seeds)) < len(options.seeds):
            parser.error("--seeds: a seed is there twice; name each once")
        if options.grid is None and options.out is None:
            parser.error("--out: nowhere to put the images; give --grid FILE, --out FOLDER or both")
    if options.command == "interpolate":
        fewest, most = min(map(len, options.seeds)), max(map(len, options.seeds))
        if fewest < 2 and not options.random_walk:
            parser.error("--seeds: a walk needs at least 2; name more, or add --random_walk")
        if most > options.frames and not options.random_walk:
            parser.error(f"--frames: {options.frames} are too few for {most} seeds; use as many at least")
        if options.out.lower().endswith(".gif") and options.fps > 50:
            parser.error(f"--fps: {options.fps:g} is more than a GIF can show; use at most 50")
    return options


if __name__ == "__main__":  # before torch loads, so that --help and a mistyped flag answer at once
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # and Ctrl-C ends the imports without a traceback
    OPTIONS = parse(sys.argv[1:])

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from data.decoding import MAX_PIXELS, reason
from data.media import (
    IMAGE_FORMATS,
    VIDEO_FORMATS,
    VIDEOS_READ,
    Frame,
    Video,
    ahead,
    check_new_file,
    check_new_folder,
    map_ahead,
    read_image,
    write_image,
    write_video,
)
from data_loader import list_images
from models import build_dc_generator, build_translator, sample_latents
from options import CommonOptions, CycleOptions, VanillaOptions
from runs import find_differences, read_checkpoint
from utils import (
    UserError,
    choose_device,
    few,
    from_uint8,
    image_grid,
    keep_freed_memory,
    printable,
    progress,
    run_main,
    to_uint8,
    write_whole,
)

_BATCH_PIXELS = 2**18  # of frames that pass through the network at once, as far as they are small
_PIXELS_AT_ONCE = 2**20  # of frames that the cores of a CPU work at, each at its own: about 1 GB, with large networks
_WALK_STEP = 0.5  # largest step of a random walk, of each coordinate of z
_EXPORT_TOLERANCE = 1e-4  # largest difference between an exported network and PyTorch, on a scale of [-1, 1]


# ----------------------------------------------------------------------------------------------------------------------
# Trained networks

# Training script -> its options, what builds a generator from them, and its generators by direction.
SCRIPTS = {
    "vanilla_gan.py": (VanillaOptions, build_dc_generator, {"z": "G"}),
    "cycle_gan.py": (CycleOptions, build_translator, {"X2Y": "G_XtoY", "Y2X": "G_YtoX"}),
}


class Trained(NamedTuple):
    """The generators of a checkpoint.

    Attributes:
        script: that trained them.
        options: of the run.
        step: iterations trained.
        generators: in eval mode, without gradients: {"z": G} of a DCGAN, {"X2Y": ..., "Y2X": ...} of a CycleGAN.
    """

    script: str
    options: CommonOptions
    step: int
    generators: dict[str, nn.Module]


def load_trained(where: Path, checkpoint: str = "newest", device: str = "cpu") -> Trained:
    """Rebuild the generators of a run, from the options in its checkpoint; their moving averages if it has them.

    Args:
        where: run folder, or a checkpoint file.
        checkpoint: of a run folder: "newest", "best" or an iteration.

    Raises:
        UserError: no such checkpoint, or one whose options don't fit its weights.
    """
    if where.is_file() and checkpoint != "newest":
        raise UserError(f"--checkpoint: {where} is a file, not a run folder with a choice; leave it out")
    content = read_checkpoint(where, warn=lambda line: print(line, file=sys.stderr), which=checkpoint)
    try:
        cls, build, names = SCRIPTS[content["script"]]
        options = cls.from_dict(content["options"])
        options.check()
        generators = {}
        for direction, name in names.items():
            G = build(options)
            weights = content["ema"].get(name) or content["networks"][name]
            differences = find_differences(G.state_dict(), weights, name)
            if differences:
                raise ValueError(few(differences))
            G.load_state_dict(weights)
            generators[direction] = G.to(device).eval().requires_grad_(False)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: the options in the checkpoint don't fit its weights ({reason})") from None
    return Trained(content["script"], options, content["step"], generators)


def load_generator(
    where: str | Path, direction: str | None = None, checkpoint: str = "newest", device: str = "cpu"
) -> nn.Module:
    """Return a trained generator, in eval mode, without gradients.

        from generate import load_generator
        from models import sample_latents

        G = load_generator("checkpoints/my-cats")
        images = G(sample_latents(16, G.noise_size, "cpu"))  # (16, 3, 64, 64) in [-1, 1]

        G = load_generator("checkpoints/my-fruit", "X2Y")
        oranges = G(apples)  # (B, 3, H, W) in [-1, 1]

    That of a DCGAN takes z (B, G.noise_size, 1, 1), uniform in [-1, 1]; one of a CycleGAN takes images (B, 3, H, W) in
    [-1, 1], H and W multiples of G.stride. Both return images (B, 3, H, W) in [-1, 1].

    Args:
        where: run folder, or a checkpoint file.
        direction: of a CycleGAN: "X2Y" or "Y2X".
        checkpoint: of a run folder: "newest", "best" or an iteration.

    Raises:
        UserError: no such checkpoint, or a direction that it doesn't have.
    """
    trained = load_trained(Path(where), str(checkpoint), device)
    return choose_generator(trained, direction)


def choose_generator(trained: Trained, direction: str | None) -> nn.Module:
    """Return the generator of a direction; a DCGAN has but one, and no direction. Raises UserError for another."""
    if direction is None and len(trained.generators) == 1:
        return trained.generators["z"]
    has = " or ".join(trained.generators)
    if direction is None:
        raise UserError(f"--direction: missing for a run of {trained.script}; use {has}")
    if direction not in trained.generators or direction == "z":
        remedy = "leave it out" if "z" in trained.generators else f"use {has}"
        raise UserError(f"--direction: {direction} is unknown for a run of {trained.script}; {remedy}")
    return trained.generators[direction]


def load_for(options: argparse.Namespace, script: str) -> Trained:
    """Load what a command names, on its device. Raises UserError if another script than `script` trained it."""
    trained = load_trained(Path(options.run), options.checkpoint, str(choose_device(options.device)))
    if trained.script != script:
        is_translator = trained.script == "cycle_gan.py"
        remedy = "generate.py translate" if is_translator else "generate.py sample or interpolate"
        what = "translates images" if is_translator else "makes images of noise"
        raise UserError(f"{options.run} is a run of {trained.script}, which {what}; use {remedy}")
    return trained


def on_every_core(
    G: nn.Module, function: Callable[[Any], Any], items: Iterable[Any], most: int | None = None
) -> Iterator[Any]:
    """Yield function(item), which calls G, for each item in order; on a CPU so that each core has items of its own.

    Cores that share an item wait for each other at every layer, and for what decodes and writes beside them. Any other
    device has two items, so that one is written while it works at the next. PyTorch's number of threads is that of an
    item until the last one is done.

    Args:
        most: items at a time, for want of memory; each then has several cores.
    """
    cores = torch.get_num_threads()
    workers = cores if next(G.parameters()).device.type == "cpu" else 2
    workers = min(workers, most or workers)
    try:
        yield from map_ahead(function, items, workers, lambda: torch.set_num_threads(max(1, cores // workers)))
    finally:
        torch.set_num_threads(cores)  # the number set last is that of all later threads


def to_pixels(image: Tensor) -> np.ndarray:
    """Image (3, H, W) in [-1, 1] or of uint8 -> uint8 (H, W, 3)."""
    image = image if image.dtype == torch.uint8 else to_uint8(image)
    return image.permute(1, 2, 0).cpu().numpy()


# ----------------------------------------------------------------------------------------------------------------------
# sample


def latent_of(seed: int, noise_size: int, count: int = 1) -> Tensor:
    """Return z (count, noise_size, 1, 1) of a seed, uniform in [-1, 1], on the CPU."""
    return sample_latents(count, noise_size, torch.device("cpu"), torch.Generator().manual_seed(seed))


def sample(options: argparse.Namespace) -> int:
    """Draw the image of each seed; return the exit code."""
    # Check what is to be written, then load the network.
    folder = None if options.out is None else Path(options.out)
    grid = None if options.grid is None else Path(options.grid)
    if folder is not None:
        check_new_folder(folder, options.overwrite)
    if grid is not None:
        check_new_file(grid, IMAGE_FORMATS, options.overwrite, "--grid")
    G = load_for(options, "vanilla_gan.py").generators["z"]
    device = next(G.parameters()).device

    # Draw and write the images one by one: in a batch the last bits would depend on the others.
    def draw(seed: int) -> Tensor:
        image = G(options.truncation * latent_of(seed, G.noise_size).to(device))  # (1, 3, S, S)
        if folder is not None:
            write_image(folder / f"seed-{seed:06d}.png", to_pixels(image[0]))
        return image

    images = []
    for image in progress(on_every_core(G, draw, options.seeds), "sample", "images", len(options.seeds)):
        if grid is not None:
            images.append(image)

    # Lay them out in a grid that is about as wide as high.
    if grid is not None:
        columns = math.ceil(math.sqrt(len(images)))
        write_image(grid, to_pixels(image_grid(torch.cat(images), columns)))
    print(f"sampled {len(options.seeds)} images to {' and '.join(str(path) for path in (folder, grid) if path)}")
    return 0


# ----------------------------------------------------------------------------------------------------------------------
# interpolate


def blend(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return the point t in [0, 1] of the way from a to b, on a straight line."""
    return (1 - t) * a + t * b


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return the point t in [0, 1] of the way from a to b, on an arc (Shoemake 1985), within [-1, 1].

    The direction turns at constant speed and the length is blended. Where there is no one arc, because a and b point
    the same or the opposite way, on a straight line.
    """
    length_a, length_b = a.norm(), b.norm()
    angle = torch.acos((a.flatten() @ b.flatten() / (length_a * length_b)).clamp(-1, 1))
    if not torch.sin(angle) > 1e-3:
        return blend(a, b, t)
    direction = (torch.sin((1 - t) * angle) * a / length_a + torch.sin(t * angle) * b / length_b) / torch.sin(angle)
    return (direction * blend(length_a, length_b, t)).clamp(-1, 1)


def random_walk(seed: int, count: int, noise_size: int) -> Tensor:
    """Return points (count, noise_size, 1, 1) of a random walk that begins at z of the seed.

    Each step is uniform in [-0.5, 0.5] for every coordinate, reflected at -1 and 1, which keeps all points uniform.
    """
    draws = latent_of(seed, noise_size, count)  # (count, Z, 1, 1); the first is z of the seed
    points = [draws[:1]]
    for step in draws[1:].split(1):
        point = points[-1] + _WALK_STEP * step
        points.append(torch.where(point.abs() > 1, 2 * point.sign() - point, point))
    return torch.cat(points)


def walk(
    points: Tensor, frames: int, loop: bool, between: Callable[[Tensor, Tensor, float], Tensor]
) -> Iterator[Tensor]:
    """Yield z (1, Z, 1, 1) of each frame, at even steps through `points` (N, Z, 1, 1).

    It ends at the last point, or with `loop` one step before the first one.
    """
    points = torch.cat([points, points[:1]]) if loop else points
    steps, ways = frames if loop else frames - 1, len(points) - 1
    at = [round(k * steps / ways) for k in range(ways + 1)]  # the frame of each point
    for k in range(ways):
        for i in range(at[k], at[k + 1]):
            yield between(points[k], points[k + 1], (i - at[k]) / (at[k + 1] - at[k]))[None]
    if not loop:
        yield points[-1:]


def interpolate(options: argparse.Namespace) -> int:
    """Film the walks; return the exit code."""
    # Check what is to be written, then load the network.
    path = Path(options.out)
    check_new_file(path, VIDEO_FORMATS, options.overwrite)
    G = load_for(options, "vanilla_gan.py").generators["z"]
    device = next(G.parameters()).device

    # Choose the points of each walk.
    if options.random_walk:
        count = max(2, round(options.frames / options.fps) + (not options.loop))
        walks = [random_walk(seed, count, G.noise_size) for seeds in options.seeds for seed in seeds]
    else:
        walks = [torch.cat([latent_of(seed, G.noise_size) for seed in seeds]) for seeds in options.seeds]
    between = slerp if options.spherical else blend
    latents = zip(*(walk(points, options.frames, options.loop, between) for points in walks), strict=True)

    # Draw and write frame by frame, each image alone, so that it is the one that `sample` draws.
    def draw(zs: tuple[Tensor, ...]) -> np.ndarray:
        images = torch.cat([G(z.to(device)) for z in zs])  # (walks, 3, S, S)
        return to_pixels(image_grid(images, math.ceil(math.sqrt(len(images)))))

    rate = Fraction(options.fps).limit_denominator(1001)
    drawn = progress(on_every_core(G, draw, latents), "film", "frames", options.frames)
    frames = (Frame(i, 1, pixels) for i, pixels in enumerate(drawn))
    write_video(path, frames, rate, 1 / rate, loop=options.loop)
    print(f"wrote {options.frames} frames, {float(options.frames / rate):.1f} s, to {path}")
    return 0


# ----------------------------------------------------------------------------------------------------------------------
# translate


def pad_to_stride(images: Tensor, stride: int) -> Tensor:
    """Continue images (B, 3, H, W) to the right and below, to multiples of `stride` and at least twice that.

    By reflection; where an image is too small for that by its last column or row.
    """
    for axis in (2, 3):
        size = images.shape[axis]
        missing = max(math.ceil(size / stride), 2) * stride - size
        where = (0, 0, 0, missing) if axis == 2 else (0, missing, 0, 0)
        images = F.pad(images, where, mode="reflect" if missing < size else "replicate")
    return images


def resize_shorter(pixels: np.ndarray, size: int | None) -> np.ndarray:
    """Resize an image (H, W, 3 or 4) so that its shorter side is `size`; RGB and alpha each by itself.

    Raises:
        UserError: a long image would become one of more than MAX_PIXELS.
    """
    if size is None or min(pixels.shape[:2]) == size:
        return pixels
    scale = size / min(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    if height * width > MAX_PIXELS:
        raise UserError(f"--image_size: {size} would make it {width}x{height}, more than {MAX_PIXELS / 1e6:.0f} "
                        "megapixels; use a smaller one")  # fmt: skip
    parts = [pixels[:, :, :3]] + [pixels[:, :, i] for i in range(3, pixels.shape[2])]
    return np.dstack([Image.fromarray(part).resize((width, height), Image.Resampling.BICUBIC) for part in parts])


def translate_pixels(G: nn.Module, pixels: np.ndarray) -> Tensor:
    """Images uint8 (B, H, W, 3) -> their translations (B, 3, H, W) in [-1, 1]."""
    images = torch.from_numpy(pixels).to(next(G.parameters()).device).permute(0, 3, 1, 2)  # (B, 3, H, W)
    height, width = images.shape[2:]
    padded = pad_to_stride(from_uint8(images), G.stride)
    return G(padded)[:, :, :height, :width]


def translate_image(G: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """Translate an image (H, W, 3 or 4); alpha stays as it is."""
    translation = to_pixels(translate_pixels(G, pixels[None, :, :, :3])[0])
    return np.dstack([translation, pixels[:, :, 3:]])


def translate_frames(G: nn.Module, frames: Iterable[Frame], smooth: float) -> Iterator[Frame]:
    """Translate frames as they come, small ones several at once.

    What is shown is smooth x what was shown before + (1 - smooth) x the translation.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return
    height, width = first.pixels.shape[:2]
    size = min(8, max(1, _BATCH_PIXELS // (height * width)))
    frames = itertools.chain([first], frames)
    batches = iter(lambda: list(itertools.islice(frames, size)), [])
    most = max(1, _PIXELS_AT_ONCE // (size * height * width))

    def translate(batch: list[Frame]) -> tuple[list[Frame], Tensor]:
        return batch, translate_pixels(G, np.stack([frame.pixels for frame in batch]))

    shown = None
    for batch, images in on_every_core(G, translate, batches, most):
        for frame, image in zip(batch, images, strict=True):
            shown = image if shown is None else blend(image, shown, smooth)  # (3, H, W)
            yield frame._replace(pixels=to_pixels(shown))


def translate_files(G: nn.Module, files: list[Path], targets: list[Path], size: int | None) -> int:
    """Translate image files to as many; say which failed and why; return how many."""

    def attempt(work: Callable[[], Any]) -> Any:
        """Return the result of the work, or in one line what is wrong with the file."""
        try:
            return work()
        except Exception as error:  # Pillow raises whatever the bytes lead it to, PyTorch if memory is short
            return reason(error)[:200]

    decoded = (attempt(lambda path=path: resize_shorter(read_image(path), size)) for path in files)
    failed = {}
    work = zip(files, targets, ahead(decoded), strict=True)
    for path, target, pixels in progress(work, "translate", "images", len(files)):
        trouble = pixels
        if not isinstance(pixels, str):
            trouble = attempt(lambda target=target, pixels=pixels: write_image(target, translate_image(G, pixels)))
        if trouble is not None:
            failed[path] = trouble
    for path, trouble in failed.items():
        sys.stderr.write(printable(f"failed: {path}: {trouble}") + "\n")
    return len(failed)


def find_inputs(options: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """Return the image files to translate and where to, after all checks of both; one video is a list of one too.

    Raises:
        UserError: nothing to translate, or an output that can't be or would cost something.
    """
    source, target = Path(options.input), Path(options.out)
    ending = source.suffix.lower()
    if not source.exists():
        raise UserError(f"INPUT: there is no {source}; give an image, a folder of images or a video")
    if source.is_dir() and (target.resolve() == source.resolve() or source.resolve() in target.resolve().parents):
        raise UserError(f"--out: {target} is the input folder or inside it; give a folder elsewhere")
    if options.smooth is not None and ending not in VIDEOS_READ:
        raise UserError(f"--smooth: does nothing for images, and {source} is no video; leave it out")
    if source.is_dir():
        files = list_images(source, flag="INPUT")
        if target.exists() and not target.is_dir():
            raise UserError(f"--out: {target} is a file, but the input a folder; give a folder")
        check_new_folder(target, options.overwrite)
        return files, [target / path.name for path in files]
    if ending not in (*IMAGE_FORMATS, *VIDEOS_READ):
        raise UserError(f"INPUT: {source} is neither image nor video by its ending; accepted: "
                        f"{', '.join((*IMAGE_FORMATS, *VIDEOS_READ))}")  # fmt: skip
    if target.resolve() == source.resolve():
        raise UserError(f"--out: {target} is the input; give another file")
    check_new_file(target, VIDEO_FORMATS if ending in VIDEOS_READ else IMAGE_FORMATS, options.overwrite)
    return [source], [target]


def translate(options: argparse.Namespace) -> int:
    """Translate an image, a folder or a video; return the exit code."""
    # Check input and output, then load the network.
    files, targets = find_inputs(options)
    source, target = files[0], targets[0]
    G = choose_generator(load_for(options, "cycle_gan.py"), options.direction)

    # A video: decoding, the network and encoding each in threads of their own.
    if source.suffix.lower() in VIDEOS_READ:
        video, started = Video(source), time.monotonic()
        frames = (frame._replace(pixels=resize_shorter(frame.pixels, options.image_size)) for frame in video)
        results = ahead(translate_frames(G, ahead(frames), options.smooth or 0.0))
        shown = progress(results, "translate", "frames", video.count)
        count = write_video(target, shown, video.rate, video.time_base, loop=True)
        speed = count / (time.monotonic() - started)
        print(f"translated {count} of {count} frames to {target}, {speed:.1f} frames/s")
        if video.ended < 0.98 * video.seconds - 2 / video.rate:
            ended, seconds = float(video.ended), float(video.seconds)
            sys.stderr.write(
                f"Warning: the frames of {source} end after {ended:.1f} of {seconds:.1f} s; is it cut off?\n"
            )
        return 0

    # Image files; a single one that is no image is a mistake, one of many is a failure.
    if not Path(options.input).is_dir():
        try:
            pixels = resize_shorter(read_image(source), options.image_size)
        except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
            raise UserError(f"INPUT: {source} is no image that can be read ({reason(error)}); give another") from None
        try:
            write_image(target, translate_image(G, pixels))
        except ValueError as error:  # WebP and JPEG have a largest size
            raise UserError(f"--out: {target} can't be written ({error}); use another ending") from None
        print(f"translated 1 of 1 to {target}")
        return 0
    failed = translate_files(G, files, targets, options.image_size)
    print(f"translated {len(files) - failed} of {len(files)} to {options.out}")
    return 1 if failed else 0


# ----------------------------------------------------------------------------------------------------------------------
# export


def export_onnx(layers: nn.Module, example: Tensor, axes: dict[int, str], metadata: dict[str, str]) -> bytes:
    """Return the network as ONNX, with input "input", output "output" and the named axes free."""
    dimensions = {axis: torch.export.Dim(name) for axis, name in axes.items()}
    program = torch.onnx.export(
        layers, (example,), dynamo=True, input_names=["input"], output_names=["output"],
        dynamic_shapes=(dimensions,), verbose=False,
    )  # fmt: skip
    model = program.model_proto
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def run_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    """Return the network of an ONNX file, run by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0])


def export_torchscript(layers: nn.Module, example: Tensor, axes: dict[int, str], metadata: dict[str, str]) -> bytes:
    """Return the network as TorchScript, with its metadata in the extra file metadata.json. All axes are free."""
    file = io.BytesIO()
    extra = {"metadata.json": json.dumps(metadata, indent=2)}
    torch.jit.save(torch.jit.trace(layers, example, check_trace=False), file, _extra_files=extra)
    return file.getvalue()


def run_torchscript(content: bytes) -> Callable[[Tensor], Tensor]:
    """Return the network of a TorchScript file."""
    return torch.jit.load(io.BytesIO(content))


# Format -> what writes it, what runs what was written, its ending, and the packages that it needs.
EXPORTS = {
    "onnx": (export_onnx, run_onnx, ".onnx", ("onnx", "onnxscript", "onnxruntime")),
    "torchscript": (export_torchscript, run_torchscript, ".pt", ()),
}


def export(options: argparse.Namespace) -> int:
    """Write the network to one file, if its results are PyTorch's; return the exit code."""
    # Check what is to be written and the packages, then load the network.
    path = Path(options.out)
    write, run, ending, packages = EXPORTS[options.format]
    check_new_file(path, (ending,), options.overwrite)
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format {options.format}: needs {', '.join(missing)}; pip install {' '.join(packages)}")
    trained = load_trained(Path(options.run), options.checkpoint)
    G = choose_generator(trained, options.direction)

    # Say what goes in and out, and choose sizes to compare at.
    metadata = {
        "script": trained.script,
        "step": str(trained.step),
        "options": json.dumps(trained.options.to_dict()),
        "input_range": "[-1, 1]",
        "output_range": "[-1, 1]",
        "output_layout": "NCHW, RGB",
    }
    if trained.script == "vanilla_gan.py":
        metadata |= {"direction": "z to image", "input_layout": f"z (N, {G.noise_size}, 1, 1), uniform"}
        axes = {0: "batch"}
        shapes = [(count, G.noise_size, 1, 1) for count in (2, 1, 5)]
    else:
        metadata |= {"direction": options.direction, "input_layout": "NCHW, RGB", "pad_multiple": str(G.stride)}
        axes = {0: "batch", 2: "height", 3: "width"}
        sides = ((2, 8, 12), (1, 8, 8), (3, 16, 6), (1, 5, 7))
        shapes = [(count, 3, height * G.stride, width * G.stride) for count, height, width in sides]

    # Export, with an example of the first shape, and compare at all. (G.layers: G itself checks sizes on the way.)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated, and that sizes might have been fixed
        content = write(G.layers, torch.rand(shapes[0]) * 2 - 1, axes, metadata)
        exported = run(content)
        inputs = [torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1 for shape in shapes]
        difference = max((exported(x) - G(x)).abs().max().item() for x in inputs)
    compared = ", ".join("x".join(map(str, shape)) for shape in shapes)
    print(f"largest difference from PyTorch, at {compared}: {difference:.2g}")
    if not difference <= _EXPORT_TOLERANCE:
        sys.stderr.write(f"{SCRIPT}: not written: it differs from PyTorch by more than {_EXPORT_TOLERANCE:g}\n")
        return 1
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(content))
    print(f"exported G of iteration {trained.step} to {path}")
    return 0


# ----------------------------------------------------------------------------------------------------------------------

COMMANDS = {"sample": sample, "interpolate": interpolate, "translate": translate, "export": export}


def main(options: argparse.Namespace) -> int:
    """Do what the command line says; return the exit code."""
    keep_freed_memory()
    try:
        return COMMANDS[options.command](options)
    except OSError as error:  # a full disk, a missing permission
        where = error.filename or options.out
        raise UserError(f"{where}: {error.strerror or error}; mend it, or write elsewhere") from None


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(OPTIONS), SCRIPT))
