"""What changes over a run: the learning rate, and the steps that compute gradient penalties."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from options.common import CommonOptions

# Share of the run that is done, 0 to 1 -> factor on the learning rate.
LR_POLICIES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: min(1.0, 2 - 2 * progress),  # constant for the first half (Zhu et al. 2017, CycleGAN)
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,  # Loshchilov & Hutter 2017
}


def describe_rate_change(options: "CommonOptions", step: int, before: int, now: int) -> str:
    """Return what a new length means for the learning rate of a resumed run, "" if it means nothing.

    Args:
        step: iterations done.
        before, now: the length of the run so far, and from now on.
    """
    if options.lr_policy == "constant" or before == now or not step:
        return ""
    policy = LR_POLICIES[options.lr_policy]
    last, following = (f"{options.lr * policy(share):.3g}" for share in ((step - 1) / before, step / now))
    change = f"stays at {last}" if last == following else f"changes from {last} to {following}"
    return (
        f"The length changed from {before} to {now} iterations, so with --lr_policy {options.lr_policy} the learning "
        f"rate {change} now, and falls to 0 at iteration {now}"
    )


def is_penalty_due(step: int, options: "CommonOptions") -> bool:
    """Whether the step after `step` steps computes the gradient penalties."""
    return bool(options.r1_gamma or options.r2_gamma) and step % options.penalty_every == 0
