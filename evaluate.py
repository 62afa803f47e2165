"""Measure a trained GAN, or a folder of images, against real images.

    python evaluate.py checkpoints/NAME                       # DCGAN: samples; CycleGAN: translations both ways
    python evaluate.py checkpoints/NAME --checkpoint best     # the best one of training with --eval_every; or 3000
    python evaluate.py checkpoints/NAME photos/others         # against other images than it was trained on
    python evaluate.py made photos/cats                       # two folders of images
    python evaluate.py checkpoints/NAME --features pixels     # without any network

Distances are taken in the features of a network. With Inception-v3 (the default; its weights, 95 MB, are downloaded at
the first use) they are FID, KID and MiFID; with --features FILE they have other names, because they are other numbers.
--features pixels needs no weights. The numbers go to metrics.csv and to a JSON file in the run folder, together with
the protocol, and the images most like their nearest training images to a picture: is it memory?
"""

import argparse
import signal
import sys

from options import OneLineParser

SCRIPT = "evaluate.py"


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; a mistake ends the program with one line and exit code 2."""
    parser = OneLineParser(
        prog=SCRIPT, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN_OR_FOLDER", help="run folder, checkpoint file, or folder of images")
    parser.add_argument(
        "reference", nargs="?", metavar="REFERENCE", help="folder of real images; default: those the run trained on"
    )
    parser.add_argument(
        "--checkpoint", default="newest", help="of a run folder: newest, best or an iteration (default: newest)"
    )
    parser.add_argument(
        "--num_images", type=int, metavar="N",
        help="samples of a DCGAN, or images of each folder to translate; default: as many as there are real ones",
    )  # fmt: skip
    parser.add_argument(
        "--image_size", type=int, metavar="S",
        help="of two folders: resize the shorter side to S and crop; default: as they are, if all have one size",
    )  # fmt: skip
    parser.add_argument(
        "--features", default="inception", metavar="{inception,pixels,FILE}",
        help="what the distances are taken in; pixels: 16x16 RGB; FILE: TorchScript module of images in [0, 255], or "
        "weights of a torchvision model under their usual name, such as resnet18-f37072fd.pth (default: inception)",
    )  # fmt: skip
    parser.add_argument("--inception_weights", metavar="FILE", help="Inception weights that you have downloaded")
    parser.add_argument("--seed", type=int, default=0, help="of the samples and of what is drawn (default: 0)")
    parser.add_argument(
        "--batch_size", type=int, default=32, help="images at a time; the result doesn't depend on it (default: 32)"
    )
    parser.add_argument(
        "--device", default="auto", metavar="{auto,cuda,mps,cpu}", help="auto: CUDA, else MPS, else CPU (default: auto)"
    )
    parser.add_argument("-o", "--out", metavar="FOLDER", help="where the results go; default: the run folder")
    options = parser.parse_args(arguments)
    for name, least in {"num_images": 2, "image_size": 32, "batch_size": 1, "seed": 0}.items():
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name}: {value} is out of range; use a number at least {least}")
    if options.seed >= 2**63:
        parser.error(f"--seed: {options.seed} is out of range; use a number below 2^63")
    if options.inception_weights is not None and options.features != "inception":
        parser.error(f"--inception_weights: does nothing with --features {options.features}; leave one out")
    if options.device not in ("auto", "cuda", "mps", "cpu"):
        parser.error(f"--device: {options.device!r} is unknown; choose from auto, cuda, mps, cpu")
    return options


if __name__ == "__main__":  # before torch loads, so that --help and a mistyped flag answer at once
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    OPTIONS = parse(sys.argv[1:])

import dataclasses
import itertools
import math
import os
import re
import socket
import warnings
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from data_loader import decode, find_domains, find_images, list_images, load_images
from models import sample_latents
from runs import is_run, save_evaluation
from utils import UserError, choose_device, image_grid, keep_freed_memory, rank, run_main

Generator = Callable[[Tensor], Tensor]  # in eval mode: latents or images -> images in [-1, 1]
_FEW = 2048  # below as many images a Frechet distance is far above that of many
_VERY_FEW = (
    100  # below as many precision and recall say little: a noisy image may have the third nearest for a neighbor
)
_PAIRS = 1000  # of images, for the mean SSIM between them
_NEIGHBORS = 3  # of precision and recall
_AT_ONCE = 16  # images that a generator makes at once: always as many, so that the result depends on nothing else

# ----------------------------------------------------------------------------------------------------------------------
# Features


class Features(NamedTuple):
    """What images are compared in.

    Attributes:
        name: for tables.
        extract: uint8 (B, 3, H, W) -> (B, d).
        resize: how images come to the size that it needs.
        is_inception: whether kernel and Frechet distances in them are KID and FID.
    """

    name: str
    extract: Callable[[Tensor], Tensor]
    resize: str
    is_inception: bool = False


class UnavailableError(UserError):
    """The Inception weights can't be had."""


