"""Gradients and the step of one optimizer."""

import torch
from torch import nn

from system.device import choose_precision
from training.steps import backward_and_step

CPU = torch.device("cpu")


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
