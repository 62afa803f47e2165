"""Measure a trained GAN, or a folder of images, against real images.

    python evaluate.py checkpoints/NAME                       # DCGAN: samples; CycleGAN: translations both ways
    python evaluate.py checkpoints/NAME --checkpoint best     # the best one of training with --eval_every; or 3000
    python evaluate.py checkpoints/NAME photos/others         # against other images than it was trained on
    python evaluate.py checkpoints/NAME --data new/place      # the images were moved; --X and --Y for a run of these
    python evaluate.py made photos/cats                       # two folders of images
    python evaluate.py checkpoints/NAME --features imagenet   # a quick network that needs no download
    python evaluate.py checkpoints/NAME --json > numbers.json # for other programs

Distances are computed in the features of a network. With Inception-v3 (the default; its weights, 95 MB, are downloaded
at the first use) they are FID, KID and MiFID; with other features they have other names, because they are other
numbers. --features imagenet is the network EfficientNet-Lite0, whose weights are installed with the program;
--features pixels needs no network. The numbers go to metrics.csv and to a JSON file in the run folder, with the
protocol; the images most like their nearest training images go to a picture, to check for memorization.
"""

import sys

from options.command_line import parse_command
from options.commands import EvaluateOptions
from options.value_range import read_value_ranges

if __name__ == "__main__":
    OPTIONS = parse_command(EvaluateOptions, __doc__)  # before torch is imported, so that --help answers at once

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from generation.trained import Trained, load_trained
from metrics.evaluation import (
    Comparison,
    Evaluator,
    RealImages,
    load_real_images,
    make_comparisons,
    warn_of_taught_features,
)
from metrics.features import Features, load_features
from metrics.folders import read_folder, read_folders
from metrics.report import (
    MIN_IMAGES_FOR_COVERAGE,
    MIN_IMAGES_FOR_FID,
    MIN_IMAGES_FOR_RECALL,
    describe,
    draw_nearest,
    save_evaluation,
)
from metrics.variety import describe_variety
from runs.checkpoints import is_run
from runs.records import read_images, with_recorded_folders
from runs.tables import read_metrics
from system.device import choose_device, tune_malloc
from system.files import require_writable
from system.program import run_main
from utils import LOG, UnavailableError, UserError


def read_run(options: EvaluateOptions, device: torch.device) -> tuple[Trained, RealImages]:
    """Return the generators of the run or checkpoint to be measured, and the real images to compare with."""
    where = Path(options.run)
    trained = load_trained(where, options.checkpoint, str(device))
    if trained.origin is not None:
        raise UserError(
            f"{where} is a model of {trained.origin}, so the images that it trained on are not known; translate a "
            "folder with generate.py translate, and give both folders: evaluate.py TRANSLATED REAL"
        )
    if options.image_size is not None:
        raise UserError(f"--image_size: the size of a run is fixed, {trained.options.image_size}; leave the flag out")
    if options.value_range is not None:
        raise UserError("--value_range: a run keeps the range that it was trained with; leave the flag out")
    if options.reference is None:
        folder = where if where.is_dir() else where.parent
        try:
            of_run = with_recorded_folders(trained.options, folder).with_images(options.moved_images())
        except ValueError as error:
            raise UserError(str(error)) from None
        # Decoded images are kept beside the run, wherever it was when it trained.
        cached = folder.resolve().parent if is_run(folder) else folder
        of_run = dataclasses.replace(of_run, checkpoint_dir=str(cached))
        try:
            recorded = read_images(folder, of_run)
            if recorded is None and of_run.test_split:
                LOG.warning(
                    "%s has no data.json of the run, so the images are split again. If images were added since the run "
                    "began, the run may have trained on some of the test images", folder,
                )  # fmt: skip
            return trained, load_real_images(of_run, recorded)
        except UserError as error:
            others = "" if trained.is_translator else ", or give other images as REFERENCE"
            raise UserError(f"the images that {where} trained on: {error}{others}") from None
    if trained.is_translator:
        raise UserError(f"REFERENCE: {options.reference} cannot replace both domains of a CycleGAN; leave it out")
    images = read_folder(options.reference, trained.options.image_size, value_range=trained.options.value_ranges()[0])
    return trained, RealImages({("images", str(Path(options.reference).resolve())): images})


def compare_folders(options: EvaluateOptions) -> Comparison:
    """Return the images of the two folders to be compared."""
    if not Path(options.run).exists():
        raise UserError(f"{options.run} does not exist; give a run folder, a checkpoint, or a folder of images")
    if options.reference is None:
        raise UserError(f"REFERENCE: missing; {options.run} is not a run, so give the folder of the real images, too")
    for flag, default in {"checkpoint": "newest", "num_images": None}.items():
        if getattr(options, flag) != default:
            raise UserError(f"--{flag}: {options.run} is not a run; leave the flag out")
    folders = {"RUN_OR_FOLDER": options.run, "REFERENCE": options.reference}
    made, real = read_folders(folders, options.image_size, read_value_ranges(options.value_range)[0])
    if made.shape[1:] != real.shape[1:]:
        raise UserError("--image_size: missing; the images of the two folders differ in size, so give a common one")
    return Comparison("folder", str(Path(options.reference).resolve()), made, real)


