"""The line about variety: the words for sets whose variety is known."""

import re

import numpy as np
import pytest
import torch

from metrics.evaluation import Comparison, Evaluator
from metrics.features import Features, pixels
from metrics.variety import describe_variety
from tests.conftest import make_photo


def photos(count: int, seed: int, kind: int = 0) -> torch.Tensor:
    """Random images (N, 3, 32, 32); of kind 1 they are darker."""
    images = [np.asarray(make_photo((32, 32), seed + i)) // (1 + 2 * kind) for i in range(count)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


REAL = torch.cat([photos(15, 0), photos(15, 100, kind=1)])
EVALUATOR = Evaluator(Features("pixels", pixels, ""), torch.device("cpu"))  # it remembers the real images


def describe(generated: torch.Tensor, reference: torch.Tensor = REAL) -> str:
    rows, _ = EVALUATOR(Comparison("folder", "x", generated, reference))
    return describe_variety(rows, "samples")


@pytest.mark.parametrize(
    "name, generated, level, words",
    [
        ("copies", REAL, "high", ["cover 100% of", "would cover 98%", "differ from each other as much as real images"]),
        ("every second image", REAL[::2], "high", ["would cover 89%", "differ from each other as much as real"]),
        ("new images", torch.cat([photos(15, 200), photos(15, 300, kind=1)]), "high", ["as much as real images"]),
        ("one of two kinds", photos(30, 200), "medium", ["cover 5"]),
        ("one image", REAL[:1].repeat(30, 1, 1, 1), "very low", ["resemble each other more than", "(SSIM 1.00, real "]),
        ("other images", 255 - REAL // 4, "very low", ["0% of them", "cover 0% of", "0% of the real images look like"]),
    ],
)
def test_words(name, generated, level, words):
    line = describe(generated)
    assert line.startswith(f"variety of the samples: {level}; "), line
    assert not [word for word in words if word not in line], line
    assert ("are like real images" in line) == (name == "other images")


def describe_numbers(coverage: float, recall: float, ssim: float) -> str:
    """Return the line for two hundred samples against as many real images."""
    values = {"coverage": coverage, "precision": 1, "recall": recall}
    values |= {"SSIM between images": ssim, "SSIM between real images": 0.2}
    rows = [{"metric": key, "value": value, "generated": 200, "reference": 200} for key, value in values.items()]
    return describe_variety(rows, "x")


def test_each_number_can_lower_the_level():
    def level(*numbers: float) -> str:
        return re.match("variety of the x: (.+?);", describe_numbers(*numbers))[1]

    assert level(0.95, 0.8, 0.2) == level(0.83, 0.1, 0.26) == level(0.95, 0.8, 0.0) == "high"
    assert level(0.62, 0.8, 0.2) == level(0.95, 0.06, 0.2) == level(0.95, 0.8, 0.31) == "medium"
    assert level(0.23, 0.8, 0.2) == level(0.95, 0.8, 0.6) == "low"
    assert level(0.05, 0.8, 0.2) == level(0.95, 0.8, 0.9) == "very low"


def test_the_reason_for_the_level_comes_first():
    assert "low; they resemble each other more than real images do" in describe_numbers(0.95, 0.8, 0.6)
    assert "medium; 1% of the real images look like one of them (recall)" in describe_numbers(0.95, 0.01, 0.2)
    assert "very low; they cover 1% of the real images" in describe_numbers(0.01, 0.01, 0.6)


def test_few_samples_are_not_expected_to_cover_all_kinds():
    """Eight cover fewer of the real images than thirty do, but may be as varied."""
    assert "variety of the samples: high" in describe(photos(8, 200), photos(30, 0))


def test_no_line_where_a_number_is_missing():
    assert describe(REAL[:5], REAL[:5]) == "", "five real images have no fifth neighbor"
    assert describe(torch.full_like(REAL, 9), torch.full_like(REAL, 9)).startswith("variety of the samples: high")
