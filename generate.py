"""Use trained generators."""

import sys
from pathlib import Path
from typing import NamedTuple

from torch import nn

from models import build_dc_generator, build_translator
from options import CommonOptions, CycleOptions, VanillaOptions
from runs import read_checkpoint
from utils import UserError

# Training script -> its options, what builds a generator from them, and its generators by direction.
SCRIPTS = {
    "vanilla_gan.py": (VanillaOptions, build_dc_generator, {"z": "G"}),
    "cycle_gan.py": (CycleOptions, build_translator, {"X2Y": "G_XtoY", "Y2X": "G_YtoX"}),
}


class Trained(NamedTuple):
    """The generators of a checkpoint.

    Attributes:
        script: that trained them.
        options: of the run.
        step: iterations trained.
        generators: in eval mode, without gradients: {"z": G} of a DCGAN, {"X2Y": ..., "Y2X": ...} of a CycleGAN.
    """

    script: str
    options: CommonOptions
    step: int
    generators: dict[str, nn.Module]


def load_trained(where: Path, checkpoint: str = "newest", device: str = "cpu") -> Trained:
    """Rebuild the generators of a run, from the options in its checkpoint; their moving averages if it has them.

    Args:
        where: run folder, or a checkpoint file.
        checkpoint: of a run folder: "newest", "best" or an iteration.

    Raises:
        UserError: no such checkpoint, or one whose options don't fit its weights.
    """
    content = read_checkpoint(where, warn=lambda line: print(line, file=sys.stderr), which=checkpoint)
    try:
        cls, build, names = SCRIPTS[content["script"]]
        options = cls.from_dict(content["options"])
        options.check()
        generators = {}
        for direction, name in names.items():
            G = build(options)
            G.load_state_dict(content["ema"].get(name) or content["networks"][name])
            generators[direction] = G.to(device).eval().requires_grad_(False)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: the options in the checkpoint don't fit its weights ({reason})") from None
    return Trained(content["script"], options, content["step"], generators)


def load_generator(
    where: str | Path, direction: str | None = None, checkpoint: str = "newest", device: str = "cpu"
) -> nn.Module:
    """Return a trained generator, in eval mode, without gradients.

    That of a DCGAN takes z (B, G.noise_size, 1, 1), uniform in [-1, 1]; one of a CycleGAN takes images (B, 3, H, W) in
    [-1, 1], H and W multiples of G.stride. Both return images (B, 3, H, W) in [-1, 1].

    Args:
        where: run folder, or a checkpoint file.
        direction: of a CycleGAN: "X2Y" or "Y2X".
        checkpoint: of a run folder: "newest", "best" or an iteration.

    Raises:
        UserError: no such checkpoint, or a direction that it doesn't have.
    """
    trained = load_trained(Path(where), str(checkpoint), device)
    if direction is None and len(trained.generators) == 1:
        return trained.generators["z"]
    if direction not in trained.generators:
        has = " or ".join(trained.generators)
        raise UserError(f"--direction: {direction} is unknown for a run of {trained.script}; use {has}")
    return trained.generators[direction]
