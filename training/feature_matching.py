"""The loss of --lambda_features: generated images are to have the features that real images have."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from layers.efficientnet import EfficientNetMaps
from losses import mean_kernel
from metrics.efficientnet import load_efficientnet
from system.processes import count_processes, gather_batch, rank
from system.progress import ProgressBar
from utils import UnavailableError, UserError

if TYPE_CHECKING:
    from data_loader import ImageBatches
    from options.common import CommonOptions

MAX_IMAGES = 1024  # real images to compare with; more say little more
GRID = 4  # side of the maps that are compared


def mean_windows(size: int) -> Tensor:
    """Return a matrix (n, size) whose product with `size` values is the means of n windows, n = min(4, size).

    The windows are those of adaptive average pooling, whose gradient is not deterministic on a GPU.
    """
    n = min(GRID, size)
    matrix = torch.zeros(n, size)
    for i in range(n):
        start, end = i * size // n, -(-(i + 1) * size // n)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


class FeatureMatching(nn.Module):
    """The squared maximum mean discrepancy (MMD) between generated and real images, in features of EfficientNet-Lite0.

    mean k(f, f') - 2 mean k(f, r) + mean k(r, r'), for features f of generated and r of real images, without pairs of
    an image with itself: an unbiased estimate, near 0 if both have the same distribution, for any size of the batch (Li
    et al. 2015, "Generative Moment Matching Networks", arXiv:1502.02761; in features of a trained network: Santos et
    al. 2019, arXiv:1904.02762). The first term keeps generated images apart, the second draws them to real ones.
    Nothing here is trained.

    The features are two maps, reduced to 4x4 means. Each is divided by its standard deviation over the real images, or
    by half of the deviation of its channel where that is larger: else the corners of photos on a plain background,
    which are all alike, would outweigh everything.

    Args:
        batches: real images (B, 3, H, W) in [-1, 1]; images after the first `count` are not used.
        count: number of real images, at least 2.
        device: of the images.
    """

    def __init__(self, batches: Iterable[Tensor], count: int, device: torch.device):
        super().__init__()
        network, self.weights = load_efficientnet("--lambda_features")  # the SHA-256 of its weights
        self.maps = EfficientNetMaps(network).to(device)
        self.windows: dict[int, Tensor] = {}  # size of a map -> matrix of means
        with torch.no_grad():
            found = [torch.cat(maps)[:count] for maps in zip(*map(self._extract, batches), strict=True)]
            deviations = [torch.maximum(x.std(dim=0), x.std(dim=(0, 2))[:, None] / 2) for x in found]
            self.scale = torch.cat([deviation.flatten() for deviation in deviations])  # (d,)
            features = torch.cat([x.flatten(1) for x in found], dim=1)  # (N, d)
            self.mean = features.mean(dim=0)
            self.real = (features - self.mean) / self.scale
            self.real_kernel = mean_kernel(self.real, self.real, leave_out_diagonal=True)

    def _extract(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) -> [(B, 40, 16), (B, 112, 16)], fewer values for maps smaller than 4x4."""
        found = []
        for x in self.maps(images):
            for size in x.shape[2:]:
                if size not in self.windows:  # at the first call; a CUDA graph can contain the later ones
                    self.windows[size] = mean_windows(size).to(x)
            rows, columns = (self.windows[size] for size in x.shape[2:])
            found.append((rows @ x @ columns.T).flatten(2))
        return found

    def forward(self, images: Tensor) -> Tensor:
        """Return the loss of generated images (B, 3, H, W) in [-1, 1], with at least 2 images in all processes.

        If there are 4 or more, only every second one is compared: half of the work if B is even, and nearly as much is
        learned from a batch. Several processes compare the images of the whole batch, as one would.
        """
        leaves_out = len(images) * count_processes() >= 4
        is_even = len(images) % 2 == 0
        if leaves_out and is_even:
            images = images[::2]
        with torch.autocast(images.device.type, enabled=False):
            own = torch.cat([x.flatten(1) for x in self._extract(images)], dim=1)
            own = (own - self.mean) / self.scale  # (B, d)
            shards = [*gather_batch(own.detach()).split(len(own))]
            shards[rank()] = own
            generated = torch.cat(shards)
            if leaves_out and not is_even:  # which ones they are depends on the processes before
                generated = generated[::2]
            among = mean_kernel(generated, generated, leave_out_diagonal=True)
            loss = among - 2 * mean_kernel(generated, self.real) + self.real_kernel
        # Gradients are averaged over processes, but each process has only those of its own images, which must be added.
        return loss + (count_processes() - 1) * (loss - loss.detach())


def build_feature_matching(data: "Mapping[str, ImageBatches]", options: "CommonOptions") -> dict[str, FeatureMatching]:
    """Return the loss for each domain, with features of its images as they enter training; empty without
    --lambda_features.

    Raises:
        UserError: a domain has a single image, or EfficientNet-Lite0 is not installed.
    """
    if not options.lambda_features:
        return {}
    try:
        found = {}
        for domain, images in data.items():
            count = min(len(images), MAX_IMAGES)
            if count < 2:
                raise UserError(f"--lambda_features: needs at least 2 images, and {images.source.location} has 1; add "
                                "images, or use --lambda_features 0")  # fmt: skip
            steps = range(math.ceil(count / images.batch_size))
            device = images.device
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(options.seed)  # the same images, whether a run begins or continues
                shown = ProgressBar(steps, "features", "batches")
                batches = (images.batch(step, whole=True) for step in shown)
                found[domain] = FeatureMatching(batches, count, device)
        return found
    except UnavailableError as error:
        raise UserError(f"--lambda_features: {error}, or use --lambda_features 0") from None
