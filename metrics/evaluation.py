"""Evaluations of generators, while training and afterwards: generate images, extract features, measure."""

import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from images.decoding import DecodedSet, decode_all
from images.sources import ImageSource, find_domains
from metrics.distances import Measurement, compare, compare_pairs, nearest, pairwise_ssim
from metrics.features import Features, UnavailableError, extract_features, load_features
from models import sample_latents
from system.processes import rank
from utils import UserError, from_uint8, to_uint8

if TYPE_CHECKING:
    from options.training import CycleOptions, VanillaOptions

Generator = Callable[[Tensor], Tensor]  # in eval mode: latents or images -> images in [-1, 1]
GENERATION_BATCH = 16  # images generated at once: always the same number, so that results do not depend on it


@torch.no_grad()
def generate_images(G: Generator, inputs: Tensor, device: torch.device) -> Tensor:
    """Return the output of G for latents (N, Z, 1, 1) or uint8 images (N, 3, H, W), as uint8 images on the CPU."""
    made = []
    for batch in inputs.split(GENERATION_BATCH):
        batch = batch.to(device)
        batch = from_uint8(batch) if batch.dtype == torch.uint8 else batch
        made.append(to_uint8(G(batch)).cpu())
    return torch.cat(made)


# ----------------------------------------------------------------------------------------------------------------------
# Images to compare


class RealImages(NamedTuple):
    """The real images of a run.

    Attributes:
        images: domain and split -> uint8 (N, 3, S, S). A DCGAN has one domain, "images".
        is_paired: whether the test images of both domains show the same things in the same order, as the toy cats do.
    """

    images: dict[tuple[str, str], Tensor]
    is_paired: bool = False


class Comparison(NamedTuple):
    """Generated images, and the images to compare them with; all uint8 (N, 3, H, W).

    Attributes:
        task: "z" for samples of a DCGAN, "X2Y" or "Y2X" for translations, "folder".
        split: of the real images: "train", "test", or the folder that they come from.
        inputs: the images that were translated.
        reconstructions: the translations, translated back.
        truth: the right translations, if they are known.
    """

    task: str
    split: str
    generated: Tensor
    reference: Tensor
    inputs: Tensor | None = None
    reconstructions: Tensor | None = None
    truth: Tensor | None = None


def load_real_images(options: "VanillaOptions | CycleOptions") -> RealImages:
    """Decode the images that a run trains on, and the test images of a CycleGAN, without augmentation.

    Raises:
        UserError: a folder does not exist, or has fewer than 2 readable images.
    """
    domains = find_domains(options)
    found = {}

    def load(source: ImageSource, part: str) -> DecodedSet:
        with ThreadPoolExecutor() as pool:
            cache = Path(options.checkpoint_dir) / ".cache"
            return decode_all(source, options.image_size, pool, cache=cache, part=part)

    for name, domain in domains.items():
        found[name, "train"] = load(domain.train, "train").images
        if len(found[name, "train"]) < 2:
            raise UserError(f"{domain.train.location}: at least 2 readable images are needed; add more")
        if len(domains) > 1 and domain.test is not None:
            test = load(domain.test, "test").images
            if len(test) > 1:
                found[name, "test"] = test
    [root, *others] = {domain.train.location.parent for domain in domains.values()}
    is_toy = not options.test_split and not others and (root / "attributes.json").is_file()
    return RealImages(found, is_paired=is_toy)


def make_comparisons(
    generators: Mapping[str, Generator],
    real: RealImages,
    options: Any,
    device: torch.device,
    seed: int = 0,
    num_images: int | None = None,
) -> list[Comparison]:
    """Generate the images to be measured.

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
        return [Comparison("z", split, generate_images(generators["z"], z, device), images)]
    comparisons = []
    for (X, Y), split in itertools.product((("X", "Y"), ("Y", "X")), ("train", "test")):
        if (X, split) not in real.images or (Y, split) not in real.images:
            continue
        inputs, targets = real.images[X, split][:num_images], real.images[Y, split]
        translations = generate_images(generators[f"{X}2{Y}"], inputs, device)
        back = generate_images(generators[f"{Y}2{X}"], translations, device)
        truth = targets[:num_images] if real.is_paired and split == "test" else None
        comparisons.append(Comparison(f"{X}2{Y}", split, translations, targets, inputs, back, truth))
    return comparisons


# ----------------------------------------------------------------------------------------------------------------------
# Measuring


def image_metrics(comparison: Comparison, seed: int) -> list[Measurement]:
    """Return the metrics computed on pixels."""
    found = [pairwise_ssim(comparison.generated, seed)]
    for name, images, target in (
        ("reconstruction", comparison.reconstructions, comparison.inputs),
        ("truth", comparison.generated, comparison.truth),
        ("truth, untranslated", comparison.inputs, comparison.truth),
    ):
        if images is not None and target is not None:
            found += compare_pairs(images, target, name)
    return found


class Evaluator:
    """Measures generated images in one feature space; the features of real images are kept for the next call.

    Args:
        seed: of random subsets.
        batch_size: for extracting features; the result does not depend on it.
    """

    def __init__(self, features: Features, device: torch.device, seed: int = 0, batch_size: int = 32):
        self.features, self.device, self.seed, self.batch_size = features, device, seed, batch_size
        self._known: dict[Tensor, tuple[Tensor, Measurement]] = {}  # real images -> features, and their similarity

    def __call__(self, comparison: Comparison) -> tuple[list[dict[str, Any]], Tensor]:
        """Measure generated images.

        Returns:
            Rows of metrics.csv with their protocol, the kernel distance first; and for each generated image the
            distance to its nearest real one and its index, (2, N).
        """
        if comparison.reference not in self._known:
            within = pairwise_ssim(comparison.reference, self.seed)._replace(metric="SSIM between real images")
            self._known[comparison.reference] = self._extract(comparison.reference, "real images"), within
        reference, within = self._known[comparison.reference]
        generated = self._extract(comparison.generated, "generated images")
        found = compare(generated, reference, self.features.is_inception, self.seed)
        found += [*image_metrics(comparison, self.seed), within]
        protocol = {
            "features": self.features.name,
            "resize": self.features.resize,
            "generated": len(comparison.generated),
            "reference": len(comparison.reference),
            "seed": self.seed,
        }
        rows = [{"task": comparison.task, "split": comparison.split, **one._asdict(), **protocol} for one in found]
        return rows, torch.stack(nearest(generated, reference))

    def _extract(self, images: Tensor, title: str) -> Tensor:
        return extract_features(images, self.features, self.device, self.batch_size, title)


def periodic_evaluation(
    generators: Mapping[str, Generator], options: "VanillaOptions | CycleOptions", device: torch.device
) -> Callable[[], list[dict[str, Any]]] | None:
    """Return a function that measures the generators of a run while it trains.

    The function returns rows of metrics.csv; the first row has the metric that counts. The result is None without
    --eval_every, and in processes above rank 0.
    """
    if not options.eval_every or rank():
        return None
    try:
        features = load_features(options.features, options.inception_weights, device)
    except UnavailableError as error:
        raise UserError(f"--features inception: {error}, or use --features pixels") from None
    real, evaluator = load_real_images(options), Evaluator(features, device)
    return lambda: [row for one in make_comparisons(generators, real, options, device) for row in evaluator(one)[0]]
