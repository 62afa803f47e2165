"""Optimizers: Adam and Muon against PyTorch's own, and what Muon does with kernels and vectors."""

import pytest
import torch
from torch import Tensor, nn

from options.training import VanillaOptions
from system.device import choose_precision
from training.optimizers import EagerAdam, Muon, build_optimizer, orthogonalize, require_moments
from training.state import TrainingState
from training.steps import backward_and_step

CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def steps(optimizer: torch.optim.Optimizer, weight: nn.Parameter, count: int = 4) -> Tensor:
    """Return the weight after some steps with known gradients."""
    for seed in range(count):
        weight.grad = draw(*weight.shape, seed=seed)
        optimizer.step()
    return weight.detach().clone()


@pytest.mark.golden
def test_the_optimizer_equals_adam():
    """Bit for bit, and its state loads into PyTorch's; a wrong decay rate must fail."""
    gradients = [torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    weights = []
    for kind, beta2 in ((EagerAdam, 0.999), (torch.optim.Adam, 0.999), (EagerAdam, 0.99)):
        weight = nn.Parameter(torch.ones(3, 4))
        optimizer = kind([weight], lr=0.1, betas=(0.5, beta2), fused=True)
        for gradient in gradients:
            (weight * gradient).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
        weights.append((weight.detach(), optimizer.state_dict()))
    (ours, state), (expected, torchs_state), (wrong, _) = weights
    assert torch.equal(ours, expected) and not torch.allclose(wrong, expected)
    assert str(state) == str(torchs_state)


@pytest.mark.golden
@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16), (1, 30)], ids=str)
def test_orthogonalize_keeps_the_singular_vectors(shape):
    """By PyTorch's decomposition: in the basis of the singular vectors the result is diagonal, with values near 1."""
    matrix = draw(*shape) * 1e-6
    U, sizes, Vh = torch.linalg.svd(matrix, full_matrices=False)

    def is_right(result: Tensor) -> bool:
        inside = U.T @ result @ Vh.T
        values = inside.diagonal()
        return bool((inside - values.diag()).abs().max() < 1e-3 and values.min() > 0.65 and values.max() < 1.2)

    assert is_right(orthogonalize(matrix)) and is_right(U @ Vh)
    if min(shape) > 1:
        assert not is_right(matrix / sizes[0]), "the control: the matrix itself"


def test_orthogonalize_of_zeros_is_zero():
    assert torch.equal(orthogonalize(torch.zeros(3, 5)), torch.zeros(3, 5))


@pytest.mark.golden
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
@pytest.mark.parametrize("shape", [(12, 30), (30, 12)], ids=str)
def test_muon_equals_the_one_of_pytorch(shape):
    """Up to rounding, since PyTorch's computes in bfloat16; another decay rate must fail."""
    start, lr = draw(*shape, seed=9), 1e-2
    theirs = nn.Parameter(start.clone())
    # match_rms_adamw: a factor of 0.2 sqrt(max(rows, columns))
    settings = dict(momentum=0.5, weight_decay=0, nesterov=False, adjust_lr_fn="match_rms_adamw")
    expected = steps(torch.optim.Muon([theirs], lr=lr / 0.2, **settings), theirs) - start

    def moved(beta1: float) -> Tensor:
        weight = nn.Parameter(start.clone())
        return steps(Muon([weight], lr=lr, beta1=beta1), weight) - start

    def error(found: Tensor) -> float:
        return ((found - expected).norm() / expected.norm()).item()

    assert error(moved(0.5)) < 0.02
    assert error(moved(0.9)) > 0.1


def test_muon_moves_kernels_as_matrices_and_vectors_as_rows():
    start = draw(6, 4, 3, 3, seed=9)
    kernel, matrix = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1).clone())
    for seed in range(3):
        kernel.grad = draw(6, 4, 3, 3, seed=seed)
        matrix.grad = kernel.grad.flatten(1)
        for weight in (kernel, matrix):
            optimizer = Muon([weight], lr=0.1, beta1=0.0)
            optimizer.step()
    torch.testing.assert_close(kernel.flatten(1), matrix, rtol=0, atol=0)

    vector = nn.Parameter(torch.zeros(50))
    vector.grad = draw(50)
    Muon([vector], lr=0.1, beta1=0.0).step()
    cosine = nn.functional.cosine_similarity(vector.detach(), vector.grad, dim=0)
    assert cosine.item() == pytest.approx(-1, abs=1e-5), "a vector moves against its gradient"
    assert 0.065 < vector.square().mean().sqrt().item() < 0.12, "by the learning rate"


