"""Objectives. Each function takes logits of any shape and returns a scalar tensor: a mean over batch and patches."""

from collections.abc import Callable
from typing import NamedTuple

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
