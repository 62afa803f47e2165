"""Building blocks of networks: normalizations, initializations, stages and residual blocks."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class InstanceNorm(nn.InstanceNorm2d):
    """Instance normalization without weights, on a CPU as a group normalization with one group per channel.

    PyTorch implements instance norm as a batch norm over B * C channels, which takes twice as long on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, x.shape[1], eps=self.eps) if x.device.type == "cpu" else super().forward(x)


NORMS = {
    "instance": InstanceNorm,
    "batch": nn.BatchNorm2d,
    "none": nn.Identity,
}


# Initialization of the convolutions. `pytorch` leaves the default of nn.Conv2d (Kaiming uniform with a = sqrt(5)).
INITS = {
    "pytorch": None,
    "normal": lambda weight: nn.init.normal_(weight, 0.0, 0.02),
    "xavier": nn.init.xavier_normal_,
    "kaiming": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "orthogonal": nn.init.orthogonal_,
}


def choose(registry: dict[str, Any], name: str, what: str) -> Any:
    """Return registry[name]; an unknown name raises a ValueError that lists the valid ones."""
    if name not in registry:
        raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(registry)}")
    return registry[name]


class ConvStage(nn.Sequential):
    """A convolution, then normalization and ReLU.

    Args:
        conv: class of the convolution; called with (in_channels, out_channels, ..., bias=...).
        norm: a key of NORMS. The bias of the convolution is dropped where a normalization would undo it.
        activation: class of the activation after the normalization.
    """

    def __init__(
        self,
        conv: Callable[..., nn.Module],
        in_channels: int,
        out_channels: int,
        *args,
        norm: str,
        activation: Callable[[], nn.Module] = nn.ReLU,
        **kwargs,
    ):
        normalize = choose(NORMS, norm, "norm")
        super().__init__(
            conv(in_channels, out_channels, *args, bias=norm == "none", **kwargs),
            normalize(out_channels),
            activation(),
        )


class ModulatedStage(nn.Module):
    """A ConvStage whose normalized channels are scaled and shifted by linear functions of the latent.

    A normalization removes contrast and mean of every channel; here z brings them back, x * (1 + a(z)) + b(z), so that
    images can differ in light and color as a whole (Chen et al. 2019, "On Self Modulation for Generative Adversarial
    Networks", arXiv:1810.01365, with a linear function in place of a network of two layers).

    Args:
        stage: the stage; `channels` come out of it.
        noise_size: length of the latent.
    """

    def __init__(self, stage: ConvStage, channels: int, noise_size: int):
        super().__init__()
        self.stage = stage
        self.modulation = nn.Linear(noise_size, 2 * channels)
        nn.init.normal_(self.modulation.weight, std=0.5 / noise_size**0.5)  # a and b: a deviation of about 0.3
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        conv, norm, activation = self.stage
        x, (scale, shift) = conv(x), self.modulation(z.flatten(1)).chunk(2, dim=1)  # (B, C, H, W); (B, C) each
        if self.training and isinstance(norm, InstanceNorm) and x.device.type == "cpu":
            # One operation, which takes about half of the time: every channel of every image is a group.
            weight, bias = (1 + scale).flatten(), shift.flatten()  # (B * C,)
            x = F.group_norm(x.reshape(1, -1, *x.shape[2:]), len(weight), weight, bias, norm.eps).view_as(x)
        else:
            x = norm(x) * (1 + scale[..., None, None]) + shift[..., None, None]
        return activation(x)  # as stage(x): (B, C, H, W)


def conv_chain(conv: Callable[..., nn.Module], widths: list[int], *args, norm: str) -> list[nn.Module]:
    """Return a ConvStage from each width to the next."""
    return [ConvStage(conv, c_in, c_out, *args, norm=norm) for c_in, c_out in pairwise(widths)]


class ResidualBlock(nn.Module):
    """x + F(x), (B, C, H, W) -> (B, C, H, W) (He et al. 2015, arXiv:1512.03385).

    F is one convolution 3x3 with its normalization and ReLU, or two of them, the second without ReLU (as in the paper
    of CycleGAN).

    Args:
        conv: class of the convolutions, which keep the size.
        convs: 1 or 2.
    """

    def __init__(self, conv: type[nn.Module], channels: int, convs: int, norm: str):
        super().__init__()
        stages = [ConvStage(conv, channels, channels, norm=norm)]
        if convs == 2:
            stages.append(ConvStage(conv, channels, channels, norm=norm, activation=nn.Identity))
        self.layers = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # (B, C, H, W)


def init_weights(network: nn.Module, init_type: str) -> None:
    """Initialize every convolution of `network` in place; `init_type` is a key of INITS."""
    init = choose(INITS, init_type, "init_type")
    if init is None:
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            init(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def add_spectral_norm(network: nn.Module) -> None:
    """Divide the kernel of every convolution by its largest singular value (Miyato et al. 2018, arXiv:1802.05957)."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d):
            spectral_norm(module)
