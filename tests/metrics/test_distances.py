"""The metrics against closed forms, plain loops, torchmetrics and torch-fidelity; each beside a wrong variant."""

import itertools
import json
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import evaluate
import metrics.distances
from metrics.distances import (
    compare,
    compare_pairs,
    coverage_density,
    expected_coverage,
    frechet_distance,
    kernel_distance,
    memorization_factor,
    nearest_neighbor_ratio,
    pairwise_ssim,
    precision_recall,
    project_to_span,
    ssim,
)
from options.command_line import parse_command
from options.commands import EvaluateOptions
from tests.conftest import make_photo

pytestmark = pytest.mark.golden


def draws(count: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def gaussian(count: int, mean: list[float], deviations: list[float], seed: int) -> torch.Tensor:
    """Features whose sample mean and (unbiased, diagonal) covariance are exactly the given ones."""
    x = draws(count, len(mean), seed)
    q, _ = torch.linalg.qr(x - x.mean(0))  # orthonormal columns, each of mean 0
    return q * math.sqrt(count - 1) * torch.tensor(deviations) + torch.tensor(mean)


class PassThrough(nn.Module):
    """A network for torchmetrics, which makes features of images: here its inputs are features already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def torchmetrics_of(metric: type, first: torch.Tensor, second: torch.Tensor, **kwargs):
    """The result of a metric of torchmetrics: `first` as its real features, `second` as its fake ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the memory that the features take
        metric = metric(PassThrough(first.shape[1]), sync_on_compute=False, **kwargs).set_dtype(torch.float64)
    metric.update(first, real=True)
    metric.update(second, real=False)
    return metric.compute()


# ---- Frechet distance


def test_frechet_distance_of_gaussians():
    """For diagonal Gaussians it is |m1 - m2|^2 + sum (s1 - s2)^2."""
    a = gaussian(50, [0.0, 1.0, 2.0], [1.0, 2.0, 3.0], 0)
    b = gaussian(70, [1.0, 1.0, 0.0], [2.0, 2.0, 0.5], 1)
    right = 1 + 4 + 1 + 0 + 6.25
    assert frechet_distance(a, b) == pytest.approx(right, rel=1e-9)
    variances = 5 + sum(abs(x - y) for x, y in zip((1, 4, 9), (4, 4, 0.25), strict=True))
    assert frechet_distance(a, b) != pytest.approx(variances, rel=0.1)  # without the roots


@pytest.mark.parametrize("count, d", [(40, 12), (12, 60)])
def test_frechet_distance_equals_torchmetrics(count, d):
    """With more images than dimensions, and with fewer."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = draws(count, d, 0), 1.5 * draws(count + 5, d, 1, shift=0.5)
    expected = torchmetrics_of(FrechetInceptionDistance, b, a).item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, 1.05 * b) != pytest.approx(expected, rel=1e-2)


def test_frechet_distance_of_one_feature():
    a, b = gaussian(20, [1.0], [2.0], 0), gaussian(30, [4.0], [0.5], 1)
    assert frechet_distance(a, b) == pytest.approx(9 + 2.25)


def test_the_projection_to_the_span_changes_no_result(monkeypatch):
    """Two sets of 12 in 60 dimensions."""
    a, b = draws(12, 60, 0), draws(12, 60, 1, shift=0.5)
    small, _ = project_to_span(a, b)
    assert small.shape == (12, 24)
    quick = frechet_distance(a, b)
    monkeypatch.setattr(metrics.distances, "project_to_span", lambda a, b: (a, b))
    assert frechet_distance(a, b) == pytest.approx(quick, rel=1e-6)
    monkeypatch.setattr(metrics.distances, "project_to_span", lambda a, b: (a[:, :24], b[:, :24]))
    assert frechet_distance(a, b) != pytest.approx(quick, rel=0.1)


# ---- Memorization-informed Frechet distance


def mifid(generated: torch.Tensor, reference: torch.Tensor) -> float:
    [found] = [one.value for one in compare(generated, reference, True, seed=0) if one.metric == "MiFID"]
    return found


def memorizing_sets() -> tuple[torch.Tensor, torch.Tensor]:
    """Generated and real features: half of the generated ones are near real ones, most real ones have none near."""
    reference = draws(30, 40, 0, shift=3.0)
    generated = reference[:2].repeat(10, 1) + 0.3 * draws(20, 40, 1)
    return generated, reference


def test_mifid_equals_torchmetrics():
    """torchmetrics looks for the nearest "fake" of each "real" one, the paper for the nearest real one of each
    generated: so the roles are exchanged. The given order is the wrong variant."""
    from torchmetrics.image.mifid import MemorizationInformedFrechetInceptionDistance

    generated, reference = memorizing_sets()
    right = torchmetrics_of(MemorizationInformedFrechetInceptionDistance, generated, reference).item()
    wrong = torchmetrics_of(MemorizationInformedFrechetInceptionDistance, reference, generated).item()
    assert mifid(generated, reference) == pytest.approx(right, rel=1e-6)
    assert mifid(generated, reference) != pytest.approx(wrong, rel=0.1)
    few = draws(10, 60, 2, shift=3.0), draws(10, 60, 3, shift=3.0)  # fewer images than dimensions
    expected = torchmetrics_of(MemorizationInformedFrechetInceptionDistance, *few).item()
    assert mifid(*few) == pytest.approx(expected, rel=1e-6)


def test_the_memorization_factor_in_plain_loops():
    """The mean cosine distance of the generated images to their nearest references, if it is below 0.1; else 1."""

    def cosine_distance(a, b):
        return 1 - abs(sum(x * y for x, y in zip(a, b, strict=True))) / (math.hypot(*a) * math.hypot(*b))

    generated, reference = (features.tolist() for features in memorizing_sets())
    to_real = [min(cosine_distance(a, b) for b in reference) for a in generated]
    to_generated = [min(cosine_distance(a, b) for b in generated) for a in reference]
    factor = memorization_factor(*memorizing_sets())
    assert 0 < factor < 0.1 and factor == pytest.approx(np.mean(to_real), rel=1e-9)
    assert factor != pytest.approx(np.mean(to_generated), rel=0.1)
    assert memorization_factor(draws(30, 40, 2), draws(30, 40, 0, shift=3.0)) == 1.0


def test_mifid_of_copies():
    """It is very large for copies of some images, and 0 for a copy of the whole set; neither divides by 0."""
    reference = draws(30, 40, 0, shift=3.0)
    copies = reference[:1].repeat(30, 1)
    assert mifid(copies, reference) > 1e10 * frechet_distance(copies, reference) > 0
    assert mifid(reference, reference) == 0


# ---- Kernel distance


def mmd(a: torch.Tensor, b: torch.Tensor, with_itself: bool = False) -> float:
    """The squared maximum mean discrepancy in plain loops; `with_itself` also pairs each x with itself: wrong."""
    d = a.shape[1]

    def mean(x, y, same):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not same or i != j or with_itself]
        return sum((float(x[i] @ y[j]) / d + 1) ** 3 for i, j in pairs) / len(pairs)

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


def test_kernel_distance_in_plain_loops():
    a, b = draws(9, 5, 0), draws(9, 5, 1, shift=0.4)
    mean, _ = kernel_distance(a, b, seed=0)
    assert mean == pytest.approx(mmd(a, b), rel=1e-5)
    assert mean != pytest.approx(mmd(a, b, with_itself=True), rel=0.1)


def test_kernel_distance_equals_torchmetrics():
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = draws(30, 12, 0), draws(30, 12, 1, shift=0.4)
    found = [torchmetrics_of(KernelInceptionDistance, a, b, subsets=1, subset_size=30, degree=degree)[0].item()
             for degree in (3, 2)]  # fmt: skip
    assert kernel_distance(a, b, seed=0)[0] == pytest.approx(found[0], rel=1e-5)
    assert kernel_distance(a, b, seed=0)[0] != pytest.approx(found[1], rel=0.1)


def test_the_deviation_of_the_kernel_distance():
    """Of two whole sets: the deviation over subsets of half the size; over whole sets it would be 0."""
    a, b = draws(12, 5, 0), draws(12, 5, 1, shift=0.4)
    generator = torch.Generator().manual_seed(0)

    def subset(features, size):
        return features[torch.randperm(len(features), generator=generator)[:size]]

    half, whole = (np.std([mmd(subset(a, size), subset(b, size)) for _ in range(100)]) for size in (6, 12))
    assert kernel_distance(a, b, seed=0)[1] == pytest.approx(half, rel=0.35)
    assert whole < 1e-6 * half


def test_the_kernel_distance_has_no_bias():
    same = [kernel_distance(draws(40, 8, 2 * i), draws(40, 8, 2 * i + 1), seed=0)[0] for i in range(20)]
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(20)


def test_the_seed_chooses_the_subsets_of_the_kernel_distance():
    a, b = draws(30, 5, 0), draws(20, 5, 1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert kernel_distance(a, b, seed=1) == kernel_distance(a, b, seed=1) != kernel_distance(a, b, seed=2)
    assert kernel_distance(a, b, seed=2**63 - 1) == kernel_distance(a, b, seed=2**63 - 1), "the largest seed"
    assert torch.equal(torch.get_rng_state(), before[0]) and np.array_equal(np.random.get_state()[1], before[1])


# ---- Neighbors


def share_within(points: torch.Tensor, others: torch.Tensor) -> float:
    """The share of `points` within the third-neighbor distance of at least one of `others`, in plain loops."""
    radii = [sorted(math.dist(o, p) for p in others)[3] for o in others]  # [0] is the distance to itself
    return np.mean([any(math.dist(p, o) <= r for o, r in zip(others, radii, strict=True)) for p in points])


def test_precision_and_recall_in_plain_loops():
    reference, generated = draws(20, 3, 0), 0.4 * draws(15, 3, 1)  # near the middle: high precision, low recall
    right = share_within(generated, reference), share_within(reference, generated)
    assert precision_recall(generated, reference) == pytest.approx(right)
    assert right[0] > right[1] + 0.2, "exchanged values would be noticed"


def in_plain_loops(generated: torch.Tensor, real: torch.Tensor, k: int = 5, of: torch.Tensor | None = None):
    """Coverage and density. The images whose distances to each other are the radii, `of`, are the real ones; the
    paper's code excludes the border, on which no image of random features is."""
    of = real if of is None else of
    radii = [sorted(math.dist(a, b) for b in of)[k] for a in of]  # [0] is the distance to itself
    within = [[math.dist(a, b) < radius for b in generated] for a, radius in zip(real, radii, strict=True)]
    return sum(any(row) for row in within) / len(real), sum(sum(row) for row in within) / (k * len(generated))


def test_coverage_and_density_in_plain_loops():
    """Wrong: a neighbor more or less, and the radii of the generated images."""
    real, generated = draws(30, 3, 0), 0.7 * draws(30, 3, 1, shift=0.5)
    right = in_plain_loops(generated, real)
    assert coverage_density(generated, real) == pytest.approx(right)
    assert coverage_density(generated[:9], real) == pytest.approx(in_plain_loops(generated[:9], real))
    for wrong in (in_plain_loops(generated, real, 4), in_plain_loops(generated, real, 6),
                  in_plain_loops(generated, real, of=generated)):  # fmt: skip
        assert not any(a == pytest.approx(b, rel=0.01) for a, b in zip(right, wrong, strict=True))


def test_coverage_and_density_of_copies():
    """Each real image has itself and five others within its reach, also if rounding places the fifth outside."""
    real = draws(100, 1280, 0, shift=3.0)
    assert coverage_density(real, real) == (1, pytest.approx(6 / 5))
    order = torch.cdist(real, real, compute_mode="donot_use_mm_for_euclid_dist").argsort(dim=1)[:, :6]
    within = (order % 2 == 0).sum().item()  # copies of the images 0, 2, 4 ...
    assert coverage_density(real[::2], real)[1] == pytest.approx(within / 5 / 50)
    assert coverage_density(real[:1].repeat(100, 1), real)[0] < 0.2


def test_the_expected_coverage():
    """Against the mean of 300 draws; wrong is the number for one neighbor less."""
    found = np.mean([coverage_density(draws(8, 2, 2 * i), draws(12, 2, 2 * i + 1))[0] for i in range(300)])
    assert expected_coverage(8, 12) == pytest.approx(found, abs=0.02)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics.distances, "COVERAGE_NEIGHBORS", 4)
        assert expected_coverage(8, 12) != pytest.approx(found, abs=0.04)


