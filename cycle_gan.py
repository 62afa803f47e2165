"""Train a CycleGAN between two folders of images.

    python cycle_gan.py                                             # toy cats, gray to grumpy and back
    python cycle_gan.py --X photos/apples --Y photos/oranges --disc patch --use_cycle_consistency_loss --use_diffaug
    python cycle_gan.py --data apple2orange --disc patch --use_cycle_consistency_loss    # a folder of trainA, trainB
    python cycle_gan.py --preset list                               # what published projects used
    python cycle_gan.py --resume checkpoints/NAME                   # go on where a run stopped
    python cycle_gan.py --resume checkpoints/NAME --train_iters 20000

A run writes its grids, losses, checkpoints and log to checkpoints/NAME/; README.md says what each file is.
Ctrl-C stops after the current iteration, saves, and prints how to go on. This file is the GAN; the loop around it, with
the learning rate, the moving averages of the generators, checkpoints and signals, is trainer.py.
"""

import signal
import sys
from functools import partial

from options import CycleOptions, parse_command_line

SCRIPT = "cycle_gan.py"

if __name__ == "__main__":  # before torch loads, so that --help and a mistyped flag answer at once
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # and Ctrl-C ends the imports without a traceback
    OPTIONS = parse_command_line(CycleOptions, sys.argv[1:], SCRIPT, __doc__)

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_loader import find_domains, load_images
from diff_augment import diff_augment
from evaluate import evaluate_while_training
from losses import CYCLE_LOSSES, GAN_MODES, has_won
from models import DISCRIMINATORS, ImagePool, build_translator, in_one_pass
from runs import Run
from trainer import State, make_state, train
from utils import descend, first_locally, grid_columns, image_grid, my_part, run_main, set_up, whole_batch

# Panels of losses.png: title -> the losses that it shows, as far as the run has them.
PANELS = {"Discriminators": ["D_X", "D_Y"], "Generators": ["G_adversarial", "cycle", "identity"]}


def build_networks(options: CycleOptions) -> dict[str, nn.Module]:
    """Return the generators G_XtoY and G_YtoX: images -> images, and discriminators D_X and D_Y: images -> logits."""
    build_discriminator = partial(
        DISCRIMINATORS[options.disc],
        image_size=options.image_size,
        conv_dim=options.d_conv_dim,
        norm=options.norm,
        use_spectral_norm=options.spectral_norm,
        init_type=options.init_type,
    )
    return {
        "G_XtoY": build_translator(options),
        "G_YtoX": build_translator(options),
        "D_X": build_discriminator(),
        "D_Y": build_discriminator(),
    }


def train_step(state: State, batch: dict[str, Tensor], options: CycleOptions) -> dict[str, Tensor]:
    """Update both generators, then both discriminators, on real images x and y (B, 3, S, S) in [-1, 1].

    Returns:
        The losses, detached, each summed over both directions. Cycle and identity loss are without their weights.
    """
    G_XtoY, G_YtoX = state.networks["G_XtoY"], state.networks["G_YtoX"]
    D_X, D_Y = state.networks["D_X"], state.networks["D_Y"]
    x, y = batch["X"], batch["Y"]
    loss = GAN_MODES[options.gan_mode]
    losses = {}

    def judge(D: nn.Module, *batches: Tensor) -> list[Tensor]:
        """The logits of D on each batch of augmented images, as float32."""
        augmented = [diff_augment(images, options.use_diffaug) for images in batches]
        return [logits.float() for logits in in_one_pass(D, augmented, options.norm)]

    def exchange(domain: str, fakes: Tensor) -> Tensor:
        """Fakes as D is to see them: some out of the history. Of several processes each keeps all of it."""
        pool = state.pools[domain]
        return my_part(pool(whole_batch(fakes.detach()))) if pool.size else fakes.detach()

    # Translate both ways, and for the identity loss what is of the target domain already.
    with state.precision.autocast():
        if options.use_identity_loss:
            fake_y, same_y = in_one_pass(G_XtoY, [x, y], options.norm)  # (B, 3, S, S) each
            fake_x, same_x = in_one_pass(G_YtoX, [y, x], options.norm)
        else:
            fake_y, fake_x = G_XtoY(x), G_YtoX(y)  # (B, 3, S, S) each

    # Update both G: minimize generator(D_Y(G_XtoY(x))) + generator(D_X(G_YtoX(y)))
    #     + lambda_cycle (|G_YtoX(G_XtoY(x)) - x| + |G_XtoY(G_YtoX(y)) - y|)
    #     + lambda_identity (|G_XtoY(y) - y| + |G_YtoX(x) - x|), the last two if asked for.
    with state.precision.autocast():
        [of_y], [of_x] = judge(D_Y, fake_y), judge(D_X, fake_x)
        losses["G_adversarial"] = loss.generator(of_y) + loss.generator(of_x)
        G_total = losses["G_adversarial"]
        if options.use_cycle_consistency_loss:
            distance = CYCLE_LOSSES[options.cycle_loss]
            losses["cycle"] = distance(G_YtoX(fake_y), x) + distance(G_XtoY(fake_x), y)
            G_total = G_total + options.lambda_cycle * losses["cycle"]
        if options.use_identity_loss:
            weight = options.lambda_cycle / 2 if options.lambda_identity is None else options.lambda_identity
            losses["identity"] = F.l1_loss(same_y, y) + F.l1_loss(same_x, x)
            G_total = G_total + weight * losses["identity"]
    descend(G_total, state.optimizers["G"], state.precision.scaler)

    # Update both D: minimize real(D_X(x)) + fake(D_X(fake x)), and the same for y, on fakes from the pools.
    with state.precision.autocast():
        seen_x, seen_y = exchange("X", fake_x), exchange("Y", fake_y)  # (B, 3, S, S) each
        of_x, of_fake_x = judge(D_X, x, seen_x)
        of_y, of_fake_y = judge(D_Y, y, seen_y)
        D_X_loss = loss.real(of_x) + loss.fake(of_fake_x)
        D_Y_loss = loss.real(of_y) + loss.fake(of_fake_y)
        D_total = D_X_loss + D_Y_loss
    descend(D_total, state.optimizers["D"], state.precision.scaler)

    losses = {"D_X": D_X_loss, "D_Y": D_Y_loss, **losses, "G_total": G_total}
    return {name: value.detach() for name, value in losses.items()}


