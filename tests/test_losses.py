"""Objectives against their formulas in plain Python or by finite differences, and near misses that must differ."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from losses import ADVERSARIAL_LOSSES, CYCLE_LOSSES, gradient_penalty, mode_seeking_loss, ssim_loss
from models import DISCRIMINATORS

pytestmark = pytest.mark.golden

REAL = [1.3, -0.2, 0.7, 2.5]
FAKE = [0.4, -1.7, 0.1, 1.2]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# Loss -> its terms of D for real and fake logits, and its loss of G.
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
    "relativistic": (
        -mean(math.log(sigmoid(x - y)) for x, y in zip(REAL, FAKE, strict=True)) / 2,
        -mean(math.log(sigmoid(x - y)) for x, y in zip(REAL, FAKE, strict=True)) / 2,
        -mean(math.log(sigmoid(y - x)) for x, y in zip(REAL, FAKE, strict=True)),
    ),
}


def terms(mode, real, fake):
    """Return the terms of D and the loss of G as floats."""
    loss = ADVERSARIAL_LOSSES[mode]
    G = loss.generator(real, fake) if loss.is_relativistic else loss.generator(fake)
    return [value.item() for value in (*loss.discriminator(real, fake), G)]


@pytest.mark.parametrize("mode", ADVERSARIAL_LOSSES)
@pytest.mark.parametrize("shape", [(4, 1, 1, 1), (1, 1, 2, 2)])
def test_adversarial_losses(mode, shape):
    real, fake = (torch.tensor(v, dtype=torch.float64).view(shape) for v in (REAL, FAKE))
    assert terms(mode, real, fake) == pytest.approx(EXPECTED[mode], rel=1e-12)


def test_vanilla_is_binary_cross_entropy():
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    D_real, D_fake = ADVERSARIAL_LOSSES["vanilla"].discriminator(real, fake)
    torch.testing.assert_close(D_real, F.binary_cross_entropy_with_logits(real, torch.ones(4)))
    torch.testing.assert_close(D_fake, F.binary_cross_entropy_with_logits(fake, torch.zeros(4)))


def test_near_misses_of_adversarial_losses_differ():
    """Swapped labels, a missing half and the saturating generator loss would be noticed."""
    real, fake = torch.tensor(REAL), torch.tensor(FAKE)
    for mode, (D_real, _, G) in EXPECTED.items():
        swapped, right = terms(mode, fake, real), terms(mode, real, fake)
        assert swapped[1] != pytest.approx(D_real, rel=1e-3)
        assert 2 * right[0] != pytest.approx(D_real, rel=1e-3)
        assert -right[1] != pytest.approx(G, rel=1e-3)


def test_near_misses_of_the_relativistic_loss_differ():
    """It compares pairs: neither all with all, nor with the mean of the others (RaGAN)."""
    all_pairs = -mean(math.log(sigmoid(x - y)) for x in REAL for y in FAKE) / 2
    to_mean = -mean(math.log(sigmoid(x - mean(FAKE))) for x in REAL) / 2
    for wrong in (all_pairs, to_mean):
        assert wrong != pytest.approx(EXPECTED["relativistic"][0], rel=1e-3)


# ----------------------------------------------------------------------------------------------------------------------
# Gradient penalties


def squared_norms(D, images, epsilon=1e-5):
    """Return the squared norm of the gradient of each image's mean logit, by central differences, (B,)."""
    norms = torch.zeros(len(images), dtype=torch.float64)
    with torch.no_grad():
        for index in np.ndindex(*images.shape[1:]):
            step = torch.zeros_like(images)
            step[(slice(None), *index)] = epsilon
            up, down = (D(images + sign * step).flatten(1).mean(dim=1) for sign in (1, -1))
            norms += ((up - down) / (2 * epsilon)) ** 2
    return norms


