"""The loss of --lambda_features: generated images are to have the features that real images have."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.efficientnet import EfficientNetMaps, load_efficientnet
from losses import mean_kernel
from system.processes import count_processes, gather_batch, rank
from utils import UnavailableError, UserError

if TYPE_CHECKING:
    from data_loader import ImageBatches
    from options.common import CommonOptions

MAX_IMAGES = 1024  # real images to compare with; more say little more


class FeatureMatching(nn.Module):
    """The squared maximum mean discrepancy (MMD) between generated and real images, in features of EfficientNet-Lite0.

    mean k(f, f') - 2 mean k(f, r) + mean k(r, r'), for features f of generated and r of real images, without pairs of
    an image with itself: an unbiased estimate, near 0 if both have the same distribution, for any size of the batch (Li
    et al. 2015, "Generative Moment Matching Networks", arXiv:1502.02761; in features of a trained network: Santos et
    al. 2019, arXiv:1904.02762). The first term keeps generated images apart, the second draws them to real ones.
    Nothing here is trained.

    The features are two maps, reduced to 4x4 means and scaled to a variance of 1 over the real images.

    Args:
        batches: real images (B, 3, H, W) in [-1, 1], at least 2 in all.
        device: of the images.
    """

    def __init__(self, batches: Iterable[Tensor], device: torch.device):
        super().__init__()
        network, self.weights = load_efficientnet("--lambda_features")  # the SHA-256 of its weights
        self.maps = EfficientNetMaps(network).to(device)
        with torch.no_grad():
            real = torch.cat([self._extract(batch) for batch in batches])  # (N, d)
            self.mean, self.std = real.mean(dim=0), real.std(dim=0).clamp(min=1e-4)
            self.real = (real - self.mean) / self.std
            self.real_kernel = mean_kernel(self.real, self.real, leave_out_diagonal=True)

    def _extract(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) -> (B, d), d = 2432 for sizes from 64 on: 4x4 means of 40 and of 112 channels."""
        maps = self.maps(images)
        return torch.cat([F.avg_pool2d(x, max(1, x.shape[2] // 4)).flatten(1) for x in maps], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the loss of generated images (B, 3, H, W) in [-1, 1], with at least 2 images in all processes.

        Several processes compare the images of the whole batch, as one would.
        """
        with torch.autocast(images.device.type, enabled=False):
            own = (self._extract(images) - self.mean) / self.std  # (B, d)
            shards = [*gather_batch(own.detach()).split(len(own))]
            shards[rank()] = own
            generated = torch.cat(shards)
            among = mean_kernel(generated, generated, leave_out_diagonal=True)
            loss = among - 2 * mean_kernel(generated, self.real) + self.real_kernel
        # Gradients are averaged over processes, but each process has only those of its own images, which must be added.
        return loss + (count_processes() - 1) * (loss - loss.detach())


def build_feature_matching(data: "Mapping[str, ImageBatches]", options: "CommonOptions") -> dict[str, FeatureMatching]:
    """Return the loss for each domain, with features of its images as they enter training; empty without
    --lambda_features.

    Raises:
        UserError: EfficientNet-Lite0 is not installed.
    """
    if not options.lambda_features:
        return {}
    try:
        found = {}
        for domain, images in data.items():
            with torch.random.fork_rng():  # the same images, whether a run begins or continues
                torch.manual_seed(options.seed)
                steps = range(math.ceil(min(len(images), MAX_IMAGES) / images.batch_size))
                found[domain] = FeatureMatching((images.batch(step, whole=True) for step in steps), images.device)
        return found
    except UnavailableError as error:
        raise UserError(f"--lambda_features: {error}, or use --lambda_features 0") from None
