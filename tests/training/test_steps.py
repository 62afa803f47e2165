"""Single steps: learning rate policies, gradients of one optimizer, and when penalties are due."""

import math

import pytest
import torch
from torch import nn

from options import VanillaOptions
from system.device import choose_precision
from training.steps import LR_POLICIES, backward_and_step, is_penalty_due

CPU = torch.device("cpu")


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


def test_a_step_updates_only_the_parameters_of_its_optimizer():
    """The network in between gets no gradient; the step equals loss.backward() and step()."""
    torch.manual_seed(0)
    first, second = nn.Linear(3, 3), nn.Linear(3, 1)
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    x = torch.randn(4, 3)
    loss = second(first(x)).square().mean()
    expected = first.weight - 0.1 * torch.autograd.grad(loss, first.weight, retain_graph=True)[0]
    backward_and_step(loss, optimizer, choose_precision("off", CPU).scaler)
    torch.testing.assert_close(first.weight, expected)
    assert all(p.grad is None for p in [*first.parameters(), *second.parameters()])


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