def pixels(images: Tensor) -> Tensor:
    """Features without a network: the mean colors of 16x16 squares, uint8 (B, 3, H, W) -> (B, 768) in [0, 1]."""
    return F.adaptive_avg_pool2d(images.float() / 255, 16).flatten(1)


def find_inception_weights(path: str | None) -> Path:
    """Return the file of the Inception weights: `path`, else the one in torch's cache, downloaded if it isn't there.

    Raises:
        UserError: no such file.
        UnavailableError: it is not there and can't be downloaded.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as ADDRESS

    if path is not None:
        if not Path(path).is_file():
            raise UserError(f"--inception_weights: there is no file {path}; download {ADDRESS}")
        return Path(path)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / ADDRESS.rsplit("/", 1)[1]
    if not cached.exists():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            before = socket.getdefaulttimeout()
            socket.setdefaulttimeout(20)
            try:
                # Under a temporary name, with a progress bar; the name ends with the beginning of its SHA-256.
                torch.hub.download_url_to_file(ADDRESS, str(cached), hash_prefix=cached.stem.rsplit("-", 1)[1])
            finally:
                socket.setdefaulttimeout(before)
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UnavailableError(
                f"the Inception weights can't be downloaded ({reason}); get {ADDRESS} elsewhere and put it at "
                f"{cached}, or name it with --inception_weights FILE"
            ) from None
    return cached


def _load_inception(weights: Path, device: torch.device) -> Features:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        torch.load(weights, weights_only=True)  # torch-fidelity itself would also run what a hostile file says
        with torch.random.fork_rng(devices=[]):  # a network begins with random weights
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights)).to(device)
    except Exception as error:  # pickles of any kind
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"--inception_weights: {weights} doesn't hold the weights of Inception ({reason})") from None
    return Features("inception", lambda images: network(images)[0], "bilinear as TensorFlow 1, to 299x299", True)


def _name_of(path: Path) -> str:
    """Return the name of a file as one that can do no harm in tables and file names, and is none of our own."""
    name = re.sub(r"[^\w-]+", "_", path.stem).strip("_-")
    return name if name not in ("", "inception", "pixels") else f"file_{name}"


def _load_torchscript(path: Path, device: torch.device) -> Features:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and still the one format that needs no code
        network = torch.jit.load(str(path), map_location=device).eval()
    return Features(_name_of(path), lambda images: network(images.float()), "inside the module")


def _load_torchvision(path: Path, device: torch.device) -> Features:
    """Load weights of a torchvision model, named as torchvision names them, without its last layer."""
    from torchvision import models

    name = re.sub(r"-[0-9a-f]{8}$", "", path.stem)
    if name not in models.list_models(module=models):
        raise ValueError(f"torchvision has no model {name}: keep the name of the file, as resnet18-f37072fd.pth")
    network = models.get_model(name, weights=None)
    network.load_state_dict(torch.load(path, weights_only=True))
    for head in ("fc", "classifier", "head", "heads"):
        if hasattr(network, head):
            setattr(network, head, nn.Identity())
    network = network.to(device).eval().requires_grad_(False)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in _IMAGENET)

    def extract(images: Tensor) -> Tensor:
        images = F.interpolate(images.float() / 255, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        return network((images - mean) / std).flatten(1)

    return Features(_name_of(path), extract, "bicubic with antialias, to 224x224")


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of the colors


def load_features(features: str, inception_weights: str | None, device: torch.device) -> Features:
    """Return what `--features` names: "inception", "pixels" or a file.

    Raises:
        UserError: no such file, or nothing that makes features of images.
        UnavailableError: the Inception weights are not here and can't be downloaded.
    """
    if features == "pixels":
        return Features("pixels", pixels, "mean, to 16x16")
    if features == "inception":
        return _load_inception(find_inception_weights(inception_weights), device)
    path = Path(features).expanduser()
    if not path.is_file():
        raise UserError(f"--features: there is no file {features}; use inception, pixels or a file")
    try:
        with zipfile.ZipFile(path) as archive:
            is_script = any("/code/" in name for name in archive.namelist())
        with torch.random.fork_rng(devices=[]):  # a network begins with random weights
            loaded = (_load_torchscript if is_script else _load_torchvision)(path, device)
        tried = extract_features(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), loaded, device)
        if tried.ndim != 2 or not tried.isfinite().all():
            raise ValueError(f"it makes {tuple(tried.shape)} of 2 images, not (2, d) finite numbers")
    except Exception as error:  # files of any kind
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--features: {features} makes no features of images ({reason})") from None
    return loaded


@torch.no_grad()
def extract_features(
    images: Tensor, features: Features, device: torch.device, batch_size: int = 32, title: str | None = None
) -> Tensor:
    """Return the features of uint8 images (N, 3, H, W), float64 (N, d) on the CPU.

    Args:
        title: of the progress bar; None for no bar.
    """
    batches = tqdm(images.split(batch_size), title, unit="batch", leave=False, disable=True if title is None else None)
    return torch.cat([features.extract(batch.to(device)).double().cpu() for batch in batches])


# ----------------------------------------------------------------------------------------------------------------------
# Metrics: pure functions of images and of features


class Measurement(NamedTuple):
    """One number, and its standard deviation where it is known."""

    metric: str
    value: float
    std: float | None = None


class _AsGiven(nn.Module):
    """Tells torchmetrics that what it gets are features."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def in_their_span(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (N, d) and (M, d) in coordinates of the space that they span, (N, r) and (M, r), r <= d.

    A rotation, so that means, covariances, distances and angles stay what they are; but of 400 images in 2,048
    dimensions the covariances shrink to 400x400, and their eigenvalues take 0.1 instead of 13 seconds.
    """
    together = torch.cat([a, b])
    if len(together) >= together.shape[1]:
        return a, b
    basis, _ = torch.linalg.qr(together.t())  # (d, r)
    return a @ basis, b @ basis


def frechet_distances(generated: Tensor, reference: Tensor) -> tuple[float, float]:
    """Return the Frechet distance of two sets of features (N, d), (M, d), and the memorization-informed one.

    The first is FID in Inception features (Heusel et al. 2017, arXiv:1706.08500), the second MiFID (Bai et al. 2021,
    arXiv:2106.03062): the first divided by the mean cosine distance to the nearest reference if that is below 0.1.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.mifid import MemorizationInformedFrechetInceptionDistance

    generated, reference = in_their_span(generated, reference)
    distances = []
    for metric in (FrechetInceptionDistance, MemorizationInformedFrechetInceptionDistance):
        distance = metric(_AsGiven(generated.shape[1]), sync_on_compute=False)
        # torchmetrics looks for the nearest "fake" of each "real" one, where the paper has the nearest real one of each
        # generated; for the rest the order doesn't matter.
        distance.update(generated, real=True)
        distance.update(reference, real=False)
        distances.append(distance.compute().item())
    return distances[0], distances[1]


