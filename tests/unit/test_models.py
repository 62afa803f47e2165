"""Shapes, sizes, receptive fields, norms, biases, initialization and spectral norm of the networks."""

import pytest
import torch
from torch import nn

from models import (
    DISCRIMINATORS,
    GENERATORS,
    IMAGE_SIZES,
    INITS,
    NORMS,
    UPSAMPLES,
    Conv4x4,
    DCGenerator,
    ImagePool,
    InstanceNorm,
    PaperDeconv,
    ReflectConv,
    ResidualBlock,
    SameConv,
    UpConv,
)  # fmt: skip


def convs(network):
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
@pytest.mark.parametrize("upsample", UPSAMPLES)
@pytest.mark.parametrize("norm", NORMS)
def test_generator_shapes(image_size, upsample, norm):
    G = DCGenerator(image_size, conv_dim=2, noise_size=7, norm=norm, upsample=upsample)
    images = G(torch.rand(2, 7, 1, 1))
    assert images.shape == (2, 3, image_size, image_size) and images.abs().max() <= 1


def test_generator_of_the_design():
    """64x64: 4x4 at 8c, up to 4c, 2c, c and 3; 256x256: two more stages and a second convolution in each."""
    channels = [(conv.in_channels, conv.out_channels) for conv in convs(DCGenerator(64, 32, 100))]
    assert channels == [(100, 256), (256, 128), (128, 64), (64, 32), (32, 3)]
    large = convs(DCGenerator(256, 32, 100))
    assert [conv.out_channels for conv in large] == [256, 256, 256, 256, 256, 128, 128, 64, 64, 32, 32, 3]
    assert {type(conv) for conv in large[2::2]} == {ReflectConv} and ReflectConv not in map(
        type, convs(DCGenerator(128))
    )
    assert {conv.padding_mode for conv in large[1::2]} == {"reflect"}


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_reflect_conv_is_the_one_of_pytorch(kernel_size):
    torch.manual_seed(0)
    ours = ReflectConv(2, 3, kernel_size, bias=True).double()
    theirs = nn.Conv2d(2, 3, kernel_size, padding=kernel_size // 2, padding_mode="reflect", dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("gen", GENERATORS)
@pytest.mark.parametrize("upsample", UPSAMPLES)
@pytest.mark.parametrize("norm", NORMS)
def test_translators_keep_the_size(gen, upsample, norm):
    """Any size that can be halved, square or not."""
    G = GENERATORS[gen](conv_dim=2, n_res_blocks=1, norm=norm, upsample=upsample)
    for height, width in ((32, 32), (36, 64), (20, 16)):
        images = G(torch.rand(2, 3, height, width))
        assert images.shape == (2, 3, height, width) and images.abs().max() <= 1
    with pytest.raises(ValueError, match="30x64 pixels; use multiples of 4"):
        G(torch.rand(2, 3, 30, 64))


def test_cycle_generators_of_the_design():
    def kinds(network):
        return [(type(conv), conv.in_channels, conv.out_channels, conv.kernel_size[0]) for conv in convs(network)]

    assert kinds(GENERATORS["cycle"]()) == [
        (Conv4x4, 3, 32, 4), (Conv4x4, 32, 64, 4), *[(SameConv, 64, 64, 3)] * 3, (UpConv, 64, 32, 3),
        (UpConv, 32, 3, 3),
    ]  # fmt: skip
    summer2winter = GENERATORS["cycle"](64, 6, 3, 2, "batch", "deconv")
    assert [kind[1:] for kind in kinds(summer2winter)] == [
        (3, 64, 4), (64, 128, 4), (128, 256, 4), *[(256, 256, 3)] * 12, (256, 128, 4), (128, 64, 4), (64, 3, 4),
    ]  # fmt: skip
    paper = [
        (ReflectConv, 3, 64, 7), (nn.Conv2d, 64, 128, 3), (nn.Conv2d, 128, 256, 3), *[(ReflectConv, 256, 256, 3)] * 18,
        (PaperDeconv, 256, 128, 3), (PaperDeconv, 128, 64, 3), (ReflectConv, 64, 3, 7),
    ]  # fmt: skip
    assert kinds(GENERATORS["resnet_9blocks"](upsample="deconv")) == paper
    assert kinds(GENERATORS["resnet_6blocks"](upsample="deconv")) == paper[:3] + paper[9:]
    ups = [conv for conv in convs(GENERATORS["resnet_9blocks"]()) if isinstance(conv, UpConv)]
    assert [(conv.out_channels, conv.padding_mode) for conv in ups] == [(128, "reflect"), (64, "reflect")]


@pytest.mark.parametrize("gen, millions", [("resnet_9blocks", 11.378), ("resnet_6blocks", 7.838)])
@pytest.mark.parametrize("upsample", UPSAMPLES)
def test_resnet_generators_have_the_papers_number_of_weights(gen, millions, upsample):
    """The public code has a bias before each instance norm, which undoes it; ours has them only without a norm."""
    blocks = int(gen[7])
    with_biases, normalized = (
        sum(p.numel() for p in GENERATORS[gen](norm=norm, upsample=upsample).parameters())
        for norm in ("none", "instance")
    )
    assert round(with_biases / 1e6, 3) == millions
    assert with_biases - normalized == 64 + 128 + 256 + 2 * blocks * 256 + 128 + 64


def test_paper_patch_discriminator_has_the_papers_layers():
    """2.765 M weights in the public code at 64 filters; leaky ReLUs of slope 0.2, and no norm after the first layer."""
    D = DISCRIMINATORS["patch70"](conv_dim=64, norm="none")
    assert sum(p.numel() for p in D.parameters()) == 2_764_737
    D = DISCRIMINATORS["patch70"](conv_dim=64)
    assert [type(stage[1]) for stage in D.layers[:-1]] == [nn.Identity] + [InstanceNorm] * 3
    assert [stage[2].negative_slope for stage in D.layers[:-1]] == [0.2] * 4
    assert [conv.stride[0] for conv in convs(D)] == [2, 2, 2, 1, 1]
    assert [conv.bias is not None for conv in convs(D)] == [True, False, False, False, True]


def test_residual_block():
    """x + F(x), where F of two convolutions ends without a ReLU and F of one with it."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    for convs_, sign in ((1, 0), (2, -1)):
        block = ResidualBlock(SameConv, 4, convs_, "instance")
        change = block(x) - x
        assert len(convs(block)) == convs_
        assert (change.min().sign() == sign) and change.max() > 0
    torch.testing.assert_close(change, block.layers[1][1](block.layers[1][0](block.layers[0](x))))


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
def test_discriminator_shapes(image_size):
    images, size = torch.rand(2, 3, image_size, image_size), image_size
    assert DISCRIMINATORS["dc"](size, conv_dim=2)(images).shape == (2, 1, 1, 1)
    assert DISCRIMINATORS["patch"](size, conv_dim=2)(images).shape == (2, 1, size // 16, size // 16)
    assert DISCRIMINATORS["patch70"](size, conv_dim=2)(images).shape == (2, 1, size // 8 - 2, size // 8 - 2)
    assert DISCRIMINATORS["patch94"](image_size=size, conv_dim=2)(images).shape == (2, 1, size // 32, size // 32)


def test_discriminators_of_the_design():
    assert [c.out_channels for c in convs(DISCRIMINATORS["dc"](64))] == [32, 64, 128, 256, 1]
    assert [c.out_channels for c in convs(DISCRIMINATORS["dc"](32))] == [32, 64, 128, 1]
    assert [c.out_channels for c in convs(DISCRIMINATORS["patch"](64))] == [32, 64, 128, 1]
    for disc in ("patch70", "patch94"):
        assert [c.out_channels for c in convs(DISCRIMINATORS[disc](conv_dim=64))] == [64, 128, 256, 512, 1]


def test_image_pool_keeps_what_it_gets_until_it_is_full():
    pool = ImagePool(6)
    first, second = torch.rand(4, 3, 2, 2), torch.rand(4, 3, 2, 2)
    assert torch.equal(pool(first), first) and torch.equal(pool.images[:4], first)
    result = pool(second)
    assert torch.equal(result[:2], second[:2]), "there was room for two more"
    kept = [any(torch.equal(image, other) for other in [*first, *second]) for image in [*pool.images, *result]]
    assert all(kept) and pool.filled == 6


def test_a_full_image_pool_exchanges_half():
    """Nothing is lost or doubled: what comes back and what stays are what was there and what came."""
    torch.manual_seed(0)
    pool, returned = ImagePool(50), 0
    pool(torch.arange(50.0).view(-1, 1, 1, 1))
    for i in range(100):
        before, new = pool.images.flatten().tolist(), torch.arange(8.0) + 50 + 8 * i
        result = pool(new.view(-1, 1, 1, 1)).flatten().tolist()
        assert sorted(result + pool.images.flatten().tolist()) == sorted(before + new.tolist())
        assert all(old == now or old in before for old, now in zip(result, new.tolist(), strict=True))
        returned += sum(old == now for old, now in zip(result, new.tolist(), strict=True))
    assert 350 < returned < 450, "of 800, with a standard deviation of 14"


def test_every_place_of_an_image_pool_is_exchanged():
    pool = ImagePool(10)
    pool(torch.zeros(10, 1, 1, 1))
    for _ in range(200):
        pool(torch.ones(1, 1, 1, 1))
    assert pool.images.sum() == 10


def test_an_image_pool_goes_on_from_its_state():
    """At another precision, too."""
    pool, other = ImagePool(4), ImagePool(4)
    pool(torch.rand(3, 3, 2, 2).bfloat16())
    other.load_state_dict(pool.state_dict())
    assert other.filled == 3 and torch.equal(other.images, pool.images) and pool.images.dtype is torch.float32
    assert other(torch.rand(2, 3, 2, 2)).dtype is torch.float32 and other.filled == 4


def test_no_image_pool_returns_what_it_gets():
    images = torch.rand(2, 3, 4, 4)
    assert ImagePool(0)(images) is images and len(ImagePool(0).state_dict()["images"]) == 0


def measure_receptive_field(D, image_size):
    """Return height and width of the input region from which the gradient of one middle logit comes."""
    images = torch.rand(1, 3, image_size, image_size, dtype=torch.float64, requires_grad=True)
    logits = D.double()(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    rows, cols = images.grad.abs().sum((0, 1)).nonzero(as_tuple=True)
    return (rows.max() - rows.min() + 1).item(), (cols.max() - cols.min() + 1).item()


def test_receptive_fields():
    """Measured without normalization, whose statistics see the whole image."""
    for disc, size, field in (("patch", 128, 46), ("patch70", 256, 70), ("patch94", 256, 94), ("dc", 64, 64)):
        D = DISCRIMINATORS[disc](image_size=size, conv_dim=4, norm="none", init_type="normal")
        assert measure_receptive_field(D, size) == (field, field)


BUILDERS = {"DCGenerator": DCGenerator, **GENERATORS, **DISCRIMINATORS}


@pytest.mark.parametrize("name", BUILDERS)
def test_bias_only_where_no_norm_follows(name):
    def biases(norm):
        return [conv.bias is not None for conv in convs(BUILDERS[name](conv_dim=2, norm=norm))]

    first = name in ("patch70", "patch94")  # has no norm after the first layer
    for norm in ("instance", "batch"):
        assert biases(norm) == [first, *[False] * (len(biases(norm)) - 2), True]
    assert all(biases("none"))


@pytest.mark.parametrize("norm", NORMS)
def test_norm_follows_every_layer_but_the_last(norm):
    for build in (DCGenerator, DISCRIMINATORS["dc"], *GENERATORS.values()):
        network = build(conv_dim=2, norm=norm)
        kinds = [type(m) for m in network.modules() if isinstance(m, (nn.InstanceNorm2d, nn.BatchNorm2d))]
        assert kinds == ([] if norm == "none" else [NORMS[norm]] * (len(convs(network)) - 1))


def test_init_types_differ_and_are_what_they_say():
    weights = {}
    for init_type in INITS:
        torch.manual_seed(0)
        weights[init_type] = convs(DISCRIMINATORS["dc"](64, conv_dim=16, init_type=init_type))[1].weight.detach()
    fan_in = 16 * 16
    assert weights["normal"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["kaiming"].std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
    assert weights["xavier"].std().item() == pytest.approx((2 / (fan_in + 32 * 16)) ** 0.5, rel=0.05)
    assert weights["pytorch"].abs().max().item() <= 1 / fan_in**0.5
    D = DISCRIMINATORS["dc"](64, conv_dim=2, norm="none", init_type="normal")
    assert all((conv.bias == 0).all() for conv in convs(D))
    rows = weights["orthogonal"].flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(32), rtol=0, atol=1e-5)


@pytest.mark.parametrize("disc", DISCRIMINATORS)
def test_spectral_norm_bounds_every_convolution(disc):
    torch.manual_seed(0)
    D = DISCRIMINATORS[disc](image_size=64, conv_dim=4, use_spectral_norm=True)
    for _ in range(30):  # one power iteration a pass
        D(torch.rand(2, 3, 64, 64))
    singular = [torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item() for conv in convs(D)]
    assert singular == pytest.approx([1.0] * len(singular), rel=1e-2)
    plain = [
        torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item() for conv in convs(DISCRIMINATORS[disc](conv_dim=4))
    ]
    assert max(abs(value - 1) for value in plain) > 0.05


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("wrong", [{"norm": "group"}, {"init_type": "zeros"}])
def test_unknown_names_list_the_valid_ones(name, wrong):
    with pytest.raises(ValueError, match=r"choose from (instance, batch|pytorch, normal)"):
        BUILDERS[name](**wrong)


def test_unknown_sizes_and_kinds_of_upsampling():
    for build in (DCGenerator, DISCRIMINATORS["dc"]):
        with pytest.raises(ValueError, match="choose from 32, 64"):
            build(image_size=48)
    for build in (DCGenerator, *GENERATORS.values()):
        with pytest.raises(ValueError, match="choose from nearest, deconv"):
            build(upsample="bilinear")
