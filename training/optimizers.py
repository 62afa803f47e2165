"""The optimizers of the networks: Adam, and Muon, which moves matrices along orthogonal directions."""

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

if TYPE_CHECKING:
    from options.common import CommonOptions


class _Eager(Optimizer):
    """An optimizer with PyTorch's own methods, but without the decorators around them.

    The decorators are for torch.compile only, and import torch._dynamo, 900 modules that take nearly as long as the
    rest of PyTorch.
    """

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)


class EagerAdam(_Eager, Adam):
    """Adam (Kingma & Ba 2015, arXiv:1412.6980) as PyTorch computes it."""

    step = torch.no_grad()(inspect.unwrap(Adam.step))


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return the matrix (m, n) with the same singular vectors, and all singular values between 0.68 and 1.21.

    Five steps of X <- (a + b X X^T + c (X X^T)^2) X, with the coefficients of Jordan et al. 2024. Each step multiplies
    X from the left by a small square matrix. Only the product of these matrices meets X itself, which takes less than
    half of the time for the kernels of D. Singular values below 0.0015 of the matrix's norm become smaller than 0.68.
    """
    matrix = matrix / matrix.norm().clamp(min=1e-12)  # singular values of at most 1
    square = matrix @ matrix.T  # X X^T, (m, m)
    product = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    for _ in range(5):
        factor = torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315)
        factor.diagonal().add_(3.4445)
        product = factor @ product
        square = factor @ square @ factor
    return product @ matrix


class Muon(_Eager):
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for weights of one or more dimensions.

    A kernel counts as a matrix with a row for each index of its first dimension, a vector as a matrix of one row. The
    momentum M is the mean of past gradients with decay rate beta1, and a step is

        W <- W - lr * sqrt(max(rows, columns)) * orthogonalize(M)

    So a layer changes by about the same amount in every direction, also where its gradient is small, and the root mean
    square of a change is 0.7 to 1.1 times lr. The authors use Nesterov's momentum, and Adam for vectors and for the
    first and last layers; here all weights have the same rule, and those of one row move along their gradient. Unlike
    torch.optim.Muon, it takes kernels, and its learning rate may be a tensor, as a CUDA graph needs.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float | Tensor, beta1: float):
        super().__init__(params, {"lr": lr, "beta1": beta1})
        for group in self.param_groups:  # from the start: with fp16 the first steps may be skipped
            for weight in group["params"]:
                self.state[weight]["momentum"] = torch.zeros_like(weight, requires_grad=False)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum = self.state[weight]["momentum"].lerp_(weight.grad, 1 - group["beta1"])
                matrix = momentum.flatten(1) if momentum.ndim > 1 else momentum[None]
                scale = group["lr"] * max(matrix.shape) ** 0.5
                weight.sub_(orthogonalize(matrix).view_as(weight) * scale)


def build_optimizer(group: str, parameters: list[nn.Parameter], options: "CommonOptions") -> Optimizer:
    """Return the optimizer of the networks of a group: "D" follows `--d_optimizer` and `--d_lr`, others have Adam.

    A learning rate other than `--lr` is recorded as "lr_ratio", its ratio to `--lr`.
    """
    if group == "D" and options.d_optimizer == "muon":
        optimizer: Optimizer = Muon(parameters, options.lr, options.beta1)
    else:
        optimizer = EagerAdam(parameters, options.lr, (options.beta1, options.beta2), fused=True)
    if group == "D" and options.d_lr is not None:
        optimizer.param_groups[0].update(lr=options.d_lr, lr_ratio=options.d_lr / options.lr)
    return optimizer


def require_moments(name: str, optimizer: Optimizer) -> None:
    """Raise ValueError unless the optimizer's moments have the shapes of the weights: PyTorch does not compare them."""
    keys = ("momentum",) if isinstance(optimizer, Muon) else ("exp_avg", "exp_avg_sq")
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for weight in weights:
        moments = optimizer.state[weight]
        if any(getattr(moments.get(key), "shape", None) != weight.shape for key in keys):
            raise ValueError(f"optimizer {name} lacks moments of the shapes of its weights")


def make_capturable(optimizer: Optimizer, device: torch.device) -> None:
    """On CUDA, let a CUDA graph contain the steps of an optimizer: it then reads the learning rate from the device."""
    optimizer._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]  # the warm-up steps are not
    for group in optimizer.param_groups:
        group["capturable"] = device.type == "cuda"
        lr = float(group["lr"])
        group["lr"] = torch.tensor(lr, device=device) if device.type == "cuda" else lr
