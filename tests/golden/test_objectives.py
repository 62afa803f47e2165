"""Objectives against their formulas, written out with plain Python floats, and near misses that must differ."""

import math

import pytest
import torch
import torch.nn.functional as F

from losses import GAN_MODES

REAL = [1.3, -0.2, 0.7, 2.5]
FAKE = [0.4, -1.7, 0.1, 1.2]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


EXPECTED = {
    "lsgan": (
        mean((x - 1) ** 2 for x in REAL) / 2,
        mean(x**2 for x in FAKE) / 2,
        mean((x - 1) ** 2 for x in FAKE),
    ),
    "vanilla": (
        -mean(math.log(sigmoid(x)) for x in REAL),
        -mean(math.log(1 - sigmoid(x)) for x in FAKE),
        -mean(math.log(sigmoid(x)) for x in FAKE),
    ),
    "hinge": (
        mean(max(0, 1 - x) for x in REAL),
        mean(max(0, 1 + x) for x in FAKE),
        -mean(FAKE),
    ),
}


@pytest.mark.parametrize("mode", GAN_MODES)
@pytest.mark.parametrize("shape", [(4, 1, 1, 1), (1, 1, 2, 2)])
def test_terms(mode, shape):
    loss = GAN_MODES[mode]
    real, fake = (torch.tensor(v, dtype=torch.float64).view(shape) for v in (REAL, FAKE))
    found = [loss.real(real).item(), loss.fake(fake).item(), loss.generator(fake).item()]
    assert found == pytest.approx(EXPECTED[mode], rel=1e-12)


def test_vanilla_is_binary_cross_entropy():
    logits = torch.tensor(FAKE)
    one, zero = torch.ones(4), torch.zeros(4)
    loss = GAN_MODES["vanilla"]
    torch.testing.assert_close(loss.real(logits), F.binary_cross_entropy_with_logits(logits, one))
    torch.testing.assert_close(loss.fake(logits), F.binary_cross_entropy_with_logits(logits, zero))


def test_near_misses_differ():
    """Swapped labels, a missing half and the saturating generator loss would be noticed."""
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    for mode, expected in EXPECTED.items():
        loss = GAN_MODES[mode]
        assert loss.fake(real).item() != pytest.approx(expected[0], rel=1e-3)
        assert (2 * loss.real(real)).item() != pytest.approx(expected[0], rel=1e-3)
        assert (-loss.fake(fake)).item() != pytest.approx(expected[2], rel=1e-3)
