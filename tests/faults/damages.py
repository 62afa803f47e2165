"""Random damage to a checkpoint: a bit that flips, an end that is cut, a block of zeros."""

import random
from pathlib import Path

import torch

from runs import read_checkpoint
from utils import UserError


def damage(data: bytes, chance: random.Random) -> bytes:
    """Return other bytes than those given."""
    kind = chance.choice(("flip", "cut", "zeros"))
    place = chance.randrange(len(data))
    if kind == "flip":
        return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
    if kind == "cut":
        return data[:place]
    size = chance.choice((1, 512, 4096))
    damaged = data[:place] + bytes(len(data[place : place + size])) + data[place + size :]
    return damaged if damaged != data else damage(data, chance)


def outcomes(path: Path, count: int, seed: int) -> tuple[int, int]:
    """Damage copies of a checkpoint in `count` ways.

    Returns:
        How often the reader refused it, and how often torch.load alone, the control, read it all the same.
    """
    chance, copy = random.Random(seed), path.with_name("damaged.pt")
    data = path.read_bytes()
    held = control_failed = 0
    for _ in range(count):
        copy.write_bytes(damage(data, chance))
        try:
            read_checkpoint(copy, warn=print)
        except UserError:
            held += 1
        try:
            torch.load(copy, weights_only=True)
            control_failed += 1
        except Exception:  # torch.load has no one exception for a broken file
            pass
    copy.unlink()
    return held, control_failed
