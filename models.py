"""Networks: generators and discriminators, built from the blocks in layers/.

Shapes are written for 64x64 images and c = conv_dim. Every layer but the last of a network is followed by a
normalization and a ReLU; a convolution has a bias only where no normalization follows.

    DCGenerator              z (B, noise_size, 1, 1) -> images (B, 3, S, S) in [-1, 1]
    CycleGenerator           images (B, 3, H, W) -> images (B, 3, H, W) in [-1, 1]
    ResnetGenerator          the same, with the layers of the CycleGAN paper
    DCDiscriminator          images (B, 3, S, S) -> logits (B, 1, 1, 1)
    PatchDiscriminator       images (B, 3, H, W) -> logits (B, 1, H/16, W/16), each of which sees 46x46 pixels
    PaperPatchDiscriminator  the same with the layers of the CycleGAN paper: 70x70 pixels, or 94x94
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from layers.blocks import ConvStage, ModulatedStage, ResidualBlock, add_spectral_norm, choose, conv_chain, init_weights
from layers.convolutions import UPSAMPLES, Conv4x4, Deconv, LatentConv, PaperDeconv, ReflectConv, SameConv
from options.fields import IMAGE_SIZES, NOISE_PARTS

if TYPE_CHECKING:
    from options.training import CycleOptions, VanillaOptions


def _count_doublings(image_size: int) -> int:
    """Return how many times 4x4 must be doubled to reach `image_size`: 64 -> 4. Raises ValueError for other sizes."""
    if image_size not in IMAGE_SIZES:
        raise ValueError(f"image size {image_size} is not supported; choose from {', '.join(map(str, IMAGE_SIZES))}")
    return int(math.log2(image_size)) - 2


# ----------------------------------------------------------------------------------------------------------------------
# Generators


class DCGenerator(nn.Module):
    """Generator of DCGAN (Radford et al. 2015, arXiv:1511.06434), with up-sampling by nearest + conv or by deconv.

    z (B, noise_size, 1, 1) -> images (B, 3, S, S) in [-1, 1]. For S = 64: 4x4 at 8c, then up to 4c, 2c, c and 3
    channels. Smaller sizes drop stages from the 4x4 end; larger ones add stages at 8c. At 256 each stage has a second
    convolution, and the padding is by reflection.

    Args:
        image_size: 32, 64, 128 or 256; anything else raises ValueError.
        upsample: "nearest" (nearest x2, conv 3x3) or "deconv" (transposed conv k4 s2 p1).
        self_modulation: whether z scales and shifts the channels of every stage; see ModulatedStage.
        fine_channels: channels of one more stage, at the size of the image; 0: none, as in the paper. Without it no
            layer with a ReLU works at this size.
        split_noise: whether, with self_modulation, the first convolution and each stage have a part of z of their own
            (BigGAN, Brock et al. 2019, arXiv:1809.11096). noise_size is then at least the number of parts.
    """

    def __init__(
        self,
        image_size: int = 64,
        conv_dim: int = 32,
        noise_size: int = 100,
        norm: str = "instance",
        upsample: str = "nearest",
        init_type: str = "pytorch",
        self_modulation: bool = False,
        split_noise: bool = False,
        fine_channels: int = 0,
    ):
        super().__init__()
        doublings = _count_doublings(image_size)
        up = choose(UPSAMPLES, upsample, "upsample")
        self.noise_size = noise_size
        # Channels at 4x4, 8x8, ..., S/2: c next to the image, doubled at each halving of the size, at most 8c.
        widths = [conv_dim * min(8, 2**i) for i in reversed(range(doublings))]
        large = image_size == 256
        padding_mode = "reflect" if large else "zeros"
        # Lengths of z for the first convolution, and for each stage.
        parts = torch.arange(noise_size).tensor_split(NOISE_PARTS[image_size] + (fine_channels > 0))
        self.parts = list(map(len, parts)) if split_noise else None
        lengths = iter(self.parts or [noise_size] * len(parts))

        def stage(conv: Callable[..., nn.Module], c_in: int, c_out: int, **kwargs) -> nn.Module:
            plain = ConvStage(conv, c_in, c_out, norm=norm, **kwargs)
            return ModulatedStage(plain, c_out, next(lengths)) if self_modulation else plain

        layers = [stage(LatentConv, next(lengths), widths[0])]  # (B, 8c, 4, 4)
        for c_in, c_out in pairwise(widths):
            layers.append(stage(up, c_in, c_out, padding_mode=padding_mode))  # (B, c_out, 2H, 2W)
            if large:
                layers.append(stage(ReflectConv, c_out, c_out))  # (B, c_out, 2H, 2W)
        if fine_channels:
            layers.append(stage(up, widths[-1], fine_channels, padding_mode=padding_mode))  # (B, fine_channels, S, S)
            layers.append((ReflectConv if large else SameConv)(fine_channels, 3, bias=True))  # (B, 3, S, S)
        else:
            layers.append(up(widths[-1], 3, bias=True, padding_mode=padding_mode))  # (B, 3, S, S)
        layers.append(nn.Tanh())
        self.layers = nn.Sequential(*layers)
        init_weights(self, init_type)

    def forward(self, z: Tensor) -> Tensor:
        parts = iter(z.split(self.parts, dim=1) if self.parts else [z] * len(self.layers))
        x = next(parts)
        for layer in self.layers:
            x = layer(x, next(parts)) if isinstance(layer, ModulatedStage) else layer(x)
        return x  # (B, 3, S, S)


class _Translator(nn.Module):
    """Encoder, residual blocks, decoder: images (B, 3, H, W) -> images (B, 3, H, W) in [-1, 1].

    H and W may be any multiples of `stride`, the size of one pixel between encoder and decoder.

    Args:
        conv_dim: c, the channels after the first convolution; each halving of the size doubles the channels.
        n_res_blocks: number of residual blocks.
        n_downsample: number of halvings in the encoder, and of doublings in the decoder.
        res_block_convs: convolutions in a residual block, 1 or 2.
        norm, upsample, init_type: keys of NORMS, UPSAMPLES and INITS.
    """

    res_block_conv: type[nn.Module]
    has_full_size_stage: bool  # whether the encoder begins with a stage that keeps the size

    def __init__(
        self,
        conv_dim: int = 32,
        n_res_blocks: int = 3,
        n_downsample: int = 2,
        res_block_convs: int = 1,
        norm: str = "instance",
        upsample: str = "nearest",
        init_type: str = "pytorch",
    ):
        super().__init__()
        self.stride = 2**n_downsample
        up = choose(UPSAMPLES, upsample, "upsample")
        widths = [conv_dim * 2**i for i in range(n_downsample + self.has_full_size_stage)]  # c, 2c, ...
        encoder = self.build_encoder(widths, norm)
        blocks = [ResidualBlock(self.res_block_conv, widths[-1], res_block_convs, norm) for _ in range(n_res_blocks)]
        self.layers = nn.Sequential(*encoder, *blocks, *self.build_decoder(widths, norm, up), nn.Tanh())
        init_weights(self, init_type)

    def build_encoder(self, widths: list[int], norm: str) -> list[nn.Module]:
        """Return the stages before the residual blocks; `widths` are the channels after each stage: c, 2c, ..."""
        raise NotImplementedError

    def build_decoder(self, widths: list[int], norm: str, up: Callable[..., nn.Module]) -> list[nn.Module]:
        """Return the stages after the residual blocks; `up` is the class of the layers that double the size."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2] % self.stride or images.shape[3] % self.stride:
            raise ValueError(f"images of {images.shape[2]}x{images.shape[3]} pixels; use multiples of {self.stride}")
        return self.layers(images)  # (B, 3, H, W)


