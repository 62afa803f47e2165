"""`dataset.py check`: a report about folders of images, advice for training, a picture, and a cleaned copy."""

import os
import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from options.dataset import CheckOptions
from options.fields import IMAGE_SIZES
from sources.clean_copy import check_output, require_outside, write_clean_copy
from sources.inspection import Part, find_parts, find_shared, inspect_parts
from sources.preview import Shown, draw_preview, is_preview, prepare, write_preview
from system.files import check_new_file
from utils import LOG, UserError, shorten

SHOWN = 12  # images of the picture
MAX_RATIO = 2.0  # longer images lose more than half of their area to the center crop
FLAT = 3.0  # contrast of images of nearly one color, in levels
OUTLIER, LEAST_SPREAD = 4, 8.0  # images that differ by 4 standard deviations in brightness; at least this many levels
FEW_IMAGES = 1000  # with fewer, D overfits without DiffAugment
# What few_images of vanilla_gan.py needs at 256x256, and for how many iterations (benchmarks/RESULTS.md).
LARGE = ["--disc=dc", "--no-split_noise", "--noise_size=32", "--lambda_modes=0", "--code_range=1", "--ema_decay=0.99"]
LARGE_ITERATIONS = 1500
BATCH_SIZE = 16
SAME_COLORS = 25.0  # difference between the mean colors of two domains, in levels, up to which they are alike
NAMES = 3  # that a line of the report shows

Shared = dict[tuple[str, str], dict[int, int]]  # names of two parts -> copies in the second of images in the first


def check(options: CheckOptions) -> int:
    """Report on folders of images, draw the picture, and write the cleaned copy; return the exit code.

    Raises:
        UserError: a folder without a readable image, or an output that cannot be written. Nothing is written then.
    """
    parts = find_parts(options)
    picture = Path(options.out)
    check_new_file(picture, (".png",), options.overwrite or is_preview(picture))
    require_outside(picture, parts, "--out")
    if options.fix is not None:
        check_output(Path(options.fix), parts)
        if Path(options.fix).resolve() in picture.resolve().parents:
            raise UserError(f"--out: {picture} lies in the folder of --fix; give a path outside of it")
    inspect_parts(parts, options)
    shared = compare(parts, options.near_copy)
    lines = [line for part in parts for line in describe(part, options.image_size)]
    for line in [*lines, *_describe_shared(parts, shared), *advise(parts, shared, options)]:
        LOG.info("%s", line)
    _draw(parts, options, picture)
    if options.fix is not None:
        _fix(Path(options.fix), parts, shared)
    return 0


def compare(parts: Sequence[Part], near_copy: float) -> Shared:
    """Return the copies between the two domains, and between the images to train on and to test on of each."""
    found = {}
    for number, first in enumerate(parts):
        for second in parts[number + 1 :]:
            if first.domain == second.domain or {first.name, second.name} in ({"X", "Y"}, {"trainA", "trainB"}):
                found[first.name, second.name] = find_shared(second, first, near_copy)
    return found


# ----------------------------------------------------------------------------------------------------------------------
# The report


def _list(title: str, texts: Sequence[str]) -> list[str]:
    """Return a line that counts things and shows the first ones, or no line."""
    return [f"  {title}: {len(texts)} ({shorten(texts, NAMES)})"] if texts else []


