"""Augmentation of the data set: pure functions of stored images and of uniform numbers in [0, 1)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from utils import from_uint8, uniform_to_index


def _flip_columns(u: Tensor, width: int) -> Tensor:
    """(B,) -> (B, width): the columns to read, from right to left where u < 0.5."""
    columns = torch.arange(width, device=u.device)
    return torch.where(u[:, None] < 0.5, width - 1 - columns, columns)


def basic(images: Tensor, size: int, u: Tensor) -> Tensor:
    """No augmentation: uint8 (B, 3, S, S) -> [-1, 1]."""
    return from_uint8(images)


def deluxe(images: Tensor, size: int, u: Tensor) -> Tensor:
    """Random crop and horizontal flip: uint8 (B, 3, R, R) -> (B, 3, S, S) in [-1, 1]."""
    room = images.shape[-1] - size + 1
    rows = uniform_to_index(u[:, 0], room)[:, None] + torch.arange(size, device=u.device)  # (B, S)
    cols = uniform_to_index(u[:, 1], room)[:, None] + _flip_columns(u[:, 2], size)  # (B, S)
    image, channel = torch.arange(len(images), device=u.device), torch.arange(3, device=u.device)
    index = (image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], cols[:, None, None, :])
    return from_uint8(images[index])  # (B, 3, S, S)


_ATTEMPTS = 10  # torchvision gives up after 10 boxes that do not fit


def random_boxes(u: Tensor, side: int) -> Tensor:
    """Draw boxes as torchvision's RandomResizedCrop does: area share 0.08 to 1, aspect ratio 3/4 to 4/3.

    Args:
        u: (B, 22): for each of 10 attempts a number for the area and one for the ratio, then two for the place.
        side: the side of the square images.

    Returns:
        (B, 4) int64: top, left, height, width.
    """
    area = (0.08 + 0.92 * u[:, :_ATTEMPTS]) * side**2  # (B, 10)
    ratio = torch.exp((2 * u[:, _ATTEMPTS : 2 * _ATTEMPTS] - 1) * math.log(4 / 3))
    widths, heights = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (widths <= side) & (heights <= side)
    first = fits.int().argmax(dim=1, keepdim=True)  # the first attempt that fits
    any_fits = fits.any(dim=1)
    width = torch.where(any_fits, widths.gather(1, first)[:, 0], side)
    height = torch.where(any_fits, heights.gather(1, first)[:, 0], side)
    top = uniform_to_index(u[:, -2], side - height + 1)
    left = uniform_to_index(u[:, -1], side - width + 1)
    return torch.stack([top, left, height, width], dim=1)


def _resize_matrix(start: Tensor, length: Tensor, side: int, size: int) -> Tensor:
    """Return (B, size, side): row i of matrix b holds the weights of pixels [start, start + length) in output pixel i.

    Bilinear with antialias, as torch.nn.functional.interpolate computes it: a triangle as wide as the larger of an
    input and an output pixel.
    """
    scale = (length / size)[:, None, None]  # input pixels per output pixel
    reach = scale.clamp(min=1)
    center = start[:, None, None] + (torch.arange(size, device=start.device)[:, None] + 0.5) * scale  # (B, size, 1)
    pixel = torch.arange(side, device=start.device)
    weight = (1 - (pixel + 0.5 - center).abs() / reach).clamp(min=0)
    weight = weight * ((pixel >= start[:, None, None]) & (pixel < (start + length)[:, None, None]))
    return weight / weight.sum(dim=2, keepdim=True)


def resized_crop(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut boxes (B, 4), one per image, and resize them to (B, 3, S, S), bilinear with antialias, as float."""
    side = images.shape[-1]
    rows = _resize_matrix(boxes[:, 0], boxes[:, 2], side, size)  # (B, S, R)
    cols = _resize_matrix(boxes[:, 1], boxes[:, 3], side, size)  # (B, S, R)
    return rows[:, None] @ images.float() @ cols[:, None].transpose(2, 3)  # (B, 3, S, S)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel of each image (B, 3, H, W) to the full range [0, 255]; constant channels stay."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = (images - low) * (255 / (high - low).clamp(min=1e-6))
    return torch.where(high > low, stretched, images)


def deluxe_autocontrast(images: Tensor, size: int, u: Tensor) -> Tensor:
    """RandomResizedCrop, horizontal flip, and autocontrast for half of the images: (B, 3, S, S) in [-1, 1]."""
    boxes = random_boxes(u[:, :22], images.shape[-1])
    crops = resized_crop(images, boxes, size).round()  # or autocontrast would amplify rounding noise in flat images
    columns = _flip_columns(u[:, 22], size)[:, None, None, :].expand_as(crops)
    crops = crops.gather(3, columns)
    return from_uint8(torch.where(u[:, 23].view(-1, 1, 1, 1) < 0.5, autocontrast(crops), crops))


class Augmentation(NamedTuple):
    """One choice of `--data_aug`.

    Attributes:
        stored_size: image size S -> side R of the squares to decode.
        uniforms: how many numbers in [0, 1) one image needs.
        apply: (stored images, S, uniforms) -> float images.
    """

    stored_size: Callable[[int], int]
    uniforms: int
    apply: Callable[[Tensor, int, Tensor], Tensor]


AUGMENTATIONS = {
    "basic": Augmentation(lambda size: size, 0, basic),
    "deluxe": Augmentation(lambda size: int(1.1 * size), 3, deluxe),
    # As in the CycleGAN paper (arXiv:1703.10593): 286 for crops of 256.
    "paper": Augmentation(lambda size: round(size * 286 / 256), 3, deluxe),
    # Twice the size, so that a crop of a quarter of the area still has one stored pixel per output pixel.
    "deluxe_autocontrast": Augmentation(lambda size: 2 * size, 24, deluxe_autocontrast),
}
