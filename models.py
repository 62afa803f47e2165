"""Networks: generators and discriminators, built from a handful of layers.

Shapes are written for 64x64 images and c = conv_dim. Every layer but the last of a network is followed by a
normalization and a ReLU; a convolution has a bias only where no normalization follows.

    DCGenerator              z (B, noise_size, 1, 1) -> images (B, 3, S, S) in [-1, 1]
    CycleGenerator           images (B, 3, H, W) -> images (B, 3, H, W) in [-1, 1]
    ResnetGenerator          the same, with the layers of the CycleGAN paper
    DCDiscriminator          images (B, 3, S, S) -> logits (B, 1, 1, 1)
    PatchDiscriminator       images (B, 3, H, W) -> logits (B, 1, H/16, W/16), each of which sees 46x46 pixels
    PaperPatchDiscriminator  the same with the layers of the CycleGAN paper: 70x70 pixels, or 94x94
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.parametrizations import spectral_norm


class InstanceNorm(nn.InstanceNorm2d):
    """Instance normalization without weights; on a CPU by group normalization with a group per channel.

    The same result in half the time: PyTorch's instance norm makes a batch norm of B * C channels of it.
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


def _is_exporting() -> bool:
    """Whether the network is being written down, for ONNX or TorchScript, rather than computed."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


# ----------------------------------------------------------------------------------------------------------------------
# Layers


def transposed_conv_by_phases(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Transposed convolution k4 s2 p1, (B, in, H, W) -> (B, out, 2H, 2W), as one 2x2 convolution to 4 * out channels.

    Output pixel (2i + a, 2j + b) sees 2x2 input pixels, from (i + a - 1, j + b - 1) on, through every other tap: each
    of the four phases (a, b) is a convolution of its own. The arithmetic is the same, but to the 3 channels of an image
    PyTorch's kernel reaches a tenth of a CPU's speed.

    Args:
        kernel: (in, out, 4, 4), as of F.conv_transpose2d.
        bias: (out,) or None.
    """
    (B, c_in, H, W), c_out = x.shape, kernel.shape[1]
    taps = kernel.flip(2, 3).view(c_in, c_out, 2, 2, 2, 2)  # (in, out, row, a, column, b)
    taps = taps.permute(1, 3, 5, 0, 2, 4).reshape(4 * c_out, c_in, 2, 2)  # (out a b, in, row, column)
    bias = None if bias is None else bias.repeat_interleave(4)
    phases = F.conv2d(x, taps, bias, padding=1).view(B, c_out, 2, 2, H + 1, W + 1)
    images = x.new_empty(B, c_out, H, 2, W, 2)
    for a, b in itertools.product((0, 1), repeat=2):
        images[:, :, :, a, :, b] = phases[:, :, a, b, a : a + H, b : b + W]
    return images.view(B, c_out, 2 * H, 2 * W)