def kernel_distance(generated: Tensor, reference: Tensor, seed: int) -> tuple[float, float]:
    """Return the squared maximum mean discrepancy of two sets of features (N, d), (M, d), and its standard deviation.

    KID in Inception features (Binkowski et al. 2018, arXiv:1801.01401): kernel (x.y / d + 1)^3, the mean over subsets
    of min(1000, N, M). Where that is all of a set every subset is the same, and the deviation would be 0: it is then
    that over subsets of half the size, an upper estimate.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(1000, len(generated), len(reference))

    def over_subsets(count: int, size: int) -> tuple[float, float]:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # of the memory that the features take
            torch.manual_seed(seed)
            metric = KernelInceptionDistance(
                _AsGiven(generated.shape[1]), subsets=count, subset_size=size, sync_on_compute=False
            )
            metric.update(reference, real=True)
            metric.update(generated, real=False)
            mean, std = metric.compute()
        return mean.item(), std.item()

    mean, std = over_subsets(1 if size == len(generated) == len(reference) else 100, size)
    if size == min(len(generated), len(reference)):
        _, std = over_subsets(100, max(2, size // 2))
    return mean, std


def precision_recall(generated: Tensor, reference: Tensor) -> tuple[float, float]:
    """Return the shares of generated images among the real ones, and of real ones among the generated.

    "Among": within the distance from some image of a set to its third nearest neighbor there (Kynkäänniemi et al. 2019,
    arXiv:1904.06991). Features (N, d) and (M, d), more than 3 of each.
    """
    from torch_fidelity.metric_prc import prc_features_to_metric

    found = prc_features_to_metric(generated, reference, prc_neighborhood=_NEIGHBORS, verbose=False)
    return found["precision"], found["recall"]


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the SSIM of each image of uint8 (N, 3, H, W) with its counterpart, (N,)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    return structural_similarity_index_measure(a.float() / 255, b.float() / 255, data_range=1.0, reduction="none")


def similarity_within(images: Tensor, seed: int) -> Measurement:
    """Return the mean SSIM over pairs of different images (N, 3, H, W): 1 if all are the same.

    At most 1,000 pairs of the first 500 images.
    """
    pairs = torch.tensor(list(itertools.combinations(range(min(len(images), 500)), 2)))
    if len(pairs) > _PAIRS:
        pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:_PAIRS]]
    found = torch.cat([ssim(images[part[:, 0]], images[part[:, 1]]) for part in pairs.split(100)])
    return Measurement("SSIM between images", found.mean().item(), found.std(correction=0).item())


def nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each of the features (N, d) the distance to its nearest one in (M, d), and the place of that."""
    distances, places = torch.cdist(a, b).min(dim=1)
    return distances, places


