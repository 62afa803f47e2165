"""Train a CycleGAN between two folders of images.

    python cycle_gan.py                                             # toy cats, gray to grumpy and back
    python cycle_gan.py --X photos/apples --Y photos/oranges --disc patch --use_cycle_consistency_loss --use_diffaug
    python cycle_gan.py --data apple2orange --disc patch --use_cycle_consistency_loss    # a folder of trainA, trainB
    python cycle_gan.py --preset list                               # settings of published projects
    python cycle_gan.py --resume checkpoints/NAME                   # continue a run that was stopped
    python cycle_gan.py --resume checkpoints/NAME --train_iters 20000

Grids, losses, checkpoints and the log go to checkpoints/NAME/; docs/run-folder.md describes each file. Ctrl-C finishes
the current iteration, saves, and prints how to resume. This file is the GAN; the training loop, with the learning rate,
the moving averages of the generators, checkpoints and signals, is training/loop.py.
"""

import sys
from functools import partial

from options import CycleOptions, parse_command_line

if __name__ == "__main__":
    OPTIONS = parse_command_line(CycleOptions, __doc__)  # before torch is imported, so that --help answers at once

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_loader import load_images
from diff_augment import diff_augment
from layers.image_pool import ImagePool
from losses import ADVERSARIAL_LOSSES, CYCLE_LOSSES, gradient_penalty
from metrics.diagnostics import diagnose_cyclegan, give_hints
from metrics.evaluation import periodic_evaluation
from models import build_discriminator, build_translator
from runs.open_run import open_run
from system.device import set_up
from system.processes import gather_batch, local_shard
from system.program import run_main
from training.feature_matching import build_feature_matching
from training.initial_weights import load_initial_weights
from training.loop import Recipe, train
from training.state import TrainingState
from training.steps import backward_and_step, forward_together
from utils import grid_columns, image_grid

# Panels of losses.png: title -> the losses that it shows, as far as the run has them.
PANELS = {
    "Discriminators": ["D_X", "D_Y"],
    "Generators": ["G_adversarial", "cycle", "identity"],
    "Feature matching": ["features"],
    "Gradient penalties": ["R1", "R2"],
}


def build_networks(options: CycleOptions) -> dict[str, nn.Module]:
    """Return the generators G_XtoY and G_YtoX: images -> images, and discriminators D_X and D_Y: images -> logits."""
    return {
        "G_XtoY": build_translator(options),
        "G_YtoX": build_translator(options),
        "D_X": build_discriminator(options, options.d_conv_dim),
        "D_Y": build_discriminator(options, options.d_conv_dim),
    }


