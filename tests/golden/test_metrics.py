"""The metrics against closed forms, plain loops, and the torch-fidelity command; each with a wrong variant."""

import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from evaluate import (
    Features,
    compare,
    frechet_distances,
    in_their_span,
    kernel_distance,
    nearest_ratio,
    pixels,
    precision_recall,
    similarity_within,
    ssim,
)
from tests.conftest import make_photo


def draws(count: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def gaussian(count: int, mean: list[float], deviations: list[float], seed: int) -> torch.Tensor:
    """Features whose sample mean and (unbiased, diagonal) covariance are exactly the ones asked for."""
    x = draws(count, len(mean), seed)
    q, _ = torch.linalg.qr(x - x.mean(0))  # orthonormal columns, each of mean 0
    return q * math.sqrt(count - 1) * torch.tensor(deviations) + torch.tensor(mean)


def test_frechet_distance_of_gaussians():
    """Of diagonal Gaussians it is |m1 - m2|^2 + sum (s1 - s2)^2."""
    a = gaussian(50, [0.0, 1.0, 2.0], [1.0, 2.0, 3.0], 0)
    b = gaussian(70, [1.0, 1.0, 0.0], [2.0, 2.0, 0.5], 1)
    right = 1 + 4 + 1 + 0 + 6.25
    assert frechet_distances(a, b)[0] == pytest.approx(right, rel=1e-9)
    variances = 5 + sum(abs(x - y) for x, y in zip((1, 4, 9), (4, 4, 0.25), strict=True))
    assert frechet_distances(a, b)[0] != pytest.approx(variances, rel=0.1)  # without the roots


def test_memorization_informed_distance_punishes_what_is_near():
    """Cosine distance to the nearest reference, if below 0.1, divides; (Bai et al. 2021)."""
    reference = draws(30, 40, 0, shift=3.0)
    generated = reference + 0.3 * draws(30, 40, 1)
    plain, informed = frechet_distances(generated, reference)
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (generated, reference))
    near = (1 - a @ b.t()).amin(dim=1).mean().item()
    assert 0 < near < 0.1 and informed == pytest.approx(plain / near, rel=0.05)
    copies = reference[:1] + 1e-3 * draws(30, 40, 3)  # near one of the real ones, where most real ones are near to none
    plain, informed = frechet_distances(copies, reference)
    assert informed > 1e3 * plain, "what counts is how near the generated are, not the real ones"
    far = draws(30, 40, 2)
    assert frechet_distances(far, reference)[0] == pytest.approx(frechet_distances(far, reference)[1])


def test_few_features_are_compared_in_the_space_that_they_span(monkeypatch):
    """It changes no result: two sets of 12 in 60 dimensions."""
    a, b = draws(12, 60, 0), draws(12, 60, 1, shift=0.5)
    small, _ = in_their_span(a, b)
    assert small.shape == (12, 24)
    quick = frechet_distances(a, b)
    monkeypatch.setattr(evaluate, "in_their_span", lambda a, b: (a, b))
    assert frechet_distances(a, b) == pytest.approx(quick, rel=1e-6)
    monkeypatch.setattr(evaluate, "in_their_span", lambda a, b: (a[:, :24], b[:, :24]))
    assert frechet_distances(a, b) != pytest.approx(quick, rel=0.1)


def mmd(a: torch.Tensor, b: torch.Tensor, with_itself: bool = False) -> float:
    """The squared maximum mean discrepancy in plain loops; `with_itself` also pairs each x with itself, as is wrong."""
    d = a.shape[1]

    def mean(x, y, same):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not same or i != j or with_itself]
        return sum((float(x[i] @ y[j]) / d + 1) ** 3 for i, j in pairs) / len(pairs)

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


def test_kernel_distance():
    a, b = draws(9, 5, 0), draws(9, 5, 1, shift=0.4)
    mean, std = kernel_distance(a, b, seed=0)
    assert mean == pytest.approx(mmd(a, b), rel=1e-5)
    assert mean != pytest.approx(mmd(a, b, with_itself=True), rel=0.1)
    assert std > 0


