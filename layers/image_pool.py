"""The pool of past fakes of a CycleGAN."""

import torch
from torch import Tensor, nn


class ImagePool(nn.Module):
    """A buffer of past generated images that D is trained on again (Shrivastava et al. 2017, arXiv:1612.07828).

    The pool is part of the checkpoint. It keeps images as float32, so that a run can continue at another precision. It
    never waits for the device.

    Args:
        size: number of images in the pool, at least the batch size; 0: no pool, `forward` returns its input.
    """

    images: Tensor  # (size, 3, H, W) from the first batch on

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.filled = 0
        self.register_buffer("images", torch.empty(0))

    @property
    def is_full(self) -> bool:
        """Whether the pool is full: from now on `forward` does the same at every call."""
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
        """Put generated images (B, 3, H, W) into the pool and return as many, new or from the pool.

        While the pool fills, it keeps each new image and returns it too. Afterwards, with a chance of one half, a new
        image is exchanged for one of the pool; else it is returned itself. No two exchange the same place.
        """
        if self.size == 0:
            return images
        images = images.float()
        if self.filled == 0:
            self.images = images.new_zeros(self.size, *images.shape[1:])
        count = min(len(images), self.size - self.filled)  # number of images that still fit
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