def nearest_ratio(generated: Tensor, reference: Tensor) -> float:
    """Return how near generated images (N, d) are to the nearest real ones (M, d), as real ones are to each other.

    The mean distance to the nearest, divided by the mean over real images of that to the nearest other one. Images as
    new as the real ones have about 1, copies 0.
    """
    between = torch.cdist(reference, reference).fill_diagonal_(math.inf).min(dim=1).values
    return (nearest(generated, reference)[0].mean() / between.mean().clamp(min=1e-12)).item()


def compare(generated: Tensor, reference: Tensor, features: Features, seed: int) -> list[Measurement]:
    """Return the distances between two sets of features, float64 (N, d) and (M, d); the kernel distance first."""
    mean, std = kernel_distance(generated, reference, seed)
    frechet, informed = frechet_distances(generated, reference)
    found = [
        Measurement("KID x1000" if features.is_inception else "kernel distance x1000", 1000 * mean, 1000 * std),
        Measurement("FID" if features.is_inception else "Frechet distance", frechet),
    ]
    if features.is_inception:  # what counts as near is defined in its features
        found.append(Measurement("MiFID", informed))
    if min(len(generated), len(reference)) > _NEIGHBORS:
        shares = precision_recall(generated, reference)
        found += [Measurement(name, value) for name, value in zip(("precision", "recall"), shares, strict=True)]
    return [*found, Measurement("nearest distance ratio", nearest_ratio(generated, reference))]


# ----------------------------------------------------------------------------------------------------------------------
# A generator and its images


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> [0, 255] on the CPU, rounded."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def from_uint8(images: Tensor, device: torch.device) -> Tensor:
    """[0, 255] -> [-1, 1] on the device, float32."""
    return images.to(device).float() / 127.5 - 1


@torch.no_grad()
def apply(G: Generator, inputs: Tensor, device: torch.device) -> Tensor:
    """Return what G makes of latents (N, Z, 1, 1) or of uint8 images (N, 3, H, W), as uint8 images."""
    made = []
    for batch in inputs.split(_AT_ONCE):
        batch = from_uint8(batch, device) if batch.dtype == torch.uint8 else batch.to(device)
        made.append(to_uint8(G(batch)))
    return torch.cat(made)


