"""What changes over a run: learning rate policies, and when penalties are due."""

import math

import pytest

from options import VanillaOptions
from training.schedule import LR_POLICIES, is_penalty_due


@pytest.mark.parametrize(
    "policy, expected",
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("linear", [1, 1, 1, 0.5, 0]),
        ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
    ],
)
def test_lr_policies(policy, expected):
    assert [LR_POLICIES[policy](progress / 4) for progress in range(5)] == pytest.approx(expected)


@pytest.mark.parametrize(
    "options, due",
    [
        ({}, []),
        ({"r1_gamma": 1.0}, [0, 16]),
        ({"r1_gamma": 1.0, "penalty_every": 5}, [0, 5, 10, 15]),
        ({"r2_gamma": 1.0, "penalty_every": 1}, list(range(20))),
    ],
)
def test_when_penalties_are_due(options, due):
    options = VanillaOptions(**options)
    assert [step for step in range(20) if is_penalty_due(step, options)] == due
