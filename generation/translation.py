"""Translations of images, folders and videos of any size by a trained CycleGAN."""

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from generation.sampling import blend, map_on_cores
from generation.trained import choose_generator, load_trained_by
from images.decoding import MAX_PIXELS, describe_error
from images.files import IMAGE_FORMATS, read_image, write_image
from images.sources import list_images
from images.video import VIDEO_FORMATS, VIDEOS_READ, Frame, Video, write_video
from options.commands import TranslateOptions
from system.files import check_new_file, check_new_folder
from system.progress import ProgressBar
from system.threads import prefetch
from utils import LOG, UserError, from_uint8, printable, to_pixels

BATCH_PIXELS = 2**18  # of frames that pass through the network as one batch, if they are small
MAX_PIXELS_IN_PROGRESS = 2**20  # of frames on which the cores of a CPU work: about 1 GB with large networks


def pad_to_stride(images: Tensor, stride: int) -> Tensor:
    """Pad images (B, 3, H, W) on the right and below to multiples of `stride`, and to at least twice the stride.

    By reflection; by repeating the last column or row if an image is too small for that.
    """
    for axis in (2, 3):
        size = images.shape[axis]
        missing = max(math.ceil(size / stride), 2) * stride - size
        where = (0, 0, 0, missing) if axis == 2 else (0, missing, 0, 0)
        images = F.pad(images, where, mode="reflect" if missing < size else "replicate")
    return images