class Case(NamedTuple):
    """Generated images, and what to compare them with; all uint8 (N, 3, H, W).

    Attributes:
        task: "z" for samples of a DCGAN, "X2Y" or "Y2X" for translations, "folder".
        split: of the real images: "train", "test", or the folder that they come from.
        inputs: what was translated.
        reconstructions: the translations, translated back.
        truth: what the translations should be, where that is known.
    """

    task: str
    split: str
    generated: Tensor
    reference: Tensor
    inputs: Tensor | None = None
    reconstructions: Tensor | None = None
    truth: Tensor | None = None


def measure_images(case: Case, seed: int) -> list[Measurement]:
    """Return what needs no features."""
    found = [similarity_within(case.generated, seed)] if len(case.generated) > 1 else []
    for name, images, target in (
        ("reconstruction", case.reconstructions, case.inputs),
        ("truth", case.generated, case.truth),
        ("truth, untranslated", case.inputs, case.truth),
    ):
        if images is not None and target is not None:
            differences = (images.float() - target.float()).abs().flatten(1).mean(dim=1) / 255
            found.append(Measurement(f"L1 to {name}", differences.mean().item()))
            found.append(Measurement(f"SSIM with {name}", ssim(images, target).mean().item()))
    return found


class Evaluator:
    """Measures generators of one run against its images, as often as asked for.

    Args:
        script, options: of the run.
        features: what to compare in.
        num_images: samples, or images of each folder to translate; None for as many as there are real ones.
        reference: a folder, and the real images in it, to use instead of those that a DCGAN was trained on.

    Raises:
        UserError: the images are not there, or only one.
    """

    def __init__(
        self, script: str, options: Any, features: Features, device: torch.device, seed: int = 0,
        num_images: int | None = None, batch_size: int = 32, reference: tuple[str, Tensor] | None = None,
    ):  # fmt: skip
        self.script, self.options, self.features, self.device = script, options, features, device
        self.seed, self.num_images, self.batch_size = seed, num_images, batch_size
        self.real: dict[tuple[str, str], Tensor] = {}  # domain and split -> images
        self._known: dict[tuple[str, str], tuple[Tensor, Measurement]] = {}  # their features, and their similarity
        self.is_toy = False
        if reference is not None:
            folder, images = reference
            self.real["images", folder] = images
        else:
            self._load()

    def _load(self) -> None:
        """Decode the images of the run, without augmentation."""
        script, options = self.script, self.options
        plain = dataclasses.replace(options, data_aug="basic", cache_gb=math.inf)
        sources = find_images(plain) if script == "vanilla_gan.py" else find_domains(plain)
        for domain, images in load_images(sources, plain, torch.device("cpu")).items():
            self.real[domain, "train"] = images.images
            if len(images) < 2:
                raise UserError(f"{images.files[0].parent}: one image is too few to measure anything by; add more")
            if len(images.test) > 1 and script != "vanilla_gan.py":
                self.real[domain, "test"] = torch.stack([decode(path, options.image_size) for path in images.test])
        # The toy cats to test on are drawn in both domains, in one order.
        [root, *others] = {source.train.parent for source in sources.values()}
        self.is_toy = not options.test_split and not others and (root / "attributes.json").is_file()

    def cases(self, generators: dict[str, Generator]) -> list[Case]:
        """Generate what there is to measure, with the generators by direction: z, or X2Y and Y2X."""
        if "z" in generators:
            [(_, split)] = self.real
            [real] = self.real.values()
            generator = torch.Generator().manual_seed(self.seed)
            z = sample_latents(
                self.num_images or len(real), self.options.noise_size, torch.device("cpu"), generator
            )  # (N, Z, 1, 1)
            return [Case("z", split, apply(generators["z"], z, self.device), real)]
        found = []
        for (X, Y), split in itertools.product((("X", "Y"), ("Y", "X")), ("train", "test")):
            if (X, split) not in self.real or (Y, split) not in self.real:
                continue
            inputs = self.real[X, split][: self.num_images]
            translations = apply(generators[f"{X}2{Y}"], inputs, self.device)
            back = apply(generators[f"{Y}2{X}"], translations, self.device)
            truth = self.real[Y, split][: self.num_images] if self.is_toy and split == "test" else None
            found.append(Case(f"{X}2{Y}", split, translations, self.real[Y, split], inputs, back, truth))
        return found

    def measure(self, case: Case) -> tuple[list[Measurement], Tensor]:
        """Return everything there is to know of a case, the kernel distance first, and for each generated image the
        distance to its nearest real one and the place of that, as (2, N)."""
        target = case.task[-1] if case.task in ("X2Y", "Y2X") else "images"
        if (target, case.split) not in self._known:
            within = similarity_within(case.reference, self.seed)._replace(metric="SSIM between real images")
            self._known[target, case.split] = self._extract(case.reference, "real images"), within
        reference, within = self._known[target, case.split]
        generated = self._extract(case.generated, "generated images")
        found = [*compare(generated, reference, self.features, self.seed), *measure_images(case, self.seed), within]
        return found, torch.stack(nearest(generated, reference))

    def _extract(self, images: Tensor, title: str) -> Tensor:
        return extract_features(images, self.features, self.device, self.batch_size, title)

    def rows(self, case: Case, found: Sequence[Measurement]) -> list[dict[str, Any]]:
        """Return measurements as rows of metrics.csv, with their protocol."""
        protocol = {
            "features": self.features.name, "resize": self.features.resize,
            "generated": len(case.generated), "reference": len(case.reference), "seed": self.seed,
        }  # fmt: skip
        return [{"task": case.task, "split": case.split, **one._asdict(), **protocol} for one in found]

    def __call__(self, generators: dict[str, Generator]) -> list[dict[str, Any]]:
        """Return the rows of metrics.csv for generators. The first names the metric that counts."""
        return [row for case in self.cases(generators) for row in self.rows(case, self.measure(case)[0])]


