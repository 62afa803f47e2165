"""Evaluations of generators, while training and afterwards: generate images, extract features, measure."""

import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from data_loader import ImageBatches
from images.decoding import decode_all
from images.source import ImageSource
from metrics.distances import Measurement, compare, compare_pairs, nearest, pairwise_ssim
from metrics.features import Features, extract_features, load_features
from metrics.variety import describe_variety
from models import sample_latents
from runs.records import describe_changes
from sources.domains import find_domains
from system.processes import rank
from utils import LOG, UnavailableError, UserError, from_uint8, to_uint8

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


def load_real_images(
    options: "VanillaOptions | CycleOptions", recorded: Mapping[str, dict[str, Any]] | None = None
) -> RealImages:
    """Find and decode the images that a run trains on, and the test images of a CycleGAN, without augmentation.

    Args:
        recorded: what data.json says about each domain. The images listed there are measured, as far as they exist; the
            log says how the folders differ. None: all images, split as in a new run.

    Raises:
        UserError: a folder does not exist, or has fewer than 2 readable images.
    """
    domains = find_domains(options, recorded)
    sources = {(name, "train"): domain.train for name, domain in domains.items()}
    if len(domains) > 1:
        sources |= {(name, "test"): domain.test for name, domain in domains.items() if domain.test is not None}
    real, readable = _decode_real(sources, options)
    for name, domain in domains.items():
        if domain.num_new:
            LOG.info("%s: images added since the run began, which are not measured: %d", domain.flag, domain.num_new)
        if recorded is None:
            continue
        train = readable[name, "train"]
        now = {"train": dict(zip(train.names, train.sizes(), strict=True)), "test": recorded[name]["test"]}
        if len(domains) > 1:  # test images of a single domain are not measured
            now["test"] = readable[name, "test"].names if (name, "test") in readable else []
        if changes := describe_changes(recorded[name], now):
            LOG.warning(
                "%s: %s has changed since the run trained: %s. The images that are there are measured",
                domain.flag, domain.train.location, changes,
            )  # fmt: skip
    return real