class CycleGenerator(_Translator):
    """Generator of 16-726's CycleGAN. For 64x64: by convolutions k4 s2 to 16x16 at 2c, residual blocks, up to c and 3
    channels. Arguments as in _Translator."""

    res_block_conv, has_full_size_stage = SameConv, False

    def build_encoder(self, widths: list[int], norm: str) -> list[nn.Module]:
        return conv_chain(Conv4x4, [3, *widths], norm=norm)  # (B, 2c, H/4, W/4)

    def build_decoder(self, widths: list[int], norm: str, up: Callable[..., nn.Module]) -> list[nn.Module]:
        return [
            *conv_chain(up, widths[::-1], norm=norm),  # (B, c, H/2, W/2)
            up(widths[0], 3, bias=True),  # (B, 3, H, W)
        ]


class ResnetGenerator(_Translator):
    """Generator of the CycleGAN paper (Zhu et al. 2017, arXiv:1703.10593; Johnson et al. 2016, arXiv:1603.08155).

    c7s1-c, d2c, d4c, residual blocks, u2c, uc, c7s1-3 in the words of the paper, with reflection padding around the
    7x7 convolutions and in the blocks. With upsample "deconv" the u layers are the paper's k3 s2 transposed
    convolutions. Unlike in the paper's code, no bias precedes a normalization. Arguments as in _Translator.
    """

    res_block_conv, has_full_size_stage = ReflectConv, True

    def build_encoder(self, widths: list[int], norm: str) -> list[nn.Module]:
        return [
            ConvStage(ReflectConv, 3, widths[0], 7, norm=norm),  # (B, c, H, W)
            *conv_chain(nn.Conv2d, widths, 3, 2, 1, norm=norm),  # (B, 4c, H/4, W/4)
        ]

    def build_decoder(self, widths: list[int], norm: str, up: Callable[..., nn.Module]) -> list[nn.Module]:
        up = PaperDeconv if up is Deconv else partial(up, padding_mode="reflect")
        return [
            *conv_chain(up, widths[::-1], norm=norm),  # (B, c, H, W)
            ReflectConv(widths[0], 3, 7, bias=True),  # (B, 3, H, W)
        ]


