"""Networks: generators and discriminators, built from a handful of layers.

Shapes are written for 64x64 images and c = conv_dim. Every layer but the last of a network is followed by a
normalization and a ReLU; a convolution has a bias only where no normalization follows.

    DCGenerator          z (B, noise_size, 1, 1) -> images (B, 3, S, S) in [-1, 1]
    DCDiscriminator      images (B, 3, S, S) -> logits (B, 1, 1, 1)
    PatchDiscriminator   images (B, 3, S, S) -> logits (B, 1, S/16, S/16), each of which sees 46x46 pixels
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

NORMS = {
    "instance": nn.InstanceNorm2d,
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

IMAGE_SIZES = (32, 64, 128, 256)


def _lookup(table: dict, name: str, what: str):
    """Return table[name]; an unknown name raises a ValueError that lists the valid ones."""
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(map(str, table))}")
    return table[name]


def _count_doublings(image_size: int) -> int:
    """Return how many times 4x4 must be doubled to reach `image_size`: 64 -> 4. Raises ValueError for other sizes."""
    if image_size not in IMAGE_SIZES:
        raise ValueError(f"image size {image_size} is not supported; choose from {', '.join(map(str, IMAGE_SIZES))}")
    return int(math.log2(image_size)) - 2


# ----------------------------------------------------------------------------------------------------------------------
# Layers


def merge_upsample_into_kernel(weight: Tensor) -> Tensor:
    """Return the transposed-convolution kernel that equals nearest x2 up-sampling, then a 3x3 convolution.

    Seen from one axis, the two copies of an input pixel share taps, so that every output pixel is a sum over two input
    pixels. As a stride-2 transposed convolution the taps are (w2, w1 + w2, w0 + w1, w0): the reversed taps, added to
    themselves moved by one.

    Args:
        weight: (out, in, 3, 3), the kernel of the convolution that follows the up-sampling.

    Returns:
        (in, out, 4, 4), for F.conv_transpose2d with stride 2 and padding 1.
    """
    kernel = weight.flip(2, 3).transpose(0, 1)  # (in, out, 3, 3)
    kernel = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))  # (in, out, 4, 3)
    return F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))  # (in, out, 4, 4)


class UpConv(nn.Conv2d):
    """Nearest x2 up-sampling, padding of 1 and a 3x3 convolution, computed as one transposed convolution.

    (B, in, H, W) -> (B, out, 2H, 2W). Same parameters and, to rounding, the same result as
    nn.Upsample(scale_factor=2) and nn.Conv2d(in, out, 3, padding=1), with 2.25 times fewer multiplications and no
    up-sampled tensor.

    Args:
        padding_mode: "zeros" or "reflect". Reflection of an up-sampled image repeats its border pixel (each pixel
            stands there twice), so it is replication of the small image before the transposed convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool, padding_mode: str = "zeros"):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias, padding_mode=padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        kernel = merge_upsample_into_kernel(self.weight)
        if self.padding_mode == "zeros":
            return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)  # (B, out, 2H, 2W)
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")  # (B, in, H + 2, W + 2)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=3)  # (B, out, 2H, 2W)


class ReflectConv(nn.Conv2d):
    """3x3 convolution with reflection padding: (B, in, H, W) -> (B, out, H, W).

    Pads by joining slices: PyTorch's own reflection padding has no deterministic gradient on CUDA.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool):
        super().__init__(in_channels, out_channels, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :, 1:2], x, x[:, :, -2:-1]], dim=2)  # (B, in, H + 2, W)
        x = torch.cat([x[:, :, :, 1:2], x, x[:, :, :, -2:-1]], dim=3)  # (B, in, H + 2, W + 2)
        return super().forward(x)  # (B, out, H, W)


class Deconv(nn.ConvTranspose2d):
    """Transposed convolution k4 s2 p1: (B, in, H, W) -> (B, out, 2H, 2W). It has no border to pad by reflection."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool, padding_mode: str = "zeros"):
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1, bias=bias)


UPSAMPLES = {
    "nearest": UpConv,
    "deconv": Deconv,
}


