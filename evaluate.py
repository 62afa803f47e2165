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

from options import DEVICES, OneLineParser, number

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
        "--num_images", type=number(int, "at least 2", lambda n: n >= 2), metavar="N",
        help="samples of a DCGAN, or images of each folder to translate; default: as many as there are real ones",
    )  # fmt: skip
    parser.add_argument(
        "--image_size", type=number(int, "at least 32", lambda s: s >= 32), metavar="S",
        help="of two folders: resize the shorter side to S and crop; default: as they are, if all have one size",
    )  # fmt: skip
    parser.add_argument(
        "--features", default="inception", metavar="{inception,pixels,FILE}",
        help="what the distances are taken in; pixels: 16x16 RGB; FILE: TorchScript module of images in [0, 255], or "
        "weights of a torchvision model under their usual name, such as resnet18-f37072fd.pth (default: inception)",
    )  # fmt: skip
    parser.add_argument("--inception_weights", metavar="FILE", help="Inception weights that you have downloaded")
    parser.add_argument(
        "--seed", type=number(int, "from 0 to below 2^63", lambda s: 0 <= s < 2**63), default=0,
        help="of the samples and of what is drawn (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--batch_size", type=number(int, "at least 1", lambda b: b >= 1), default=32,
        help="images at a time; the result doesn't depend on it (default: 32)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", choices=DEVICES, help="auto: CUDA, else MPS, else CPU")
    parser.add_argument("-o", "--out", metavar="FOLDER", help="where the results go; default: the run folder")
    options = parser.parse_args(arguments)
    if options.inception_weights is not None and options.features != "inception":
        parser.error(f"--inception_weights: does nothing with --features {options.features}; leave one out")
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
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_loader import decode, find_domains, find_images, list_images, load_images, try_decode
from models import sample_latents
from runs import check_metrics, is_run, save_evaluation
from utils import (
    UserError,
    choose_device,
    from_uint8,
    image_grid,
    keep_freed_memory,
    printable,
    progress,
    rank,
    run_main,
    to_uint8,
)

if TYPE_CHECKING:
    from generate import Trained

Generator = Callable[[Tensor], Tensor]  # in eval mode: latents or images -> images in [-1, 1]
_FEW = 2048  # below as many images a Frechet distance is far above that of many
_VERY_FEW = 100  # below as many precision and recall say little: noise may have the third nearest for a neighbor
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of its colors
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
        if not os.path.isfile(path):
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
    path = Path(os.path.expanduser(features))
    if not os.path.isfile(path):
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
    batches = images.split(batch_size)
    shown = batches if title is None else progress(batches, title, "batches")
    return torch.cat([features.extract(batch.to(device)).double().cpu() for batch in shown])


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


@torch.no_grad()
def apply(G: Generator, inputs: Tensor, device: torch.device) -> Tensor:
    """Return what G makes of latents (N, Z, 1, 1) or of uint8 images (N, 3, H, W), as uint8 images on the CPU."""
    made = []
    for batch in inputs.split(_AT_ONCE):
        batch = batch.to(device)
        batch = from_uint8(batch) if batch.dtype == torch.uint8 else batch
        made.append(to_uint8(G(batch)).cpu())
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
    found = [similarity_within(case.generated, seed)]
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


class Real(NamedTuple):
    """The real images of a run.

    Attributes:
        images: domain and split -> uint8 (N, 3, S, S). A DCGAN has one domain, "images".
        is_paired: whether those to test on show the same in both domains, in one order, as the toy cats do.
    """

    images: dict[tuple[str, str], Tensor]
    is_paired: bool = False


def load_real(options: Any, is_translator: bool) -> Real:
    """Decode the images that a run trains on, and those that a translator is tested on, without augmentation.

    Raises:
        UserError: they are not there, or only one.
    """
    plain = dataclasses.replace(options, data_aug="basic", cache_gb=math.inf, strict=False)
    sources = find_domains(plain) if is_translator else find_images(plain)
    found = {}
    for domain, images in load_images(sources, plain, torch.device("cpu")).items():
        found[domain, "train"] = images.images
        if len(images) < 2:
            raise UserError(f"{images.files[0].parent}: one image is too few to measure anything by; add more")
        if is_translator and len(images.test) > 1:
            found[domain, "test"] = torch.stack([decode(path, options.image_size) for path in images.test])
    [root, *others] = {source.train.parent for source in sources.values()}
    is_toy = not options.test_split and not others and (root / "attributes.json").is_file()
    return Real(found, is_paired=is_toy)


