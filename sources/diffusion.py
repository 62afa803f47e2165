"""`dataset.py diffuse`: images that a pretrained diffusion model makes."""

import inspect
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from images.files import write_image
from options.dataset import DiffuseOptions
from sources.diffusion_models import (
    ARGUMENTS,
    Model,
    find_class,
    find_model,
    load,
    make_arguments,
    require_packages,
    silence_libraries,
)
from system.device import choose_device
from system.files import read_json, require_writable, write_json
from system.progress import ProgressBar
from utils import LOG, UserError, one_line

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

RECORD = "diffusion.json"
FORMAT = 1  # of the record
SETTINGS = ("prompt", "negative_prompt", "seed", "steps", "guidance", "size")  # options that the images depend on


@dataclass
class Record:
    """What diffusion.json beside the images says.

    Attributes:
        model, revision, pipeline: as in `Model`, and the class of the pipeline.
        settings: the options that the images depend on; None: the default of the pipeline.
        defaults: these defaults.
        images: number of images made; the number of the next one. The seed of image K is the seed plus K.
        black: the numbers of images that were left out because they were black.
        diffusers, torch: the versions of the libraries, in the last call.
    """

    model: str = ""
    revision: str = ""
    pipeline: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    images: int = 0
    black: list[int] = field(default_factory=list)
    diffusers: str = ""
    torch: str = torch.__version__
    format: int = FORMAT


def diffuse(options: DiffuseOptions) -> int:
    """Write images 0 to N - 1 of a diffusion model, as far as they are not there; return the exit code.

    Raises:
        UserError: packages that are missing, a model that cannot be used, options that it does not have, or an output
            folder with other files or with images of other options. Nothing is written then.
    """
    require_packages()
    folder = Path(options.out).absolute()
    settings = {name: getattr(options, name) for name in SETTINGS}
    record = read_record(folder, settings)
    require_writable(folder, "--out")
    device = choose_device(options.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the libraries are for developers
        model = find_model(options.model, record.revision if options.model == record.model else None)
        if record.images and model.revision != record.revision:
            raise UserError(
                f"--model: the images in {folder} were made with {record.model}, version {record.revision[:12]}, not "
                f"with {model.name}, version {model.revision[:12]}; use that again, or a new folder"
            )
        if record.images >= options.n:
            LOG.info("nothing to do: images made before in %s: %d; a larger -n adds images", folder, record.images)
            return 0
        silence_libraries()
        cls = find_class(model)
        arguments = make_arguments(cls, options)
        if device.type == "cpu":  # said before a download of several GB
            LOG.info(
                "no GPU is used: a step of a model for images of 256x256 takes 8 to 20 seconds for an image on two "
                "cores"
            )
        pipeline = load(model, cls, device)
        _describe(record, model, pipeline, settings)
        _warn_of_long_prompt(pipeline, options.prompt)
        _make_images(pipeline, arguments, record, options)
    _summarize(record, options)
    return 0


# ----------------------------------------------------------------------------------------------------------------------
# The record


def read_record(folder: Path, settings: dict[str, Any]) -> Record:
    """Return the record of a folder; of a new or empty folder, an empty one.

    Raises:
        UserError: the folder contains other files, or images that were made with other settings.
    """
    path = folder / RECORD
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: {folder} is a file; give a folder")
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"--out: {folder} contains files that this command did not write; give a new folder")
        return Record()
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"--out: {path} is of another version of this program; give a new folder")
    record = Record(**content)
    for name, value in settings.items():
        before = record.settings[name]
        if before != value:
            flag = "PROMPT" if name == "prompt" else f"--{name}"
            what = f"without {flag}" if before is None else f"with {before!r}"
            raise UserError(f"{flag}: the images in {folder} were made {what}; use that again, or a new folder")
    return record


def _describe(record: Record, model: Model, pipeline: "DiffusionPipeline", settings: dict[str, Any]) -> None:
    """Write what is known before the first image into the record."""
    import diffusers

    parameters = inspect.signature(type(pipeline).__call__).parameters
    names = {name: ARGUMENTS[name] for name in ("steps", "guidance")}
    record.model, record.revision, record.pipeline = model.name, model.revision, type(pipeline).__name__
    record.settings = settings
    record.defaults = {name: parameters[full].default for name, full in names.items() if full in parameters}
    record.diffusers, record.torch = diffusers.__version__, torch.__version__


# ----------------------------------------------------------------------------------------------------------------------
# The images


class _PipelineBar(tqdm):
    """Takes the place of a pipeline's own progress bar: shows nothing, and reports each step.

    Args:
        report: called with the number of steps done and the number of all steps.
    """

    def __init__(self, report: Callable[[int, int], None], iterable: Iterable | None = None, total: int | None = None):
        super().__init__(iterable, total=total, disable=True)
        self.report = report

    def __iter__(self) -> Iterator:
        for item in self.iterable:
            yield item
            self.update()

    def update(self, n: float | None = 1) -> None:
        self.n += n
        self.report(self.n, self.total or self.n)