class LatentConv(nn.Conv2d):
    """Convolution k4 s1 p3 of a 1x1 input, computed as the matrix product that it is.

    (B, in, 1, 1) -> (B, out, 4, 4). Same parameters and result as nn.Conv2d(in, out, 4, padding=3): 15 of the 16
    pixels under the kernel are padding, so output pixel (i, j) is the input times tap (3 - i, 3 - j).
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool):
        super().__init__(in_channels, out_channels, 4, padding=3, bias=bias)

    def forward(self, z: Tensor) -> Tensor:
        matrix = self.weight.flip(2, 3).transpose(0, 1).flatten(1)  # (in, out * 16)
        x = (z.flatten(1) @ matrix).view(-1, self.out_channels, 4, 4)  # (B, out, 4, 4)
        return x if self.bias is None else x + self.bias.view(1, -1, 1, 1)


class ConvStage(nn.Sequential):
    """A convolution, then normalization and ReLU.

    Args:
        conv: class of the convolution; called with (in_channels, out_channels, ..., bias=...).
        norm: a key of NORMS. The bias of the convolution is dropped where a normalization would undo it.
    """

    def __init__(self, conv: type[nn.Module], in_channels: int, out_channels: int, *args, norm: str, **kwargs):
        normalize = _lookup(NORMS, norm, "norm")
        super().__init__(
            conv(in_channels, out_channels, *args, bias=norm == "none", **kwargs),
            normalize(out_channels),
            nn.ReLU(),
        )


def init_weights(network: nn.Module, init_type: str) -> None:
    """Initialize every convolution of `network` in place; `init_type` is a key of INITS."""
    init = _lookup(INITS, init_type, "init_type")
    if init is None:
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            init(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# ----------------------------------------------------------------------------------------------------------------------
# Generators


class DCGenerator(nn.Module):
    """Generator of DCGAN (Radford et al. 2015, arXiv:1511.06434), with up-sampling by nearest + conv or by deconv.

    z (B, noise_size, 1, 1) -> images (B, 3, S, S) in [-1, 1]. For S = 64: 4x4 at 8c, then up to 4c, 2c, c and 3
    channels. Smaller sizes drop stages from the 4x4 end; larger ones add stages at 8c. At 256 each stage has a second
    convolution, and the padding is by reflection.

    Args:
        image_size: 32, 64, 128 or 256; anything else raises ValueError.
        upsample: "nearest" (nearest x2, conv 3x3) or "deconv" (transposed conv k4 s2 p1).
    """

    def __init__(
        self,
        image_size: int = 64,
        conv_dim: int = 32,
        noise_size: int = 100,
        norm: str = "instance",
        upsample: str = "nearest",
        init_type: str = "pytorch",
    ):
        super().__init__()
        doublings = _count_doublings(image_size)
        up = _lookup(UPSAMPLES, upsample, "upsample")
        self.noise_size = noise_size
        # Channels at 4x4, 8x8, ..., S/2: c next to the image, doubled at each halving of the size, at most 8c.
        widths = [conv_dim * min(8, 2**i) for i in reversed(range(doublings))]
        large = image_size == 256
        padding_mode = "reflect" if large else "zeros"

        layers: list[nn.Module] = [ConvStage(LatentConv, noise_size, widths[0], norm=norm)]  # (B, 8c, 4, 4)
        for c_in, c_out in pairwise(widths):
            layers.append(ConvStage(up, c_in, c_out, padding_mode=padding_mode, norm=norm))  # (B, c_out, 2H, 2W)
            if large:
                layers.append(ConvStage(ReflectConv, c_out, c_out, norm=norm))  # (B, c_out, 2H, 2W)
        layers.append(up(widths[-1], 3, bias=True, padding_mode=padding_mode))  # (B, 3, S, S)
        layers.append(nn.Tanh())
        self.layers = nn.Sequential(*layers)
        init_weights(self, init_type)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)  # (B, 3, S, S)


# ----------------------------------------------------------------------------------------------------------------------
# Discriminators


def _normalize_spectrum(network: nn.Module) -> None:
    """Divide the kernel of every convolution by its largest singular value (Miyato et al. 2018, arXiv:1802.05957)."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d):
            spectral_norm(module)


class _Discriminator(nn.Module):
    """Convolutions k4 s2 p1 to c, 2c, 4c, ... (at most 8c) channels, each of which halves the image, then a last one.

    Args:
        halvings: number of stages before the last convolution.
        last_stride, last_padding: of the last convolution, k4 to one channel.
    """

    def __init__(
        self,
        halvings: int,
        last_stride: int,
        last_padding: int,
        conv_dim: int,
        norm: str,
        use_spectral_norm: bool,
        init_type: str,
    ):
        super().__init__()
        widths = [3] + [conv_dim * min(8, 2**i) for i in range(halvings)]
        stages = [
            ConvStage(nn.Conv2d, c_in, c_out, 4, 2, 1, norm=norm)  # (B, c_out, H/2, W/2)
            for c_in, c_out in pairwise(widths)
        ]
        self.layers = nn.Sequential(*stages, nn.Conv2d(widths[-1], 1, 4, last_stride, last_padding))
        init_weights(self, init_type)
        if use_spectral_norm:
            _normalize_spectrum(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class DCDiscriminator(_Discriminator):
    """Discriminator of DCGAN: images (B, 3, S, S) -> logits (B, 1, 1, 1).

    For 64x64: convolutions to c, 2c, 4c, 8c channels give 4x4, then one k4 convolution gives the logit. Other image
    sizes have fewer or more halvings.

    Args:
        image_size: 32, 64, 128 or 256; anything else raises ValueError.
        norm: a key of NORMS.
        use_spectral_norm: spectral normalization of every convolution, beside `norm`.
        init_type: a key of INITS.
    """

    def __init__(
        self,
        image_size: int = 64,
        conv_dim: int = 32,
        norm: str = "instance",
        use_spectral_norm: bool = False,
        init_type: str = "pytorch",
    ):
        super().__init__(_count_doublings(image_size), 1, 0, conv_dim, norm, use_spectral_norm, init_type)


class PatchDiscriminator(_Discriminator):
    """Discriminator of patches: images (B, 3, S, S) -> logits (B, 1, S/16, S/16), with a receptive field of 46x46.

    Convolutions to c, 2c, 4c and 1 channels: DCDiscriminator for 64x64 with one layer less, so that each logit judges
    a patch (Isola et al. 2017, arXiv:1611.07004). The same layers serve every image size. Arguments as above.
    """

    def __init__(
        self,
        image_size: int = 64,
        conv_dim: int = 32,
        norm: str = "instance",
        use_spectral_norm: bool = False,
        init_type: str = "pytorch",
    ):
        _count_doublings(image_size)  # refuses the sizes that the generators refuse
        super().__init__(3, 2, 1, conv_dim, norm, use_spectral_norm, init_type)


DISCRIMINATORS = {
    "dc": DCDiscriminator,
    "patch": PatchDiscriminator,
}
