"""Differentiable augmentation of a batch of real or generated images, in D's update and in G's update.

DiffAugment (Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training", arXiv:2006.10738), as the
code of its authors computes it. An operation is a pure function of the images and of uniform numbers in [0, 1), so that
a test can fix the draws.
"""

import torch
from torch import Tensor

from system.processes import draw_shard
from utils import uniform_to_index


def _per_image(u: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)"""
    return u.view(-1, 1, 1, 1)


def brightness(x: Tensor, u: Tensor) -> Tensor:
    """Add a number in [-0.5, 0.5) to each image."""
    return x + _per_image(u[:, 0] - 0.5)


def saturation(x: Tensor, u: Tensor) -> Tensor:
    """Multiply each pixel's distance from its gray value (the mean of its channels) by a number in [0, 2)."""
    gray = x.mean(dim=1, keepdim=True)  # (B, 1, H, W)
    return gray + (x - gray) * _per_image(u[:, 0] * 2)


def contrast(x: Tensor, u: Tensor) -> Tensor:
    """Multiply each image's distance from its mean by a number in [0.5, 1.5)."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    return mean + (x - mean) * _per_image(u[:, 0] + 0.5)


class _Shift(torch.autograd.Function):
    """Move image b down by dy[b] and right by dx[b] pixels; pixels from outside are 0.

    The adjoint of a shift is the opposite shift, so the backward pass is a gather, too. A scatter would add in random
    order on a GPU, with another result in every run.
    """

    @staticmethod
    def forward(x: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows = torch.arange(height, device=x.device) - dy[:, None]  # (B, H): the row that each output row reads
        cols = torch.arange(width, device=x.device) - dx[:, None]  # (B, W)
        inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((cols >= 0) & (cols < width))[:, None, None, :]
        flat = rows.clamp(0, height - 1)[:, :, None] * width + cols.clamp(0, width - 1)[:, None, :]  # (B, H, W)
        index = flat.flatten(1)[:, None].expand(-1, x.shape[1], -1)  # (B, C, H * W)
        return x.flatten(2).gather(2, index).view_as(x) * inside  # (B, C, H, W)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, grad: Tensor):
        dy, dx = ctx.saved_tensors
        return _Shift.apply(grad, -dy, -dx), None, None


def translation(x: Tensor, u: Tensor) -> Tensor:
    """Shift each image by whole pixels, up to an eighth of its size (rounded) either way; the border is 0 (gray)."""
    reach_y, reach_x = ((length + 4) // 8 for length in x.shape[2:])  # int(length / 8 + 0.5)
    dy = uniform_to_index(u[:, 0], 2 * reach_y + 1) - reach_y  # (B,) in [-reach_y, reach_y]
    dx = uniform_to_index(u[:, 1], 2 * reach_x + 1) - reach_x
    return _Shift.apply(x, dy, dx)


def cutout(x: Tensor, u: Tensor) -> Tensor:
    """Set a rectangle of half the height and width (rounded) to 0 (gray). Its center is anywhere, so part of the
    rectangle may lie outside of the image."""

    def covered(length: int, u: Tensor) -> Tensor:
        """(B,) -> (B, length): whether a row or column lies in the rectangle."""
        size = (length + 1) // 2
        start = uniform_to_index(u, length + 1 - size % 2) - size // 2
        offset = torch.arange(length, device=x.device) - start[:, None]
        return (offset >= 0) & (offset < size)

    rows, cols = covered(x.shape[2], u[:, 0]), covered(x.shape[3], u[:, 1])
    return x * ~(rows[:, None, :, None] & cols[:, None, None, :])


# Name in a policy -> its operations, each with the number of uniforms that it needs per image.
POLICIES = {
    "color": ((brightness, 1), (saturation, 1), (contrast, 1)),
    "translation": ((translation, 2),),
    "cutout": ((cutout, 2),),
}


def parse_policy(policy: str) -> list[str]:
    """Split "color,translation,cutout" into names. Raises ValueError, which lists the valid ones, for any other."""
    names = [name.strip() for name in policy.split(",") if name.strip()]
    for name in names:
        if name not in POLICIES:
            raise ValueError(f"unknown DiffAugment operation {name!r}; choose from {', '.join(POLICIES)}")
    return names


def diff_augment(images: Tensor, policy: str, uniforms: Tensor | None = None) -> Tensor:
    """Augment each image of a batch with its own draws; gradients flow to `images`.

    Args:
        images: (B, C, H, W), in [-1, 1] or any range in which 0 is neutral. The result may leave the range.
        policy: names of POLICIES, separated by commas, applied in that order; "" returns the images as they are.
        uniforms: (B, K) in [0, 1), with K the number that the policy needs; drawn when None.

    Raises:
        ValueError: an unknown name in the policy.
    """
    operations = [operation for name in parse_policy(policy) for operation in POLICIES[name]]
    counts = [count for _, count in operations]
    if uniforms is None:
        uniforms = draw_shard(lambda count: torch.rand(count, sum(counts), device=images.device), len(images))
    for (augment, _), u in zip(operations, uniforms.split(counts, dim=1), strict=True):
        images = augment(images, u)
    return images
