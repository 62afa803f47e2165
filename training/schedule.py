"""What changes over a run: the learning rate, and the steps that compute gradient penalties."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from options.training import CommonOptions

# Share of the run that is done, 0 to 1 -> factor on the learning rate.
LR_POLICIES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: min(1.0, 2 - 2 * progress),  # constant for the first half (Zhu et al. 2017, CycleGAN)
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,  # Loshchilov & Hutter 2017
}


def is_penalty_due(step: int, options: "CommonOptions") -> bool:
    """Whether the step after `step` steps computes the gradient penalties."""
    return bool(options.r1_gamma or options.r2_gamma) and step % options.penalty_every == 0
