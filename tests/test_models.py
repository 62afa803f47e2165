"""Networks: shapes, sizes, receptive fields, norms, biases, spectral norm, and passes of several batches."""

import pytest
import torch
from torch import nn

from layers.blocks import NORMS, InstanceNorm
from layers.convolutions import UPSAMPLES, Conv4x4, PaperDeconv, ReflectConv, SameConv, UpConv
from models import DISCRIMINATORS, GENERATORS, DCGenerator, sample_latents
from options.fields import IMAGE_SIZES, NOISE_PARTS
from training.steps import forward_together


def convs(network):
    """Return the convolutions of a network."""
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
@pytest.mark.parametrize("upsample", UPSAMPLES)
@pytest.mark.parametrize("norm", NORMS)
def test_generator_shapes(image_size, upsample, norm):
    G = DCGenerator(image_size, conv_dim=2, noise_size=7, norm=norm, upsample=upsample)
    images = G(torch.rand(2, 7, 1, 1))
    assert images.shape == (2, 3, image_size, image_size) and images.abs().max() <= 1


@pytest.mark.golden
@pytest.mark.parametrize("image_size", [32, 256])
@pytest.mark.parametrize(("norm", "is_training"), [("instance", True), ("instance", False), ("batch", True)])
def test_z_scales_and_shifts_every_layer(image_size, norm, is_training):
    """Against the formula of Chen et al. 2019 in other operations; a scale without the 1 is another network."""
    G = DCGenerator(image_size, 2, 5, norm, self_modulation=True).double().train(is_training)
    over = (2, 3) if norm == "instance" else (0, 2, 3)
    z = torch.randn(3, 5, 1, 1, dtype=torch.double)

    def reference(one: int) -> torch.Tensor:
        *stages, to_image, tanh = G.layers
        x = z
        for stage in stages:
            x = stage.stage[0](x)
            x = (x - x.mean(over, keepdim=True)) / (x.var(over, correction=0, keepdim=True) + 1e-5).sqrt()
            numbers = z[:, :, 0, 0] @ stage.modulation.weight.T + stage.modulation.bias
            scale, shift = numbers[:, : x.shape[1]], numbers[:, x.shape[1] :]
            x = (torch.einsum("bchw,bc->bchw", x, scale + one) + shift[:, :, None, None]).clamp(min=0)
        return tanh(to_image(x))

    torch.testing.assert_close(G(z), reference(1))
    assert not torch.allclose(G(z), reference(0), atol=1e-3)


@pytest.mark.golden
@pytest.mark.parametrize("image_size", NOISE_PARTS)
@pytest.mark.parametrize("fine_channels", [0, 3])
def test_every_layer_has_its_part_of_a_split_z(image_size, fine_channels):
    """Against parts cut by hand: 3 numbers for the first convolution, 2 for each stage. Another order is rejected."""
    length = 2 * (NOISE_PARTS[image_size] + (fine_channels > 0)) + 1
    shape = {"conv_dim": 2, "noise_size": length, "fine_channels": fine_channels}
    G = DCGenerator(image_size, **shape, self_modulation=True, split_noise=True).double()
    *stages, to_image, tanh = G.layers
    assert 3 + 2 * len(stages) == length, "no number of z is left over"
    z = torch.randn(3, length, 1, 1, dtype=torch.double)

    def reference(order: list[int]) -> torch.Tensor:
        x = z[:, :3]
        for stage, place in zip(stages, order, strict=True):
            x = stage(x, z[:, 3 + 2 * place : 5 + 2 * place])
        return tanh(to_image(x))

    order = list(range(len(stages)))
    torch.testing.assert_close(G(z), reference(order))
    assert not torch.allclose(G(z), reference(order[::-1]), atol=1e-3)


def test_the_fast_modulation_of_training_has_the_gradients_of_the_formula(monkeypatch):
    """Of z and of all weights; without training the formula is computed as it is written."""
    G = DCGenerator(32, conv_dim=2, noise_size=5, self_modulation=True).double()
    z, scale = torch.randn(3, 5, 1, 1, dtype=torch.double, requires_grad=True), torch.randn(3, 3, 32, 32)
    fast, formula = (
        torch.autograd.grad((G.train(is_training)(z) * scale).sum(), [z, *G.parameters()])
        for is_training in (True, False)
    )
    torch.testing.assert_close(fast, formula)
    assert all(gradient.abs().max() > 1e-3 for gradient in formula)
    monkeypatch.setattr(InstanceNorm, "forward", None)  # only the formula has a normalization of its own
    G.train()(z)
    with pytest.raises(TypeError):
        G.eval()(z)