def output_folder(options: EvaluateOptions) -> Path | None:
    """Return the folder of the results: --out, else the run folder; None for two folders of images without --out."""
    out, where = Path(options.out or options.run), Path(options.run)
    if options.out is None and not is_run(where):
        return None
    out = out.parent if out.is_file() and options.out is None else out
    require_writable(out, "--out")
    read_metrics(out)  # refuses a file with other columns before the work begins
    return out


def choose_features(options: EvaluateOptions, device: torch.device) -> Features:
    """Return the features of --features. If inception is not available, imagenet; if imagenet is not, pixels."""
    try:
        return load_features(options.features, options.inception_weights, device)
    except UnavailableError as error:
        instead = "imagenet" if options.features == "inception" else "pixels"
        LOG.warning("%s. Using --features %s instead.", error, instead)
        return choose_features(dataclasses.replace(options, features=instead), device)


def warn_of_few_images(comparisons: list[Comparison], rows: list[dict[str, Any]]) -> None:
    """Warn if some of the numbers in `rows` mean little, because a comparison has few images."""
    fewest = min(min(len(one.generated), len(one.reference)) for one in comparisons)
    if fewest < MIN_IMAGES_FOR_FID:
        LOG.warning(
            "Frechet distances are biased upwards with fewer than 2,048 images; compare only equal numbers of images "
            "(here %d). The kernel distance is not biased", fewest,
        )  # fmt: skip
    if fewest < MIN_IMAGES_FOR_RECALL and any(row["metric"] == "recall" for row in rows):
        others = ", coverage and density, and so the variety," if fewest < MIN_IMAGES_FOR_COVERAGE else ""
        LOG.warning("precision and recall%s mean little with %d images", others, fewest)


def measure(options: EvaluateOptions) -> dict[str, Any]:
    """Measure the run or folder of the command line, show the numbers, and save them.

    Returns:
        What --json prints: "protocol", the options with script and step; "rows" of metrics.csv, and after them rows of
        the metrics without a value, with the value None and a "reason"; "files", the paths of the files written.
    """
    device = choose_device(options.device)
    tune_malloc()
    torch.set_flush_denormal(True)

    # Find the generators and real images, or read the two folders; then choose the feature space.
    out = output_folder(options)
    trained, comparisons = None, []
    if is_run(Path(options.run)):
        trained, real = read_run(options, device)
    else:
        comparisons = [compare_folders(options)]
    features = choose_features(options, device)

    # Generate.
    if trained is not None:
        size = trained.options.image_size
        LOG.info("%s at iteration %d, %dx%d", options.run, trained.step, size, size)
        comparisons = make_comparisons(
            trained.generators, real, trained.options, device, options.seed, options.num_images
        )
        warn_of_taught_features(trained.options, features)
    if not features.is_inception:
        LOG.info("Distances use the features %s; they are not FID and not comparable with it", features.name)

    # Measure, and report.
    evaluator = Evaluator(features, device, options.seed, options.batch_size)
    rows, without_value, pictures, varieties = [], [], {}, []
    for one in comparisons:
        found, (distances, indices) = evaluator(one)
        rows += found
        without_value += evaluator.without_value
        if one.task not in pictures:  # of the training images, if there are several splits
            pictures[one.task] = draw_nearest(one, distances, indices)
        title = {"z": "samples", "folder": f"images of {options.run}"}.get(one.task, f"translations {one.task}")
        other = {"train": "training images", "test": "test images"}.get(one.split, f"images of {options.reference}")
        LOG.info("%d %s, against %d %s", len(one.generated), title, len(one.reference), other)
        for line in describe(found):
            LOG.info("%s", line)
        varieties.append(describe_variety(found, f"{title}, test images" if one.split == "test" else title))
    warn_of_few_images(comparisons, rows)
    for line in filter(None, varieties):
        LOG.info("%s", line)

    # Save the numbers with their protocol, and the pictures.
    step, script = (trained.step, trained.script) if trained is not None else (0, None)
    about = {**dataclasses.asdict(options), "script": script}
    del about["json"]  # another form of the same results
    source = {"step": step, "source": "evaluate.py"}
    rows, without_value = ([{**source, **row} for row in some] for some in (rows, without_value))
    written = [] if out is None else save_evaluation(out, step, features.name, about, rows, pictures)
    for path in written:
        LOG.info("wrote %s", path)
    return {"protocol": {**about, "step": step}, "rows": rows + without_value, "files": [str(path) for path in written]}


def main(options: EvaluateOptions) -> int:
    """Measure as the command line says; return the exit code."""
    if not options.json:
        measure(options)
        return 0
    with contextlib.redirect_stdout(sys.stderr):  # messages
        results = measure(options)
    print(json.dumps(results, indent=2, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(OPTIONS), OPTIONS.SCRIPT))
