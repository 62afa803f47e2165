"""The state of a training: moving averages, running losses, and how it is saved and restored."""

import math

import pytest
import torch
from torch import nn

import training.state
from options.training import VanillaOptions
from system.device import choose_precision
from training.state import TrainingState
from utils import NonFiniteError, UserError

CPU = torch.device("cpu")


def make_state(network: nn.Module, **options) -> TrainingState:
    options = VanillaOptions(**options)
    return TrainingState.create({"G": network}, {"G": ["G"]}, ["G"], options, CPU, choose_precision("off", CPU))


def test_moving_average_is_the_weighted_sum_of_all_past_weights():
    torch.manual_seed(0)
    network = nn.Linear(2, 2)
    state = make_state(network, ema_decay=0.9)
    weights = [network.weight.detach().clone()]
    for _ in range(5):
        with torch.no_grad():
            network.weight.add_(torch.randn(2, 2))
        weights.append(network.weight.detach().clone())
        state.update_ema(0.9)
    expected = 0.9**5 * weights[0] + sum(0.1 * 0.9 ** (5 - k) * weights[k] for k in range(1, 6))
    torch.testing.assert_close(state.sampling_network("G").weight.data, expected)
    assert not torch.allclose(expected, network.weight), "the weights themselves differ from their average"
    assert not state.ema["G"].weight.requires_grad and not state.ema["G"].training


def test_moving_average_includes_the_statistics_of_batch_norm():
    state = make_state(nn.Sequential(nn.BatchNorm2d(2)), ema_decay=0.5)
    state.networks["G"](torch.full((2, 2, 3, 3), 8.0))  # running mean 0 -> 0.8
    state.update_ema(0.5)
    average = state.ema["G"][0]
    assert average.running_mean.tolist() == pytest.approx([0.4, 0.4]) and average.num_batches_tracked.item() == 1


def test_moving_average_can_be_off():
    network = nn.Linear(2, 2)
    state = make_state(network, ema_decay=0.0)
    state.update_ema(0.0)
    assert state.ema == {} and state.sampling_network("G") is network


@pytest.mark.faults
def test_a_network_that_fails_stays_in_training_mode():
    """An evaluation that runs out of memory does not end the training, so it must not change it, either."""
    network = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
    state = make_state(network, ema_decay=0.0)
    with pytest.raises(RuntimeError, match="shapes"):
        state.generate("G", torch.zeros(1, 3))
    assert network.training and network[0].training
    state.generate("G", torch.zeros(1, 2))
    assert network.training


def test_compile_compiles_the_networks_and_not_the_average():
    """torch.compile compiles at the first call, so this test is quick."""
    for flag in (False, True):
        state = make_state(nn.Linear(2, 2), compile=flag)
        assert (state.networks["G"]._compiled_call_impl is not None) is flag
        assert state.ema["G"]._compiled_call_impl is None
        assert list(state.networks["G"].state_dict()) == ["weight", "bias"], "checkpoints do not depend on --compile"


def test_optimizer_takes_its_options():
    group = make_state(nn.Linear(2, 2), lr=0.25, beta1=0.3, beta2=0.7).optimizers["G"].param_groups[0]
    assert (group["lr"], group["betas"], group["fused"]) == (0.25, (0.3, 0.7), True)


def take_steps(state: TrainingState, *losses: dict[str, float]) -> None:
    """Count steps with these losses."""
    for step in losses:
        state.add_losses({name: torch.tensor(value) for name, value in step.items()})
        state.step += 1


def test_mean_losses():
    state = make_state(nn.Linear(2, 2))
    take_steps(state, {"G": 1.0}, {"G": 2.0}, {"G": 6.0})
    assert state.mean_losses() == {"G": 3.0}


def test_mean_of_a_loss_that_is_not_computed_in_every_step():
    """A gradient penalty: its mean is over the steps that computed it."""
    state = make_state(nn.Linear(2, 2))
    take_steps(state, {"G": 1.0, "R1": 4.0}, {"G": 2.0}, {"G": 6.0, "R1": 8.0})
    assert state.mean_losses() == {"G": 3.0, "R1": 6.0}


