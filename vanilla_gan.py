"""Train a DCGAN on a folder of images.

    python vanilla_gan.py                                           # toy cats, a few minutes on two CPU cores
    python vanilla_gan.py --data photos/cats --data_aug deluxe --use_diffaug
    python vanilla_gan.py --preset list                             # settings of published projects
    python vanilla_gan.py --resume checkpoints/NAME                 # continue a run that was stopped
    python vanilla_gan.py --resume checkpoints/NAME --num_epochs 400

Grids, losses, checkpoints and the log go to checkpoints/NAME/; docs/run-folder.md describes each file. Ctrl-C finishes
the current iteration, saves, and prints how to resume. This file is the GAN; the training loop, with the learning rate,
the moving average of G, checkpoints and signals, is training/loop.py.
"""

import sys

from options import VanillaOptions, parse_command_line

if __name__ == "__main__":
    OPTIONS = parse_command_line(VanillaOptions, __doc__)  # before torch is imported, so that --help answers at once

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_loader import load_images
from diff_augment import diff_augment
from losses import ADVERSARIAL_LOSSES, gradient_penalty, mode_seeking_loss
from metrics.diagnostics import diagnose_dcgan, give_hints
from metrics.evaluation import periodic_evaluation
from models import build_dc_generator, build_discriminator, sample_latents
from runs.open_run import open_run
from system.device import set_up
from system.processes import count_processes, draw_shard
from system.program import run_main
from training.feature_matching import build_feature_matching
from training.image_codes import build_image_codes
from training.initial_weights import load_initial_weights
from training.loop import Recipe, train
from training.state import TrainingState
from training.steps import backward_and_step, forward_together
from utils import UserError, grid_columns, image_grid

# Panels of losses.png: title -> the losses that it shows, as far as the run has them.
PANELS = {
    "": ["D_real", "D_fake", "D_total", "G"],
    "Mode seeking": ["modes"],
    "Feature matching": ["features"],
    "Images from their codes": ["codes"],
    "Gradient penalties": ["R1", "R2"],
}


def build_networks(options: VanillaOptions) -> dict[str, nn.Module]:
    """Return the generator G: z -> images, and the discriminator D: images -> logits."""
    return {"G": build_dc_generator(options), "D": build_discriminator(options, options.conv_dim)}


def train_step(
    state: TrainingState, batch: dict[str, Tensor], options: VanillaOptions, with_penalty: bool
) -> dict[str, Tensor]:
    """Update D, then G, on one batch of real images (B, 3, S, S) in [-1, 1]; return the losses, detached.

    Args:
        with_penalty: whether D's loss includes the gradient penalties in this step.
    """
    G, D = state.networks["G"], state.networks["D"]
    real = batch["images"]
    loss = ADVERSARIAL_LOSSES[options.gan_mode]
    losses = {}

    def discriminate(*batches: Tensor) -> list[Tensor]:
        """Return D's logits for each batch of augmented images, as float32."""
        augmented = [diff_augment(images, options.use_diffaug) for images in batches]
        return [logits.float() for logits in forward_together(D, augmented, options.norm)]

    # Generate fakes. Both updates use them: D's without, G's with the gradient through G.
    with state.precision.autocast():
        z = draw_shard(lambda count: sample_latents(count, options.noise_size, real.device), len(real))  # (B, Z, 1, 1)
        if options.lambda_codes:  # every second latent is the code of the real image in its place
            z[1::2] = state.pools["codes"]()[1::2]
        fake = G(z)  # (B, 3, S, S)

    # Update D: minimize the sum of discriminator(D(x), D(G(z))); for LSGAN mean((D(x) - 1)^2) / 2 + mean(D(G(z))^2) / 2
    #     + r1_gamma / 2 |grad D(x)|^2 + r2_gamma / 2 |grad D(G(z))|^2, in every Nth step with N times their weight.
    with state.precision.autocast():
        losses["D_real"], losses["D_fake"] = loss.discriminator(*discriminate(real, fake.detach()))
        losses["D_total"] = D_total = losses["D_real"] + losses["D_fake"]
    if with_penalty:
        for name, gamma, images in (("R1", options.r1_gamma, real), ("R2", options.r2_gamma, fake)):
            if gamma:
                losses[name] = gradient_penalty(lambda images: discriminate(images)[0], images)
                D_total = D_total + gamma / 2 * options.penalty_every * losses[name]
    backward_and_step(D_total, state.optimizers["D"], state.precision.scaler)

    # Update G: minimize generator(D(G(z))); for LSGAN mean((D(G(z)) - 1)^2).
    #     + lambda_modes |z1 - z2| / |G(z1) - G(z2)| + lambda_features MMD(G(z), x) + lambda_codes |G(code(x)) - x|,
    #     if asked for.
    with state.precision.autocast():
        losses["G"] = G_total = loss.generator(*discriminate(*([real, fake] if loss.is_relativistic else [fake])))
    if options.lambda_modes:
        losses["modes"] = mode_seeking_loss(z, fake)
        G_total = G_total + options.lambda_modes * losses["modes"]
    if options.lambda_features:
        losses["features"] = state.matching["images"](fake)
        G_total = G_total + options.lambda_features * losses["features"]
    if options.lambda_codes:
        losses["codes"] = F.l1_loss(fake[1::2], real[1::2])
        G_total = G_total + options.lambda_codes * losses["codes"]
    backward_and_step(G_total, state.optimizers["G"], state.precision.scaler)

    return {name: value.detach() for name, value in losses.items()}


def draw_samples(state: TrainingState, options: VanillaOptions) -> dict[str, Tensor]:
    """Return a grid of images from latents that stay the same for the whole run."""
    columns = grid_columns(options.image_size)
    # Drawn on the CPU: the same latents on every device. The seed differs from the one of the initial weights.
    generator = torch.Generator().manual_seed(options.seed + 1)
    z = sample_latents(columns**2, options.noise_size, torch.device("cpu"), generator).to(state.device)  # (N, Z, 1, 1)
    return {"sample": image_grid(state.generate("G", z), columns)}


def main(request: VanillaOptions) -> int:
    """Train as the command line says; return the exit code."""
    run, options = open_run(request)
    device, precision = set_up(options)
    pairs, losses = 2 * count_processes(), options.losses_of_pairs()
    if losses and count_processes() > 1 and options.batch_size % pairs:
        raise UserError(f"--batch_size: {options.batch_size} leaves images without a partner for {losses[0]} in "
                        f"{count_processes()} processes; use a multiple of {pairs}")  # fmt: skip
    state = TrainingState.create(build_networks(options), {"G": ["G"], "D": ["D"]}, ["G"], options, device, precision)
    load_initial_weights(state, run, options)
    data = load_images(options, device, run.recorded_images)
    state.matching, state.pools = build_feature_matching(data, options), build_image_codes(data, options)
    options = options.with_value_ranges([images.value_range for images in data.values()])
    evaluate = periodic_evaluation({"z": lambda z: state.generate("G", z)}, data, options, device)
    recipe = Recipe(train_step, draw_samples, diagnose_dcgan, give_hints, PANELS, evaluate)
    return train(run, state, data, options, recipe)


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(OPTIONS), OPTIONS.SCRIPT))