def draw_samples(state: State, options: CycleOptions, fixed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return for each direction a grid of triplets: input, translation, reconstruction.

    Args:
        fixed: images of both domains (N, 3, S, S) that stay the same for the whole run.
    """
    grids = {}
    for X, Y in (("X", "Y"), ("Y", "X")):
        translations = state.show(f"G_{X}to{Y}", fixed[X])
        triplets = torch.cat([fixed[X], translations, state.show(f"G_{Y}to{X}", translations)], dim=3)  # (N, 3, S, 3S)
        grids[f"sample-{X}-{Y}"] = image_grid(triplets, grid_columns(options.image_size) // 2, padding=6)
    return grids


def brightness(images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 1, H, W): the mean of the channels."""
    return images.mean(dim=1, keepdim=True)


def chroma(images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 3, H, W): what is left without the brightness; opposite hues have opposite signs."""
    return images - brightness(images)


def correlate(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlation of all values of each image with those of its counterpart, (N,) in [-1, 1]."""
    a, b = (images.flatten(1) - images.flatten(1).mean(dim=1, keepdim=True) for images in (a, b))
    return F.cosine_similarity(a, b, dim=1)


def find_trouble(
    state: State, options: CycleOptions, rows: list[dict[str, float]], fixed: dict[str, Tensor]
) -> dict[str, str]:
    """Return what goes wrong and what helps: kind of trouble -> a line for the user. `rows` are those of losses.csv."""
    trouble = {}
    if state.step < 300:
        return trouble
    for X, Y in (("X", "Y"), ("Y", "X")):
        D, G = f"D_{Y}", f"G_{X}to{Y}"
        translations = state.show(G, fixed[X])  # (N, 3, S, S)
        # Cycle consistency alone allows any map that another one undoes, such as that of each hue to its opposite.
        for kind, of in (("light and dark", brightness), ("the colors", chroma)):
            correlation = correlate(of(fixed[X]), of(translations)).mean().item()
            if correlation < -0.5:
                remedy = "a larger --lambda_identity" if options.use_identity_loss else "--use_identity_loss"
                trouble[f"{G} inverts {kind}"] = (
                    f"{G} inverts {kind} (correlation of inputs and translations {correlation:.2f}); try {remedy}"
                )
        if len(translations) > 1 and translations.std(dim=0).mean() < 0.1 * fixed[Y].std(dim=0).mean():
            remedy = "a lower --lr" if options.use_cycle_consistency_loss else "--use_cycle_consistency_loss"
            trouble[f"{G} has collapsed"] = f"{G} makes nearly the same image of every input; try {remedy}"
        if has_won([row[D] for row in rows if row["step"] > state.step - 300], options.gan_mode):
            remedy = "a lower --lr" if options.use_diffaug else "--use_diffaug"
            trouble[f"{D} has won"] = f"{D} tells all images apart, so {G} learns little; try {remedy}"
    return trouble


def main(request: CycleOptions) -> int:
    """Train as the command line says; return the exit code."""
    # Find the run to go on with, if one is named: its options count. Choose the device and seed everything.
    run, options = Run.find(request, SCRIPT)
    device, precision = set_up(options)

    # Decode the images, and choose those for the grids.
    data = first_locally(lambda: load_images(find_domains(options), options, device))
    count = grid_columns(options.image_size) ** 2 // 4
    fixed = {domain: images.to_look_at(count) for domain, images in data.items()}

    # Build the networks, with an optimizer for both G and one for both D, moving averages of the G, and pools of fakes.
    optimized = {"G": ["G_XtoY", "G_YtoX"], "D": ["D_X", "D_Y"]}
    pools = {"X": ImagePool(options.pool_size), "Y": ImagePool(options.pool_size)}
    state = make_state(build_networks(options), optimized, optimized["G"], options, device, precision, pools)

    # Prepare evaluations of the G that samples show, if they are asked for.
    generators = {"X2Y": partial(state.show, "G_XtoY"), "Y2X": partial(state.show, "G_YtoX")}
    measure = evaluate_while_training(generators, options, device)

    # Train, in a new run folder or in the one found.
    samples, trouble = partial(draw_samples, fixed=fixed), partial(find_trouble, fixed=fixed)
    with run or Run.create(options, SCRIPT) as run:
        return train(run, state, options, data, options.train_iters, train_step, samples, trouble, PANELS, measure)


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(OPTIONS), SCRIPT))
