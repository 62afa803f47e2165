"""Train a DCGAN on a folder of images.

    python vanilla_gan.py                                           # toy cats, a few minutes on two CPU cores
    python vanilla_gan.py --data photos/cats --data_aug deluxe --use_diffaug
    python vanilla_gan.py --preset list                             # what published projects used
    python vanilla_gan.py --resume checkpoints/NAME                 # go on where a run stopped
    python vanilla_gan.py --resume checkpoints/NAME --num_epochs 400

A run writes its grids, losses, checkpoints and log to checkpoints/NAME/; README.md says what each file is.
Ctrl-C stops after the current iteration, saves, and prints how to go on. This file is the GAN; the loop around it, with
the learning rate, the moving average of G, checkpoints and signals, is trainer.py.
"""

import signal
import sys
from functools import partial

from options import VanillaOptions, parse_command_line

SCRIPT = "vanilla_gan.py"

if __name__ == "__main__":  # before torch loads, so that --help and a mistyped flag answer at once
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # and Ctrl-C ends the imports without a traceback
    OPTIONS = parse_command_line(VanillaOptions, sys.argv[1:], SCRIPT, __doc__)

import torch
from torch import Tensor, nn

from data_loader import find_images, load_images
from diff_augment import diff_augment
from evaluate import evaluate_while_training
from losses import GAN_MODES, has_won
from models import DISCRIMINATORS, build_dc_generator, in_one_pass, sample_latents
from runs import Run
from trainer import State, make_state, train
from utils import count_processes, descend, first_locally, grid_columns, image_grid, my_part, run_main, set_up

# Panels of losses.png: title -> the losses that it shows.
PANELS = {"": ["D_real", "D_fake", "D_total", "G"]}


def build_networks(options: VanillaOptions) -> dict[str, nn.Module]:
    """Return the generator G: z -> images, and the discriminator D: images -> logits."""
    G = build_dc_generator(options)
    D = DISCRIMINATORS[options.disc](
        image_size=options.image_size,
        conv_dim=options.conv_dim,
        norm=options.norm,
        use_spectral_norm=options.spectral_norm,
        init_type=options.init_type,
    )
    return {"G": G, "D": D}


def train_step(state: State, batch: dict[str, Tensor], options: VanillaOptions) -> dict[str, Tensor]:
    """Update D, then G, on one batch of real images (B, 3, S, S) in [-1, 1]; return the losses, detached."""
    G, D = state.networks["G"], state.networks["D"]
    real = batch["images"]
    loss = GAN_MODES[options.gan_mode]

    def judge(*batches: Tensor) -> list[Tensor]:
        """The logits of D on each batch of augmented images, as float32."""
        augmented = [diff_augment(images, options.use_diffaug) for images in batches]
        return [logits.float() for logits in in_one_pass(D, augmented, options.norm)]

    # Generate a batch of fakes. Both updates use it: D's without, G's with the way back through G.
    with state.precision.autocast():
        z = my_part(sample_latents(len(real) * count_processes(), options.noise_size, real.device))  # (B, Z, 1, 1)
        fake = G(z)  # (B, 3, S, S)

    # Update D: minimize real(D(x)) + fake(D(G(z))); for LSGAN mean((D(x) - 1)^2) / 2 + mean(D(G(z))^2) / 2.
    with state.precision.autocast():
        of_real, of_fake = judge(real, fake.detach())
        D_real, D_fake = loss.real(of_real), loss.fake(of_fake)
        D_total = D_real + D_fake
    descend(D_total, state.optimizers["D"], state.precision.scaler)

    # Update G: minimize generator(D(G(z))); for LSGAN mean((D(G(z)) - 1)^2).
    with state.precision.autocast():
        [of_fake] = judge(fake)
        G_loss = loss.generator(of_fake)
    descend(G_loss, state.optimizers["G"], state.precision.scaler)

    return {"D_real": D_real.detach(), "D_fake": D_fake.detach(), "D_total": D_total.detach(), "G": G_loss.detach()}


def draw_samples(state: State, options: VanillaOptions) -> dict[str, Tensor]:
    """Return a grid of images from latents that stay the same for the whole run."""
    columns = grid_columns(options.image_size)
    # Drawn on the CPU: the same latents on every device. Another stream than that of the initial weights.
    generator = torch.Generator().manual_seed(options.seed + 1)
    z = sample_latents(columns**2, options.noise_size, torch.device("cpu"), generator).to(state.device)  # (N, Z, 1, 1)
    return {"sample": image_grid(state.show("G", z), columns)}


def find_trouble(state: State, options: VanillaOptions, rows: list[dict[str, float]]) -> dict[str, str]:
    """Return what goes wrong and what helps: kind of trouble -> a line for the user. `rows` are those of losses.csv."""
    trouble = {}
    if state.step < 300:
        return trouble
    if has_won([row["D_total"] for row in rows if row["step"] > state.step - 300], options.gan_mode):
        remedy = "a lower --lr" if options.use_diffaug else "--use_diffaug"
        trouble["D has won"] = f"D tells all images apart, so G learns little; try {remedy}"
    return trouble


def main(request: VanillaOptions) -> int:
    """Train as the command line says; return the exit code."""
    # Find the run to go on with, if one is named: its options count. Choose the device and seed everything.
    run, options = Run.find(request, SCRIPT)
    device, precision = set_up(options)

    # Decode the images.
    data = first_locally(lambda: load_images(find_images(options), options, device))
    total = options.train_iters or data["images"].iterations(options.num_epochs)

    # Build the networks, with an optimizer each, and a moving average of G.
    optimized = {"G": ["G"], "D": ["D"]}
    state = make_state(build_networks(options), optimized, ["G"], options, device, precision)

    # Prepare evaluations of the G that samples show, if they are asked for.
    measure = evaluate_while_training({"z": partial(state.show, "G")}, options, device)

    # Train, in a new run folder or in the one found.
    with run or Run.create(options, SCRIPT) as run:
        return train(run, state, options, data, total, train_step, draw_samples, find_trouble, PANELS, measure)


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(OPTIONS), SCRIPT))
