"""The options of the two training scripts, as frozen dataclasses. A flag overrides the preset, a preset the default."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from options.common import CommonOptions
from options.fields import IMAGE_SIZES, NOISE_PARTS, option
from options.presets import CYCLEGAN_PRESETS, DCGAN_PRESETS, Preset


@dataclass(frozen=True, kw_only=True)
class VanillaOptions(CommonOptions):
    """The options of vanilla_gan.py."""

    SCRIPT: ClassVar[str] = "vanilla_gan.py"
    PRESETS: ClassVar[Mapping[str, Preset]] = DCGAN_PRESETS

    # fmt: off
    data: str | None = option(
        None, "folder of images, or a name below data/; default: the embedded toy cats", "Data", resumable=True,
        metavar="FOLDER", is_path=True, keeps_absolute=True)
    num_epochs: int = option(100, "passes over the images", "Training", at_least=1, resumable=True)
    conv_dim: int = option(32, "channels of the layers next to the image", "Networks", at_least=1)
    noise_size: int = option(100, "length of the latent z", "Networks", at_least=1)
    self_modulation: bool = option(
        False, "the latent z scales and shifts every layer of G but the last (Chen et al. 2019): more varied images",
        "Networks")
    fine_channels: int = option(
        0, "channels of one more layer of G, at the size of the image, for fine details; 0: none", "Networks",
        at_least=0)
    split_noise: bool = option(
        False, "with --self_modulation: every layer has a part of z of its own (BigGAN, Brock et al. 2019)", "Networks")
    lambda_modes: float = option(
        0.0, "weight of the mode seeking loss (Mao et al. 2019): different latents give different images",
        "Objective", at_least=0)
    lambda_codes: float = option(
        0.0, "weight of the loss that draws each training image from a latent of its own, so that none is forgotten",
        "Objective", at_least=0)
    code_range: float = option(
        1.0, "the latents of --lambda_codes have numbers between -R and R, random latents between -1 and 1; a smaller "
        "R gives samples that differ more from the training images, a few in wrong colors", "Objective",
        above=0, at_most=1, metavar="R", needs="lambda_codes")
    disc: str = option(
        "dc", "discriminator; dc: one logit per image, patch: one per 46x46 patch", "Networks",
        choices=("dc", "patch"))
    upsample: str = option(
        "nearest", "generator's up-sampling; nearest: x2 then conv 3x3, deconv: transposed conv k4", "Networks",
        choices=("nearest", "deconv"))
    # fmt: on

    def losses_of_pairs(self) -> list[str]:
        """Return the losses of this run that work on pairs of images, as messages refer to them."""
        return [self.describe_flag(name) for name in ("lambda_modes", "lambda_codes") if getattr(self, name)]

    def check_combinations(self) -> None:
        """Raise ValueError if options contradict each other."""
        super().check_combinations()
        if self.split_noise and not self.self_modulation:
            raise ValueError(
                "--split_noise: only the layers of --self_modulation have parts of z; add that flag or --no-split_noise"
            )
        parts = NOISE_PARTS[self.image_size] + (self.fine_channels > 0)
        if self.split_noise and self.noise_size < parts:
            raise ValueError(
                f"--noise_size: {self.noise_size} is less than the {parts} parts of --split_noise; "
                f"use at least {parts}, or --no-split_noise"
            )
        losses = self.losses_of_pairs()
        if losses and self.batch_size == 1:
            raise ValueError(
                f"{losses[0]}: works on pairs of images, and --batch_size is 1; use at least 2, or "
                + " ".join(f"{loss.split()[0]} 0" for loss in losses)
            )
        if self.lambda_codes and self.data_aug != "basic":
            raise ValueError(
                f"{self.describe_flag('lambda_codes')}: a code stands for one fixed image, and --data_aug "
                f"{self.data_aug} changes the images at random; use --data_aug basic, or --lambda_codes 0"
            )


@dataclass(frozen=True, kw_only=True)
class CycleOptions(CommonOptions):
    """The options of cycle_gan.py."""

    SCRIPT: ClassVar[str] = "cycle_gan.py"
    PRESETS: ClassVar[Mapping[str, Preset]] = CYCLEGAN_PRESETS
    DATA_FLAGS: ClassVar[tuple[str, ...]] = ("X", "Y", "data")

    # fmt: off
    X: str | None = option(
        None, "folder of images of domain X, or a name below data/", "Data", resumable=True, metavar="FOLDER",
        is_path=True, keeps_absolute=True)
    Y: str | None = option(
        None, "folder of images of domain Y, or a name below data/", "Data", resumable=True, metavar="FOLDER",
        is_path=True, keeps_absolute=True)
    data: str | None = option(
        None, "instead of --X and --Y: folder with trainA and trainB, or a name below data/; testA and testB are "
        "used for the grids; default: the embedded toy cats", "Data", resumable=True, metavar="FOLDER", is_path=True,
        keeps_absolute=True)
    image_size: int = option(
        64, "side of the square images, in pixels: from 32 on, divisible by the stride of the generators; 32, 64, 128 "
        "or 256 for --disc dc", "Data", at_least=32)
    train_iters: int = option(10_000, "number of iterations", "Training", at_least=1, resumable=True)
    pool_size: int = option(
        0, "size of the pool of past fakes shown to D (50 in the CycleGAN paper); 0: no pool", "Training", at_least=0)

    gen: str = option(
        "cycle", "generators; cycle: convolutions k4 s2, residual blocks, up-sampling; resnet_*: those of the CycleGAN "
        "paper, but only with --upsample deconv and --g_conv_dim 64 (see --preset cyclegan_paper)", "Networks",
        choices=("cycle", "resnet_6blocks", "resnet_9blocks"))
    n_res_blocks: int | None = option(
        None, "residual blocks of a generator; default: 3 for cycle, else as the name says", "Networks", at_least=0)
    res_block_convs: int | None = option(
        None, "convolutions of a residual block; default: 1 for cycle, else 2", "Networks", choices=(1, 2))
    n_downsample: int = option(
        2, "number of stride-2 convolutions in a generator", "Networks", at_least=1, at_most=5)
    upsample: str = option(
        "nearest", "up-sampling of the generators; nearest: x2 then conv 3x3, deconv: transposed conv", "Networks",
        choices=("nearest", "deconv"))
    g_conv_dim: int = option(32, "channels of the generators' layers next to the image", "Networks", at_least=1)
    disc: str = option(
        "dc", "discriminators; dc: one logit per image; patch, patch70, patch94: one per 46x46, 70x70 (CycleGAN "
        "paper), 94x94 patch", "Networks", choices=("dc", "patch", "patch70", "patch94"))
    d_conv_dim: int = option(32, "channels of the discriminators' first layer", "Networks", at_least=1)

    use_cycle_consistency_loss: bool = option(
        False, "add the cycle-consistency loss: penalize the difference between images and their reconstructions",
        "Objective")
    cycle_loss: str = option(
        "L1", "distance of the reconstructions; SSIM: 0.84 (1 - SSIM) + 0.16 L1", "Objective",
        choices=("L1", "L2", "SSIM"), aliases=("--loss_type",), needs="use_cycle_consistency_loss")
    lambda_cycle: float = option(
        10.0, "weight of the cycle-consistency loss, in both directions", "Objective", at_least=0,
        needs="use_cycle_consistency_loss")
    use_identity_loss: bool = option(
        False, "add the identity loss (L1): a generator should leave images of its target domain unchanged",
        "Objective")
    lambda_identity: float | None = option(
        None, "weight of the identity loss; default: half of --lambda_cycle; in the CycleGAN authors' code it is a "
        "factor on lambda, so their 0.5 is 5 here", "Objective", at_least=0, needs="use_identity_loss")
    # fmt: on

    def check_combinations(self) -> None:
        super().check_combinations()
        if self.data is not None and (self.X, self.Y) != (None, None):
            raise ValueError(f"--data: {self.data} beside --X or --Y; give either --data, or --X and --Y")
        if (self.X is None) != (self.Y is None):
            given, missing = ("X", "Y") if self.Y is None else ("Y", "X")
            raise ValueError(f"--{missing}: missing beside --{given} {getattr(self, given)}; give both folders")
        stride = 2**self.n_downsample
        if self.image_size % stride or self.image_size < 4 * stride:
            raise ValueError(
                f"--image_size: {self.image_size} cannot be halved {self.n_downsample} times (--n_downsample) to 4x4 "
                f"or more; use a multiple of {stride} from {max(32, 4 * stride)} on"
            )
        if self.disc == "dc" and self.image_size not in IMAGE_SIZES:
            raise ValueError(f"--image_size: {self.image_size} with --disc dc; use 32, 64, 128 or 256, or --disc patch")
        if 0 < self.pool_size < self.batch_size:
            raise ValueError(
                f"--pool_size: {self.pool_size} is less than a batch of {self.batch_size}; use at least that, or 0"
            )