class Smooth(torch.nn.Module):
    """A small discriminator of patches that can be differentiated everywhere."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Tanh(), torch.nn.Conv2d(4, 1, 2))

    def forward(self, images):
        return self.layers(images)  # (B, 1, 3, 3) of 6x6


def test_gradient_penalty_is_the_mean_squared_norm():
    D = Smooth().double()
    images = torch.rand(3, 3, 6, 6, dtype=torch.float64) * 2 - 1
    norms = squared_norms(D, images)
    found = gradient_penalty(lambda x: D(x.double()), images).item()
    assert found == pytest.approx(norms.mean().item(), rel=1e-4)
    for wrong in (norms.sum(), norms.sqrt().mean(), 81 * norms.mean(), norms.mean().sqrt()):
        assert found != pytest.approx(wrong.item(), rel=1e-2), "not a sum over images or patches, not a norm"


def test_gradient_penalty_has_the_gradient_of_its_finite_differences():
    """The update of D differentiates the penalty once more."""
    D = Smooth().double()
    images = torch.rand(2, 3, 6, 6, dtype=torch.float64) * 2 - 1
    weight = D.layers[2].weight
    [gradient] = torch.autograd.grad(gradient_penalty(lambda x: D(x.double()), images), weight)
    with torch.no_grad():
        weight[0, 1, 0, 1] += 1e-4
        up = squared_norms(D, images).mean()
        weight[0, 1, 0, 1] -= 2e-4
        down = squared_norms(D, images).mean()
    assert gradient[0, 1, 0, 1].item() == pytest.approx(((up - down) / 2e-4).item(), rel=1e-3)


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("disc", DISCRIMINATORS)
def test_every_discriminator_can_be_penalized(disc, norm):
    """In float32 on a CPU, inside autocast too; nothing flows back to the images."""
    torch.manual_seed(0)
    D = DISCRIMINATORS[disc](image_size=32, conv_dim=2, norm=norm)
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        penalty = gradient_penalty(D, images)
    assert penalty.dtype is torch.float32 and penalty.item() > 0
    penalty.backward()
    assert images.grad is None and any(p.grad is not None and p.grad.any() for p in D.parameters())


def test_mode_seeking_is_the_mean_ratio_of_the_distances_of_pairs():
    random = np.random.default_rng(3)
    z, images = random.uniform(-1, 1, (5, 7, 1, 1)), random.uniform(-1, 1, (5, 3, 4, 4))

    def ratio(i, j, size=np.mean):
        return size(abs(z[i] - z[j])) / size(abs(images[i] - images[j]))

    found = mode_seeking_loss(torch.tensor(z), torch.tensor(images)).item()
    assert found == pytest.approx((ratio(0, 1) + ratio(2, 3)) / 2, rel=1e-4), "the fifth has no partner"
    wrong = {
        "sums": (ratio(0, 1, np.sum) + ratio(2, 3, np.sum)) / 2,
        "other pairs": (ratio(0, 2) + ratio(1, 3)) / 2,
        "euclidean": (ratio(0, 1, np.linalg.norm) + ratio(2, 3, np.linalg.norm)) / 2,
        "the inverse": (1 / ratio(0, 1) + 1 / ratio(2, 3)) / 2,
        "images only": sum(1 / abs(images[i] - images[i + 1]).mean() for i in (0, 2)) / 2,
    }
    for name, value in wrong.items():
        assert found != pytest.approx(value, rel=1e-2), name


def test_mode_seeking_is_in_float32_and_finite_for_equal_images():
    z, images = torch.rand(4, 7, 1, 1), torch.rand(4, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    loss = mode_seeking_loss(z, images)
    loss.backward()
    assert loss.dtype is torch.float32 and images.grad.isfinite().all()
    assert mode_seeking_loss(z, torch.ones(4, 3, 4, 4)).item() == pytest.approx(1e5)


# ----------------------------------------------------------------------------------------------------------------------
# Distances between images


def make_pair(seed=5):
    """Return two batches of random images in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2)]


def test_distances():
    x, y = make_pair()
    y = y * 0.5
    assert CYCLE_LOSSES["L1"](x, y).item() == pytest.approx(np.abs(x.numpy() - y.numpy()).mean(), rel=1e-5)
    assert CYCLE_LOSSES["L2"](x, y).item() == pytest.approx(((x.numpy() - y.numpy()) ** 2).mean(), rel=1e-5)
    assert CYCLE_LOSSES["SSIM"] is ssim_loss and list(CYCLE_LOSSES) == ["L1", "L2", "SSIM"]


def test_ssim_keeps_float32_inside_autocast():
    x, y = make_pair()
    near = (x + 0.01 * y).clamp(-1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ssim_loss(near, x)
        assert ssim_loss(near.bfloat16(), x).dtype is torch.float32
    torch.testing.assert_close(inside, ssim_loss(near, x))


def ssim_by_hand(a, b):
    """SSIM (Wang et al. 2004) of images in [0, 1]: 11x11 Gaussian windows of deviation 1.5, reflected at the border."""
    u = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(u[:, None] ** 2 + u[None] ** 2) / (2 * 1.5**2))
    window = (window / window.sum()).expand(3, 1, 11, 11)

    def local_mean(x):
        return F.conv2d(F.pad(x, (5, 5, 5, 5), mode="reflect"), window, groups=3)

    variance_a, variance_b = local_mean(a * a) - local_mean(a) ** 2, local_mean(b * b) - local_mean(b) ** 2
    covariance = local_mean(a * b) - local_mean(a) * local_mean(b)
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * local_mean(a) * local_mean(b) + c1) * (2 * covariance + c2)
    return (index / ((local_mean(a) ** 2 + local_mean(b) ** 2 + c1) * (variance_a + variance_b + c2))).mean()


def test_ssim_loss():
    x, y = (images.double() for images in make_pair())
    y = (x + 0.3 * y).clamp(-1, 1)
    unit_x, unit_y = x / 2 + 0.5, y / 2 + 0.5
    expected = 0.84 * (1 - ssim_by_hand(unit_y, unit_x)) + 0.16 * (unit_y - unit_x).abs().mean()
    assert ssim_loss(y, x).item() == pytest.approx(expected.item(), abs=1e-5)
    assert ssim_loss(x, x).item() == pytest.approx(0, abs=1e-6)
    wrong = [
        0.84 * (1 - ssim_by_hand(y, x)) + 0.16 * (y - x).abs().mean(),  # on [-1, 1]
        0.84 * (1 - ssim_by_hand(unit_y, unit_x)) + 0.16 * (y - x).abs().mean(),  # L1 on [-1, 1]
        0.84 * ssim_by_hand(unit_y, unit_x) + 0.16 * (unit_y - unit_x).abs().mean(),  # the wrong sign
    ]
    assert all(abs(value.item() - expected.item()) > 1e-2 for value in wrong)
