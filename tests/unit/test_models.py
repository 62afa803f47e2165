"""Shapes, sizes, receptive fields, norms, biases, initialization and spectral norm of the networks."""

import pytest
import torch
from torch import nn

from models import DISCRIMINATORS, IMAGE_SIZES, INITS, NORMS, UPSAMPLES, DCGenerator, ReflectConv


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


def test_reflect_conv_is_the_one_of_pytorch():
    torch.manual_seed(0)
    ours = ReflectConv(2, 3, bias=True).double()
    theirs = nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
def test_discriminator_shapes(image_size):
    images = torch.rand(2, 3, image_size, image_size)
    assert DISCRIMINATORS["dc"](image_size, 2)(images).shape == (2, 1, 1, 1)
    assert DISCRIMINATORS["patch"](image_size, 2)(images).shape == (2, 1, image_size // 16, image_size // 16)


def test_discriminators_of_the_design():
    assert [c.out_channels for c in convs(DISCRIMINATORS["dc"](64, 32))] == [32, 64, 128, 256, 1]
    assert [c.out_channels for c in convs(DISCRIMINATORS["dc"](32, 32))] == [32, 64, 128, 1]
    assert [c.out_channels for c in convs(DISCRIMINATORS["patch"](64, 32))] == [32, 64, 128, 1]


def measure_receptive_field(D, image_size):
    """Return height and width of the input region from which the gradient of one middle logit comes."""
    images = torch.rand(1, 3, image_size, image_size, dtype=torch.float64, requires_grad=True)
    logits = D.double()(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    rows, cols = images.grad.abs().sum((0, 1)).nonzero(as_tuple=True)
    return (rows.max() - rows.min() + 1).item(), (cols.max() - cols.min() + 1).item()


def test_receptive_fields():
    """Measured without normalization, whose statistics see the whole image."""
    assert measure_receptive_field(DISCRIMINATORS["patch"](128, 4, norm="none", init_type="normal"), 128) == (46, 46)
    assert measure_receptive_field(DISCRIMINATORS["dc"](64, 4, norm="none", init_type="normal"), 64) == (64, 64)


@pytest.mark.parametrize("build", [DCGenerator, *DISCRIMINATORS.values()])
def test_bias_only_where_no_norm_follows(build):
    assert [conv.bias is None for conv in convs(build(64, 2, norm="instance"))][-1] is False
    assert all(conv.bias is None for conv in convs(build(64, 2, norm="instance"))[:-1])
    assert all(conv.bias is None for conv in convs(build(64, 2, norm="batch"))[:-1])
    assert all(conv.bias is not None for conv in convs(build(64, 2, norm="none")))


@pytest.mark.parametrize("norm", NORMS)
def test_norm_follows_every_layer_but_the_last(norm):
    for network in (DCGenerator(64, 2, norm=norm), DISCRIMINATORS["dc"](64, 2, norm=norm)):
        kinds = [type(m) for m in network.modules() if isinstance(m, tuple(NORMS.values()))]
        assert kinds == [NORMS[norm]] * (len(convs(network)) - 1)


def test_init_types_differ_and_are_what_they_say():
    weights = {}
    for init_type in INITS:
        torch.manual_seed(0)
        weights[init_type] = convs(DISCRIMINATORS["dc"](64, 16, init_type=init_type))[1].weight.detach()
    fan_in = 16 * 16
    assert weights["normal"].std().item() == pytest.approx(0.02, rel=0.05)
    assert weights["kaiming"].std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
    assert weights["xavier"].std().item() == pytest.approx((2 / (fan_in + 32 * 16)) ** 0.5, rel=0.05)
    assert weights["pytorch"].abs().max().item() <= 1 / fan_in**0.5
    rows = weights["orthogonal"].flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(32), rtol=0, atol=1e-5)


@pytest.mark.parametrize("disc", DISCRIMINATORS)
def test_spectral_norm_bounds_every_convolution(disc):
    torch.manual_seed(0)
    D = DISCRIMINATORS[disc](64, 4, use_spectral_norm=True)
    for _ in range(30):  # one power iteration a pass
        D(torch.rand(2, 3, 64, 64))
    singular = [torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item() for conv in convs(D)]
    assert singular == pytest.approx([1.0] * len(singular), rel=1e-2)
    plain = [torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item() for conv in convs(DISCRIMINATORS[disc](64, 4))]
    assert max(abs(value - 1) for value in plain) > 0.05


@pytest.mark.parametrize("build", [DCGenerator, *DISCRIMINATORS.values()])
@pytest.mark.parametrize("wrong", [{"image_size": 48}, {"norm": "group"}, {"init_type": "zeros"}])
def test_unknown_names_and_sizes_list_the_valid_ones(build, wrong):
    with pytest.raises(ValueError, match=r"choose from (32, 64|instance, batch|pytorch, normal)"):
        build(**wrong)
    with pytest.raises(ValueError, match="choose from nearest, deconv"):
        DCGenerator(upsample="bilinear")