def test_nearest_neighbor_ratio_in_plain_loops():
    reference = draws(20, 6, 0)
    assert nearest_neighbor_ratio(reference[:7], reference) == pytest.approx(0, abs=1e-6)
    others = [[b for b in range(20) if b != a] for a in range(20)]
    among_real = np.mean([min(math.dist(reference[a], reference[b]) for b in others[a]) for a in range(20)])
    generated = draws(10, 6, 1)
    to_real = np.mean([min(math.dist(a, b) for b in reference) for a in generated])
    found = nearest_neighbor_ratio(generated, reference)
    assert found == pytest.approx(to_real / among_real)
    assert found != pytest.approx(nearest_neighbor_ratio(reference, generated), rel=1e-3)


# ---- Similarity of images


def test_pairwise_ssim():
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pairs = [ssim(images[i : i + 1], images[j : j + 1]).item() for i, j in itertools.combinations(range(5), 2)]
    found = pairwise_ssim(images, seed=0)
    assert found.value == pytest.approx(np.mean(pairs), rel=1e-4) and found.std == pytest.approx(
        np.std(pairs), rel=1e-3
    )
    assert pairwise_ssim(images[:1].expand(5, -1, -1, -1), seed=0).value == pytest.approx(1)


def test_compare_pairs():
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    target = images.flip(3)
    l1, similarity = compare_pairs(images, target, "truth")
    expected = np.mean(np.abs(images.numpy() / 255 - target.numpy() / 255))
    assert (l1.metric, similarity.metric) == ("L1 to truth", "SSIM with truth")
    assert l1.value == pytest.approx(expected, rel=1e-5)
    assert similarity.value == pytest.approx(ssim(images, target).mean().item()) and similarity.value < 0.5
    assert [one.value for one in compare_pairs(images, images, "truth")] == pytest.approx([0, 1])