def evaluate_while_training(
    generators: dict[str, Generator], script: str, options: Any, device: torch.device
) -> Callable[[], list[dict[str, Any]]] | None:
    """Return what measures the generators of a run as it trains, or None without --eval_every.

    Of several processes the first one does it.
    """
    if not options.eval_every or rank():
        return None
    try:
        features = load_features(options.features, options.inception_weights, device)
    except UnavailableError as error:
        raise UserError(f"--features inception: {error}, or use --features pixels") from None
    return partial(Evaluator(script, options, features, device), generators)


# ----------------------------------------------------------------------------------------------------------------------
# The command


def picture_of_nearest(case: Case, distances: Tensor, places: Tensor) -> Tensor:
    """Return the 32 generated images that are nearest to a real one, the nearest first, each beside that one.

    uint8 (3, H', W').
    """
    first = distances.argsort()[:32]
    pairs = torch.cat([case.generated[first], case.reference[places[first].long()]], dim=3)  # (n, 3, H, 2W)
    return image_grid(from_uint8(pairs, torch.device("cpu")), columns=8, padding=6)


def read_folder(folder: str, size: int | None) -> Tensor:
    """Return the images of a folder, uint8 (N, 3, H, W): at their own size if that is one, else squares of `size`."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{folder} is neither a run folder, nor a checkpoint, nor a folder of images; give one of them")
    images, bad = [], []
    for file in tqdm(list_images(path, flag="REFERENCE"), "decode", unit=" images", leave=False, disable=None):
        try:
            images.append(decode(file, size))
        except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
            bad.append(f"{file.name} ({error})")
    if bad:
        print(f"Warning: {len(bad)} images in {folder} are not readable: {', '.join(bad[:5])}", file=sys.stderr)
    if not images:
        raise UserError(f"{folder}: no image is readable; give another folder")
    if len(images) == 1:
        raise UserError(f"{folder}: one image is too few to measure anything by; give a folder of more")
    if len({image.shape for image in images}) > 1:
        raise UserError(f"--image_size: the images in {folder} differ in size; say which one they are to have")
    return torch.stack(images)


# Metric, or how its name begins -> how to read it.
READINGS = {
    "KID": "less is better",
    "kernel distance": "less is better",
    "FID": "less is better",
    "MiFID": "less is better",
    "Frechet distance": "less is better",
    "precision": "share of the generated that are like real ones; 1 is best",
    "recall": "share of the real that are like generated ones; 1 is best",
    "nearest distance ratio": "near 1: as new as real images are; near 0: copies",
    "SSIM between": "1: all images are the same",
    "L1": "of pixels in [0, 1]; 0 is best",
    "SSIM with": "1 is best",
}


def describe(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the rows of one case as lines for the user."""
    width = max(len(row["metric"]) for row in rows)
    lines = []
    for row in rows:
        number = f"{row['value']:.4g}" + (f" ± {row['std']:.2g}" if row["std"] else "")
        reading = next(reading for start, reading in READINGS.items() if row["metric"].startswith(start))
        lines.append(f"    {row['metric']:{width}}  {number:16}  {reading}")
    return lines