def test_a_loss_that_is_not_finite_is_named_with_its_interval():
    state, nan = make_state(nn.Linear(2, 2)), float("nan")
    take_steps(state, *({"D": 1.0, "cycle": value} for value in (2.0, nan, nan, 2.0)))
    with pytest.raises(NonFiniteError, match="the loss cycle became nan between iterations 1 and 4;"):
        state.mean_losses()
    state.clear_losses()
    assert state.mean_losses() == {}
    take_steps(state, {"D": nan})
    with pytest.raises(NonFiniteError, match="the loss D became nan at iteration 5;"):
        state.mean_losses()
    state.clear_losses()
    take_steps(state, {"D": 3e38}, {"D": 3e38})  # each is finite, but their sum is not
    with pytest.raises(NonFiniteError, match="the loss D became inf between iterations 6 and 7;"):
        state.mean_losses()


def test_a_loss_of_another_process_that_is_not_finite(monkeypatch):
    state = make_state(nn.Linear(2, 2))
    take_steps(state, {"D": 1.0, "G": 1.0}, {"D": 1.0, "G": 1.0})
    assert state.mean_losses() == {"D": 1.0, "G": 1.0}

    def average(tensors):
        tensors[0][1] = math.nan  # because the G of the other process was

    monkeypatch.setattr(training.state, "average_over_processes", average)
    with pytest.raises(NonFiniteError, match="the loss G became nan between iterations 1 and 2;"):
        state.mean_losses()


@pytest.mark.parametrize("part", ["weight", "average", "moment"])
def test_values_to_be_saved_that_are_not_finite(part):
    state = make_state(nn.Linear(2, 2))
    state.networks["G"](torch.ones(1, 2)).sum().backward()
    state.optimizers["G"].step()
    state.check_finite()
    moments = state.optimizers["G"].state[state.networks["G"].weight]
    tensors = {"weight": state.networks["G"].weight, "average": state.ema["G"].weight, "moment": moments["exp_avg_sq"]}
    tensors[part].data[0, 0] = math.inf
    with pytest.raises(NonFiniteError, match="weights or optimizer moments are no longer finite at iteration 0;"):
        state.check_finite()


def test_state_survives_a_checkpoint():
    torch.manual_seed(0)
    state, other = make_state(nn.Linear(2, 2)), make_state(nn.Linear(2, 2))
    state.networks["G"](torch.ones(1, 2)).sum().backward()
    state.optimizers["G"].step()
    take_steps(state, {"G": 1.5, "R1": 2.5}, {"G": 2.5})
    saved = {**state.to_checkpoint(), "step": 7}
    draw = torch.rand(3)
    other.load(saved)
    assert torch.equal(torch.rand(3), draw), "the random generator is restored"
    assert torch.equal(other.networks["G"].weight, state.networks["G"].weight)
    assert (other.step, other.counts, other.mean_losses()) == (7, {"G": 2, "R1": 1}, {"G": 2.0, "R1": 2.5})


def test_moments_of_other_weights_are_refused():
    """PyTorch loads them, and then its fused Adam writes outside of their memory."""
    state = make_state(nn.Linear(3, 2))
    state.networks["G"](torch.ones(1, 3)).sum().backward()
    state.optimizers["G"].step()
    saved = {**state.to_checkpoint(), "step": 1}
    state.load(saved)
    for change in ({"exp_avg": torch.zeros(7)}, {"exp_avg_sq": None}):
        optimizer = {**saved["optimizers"]["G"], "state": {0: {**saved["optimizers"]["G"]["state"][0], **change}}}
        with pytest.raises(UserError, match="optimizer G lacks moments of the shapes of its weights"):
            state.load({**saved, "optimizers": {"G": optimizer}})
        state.optimizers["G"].load_state_dict(optimizer)  # the control
