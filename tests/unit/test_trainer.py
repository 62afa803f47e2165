"""Learning rate policies, moving averages, running sums and the progress line."""

import math
import signal

import pytest
import torch
from torch import nn

import trainer
from options import VanillaOptions
from trainer import LR_POLICIES, State, StopSignals, make_state, update_averages
from utils import NonFiniteError, choose_precision

CPU = torch.device("cpu")


def state_of(network: nn.Module, **options) -> State:
    options = VanillaOptions(**options)
    return make_state({"G": network}, {"G": ["G"]}, ["G"], options, CPU, choose_precision("off", CPU))


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


def test_moving_average_is_the_weighted_sum_of_all_past_weights():
    torch.manual_seed(0)
    network = nn.Linear(2, 2)
    state = state_of(network, ema_decay=0.9)
    weights = [network.weight.detach().clone()]
    for _ in range(5):
        with torch.no_grad():
            network.weight.add_(torch.randn(2, 2))
        weights.append(network.weight.detach().clone())
        update_averages(state, 0.9)
    expected = 0.9**5 * weights[0] + sum(0.1 * 0.9 ** (5 - k) * weights[k] for k in range(1, 6))
    torch.testing.assert_close(state.for_samples("G").weight.data, expected)
    assert not torch.allclose(expected, network.weight), "the raw weights are something else"
    assert not state.averages["G"].weight.requires_grad and not state.averages["G"].training


def test_moving_average_includes_the_statistics_of_batch_norm():
    state = state_of(nn.Sequential(nn.BatchNorm2d(2)), ema_decay=0.5)
    state.networks["G"](torch.full((2, 2, 3, 3), 8.0))  # running mean 0 -> 0.8
    update_averages(state, 0.5)
    average = state.averages["G"][0]
    assert average.running_mean.tolist() == pytest.approx([0.4, 0.4]) and average.num_batches_tracked.item() == 1


def test_average_off():
    network = nn.Linear(2, 2)
    state = state_of(network, ema_decay=0.0)
    update_averages(state, 0.0)
    assert state.averages == {} and state.for_samples("G") is network


def test_compile_compiles_the_networks_and_not_the_average():
    """torch.compile works at the first call, so this costs nothing."""
    for flag in (False, True):
        state = state_of(nn.Linear(2, 2), compile=flag)
        assert (state.networks["G"]._compiled_call_impl is not None) is flag
        assert state.averages["G"]._compiled_call_impl is None
        assert list(state.networks["G"].state_dict()) == ["weight", "bias"], "checkpoints must not depend on it"


def test_optimizer_takes_its_options():
    group = state_of(nn.Linear(2, 2), lr=0.25, beta1=0.3, beta2=0.7).optimizers["G"].param_groups[0]
    assert (group["lr"], group["betas"], group["fused"]) == (0.25, (0.3, 0.7), True)


def test_mean_losses():
    state = state_of(nn.Linear(2, 2))
    for value in (1.0, 2.0, 6.0):
        state.add_losses(["G"], torch.tensor([value]))
        state.step += 1
    assert state.mean_losses() == {"G": 3.0}


def test_the_first_loss_that_is_no_number_is_named():
    """Not the first column, and not the last step: what came first."""
    state, nan = state_of(nn.Linear(2, 2)), float("nan")
    for losses in ((1.0, 2.0), (1.0, nan), (nan, nan), (nan, nan)):
        state.add_losses(["D", "cycle"], torch.tensor(losses))
        state.step += 1
    with pytest.raises(NonFiniteError, match="the loss cycle became nan at iteration 2;"):
        state.mean_losses()
    state.clear_losses()
    assert state.mean_losses() == {} and state.recent == []
    state.add_losses(["D"], torch.tensor([3e38]))
    state.add_losses(["D"], torch.tensor([3e38]))  # finite each, but not their sum
    with pytest.raises(NonFiniteError, match="the loss D became inf at iteration 4;"):
        state.mean_losses()


def test_state_survives_a_checkpoint():
    torch.manual_seed(0)
    state, other = state_of(nn.Linear(2, 2)), state_of(nn.Linear(2, 2))
    state.networks["G"](torch.ones(1, 2)).sum().backward()
    state.optimizers["G"].step()
    state.add_losses(["G"], torch.tensor([1.5]))
    saved = {**state.to_checkpoint(), "step": 7}
    draw = torch.rand(3)
    other.load(saved)
    assert torch.equal(torch.rand(3), draw), "the random generator goes on where it was"
    assert torch.equal(other.networks["G"].weight, state.networks["G"].weight)
    assert (other.step, other.summed, other.mean_losses()) == (7, 1, {"G": 1.5})


def test_signals_are_noted_and_handlers_restored():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        assert stop.received is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_second_interrupt_stops_at_once():
    with pytest.raises(KeyboardInterrupt), StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        signal.raise_signal(signal.SIGINT)


def test_signals_that_a_system_does_not_have(monkeypatch):
    """Windows has neither SIGHUP nor SIGUSR1."""
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.delattr(signal, "SIGUSR1")
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.received == signal.SIGTERM


def test_the_first_trouble_may_be_of_another_process(monkeypatch):
    """It reaches this one by the gradients, a step later: the step named is the other's."""
    state = State({}, {}, {}, choose_precision("off", torch.device("cpu")), torch.device("cpu"))
    for value in (1.0, 1.0, math.nan):
        state.add_losses(["G"], torch.tensor([value]))
        state.step += 1

    def average(tensors):
        for tensor in tensors:
            if len(tensor) == 3:  # the other had it at its second step
                tensor[1] = math.nan

    monkeypatch.setattr(trainer, "average_over_processes", average)
    with pytest.raises(NonFiniteError, match="G became nan at iteration 2") as error:
        state.mean_losses()
    assert error.value.step == 2
