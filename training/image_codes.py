"""Codes for --lambda_codes: a latent of its own for each training image."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from system.processes import broadcast
from utils import UserError

if TYPE_CHECKING:
    from data_loader import ImageBatches
    from options.training import VanillaOptions

PCA_SIZE = 32  # side to which images are reduced before their components are computed


def principal_codes(images: Tensor, noise_size: int, code_range: float) -> Tensor:
    """Return a code for each image, (N, noise_size, 1, 1): its principal components, replaced by ranks.

    The images, ordered by a component, get evenly spaced values of it. So similar images have similar codes, and each
    number of a code is uniform in [-code_range, code_range], with a range of 1 as in a random latent. If there are
    fewer components than numbers, the other numbers are random. Nothing depends on a seed.

    Args:
        images: uint8 (N, 3, S, S).
        code_range: above 0. With less than 1, random latents also have numbers beyond those of all codes.
    """
    small = torch.cat(
        [F.adaptive_avg_pool2d(part.float(), min(PCA_SIZE, part.shape[-1])) for part in images.split(256)]
    )
    small = small.flatten(1)  # (N, 3072)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        # Randomized: the last components that it finds are not exact, so it looks for 32 more than are used.
        components, _, _ = torch.pca_lowrank(small, min(noise_size + 32, *small.shape), niter=8)
        components = components[:, :noise_size]
        components = components * components.pow(3).sum(dim=0).sign()  # the algorithm leaves their signs open
        others = torch.rand(len(small), noise_size - components.shape[1])
    components = torch.cat([components, others], dim=1)  # (N, noise_size)
    ranks = components.argsort(dim=0).argsort(dim=0)
    return code_range * ((2 * ranks + 1) / len(small) - 1)[..., None, None]


class ImageCodes(nn.Module):
    """The codes of a run's images, which stay as they are. They are part of the checkpoint.

    G learns to draw each image from its code, as well as to please D (GLO, Bojanowski et al. 2018, "Optimizing the
    Latent Space of Generative Networks", arXiv:1707.05776, where the codes begin as principal components, too, and are
    trained). So no image of the folder is forgotten.

    Args:
        codes: (N, Z, 1, 1), in the order of the images.
        images: the images of the run.
    """

    codes: Tensor
    is_full = True  # as a pool that will not change

    def __init__(self, codes: Tensor, images: "ImageBatches"):
        super().__init__()
        self.images = images
        self.register_buffer("codes", codes)

    def forward(self) -> Tensor:
        """Return the codes of the images of the current batch, (B, Z, 1, 1)."""
        return self.codes[self.images.selected]


def build_image_codes(data: "dict[str, ImageBatches]", options: "VanillaOptions") -> dict[str, nn.Module]:
    """Return the codes of the images as {"codes": codes}; empty without --lambda_codes.

    Raises:
        UserError: the images are not in memory.
    """
    if not options.lambda_codes:
        return {}
    images = data["images"]
    if not images.is_cached:
        flag = options.describe_flag("lambda_codes")
        raise UserError(f"{flag}: needs all images in memory; use a larger --cache_gb, or a new run with "
                        "--lambda_codes 0")  # fmt: skip
    codes = principal_codes(images.images.cpu(), options.noise_size, options.code_range)
    codes = broadcast(codes)  # rounding differs between machines
    return {"codes": ImageCodes(codes.to(images.device), images)}
