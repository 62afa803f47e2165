"""The first layers of EfficientNet-Lite0, as features."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class EfficientNetMaps(nn.Module):
    """Two feature maps of EfficientNet-Lite0: images (B, 3, H, W) in [-1, 1] -> [(B, 40, H/8, W/8), (B, 112, H/16,
    W/16)].

    Each batch norm is a part of the convolution before it, which gives the same result in less time. Everything is in
    float32: in bf16 the gradient of this network takes longer on a CPU.

    Args:
        network: EfficientNet-Lite0 in eval mode; it is used up.
    """

    BLOCKS = (4, 10)  # whose results are returned; the blocks after them are left out

    def __init__(self, network: Any):
        super().__init__()
        self.stem = nn.Sequential(fuse_conv_bn_eval(network._conv_stem, network._bn0), nn.ReLU6())
        self.blocks = network._blocks[: self.BLOCKS[-1] + 1]
        for block in self.blocks:
            for conv, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
                if hasattr(block, conv):
                    setattr(block, conv, fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm)))
                    setattr(block, norm, nn.Identity())

    def forward(self, images: Tensor) -> list[Tensor]:
        with torch.autocast(images.device.type, enabled=False):
            x, maps = self.stem(images.float().contiguous(memory_format=torch.channels_last)), []
            for index, block in enumerate(self.blocks):
                x = block(x)
                if index in self.BLOCKS:
                    maps.append(x)
        return maps