def test_kernel_distance_has_no_bias_and_the_seed_draws_its_subsets():
    same = [kernel_distance(draws(40, 8, 2 * i), draws(40, 8, 2 * i + 1), seed=0)[0] for i in range(20)]
    assert abs(np.mean(same)) < 3 * np.std(same) / math.sqrt(20)
    a, b = draws(30, 5, 0), draws(20, 5, 1)
    before = torch.get_rng_state()
    assert kernel_distance(a, b, seed=1) == kernel_distance(a, b, seed=1) != kernel_distance(a, b, seed=2)
    assert torch.equal(torch.get_rng_state(), before)


def share_within(points: torch.Tensor, others: torch.Tensor) -> float:
    """The share of `points` that lie within the third-neighbor distance of some one of `others`, in plain loops."""
    radii = [sorted(math.dist(o, p) for p in others)[3] for o in others]  # [0] is the distance to itself
    return np.mean([any(math.dist(p, o) <= r for o, r in zip(others, radii, strict=True)) for p in points])


def test_precision_and_recall():
    reference, generated = draws(20, 3, 0), 0.4 * draws(15, 3, 1)  # near the middle: precise, of little variety
    right = share_within(generated, reference), share_within(reference, generated)
    assert precision_recall(generated, reference) == pytest.approx(right)
    assert right[0] > right[1] + 0.2, "or to mix them up would not be seen"


def test_nearest_ratio():
    reference = draws(20, 6, 0)
    assert nearest_ratio(reference[:7], reference) == pytest.approx(0, abs=1e-6)
    others = [[b for b in range(20) if b != a] for a in range(20)]
    between = np.mean([min(math.dist(reference[a], reference[b]) for b in others[a]) for a in range(20)])
    generated = draws(10, 6, 1)
    to_real = np.mean([min(math.dist(a, b) for b in reference) for a in generated])
    assert nearest_ratio(generated, reference) == pytest.approx(to_real / between)
    assert nearest_ratio(generated, reference) != pytest.approx(nearest_ratio(reference, generated), rel=1e-3)


def test_similarity_within():
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pairs = [ssim(images[i : i + 1], images[j : j + 1]).item() for i, j in itertools.combinations(range(5), 2)]
    assert similarity_within(images, seed=0).value == pytest.approx(np.mean(pairs), rel=1e-4)
    assert similarity_within(images[:1].expand(5, -1, -1, -1), seed=0).value == pytest.approx(1)


def test_pixel_features():
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[0, 0, :2, :2] = 102
    assert pixels(image).shape == (1, 768)
    assert pixels(image)[0, 0] == pytest.approx(0.4) and pixels(image)[0, 1:].abs().max() == 0


def test_names_say_what_the_features_are():
    a, b = draws(6, 4, 0), draws(6, 4, 1)
    inception = [one.metric for one in compare(a, b, Features("inception", pixels, "", True), 0)]
    others = [one.metric for one in compare(a, b, Features("resnet18", pixels, ""), 0)]
    assert inception[:3] == ["KID x1000", "FID", "MiFID"] and others[:2] == [
        "kernel distance x1000",
        "Frechet distance",
    ]
    assert not {"KID x1000", "FID", "MiFID"} & set(others)


def test_the_same_as_torch_fidelity_with_inception(tmp_path):
    """Two folders of 6 images, with random weights: the command line of torch-fidelity, and ours."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Inception

    for name, seed in (("a", 0), ("b", 100)):
        (tmp_path / name).mkdir()
        for i in range(6):
            noise = np.random.default_rng(seed + i).integers(0, 1 + seed, (48, 48, 3))
            image = np.clip(np.asarray(make_photo((48, 48), seed + i)).astype(int) + noise, 0, 255)
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / name / f"{i}.png")
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:  # its constructor wants what is made here
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
    assert evaluate.main(evaluate.parse([*arguments, f"--out={tmp_path / 'out'}", "--device=cpu"])) == 0
    written = json.loads((tmp_path / "out/evaluation-000000-inception.json").read_text())
    ours = {row["metric"]: row["value"] for row in written["rows"]}
    assert ours["FID"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["KID x1000"] == pytest.approx(1000 * theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert (ours["precision"], ours["recall"]) == (theirs["precision"], theirs["recall"])
    assert ours["FID"] > 0 and written["rows"][0]["generated"] == 6
