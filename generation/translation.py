"""Translations of images, folders and videos of any size by a trained CycleGAN."""

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from generation.sampling import blend, map_on_cores
from generation.trained import Trained, choose_generator, load_trained_by
from images.animation import MULTI_FRAME_ENDINGS, Animation, is_animation, write_animation
from images.decoding import MAX_PIXELS, describe_error
from images.files import IMAGE_FORMATS, read_image, write_image
from images.values import ValueRange, find_scale
from images.video import VIDEO_FORMATS, VIDEOS_READ, Frame, Video, write_video
from options.commands import TranslateOptions
from options.value_range import read_value_ranges
from sources.folders import FolderSource, describe_left_out, list_images
from system.files import check_new_file, check_new_folder
from system.progress import ProgressBar
from system.threads import prefetch
from utils import LOG, UserError, from_uint8, printable, shorten, to_pixels

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
    """Translate frames of one size one after another, small ones in batches; alpha is kept.

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
        return batch, translate_pixels(G, np.stack([frame.pixels[:, :, :3] for frame in batch]))

    shown = None
    for batch, images in map_on_cores(G, translate, batches, most):
        for frame, image in zip(batch, images, strict=True):
            shown = image if shown is None else blend(image, shown, smooth)  # (3, H, W)
            yield frame._replace(pixels=np.dstack([to_pixels(shown), frame.pixels[:, :, 3:]]))


def translate_moving(G: Any, moving: Video | Animation, size: int | None, smooth: float = 0.0) -> Iterator[Frame]:
    """Yield the translated frames of a video or an animation, their shorter sides resized to `size`.

    Decoding and the network have threads of their own.
    """
    frames = (frame._replace(pixels=resize_shorter(frame.pixels, size)) for frame in moving)
    alike = itertools.groupby(prefetch(frames), key=lambda frame: frame.pixels.shape)  # the pages of a TIFF may differ
    return prefetch(itertools.chain.from_iterable(translate_frames(G, group, smooth) for _, group in alike))


def write_moving(target: Path, frames: Iterable[Frame], source: Video | Animation) -> int:
    """Write frames with the times of their source, in the format of the extension; return their number."""
    if target.suffix.lower() in VIDEO_FORMATS:
        return write_video(target, frames, source.rate, source.time_base, source.plays)
    return write_animation(target, frames, source.time_base, source.plays)


def keeps_frames(source: Path, target: Path) -> bool:
    """Whether an input has several frames and the output holds all of them."""
    if source.suffix.lower() in VIDEOS_READ and target.suffix.lower() in VIDEO_FORMATS:
        return True
    return target.suffix.lower() in (*VIDEO_FORMATS, *MULTI_FRAME_ENDINGS) and is_animation(source)


def read_resized(path: Path, size: int | None, value_range: ValueRange | None = None) -> np.ndarray:
    """Read an image, its shorter side resized to `size`. `value_range` is as in `to_8_bits`."""
    return resize_shorter(read_image(path, value_range), size)


def read_input(path: Path, target: Path, size: int | None, value_range: ValueRange | None) -> np.ndarray | Animation:
    """Read an image as `read_resized` does, or return an animation, not decoded yet, if `target` holds its frames."""
    return Animation(path, value_range) if keeps_frames(path, target) else read_resized(path, size, value_range)


def translate_to_file(G: Any, image: np.ndarray | Animation, target: Path, size: int | None) -> None:
    """Translate an image (H, W, 3 or 4) or an animation, and write it. Only the frames of the latter are resized."""
    if isinstance(image, Animation):
        write_moving(target, translate_moving(G, image, size), image)
    else:
        write_image(target, translate_image(G, image))


def translate_files(
    G: Any, files: list[Path], targets: list[Path], size: int | None, value_range: ValueRange | None = None
) -> int:
    """Translate image files to as many targets; report which failed and why; return how many did."""

    def attempt(work: Callable[[], Any]) -> Any:
        """Return the result of the work, or in one line why it failed."""
        try:
            return work()
        except Exception as error:  # Pillow raises any exception for broken bytes, PyTorch one if memory is short
            return describe_error(error)[:200]

    pairs = list(zip(files, targets, strict=True))
    decoded = (attempt(partial(read_input, *pair, size, value_range)) for pair in pairs)
    failed = {}
    work = zip(files, targets, prefetch(decoded), strict=True)
    for path, target, pixels in ProgressBar(work, "translate", "images", len(files)):
        problem = pixels
        if not isinstance(pixels, str):
            problem = attempt(partial(translate_to_file, G, pixels, target, size))
        if problem is not None:
            failed[path] = problem
    for path, problem in failed.items():
        sys.stderr.write(printable(f"failed: {path}: {problem}") + "\n")
    holds_one = [path for path, target in pairs if target.suffix.lower() not in MULTI_FRAME_ENDINGS]
    if cut := [path.name for path in holds_one if is_animation(path)]:
        LOG.warning("of %s only the first frame is translated: the format holds one", shorten(cut))
    return len(failed)


def find_inputs(options: TranslateOptions) -> tuple[list[Path], list[Path]]:
    """Return the files to translate and their targets, after checking both; a video is a list of one file.

    Raises:
        UserError: there is nothing to translate, or the output cannot be written or would replace a file.
    """
    source, target = Path(options.input), Path(options.out)
    ending = source.suffix.lower()
    if not source.exists():
        raise UserError(f"INPUT: {source} does not exist; give an image, a folder of images or a video")
    if source.is_dir() and (target.resolve() == source.resolve() or source.resolve() in target.resolve().parents):
        raise UserError(f"--out: {target} is the input folder or inside it; give a folder elsewhere")
    if options.smooth is not None and not keeps_frames(source, target):
        raise UserError(f"--smooth: blends frames, but {target} would not be a video or an animation; leave it out")
    if options.value_range is not None and ending in VIDEOS_READ:
        raise UserError(f"--value_range: is for images with more than 8 bits, and {source} is a video; leave it out")
    if source.is_dir():
        files = list_images(source, flag="INPUT")
        if target.exists() and not target.is_dir():
            raise UserError(f"--out: {target} is a file, but the input a folder; give a folder")
        if not target.exists() and target.suffix.lower() in (*IMAGE_FORMATS, *VIDEO_FORMATS):
            raise UserError(f"--out: {target} has the extension of a file, but the input is a folder; give a folder, "
                            f"such as {target.with_suffix('')}")  # fmt: skip
        check_new_folder(target, options.overwrite)
        return files, [target / path.name for path in files]
    if ending not in (*IMAGE_FORMATS, *VIDEOS_READ):
        raise UserError(f"INPUT: {source} has the extension of neither an image nor a video; accepted: "
                        f"{', '.join((*IMAGE_FORMATS, *VIDEOS_READ))}")  # fmt: skip
    if target.resolve() == source.resolve():
        raise UserError(f"--out: {target} is the input; give another file")
    endings = tuple(VIDEO_FORMATS if ending in VIDEOS_READ else IMAGE_FORMATS)
    if ending == ".gif" or is_animation(source):
        endings = (*IMAGE_FORMATS, *VIDEO_FORMATS)
    check_new_file(target, endings, options.overwrite)
    return [source], [target]


def find_value_range(files: list[Path], trained: Trained, options: TranslateOptions) -> ValueRange | None:
    """Return the values that become black and white, of images with more than 8 bits; None if there are no such images.

    They are those of --value_range, or those of the domain in training, or else chosen from the values of the files.
    """
    domain = (options.direction or next(iter(trained.generators)))[0]
    asked = read_value_ranges(options.value_range)[0]
    of_training = trained.options.value_ranges()["XY".index(domain)]
    with ThreadPoolExecutor() as pool:
        scale = find_scale(FolderSource(files), pool, asked or of_training, all_pages=True)
    if scale is not None:
        LOG.info("%s", scale.describe("as --value_range says" if asked else "as in training"))
    elif asked:
        LOG.info("--value_range does nothing: no gray image has more than 8 bits per value")
    return scale.range if scale is not None else None


def translate_to_moving(G: Any, source: Video | Animation, target: Path, options: TranslateOptions) -> None:
    """Translate a video or an animation to a file that holds all its frames, with a progress bar and a report."""
    started = time.monotonic()
    results = translate_moving(G, source, options.image_size, options.smooth or 0.0)
    try:
        count = write_moving(target, ProgressBar(results, "translate", "frames", source.count), source)
    except ValueError as error:  # WebP has a maximum size
        raise UserError(f"--out: {target} cannot be written ({error}); use another extension") from None
    speed = count / (time.monotonic() - started)
    LOG.info("translated %d of %d frames to %s, %.1f frames/s", count, count, target, speed)
    if isinstance(source, Video) and source.ended < 0.98 * source.seconds - 2 / source.rate:
        ended, seconds = float(source.ended), float(source.seconds)
        LOG.warning("the frames of %s end after %.1f of %.1f s; is it cut off?", source.path, ended, seconds)


def translate(options: TranslateOptions) -> int:
    """Translate an image, a folder or a video; return the exit code."""
    # Check input and output, then load the network.
    files, targets = find_inputs(options)
    source, target = files[0], targets[0]
    trained = load_trained_by("cycle_gan.py", options)
    G = choose_generator(trained, options.direction)

    # A video.
    if source.suffix.lower() in VIDEOS_READ and target.suffix.lower() in VIDEO_FORMATS:
        translate_to_moving(G, Video(source), target, options)
        return 0

    # Image files: an unreadable one is the user's mistake if it is the only one, else a failure.
    value_range = find_value_range(files, trained, options)
    if not Path(options.input).is_dir():
        if keeps_frames(source, target):
            translate_to_moving(G, Animation(source, value_range), target, options)
            return 0
        try:
            pixels = read_resized(source, options.image_size, value_range)
        except Exception as error:  # Pillow's decoders raise any exception for broken bytes
            raise UserError(
                f"INPUT: {source} is not a readable image ({describe_error(error)}); give another"
            ) from None
        try:
            write_image(target, translate_image(G, pixels))
        except ValueError as error:  # WebP and JPEG have a maximum size
            raise UserError(f"--out: {target} cannot be written ({error}); use another extension") from None
        if is_animation(source):
            count = Animation(source, value_range).count
            LOG.info("translated the first of %d frames to %s; .png, .webp, .tiff and .gif hold all", count, target)
        else:
            LOG.info("translated 1 of 1 to %s", target)
        return 0
    failed = translate_files(G, files, targets, options.image_size, value_range)
    left_out = describe_left_out(Path(options.input), files)
    left_out = f" (left out: {left_out})" if left_out else ""
    LOG.info("translated %d of %d to %s%s", len(files) - failed, len(files), options.out, left_out)
    others = {path.name for path in Path(options.out).glob("*")} - {path.name for path in targets}
    if others:
        LOG.info("Other files in %s, which are not from this command: %d", options.out, len(others))
    return 1 if failed else 0
