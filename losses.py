"""Objectives: adversarial losses, penalties, and distances between images. All return means over the batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils import import_matplotlib


class AdversarialLoss(NamedTuple):
    """The losses of D and G, of logits of any shape.

    D minimizes the sum of discriminator(D(x), D(G(z))), whose two terms are reported as those of real and of fake
    images. G minimizes generator(D(G(z))), or generator(D(x), D(G(z))) if the loss is relativistic.
    """

    discriminator: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    generator: Callable[..., Tensor]
    is_relativistic: bool = False


# Least squares (Mao et al. 2017, arXiv:1611.04076): real logits to 1, fake ones to 0; G wants them at 1.
LSGAN = AdversarialLoss(
    discriminator=lambda real, fake: ((real - 1).square().mean() / 2, fake.square().mean() / 2),
    generator=lambda fake: (fake - 1).square().mean(),
)

# Cross-entropy, with the non-saturating loss of G (Goodfellow et al. 2014, arXiv:1406.2661).
VANILLA = AdversarialLoss(
    discriminator=lambda real, fake: (F.softplus(-real).mean(), F.softplus(fake).mean()),  # -log sigmoid(real), ...
    generator=lambda fake: F.softplus(-fake).mean(),
)

# Hinge (Lim & Ye 2017, arXiv:1705.02894): logits beyond the margins -1 and 1 have no gradient for D.
HINGE = AdversarialLoss(
    discriminator=lambda real, fake: (F.relu(1 - real).mean(), F.relu(1 + fake).mean()),
    generator=lambda fake: -fake.mean(),
)


def _relativistic_discriminator(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """softplus(-(real - fake)): one term of pairs, reported in halves."""
    half = F.softplus(fake - real).mean() / 2
    return half, half


# Relativistic pairing (Jolicoeur-Martineau 2018, arXiv:1807.00734, as in R3GAN, Huang et al. 2024, arXiv:2501.05441):
# each real image is to have a larger logit than the fake one beside it. R3GAN adds both gradient penalties.
RELATIVISTIC = AdversarialLoss(
    discriminator=_relativistic_discriminator,
    generator=lambda real, fake: F.softplus(real - fake).mean(),
    is_relativistic=True,
)

ADVERSARIAL_LOSSES = {
    "lsgan": LSGAN,
    "vanilla": VANILLA,
    "hinge": HINGE,
    "relativistic": RELATIVISTIC,
}


# ----------------------------------------------------------------------------------------------------------------------
# Penalties


def gradient_penalty(discriminate: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return the mean squared norm of the gradient of D with respect to its input (Mescheder et al. 2018,
    "Which Training Methods for GANs do actually Converge?", arXiv:1801.04406).

    R1 is computed on real images, R2 on generated ones. If D judges patches, the gradient is of the mean logit of each
    image. Everything is in float32: gradients of gradients lose too many digits in 16 bits.

    Args:
        discriminate: images -> logits (B, ...), differentiable twice.
        images: (B, 3, H, W); no gradient flows back to what made them.
    """
    with torch.autocast(images.device.type, enabled=False):
        images = images.detach().float().requires_grad_()
        logits = discriminate(images).flatten(1).mean(dim=1)  # (B,)
        [gradient] = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return gradient.square().sum(dim=(1, 2, 3)).mean()


def mode_seeking_loss(z: Tensor, images: Tensor) -> Tensor:
    """Return the distance of two latents divided by the distance of their images, as the mean over pairs (Mao et al.
    2019, "Mode Seeking Generative Adversarial Networks for Diverse Image Synthesis", arXiv:1903.05628).

    G minimizes it: different latents are to give different images. The pairs are the first and the second image, the
    third and the fourth, and so on. Both distances are mean absolute differences.

    Args:
        z: (B, Z, 1, 1), with B at least 2. The last of an odd number is not used.
        images: (B, 3, H, W), what G made of z.
    """
    last = len(z) // 2 * 2
    latent, image = ((x[0:last:2] - x[1:last:2]).abs().flatten(1).mean(dim=1) for x in (z, images.float()))
    return (1 / (image / latent + 1e-5)).mean()


# ----------------------------------------------------------------------------------------------------------------------
# Feature matching


def mean_kernel(a: Tensor, b: Tensor, leave_out_diagonal: bool = False) -> Tensor:
    """Return the mean similarity of the rows of a and of b, the sum of five kernels c / (c + |a - b|^2).

    The c are 0.2, 0.5, 1, 2 and 5 times the mean squared distance of features with a variance of 1 (inverse
    multiquadric kernels of several sizes, as in Tolstikhin et al. 2018, "Wasserstein Auto-Encoders", arXiv:1711.01558).

    Args:
        a, b: features (N, d) and (M, d), each with a variance of about 1.
        leave_out_diagonal: a and b are the same rows, and no row is compared with itself.
    """
    a, b = a.float() - b.float().mean(dim=0), b.float() - b.float().mean(dim=0)  # smaller numbers round less
    squared = (a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * a @ b.T).clamp(min=0)  # (N, M)
    typical = 2 * a.shape[1]  # E|a - b|^2 = 2 d
    kernel = sum(
        (scale * typical / (scale * typical + squared) for scale in (0.2, 0.5, 1, 2, 5)), torch.zeros_like(squared)
    )
    if leave_out_diagonal:
        return (kernel.sum() - kernel.diagonal().sum()) / (len(a) * (len(a) - 1))
    return kernel.mean()


# ----------------------------------------------------------------------------------------------------------------------
# Distances between images


def ssim_loss(images: Tensor, target: Tensor) -> Tensor:
    """0.84 (1 - SSIM) + 0.16 L1 on [0, 1] images (Zhao et al. 2017, "Loss Functions for Image Restoration with Neural
    Networks", arXiv:1511.08861, with SSIM at one scale).

    Args:
        images, target: (B, 3, H, W) in [-1, 1].
    """
    import_matplotlib()  # torchmetrics imports it
    from torchmetrics.functional.image import structural_similarity_index_measure  # here: its import takes a while

    images, target = images / 2 + 0.5, target / 2 + 0.5
    with torch.autocast(images.device.type, enabled=False):  # SSIM subtracts squares of nearly equal size
        ssim: Any = structural_similarity_index_measure(images.float(), target.float(), data_range=1.0)
    return 0.84 * (1 - ssim) + 0.16 * F.l1_loss(images, target)


# Distance of a reconstruction from the original, for images in [-1, 1]: (images, target) -> scalar.
CYCLE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "L1": F.l1_loss,
    "L2": F.mse_loss,
    "SSIM": ssim_loss,
}
