"""Warnings about problems during training, with remedies, and hints before it."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from losses import ADVERSARIAL_LOSSES

if TYPE_CHECKING:
    from options.common import CommonOptions
    from options.training import CycleOptions, VanillaOptions
    from training.state import TrainingState

Rows = list[dict[str, float]]
FIRST_STEP = 300  # before it, losses and images say little
MIN_IMAGES = 1000  # with fewer, D overfits without DiffAugment
MIN_ITERATIONS = 1000  # with fewer, a GAN learns little


def give_hints(options: "CommonOptions", min_images: int, iterations: int) -> list[str]:
    """Return advice for a run of `iterations` iterations on folders of at least `min_images` images."""
    hints = []
    if min_images < MIN_IMAGES and not options.use_diffaug:
        hints.append(f"with only {min_images} images D will overfit; try --use_diffaug, or --preset few_images")
    if iterations < MIN_ITERATIONS and options.preset != "toy_cats":  # whose length is chosen
        hints.append(f"{iterations} iterations is short for a GAN; try --train_iters 5000")
    if not getattr(options, "use_cycle_consistency_loss", True):
        hints.append("without --use_cycle_consistency_loss, translations may ignore their input")
    if getattr(options, "use_identity_loss", False):
        hints += _hint_of_identity_weight(cast("CycleOptions", options))
    folders = [getattr(options, name, None) for name in ("X", "Y")]
    if folders[0] is not None and folders[0] == folders[1]:
        hints.append("--X and --Y are the same folder")
    return hints


def _hint_of_identity_weight(options: "CycleOptions") -> list[str]:
    """Return a hint if --lambda_identity looks like the value of a command for the CycleGAN authors' code."""
    weight, cycle = options.lambda_identity, options.lambda_cycle
    if weight is None or not 0 < weight <= 1 or cycle < 5:
        return []
    return [
        f"--lambda_identity {weight:g} is the weight itself; the CycleGAN authors' {weight:g} is a factor on lambda, "
        f"which is --lambda_identity {weight * cycle:g} here"
    ]


def discriminator_dominates(losses: Sequence[float], gan_mode: str) -> bool:
    """Whether most of these losses of D, real and fake together, are below 5% of the loss of a D with logits of 0."""
    D_real, D_fake = ADVERSARIAL_LOSSES[gan_mode].discriminator(torch.zeros(()), torch.zeros(()))
    guessing = (D_real + D_fake).item()
    return len(losses) > 0 and statistics.median(losses) < 0.05 * guessing


def _recent(rows: Rows, step: int, name: str) -> list[float]:
    """Return a loss in the rows of the last 300 iterations."""
    return [row[name] for row in rows if row["step"] > step - FIRST_STEP]


def _lower_rate(options: "CommonOptions") -> str:
    """Return the remedy against a D that is too strong: the flag that sets its learning rate."""
    return "a lower --lr" if options.d_lr is None else "a lower --d_lr"


def diagnose_dcgan(state: "TrainingState", options: "VanillaOptions", rows: Rows) -> dict[str, str]:
    """Return the problems of a DCGAN in training: kind -> a warning with a remedy.

    Args:
        rows: of losses.csv.
    """
    problems = {}
    if state.step >= FIRST_STEP and discriminator_dominates(_recent(rows, state.step, "D_total"), options.gan_mode):
        remedy = _lower_rate(options) if options.use_diffaug else "--use_diffaug"
        problems["D has won"] = (
            "D has become too strong (it separates all real and fake images), so G learns little; try " + remedy
        )
    return problems


def brightness(images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 1, H, W): the mean of the channels."""
    return images.mean(dim=1, keepdim=True)


def chroma(images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 3, H, W): the images without their brightness; opposite hues have opposite signs."""
    return images - brightness(images)


def correlate(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlation of the values of each image with the values of its counterpart, (N,) in [-1, 1]."""
    a, b = (images.flatten(1) - images.flatten(1).mean(dim=1, keepdim=True) for images in (a, b))
    return F.cosine_similarity(a, b, dim=1)


def diagnose_cyclegan(
    state: "TrainingState", options: "CycleOptions", rows: Rows, fixed: dict[str, Tensor]
) -> dict[str, str]:
    """Return the problems of a CycleGAN in training: kind -> a warning with a remedy.

    Args:
        rows: of losses.csv.
        fixed: images of both domains (N, 3, S, S).
    """
    problems: dict[str, str] = {}
    if state.step < FIRST_STEP:
        return problems
    for X, Y in (("X", "Y"), ("Y", "X")):
        D, G = f"D_{Y}", f"G_{X}to{Y}"
        translations = state.generate(G, fixed[X])  # (N, 3, S, S)
        # Cycle consistency alone allows every map that can be inverted, such as each hue to its opposite.
        for kind, part in (("light and dark", brightness), ("the colors", chroma)):
            correlation = correlate(part(fixed[X]), part(translations)).mean().item()
            if correlation < -0.5:
                remedy = "a larger --lambda_identity" if options.use_identity_loss else "--use_identity_loss"
                problems[f"{G} inverts {kind}"] = (
                    f"{G} inverts {kind} (correlation of inputs and translations {correlation:.2f}); try {remedy}"
                )
        if len(translations) > 1 and translations.std(dim=0).mean() < 0.1 * fixed[Y].std(dim=0).mean():
            remedy = "a lower --lr" if options.use_cycle_consistency_loss else "--use_cycle_consistency_loss"
            problems[f"{G} has collapsed"] = (
                f"{G} produces nearly the same image for every input (mode collapse); try {remedy}"
            )
        if discriminator_dominates(_recent(rows, state.step, D), options.gan_mode):
            remedy = _lower_rate(options) if options.use_diffaug else "--use_diffaug"
            problems[f"{D} has won"] = (
                f"{D} has become too strong (it separates all real and fake images), so {G} learns little; try {remedy}"
            )
    return problems
