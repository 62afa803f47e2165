"""Models of the CycleGAN authors' repository, junyanz/pytorch-CycleGAN-and-pix2pix, as checkpoints of this program.

That repository saves the state dict of each network in a file of its own: latest_net_G_A.pth, latest_net_G_B.pth,
latest_net_D_A.pth, latest_net_D_B.pth of a CycleGAN, latest_net_G.pth of one generator; pretrained ones are called
horse2zebra.pth. Read are ResNet generators and 70x70 discriminators with instance norm. Their networks are ours:
--gen resnet_9blocks --upsample deconv and --disc patch70. Only the names of the layers differ, and a bias before an
instance norm is left out, because the norm subtracts it.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import shorten

if TYPE_CHECKING:
    from torch import Tensor

AUTHORS = "pytorch-CycleGAN-and-pix2pix"
# Their network -> ours. G_A translates from A to B, which are X and Y here. D_A judges what G_A makes: images of Y.
NETWORKS = {"G": "G_XtoY", "G_A": "G_XtoY", "G_B": "G_YtoX", "D_A": "D_Y", "D_B": "D_X"}
_DISCRIMINATOR = {"model.0": "layers.0.0", "model.2": "layers.1.0", "model.5": "layers.2.0", "model.8": "layers.3.0",
                  "model.11": "layers.4"}  # fmt: skip
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of instance norm before PyTorch 0.4; not used


def find_files(folder: Path, label: str = "latest") -> dict[str, Path]:
    """Return the files of their networks in a folder: our name of the network -> path.

    Args:
        label: the start of the file names, "latest" or an epoch.
    """
    paths = [(ours, folder / f"{label}_net_{theirs}.pth") for theirs, ours in NETWORKS.items()]
    return {ours: path for ours, path in paths if path.is_file()}


def name_of(path: Path) -> str:
    """Return our name of the generator in a file of theirs: G_YtoX of latest_net_G_B.pth, else G_XtoY."""
    return NETWORKS["G_B"] if path.stem.endswith("_net_G_B") else NETWORKS["G"]


def to_our_names(content: Any, name: str) -> "dict[str, Tensor]":
    """Return the weights of their network under our names.

    Args:
        content: what their file contains.
        name: our name of the network; a D is a discriminator.

    Raises:
        ValueError: the content is something else; the message says what, as far as its keys tell it.
    """
    from torch import Tensor  # here, because report.py imports this module and does not need torch

    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        raise ValueError(f"it contains a {type(content).__name__}")
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"it contains a dict with {shorten([*content], 3)}")
    weights = {key.removeprefix("module."): value for key, value in content.items()}
    weights = {key: value for key, value in weights.items() if key.rpartition(".")[2] not in _STATISTICS}
    blocks = len({match[1] for key in weights if (match := re.match(r"model\.(\d+)\.conv_block\.", key))})
    is_discriminator = not blocks and {"model.0.weight", "model.2.weight", "model.11.weight"} <= weights.keys()
    if any(key.startswith("model.model.") for key in weights):
        raise ValueError(f"it is a U-Net generator of {AUTHORS}; only its ResNet generators can be read")
    if not blocks and not is_discriminator:
        raise ValueError(f"it is a state dict of another program, with {shorten([*weights], 3)}")
    if is_discriminator != name.startswith("D"):
        kind = "discriminator" if is_discriminator else "generator"
        raise ValueError(f"it is a {kind} of {AUTHORS}; a {'generator' if is_discriminator else 'discriminator'} "
                         "is needed")  # fmt: skip
    if any(key.endswith(".weight") and value.dim() == 1 for key, value in weights.items()):
        raise ValueError(f"it is a network of {AUTHORS} with batch norm; only networks with instance norm can be read")
    return _rename(weights, _DISCRIMINATOR if is_discriminator else _generator_names(weights, blocks))


def _generator_names(weights: "dict[str, Tensor]", blocks: int) -> dict[str, str]:
    """Return the convolutions of a ResNet generator: their name -> ours."""
    second = 6 if "model.10.conv_block.6.weight" in weights else 5  # a dropout between the convolutions counts
    names = {"model.1": "layers.0.0", "model.4": "layers.1.0", "model.7": "layers.2.0"}
    for block in range(blocks):
        names[f"model.{10 + block}.conv_block.1"] = f"layers.{3 + block}.layers.0.0"
        names[f"model.{10 + block}.conv_block.{second}"] = f"layers.{3 + block}.layers.1.0"
    names[f"model.{10 + blocks}"] = f"layers.{3 + blocks}.0"
    names[f"model.{13 + blocks}"] = f"layers.{4 + blocks}.0"
    names[f"model.{17 + blocks}"] = f"layers.{5 + blocks}"
    return names


def _rename(weights: "dict[str, Tensor]", names: dict[str, str]) -> "dict[str, Tensor]":
    """Return the kernels under our names, and the biases that no norm follows: those of the ends without a norm.

    Raises:
        ValueError: a weight is missing or unknown, or the images are not RGB.
    """
    first, last = next(iter(names)), [*names][-1]
    keeps_bias = {last} if last != "model.11" else {first, last}
    needed = {f"{name}.weight" for name in names} | {f"{name}.bias" for name in keeps_bias}
    unknown = sorted(weights.keys() - needed - {f"{name}.bias" for name in names})
    missing = sorted(needed - weights.keys())
    if missing or unknown:
        what = f"without {missing[0]}" if missing else f"with {unknown[0]}"
        raise ValueError(f"it is a network of another shape than those of {AUTHORS}: {what}")
    colors = {weights[f"{first}.weight"].shape[1], 3 if last == "model.11" else len(weights[f"{last}.weight"])}
    if colors != {3}:
        channels = " and ".join(map(str, sorted(colors)))
        raise ValueError(f"it is a network of {AUTHORS} for images of {channels} channels; only RGB can be read")
    kept = {key: key.rpartition(".") for key in weights if key in needed}
    return {f"{names[layer]}.{part}": weights[key] for key, (layer, _, part) in kept.items()}


def to_checkpoint(networks: "dict[str, dict[str, Tensor]]") -> dict[str, Any]:
    """Return networks of theirs as the content of a checkpoint of cycle_gan.py, with the options that describe them.

    Args:
        networks: our name -> weights, the result of `to_our_names`; at least one generator.
    """
    G = next(weights for name, weights in networks.items() if name.startswith("G"))
    D = next((weights for name, weights in networks.items() if name.startswith("D")), {})
    blocks = sum(key.endswith("layers.0.0.weight") for key in G) - 1
    options = {
        "gen": "resnet_6blocks" if blocks == 6 else "resnet_9blocks",
        "n_res_blocks": blocks,
        "g_conv_dim": len(G["layers.0.0.weight"]),
        "upsample": "deconv",
        "norm": "instance",
    }
    if D:
        options |= {"disc": "patch70", "d_conv_dim": len(D["layers.0.0.weight"])}
    return {"script": "cycle_gan.py", "step": 0, "options": options, "networks": networks, "ema": {}, "origin": AUTHORS}
