"""Shared helpers: pixel ranges, grids, texts for users, finite values."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.utils import make_grid

from tests.conftest import ROOT
from utils import (
    all_finite,
    from_uint8,
    grid_columns,
    image_grid,
    one_line,
    printable,
    shorten,
    to_png,
    to_uint8,
    uniform_to_index,
)


def test_image_grid():
    images = torch.stack([torch.full((3, 4, 4), value) for value in (-1.0, 0.0, 1.0, 3.0)])
    grid = image_grid(images, 2)
    assert grid.dtype is torch.uint8 and grid.shape == (3, 14, 14)
    assert [grid[0, y, x].item() for y, x in ((3, 3), (3, 9), (9, 3), (9, 9))] == [0, 128, 255, 255]
    assert grid[:, 0, 0].tolist() == [255] * 3, "white between the images"


@pytest.mark.golden
@pytest.mark.parametrize("count, columns", [(1, 4), (3, 4), (4, 2), (7, 3)])
def test_image_grid_equals_torchvision(count, columns):
    """Also with one image and with places left over; another padding must fail."""
    images = torch.rand(count, 3, 5, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = make_grid(to_uint8(images), nrow=columns, padding=3, pad_value=255)
    assert torch.equal(image_grid(images, columns, padding=3), expected)
    assert count == 1 or image_grid(images, columns).shape != expected.shape


def test_columns_of_a_grid():
    assert [grid_columns(size) for size in (32, 64, 128, 256)] == [8, 8, 8, 4]


def test_a_png_keeps_the_pixels():
    picture = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with Image.open(io.BytesIO(to_png(picture))) as image:
        assert image.format == "PNG" and np.array_equal(np.asarray(image), picture.permute(1, 2, 0).numpy())


def test_uint8_to_floats_and_back():
    """All 256 values stay the same; values beyond [-1, 1] are clipped, others rounded; the input does not change."""
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(pixels)), pixels)
    assert from_uint8(pixels[[0, 255]]).tolist() == [-1, 1]
    images = torch.tensor([-1.4, 7.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1])
    assert to_uint8(images).tolist() == [0, 255, 100, 101]
    floats = torch.full((1,), 3.0)
    from_uint8(floats)
    assert floats.item() == 3 and images[1] == 7


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Käse 猫 👩\u200d🚀 a b\\c.png", "Käse 猫 👩\u200d🚀 a b\\c.png"),  # a joiner makes one emoji from two
        ("a\nb\tc\r.png", "a\\nb\\tc\\r.png"),
        ("\x1b[2J\x07\x00\x7f", "\\x1b[2J\\x07\\x00\\x7f"),  # would clear the screen and ring the bell
        ("\x85\x9b31m", "\\x85\\x9b31m"),
        ("a\u2028b\u2029c", "a\\u2028b\\u2029c"),
        ("\u202egnp.exe\u2066\u200f\u061c", "\\u202egnp.exe\\u2066\\u200f\\u061c"),
        (os.fsdecode(b"caf\xe9"), "caf\\udce9"),
    ],
)
def test_unprintable_characters_are_escaped(text, expected):
    assert printable(text) == expected
    assert expected.encode() and len(expected.splitlines()) == 1


def test_one_line():
    assert one_line(ValueError("two\n  lines")) == "two lines" and one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("x" * 300)) == "x" * 200 and one_line(ValueError("x" * 300), limit=9) == "x" * 9


def test_shorten():
    assert shorten("abc") == "a, b, c" and shorten("abcde") == "a, b, c, d, e" and shorten([]) == ""
    assert shorten("abcdefg") == "a, b, c, d, e, and 2 more" and shorten("abc", 2, "; ") == "a; b; and 1 more"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_all_finite(dtype):
    good = [torch.full((2, 3), 1e30, dtype=dtype), torch.ones(2), torch.empty(0), torch.tensor([2**60]), "text", None]
    assert all_finite(good) and all_finite([]) and all_finite(["text"])
    for bad in (float("nan"), float("inf"), -float("inf")):
        one = torch.zeros(3, 4, dtype=dtype)
        one[1, 2] = bad
        assert not all_finite([*good, one]) and not all_finite([one, *good])


def test_uniform_numbers_become_indices():
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(uniform_to_index(u, 5))
    assert len(counts) == 5 and counts.min() > 0.9 * 4000
    assert uniform_to_index(torch.tensor([0.0, 1 - 2**-24, 1.0]), 5).tolist() == [0, 4, 4]
    assert uniform_to_index(torch.tensor([0.0, 0.5, 0.999]), torch.tensor([1, 2, 3])).tolist() == [0, 1, 2]


# Imports what draws, and what imports matplotlib to compute an SSIM; draws; then imports what a notebook draws with.
DRAW = """
import io, sys
from utils import import_matplotlib
import_matplotlib()
from torchmetrics.functional.image import structural_similarity_index_measure
from runs.plots import draw_losses
draw_losses([{"step": 1, "G": 1.0}], {"": ["G"]}, "run").savefig(io.BytesIO())
import matplotlib.pyplot
print("drawn", matplotlib.rcParams["lines.linewidth"])
"""


def draw_with(settings: dict[str, str], code: str = DRAW) -> subprocess.CompletedProcess:
    env = {**os.environ, **settings}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.faults
def test_settings_of_matplotlib_that_are_broken_are_left_out(tmp_path):
    """A backend that is not installed, as in Jupyter and Colab; a settings file that is not text."""
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe")
    broken = {"MPLBACKEND": "not_installed", "MPLCONFIGDIR": str(tmp_path)}
    done = draw_with(broken)
    assert done.returncode == 0 and done.stdout == "drawn 1.5\n", done.stderr
    control = draw_with(broken, "import matplotlib")
    assert control.returncode == 1 and "UnicodeDecodeError" in control.stderr
    control = draw_with({"MPLBACKEND": "not_installed"}, "import matplotlib")
    assert control.returncode == 1 and "not a valid value for backend" in control.stderr


def test_settings_of_matplotlib_that_work_are_left_to_the_user(tmp_path):
    """A notebook may draw with them. A folder that cannot be written to does not matter."""
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 7\n")
    working = {"MPLBACKEND": "svg", "MATPLOTLIBRC": str(tmp_path), "MPLCONFIGDIR": "/dev/null/x", "HOME": "/dev/null"}
    done = draw_with(working, DRAW + "print(matplotlib.get_backend())")
    assert done.returncode == 0 and done.stdout == "drawn 7.0\nsvg\n", done.stderr


@pytest.mark.parametrize("path", ["losses.py", "metrics/distances.py", "runs/plots.py"])
def test_whoever_imports_matplotlib_is_prepared(path):
    """The files that import matplotlib, or torchmetrics, which does."""
    text = (ROOT / path).read_text()
    first = min(text.index(words) for words in ("from matplotlib", "from torchmetrics") if words in text)
    assert "    import_matplotlib()" in text[:first]
