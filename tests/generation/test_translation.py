"""Translations: padding, resizing, smoothing, memory and threads, against independent computations."""

import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch

import generation.translation
from generation.translation import resize_shorter, translate_frames, translate_image, translate_pixels
from images.video import Frame, write_video
from models import CycleGenerator
from system.threads import prefetch
from tests.conftest import make_photo


@pytest.fixture(scope="module")
def G():
    """A translator whose images need multiples of 4."""
    torch.manual_seed(0)
    return CycleGenerator(conv_dim=2).eval().requires_grad_(False)


def pixels_of(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.array(make_photo((width, height), seed))


@pytest.mark.golden
@pytest.mark.parametrize(
    "size, padded, modes",
    [
        ((36, 40), (36, 40), ("reflect", "reflect")),
        ((34, 37), (36, 40), ("reflect", "reflect")),
        ((5, 33), (8, 36), ("reflect", "reflect")),
        ((3, 5), (8, 8), ("edge", "reflect")),
        ((1, 1), (8, 8), ("edge", "edge")),
    ],
)
def test_padding_and_cropping(G, size, padded, modes):
    """An image of any size is padded as NumPy pads it, translated, and cropped; other padding gives other pixels."""
    (height, width), full = size, pixels_of(size[1], size[0])
    full = np.pad(full, ((0, padded[0] - height), (0, 0), (0, 0)), mode=modes[0])
    full = np.pad(full, ((0, 0), (0, padded[1] - width), (0, 0)), mode=modes[1])
    x = torch.from_numpy(full).permute(2, 0, 1)[None].float() / 127.5 - 1
    expected = ((G(x)[0, :, :height, :width] + 1) * 127.5).round().permute(1, 2, 0).numpy()
    translation = translate_image(G, pixels_of(size[1], size[0]))
    assert translation.shape == (height, width, 3)
    assert np.abs(translation.astype(int) - expected).max() <= 1
    if padded != size:
        zeros = np.zeros((*padded, 3), np.uint8)
        zeros[:height, :width] = pixels_of(width, height)
        assert np.abs(translate_image(G, zeros)[:height, :width].astype(int) - expected).max() > 1


def test_resize_shorter():
    assert resize_shorter(pixels_of(40, 20), 10).shape == (10, 20, 3)
    assert resize_shorter(pixels_of(20, 50), 30).shape == (75, 30, 3)
    assert resize_shorter(pixels_of(40, 20), None).shape == (20, 40, 3)
    with_alpha = np.dstack([pixels_of(40, 20), np.zeros((20, 40), np.uint8)])
    small = resize_shorter(with_alpha, 10)  # transparent pixels have a color, too
    assert small.shape == (10, 20, 4) and np.array_equal(small[:, :, :3], resize_shorter(pixels_of(40, 20), 10))


def test_smoothing(G):
    """Each output is smooth x the previous output + (1 - smooth) x the translation: by hand, in float64."""
    rng = np.random.default_rng(0)
    frames = [Frame(i, 1, rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for i in range(6)]
    alone = [translate_pixels(G, frame.pixels[None])[0].double() for frame in frames]
    for smooth in (0.0, 0.6):
        shown = list(translate_frames(G, frames, smooth))
        assert [frame.time for frame in shown] == [frame.time for frame in frames]
        for i, frame in enumerate(shown):
            weights = [(1 - smooth) * smooth ** (i - j) if j > 0 else smooth**i for j in range(i + 1)]
            image = sum(weight * image for weight, image in zip(weights, alone, strict=False))
            expected = ((image + 1) * 127.5).permute(1, 2, 0).numpy()
            assert np.abs(frame.pixels - expected).max() < 0.51 + 1e-3
    assert not np.array_equal(shown[5].pixels, translate_image(G, frames[5].pixels))


def test_memory_does_not_grow_with_the_length(G, tmp_path):
    """Of 150 frames only those between the threads are in memory at the same time."""
    alive, most = 0, 0

    def count_deleted():
        nonlocal alive
        alive -= 1

    def source():
        nonlocal alive, most
        for i in range(150):
            pixels = np.full((8, 8, 3), i, np.uint8)
            weakref.finalize(pixels, count_deleted)
            alive += 1
            most = max(most, alive)
            yield Frame(i, 1, pixels)
            del pixels

    results = prefetch(translate_frames(G, prefetch(source()), 0.5))
    assert write_video(tmp_path / "a.gif", results, Fraction(10), Fraction(1, 10)) == 150
    assert most < 40 and alive == 0
    kept = list(source())
    assert alive == most == len(kept) == 150  # the counter does notice frames that are kept


def test_each_core_translates_frames_of_its_own(G, monkeypatch):
    """As far as the pixels in progress allow; in order, and afterwards the number of threads is as before."""
    frames = [Frame(i, 1, np.full((16, 16, 3), 8 * i, np.uint8)) for i in range(20)]
    alone = list(translate_frames(G, frames, 0.5))
    seen = []

    def note(G, pixels):
        seen.append((threading.get_ident(), torch.get_num_threads(), len(pixels)))
        return translate_pixels(G, pixels)

    monkeypatch.setattr(generation.translation, "translate_pixels", note)
    monkeypatch.setattr(generation.translation, "BATCH_PIXELS", 2 * 16 * 16)
    torch.set_num_threads(4)
    try:
        for budget, workers, share in ((16 * 2**10, 4, 1), (4 * 16 * 16, 2, 2), (1, 1, 4)):
            seen.clear()
            monkeypatch.setattr(generation.translation, "MAX_PIXELS_IN_PROGRESS", budget)
            for one, many in zip(alone, translate_frames(G, frames, 0.5), strict=True):
                assert one.time == many.time and np.array_equal(one.pixels, many.pixels)
            threads, shares, sizes = zip(*seen, strict=True)
            assert len(set(threads)) <= workers and set(shares) == {share} and set(sizes) == {2}
            assert torch.get_num_threads() == 4
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(torch.get_num_threads).result() == 4
    finally:
        torch.set_num_threads(1)