# ---- All of them


def test_names_say_in_which_features_the_distances_are():
    a, b = draws(6, 4, 0), draws(6, 4, 1)
    inception, others = ([one.metric for one in compare(a, b, is_inception, 0)] for is_inception in (True, False))
    assert inception[:3] == ["KID x1000", "FID", "MiFID"]
    assert others[:2] == ["kernel distance x1000", "Frechet distance"]
    assert not {"KID x1000", "FID", "MiFID"} & set(others)
    shared = ["precision", "recall", "coverage", "density", "nearest distance ratio"]
    assert inception[3:] == others[2:] == shared
    reasons = {one.metric: one.reason for one in compare(a[:3], b, False, 0)}
    assert reasons["recall"] == "more than 3 images of each kind are needed, there are 3", "they have no third neighbor"
    assert not reasons["coverage"]
    reasons = {one.metric: one.reason for one in compare(a, b[:5], False, 0)}
    assert reasons["coverage"] == reasons["density"] == "more than 5 real images are needed, there are 5"


def test_inception_distances_equal_torch_fidelitys_command(tmp_path):
    """For two folders of 6 images, with random weights: the command line of torch-fidelity, and evaluate.py."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Inception

    for name, seed in (("a", 0), ("b", 100)):
        (tmp_path / name).mkdir()
        for i in range(6):
            noise = np.random.default_rng(seed + i).integers(0, 1 + seed, (48, 48, 3))
            image = np.clip(np.asarray(make_photo((48, 48), seed + i)).astype(int) + noise, 0, 255)
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / name / f"{i}.png")
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:  # its constructor needs the weights made here
        patch.setattr(torch, "load", lambda *args, **kwargs: None)
        patch.setattr(Inception, "load_state_dict", lambda self, state: None)
        shapes = {key: value.shape for key, value in Inception("random", ["2048"], "none").state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    weights = {
        key: torch.randn(shape, generator=generator) * math.sqrt(2 / max(1, math.prod(shape[1:]))) if len(shape) > 1
        else torch.zeros(shape) if key.endswith(("bias", "mean")) else torch.ones(shape)
        for key, shape in shapes.items()
    }  # fmt: skip
    torch.save(weights, tmp_path / "weights.pth")

    flags = ["--fid", "--kid", "--prc", "--kid-subsets=1", "--kid-subset-size=6", "--cpu", "--json", "--no-cache",
             "--feature-extractor=inception-v3-compat"]  # fmt: skip
    theirs = subprocess.run(
        [sys.executable, "-m", "torch_fidelity.fidelity", *flags, "--silent", f"--input1={tmp_path / 'a'}",
         f"--input2={tmp_path / 'b'}", f"--feature-extractor-weights-path={tmp_path / 'weights.pth'}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert theirs.returncode == 0, theirs.stderr
    theirs = json.loads(theirs.stdout)
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), f"--inception_weights={tmp_path / 'weights.pth'}"]
    arguments += [f"--out={tmp_path / 'out'}", "--device=cpu"]
    assert evaluate.main(parse_command(EvaluateOptions, "", arguments)) == 0
    written = json.loads((tmp_path / "out/evaluation-000000-inception.json").read_text())
    ours = {row["metric"]: row["value"] for row in written["rows"]}
    assert ours["FID"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["KID x1000"] == pytest.approx(1000 * theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert (ours["precision"], ours["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-6)
    assert ours["FID"] > 0 and written["rows"][0]["generated"] == 6
    assert written["rows"][0]["features"] == "inception" and "299x299" in written["rows"][0]["resize"]