def main(request: argparse.Namespace) -> int:
    """Measure what the command line says; return the exit code."""
    from generate import load_trained  # here, because training, which measures too, has no use for it

    device = choose_device(request.device)
    keep_freed_memory()
    torch.set_flush_denormal(True)

    # Find the generators, or read the two folders.
    where = Path(request.run)
    trained = reference = None
    if is_run(where):
        trained = load_trained(where, request.checkpoint, device)
        if request.image_size is not None:
            raise UserError(f"--image_size: a run has one, {trained.options.image_size}; leave the flag out")
        if request.reference is not None and trained.script != "vanilla_gan.py":
            raise UserError(f"REFERENCE: {request.reference} can't stand for both domains of a CycleGAN; leave it out")
        if request.reference is not None:
            reference = request.reference, read_folder(request.reference, trained.options.image_size)
    else:
        if request.reference is None:
            raise UserError(f"REFERENCE: missing; {where} is no run, so name the folder of the real images too")
        for flag, default in {"checkpoint": "newest", "num_images": None}.items():
            if getattr(request, flag) != default:
                raise UserError(f"--{flag}: {where} is no run; leave the flag out")
        made, real = (read_folder(folder, request.image_size) for folder in (request.run, request.reference))
        reference = request.reference, real
        if made.shape[1:] != real.shape[1:]:
            raise UserError(
                "--image_size: the images of the two folders differ in size; say which one they are to have"
            )
    out = Path(request.out) if request.out is not None else None
    if out is None and trained is not None:
        out = where if where.is_dir() else where.parent
    if out is not None:
        there = next(path for path in (out, *out.absolute().parents) if path.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise UserError(f"--out: {out}: {there} is no folder that you can write to; name another")

    # Choose what to compare in.
    try:
        features = load_features(request.features, request.inception_weights, device)
    except UnavailableError as error:
        print(f"Warning: {error}. What needs no weights follows, with --features pixels.", file=sys.stderr)
        features = load_features("pixels", None, device)

    # Measure each case, and say what came of it.
    if trained is not None:
        evaluator = Evaluator(
            trained.script, trained.options, features, device, request.seed, request.num_images, request.batch_size,
            reference,
        )  # fmt: skip
        print(f"{where} at iteration {trained.step}, {trained.options.image_size}x{trained.options.image_size}")
        cases = evaluator.cases(trained.generators)
    else:
        evaluator = Evaluator("", None, features, device, request.seed, None, request.batch_size, reference)
        cases = [Case("folder", request.reference, made, real)]
    if not features.is_inception:
        print(f"Distances in the features {features.name}: they are no FID and can't be compared with one")
    rows, pictures = [], {}
    for case in cases:
        found, (distances, places) = evaluator.measure(case)
        new = evaluator.rows(case, found)
        rows += new
        if case.task not in pictures:  # of the training images, if there are several splits
            pictures[case.task] = picture_of_nearest(case, distances, places)
        title = {"z": "samples", "folder": f"images of {where}"}.get(case.task, f"translations {case.task}")
        real = {"train": "training images", "test": "images to test on"}.get(case.split, f"images of {case.split}")
        print(f"{len(case.generated)} {title}, against {len(case.reference)} {real}")
        print("\n".join(describe(new)))
    fewest = min(min(len(case.generated), len(case.reference)) for case in cases)
    if fewest < _FEW:
        print(
            f"Warning: with {fewest} images Frechet distances come out too large: below {_FEW} compare them only "
            "among equal numbers of images. The kernel distance has no such bias"
        )
    if fewest < _VERY_FEW:
        print(f"Warning: with {fewest} images precision and recall say little")

    # Keep the numbers with their protocol, and the pictures.
    if out is not None:
        step = trained.step if trained is not None else 0
        about = {**vars(request), "script": trained and trained.script}
        written = save_evaluation(out, step, features.name, about, rows, pictures)
        print("\n".join(f"wrote {path}" for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(OPTIONS), SCRIPT))
