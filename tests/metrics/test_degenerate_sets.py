"""Sets of images that are equal, few, tiny or black: the right number, or one line that says why there is none."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from metrics.distances import (
    compare,
    compare_pairs,
    frechet_distance,
    kernel_distance,
    memorization_factor,
    nearest_neighbor_ratio,
    pairwise_distances,
    pairwise_ssim,
    precision_recall,
)
from metrics.evaluation import Comparison, Evaluator
from metrics.features import Features, load_features, pixels
from options.command_line import parse_command
from options.commands import EvaluateOptions
from system.program import run_main
from tests.conftest import train
from utils import LOG, UserError

CPU = torch.device("cpu")


def noise(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def flat(count: int, value: int = 0, side: int = 32) -> torch.Tensor:
    return torch.full((count, 3, side, side), value, dtype=torch.uint8)


def one_pixel(count: int, value: int = 0) -> torch.Tensor:
    """Flat images, of which the first has a pixel that differs by one level."""
    images = flat(count, value)
    images[0, 0, 0, 0] += 1
    return images


def measure(generated: torch.Tensor, reference: torch.Tensor, features: Features | None = None) -> dict[str, float]:
    """Return metric -> value of an evaluation. No value is NaN or infinite."""
    features = features or Features("pixels", pixels, "")
    rows, nearest = Evaluator(features, CPU)(Comparison("folder", "x", generated, reference))
    assert all(math.isfinite(row["value"]) for row in rows) and nearest.isfinite().all()
    assert rows[0]["metric"].endswith("x1000"), "the metric that counts comes first"
    return {row["metric"]: row["value"] for row in rows}


@pytest.fixture
def lines(monkeypatch):
    """A function that returns the warnings of the log."""
    seen: list[str] = []
    monkeypatch.setattr(LOG, "warning", lambda text, *arguments: seen.append(text % arguments))
    return lambda: seen


# ----------------------------------------------------------------------------------------------------------------------
# Numbers, against formulas for sets of which one is constant


INCEPTION = Features("inception", pixels, "", is_inception=True)
SETS = {
    "all black": (flat(8), flat(8)),
    "black against noise": (flat(8), noise(8, 32, 32)),
    "noise against black": (noise(8, 32, 32), flat(8)),
    "white against black": (flat(5, 255), flat(7)),
    "one image again and again": (noise(1, 32, 32).repeat(8, 1, 1, 1), noise(8, 32, 32)),
    "one pixel": (one_pixel(5), flat(6)),
    "one pixel of white images": (flat(5, 254), one_pixel(5, 254)),
    "40 equal images": (noise(1, 32, 32).repeat(40, 1, 1, 1), noise(1, 32, 32).repeat(40, 1, 1, 1)),
}


def slow(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float, float, float]:
    """Return Frechet and kernel distance, precision and recall in plain NumPy. One of the two sets must be constant:
    the root of the product of its covariance with any other is 0."""
    a, b = a.numpy(), b.numpy()
    assert (a == a[0]).all() or (b == b[0]).all()
    frechet = ((a.mean(0) - b.mean(0)) ** 2).sum() + sum(x.var(axis=0, ddof=1).sum() for x in (a, b))

    def kernel(x, y, same):
        values = (x @ y.T / x.shape[1] + 1) ** 3
        return values[~np.eye(len(x), dtype=bool)].mean() if same else values.mean()

    def share(points, others):
        between = np.sqrt(((points[:, None] - others[None]) ** 2).sum(2))
        radii = np.sort(np.sqrt(((others[:, None] - others[None]) ** 2).sum(2)), axis=1)[:, 3]
        return (between <= radii).any(axis=1).mean()

    mmd = kernel(a, a, True) + kernel(b, b, True) - 2 * kernel(a, b, False)
    return frechet, mmd, share(a, b), share(b, a)


@pytest.mark.golden
@pytest.mark.parametrize("name", SETS)
def test_numbers_of_degenerate_sets(name):
    generated, reference = SETS[name]
    frechet, mmd, precision, recall = slow(pixels(generated).double(), pixels(reference).double())
    for features, names in ((None, ("kernel distance", "Frechet distance")), (INCEPTION, ("KID", "FID"))):
        found = measure(generated, reference, features)
        assert found[f"{names[0]} x1000"] == pytest.approx(1000 * mmd, rel=1e-6, abs=1e-9)
        assert found[names[1]] == pytest.approx(frechet, rel=1e-6, abs=1e-9)
        assert (found["precision"], found["recall"]) == pytest.approx((precision, recall))
        assert ("MiFID" in found) == (features is INCEPTION)
    assert found["MiFID"] >= 0 and (found["MiFID"] == 0) == (frechet < 1e-8)


@pytest.mark.golden
def test_equal_images_have_distance_zero():
    """Also where cdist multiplies matrices, for more than 25 images; its own result is the wrong variant."""
    equal = torch.rand(1, 2048, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).repeat(100, 1)
    assert pairwise_distances(equal, equal).max() == 0
    assert precision_recall(equal, equal) == (1, 1)
    assert torch.cdist(equal, equal).max() > 0
    reference = torch.rand(100, 2048, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    copied = reference[:1].repeat(100, 1)
    assert precision_recall(copied, reference) == pytest.approx((1, 0.01)), "one real image is among the generated"
    assert precision_recall(reference, copied) == pytest.approx((0.01, 1))
    exact = torch.cdist(reference, copied, compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(pairwise_distances(reference, copied), exact, rtol=1e-9, atol=0)
    near = reference + 1e-4 * torch.rand(100, 2048, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert 0 < pairwise_distances(near, reference).diagonal().min(), "small differences are no rounding errors"


def test_precision_and_recall_equal_torch_fidelitys():
    """Of sets without equal images; the radius of another neighbor is the wrong variant."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(count, 6, dtype=torch.float64, generator=generator) for count in (60, 80))
    right, wrong = (prc_features_to_metric(a, b, prc_neighborhood=k, verbose=False) for k in (3, 1))
    assert precision_recall(a, b) == pytest.approx((right["precision"], right["recall"]), abs=1e-6)
    assert abs(precision_recall(a, b)[0] - wrong["precision"]) > 0.1


