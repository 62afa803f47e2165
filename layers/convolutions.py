"""Convolutions, and faster forms of some of them that give the same result up to rounding."""

import itertools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _is_exporting() -> bool:
    """Whether the network is being exported, to ONNX or TorchScript, rather than computed."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def transposed_conv_by_phases(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Transposed convolution k4 s2 p1, (B, in, H, W) -> (B, out, 2H, 2W), as one 2x2 convolution to 4 * out channels.

    Output pixel (2i + a, 2j + b) is a sum over 2x2 input pixels, from (i + a - 1, j + b - 1) on, with every other tap
    of the kernel: each of the four phases (a, b) is a convolution of its own. The arithmetic is the same, but with 3
    output channels PyTorch's own transposed convolution reaches only a tenth of a CPU's speed.

    Args:
        kernel: (in, out, 4, 4), as for F.conv_transpose2d.
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


class _ConvToImage(torch.autograd.Function):
    """`transposed_conv_by_phases`, with PyTorch's own gradients, which are fast."""

    @staticmethod
    def forward(ctx, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, kernel)
        return transposed_conv_by_phases(x, kernel, bias)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, kernel = ctx.saved_tensors
        return torch.ops.aten.convolution_backward(
            grad, x, kernel, [kernel.shape[1]], [2, 2], [1, 1], [1, 1], True, [0, 0], 1, ctx.needs_input_grad
        )


class _ConvFromImage(torch.autograd.Function):
    """Convolution k4 s2 p1, whose gradient for the image is `transposed_conv_by_phases`."""

    @staticmethod
    def forward(ctx, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(images, weight)
        return F.conv2d(images, weight, bias, 2, 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        images, weight = ctx.saved_tensors
        needs_images, *needs_weight_and_bias = ctx.needs_input_grad
        mask = (False, *needs_weight_and_bias)
        _, weight_grad, bias_grad = torch.ops.aten.convolution_backward(
            grad, images, weight, [len(weight)], [2, 2], [1, 1], [1, 1], False, [0, 0], 1, mask
        )
        return transposed_conv_by_phases(grad, weight, None) if needs_images else None, weight_grad, bias_grad


def _use_phases(x: Tensor, channels: int) -> bool:
    """Whether to use the four-phase form for a transposed convolution of `x`, or a gradient, to `channels` channels."""
    is_slow = x.device.type == "cpu" and channels <= 4 and not torch.is_autocast_enabled("cpu")
    return is_slow and not _is_exporting()  # exporters do not know our autograd functions


def upsample_matrix() -> Tensor:
    """Return (9, 16): the weights of the 9 old taps in each of the 16 taps of a merged kernel.

    Along one axis, up-sampling makes two copies of each input pixel, and both copies meet the kernel. So each output
    pixel is a sum over two input pixels, and the taps of the stride-2 transposed convolution are
    (w2, w1 + w2, w0 + w1, w0).
    """
    per_axis = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    return torch.kron(per_axis, per_axis).t().contiguous()


def merge_upsample_into_kernel(weight: Tensor, matrix: Tensor) -> Tensor:
    """Return the transposed-convolution kernel that equals nearest x2 up-sampling, then a 3x3 convolution.

    The kernel is computed by one matrix product; sums of slices would take ten times as long.

    Args:
        weight: (out, in, 3, 3), the kernel of the convolution that follows the up-sampling.
        matrix: the result of `upsample_matrix`, with the type of `weight`.

    Returns:
        (in, out, 4, 4), for F.conv_transpose2d with stride 2 and padding 1.
    """
    with torch.autocast(weight.device.type, enabled=False):  # the convolution rounds the kernel, and only once
        kernel = weight.transpose(0, 1).flatten(2) @ matrix  # (in, out, 16)
    return kernel.unflatten(2, (4, 4))  # (in, out, 4, 4)


class UpConv(nn.Conv2d):
    """Nearest x2 up-sampling, padding of 1 and a 3x3 convolution, computed as one transposed convolution.

    (B, in, H, W) -> (B, out, 2H, 2W). Same parameters and, to rounding, the same result as
    nn.Upsample(scale_factor=2) and nn.Conv2d(in, out, 3, padding=1), with 2.25 times fewer multiplications and no
    up-sampled tensor.

    Args:
        padding_mode: "zeros" or "reflect". Reflection of an up-sampled image repeats its border pixel (each pixel
            stands there twice), so the small image is padded by replication before the transposed convolution.
    """

    matrix: Tensor  # the result of `upsample_matrix`

    def __init__(
        self, in_channels: int, out_channels: int, bias: bool, padding_mode: Literal["zeros", "reflect"] = "zeros"
    ):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias, padding_mode=padding_mode)
        self.register_buffer("matrix", upsample_matrix(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = merge_upsample_into_kernel(self.weight, self.matrix)
        if self.padding_mode == "zeros" and _use_phases(x, self.out_channels):
            return _ConvToImage.apply(x, kernel, self.bias)  # (B, out, 2H, 2W)
        if self.padding_mode == "zeros":
            return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)  # (B, out, 2H, 2W)
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")  # (B, in, H + 2, W + 2)
        return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=3)  # (B, out, 2H, 2W)


def reflect_pad(x: Tensor, padding: int) -> Tensor:
    """Pad by reflection: (B, C, H, W) -> (B, C, H + 2 padding, W + 2 padding).

    Joins slices: PyTorch's own reflection padding has no deterministic gradient on CUDA.
    """
    p = padding
    if _is_exporting():  # an export needs no gradient, and takes minutes for slices of an unknown size
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
    """Transposed convolution k4 s2 p1: (B, in, H, W) -> (B, out, 2H, 2W). It has no padding, so no `padding_mode`."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool, padding_mode: str = "zeros"):
        super().__init__(in_channels, out_channels, 4, stride=2, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if _use_phases(x, self.out_channels):
            return _ConvToImage.apply(x, self.weight, self.bias)  # (B, out, 2H, 2W)
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
        if _use_phases(x, self.in_channels) and x.requires_grad and halves:
            return _ConvFromImage.apply(x, self.weight, self.bias)  # (B, out, H/2, W/2)
        return super().forward(x)


class SameConv(nn.Conv2d):
    """Convolution 3x3 with zero padding: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool):
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)


class LatentConv(nn.Conv2d):
    """Convolution k4 s1 p3 of a 1x1 input, computed as a matrix product.

    (B, in, 1, 1) -> (B, out, 4, 4). Same parameters and result as nn.Conv2d(in, out, 4, padding=3): 15 of the 16
    pixels under the kernel are padding, so output pixel (i, j) is the input times tap (3 - i, 3 - j).
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool):
        super().__init__(in_channels, out_channels, 4, padding=3, bias=bias)

    def forward(self, z: Tensor) -> Tensor:
        matrix = self.weight.transpose(0, 1).flatten(1)  # (in, out * 16)
        x = (z.flatten(1) @ matrix).view(-1, self.out_channels, 4, 4).flip(2, 3)  # (B, out, 4, 4)
        return x if self.bias is None else x + self.bias.view(1, -1, 1, 1)
