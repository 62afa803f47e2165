"""Trained generators, rebuilt from checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from generation.pretrained import fetch_pretrained
from models import build_dc_generator, build_translator
from options.commands import InterpolateOptions, SampleOptions, TranslateOptions
from options.pretrained import PREFIX
from options.training import CycleOptions, VanillaOptions
from runs.checkpoints import read_checkpoint
from system.device import choose_device
from utils import LOG, UserError, all_finite, one_line

# Training script -> its options, the function that builds a generator from them, and its generators by direction.
SCRIPTS: dict[str, tuple[type[VanillaOptions | CycleOptions], Callable[[Any], nn.Module], dict[str, str]]] = {
    "vanilla_gan.py": (VanillaOptions, build_dc_generator, {"z": "G"}),
    "cycle_gan.py": (CycleOptions, build_translator, {"X2Y": "G_XtoY", "Y2X": "G_YtoX"}),
}


class Trained(NamedTuple):
    """The generators of a checkpoint.

    Attributes:
        script: the training script.
        options: of the run.
        step: iterations trained.
        generators: in eval mode, without gradients: {"z": G} of a DCGAN, {"X2Y": ..., "Y2X": ...} of a CycleGAN; only
            one of them in a file of another program.
        origin: the program that trained the generators; None for this one. The options then describe the networks only.
    """

    script: str
    options: VanillaOptions | CycleOptions
    step: int
    generators: dict[str, Any]
    origin: str | None = None

    @property
    def is_translator(self) -> bool:
        """Whether these are the generators of a CycleGAN."""
        return "z" not in self.generators


def load_trained(where: Path, checkpoint: str = "newest", device: str = "cpu") -> Trained:
    """Rebuild the generators of a run from the options in its checkpoint, with their moving averages if it has them.

    Args:
        where: run folder, or a checkpoint file; or a file or folder of generators of the CycleGAN authors; or
            pretrained:NAME, one of their generators, which is downloaded.
        checkpoint: of a run folder: "newest", "best" or an iteration.

    Raises:
        UserError: no such checkpoint, or its options do not fit its weights.
    """
    if str(where).startswith(PREFIX):
        where = fetch_pretrained(str(where).removeprefix(PREFIX))
    if where.is_file() and checkpoint != "newest":
        raise UserError(f"--checkpoint: {where} is a file, not a run folder with several checkpoints; leave it out")
    content = read_checkpoint(where, checkpoint)
    try:
        cls, build, names = SCRIPTS[content["script"]]
        options = cls.from_dict(content["options"])
        options.check()
        origin = content.get("origin")
        if origin is not None:
            names = {direction: name for direction, name in names.items() if name in content["networks"]}
        generators = {}
        for direction, name in names.items():
            G = build(options)
            weights = content["ema"].get(name) or content["networks"][name]
            G.load_state_dict(weights)
            if not all_finite(G.state_dict().values()):
                raise ValueError(f"{name} has values that are not finite")
            generators[direction] = G.to(device).eval().requires_grad_(False)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = one_line(error)
        raise UserError(
            f"{where}: the options in the checkpoint do not fit its weights ({reason}); use another checkpoint"
        ) from None
    if isinstance(options, CycleOptions) and origin is not None:
        LOG.info(
            "%s: %s of %s, %d residual blocks, %d channels",
            where, " and ".join(generators), origin, options.n_res_blocks, options.g_conv_dim,
        )  # fmt: skip
    return Trained(content["script"], options, content["step"], generators, origin)


def load_generator(
    where: str | Path, direction: str | None = None, checkpoint: str = "newest", device: str = "cpu"
) -> nn.Module:
    """Return a trained generator, in eval mode, without gradients.

        from generate import load_generator
        from models import sample_latents

        G = load_generator("checkpoints/my-cats")
        images = G(sample_latents(16, G.noise_size, "cpu"))  # (16, 3, 64, 64) in [-1, 1]

        G = load_generator("checkpoints/my-fruit", "X2Y")
        oranges = G(apples)  # (B, 3, H, W) in [-1, 1]

    The generator of a DCGAN takes z (B, G.noise_size, 1, 1), uniform in [-1, 1]; a generator of a CycleGAN takes images
    (B, 3, H, W) in [-1, 1], H and W multiples of G.stride. Both return images (B, 3, H, W) in [-1, 1].

    Args:
        where: run folder, or a checkpoint file; or a generator of the CycleGAN authors: its file, or pretrained:NAME.
        direction: "X2Y" or "Y2X" of a CycleGAN; not needed for one generator.
        checkpoint: of a run folder: "newest", "best" or an iteration.

    Raises:
        UserError: no such checkpoint, or it has no such direction.
    """
    trained = load_trained(Path(where), str(checkpoint), device)
    return choose_generator(trained, direction)


def choose_generator(trained: Trained, direction: str | None) -> Any:
    """Return the generator of a direction; the only one needs no direction. Raises UserError for another."""
    if direction is None and len(trained.generators) == 1:
        return next(iter(trained.generators.values()))
    has = " or ".join(trained.generators)
    if direction is None:
        raise UserError(f"--direction: missing for a run of {trained.script}; use {has}")
    if direction not in trained.generators or direction == "z":
        remedy = "leave it out" if len(trained.generators) == 1 else f"use {has}"
        raise UserError(f"--direction: {direction} is unknown for a run of {trained.script}; {remedy}")
    return trained.generators[direction]


def load_trained_by(script: str, options: SampleOptions | InterpolateOptions | TranslateOptions) -> Trained:
    """Load the run of a command on its device. Raises UserError if another script than `script` trained it."""
    trained = load_trained(Path(options.run), options.checkpoint, str(choose_device(options.device)))
    if trained.script != script:
        remedy = "generate.py translate" if trained.is_translator else "generate.py sample or interpolate"
        raise UserError(f"{options.run} is a run of {trained.script}; use {remedy}")
    return trained