def resize_shorter(pixels: np.ndarray, size: int | None) -> np.ndarray:
    """Resize an image (H, W, 3 or 4) so that its shorter side is `size`; RGB and alpha separately.

    Raises:
        UserError: a long image would have more than MAX_PIXELS.
    """
    if size is None or min(pixels.shape[:2]) == size:
        return pixels
    scale = size / min(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    if height * width > MAX_PIXELS:
        raise UserError(f"--image_size: {size} would make it {width}x{height}, more than {MAX_PIXELS / 1e6:.0f} "
                        "megapixels; use a smaller one")  # fmt: skip
    parts = [pixels[:, :, :3]] + [pixels[:, :, i] for i in range(3, pixels.shape[2])]
    resized = [Image.fromarray(part).resize((width, height), Image.Resampling.BICUBIC) for part in parts]
    return np.dstack([np.asarray(part) for part in resized])


def translate_pixels(G: Any, pixels: np.ndarray) -> Tensor:
    """Images uint8 (B, H, W, 3) -> their translations (B, 3, H, W) in [-1, 1]."""
    images = torch.from_numpy(pixels).to(next(G.parameters()).device).permute(0, 3, 1, 2)  # (B, 3, H, W)
    height, width = images.shape[2:]
    padded = pad_to_stride(from_uint8(images), G.stride)
    return G(padded)[:, :, :height, :width]


def translate_image(G: Any, pixels: np.ndarray) -> np.ndarray:
    """Translate an image (H, W, 3 or 4); alpha is kept."""
    translation = to_pixels(translate_pixels(G, pixels[None, :, :, :3])[0])
    return np.dstack([translation, pixels[:, :, 3:]])


def translate_frames(G: Any, frames: Iterable[Frame], smooth: float) -> Iterator[Frame]:
    """Translate frames one after another, small ones in batches.

    Each output is smooth x the previous output + (1 - smooth) x the translation.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return
    height, width = first.pixels.shape[:2]
    size = min(8, max(1, BATCH_PIXELS // (height * width)))
    frames = itertools.chain([first], frames)
    batches = iter(lambda: list(itertools.islice(frames, size)), [])
    most = max(1, MAX_PIXELS_IN_PROGRESS // (size * height * width))

    def translate(batch: list[Frame]) -> tuple[list[Frame], Tensor]:
        return batch, translate_pixels(G, np.stack([frame.pixels for frame in batch]))

    shown = None
    for batch, images in map_on_cores(G, translate, batches, most):
        for frame, image in zip(batch, images, strict=True):
            shown = image if shown is None else blend(image, shown, smooth)  # (3, H, W)
            yield frame._replace(pixels=to_pixels(shown))


def read_resized(path: Path, size: int | None) -> np.ndarray:
    """Read an image, its shorter side resized to `size`."""
    return resize_shorter(read_image(path), size)


def translate_to_file(G: Any, pixels: np.ndarray, target: Path) -> None:
    """Translate an image (H, W, 3 or 4), and write it."""
    write_image(target, translate_image(G, pixels))


def translate_files(G: Any, files: list[Path], targets: list[Path], size: int | None) -> int:
    """Translate image files to as many targets; report which failed and why; return how many did."""

    def attempt(work: Callable[[], Any]) -> Any:
        """Return the result of the work, or in one line why it failed."""
        try:
            return work()
        except Exception as error:  # Pillow raises any exception for broken bytes, PyTorch one if memory is short
            return describe_error(error)[:200]

    decoded = (attempt(partial(read_resized, path, size)) for path in files)
    failed = {}
    work = zip(files, targets, prefetch(decoded), strict=True)
    for path, target, pixels in ProgressBar(work, "translate", "images", len(files)):
        problem = pixels
        if not isinstance(pixels, str):
            problem = attempt(partial(translate_to_file, G, pixels, target))
        if problem is not None:
            failed[path] = problem
    for path, problem in failed.items():
        sys.stderr.write(printable(f"failed: {path}: {problem}") + "\n")
    return len(failed)


def find_inputs(options: TranslateOptions) -> tuple[list[Path], list[Path]]:
    """Return the files to translate and their targets, after checking both; a video is a list of one file.

    Raises:
        UserError: there is nothing to translate, or the output cannot be written or would replace a file.
    """
    source, target = Path(options.input), Path(options.out)
    ending = source.suffix.lower()
    if not source.exists():
        raise UserError(f"INPUT: there is no {source}; give an image, a folder of images or a video")
    if source.is_dir() and (target.resolve() == source.resolve() or source.resolve() in target.resolve().parents):
        raise UserError(f"--out: {target} is the input folder or inside it; give a folder elsewhere")
    if options.smooth is not None and ending not in VIDEOS_READ:
        raise UserError(f"--smooth: does nothing for images, and {source} is not a video; leave it out")
    if source.is_dir():
        files = list_images(source, flag="INPUT")
        if target.exists() and not target.is_dir():
            raise UserError(f"--out: {target} is a file, but the input a folder; give a folder")
        check_new_folder(target, options.overwrite)
        return files, [target / path.name for path in files]
    if ending not in (*IMAGE_FORMATS, *VIDEOS_READ):
        raise UserError(f"INPUT: {source} has the extension of neither an image nor a video; accepted: "
                        f"{', '.join((*IMAGE_FORMATS, *VIDEOS_READ))}")  # fmt: skip
    if target.resolve() == source.resolve():
        raise UserError(f"--out: {target} is the input; give another file")
    check_new_file(target, VIDEO_FORMATS if ending in VIDEOS_READ else IMAGE_FORMATS, options.overwrite)
    return [source], [target]


def translate(options: TranslateOptions) -> int:
    """Translate an image, a folder or a video; return the exit code."""
    # Check input and output, then load the network.
    files, targets = find_inputs(options)
    source, target = files[0], targets[0]
    G = choose_generator(load_trained_by("cycle_gan.py", options), options.direction)

    # A video: decoding, the network and encoding have threads of their own.
    if source.suffix.lower() in VIDEOS_READ:
        video, started = Video(source), time.monotonic()
        frames = (frame._replace(pixels=resize_shorter(frame.pixels, options.image_size)) for frame in video)
        results = prefetch(translate_frames(G, prefetch(frames), options.smooth or 0.0))
        shown = ProgressBar(results, "translate", "frames", video.count)
        count = write_video(target, shown, video.rate, video.time_base, loop=True)
        speed = count / (time.monotonic() - started)
        LOG.info("translated %d of %d frames to %s, %.1f frames/s", count, count, target, speed)
        if video.ended < 0.98 * video.seconds - 2 / video.rate:
            ended, seconds = float(video.ended), float(video.seconds)
            LOG.warning("the frames of %s end after %.1f of %.1f s; is it cut off?", source, ended, seconds)
        return 0

    # Image files: an unreadable one is the user's mistake if it is the only one, else a failure.
    if not Path(options.input).is_dir():
        try:
            pixels = read_resized(source, options.image_size)
        except Exception as error:  # Pillow's decoders raise any exception for broken bytes
            raise UserError(
                f"INPUT: {source} is not a readable image ({describe_error(error)}); give another"
            ) from None
        try:
            write_image(target, translate_image(G, pixels))
        except ValueError as error:  # WebP and JPEG have a maximum size
            raise UserError(f"--out: {target} cannot be written ({error}); use another extension") from None
        LOG.info("translated 1 of 1 to %s", target)
        return 0
    failed = translate_files(G, files, targets, options.image_size)
    LOG.info("translated %d of %d to %s", len(files) - failed, len(files), options.out)
    return 1 if failed else 0