def _decode_real(
    sources: Mapping[tuple[str, str], ImageSource], options: "VanillaOptions | CycleOptions"
) -> tuple[RealImages, dict[tuple[str, str], ImageSource]]:
    """Decode images by domain and split; return them, and the readable ones as sources."""
    found, readable = {}, {}
    ranges = dict(zip(dict.fromkeys(name for name, _ in sources), options.value_ranges(), strict=True))
    for (name, split), source in sources.items():
        with ThreadPoolExecutor() as pool:
            cache = Path(options.checkpoint_dir) / ".cache"
            decoded = decode_all(source, options.image_size, pool, True, cache, split, ranges[name])
        ranges[name] = decoded.scale.range if decoded.scale else ranges[name]  # test images follow the training images
        readable[name, split] = source.select(decoded.readable)
        if len(decoded.images) > 1:
            found[name, split] = decoded.images
        elif split == "train":
            raise UserError(
                f"{source.location}: at least 2 readable images are needed, {len(decoded.images)} found; add the others"
            )
    [root, *others] = {source.location.parent for (_, split), source in sources.items() if split == "train"}
    is_toy = not options.test_split and not others and (root / "attributes.json").is_file()
    tested = [list(source.names) for (_, split), source in readable.items() if split == "test"]
    return RealImages(found, is_paired=is_toy and all(names == tested[0] for names in tested)), readable


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

    Attributes:
        without_value: rows of the last call, as it returns them, but of the metrics without a value; with the reason.
    """

    def __init__(self, features: Features, device: torch.device, seed: int = 0, batch_size: int = 32):
        self.features, self.device, self.seed, self.batch_size = features, device, seed, batch_size
        self.without_value: list[dict[str, Any]] = []
        self._known: dict[Tensor, tuple[Tensor, Measurement]] = {}  # real images -> features, and their similarity
        self._missing: set[tuple[str, ...]] = set()  # metrics without a value, and the reason; each is reported once

    def __call__(self, comparison: Comparison) -> tuple[list[dict[str, Any]], Tensor]:
        """Measure generated images.

        Returns:
            Rows of metrics.csv with their protocol, the kernel distance first; and for each generated image the
            distance to its nearest real one and its index, (2, N). A metric that these images do not have gets a line
            in the log instead of a row.

        Raises:
            UserError: the network of --features fails on these images, or gives values that are not finite.
        """
        if comparison.reference not in self._known:
            within = pairwise_ssim(comparison.reference, self.seed, "SSIM between real images")
            self._known[comparison.reference] = self._extract(comparison.reference, "real images"), within
        reference, within = self._known[comparison.reference]
        generated = self._extract(comparison.generated, "generated images")
        found = compare(generated, reference, self.features.is_inception, self.seed)
        found = [*found, *image_metrics(comparison, self.seed), within]
        protocol = {
            "features": self.features.name,
            "resize": self.features.resize,
            "generated": len(comparison.generated),
            "reference": len(comparison.reference),
            "seed": self.seed,
        }
        about = {"task": comparison.task, "split": comparison.split}
        self.without_value = [
            {**about, "metric": one.metric, "value": None, "std": None, **protocol, "reason": one.reason}
            for one in found
            if one.reason
        ]
        found = self._with_values(found)
        rows = [{**about, "metric": one.metric, "value": one.value, "std": one.std, **protocol} for one in found]
        return rows, torch.stack(nearest(generated, reference))

    def _with_values(self, found: list[Measurement]) -> list[Measurement]:
        """Return the metrics that have a value, and say once of each other one why it has none."""
        reasons: dict[str, list[str]] = {}
        for one in found:
            if one.reason:
                reasons.setdefault(one.reason, []).append(one.metric)
        for reason, metrics in reasons.items():
            if (reason, *metrics) not in self._missing:
                self._missing.add((reason, *metrics))
                LOG.warning("no value for %s: %s", " and ".join(metrics), reason)
        return [one for one in found if not one.reason]

    def _extract(self, images: Tensor, title: str) -> Tensor:
        """Return the features of images, (N, d). Raises UserError if they are not finite, or too large for float32."""
        found = extract_features(images, self.features, self.device, self.batch_size, title)
        wrong = (~found.float().isfinite()).any(dim=1).sum().item()
        if wrong:
            raise UserError(
                f"--features: {self.features.name} gives values that are not finite for {wrong} of {len(found)} "
                f"{title}; use another file, or pixels"
            )
        return found


def warn_of_taught_features(options: "VanillaOptions | CycleOptions", features: Features) -> None:
    """Warn if the generators were trained to match real images in the features that now judge them."""
    if options.lambda_features and features.name == "imagenet":
        LOG.warning(
            "--lambda_features trains G in these same features, so the distances, and a best.pt chosen by them, "
            "flatter it; --features inception, pixels or a file compare it fairly with other runs"
        )


def periodic_evaluation(
    generators: Mapping[str, Generator],
    data: Mapping[str, ImageBatches],
    options: "VanillaOptions | CycleOptions",
    device: torch.device,
) -> Callable[[], list[dict[str, Any]]] | None:
    """Return a function that measures the generators of a run while it trains.

    Args:
        data: domain -> the images that it trains on and tests on.

    The function returns rows of metrics.csv; the first row has the metric that counts. The result is None without
    --eval_every, and in processes above rank 0.
    """
    if not options.eval_every or rank():
        return None
    try:
        features = load_features(options.features, options.inception_weights, device)
    except UnavailableError as error:
        raise UserError(f"--features {options.features}: {error}, or use --features pixels") from None
    sources = {(name, "train"): images.source for name, images in data.items()}
    if len(data) > 1:
        sources |= {(name, "test"): images.test for name, images in data.items()}
    real, evaluator = _decode_real(sources, options)[0], Evaluator(features, device)
    is_first = True

    def evaluate() -> list[dict[str, Any]]:
        nonlocal is_first
        if is_first:
            warn_of_taught_features(options, features)
        rows, is_first = [], False
        for one in make_comparisons(generators, real, options, device):
            found, _ = evaluator(one)
            rows += found
            what = "samples" if one.task == "z" else f"translations {one.task}"
            if one.split == "train" and (line := describe_variety(found, what)):
                LOG.info("%s", line)
        return rows

    return evaluate
