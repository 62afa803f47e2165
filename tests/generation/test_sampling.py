"""Latents, interpolations and random walks, against independent computations."""

import numpy as np
import pytest
import torch

from generation.sampling import blend, random_walk, seed_latent, slerp, walk


def test_latents_are_uniform_and_depend_on_the_seed():
    z = seed_latent(3, 10_000)
    assert z.shape == (1, 10_000, 1, 1) and z.abs().max() <= 1
    assert abs(z.mean()) < 0.03 and abs(z.std() - 3**-0.5) < 0.02  # as a uniform distribution in [-1, 1] has
    assert torch.equal(z, seed_latent(3, 10_000)) and not torch.equal(z, seed_latent(4, 10_000))


@pytest.mark.golden
def test_slerp():
    """In the plane of a and b the angle grows evenly and the length is blended; the ends are a and b."""
    a, b = torch.tensor([0.6, 0.0, 0.0]), torch.tensor([0.0, 0.3, 0.0])
    for t in (0.0, 0.25, 0.5, 1.0):
        length, angle = 0.6 * (1 - t) + 0.3 * t, t * np.pi / 2
        expected = torch.tensor([length * np.cos(angle), length * np.sin(angle), 0.0], dtype=torch.float32)
        assert torch.allclose(slerp(a, b, t), expected, atol=1e-6)
    assert not torch.allclose(blend(a, b, 0.5), slerp(a, b, 0.5), atol=0.01)  # a straight line is the wrong variant


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_slerp_without_an_arc(sign):
    a = torch.tensor([0.5, 0.25])
    assert torch.allclose(slerp(a, sign * a, 0.25), 0.75 * a + 0.25 * sign * a)


def test_slerp_stays_in_range():
    a, b = torch.tensor([1.0, 1.0, -1.0]), torch.tensor([1.0, -1.0, -1.0])
    assert slerp(a, b, 0.5).abs().max() == 1


def walked(points, frames, loop):
    points = torch.tensor(points, dtype=torch.float32).view(-1, 1, 1, 1)
    return [z.item() for z in walk(points, frames, loop, blend)]


def test_walk():
    assert walked([0, 1, 0.5], 5, False) == [0, 0.5, 1, 0.75, 0.5]
    assert walked([0, 1, 0.5], 6, True) == [0, 0.5, 1, 0.75, 0.5, 0.25]  # the next one would be the first again
    assert len(walked([0, 1, 0.5], 7, True)) == len(walked([0, 1, 0.5], 7, False)) == 7


def test_a_walk_shows_each_point_for_every_number_of_frames():
    points = [0.0, 1.0, -1.0, 0.5]
    for frames in range(4, 40):
        for loop in (False, True):
            seen = walked(points, frames, loop)
            assert len(seen) == frames and set(points) <= set(seen)


def test_random_walk():
    """It starts at z of the seed, no step is longer than 0.5, and its points stay in range and uniform."""
    points = random_walk(5, 2000, 20)
    assert torch.equal(points[:1], seed_latent(5, 20)) and torch.equal(points, random_walk(5, 2000, 20))
    assert points.abs().max() <= 1 and points.diff(dim=0).abs().max() <= 0.5 + 1e-6
    assert abs(points.mean()) < 0.03 and abs(points.std() - 3**-0.5) < 0.02
