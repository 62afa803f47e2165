"""The codes of --lambda_codes: against principal components by NumPy, for the images of a batch, and in a run."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import training.image_codes
from options import VanillaOptions
from sources.folders import list_images
from tests.conftest import FinishedRun, assert_same, resume, train
from tests.helpers import corpus
from training.image_codes import ImageCodes, build_image_codes, principal_codes


def images_with_components(count=100):
    """uint8 (N, 3, 32, 32): a bright mean, and 30 patterns, each of which varies less than the one before."""
    rng = np.random.default_rng(3)
    patterns = rng.choice([-1.0, 1.0], (30, 3, 32, 32))
    shares = rng.exponential(1, (count, 30)) * 12 * 0.93 ** np.arange(30)
    return torch.from_numpy((100 + np.tensordot(shares, patterns, 1)).clip(0, 255).round().astype(np.uint8))


def codes_by_numpy(images, noise_size, wrong=None):
    """Singular vectors of the centered images, with a positive skewness, and the share of values below each value."""
    x = images.flatten(1).double().numpy()
    x = x if wrong == "not centered" else x - x.mean(axis=0)
    components = np.linalg.svd(x, full_matrices=False)[0][:, :noise_size]
    components = components * np.sign((components**3).sum(axis=0)) * (-1 if wrong == "other sign" else 1)
    components = components[:, ::-1] if wrong == "smallest first" else components
    if wrong == "not ranked":
        return components / np.abs(components).max(axis=0)
    below = (components[:, None] > components[None]).sum(axis=1)
    return (2 * below + 1) / len(images) - 1


@pytest.mark.golden
@pytest.mark.parametrize("wrong", [None, "not centered", "smallest first", "not ranked", "other sign"])
def test_codes_are_the_ranks_of_principal_components(wrong):
    """Of all 20: an algorithm that is exact for the first ones only would give other ranks for the last ones."""
    images = images_with_components()
    codes, expected = principal_codes(images, 20, 1.0), codes_by_numpy(images, 20, wrong)
    assert codes.shape == (100, 20, 1, 1)
    distances = np.abs(codes.flatten(1).numpy() - expected).max(axis=0)
    assert (distances.max() < 0.05) == (wrong is None)


@pytest.mark.parametrize(("count", "size", "noise_size"), [(1, 32, 3), (5, 32, 8), (12, 64, 100), (300, 48, 2)])
def test_each_number_is_spread_evenly_also_without_enough_components(count, size, noise_size):
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    codes = principal_codes(images, noise_size, 0.5)
    assert codes.shape == (count, noise_size, 1, 1)
    even = (torch.arange(count) + 0.5) / count - 0.5
    torch.testing.assert_close(codes.flatten(1).sort(dim=0).values, even[:, None].expand(-1, noise_size))
    if count >= 12:  # else there are few orders
        assert len({tuple(column) for column in codes.flatten(1).T.tolist()}) == noise_size, "each number has its own"


def test_codes_depend_on_no_seed():
    images = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(principal_codes(images, 20, 1.0))
    assert torch.equal(*found)


def test_all_processes_have_the_codes_of_the_first_on_their_device(monkeypatch):
    """A stand-in for the codes of the first process, and the device without memory for a GPU."""
    images = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8)
    options, first = VanillaOptions(lambda_codes=1.0, noise_size=3), torch.zeros(9, 3, 1, 1)
    monkeypatch.setattr(training.image_codes, "broadcast", lambda own: first)
    data = SimpleNamespace(is_cached=True, images=images, device=torch.device("cpu"))
    assert build_image_codes({"images": data}, options)["codes"].codes is first
    data.device = torch.device("meta")
    assert build_image_codes({"images": data}, options)["codes"].codes.device.type == "meta"


def test_the_codes_of_a_batch_are_those_of_its_images(photos):
    images = corpus.batches(list_images(photos), batch_size=4, seed=11)
    codes = ImageCodes(torch.arange(len(images))[:, None, None, None], images)
    for step in (0, 5):
        images.select(step)
        assert codes().flatten().tolist() == images.indices(step).tolist()


def test_a_resumed_run_keeps_its_codes(photos, tmp_path, monkeypatch):
    """They are in the checkpoint: another machine may compute components with another sign."""
    flags = ["--lambda_codes=2", f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--log_step=1"]
    assert train(*flags, "--train_iters=4", "--name=whole") == 0
    assert train(*flags, "--train_iters=2", "--name=parts") == 0
    right = training.image_codes.principal_codes
    monkeypatch.setattr(training.image_codes, "principal_codes", lambda *arguments: -right(*arguments))
    assert resume(f"--resume={tmp_path / 'parts'}", "--train_iters=4") == 0
    whole, parts = FinishedRun(tmp_path / "whole"), FinishedRun(tmp_path / "parts")
    assert_same(parts.checkpoint()["networks"], whole.checkpoint()["networks"])
    assert all(float(row["codes"]) > 0 for row in whole.rows())
    assert train(*flags, "--train_iters=4", "--name=other") == 0
    with pytest.raises(AssertionError):
        assert_same(FinishedRun(tmp_path / "other").checkpoint()["networks"], whole.checkpoint()["networks"])


def test_each_image_has_its_code_and_no_random_number_is_used_up(photos):
    images = corpus.batches(list_images(photos), batch_size=4, seed=11)
    options, before = VanillaOptions(lambda_codes=1.0, code_range=0.5, noise_size=3, seed=5), torch.get_rng_state()
    codes = build_image_codes({"images": images}, options)["codes"]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(codes.codes, principal_codes(images.images, 3, 0.5))
    expected = codes_by_numpy(images.images, 3) / 2
    assert np.abs(codes.codes.flatten(1).numpy() - expected).max() < 1e-6
