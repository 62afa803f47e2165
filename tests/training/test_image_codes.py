"""The codes of --lambda_codes: against principal components by NumPy, for the images of a batch, and in a run."""

import numpy as np
import pytest
import torch

import training.image_codes
from sources.folders import list_images
from tests.conftest import FinishedRun, assert_same, resume, train
from tests.helpers import corpus
from training.image_codes import ImageCodes, principal_codes


def images_with_components(count=12):
    """uint8 (N, 3, 32, 32): a bright mean, and two patterns, the first of which varies more."""
    rng = np.random.default_rng(3)
    patterns = rng.choice([-1.0, 1.0], (2, 3, 32, 32))
    shares = rng.uniform(-1, 1, (count, 2)) * [40, 15]
    return torch.from_numpy((150 + np.tensordot(shares, patterns, 1)).round().astype(np.uint8))


def codes_by_numpy(images, noise_size, wrong=None):
    """Singular vectors of the centered images, and for each value the share of values below it."""
    x = images.flatten(1).double().numpy()
    x = x if wrong == "not centered" else x - x.mean(axis=0)
    components = np.linalg.svd(x, full_matrices=False)[0][:, :noise_size]
    components = components[:, ::-1] if wrong == "smallest first" else components
    if wrong == "not ranked":
        return components / np.abs(components).max(axis=0)
    below = (components[:, None] > components[None]).sum(axis=1)
    return (2 * below + 1) / len(images) - 1


@pytest.mark.golden
@pytest.mark.parametrize("wrong", [None, "not centered", "smallest first", "not ranked"])
def test_codes_are_the_ranks_of_principal_components(wrong):
    """Up to the sign of a component, which is arbitrary."""
    images = images_with_components()
    codes, expected = principal_codes(images, 2), codes_by_numpy(images, 2, wrong)
    assert codes.shape == (12, 2, 1, 1)
    codes = codes.flatten(1).numpy()
    distances = [min(np.abs(a - b).max(), np.abs(a + b).max()) for a, b in zip(codes.T, expected.T, strict=True)]
    assert (max(distances) < 1e-6) == (wrong is None)


@pytest.mark.parametrize(("count", "size", "noise_size"), [(1, 32, 3), (5, 32, 8), (7, 64, 100), (300, 48, 2)])
def test_each_number_is_spread_evenly_also_without_enough_components(count, size, noise_size):
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    codes = principal_codes(images, noise_size)
    assert codes.shape == (count, noise_size, 1, 1)
    even = (torch.arange(count) + 0.5) / count * 2 - 1
    torch.testing.assert_close(codes.flatten(1).sort(dim=0).values, even[:, None].expand(-1, noise_size))


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