def make_cases(
    generators: dict[str, Generator], real: Real, options: Any, device: torch.device, seed: int = 0,
    num_images: int | None = None,
) -> list[Case]:  # fmt: skip
    """Generate what there is to measure.

    Args:
        generators: by direction: z, or X2Y and Y2X.
        options: of the run.
        seed: of the samples.
        num_images: samples, or images of each folder to translate; None for as many as there are real ones.
    """
    if "z" in generators:
        [((_, split), images)] = real.images.items()
        generator = torch.Generator().manual_seed(seed)
        count = num_images or len(images)
        z = sample_latents(count, options.noise_size, torch.device("cpu"), generator)  # (N, Z, 1, 1)
        return [Case("z", split, apply(generators["z"], z, device), images)]
    cases = []
    for (X, Y), split in itertools.product((("X", "Y"), ("Y", "X")), ("train", "test")):
        if (X, split) not in real.images or (Y, split) not in real.images:
            continue
        inputs, targets = real.images[X, split][:num_images], real.images[Y, split]
        translations = apply(generators[f"{X}2{Y}"], inputs, device)
        back = apply(generators[f"{Y}2{X}"], translations, device)
        truth = targets[:num_images] if real.is_paired and split == "test" else None
        cases.append(Case(f"{X}2{Y}", split, translations, targets, inputs, back, truth))
    return cases


class Judge:
    """Measures cases, in one kind of features. Of real images that come again it remembers the features.

    Args:
        seed: of what is drawn.
        batch_size: of the extraction of features; the result doesn't depend on it.
    """

    def __init__(self, features: Features, device: torch.device, seed: int = 0, batch_size: int = 32):
        self.features, self.device, self.seed, self.batch_size = features, device, seed, batch_size
        self._known: dict[Tensor, tuple[Tensor, Measurement]] = {}  # real images -> features, and their similarity

    def __call__(self, case: Case) -> tuple[list[dict[str, Any]], Tensor]:
        """Measure a case.

        Returns:
            Rows of metrics.csv with their protocol, the kernel distance first; and for each generated image the
            distance to its nearest real one and the place of that, (2, N).
        """
        if case.reference not in self._known:
            within = similarity_within(case.reference, self.seed)._replace(metric="SSIM between real images")
            self._known[case.reference] = self._extract(case.reference, "real images"), within
        reference, within = self._known[case.reference]
        generated = self._extract(case.generated, "generated images")
        found = [*compare(generated, reference, self.features, self.seed), *measure_images(case, self.seed), within]
        protocol = {
            "features": self.features.name, "resize": self.features.resize,
            "generated": len(case.generated), "reference": len(case.reference), "seed": self.seed,
        }  # fmt: skip
        rows = [{"task": case.task, "split": case.split, **one._asdict(), **protocol} for one in found]
        return rows, torch.stack(nearest(generated, reference))

    def _extract(self, images: Tensor, title: str) -> Tensor:
        return extract_features(images, self.features, self.device, self.batch_size, title)


def evaluate_while_training(
    generators: dict[str, Generator], options: Any, device: torch.device
) -> Callable[[], list[dict[str, Any]]] | None:
    """Return what measures the generators of a run as it trains, or None without --eval_every.

    It returns rows of metrics.csv, of which the first names the metric that counts. Of several processes the first one
    does it.
    """
    if not options.eval_every or rank():
        return None
    try:
        features = load_features(options.features, options.inception_weights, device)
    except UnavailableError as error:
        raise UserError(f"--features inception: {error}, or use --features pixels") from None
    real, judge = load_real(options, is_translator="z" not in generators), Judge(features, device)
    return lambda: [row for case in make_cases(generators, real, options, device) for row in judge(case)[0]]


# ----------------------------------------------------------------------------------------------------------------------
# The command


def picture_of_nearest(case: Case, distances: Tensor, places: Tensor) -> Tensor:
    """Return the 32 generated images that are nearest to a real one, the nearest first, each beside that one.

    uint8 (3, H', W').
    """
    first = distances.argsort()[:32]
    pairs = torch.cat([case.generated[first], case.reference[places[first].long()]], dim=3)  # (n, 3, H, 2W)
    return image_grid(from_uint8(pairs), columns=8, padding=6)


