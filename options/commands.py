"""The options of evaluate.py and of the sub-commands of generate.py.

The docstring of a sub-command's options is the manual that its --help shows.
"""

import argparse
import re
from dataclasses import dataclass
from typing import ClassVar

from options.fields import DEVICES, check_range, option, option_fields
from options.pretrained import read_run
from options.value_range import read_value_ranges

MAX_SEEDS = 1_000_000


def read_seeds(text: str) -> list[int]:
    """Return the seeds of "3,7,10-12": [3, 7, 10, 11, 12]."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of seeds; use one such as 3,7,10-12")
        if len(seeds) + last - first >= MAX_SEEDS:
            raise argparse.ArgumentTypeError(f"{text!r} has too many seeds; use at most {MAX_SEEDS}")
        seeds.extend(range(first, last + 1))
    return seeds


@dataclass(frozen=True, kw_only=True)
class CommandOptions:
    """Base class of the options of evaluate.py and generate.py."""

    SCRIPT: ClassVar[str] = ""

    def check(self) -> None:
        """Raise ValueError for a wrong value: one line with flag, value and remedy."""
        for field in option_fields(type(self)):
            check_range(field, getattr(self, field.name))


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(CommandOptions):
    """The options of evaluate.py."""

    SCRIPT: ClassVar[str] = "evaluate.py"

    # fmt: off
    run: str = option(
        "", "run folder, checkpoint file, or folder of images", positional=True, required=True,
        metavar="RUN_OR_FOLDER", is_path=True)
    reference: str | None = option(
        None, "folder of real images; default: those the run trained on", positional=True, metavar="REFERENCE",
        is_path=True)
    data: str | None = option(
        None, "where the images of the run are now, if they were moved (for a run of --data)", metavar="FOLDER",
        is_path=True)
    X: str | None = option(None, "the same for domain X of a run of --X and --Y", metavar="FOLDER", is_path=True)
    Y: str | None = option(None, "the same for domain Y", metavar="FOLDER", is_path=True)
    checkpoint: str = option(
        "newest", "which checkpoint of the run: newest, best, or an iteration", metavar="{newest,best,ITERATION}")
    num_images: int | None = option(
        None, "samples of a DCGAN, or images of each folder to translate; default: as many as there are real ones",
        at_least=2, metavar="N")
    image_size: int | None = option(
        None, "for two folders: resize the shorter side to S and crop; default: no change, if all have one size",
        at_least=32, metavar="S")
    value_range: str | None = option(
        None, "for two folders: values that become black and white, of images with more than 8 bits per value; "
        "default: chosen from the values of both folders", metavar="LOW,HIGH")
    features: str = option(
        "inception", "feature space of the distances: inception; imagenet: EfficientNet-Lite0, quick, no download; "
        "pixels: 16x16 RGB; FILE: TorchScript module of images in [0, 255], or weights of a torchvision model under "
        "their usual name, such as resnet18-f37072fd.pth", metavar="{inception,imagenet,pixels,FILE}", is_path=True)
    inception_weights: str | None = option(None, "downloaded Inception weights", metavar="FILE", is_path=True)
    seed: int = option(0, "seed for samples and random subsets", at_least=0, at_most=2**63 - 1)
    batch_size: int = option(32, "images at a time; the result does not depend on it", at_least=1)
    device: str = option("auto", "auto: CUDA, else MPS, else CPU", choices=DEVICES)
    out: str | None = option(
        None, "folder of the results; default: the run folder", aliases=("-o",), metavar="FOLDER", is_path=True)
    json: bool = option(False, "print the results as JSON on standard output, and all messages on standard error")
    # fmt: on

    def check(self) -> None:
        super().check()
        read_value_ranges(self.value_range)
        if self.inception_weights is not None and self.features != "inception":
            raise ValueError(f"--inception_weights: does nothing with --features {self.features}; leave one out")
        for name, folder in self.moved_images().items():
            if self.reference is not None:
                raise ValueError(f"--{name}: {folder} beside REFERENCE {self.reference}; leave one of them out")

    def moved_images(self) -> dict[str, str]:
        """Return the folders that hold the images of the run now, by option, as far as they are given."""
        folders = {"data": self.data, "X": self.X, "Y": self.Y}
        return {name: folder for name, folder in folders.items() if folder is not None}


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(CommandOptions):
    """The options that all sub-commands of generate.py share."""

    SCRIPT: ClassVar[str] = "generate.py"

    # fmt: off
    run: str = option(
        "", "run folder, or a checkpoint file; for translate, export and demo also a generator of the CycleGAN "
        "authors' code, such as latest_net_G_A.pth, or pretrained:NAME", positional=True, required=True, metavar="RUN",
        is_path=True, read=read_run)
    out: str = option(
        "", "the file or folder to write", required=True, aliases=("-o",), metavar="OUTPUT", is_path=True)
    overwrite: bool = option(False, "replace files that exist")
    checkpoint: str = option(
        "newest", "which checkpoint of the run: newest, best, or an iteration", metavar="{newest,best,ITERATION}")
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class SampleOptions(GenerateOptions):
    """Draw images from a DCGAN.

        python generate.py sample checkpoints/my-cats -n 64 --grid cats.png
        python generate.py sample checkpoints/my-cats -n 1000 -o cats
        python generate.py sample checkpoints/my-cats --seeds 3,7,10-12 --truncation 0.7 --grid few.png -o few

    Each image depends on its seed only: number 7 is bit-identical whatever is drawn beside it. Its file in the folder
    is seed-000007.png. --overwrite also removes the samples of other seeds from the folder.
    """

    # fmt: off
    out: str | None = option(  # type: ignore[assignment]
        None, "folder for a file of each image", aliases=("-o",), metavar="FOLDER", is_path=True)
    n: int | None = option(
        None, "number of images; alone: seeds 0 to N - 1", flag="-n", at_least=1, at_most=MAX_SEEDS, metavar="N")
    seeds: list[int] | None = option(
        None, "list of seeds and ranges, such as 3,7,10-12", read=read_seeds, metavar="SEEDS")
    grid: str | None = option(None, "one picture of all images", metavar="FILE", is_path=True)
    truncation: float = option(
        1.0, "scale z, uniform in [-1, 1], by T; below 1: images closer to the mean, and to each other; above 1: more "
        "varied images, more of which have faults", above=0, at_most=2, metavar="T")
    device: str = option("auto", "auto: CUDA, else MPS, else CPU", choices=DEVICES)
    # fmt: on

    def chosen_seeds(self) -> list[int]:
        """Return the seeds of --seeds, or of -n."""
        return list(range(self.n or 0)) if self.seeds is None else self.seeds

    def check(self) -> None:
        super().check()
        if self.n is None and self.seeds is None:
            raise ValueError("--seeds: missing; give a number of images with -n, or a list with --seeds")
        seeds = self.chosen_seeds()
        if self.n not in (None, len(seeds)):
            raise ValueError(f"-n: {self.n} images, but --seeds has {len(seeds)}; leave one out")
        if len(set(seeds)) < len(seeds):
            raise ValueError("--seeds: a seed is given twice; give each once")
        if self.grid is None and self.out is None:
            raise ValueError("--out: missing; give --grid FILE, --out FOLDER or both")


@dataclass(frozen=True, kw_only=True)
class InterpolateOptions(GenerateOptions):
    """Make a video that interpolates between latents of a DCGAN.

        python generate.py interpolate checkpoints/my-cats --seeds 3,7,11 --frames 60 --loop -o walk.gif
        python generate.py interpolate checkpoints/my-cats --seeds 0-3 --seeds 4-7 --frames 120 -o two.mp4
        python generate.py interpolate checkpoints/my-cats --seeds 0-8 --random_walk --frames 300 -o nine.mp4

    The video shows the image of each seed in turn. Several --seeds are several walks side by side, as a grid.
    """

    # fmt: off
    out: str = option(
        "", "video to write: .gif, .mp4, .mov, .mkv or .webm", required=True, aliases=("-o",), metavar="FILE",
        is_path=True)
    seeds: list[list[int]] = option(
        None, "list of seeds and ranges; again: another walk", required=True, read=read_seeds, repeats=True,
        metavar="SEEDS")
    frames: int = option(60, "number of frames", at_least=2)
    fps: float = option(20.0, "frames per second", at_least=1, at_most=120)
    loop: bool = option(False, "end where the video started; a GIF then loops")
    spherical: bool = option(False, "rotate z (slerp) and blend its length")
    random_walk: bool = option(False, "start a random walk at each seed, about one step per second")
    device: str = option("auto", "auto: CUDA, else MPS, else CPU", choices=DEVICES)
    # fmt: on

    def check(self) -> None:
        super().check()
        fewest, most = min(map(len, self.seeds)), max(map(len, self.seeds))
        if fewest < 2 and not self.random_walk:
            raise ValueError("--seeds: a walk needs at least 2; give more, or add --random_walk")
        if most > self.frames and not self.random_walk:
            raise ValueError(f"--frames: {self.frames} are too few for {most} seeds; use at least as many")
        if self.out.lower().endswith(".gif") and self.fps > 50:
            raise ValueError(f"--fps: {self.fps:g} is more than a GIF can show; use at most 50")


@dataclass(frozen=True, kw_only=True)
class TranslateOptions(GenerateOptions):
    """Translate an image, a folder of images or a video with a CycleGAN.

        python generate.py translate checkpoints/my-fruit apple.jpg --direction X2Y -o orange.png
        python generate.py translate checkpoints/my-fruit photos/apples --direction X2Y -o oranges
        python generate.py translate checkpoints/my-fruit film.mp4 --direction X2Y --image_size 256 -o new.mp4
        python generate.py translate pretrained:horse2zebra horse.jpg -o zebra.png

    The generators of the CycleGAN authors are downloaded by name; pretrained:list shows the names.

    Images may have any size, and translations keep it: where the network needs a larger multiple, images are padded by
    reflection and cropped afterwards. A translator works best at the scale that it was trained at; --image_size resizes
    to it. File names and extensions are kept, as is alpha in PNG, WebP and TIFF; other metadata is dropped. Videos keep
    the times of their frames and lose their sound; they may be .mp4, .mov, .mkv, .webm or .gif, and as input .avi and
    .m4v, too. An odd row or column of a video is repeated once, as its format needs even sizes; not in a GIF. Of an
    animated WebP, PNG or GIF and of a TIFF all frames are translated, to one of these formats or to a video.
    """

    # fmt: off
    input: str = option(
        "", "image, folder of images, or video", positional=True, required=True, metavar="INPUT", is_path=True)
    out: str = option(
        "", "an image, a folder or a video, as INPUT is; a video also for an animated image", required=True,
        aliases=("-o",), metavar="OUTPUT", is_path=True)
    direction: str | None = option(
        None, "from which domain to which; required, unless RUN is one generator", metavar="{X2Y,Y2X}")
    image_size: int | None = option(
        None, "resize the shorter side to S first, and keep this size; default: no change", at_least=8, at_most=8192,
        metavar="S")
    value_range: str | None = option(
        None, "images only: values that become black and white, of images with more than 8 bits per value; default: as "
        "in training, else chosen from the values of INPUT", metavar="LOW,HIGH")
    smooth: float | None = option(
        None, "videos and animations: weight of the previous output frame, reduces flicker (default: 0)", at_least=0,
        below=1, metavar="A")
    device: str = option("auto", "auto: CUDA, else MPS, else CPU", choices=DEVICES)
    # fmt: on

    def check(self) -> None:
        super().check()
        read_value_ranges(self.value_range)


@dataclass(frozen=True, kw_only=True)
class ExportOptions(GenerateOptions):
    """Write a network to one file for ONNX Runtime or for torch.jit.load.

        python generate.py export checkpoints/my-cats --format onnx -o cats.onnx
        python generate.py export checkpoints/my-fruit --format torchscript --direction X2Y -o apple2orange.pt

    Batch size, and for translators height and width, stay free. Before the file is written its results are compared
    with PyTorch's, at several sizes. The file contains its metadata: ranges, layout, direction, options, iteration.
    --format onnx needs onnx, onnxscript and onnxruntime.
    """

    # fmt: off
    out: str = option(
        "", "file to write: .onnx, or .pt for torchscript", required=True, aliases=("-o",), metavar="FILE",
        is_path=True)
    format: str = option("", "kind of file", required=True, choices=("onnx", "torchscript"))
    direction: str | None = option(
        None, "from which domain to which; required for a CycleGAN, unless RUN is one generator", metavar="{X2Y,Y2X}")
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class DemoOptions(GenerateOptions):
    """Write one HTML page that runs a trained network in a browser, without a network connection.

        python generate.py demo checkpoints/my-cats -o cats.html
        python generate.py demo checkpoints/my-fruit -o fruit.html
        python generate.py demo checkpoints/my-fruit --direction X2Y -o oranges.html

    The page of a DCGAN draws new images and walks between them; the page of a CycleGAN translates photos, also photos
    of a camera. The page contains everything and fetches nothing, so it can be sent to a friend. The runtime, ONNX
    Runtime Web, is downloaded once (33 MB) and kept; --runtime takes a file that is on disk. Needs onnx, onnxscript and
    onnxruntime.
    """

    # fmt: off
    out: str = option(
        "", "page to write: .html", required=True, aliases=("-o",), metavar="FILE", is_path=True)
    direction: str | None = option(
        None, "of a CycleGAN: from which domain to which; default: both directions", metavar="{X2Y,Y2X}")
    runtime: str | None = option(
        None, "the npm package onnxruntime-web, if it should not be downloaded: the .tgz file that `npm pack` writes",
        metavar="FILE", is_path=True)
    # fmt: on