def describe(part: Part, image_size: int) -> list[str]:
    """Return the lines of the report about one folder; lines about problems only where there are some."""
    facts, names = part.facts, part.names
    by_area = sorted((one.area, one.size) for one in facts)
    small, median, large = ("{}x{}".format(*by_area[at][1]) for at in (0, (len(facts) - 1) // 2, -1))
    sizes = small if small == large else f"{small} to {large}, median {median}"
    modes = ", ".join(f"{count} {mode}" for mode, count in Counter(one.mode for one in facts).most_common())
    lines = [f"{part.name}: {len(facts)} images in {part.source.location}", f"  sizes: {sizes}; modes: {modes}"]
    lines += [f"  not looked at: {part.source.left_out}"] if part.source.left_out else []
    lines += [f"  {part.scale.describe()}"] if part.scale else []
    lines += _list("not readable", [f"{name}: {reason}" for name, reason in part.unreadable.items()])
    for title, copies in (("exact copies", part.exact), ("near copies", part.near)):
        lines += _list(title, [f"{names[copy]} of {names[original]}" for copy, original in sorted(copies.items())])
    more = [name for name, one in zip(names, facts, strict=True) if one.has_more_frames]
    lines += _list("several frames, of which the first is used", more)
    gray = [name for name, one in zip(names, facts, strict=True) if one.is_gray]
    color = [name for name, one in zip(names, facts, strict=True) if not one.is_gray]
    if gray and color:
        is_less = len(gray) <= len(color)
        lines += _list("gray among color" if is_less else "color among gray", gray if is_less else color)
    unusual = {id(one): f"{name}: {one.brightness:.0f}" for name, one in zip(names, facts, strict=True)}
    lines += _list("nearly one color", [unusual[id(one)].partition(":")[0] for one in facts if one.contrast < FLAT])
    typical, spread = _typical_brightness([one.brightness for one in facts])
    outliers = sorted(facts, key=lambda one: -abs(one.brightness - typical))
    outliers = [one for one in outliers if abs(one.brightness - typical) > OUTLIER * spread]
    lines += _list(f"much darker or brighter than {typical:.0f}, the median", [unusual[id(one)] for one in outliers])
    return lines + _describe_crop(part, image_size)


def _typical_brightness(values: Sequence[float]) -> tuple[float, float]:
    """Return the median, and the standard deviation as far as single outliers cannot change it."""
    median = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(value - median) for value in values)  # as the deviation of normal numbers
    return median, max(spread, LEAST_SPREAD)


def _describe_crop(part: Part, image_size: int) -> list[str]:
    """Return lines about what the resize and the center crop do to images."""
    pairs = sorted(zip(part.facts, part.names, strict=True), key=lambda pair: -pair[0].ratio)
    lines = _list(f"longer than {MAX_RATIO:g}:1", [f"{name}: {one.ratio:.1f}:1" for one, name in pairs
                                                   if one.ratio > MAX_RATIO])  # fmt: skip
    small = [f"{name}: {one.size[0]}x{one.size[1]}" for one, name in pairs if min(one.size) < image_size]
    lines += _list(f"smaller than {image_size} pixels, so enlarged", small)
    lost = [1 - 1 / one.ratio for one, _ in pairs]
    if lost[0] > 0:
        lines.append(f"  center crop: cuts off {statistics.median(lost):.0%} of a typical image, at most {lost[0]:.0%}")
    return lines


def _describe_shared(parts: Sequence[Part], shared: Shared) -> list[str]:
    """Return a line for each two folders that were compared."""
    names = {part.name: part.names for part in parts}
    lines = []
    for (first, second), copies in shared.items():
        pairs = [f"{names[second][copy]} of {names[first][original]}" for copy, original in sorted(copies.items())]
        lines.append(
            f"copies in {second} of images in {first}: {len(pairs)}{f' ({shorten(pairs, NAMES)})' * bool(pairs)}"
        )
    return lines


# ----------------------------------------------------------------------------------------------------------------------
# Advice


def largest_size(parts: Sequence[Part]) -> int:
    """Return the largest of IMAGE_SIZES that nine of ten images have at least; the smallest if none does."""
    sides = sorted(min(one.size) for part in parts for one in part.facts)
    return max((size for size in IMAGE_SIZES if size <= sides[len(sides) // 10]), default=IMAGE_SIZES[0])


def advise(parts: Sequence[Part], shared: Shared, options: CheckOptions) -> list[str]:
    """Return advice for training on these images, and the command."""
    trained = [part for part in parts if not part.name.startswith("test")]
    is_pair = len(trained) == 2
    largest, fewest = largest_size(trained), min(len(part.facts) for part in trained)
    size = min(options.image_size, largest)
    is_large = size == 256 and not is_pair and fewest < FEW_IMAGES
    iterations = 10_000 if is_pair else LARGE_ITERATIONS if is_large else 5000
    epochs = iterations * BATCH_SIZE / max(len(part.facts) for part in trained)
    flags = [f"--image_size={size}"]
    lines = [
        "Advice:",
        f"  --image_size: up to {largest}, for which nine of ten images are large enough; twice the size takes about "
        "four times as long",
    ]
    if fewest < FEW_IMAGES:
        flags.append("--preset=few_images")
        lines.append(f"  --preset few_images: with {fewest} images, fewer than {FEW_IMAGES:,}, D soon overfits")
        if is_large:
            flags += LARGE
            lines.append(f"  {' '.join(LARGE)}: this preset at 256 pixels; a longer training makes the samples alike")
    elif is_pair:
        flags.append("--disc=patch")
    if is_pair:
        lines.append("  --use_cycle_consistency_loss: keeps the content; --lambda_cycle 10, or 5 for 256 pixels")
        flags += ["--use_cycle_consistency_loss", *_advise_on_colors(trained, lines)]
    lines.append(f"  --train_iters {iterations}: shows each image about {epochs:,.0f} times (epochs)")
    lost = statistics.median(1 - 1 / one.ratio for part in trained for one in part.facts)
    if lost > 0.3:
        lines.append(
            f"  crop the images to their subject first: the center crop cuts off {lost:.0%} of a typical image"
        )
    wrong = sum(len(part.unreadable) + len(part.exact) + len(part.near) for part in parts)
    wrong += sum(len(copies) for (first, second), copies in shared.items() if second.startswith("test"))
    if wrong and options.fix is None:
        lines.append(f"  --fix OUT: writes a copy of the folder without unreadable files and copies ({wrong})")
    folders = [options.folder] if options.other is None else [options.folder, options.other]
    images = [f"--data={folders[0]}"] if len(folders) == 1 else [f"--X={folders[0]}", f"--Y={folders[1]}"]
    value_range = options.value_range if is_pair else (options.value_range or "").partition(":")[0]
    flags += [f"--value_range={value_range}"] if value_range else []
    command = [
        "python",
        "cycle_gan.py" if is_pair else "vanilla_gan.py",
        *images,
        *flags,
        f"--train_iters={iterations}",
    ]
    return [*lines, f"Train with: {shlex.join(command)}"]


def _advise_on_colors(trained: Sequence[Part], lines: list[str]) -> list[str]:
    """Add lines about the colors of two domains, and return flags: the identity loss if they are the same, else, with
    few images, DiffAugment without color, so that D sees them as they are."""
    colors = [np.mean([one.color for one in part.facts], axis=0) for part in trained]
    difference = float(np.abs(colors[0] - colors[1]).mean())
    if difference <= SAME_COLORS:
        lines.append(f"  --use_identity_loss: keeps colors; the mean colors differ by only {difference:.0f} of 255")
        return ["--use_identity_loss"]
    lines.append(f"  --use_identity_loss: only to keep colors; the mean colors differ by {difference:.0f} of 255")
    if min(len(part.facts) for part in trained) >= FEW_IMAGES:
        return []
    lines.append("  --use_diffaug translation: leaves the colors as they are, for D to judge")
    return ["--use_diffaug=translation"]


# ----------------------------------------------------------------------------------------------------------------------
# What is written


def _draw(parts: Sequence[Part], options: CheckOptions, path: Path) -> None:
    """Draw the picture of a dozen images, evenly spaced in the folders to train on."""
    trained = [part for part in parts if not part.name.startswith("test")]
    chosen: list[tuple[Part, int]] = []
    for part in trained:
        count = min(SHOWN // len(trained), len(part.facts))
        chosen += [(part, part.indices[i * len(part.facts) // count]) for i in range(count)]

    def read(one: tuple[Part, int]) -> Shown:
        part, index = one
        prefix = f"{part.name}/" if len(trained) > 1 else ""
        return prepare(
            f"{prefix}{part.source.names[index]}", part.source.open(index), options.image_size, part.value_range
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shown = list(pool.map(read, chosen))
    places = " and ".join(str(part.source.location) for part in trained)
    title = f"{places}: what training sees at --image_size {options.image_size}"
    try:
        write_preview(path, draw_preview(shown, options.image_size, title))
    except OSError as error:
        where = error.filename or path
        raise UserError(f"--out: {where}: {error.strerror or error}; fix this, then repeat the command") from None
    LOG.info("What training sees of %d images: %s", len(shown), path)


def _fix(folder: Path, parts: Sequence[Part], shared: Shared) -> None:
    """Write the cleaned copy, and say what was left out of it."""
    left_out = {part.name: {*part.exact, *part.near} for part in parts}
    for (_, second), copies in shared.items():
        if second.startswith("test"):  # the images to train on stay; of X and Y nobody knows where a copy belongs
            left_out[second] |= copies.keys()
    for part in parts:
        if len(left_out[part.name]) == len(part.facts):
            raise UserError(
                f"--fix: all images in {part.name} are copies of images to train on; give other test images"
            )
    write_clean_copy(folder, parts, left_out)
    LOG.info("Clean copy: %s", folder)
    for part in parts:
        names = [part.names[position] for position in sorted(left_out[part.name])]
        LOG.info("  %s: %d images; left out: %d copies%s, %d not readable%s", part.name,
                 len(part.facts) - len(names), len(names), f" ({shorten(names)})" * bool(names), len(part.unreadable),
                 f" ({shorten(list(part.unreadable))})" * bool(part.unreadable))  # fmt: skip