class _Progress:
    """Shows how many images are done, in tenths. On a CPU, says once how long all images take.

    Args:
        bar: counts images.
        numbers: of the images of the batch that is made at the moment.
    """

    def __init__(self, bar: ProgressBar, is_cpu: bool):
        self.bar, self.is_cpu, self.numbers = bar, is_cpu, range(0)
        self.first_step: float | None = None  # when it was done
        bar.miniters = 0  # a tenth of an image counts, too

    def report(self, done: int, total: int) -> None:
        """Show that so many steps of a batch are done."""
        self.show(self.numbers.start + round(len(self.numbers) * min(done / total, 1), 1))
        if not self.is_cpu:
            return
        if self.first_step is None:
            self.first_step = time.monotonic()
            return
        step = time.monotonic() - self.first_step  # between the first two; before them other work is done
        images = self.bar.total - self.numbers.start
        seconds = step * total * images / len(self.numbers)
        if seconds > 60:
            LOG.info(
                "on this CPU, the images take about %s (images: %d, steps of each: %d); fewer --steps take less. "
                "Ctrl-C keeps the images that are done, and the same command continues",
                tqdm.format_interval(seconds),
                images,
                total,
            )
        self.is_cpu = False

    def show(self, images: float) -> None:
        """Show that so many images are done, if it was less before: some pipelines have several bars."""
        self.bar.n = max(self.bar.n, images)
        self.bar.update(0)


def _warn_of_long_prompt(pipeline: "DiffusionPipeline", prompt: str | None) -> None:
    """Warn if the text encoder reads only the beginning of the prompt."""
    tokenizer = getattr(pipeline, "tokenizer", None)
    if tokenizer is not None and prompt is not None:
        length, most = len(tokenizer(prompt).input_ids), tokenizer.model_max_length
        if length > most:
            LOG.warning(
                "the prompt has %d tokens, and a text encoder of the model reads only %d; shorten the prompt",
                length,
                most,
            )


def make_images(
    pipeline: "DiffusionPipeline", arguments: dict[str, Any], prompt: str | None, seeds: Sequence[int]
) -> list[np.ndarray]:
    """Return an image for each seed, uint8 (H, W, 3). Each depends only on its seed, but for rounding.

    Raises:
        UserError: out of memory, or the pipeline refuses its arguments or fails.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # on the CPU: the same numbers on all devices
    arguments = dict(arguments)
    if prompt is None:
        arguments["batch_size"] = len(seeds)
    else:
        arguments["prompt"] = [prompt] * len(seeds)
        if "negative_prompt" in arguments:
            arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(seeds)
    try:
        images = pipeline(generator=generators, **arguments).images
        if len(images) != len(seeds):
            raise ValueError(f"it made {len(images)} images of {len(seeds)} seeds")
        return [np.asarray(image.convert("RGB")) for image in images]
    except Exception as error:  # a pipeline raises any exception for arguments that it does not like
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise UserError(f"out of memory with --batch_size {len(seeds)}; lower --batch_size or --size") from None
        name = type(pipeline).__name__
        raise UserError(f"{name} cannot make images with these options ({one_line(error)}); change them") from None


def _make_images(
    pipeline: "DiffusionPipeline", arguments: dict[str, Any], record: Record, options: DiffuseOptions
) -> None:
    """Make the images that are missing, batch by batch, and write them."""
    folder = Path(options.out).absolute()
    with ProgressBar(None, "diffuse", "images", options.n, initial=record.images) as bar:
        progress = _Progress(bar, pipeline.device.type == "cpu")
        pipeline.progress_bar = partial(_PipelineBar, progress.report)
        try:
            while record.images < options.n:
                numbers = range(record.images, min(record.images + options.batch_size, options.n))
                progress.numbers = numbers
                seeds = [options.seed + number for number in numbers]
                _keep(make_images(pipeline, arguments, options.prompt, seeds), record, folder)
                progress.show(record.images)
        except KeyboardInterrupt:
            LOG.info("%d of %d images are in %s; the same command continues", record.images, options.n, folder)
            raise


def _keep(images: Sequence[np.ndarray], record: Record, folder: Path) -> None:
    """Write the images of a batch, without black ones, and then the record."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RECORD, asdict(record))  # before the first image, so that the folder is known as ours
        black = []
        for number, image in enumerate(images, record.images):
            if image.any():
                write_image(folder / f"{number:06d}.png", image)
            else:
                black.append(number)
        record.images += len(images)
        record.black += black
        write_json(folder / RECORD, asdict(record))
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"{where}: {error.strerror or error}; fix this, then repeat the command") from None


def _summarize(record: Record, options: DiffuseOptions) -> None:
    """Say how many images there are, and how many were left out."""
    LOG.info("images in %s: %d", options.out, len(list(Path(options.out).glob("*.png"))))
    if record.black:
        LOG.warning(
            "%d of %d images were black and are left out (the safety checkers of some models make images black); "
            "use a larger -n, or change the prompt",
            len(record.black),
            record.images,
        )