class _ToImage(torch.autograd.Function):
    """`transposed_conv_by_phases`, with PyTorch's own gradients, which are fast."""

    @staticmethod
    def forward(ctx, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, kernel)
        return transposed_conv_by_phases(x, kernel, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, kernel = ctx.saved_tensors
        return torch.ops.aten.convolution_backward(
            grad, x, kernel, [kernel.shape[1]], [2, 2], [1, 1], [1, 1], True, [0, 0], 1, ctx.needs_input_grad
        )


class _OfImage(torch.autograd.Function):
    """Convolution k4 s2 p1, whose gradient for the image is `transposed_conv_by_phases`."""

    @staticmethod
    def forward(ctx, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(images, weight)
        return F.conv2d(images, weight, bias, 2, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        images, weight = ctx.saved_tensors
        of_images, of_weight, of_bias = ctx.needs_input_grad
        _, weight_grad, bias_grad = torch.ops.aten.convolution_backward(
            grad, images, weight, [len(weight)], [2, 2], [1, 1], [1, 1], False, [0, 0], 1, (False, of_weight, of_bias)
        )
        return transposed_conv_by_phases(grad, weight, None) if of_images else None, weight_grad, bias_grad


def _by_phases(x: Tensor, channels: int) -> bool:
    """Whether a transposed convolution of `x` to so many channels, or a gradient of that shape, is to go by phases."""
    is_slow = x.device.type == "cpu" and channels <= 4 and not torch.is_autocast_enabled("cpu")
    return is_slow and not _is_exporting()  # no file format knows our autograd functions


def upsample_matrix() -> Tensor:
    """Return (9, 16): what the 16 taps of a merged kernel are made of, for `merge_upsample_into_kernel`.

    Seen from one axis, the two copies of an input pixel share taps, so that every output pixel is a sum over two input
    pixels. As a stride-2 transposed convolution the taps are (w2, w1 + w2, w0 + w1, w0).
    """
    per_axis = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    return torch.kron(per_axis, per_axis).t().contiguous()


def merge_upsample_into_kernel(weight: Tensor, matrix: Tensor) -> Tensor:
    """Return the transposed-convolution kernel that equals nearest x2 up-sampling, then a 3x3 convolution.

    One matrix product: sums of slices take ten times as long, as long as the convolution itself.

    Args:
        weight: (out, in, 3, 3), the kernel of the convolution that follows the up-sampling.
        matrix: that of `upsample_matrix`, of the same type.

    Returns:
        (in, out, 4, 4), for F.conv_transpose2d with stride 2 and padding 1.
    """
    with torch.autocast(weight.device.type, enabled=False):  # rounded once, by the convolution
        kernel = weight.transpose(0, 1).flatten(2) @ matrix  # (in, out, 16)
    return kernel.unflatten(2, (4, 4))  # (in, out, 4, 4)


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
        self.register_buffer("matrix", upsample_matrix(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = merge_upsample_into_kernel(self.weight, self.matrix)
        if self.padding_mode == "zeros" and _by_phases(x, self.out_channels):
            return _ToImage.apply(x, kernel, self.bias)  # (B, out, 2H, 2W)
        if self.padding_mode == "zeros":
            return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)  # (B, out, 2H, 2W)
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")  # (B, in, H + 2, W + 2)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=3)  # (B, out, 2H, 2W)


def reflect_pad(x: Tensor, padding: int) -> Tensor:
    """Pad by reflection: (B, C, H, W) -> (B, C, H + 2 padding, W + 2 padding).

    Joins slices: PyTorch's own reflection padding has no deterministic gradient on CUDA.
    """
    p = padding
    if _is_exporting():  # which needs no gradient, and for which slices of an unknown size take minutes to reason about
        return F.pad(x, (p, p, p, p), mode="reflect")  # (B, C, H + 2p, W + 2p)
    x = torch.cat([x[:, :, 1 : p + 1].flip(2), x, x[:, :, -p - 1 : -1].flip(2)], dim=2)  # (B, C, H + 2p, W)
    return torch.cat([x[:, :, :, 1 : p + 1].flip(3), x, x[:, :, :, -p - 1 : -1].flip(3)], dim=3)  # (.., W + 2p)


class ReflectConv(nn.Conv2d):
    """Convolution with an odd kernel and reflection padding: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, *, bias: bool):
        super().__init__(in_channels, out_channels, kernel_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(reflect_pad(x, self.kernel_size[0] // 2))  # (B, out, H, W)


class Deconv(nn.ConvTranspose2d):
    """Transposed convolution k4 s2 p1: (B, in, H, W) -> (B, out, 2H, 2W). It has no border to pad by reflection."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool, padding_mode: str = "zeros"):
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if _by_phases(x, self.out_channels):
            return _ToImage.apply(x, self.weight, self.bias)  # (B, out, 2H, 2W)
        return super().forward(x)


class PaperDeconv(nn.ConvTranspose2d):
    """The CycleGAN paper's "fractional-strided convolution": k3 s2 p1, (B, in, H, W) -> (B, out, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool, padding_mode: str = "zeros"):
        super().__init__(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1, bias=bias)


UPSAMPLES = {
    "nearest": UpConv,
    "deconv": Deconv,
}


class Conv4x4(nn.Conv2d):
    """Convolution k4 p1: (B, in, H, W) -> (B, out, H/2, W/2), or (B, out, H - 1, W - 1) with a stride of 1."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2, *, bias: bool):
        super().__init__(in_channels, out_channels, 4, stride, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        halves = self.stride == (2, 2) and x.shape[2] % 2 == x.shape[3] % 2 == 0
        if _by_phases(x, self.in_channels) and x.requires_grad and halves:
            return _OfImage.apply(x, self.weight, self.bias)  # (B, out, H/2, W/2)
        return super().forward(x)


class SameConv(nn.Conv2d):
    """Convolution 3x3 with zero padding: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)


class LatentConv(nn.Conv2d):
    """Convolution k4 s1 p3 of a 1x1 input, computed as the matrix product that it is.

    (B, in, 1, 1) -> (B, out, 4, 4). Same parameters and result as nn.Conv2d(in, out, 4, padding=3): 15 of the 16
    pixels under the kernel are padding, so output pixel (i, j) is the input times tap (3 - i, 3 - j).
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool):
        super().__init__(in_channels, out_channels, 4, padding=3, bias=bias)

    def forward(self, z: Tensor) -> Tensor:
        matrix = self.weight.transpose(0, 1).flatten(1)  # (in, out * 16)
        x = (z.flatten(1) @ matrix).view(-1, self.out_channels, 4, 4).flip(2, 3)  # (B, out, 4, 4)
        return x if self.bias is None else x + self.bias.view(1, -1, 1, 1)


class ConvStage(nn.Sequential):
    """A convolution, then normalization and ReLU.

    Args:
        conv: class of the convolution; called with (in_channels, out_channels, ..., bias=...).
        norm: a key of NORMS. The bias of the convolution is dropped where a normalization would undo it.
        activation: what follows the normalization.
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
        normalize = _lookup(NORMS, norm, "norm")
        super().__init__(
            conv(in_channels, out_channels, *args, bias=norm == "none", **kwargs),
            normalize(out_channels),
            activation(),
        )


def _chain(conv: Callable[..., nn.Module], widths: list[int], *args, norm: str) -> list[nn.Module]:
    """Return a ConvStage from each width to the next."""
    return [ConvStage(conv, c_in, c_out, *args, norm=norm) for c_in, c_out in pairwise(widths)]


class ResidualBlock(nn.Module):
    """x + F(x), (B, C, H, W) -> (B, C, H, W) (He et al. 2015, arXiv:1512.03385).

    F is one convolution 3x3 with its normalization and ReLU, or two, of which the second has no ReLU (the block of the
    CycleGAN paper).

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


class _Translator(nn.Module):
    """Encoder, residual blocks, decoder: images (B, 3, H, W) -> images (B, 3, H, W) in [-1, 1].

    H and W may be any multiples of `stride`, the size of one pixel between encoder and decoder.
    """

    def __init__(self, stages: list[nn.Module], stride: int, init_type: str):
        super().__init__()
        self.stride = stride
        self.layers = nn.Sequential(*stages, nn.Tanh())
        init_weights(self, init_type)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2] % self.stride or images.shape[3] % self.stride:
            raise ValueError(f"images of {images.shape[2]}x{images.shape[3]} pixels; use multiples of {self.stride}")
        return self.layers(images)  # (B, 3, H, W)


class CycleGenerator(_Translator):
    """Generator of 16-726's CycleGAN. For 64x64: 16x16 at 2c, residual blocks, up to c and 3 channels.

    Args:
        conv_dim: c, the channels after the first convolution; each halving doubles them.
        n_res_blocks: residual blocks.
        n_downsample: halvings, by convolutions k4 s2, and as many doublings.
        res_block_convs: convolutions in a residual block, 1 or 2.
        norm, upsample, init_type: keys of NORMS, UPSAMPLES and INITS.
    """

    def __init__(
        self,
        conv_dim: int = 32,
        n_res_blocks: int = 3,
        n_downsample: int = 2,
        res_block_convs: int = 1,
        norm: str = "instance",
        upsample: str = "nearest",
        init_type: str = "pytorch",
    ):
        up = _lookup(UPSAMPLES, upsample, "upsample")
        widths = [conv_dim * 2**i for i in range(n_downsample)]  # c, 2c, ...
        stages = [
            *_chain(Conv4x4, [3, *widths], norm=norm),  # (B, 2c, H/4, W/4)
            *[ResidualBlock(SameConv, widths[-1], res_block_convs, norm) for _ in range(n_res_blocks)],
            *_chain(up, widths[::-1], norm=norm),  # (B, c, H/2, W/2)
            up(conv_dim, 3, bias=True),  # (B, 3, H, W)
        ]
        super().__init__(stages, 2**n_downsample, init_type)


class ResnetGenerator(_Translator):
    """Generator of the CycleGAN paper (Zhu et al. 2017, arXiv:1703.10593; Johnson et al. 2016, arXiv:1603.08155).

    c7s1-c, d2c, d4c, residual blocks, u2c, uc, c7s1-3 in the words of the paper, with reflection padding around the
    7x7 convolutions and in the blocks. With upsample "deconv" the u layers are the paper's k3 s2 transposed
    convolutions. A bias that a normalization would undo is left out, which the paper's public code keeps.

    Args: as CycleGenerator.
    """

    def __init__(
        self,
        conv_dim: int = 64,
        n_res_blocks: int = 9,
        n_downsample: int = 2,
        res_block_convs: int = 2,
        norm: str = "instance",
        upsample: str = "nearest",
        init_type: str = "pytorch",
    ):
        up = _lookup(UPSAMPLES, upsample, "upsample")
        up = PaperDeconv if up is Deconv else partial(up, padding_mode="reflect")
        widths = [conv_dim * 2**i for i in range(n_downsample + 1)]  # c, 2c, 4c
        stages = [
            ConvStage(ReflectConv, 3, conv_dim, 7, norm=norm),  # (B, c, H, W)
            *_chain(nn.Conv2d, widths, 3, 2, 1, norm=norm),  # (B, 4c, H/4, W/4)
            *[ResidualBlock(ReflectConv, widths[-1], res_block_convs, norm) for _ in range(n_res_blocks)],
            *_chain(up, widths[::-1], norm=norm),  # (B, c, H, W)
            ReflectConv(conv_dim, 3, 7, bias=True),  # (B, 3, H, W)
        ]
        super().__init__(stages, 2**n_downsample, init_type)


GENERATORS = {
    "cycle": CycleGenerator,
    "resnet_6blocks": partial(ResnetGenerator, n_res_blocks=6),
    "resnet_9blocks": ResnetGenerator,
}


def sample_latents(
    count: int, noise_size: int, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Return z (count, noise_size, 1, 1), uniform in [-1, 1]."""
    return torch.rand(count, noise_size, 1, 1, device=device, generator=generator) * 2 - 1


def build_dc_generator(options: Any) -> DCGenerator:
    """Return the generator of a DCGAN as its VanillaOptions describe it, z -> images."""
    return DCGenerator(
        image_size=options.image_size,
        conv_dim=options.conv_dim,
        noise_size=options.noise_size,
        norm=options.norm,
        upsample=options.upsample,
        init_type=options.init_type,
    )


def build_translator(options: Any) -> nn.Module:
    """Return one generator of a CycleGAN as its CycleOptions describe it, images -> images."""
    chosen = {"n_res_blocks": options.n_res_blocks, "res_block_convs": options.res_block_convs}
    return _lookup(GENERATORS, options.gen, "generator")(
        conv_dim=options.g_conv_dim,
        n_downsample=options.n_downsample,
        norm=options.norm,
        upsample=options.upsample,
        init_type=options.init_type,
        **{name: value for name, value in chosen.items() if value is not None},
    )


# ----------------------------------------------------------------------------------------------------------------------
# Discriminators


def _normalize_spectrum(network: nn.Module) -> None:
    """Divide the kernel of every convolution by its largest singular value (Miyato et al. 2018, arXiv:1802.05957)."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d):
            spectral_norm(module)


class _Discriminator(nn.Module):
    """Convolutions k4 p1 to c, 2c, 4c, ... (at most 8c) channels, then one to the logits: images -> (B, 1, h, w).

    Args:
        strides: of the convolutions before the last.
        last_stride, last_padding: of the last convolution, k4 to one channel.
        conv_dim: c.
        norm: a key of NORMS.
        use_spectral_norm: spectral normalization of every convolution, beside `norm`.
        init_type: a key of INITS.
        first_norm: normalization after the first convolution, if it is another; a key of NORMS.
        activation: what follows each normalization.
    """

    def __init__(
        self,
        strides: Sequence[int],
        last_stride: int,
        last_padding: int,
        conv_dim: int = 32,
        norm: str = "instance",
        use_spectral_norm: bool = False,
        init_type: str = "pytorch",
        first_norm: str | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ):
        super().__init__()
        widths = [3] + [conv_dim * min(8, 2**i) for i in range(len(strides))]
        norms = [first_norm or norm] + [norm] * (len(strides) - 1)
        stages = [
            ConvStage(Conv4x4, c_in, c_out, stride, norm=name, activation=activation)  # (B, c_out, H/2, W/2)
            for (c_in, c_out), stride, name in zip(pairwise(widths), strides, norms, strict=True)
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
        others: of _Discriminator, from conv_dim on.
    """

    def __init__(self, image_size: int = 64, **others):
        super().__init__([2] * _count_doublings(image_size), 1, 0, **others)


class PatchDiscriminator(_Discriminator):
    """Discriminator of patches: images (B, 3, H, W) -> logits (B, 1, H/16, W/16), with a receptive field of 46x46.

    Convolutions to c, 2c, 4c and 1 channels: DCDiscriminator for 64x64 with one layer less, so that each logit judges
    a patch (Isola et al. 2017, arXiv:1611.07004).

    Args:
        image_size: not used, since the same layers serve images of any size.
        others: of _Discriminator, from conv_dim on.
    """

    def __init__(self, image_size: int = 64, **others):
        super().__init__([2, 2, 2], 2, 1, **others)


class PaperPatchDiscriminator(_Discriminator):
    """The 70x70 PatchGAN of the CycleGAN paper: images (B, 3, H, W) -> logits (B, 1, H/8 - 2, W/8 - 2).

    Convolutions to c, 2c, 4c (s2), 8c and 1 (s1) channels, leaky ReLUs of slope 0.2, no normalization after the first.

    Args:
        image_size: not used, since the same layers serve images of any size.
        last_strides: of the last two convolutions; 2 gives a receptive field of 94x94 and logits (B, 1, H/32, W/32).
        others: of _Discriminator, from conv_dim on.
    """

    def __init__(self, image_size: int = 64, last_strides: int = 1, **others):
        leaky = partial(nn.LeakyReLU, 0.2)
        strides = [2, 2, 2, last_strides]
        super().__init__(strides, last_strides, 1, first_norm="none", activation=leaky, **others)


DISCRIMINATORS = {
    "dc": DCDiscriminator,
    "patch": PatchDiscriminator,
    "patch70": PaperPatchDiscriminator,
    "patch94": partial(PaperPatchDiscriminator, last_strides=2),
}


# ----------------------------------------------------------------------------------------------------------------------
# Passes and memory


def in_one_pass(network: nn.Module, batches: Sequence[Tensor], norm: str) -> list[Tensor]:
    """Return the network's result for each batch. Batch norm mixes what passes together, so with it they pass alone.

    One pass of 32 images takes three quarters of the time of two of 16 on a CPU.
    """
    if norm == "batch" or len(batches) == 1:
        return [network(images) for images in batches]
    return list(network(torch.cat(list(batches))).split([len(images) for images in batches]))


class ImagePool(nn.Module):
    """A history of generated images, to show D some of them again (Shrivastava et al. 2017, arXiv:1612.07828).

    Its state is part of the checkpoint. Images are kept as float32, so that a run can go on at another precision.
    Nothing is read back from the device.

    Args:
        size: number of images kept, no less than a batch; 0 for none, and `forward` returns what it gets.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.filled = 0
        self.register_buffer("images", torch.empty(0))  # (size, 3, H, W) once there are some

    @property
    def is_steady(self) -> bool:
        """Whether `forward` does the same at every call from now on."""
        return self.filled == self.size

    def get_extra_state(self) -> int:
        return self.filled

    def set_extra_state(self, state: int) -> None:
        self.filled = state

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        self.images = torch.empty_like(state_dict[prefix + "images"], device=self.images.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Exchange generated images (B, 3, H, W) for as many.

        While the pool fills, images are kept and also returned. Then each one changes places with one of the pool, or
        is returned itself, with equal chance. The places are drawn without repetition.
        """
        if self.size == 0:
            return images
        images = images.float()
        if self.filled == 0:
            self.images = images.new_zeros(self.size, *images.shape[1:])
        count = min(len(images), self.size - self.filled)  # images that there is room for
        self.images[self.filled : self.filled + count] = images[:count]
        self.filled += count
        if count == len(images):
            return images
        new = images[count:]
        places = torch.rand(self.size, device=images.device).argsort()[: len(new)]
        swap = torch.rand(len(new), 1, 1, 1, device=images.device) < 0.5
        old = self.images[places]
        self.images[places] = torch.where(swap, new, old)
        return torch.cat([images[:count], torch.where(swap, old, new)])
