"""Objectives: adversarial losses of logits of any shape, and distances between images. All return a scalar tensor, a
mean over the batch."""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class AdversarialLoss(NamedTuple):
    """The three terms of a GAN's game: D minimizes real(D(x)) + fake(D(G(z))), G minimizes generator(D(G(z)))."""

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


# Least squares (Mao et al. 2017, arXiv:1611.04076): real logits to 1, fake ones to 0, and back to 1 for G.
LSGAN = AdversarialLoss(
    real=lambda logits: (logits - 1).square().mean() / 2,
    fake=lambda logits: logits.square().mean() / 2,
    generator=lambda logits: (logits - 1).square().mean(),
)

# Cross-entropy, with the non-saturating loss of G (Goodfellow et al. 2014, arXiv:1406.2661).
VANILLA = AdversarialLoss(
    real=lambda logits: F.softplus(-logits).mean(),  # -log sigmoid(logits)
    fake=lambda logits: F.softplus(logits).mean(),  # -log(1 - sigmoid(logits))
    generator=lambda logits: F.softplus(-logits).mean(),
)

# Hinge (Lim & Ye 2017, arXiv:1705.02894): logits past the margins -1 and 1 teach D nothing more.
HINGE = AdversarialLoss(
    real=lambda logits: F.relu(1 - logits).mean(),
    fake=lambda logits: F.relu(1 + logits).mean(),
    generator=lambda logits: -logits.mean(),
)

GAN_MODES = {
    "lsgan": LSGAN,
    "vanilla": VANILLA,
    "hinge": HINGE,
}


def has_won(losses: Sequence[float], gan_mode: str) -> bool:
    """Whether most of these losses of D, real and fake together, are below 5% of that of a D with logits of 0."""
    zero, loss = torch.zeros(()), GAN_MODES[gan_mode]
    return len(losses) > 0 and statistics.median(losses) < 0.05 * (loss.real(zero) + loss.fake(zero)).item()


# ----------------------------------------------------------------------------------------------------------------------
# Distances between images


def ssim_loss(images: Tensor, target: Tensor) -> Tensor:
    """0.84 (1 - SSIM) + 0.16 L1 on [0, 1] images (Zhao et al. 2017, "Loss Functions for Image Restoration with Neural
    Networks", arXiv:1511.08861, with SSIM at one scale).

    Args:
        images, target: (B, 3, H, W) in [-1, 1].
    """
    # Here, because it takes its time to import.
    from torchmetrics.functional.image import structural_similarity_index_measure

    images, target = images / 2 + 0.5, target / 2 + 0.5
    with torch.autocast(images.device.type, enabled=False):  # SSIM subtracts squares of nearly equal size
        ssim = structural_similarity_index_measure(images.float(), target.float(), data_range=1.0)
    return 0.84 * (1 - ssim) + 0.16 * F.l1_loss(images, target)


# Distance of a reconstruction from the original, for images in [-1, 1]: (images, target) -> scalar.
CYCLE_LOSSES = {
    "L1": F.l1_loss,
    "L2": F.mse_loss,
    "SSIM": ssim_loss,
}