def test_self_modulation_begins_moderate():
    """Scales and shifts have a deviation of 0.5 times the one of z, for any length of z."""
    for noise_size in (8, 100):
        stage = DCGenerator(32, conv_dim=32, noise_size=noise_size, self_modulation=True).layers[0]
        z = sample_latents(500, noise_size, torch.device("cpu")).flatten(1)
        assert stage.modulation(z).std().item() == pytest.approx(0.5 * z.std().item(), rel=0.1)


def test_layers_of_the_dcgan_generator():
    """64x64: 4x4 at 8c, up to 4c, 2c, c and 3; 256x256: two more stages and a second convolution in each."""
    channels = [(conv.in_channels, conv.out_channels) for conv in convs(DCGenerator(64, 32, 100))]
    assert channels == [(100, 256), (256, 128), (128, 64), (64, 32), (32, 3)]
    fine = convs(DCGenerator(64, 32, 100, fine_channels=16))
    assert [(conv.in_channels, conv.out_channels) for conv in fine] == [*channels[:-1], (32, 16), (16, 3)]
    assert isinstance(convs(DCGenerator(64, 2, 5, upsample="deconv", fine_channels=3))[-2], UPSAMPLES["deconv"])
    *_, double, to_image = convs(G := DCGenerator(256, 2, 5, fine_channels=3))
    assert double.padding_mode == "reflect" and isinstance(to_image, ReflectConv) and to_image.bias is not None
    assert double.bias is None and isinstance(G.layers[-3][1], InstanceNorm)
    large = convs(DCGenerator(256, 32, 100))
    assert [conv.out_channels for conv in large] == [256, 256, 256, 256, 256, 128, 128, 64, 64, 32, 32, 3]
    assert {type(conv) for conv in large[2::2]} == {ReflectConv}
    assert ReflectConv not in map(type, convs(DCGenerator(128)))
    assert {conv.padding_mode for conv in large[1::2]} == {"reflect"}


@pytest.mark.parametrize("gen", GENERATORS)
@pytest.mark.parametrize("upsample", UPSAMPLES)
@pytest.mark.parametrize("norm", NORMS)
def test_translators_keep_the_size(gen, upsample, norm):
    """The images may have any size that can be halved, square or not."""
    G = GENERATORS[gen](conv_dim=2, n_res_blocks=1, norm=norm, upsample=upsample)
    for height, width in ((32, 32), (36, 64), (20, 16)):
        images = G(torch.rand(2, 3, height, width))
        assert images.shape == (2, 3, height, width) and images.abs().max() <= 1
    with pytest.raises(ValueError, match="30x64 pixels; use multiples of 4"):
        G(torch.rand(2, 3, 30, 64))


def test_layers_of_the_translators():
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
    """The public code has a bias before each instance norm, which removes it; ours has biases only without a norm."""
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