@pytest.mark.golden
def test_ssim_of_flat_images():
    """SSIM = (2 a b + c) / (a^2 + b^2 + c), with c = 0.01^2; without c black and gray would have 0."""
    for a, b in ((0, 0), (0, 100), (255, 100), (255, 0)):
        x, y = a / 255, b / 255
        right = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
        found = pairwise_ssim(torch.cat([flat(1, a), flat(1, b)]), seed=0)
        assert found.value == pytest.approx(right, rel=1e-3) and not found.reason
    assert [one.value for one in compare_pairs(flat(3), flat(3), "truth")] == pytest.approx([0, 1])


def test_a_frechet_distance_is_never_negative():
    """Of equal sets torch-fidelity may return -1e-7; so MiFID is 0 as well."""
    features = torch.rand(100, 2048, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for count in (5, 30, 100):
        assert 0 <= frechet_distance(features[:count], features[:count]) < 1e-5


def test_fewer_images_than_features_and_features_of_one_dimension():
    found = measure(noise(2, 32, 32), noise(2, 32, 32, seed=1))  # without a third or fifth neighbor
    assert found.keys() == {"kernel distance x1000", "Frechet distance", "nearest distance ratio",
                            "SSIM between images", "SSIM between real images"}  # fmt: skip
    for extract in (lambda x: x.float().mean((1, 2, 3))[:, None], lambda x: torch.ones(len(x), 4)):
        features = Features("one", extract, "", is_inception=True)
        assert measure(noise(6, 32, 32), noise(6, 32, 32, seed=1), features)["FID"] >= 0


def test_features_without_variance():
    """All features are equal, zeros or not: the sets cannot be told apart."""
    for value in (0.0, 3.0):
        features = Features("flat", lambda x, value=value: torch.full((len(x), 4), value), "", is_inception=True)
        found = measure(noise(6, 32, 32), noise(7, 32, 32, seed=1), features)
        assert found["KID x1000"] == pytest.approx(0, abs=1e-9) and found["FID"] == found["MiFID"] == 0
        assert (found["precision"], found["recall"]) == (1, 1) and "nearest distance ratio" not in found
        assert (found["coverage"], found["density"]) == (1, pytest.approx(7 / 5)), "each is within the reach of all"


def test_the_memorization_factor_of_zeros_is_one():
    """A zero has no angle: it counts as far from everything, and nothing is divided by 0."""
    zeros, others = torch.zeros(3, 4, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    assert memorization_factor(zeros, zeros) == memorization_factor(others, zeros) == 1
    assert kernel_distance(zeros, zeros, seed=0) == (0, 0)


# ----------------------------------------------------------------------------------------------------------------------
# Metrics without a value


def test_the_ratio_of_copies_has_no_value(lines):
    """Every real image has a copy among the real ones: the ratio would be divided by 0."""
    assert "nearest distance ratio" not in measure(noise(6, 32, 32), flat(6))
    [line] = lines()
    assert line == "no value for nearest distance ratio: in these features every real image equals another real image"
    doubled = noise(20, 32, 32).repeat(2, 1, 1, 1)
    assert math.isnan(nearest_neighbor_ratio(*[pixels(doubled).double()] * 2)), "not 0.96, of rounding errors"
    assert measure(flat(6), one_pixel(6))["nearest distance ratio"] == 0, "one real image differs"


@pytest.mark.parametrize("height, width", [(1, 1), (2, 2), (4, 4), (5, 5), (1, 200), (200, 5)])
def test_images_smaller_than_the_window_of_ssim(height, width, lines):
    found = measure(noise(5, height, width), noise(6, height, width, seed=1))
    assert found.keys() == {"kernel distance x1000", "Frechet distance", "precision", "recall", "coverage", "density",
                            "nearest distance ratio"}  # fmt: skip
    size = f"{width}x{height}"
    assert lines() == [f"no value for SSIM between images and SSIM between real images: images of at least 6x6 pixels "
                       f"are needed, not {size}"]  # fmt: skip


@pytest.mark.golden
@pytest.mark.parametrize("height, width", [(6, 6), (10, 10), (6, 200)])
def test_the_smallest_images_with_an_ssim(height, width):
    """Against a plain loop over the pixels, with windows of 11x11 that reflect at the border; zeros there are wrong."""
    images = noise(2, height, width)
    weights = np.exp(-(((np.arange(11) - 5) / 1.5) ** 2) / 2)
    window = np.outer(weights, weights) / weights.sum() ** 2

    def ssim(border):
        padded = [np.pad(x.numpy() / 255, ((0, 0), (5, 5), (5, 5)), mode=border) for x in images]
        values = []
        for c in range(3):
            for i in range(height):
                for j in range(width):
                    x, y = (one[c, i : i + 11, j : j + 11] for one in padded)
                    a, b = (window * x).sum(), (window * y).sum()
                    xx, yy = (window * x * x).sum() - a * a, (window * y * y).sum() - b * b
                    xy = (window * x * y).sum() - a * b
                    values.append((2 * a * b + 1e-4) * (2 * xy + 9e-4) / (a * a + b * b + 1e-4) / (xx + yy + 9e-4))
        return np.mean(values)

    found = pairwise_ssim(images, seed=0).value
    assert found == pytest.approx(ssim("reflect"), abs=1e-5) and found != pytest.approx(ssim("constant"), abs=1e-3)


def test_a_reason_is_said_once(lines):
    """Evaluations while training have the same real images every time."""
    evaluator = Evaluator(Features("pixels", pixels, ""), CPU)
    reference = flat(3)
    for seed in range(3):
        evaluator(Comparison("z", "train", noise(3, 32, 32, seed), reference))
    assert [line.split(":")[0] for line in lines()] == [
        "no value for precision and recall", "no value for coverage and density",
        "no value for nearest distance ratio",
    ]  # fmt: skip


def test_every_metric_has_a_value_or_a_reason():
    features = torch.zeros(2, 3, dtype=torch.float64)
    assert all(math.isfinite(one.value) != bool(one.reason) for one in compare(features, features, True, seed=0))


# ----------------------------------------------------------------------------------------------------------------------
# Features that cannot be used


class Reciprocal(torch.nn.Module):
    """1 / mean color: infinite for black images, finite for others."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 1 / (images.mean(dim=[2, 3]) - 1)


class Pooled(torch.nn.Module):
    """A network that needs images of at least 32x32 pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.max_pool2d(images, 32).mean(dim=[2, 3])


class Nothing(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=[2, 3])[:, :0]


class Enormous(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=[2, 3]).double() * 1e200 + 1e200


def save_module(module: torch.nn.Module, path) -> str:
    torch.jit.script(module).save(str(path))
    return str(path)


@pytest.mark.parametrize(
    "value, message",
    [(1, "gives values that are not finite for 5 of 5 real images"),
     (float("nan"), "gives values that are not finite for 1 of 5 real images"),
     (1e39, "gives values that are not finite for 5 of 5 real images")],
)  # fmt: skip
def test_features_that_are_not_finite(value, message):
    def extract(images):
        if value == 1:
            return 1 / (images.double().mean((2, 3)) - 1)
        found = torch.ones(len(images), 2, dtype=torch.float64)
        found[: 1 if math.isnan(value) else None] *= value
        return found

    with pytest.raises(UserError, match=f"--features: own {message}; use another file, or pixels"):
        measure(noise(5, 32, 32), flat(5, 1), Features("own", extract, ""))


@pytest.mark.parametrize("module", [Nothing, Enormous])
def test_a_module_of_unusable_features_is_refused_when_it_is_loaded(module, tmp_path):
    with pytest.raises(UserError, match=r"does not turn images into features \(2 images give"):
        load_features(save_module(module(), tmp_path / "module.pt"), None, CPU)


# ----------------------------------------------------------------------------------------------------------------------
# Whole commands


def write(folder, images: torch.Tensor) -> str:
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return str(folder)


def call(*arguments: str) -> int:
    options = parse_command(EvaluateOptions, "", ["--device=cpu", *arguments])
    return run_main(lambda: evaluate.main(options), options.SCRIPT)


@pytest.mark.parametrize("side", [1, 2, 4, 5])
def test_folders_of_tiny_images(side, tmp_path, capsys):
    made, real = (write(tmp_path / str(seed), noise(5, side, side, seed)) for seed in (0, 1))
    assert call(made, real, "--features=pixels", f"--out={tmp_path / 'out'}") == 0
    out, table = "".join(capsys.readouterr()), (tmp_path / "out/metrics.csv").read_text()
    assert out.count("no value for SSIM") == 1 and "SSIM" not in table and "nan" not in table.lower()
    assert table.count("\n") == 1 + 5 and (tmp_path / "out/nearest-000000-pixels.png").exists()


@pytest.mark.parametrize(
    "count, words",
    [(2, "no value for precision and recall"),
     (5, "precision and recall, coverage and density, and so the variety, mean little with 5"),
     (20, "precision and recall mean little with 20 images")],
)  # fmt: skip
def test_one_line_about_precision_and_recall_of_few_images(count, words, tmp_path, capsys):
    made, real = (write(tmp_path / str(seed), noise(count, 40, 40, seed)) for seed in (0, 1))
    assert call(made, real, "--features=pixels", f"--out={tmp_path / 'out'}") == 0
    [line] = [line for line in "".join(capsys.readouterr()).splitlines() if "precision and recall" in line]
    assert words in line


@pytest.mark.faults
@pytest.mark.parametrize(
    "module, value, side, message",
    [(Reciprocal, 1, 40, "module gives values that are not finite for 5 of 5 real images"),
     (Pooled, 0, 8, "module.pt fails on images of 8x8 (")],
)  # fmt: skip
def test_a_module_that_fails_on_these_images(module, value, side, message, tmp_path, capsys):
    """It passes the trial of loading; then one line says on which images it fails, and nothing is written."""
    folder = write(tmp_path / "images", flat(5, value, side))
    file = save_module(module(), tmp_path / "module.pt")
    assert call(folder, folder, f"--features={file}", f"--out={tmp_path / 'out'}") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--features: " in error and message in error and "another file" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", ["vanilla_gan.py", "cycle_gan.py"])
def test_a_training_on_black_images_is_measured(script, tmp_path, capsys):
    """One line says which metric has no value; best.pt is chosen as usual."""
    folder = write(tmp_path / "images", flat(5))
    data = [f"--data={folder}"] if script == "vanilla_gan.py" else [f"--X={folder}", f"--Y={folder}"]
    flags = [f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=2", "--eval_every=1"]
    assert train(*data, *flags, script=script) == 0
    table = (tmp_path / "run/metrics.csv").read_text()
    assert "Frechet distance" in table and "nearest" not in table and "nan" not in table
    assert (tmp_path / "run/log.txt").read_text().count("no value for nearest distance ratio") == 1
    assert (tmp_path / "run/best.pt").exists()
