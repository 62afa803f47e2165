"""What changes over a run: learning rate policies, and when penalties are due."""

import math

import pytest

from options import VanillaOptions
from training.schedule import LR_POLICIES, describe_rate_change, is_penalty_due


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
    "policy, step, before, now, expected",
    [
        ("linear", 20, 20, 40, "changes from 5e-05 to 0.0005 now, and falls to 0 at iteration 40"),
        ("linear", 20, 20, 25, "changes from 5e-05 to 0.0002 now"),
        ("linear", 15, 20, 16, "changes from 0.0003 to 6.25e-05 now, and falls to 0 at iteration 16"),
        ("linear", 5, 20, 40, "stays at 0.0005 now, and falls to 0 at iteration 40"),
        ("cosine", 20, 20, 40, "changes from 3.08e-06 to 0.00025 now"),
        ("cosine", 20, 20, 20, ""),
        ("linear", 0, 20, 40, ""),
        ("constant", 20, 20, 40, ""),
    ],
)
def test_a_new_length_changes_the_learning_rate(policy, step, before, now, expected):
    """The rates are those of the last and of the next iteration, as the loop computes them."""
    text = describe_rate_change(VanillaOptions(lr=5e-4, lr_policy=policy), step, before, now)
    assert expected in text and bool(text) == bool(expected)
    if expected:
        start = f"The length changed from {before} to {now} iterations, so with --lr_policy {policy} the learning rate"
        assert text.startswith(start)


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