@pytest.mark.parametrize("image_size", IMAGE_SIZES)
def test_discriminator_shapes(image_size):
    images, size = torch.rand(2, 3, image_size, image_size), image_size
    assert DISCRIMINATORS["dc"](size, conv_dim=2)(images).shape == (2, 1, 1, 1)
    assert DISCRIMINATORS["patch"](size, conv_dim=2)(images).shape == (2, 1, size // 16, size // 16)
    assert DISCRIMINATORS["patch70"](size, conv_dim=2)(images).shape == (2, 1, size // 8 - 2, size // 8 - 2)
    assert DISCRIMINATORS["patch94"](image_size=size, conv_dim=2)(images).shape == (2, 1, size // 32, size // 32)


def test_layers_of_the_discriminators():
    assert [c.out_channels for c in convs(DISCRIMINATORS["dc"](64))] == [32, 64, 128, 256, 1]
    assert [c.out_channels for c in convs(DISCRIMINATORS["dc"](32))] == [32, 64, 128, 1]
    assert [c.out_channels for c in convs(DISCRIMINATORS["patch"](64))] == [32, 64, 128, 1]
    for disc in ("patch70", "patch94"):
        assert [c.out_channels for c in convs(DISCRIMINATORS[disc](conv_dim=64))] == [64, 128, 256, 512, 1]


def measure_receptive_field(D, image_size):
    """Return height and width of the input region on which one logit in the middle depends."""
    images = torch.rand(1, 3, image_size, image_size, dtype=torch.float64, requires_grad=True)
    logits = D.double()(images)
    logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
    rows, cols = images.grad.abs().sum((0, 1)).nonzero(as_tuple=True)
    return (rows.max() - rows.min() + 1).item(), (cols.max() - cols.min() + 1).item()


def test_receptive_fields():
    """They are measured without normalization, because its statistics depend on the whole image."""
    for disc, size, field in (("patch", 128, 46), ("patch70", 256, 70), ("patch94", 256, 94), ("dc", 64, 64)):
        D = DISCRIMINATORS[disc](image_size=size, conv_dim=4, norm="none", init_type="normal")
        assert measure_receptive_field(D, size) == (field, field)


BUILDERS = {"DCGenerator": DCGenerator, **GENERATORS, **DISCRIMINATORS}


@pytest.mark.parametrize("name", BUILDERS)
def test_bias_only_where_no_norm_follows(name):
    def biases(norm):
        return [conv.bias is not None for conv in convs(BUILDERS[name](conv_dim=2, norm=norm))]

    first = name in ("patch70", "patch94")  # these have no norm after the first layer
    for norm in ("instance", "batch"):
        assert biases(norm) == [first, *[False] * (len(biases(norm)) - 2), True]
    assert all(biases("none"))


@pytest.mark.parametrize("norm", NORMS)
def test_norm_follows_every_layer_but_the_last(norm):
    for build in (DCGenerator, DISCRIMINATORS["dc"], *GENERATORS.values()):
        network = build(conv_dim=2, norm=norm)
        kinds = [type(m) for m in network.modules() if isinstance(m, (nn.InstanceNorm2d, nn.BatchNorm2d))]
        assert kinds == ([] if norm == "none" else [NORMS[norm]] * (len(convs(network)) - 1))


@pytest.mark.parametrize("disc", DISCRIMINATORS)
def test_spectral_norm_bounds_every_convolution(disc):
    torch.manual_seed(0)
    D = DISCRIMINATORS[disc](image_size=64, conv_dim=4, use_spectral_norm=True)
    for _ in range(30):  # each pass does one power iteration
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


def test_unknown_sizes_and_kinds_of_upsampling_list_the_valid_ones():
    for build in (DCGenerator, DISCRIMINATORS["dc"]):
        with pytest.raises(ValueError, match="choose from 32, 64"):
            build(image_size=48)
    for build in (DCGenerator, *GENERATORS.values()):
        with pytest.raises(ValueError, match="choose from nearest, deconv"):
            build(upsample="bilinear")


@pytest.mark.parametrize(
    "name, layers",
    [
        ("cycle", ["0.0", "1.0", "2.layers.0.0", "3.0", "4"]),
        ("resnet_6blocks", ["0.0", "1.0", "2.0", "3.layers.0.0", "3.layers.1.0", "4.0", "5.0", "6"]),
    ],
)
def test_names_of_weights_stay_the_same(name, layers):
    """Checkpoints name the weights: a weight with another name could not be loaded."""
    weights = [key for key, _ in GENERATORS[name](conv_dim=2, n_res_blocks=1).named_parameters()]
    assert weights == [*(f"layers.{layer}.weight" for layer in layers), f"layers.{layers[-1]}.bias"]


def test_latents_are_uniform():
    z = sample_latents(1000, 3, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert z.shape == (1000, 3, 1, 1) and -1 <= z.min() < -0.99 and 0.99 < z.max() <= 1 and z.mean().abs() < 0.05
    assert torch.equal(z, sample_latents(1000, 3, torch.device("cpu"), torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("norm", NORMS)
def test_batches_pass_together_unless_batch_norm_would_mix_them(norm):
    torch.manual_seed(0)
    D = DISCRIMINATORS["dc"](32, conv_dim=2, norm=norm, init_type="normal").double()
    batches = [torch.rand(count, 3, 32, 32, dtype=torch.float64) for count in (2, 3)]
    calls = []
    D.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    found = forward_together(D, batches, norm)
    assert calls == ([2, 3] if norm == "batch" else [5])
    for images, logits in zip(batches, found, strict=True):
        torch.testing.assert_close(logits, D(images))
    if norm == "batch":  # the control: passing together changes the result
        assert (torch.cat(found) - D(torch.cat(batches))).abs().max() > 1e-3