def train_step(
    state: TrainingState, batch: dict[str, Tensor], options: CycleOptions, with_penalty: bool
) -> dict[str, Tensor]:
    """Update both generators, then both discriminators, on real images x and y (B, 3, S, S) in [-1, 1].

    Args:
        with_penalty: whether the loss of the discriminators includes the gradient penalties in this step.

    Returns:
        The losses, detached, each summed over both directions. All but G_total are without their weights.
    """
    G_XtoY, G_YtoX = state.networks["G_XtoY"], state.networks["G_YtoX"]
    D_X, D_Y = state.networks["D_X"], state.networks["D_Y"]
    x, y = batch["X"], batch["Y"]
    loss = ADVERSARIAL_LOSSES[options.gan_mode]
    losses = {}

    def discriminate(D: nn.Module, *batches: Tensor) -> list[Tensor]:
        """Return the logits of D for each batch of augmented images, as float32."""
        augmented = [diff_augment(images, options.use_diffaug) for images in batches]
        return [logits.float() for logits in forward_together(D, augmented, options.norm)]

    def query_pool(domain: str, fakes: Tensor) -> Tensor:
        """Return fakes for D's update, partly drawn from the pool. Every process keeps the whole pool."""
        pool = state.pools[domain]
        return local_shard(pool(gather_batch(fakes.detach()))) if pool.size else fakes.detach()

    # Translate both ways; for the identity loss also images that are of the target domain already.
    with state.precision.autocast():
        if options.use_identity_loss:
            fake_y, same_y = forward_together(G_XtoY, [x, y], options.norm)  # (B, 3, S, S) each
            fake_x, same_x = forward_together(G_YtoX, [y, x], options.norm)
        else:
            fake_y, fake_x = G_XtoY(x), G_YtoX(y)  # (B, 3, S, S) each

    # Update both G: minimize generator(D_Y(G_XtoY(x))) + generator(D_X(G_YtoX(y)))
    #     + lambda_cycle (|G_YtoX(G_XtoY(x)) - x| + |G_XtoY(G_YtoX(y)) - y|)
    #     + lambda_identity (|G_XtoY(y) - y| + |G_YtoX(x) - x|)
    #     + lambda_features (MMD(G_XtoY(x), y) + MMD(G_YtoX(y), x)), the last three if asked for.
    with state.precision.autocast():
        y_logits = discriminate(D_Y, *([y, fake_y] if loss.is_relativistic else [fake_y]))
        x_logits = discriminate(D_X, *([x, fake_x] if loss.is_relativistic else [fake_x]))
        G_adversarial = G_total = loss.generator(*y_logits) + loss.generator(*x_logits)
        if options.use_cycle_consistency_loss:
            distance = CYCLE_LOSSES[options.cycle_loss]
            losses["cycle"] = distance(G_YtoX(fake_y), x) + distance(G_XtoY(fake_x), y)
            G_total = G_total + options.lambda_cycle * losses["cycle"]
        if options.use_identity_loss:
            weight = options.lambda_cycle / 2 if options.lambda_identity is None else options.lambda_identity
            losses["identity"] = F.l1_loss(same_y, y) + F.l1_loss(same_x, x)
            G_total = G_total + weight * losses["identity"]
        if options.lambda_features:
            losses["features"] = state.matching["Y"](fake_y) + state.matching["X"](fake_x)
            G_total = G_total + options.lambda_features * losses["features"]
    backward_and_step(G_total, state.optimizers["G"], state.precision.scaler)

    # Update both D: minimize the sum of discriminator(D_X(x), D_X(fake x)), with fakes from the pool; the same for y
    #     + r1_gamma / 2 |grad D(x)|^2 + r2_gamma / 2 |grad D(fake x)|^2, in every Nth step with N times their weight.
    with state.precision.autocast():
        pooled_fake_x, pooled_fake_y = query_pool("X", fake_x), query_pool("Y", fake_y)  # (B, 3, S, S) each
        D_X_real, D_X_fake = loss.discriminator(*discriminate(D_X, x, pooled_fake_x))
        D_Y_real, D_Y_fake = loss.discriminator(*discriminate(D_Y, y, pooled_fake_y))
        D_X_loss, D_Y_loss = D_X_real + D_X_fake, D_Y_real + D_Y_fake
        D_total = D_X_loss + D_Y_loss
    if with_penalty:
        pairs = {"R1": (options.r1_gamma, x, y), "R2": (options.r2_gamma, pooled_fake_x, pooled_fake_y)}
        for name, (gamma, of_x, of_y) in pairs.items():
            if gamma:
                losses[name] = gradient_penalty(lambda images: discriminate(D_X, images)[0], of_x)
                losses[name] = losses[name] + gradient_penalty(lambda images: discriminate(D_Y, images)[0], of_y)
                D_total = D_total + gamma / 2 * options.penalty_every * losses[name]
    backward_and_step(D_total, state.optimizers["D"], state.precision.scaler)

    losses = {"D_X": D_X_loss, "D_Y": D_Y_loss, "G_adversarial": G_adversarial, **losses, "G_total": G_total}
    return {name: value.detach() for name, value in losses.items()}


def draw_samples(state: TrainingState, options: CycleOptions, fixed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return for each direction a grid of triplets: input, translation, reconstruction.

    Args:
        fixed: images of both domains (N, 3, S, S) that stay the same for the whole run.
    """
    grids = {}
    for X, Y in (("X", "Y"), ("Y", "X")):
        translations = state.generate(f"G_{X}to{Y}", fixed[X])
        reconstructions = state.generate(f"G_{Y}to{X}", translations)
        triplets = torch.cat([fixed[X], translations, reconstructions], dim=3)  # (N, 3, S, 3S)
        grids[f"sample-{X}-{Y}"] = image_grid(triplets, grid_columns(options.image_size) // 2, padding=6)
    return grids


def main(request: CycleOptions) -> int:
    """Train as the command line says; return the exit code."""
    run, options = open_run(request)
    device, precision = set_up(options)
    groups = {"G": ["G_XtoY", "G_YtoX"], "D": ["D_X", "D_Y"]}
    pools = {"X": ImagePool(options.pool_size), "Y": ImagePool(options.pool_size)}
    state = TrainingState.create(build_networks(options), groups, groups["G"], options, device, precision, pools)
    load_initial_weights(state, run, options)
    data = load_images(options, device, run.recorded_images)
    state.matching = build_feature_matching(data, options)
    options = options.with_value_ranges([images.value_range for images in data.values()])
    count = grid_columns(options.image_size) ** 2 // 4
    fixed = {domain: images.preview_images(count) for domain, images in data.items()}
    generators = {"X2Y": partial(state.generate, "G_XtoY"), "Y2X": partial(state.generate, "G_YtoX")}
    evaluate = periodic_evaluation(generators, data, options, device)
    draw, diagnose = partial(draw_samples, fixed=fixed), partial(diagnose_cyclegan, fixed=fixed)
    return train(run, state, data, options, Recipe(train_step, draw, diagnose, give_hints, PANELS, evaluate))


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(OPTIONS), OPTIONS.SCRIPT))