def read_folder(folder: str, size: int | None, argument: str = "REFERENCE") -> Tensor:
    """Return the images of a folder, uint8 (N, 3, H, W): at their own size if that is one, else squares of `size`.

    Args:
        argument: that named the folder, for messages.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{folder} is neither a run folder, nor a checkpoint, nor a folder of images; give one of them")
    files = list_images(path, flag=argument)
    with ThreadPoolExecutor() as pool:
        decoded = list(progress(pool.map(partial(try_decode, size=size), files), "decode", "images", len(files)))
    bad = [f"{file.name} ({image})" for file, image in zip(files, decoded, strict=True) if isinstance(image, str)]
    images = [image for image in decoded if not isinstance(image, str)]
    if bad:
        names = ", ".join(bad[:5] + ["..."] * (len(bad) > 5))
        warning = f"Warning: {len(bad)} of {len(files)} images in {folder} are not readable: {names}"
        print(printable(warning), file=sys.stderr)
    if len(images) < 2:
        raise UserError(
            f"{folder}: {len(images)} readable images are too few to measure anything by; give a folder of more"
        )
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


def read_run(request: argparse.Namespace, device: torch.device) -> "tuple[Trained, Real]":
    """Return the generators of the run or checkpoint that is to be measured, and the real images to compare with."""
    from generate import load_trained  # here, because training, which measures too, has no use for it

    where = Path(request.run)
    trained = load_trained(where, request.checkpoint, str(device))
    is_translator = "z" not in trained.generators
    if request.image_size is not None:
        raise UserError(f"--image_size: a run has one, {trained.options.image_size}; leave the flag out")
    if request.reference is None:
        # Decoded images are kept beside the run, wherever it was when it trained.
        home = where if where.is_dir() else where.parent
        home = home.resolve().parent if is_run(home) else home
        try:
            return trained, load_real(dataclasses.replace(trained.options, checkpoint_dir=str(home)), is_translator)
        except UserError as error:
            others = "" if is_translator else ", or name other images as REFERENCE"
            raise UserError(f"the images that {where} trained on: {error}{others}") from None
    if is_translator:
        raise UserError(f"REFERENCE: {request.reference} can't stand for both domains of a CycleGAN; leave it out")
    images = read_folder(request.reference, trained.options.image_size)
    return trained, Real({("images", str(Path(request.reference).resolve())): images})


def read_folders(request: argparse.Namespace) -> Case:
    """Return the images of the two folders that are to be compared."""
    if request.reference is None:
        raise UserError(f"REFERENCE: missing; {request.run} is no run, so name the folder of the real images too")
    for flag, default in {"checkpoint": "newest", "num_images": None}.items():
        if getattr(request, flag) != default:
            raise UserError(f"--{flag}: {request.run} is no run; leave the flag out")
    made = read_folder(request.run, request.image_size, "RUN_OR_FOLDER")
    real = read_folder(request.reference, request.image_size)
    if made.shape[1:] != real.shape[1:]:
        raise UserError("--image_size: the images of the two folders differ in size; say which one they are to have")
    return Case("folder", str(Path(request.reference).resolve()), made, real)


def find_out(request: argparse.Namespace) -> Path | None:
    """Return the folder for the results: that of --out, else the run's; two folders of images have none."""
    out, where = Path(request.out or request.run), Path(request.run)
    if request.out is None and not is_run(where):
        return None
    out = out.parent if out.is_file() and request.out is None else out
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UserError(f"--out: {out}: {there} is no folder that you can write to; name another")
    check_metrics(out)
    return out


def main(request: argparse.Namespace) -> int:
    """Measure what the command line says; return the exit code."""
    device = choose_device(request.device)
    keep_freed_memory()
    torch.set_flush_denormal(True)

    # Find the generators and real images, or read the two folders.
    out = find_out(request)
    trained, cases = None, []
    if is_run(Path(request.run)):
        trained, real = read_run(request, device)
    else:
        cases = [read_folders(request)]

    # Choose what to compare in.
    try:
        features = load_features(request.features, request.inception_weights, device)
    except UnavailableError as error:
        print(f"Warning: {error}. What needs no weights follows, with --features pixels.", file=sys.stderr)
        features = load_features("pixels", None, device)

    # Generate.
    if trained is not None:
        size = trained.options.image_size
        print(printable(f"{request.run} at iteration {trained.step}, {size}x{size}"))
        cases = make_cases(trained.generators, real, trained.options, device, request.seed, request.num_images)
    if not features.is_inception:
        print(f"Distances in the features {features.name}: they are no FID and can't be compared with one")

    # Measure each case, and say what came of it.
    judge = Judge(features, device, request.seed, request.batch_size)
    rows, pictures = [], {}
    for case in cases:
        found, (distances, places) = judge(case)
        rows += found
        if case.task not in pictures:  # of the training images, if there are several splits
            pictures[case.task] = picture_of_nearest(case, distances, places)
        title = {"z": "samples", "folder": f"images of {request.run}"}.get(case.task, f"translations {case.task}")
        of = {"train": "training images", "test": "images to test on"}.get(case.split, f"images of {request.reference}")
        print(printable(f"{len(case.generated)} {title}, against {len(case.reference)} {of}"))
        print("\n".join(describe(found)))
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
        step, script = (trained.step, trained.script) if trained is not None else (0, None)
        written = save_evaluation(out, step, features.name, {**vars(request), "script": script}, rows, pictures)
        print("\n".join(printable(f"wrote {path}") for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(OPTIONS), SCRIPT))