def test_muon_passes_over_weights_without_gradient_and_takes_a_learning_rate_that_is_a_tensor():
    first, second, other = (nn.Parameter(torch.ones(2, 3)) for _ in range(3))
    for weight, lr in ((first, 0.1), (second, torch.tensor(0.1))):
        weight.grad = draw(2, 3)
        Muon([other, weight], lr=lr, beta1=0.5).step()
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(other, torch.ones(2, 3))


def test_a_momentum_of_another_shape_is_refused():
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = Muon([weight], lr=0.1, beta1=0.5)
    steps(optimizer, weight, 1)
    require_moments("D", optimizer)
    for momentum in (torch.zeros(3, 2), None):
        optimizer.state[weight]["momentum"] = momentum
        with pytest.raises(ValueError, match="optimizer D lacks moments of the shapes of its weights"):
            require_moments("D", optimizer)


def test_muon_is_for_d_only():
    weights = [nn.Parameter(torch.ones(2, 3))]
    options = VanillaOptions(d_optimizer="muon", lr=0.25, beta1=0.125)
    muon, adam = (build_optimizer(group, weights, options) for group in ("D", "G"))
    assert isinstance(muon, Muon) and isinstance(adam, EagerAdam)
    assert [o.param_groups[0]["lr"] for o in (muon, adam)] == [0.25, 0.25]
    assert muon.param_groups[0]["beta1"] == 0.125 and adam.param_groups[0]["betas"] == (0.125, 0.999)
    assert isinstance(build_optimizer("D", weights, VanillaOptions()), EagerAdam), "the default"


def test_muon_reads_nothing_back():
    """On tensors without values: a CUDA graph can contain the step."""
    weight = nn.Parameter(torch.empty(4, 3, 3, 3, device="meta"))
    weight.grad = torch.empty_like(weight)
    Muon([weight], lr=torch.empty((), device="meta"), beta1=0.5).step()


@pytest.mark.faults
def test_a_run_whose_first_step_was_skipped_resumes():
    """With fp16 the scaler skips the steps whose gradients overflow."""
    options = VanillaOptions(d_optimizer="muon", ema_decay=0.0)

    def create() -> TrainingState:
        precision = choose_precision("off", CPU)._replace(scaler=torch.amp.GradScaler("cpu", init_scale=1e38))
        return TrainingState.create({"D": nn.Linear(3, 2)}, {"D": ["D"]}, [], options, CPU, precision)

    state = create()
    before = state.networks["D"].weight.detach().clone()
    loss = state.networks["D"](torch.full((1, 3), 1e3)).sum()
    backward_and_step(loss, state.optimizers["D"], state.precision.scaler)
    assert torch.equal(state.networks["D"].weight, before), "the step was skipped"
    create().load({**state.to_checkpoint(), "step": 1})


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_change_of_the_learning_rate_keeps_the_ratio(as_tensor):
    options = VanillaOptions(d_optimizer="muon", lr=0.25, d_lr=0.5)
    networks = {name: nn.Linear(3, 2) for name in "GD"}
    state = TrainingState.create(networks, {"G": ["G"], "D": ["D"]}, [], options, CPU, choose_precision("off", CPU))
    groups = {name: optimizer.param_groups[0] for name, optimizer in state.optimizers.items()}
    if as_tensor:  # as on CUDA
        for group in groups.values():
            group["lr"] = torch.tensor(group["lr"])
    state.set_learning_rate(0.125)
    assert {name: float(group["lr"]) for name, group in groups.items()} == {"G": 0.125, "D": 0.25}


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_the_learning_rate_of_d(kind):
    weights = [nn.Parameter(torch.ones(2, 3))]
    options = VanillaOptions(d_optimizer=kind, lr=0.25, d_lr=0.5)
    for group, expected in (("D", (0.5, 2)), ("G", (0.25, 1))):
        settings = build_optimizer(group, weights, options).param_groups[0]
        assert (settings["lr"], settings.get("lr_ratio", 1)) == expected
