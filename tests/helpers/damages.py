"""Random damages of a checkpoint: a flipped bit, a missing end, a block of zeros."""

import random
from pathlib import Path
from typing import Any

import torch

from runs.checkpoints import read_checkpoint
from tests.conftest import assert_same
from utils import UserError


def damage(data: bytes, chance: random.Random) -> bytes:
    """Return a damaged copy of the bytes."""
    kind = chance.choice(("flip", "cut", "zeros"))
    place = chance.randrange(len(data))
    if kind == "flip":
        return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]
    if kind == "cut":
        return data[:place]
    size = chance.choice((1, 512, 4096))
    damaged = data[:place] + bytes(len(data[place : place + size])) + data[place + size :]
    return damaged if damaged != data else damage(data, chance)


def make_unreadable(path: Path, chance: random.Random) -> None:
    """Damage a checkpoint until the reader refuses it: some bytes of a file have no meaning."""
    data = path.read_bytes()
    while True:
        path.write_bytes(damage(data, chance))
        try:
            read_checkpoint(path)
        except UserError:
            return


def is_same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether the contents of two checkpoints are equal to the last bit."""
    try:
        assert_same(a, b)
    except AssertionError:
        return False
    return True


def try_damages(path: Path, count: int, seed: int) -> tuple[int, int, int]:
    """Damage copies of a checkpoint in `count` ways.

    Returns:
        How often the reader refused the copy or returned exactly the content of the original, how often it refused it,
        and how often torch.load alone, the control, returned other content.
    """
    chance, copy = random.Random(seed), path.with_name("damaged.pt")
    data, original = path.read_bytes(), torch.load(path, weights_only=True)
    held = refused = control_failed = 0
    for _ in range(count):
        copy.write_bytes(damage(data, chance))
        try:
            held += is_same(read_checkpoint(copy), original)
        except UserError:
            held, refused = held + 1, refused + 1
        try:
            control_failed += not is_same(torch.load(copy, weights_only=True), original)
        except Exception:  # torch.load has no single exception for a damaged file
            pass
    copy.unlink()
    return held, refused, control_failed