_paper_generator = partial(ResnetGenerator, conv_dim=64, res_block_convs=2)
GENERATORS = {
    "cycle": CycleGenerator,
    "resnet_6blocks": partial(_paper_generator, n_res_blocks=6),
    "resnet_9blocks": partial(_paper_generator, n_res_blocks=9),
}


def sample_latents(
    count: int, noise_size: int, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Return z (count, noise_size, 1, 1), uniform in [-1, 1]."""
    return torch.rand(count, noise_size, 1, 1, device=device, generator=generator) * 2 - 1


def build_dc_generator(options: "VanillaOptions") -> DCGenerator:
    """Return the generator of a DCGAN that the options describe: z -> images."""
    return DCGenerator(
        image_size=options.image_size,
        conv_dim=options.conv_dim,
        noise_size=options.noise_size,
        norm=options.norm,
        upsample=options.upsample,
        init_type=options.init_type,
        self_modulation=options.self_modulation,
        split_noise=options.split_noise,
        fine_channels=options.fine_channels,
    )


def build_translator(options: "CycleOptions") -> nn.Module:
    """Return one generator of a CycleGAN that the options describe: images -> images."""
    chosen = {"n_res_blocks": options.n_res_blocks, "res_block_convs": options.res_block_convs}
    return choose(GENERATORS, options.gen, "generator")(
        conv_dim=options.g_conv_dim,
        n_downsample=options.n_downsample,
        norm=options.norm,
        upsample=options.upsample,
        init_type=options.init_type,
        **{name: value for name, value in chosen.items() if value is not None},
    )


# ----------------------------------------------------------------------------------------------------------------------
# Discriminators


class _Discriminator(nn.Module):
    """Convolutions k4 p1 to c, 2c, 4c, ... (at most 8c) channels, then one to the logits: images -> (B, 1, h, w).

    Args:
        strides: the strides of the convolutions before the last.
        last_stride, last_padding: stride and padding of the last convolution, k4 to one channel.
        conv_dim: c.
        norm: a key of NORMS.
        use_spectral_norm: spectral normalization of every convolution, in addition to `norm`.
        init_type: a key of INITS.
        first_norm: normalization after the first convolution, if it is not `norm`; a key of NORMS.
        activation: class of the activation after each normalization.
    """

    def __init__(
        self,
        strides: Sequence[int],
        last_stride: int,
        last_padding: int,
        conv_dim: int = 32,
        norm: str = "instance",
        use_spectral_norm: bool = False,
        init_type: str = "pytorch",
        first_norm: str | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ):
        super().__init__()
        widths = [3] + [conv_dim * min(8, 2**i) for i in range(len(strides))]
        norms = [first_norm or norm] + [norm] * (len(strides) - 1)
        stages = [
            ConvStage(Conv4x4, c_in, c_out, stride, norm=name, activation=activation)  # (B, c_out, H/2, W/2)
            for (c_in, c_out), stride, name in zip(pairwise(widths), strides, norms, strict=True)
        ]
        self.layers = nn.Sequential(*stages, nn.Conv2d(widths[-1], 1, 4, last_stride, last_padding))
        init_weights(self, init_type)
        if use_spectral_norm:
            add_spectral_norm(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class DCDiscriminator(_Discriminator):
    """Discriminator of DCGAN: images (B, 3, S, S) -> logits (B, 1, 1, 1).

    For 64x64: convolutions to c, 2c, 4c, 8c channels give 4x4, then one k4 convolution gives the logit. Other sizes,
    32, 128 or 256, have fewer or more halvings; anything else raises ValueError. The others are as in _Discriminator.
    """

    def __init__(self, image_size: int = 64, **others):
        super().__init__([2] * _count_doublings(image_size), 1, 0, **others)


class PatchDiscriminator(_Discriminator):
    """Discriminator of patches: images (B, 3, H, W) -> logits (B, 1, H/16, W/16), with a receptive field of 46x46.

    Convolutions to c, 2c, 4c and 1 channels: DCDiscriminator for 64x64 with one layer less, so that each logit belongs
    to one patch of the image (Isola et al. 2017, arXiv:1611.07004). `image_size` is not used, since the same layers
    serve images of any size; the others are as in _Discriminator.
    """

    def __init__(self, image_size: int = 64, **others):
        super().__init__([2, 2, 2], 2, 1, **others)


class PaperPatchDiscriminator(_Discriminator):
    """The 70x70 PatchGAN of the CycleGAN paper: images (B, 3, H, W) -> logits (B, 1, H/8 - 2, W/8 - 2).

    Convolutions to c, 2c, 4c (s2), 8c and 1 (s1) channels, leaky ReLUs of slope 0.2, no normalization after the first.

    Args:
        image_size: not used, since the same layers serve images of any size.
        last_strides: stride of the last two convolutions; 2 gives a receptive field of 94x94 and logits
            (B, 1, H/32, W/32).
        others: the arguments of _Discriminator from conv_dim on.
    """

    def __init__(self, image_size: int = 64, last_strides: int = 1, **others):
        leaky = partial(nn.LeakyReLU, 0.2)
        strides = [2, 2, 2, last_strides]
        super().__init__(strides, last_strides, 1, first_norm="none", activation=leaky, **others)


DISCRIMINATORS = {
    "dc": DCDiscriminator,
    "patch": PatchDiscriminator,
    "patch70": PaperPatchDiscriminator,
    "patch94": partial(PaperPatchDiscriminator, last_strides=2),
}


def build_discriminator(options: "VanillaOptions | CycleOptions", conv_dim: int) -> nn.Module:
    """Return the discriminator that the options describe: images -> logits, with `conv_dim` channels at first."""
    return choose(DISCRIMINATORS, options.disc, "discriminator")(
        image_size=options.image_size,
        conv_dim=conv_dim,
        norm=options.norm,
        use_spectral_norm=options.spectral_norm,
        init_type=options.init_type,
    )
