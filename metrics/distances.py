"""Distances between two sets of images: pure functions of images and of features, float64 (N, d) and (M, d).

The formulas are those of torch-fidelity and torchmetrics. Their imports take seconds, so the functions import them.
"""

import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils import import_matplotlib

NEIGHBORS = 3  # of precision and recall
COVERAGE_NEIGHBORS = 5  # of coverage and density
MAX_SSIM_PAIRS = 1000  # for the mean SSIM between images
MIN_SSIM_SIDE = 6  # of an image: SSIM compares windows of 11x11 pixels, with 5 reflected at each border


class Measurement(NamedTuple):
    """One number, and its standard deviation where it is known.

    A metric that these images do not have is NaN, and `reason` says why.
    """

    metric: str
    value: float
    std: float | None = None
    reason: str = ""


# ----------------------------------------------------------------------------------------------------------------------
# Distances between features


def project_to_span(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate features (N, d) and (M, d) into the subspace that they span, (N, r) and (M, r), r <= d.

    Means, covariances, distances and angles stay the same; but of 400 images in 2,048 dimensions the covariances shrink
    to 400x400, and their eigenvalues take 0.1 instead of 13 seconds.
    """
    both = torch.cat([a, b])
    if len(both) >= both.shape[1]:
        return a, b
    basis, _ = torch.linalg.qr(both.t())  # (d, r)
    return a @ basis, b @ basis


def frechet_distance(generated: Tensor, reference: Tensor) -> float:
    """Return the Frechet distance; FID in Inception features (Heusel et al. 2017, arXiv:1706.08500)."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    features = list(project_to_span(generated, reference))
    if generated.shape[1] == 1:  # a column of zeros changes nothing; NumPy's covariance of one column is not a matrix
        features = [F.pad(one, (0, 1)) for one in features]
    statistics = [fid_features_to_statistics(one) for one in features]
    found = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    return max(found, 0.0)  # of equal sets it is 0, up to rounding


def memorization_factor(generated: Tensor, reference: Tensor) -> float:
    """Return the divisor of MiFID = FID / factor (Bai et al. 2021, arXiv:2106.03062).

    It is the mean cosine distance of the generated images to their nearest references if that is below 0.1, else 1.
    """
    similarity = F.normalize(generated, dim=1) @ F.normalize(reference, dim=1).t()  # (N, M)
    distance = (1 - similarity.abs()).amin(dim=1).mean().item()
    return max(distance, 1e-14) if distance < 0.1 else 1.0  # copies have 0, up to rounding


def kernel_distance(generated: Tensor, reference: Tensor, seed: int) -> tuple[float, float]:
    """Return the squared maximum mean discrepancy and its standard deviation.

    KID in Inception features (Binkowski et al. 2018, arXiv:1801.01401): kernel (x.y / d + 1)^3, the mean over subsets
    of min(1000, N, M). If a subset is a whole set, all subsets are the same and their deviation is 0: the deviation
    is then taken over subsets of half the size, which is an upper estimate.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    def over_subsets(count: int, size: int) -> tuple[float, float]:
        found = kid_features_to_metric(
            generated, reference, kid_subsets=count, kid_subset_size=size, rng_seed=seed % 2**32, verbose=False
        )  # NumPy's seeds have 32 bits
        return found["kernel_inception_distance_mean"], found["kernel_inception_distance_std"]

    size = min(1000, len(generated), len(reference))
    mean, std = over_subsets(1 if size == len(generated) == len(reference) else 100, size)
    if size == min(len(generated), len(reference)):
        _, std = over_subsets(100, max(2, size // 2))
    return mean, std


def pairwise_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return the Euclidean distances between features (N, d) and (M, d), (N, M), with exact zeros for equal images.

    cdist computes them by a matrix product, in which equal features may have a distance of 1e-7 of their length, not 0.
    Distances below 1e-6 of the largest length are rounding errors, and become 0.
    """
    distances = torch.cdist(a, b)
    largest = torch.cat([a, b]).norm(dim=1).max()
    return distances.masked_fill_(distances < 1e-6 * largest, 0.0)


def precision_recall(generated: Tensor, reference: Tensor) -> tuple[float, float]:
    """Return the shares of generated images among the real ones, and of real ones among the generated.

    "Among": within the distance from some image of a set to its third nearest neighbor there (Kynkäänniemi et al. 2019,
    arXiv:1904.06991). It takes more than 3 images of each. torch-fidelity has the same formula, but compares rounding
    errors where images are equal: of two equal sets it may say 0.04 instead of 1.
    """
    between = pairwise_distances(generated, reference)  # (N, M)
    reach_of_real, reach_of_generated = (
        pairwise_distances(one, one).kthvalue(NEIGHBORS + 1).values for one in (reference, generated)
    )
    precision = (between <= reach_of_real).any(dim=1).double().mean().item()
    recall = (between.t() <= reach_of_generated).any(dim=1).double().mean().item()
    return precision, recall


def coverage_density(generated: Tensor, reference: Tensor) -> tuple[float, float]:
    """Return coverage and density (Naeem et al. 2020, arXiv:2002.09797).

    The neighborhood of a real image reaches to its fifth nearest real neighbor; it takes more than 5 real images.
    Coverage, in [0, 1], is the share of neighborhoods that contain a generated image. Density is the mean number of
    neighborhoods around a generated image, divided by 5; it is about 1 for new images of the same kind, and may be
    larger. Neither depends on the distances among generated images, so a few generated outliers change little.
    """
    reach = pairwise_distances(reference, reference).kthvalue(COVERAGE_NEIGHBORS + 1).values  # the first is the image
    # A copy of the fifth neighbor is at the distance `reach`, up to rounding.
    within = pairwise_distances(generated, reference) <= reach * (1 + 1e-9)  # (N, M)
    return within.any(dim=0).double().mean().item(), within.double().sum(dim=1).mean().item() / COVERAGE_NEIGHBORS


def expected_coverage(generated: int, reference: int) -> float:
    """Return the mean coverage that `generated` new real images would have, of `reference` real images.

    Of the other images of both sets, the 5 nearest to a real image are then a random choice. It is not covered if all
    5 are real.
    """
    neighbors = range(1, COVERAGE_NEIGHBORS + 1)
    return 1 - math.prod((reference - i) / (generated + reference - i) for i in neighbors)


def nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance of each feature (N, d) to its nearest neighbor in (M, d), and the neighbor's index."""
    distances, indices = pairwise_distances(a, b).min(dim=1)
    return distances, indices


def nearest_neighbor_ratio(generated: Tensor, reference: Tensor) -> float:
    """Return the mean nearest-neighbor distance of generated to real images, relative to that among real images.

    Images as new as the real ones have about 1, copies 0. NaN if every real image has a copy among the real ones.
    """
    among_real = pairwise_distances(reference, reference).fill_diagonal_(math.inf).min(dim=1).values.mean()
    return (nearest(generated, reference)[0].mean() / among_real).item() if among_real > 0 else math.nan


def compare(generated: Tensor, reference: Tensor, is_inception: bool, seed: int) -> list[Measurement]:
    """Return the distances between two sets of features, the kernel distance first.

    Args:
        generated, reference: at least 2 images of each.
        is_inception: whether they are Inception's, so that the distances are KID, FID and MiFID.
    """
    mean, std = kernel_distance(generated, reference, seed)
    frechet = frechet_distance(generated, reference)
    found = [
        Measurement("KID x1000" if is_inception else "kernel distance x1000", 1000 * mean, 1000 * std),
        Measurement("FID" if is_inception else "Frechet distance", frechet),
    ]
    if is_inception:  # the threshold of 0.1 is meant for Inception's features
        is_same = frechet < 1e-8  # the same images: 0 / 0
        found.append(Measurement("MiFID", 0.0 if is_same else frechet / memorization_factor(generated, reference)))
    fewest = min(len(generated), len(reference))
    few = f"more than {NEIGHBORS} images of each kind are needed, there are {fewest}" if fewest <= NEIGHBORS else ""
    shares = (math.nan, math.nan) if few else precision_recall(generated, reference)
    for name, share in zip(("precision", "recall"), shares, strict=True):
        found.append(Measurement(name, share, reason=few))
    few = f"more than {COVERAGE_NEIGHBORS} real images are needed, there are {len(reference)}"
    few = few if len(reference) <= COVERAGE_NEIGHBORS else ""
    shares = (math.nan, math.nan) if few else coverage_density(generated, reference)
    for name, share in zip(("coverage", "density"), shares, strict=True):
        found.append(Measurement(name, share, reason=few))
    ratio = nearest_neighbor_ratio(generated, reference)
    copies = "in these features every real image equals another real image" if math.isnan(ratio) else ""
    return [*found, Measurement("nearest distance ratio", ratio, reason=copies)]


# ----------------------------------------------------------------------------------------------------------------------
# Similarity of images


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the SSIM of each image of uint8 (N, 3, H, W) with its counterpart, (N,)."""
    import_matplotlib()  # torchmetrics imports it
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(a.float() / 255, b.float() / 255, data_range=1.0, reduction="none")
    assert isinstance(found, Tensor)
    return found


def pairwise_ssim(images: Tensor, seed: int, name: str = "SSIM between images") -> Measurement:
    """Return the mean SSIM over pairs of different images (N, 3, H, W), called `name`: 1 if all are the same.

    At most 1,000 pairs of the first 500 images. Images below 6x6 pixels have no SSIM.
    """
    height, width = images.shape[2:]
    if min(height, width) < MIN_SSIM_SIDE:
        reason = f"images of at least {MIN_SSIM_SIDE}x{MIN_SSIM_SIDE} pixels are needed, not {width}x{height}"
        return Measurement(name, math.nan, reason=reason)
    pairs = torch.tensor(list(itertools.combinations(range(min(len(images), 500)), 2)))
    if len(pairs) > MAX_SSIM_PAIRS:
        pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:MAX_SSIM_PAIRS]]
    found = torch.cat([ssim(images[part[:, 0]], images[part[:, 1]]) for part in pairs.split(100)])
    return Measurement(name, found.mean().item(), found.std(correction=0).item())


def compare_pairs(images: Tensor, target: Tensor, name: str) -> list[Measurement]:
    """Return mean L1 and SSIM of uint8 images (N, 3, H, W) and their counterparts in `target`, called `name`."""
    differences = (images.float() - target.float()).abs().flatten(1).mean(dim=1) / 255
    return [
        Measurement(f"L1 to {name}", differences.mean().item()),
        Measurement(f"SSIM with {name}", ssim(images, target).mean().item()),
    ]
