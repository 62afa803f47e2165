"""The fast convolutions against PyTorch's own layers, in float64, and wrong variants that must be rejected."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from layers import convolutions
from layers.convolutions import (
    Conv4x4,
    Deconv,
    LatentConv,
    ReflectConv,
    UpConv,
    merge_upsample_into_kernel,
    transposed_conv_by_phases,
    upsample_matrix,
)
from models import DCGenerator

pytestmark = pytest.mark.golden


def gradients(forward, x, weight, bias):
    """Return the output, and the gradients of a weighted sum of it for input, weight and bias."""
    x, weight, bias = (t.clone().requires_grad_() for t in (x, weight, bias))
    out = forward(x, weight, bias)
    mask = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).sin().view_as(out)
    return out.detach(), *torch.autograd.grad((out * mask).sum(), (x, weight, bias))


def upsample_then_conv(x, weight, bias, padding_mode="zeros"):
    up = nn.Upsample(scale_factor=2, mode="nearest")(x)
    mode = "constant" if padding_mode == "zeros" else padding_mode
    return F.conv2d(F.pad(up, (1, 1, 1, 1), mode=mode), weight, bias)


def up_conv(x, weight, bias, padding_mode="zeros"):
    layer = UpConv(weight.shape[1], weight.shape[0], bias=True, padding_mode=padding_mode).double()
    return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x)


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 3, 5, 6), (4, 3, 3, 3), (4,)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_up_conv_equals_upsample_then_conv(tensors, padding_mode):
    fused = gradients(lambda *t: up_conv(*t, padding_mode), *tensors)
    plain = gradients(lambda *t: upsample_then_conv(*t, padding_mode), *tensors)
    for name, a, b in zip(("output", "input", "weight", "bias"), fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


WRONG_TAPS = {
    "reversed": [[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]],
    "not merged": [[0, 0, 1], [0, 1, 0], [0, 1, 0], [1, 0, 0]],
    "one off": [[0, 1, 1], [0, 0, 1], [1, 0, 0], [1, 1, 0]],
}


@pytest.mark.parametrize("name", WRONG_TAPS)
def test_wrong_taps_are_rejected(tensors, monkeypatch, name):
    taps = torch.tensor(WRONG_TAPS[name], dtype=torch.float64)
    monkeypatch.setattr(
        convolutions,
        "merge_upsample_into_kernel",
        lambda weight, matrix: torch.einsum("ik,ockl,jl->coij", taps, weight, taps),
    )
    fused = gradients(lambda *t: up_conv(*t, "zeros"), *tensors)
    plain = gradients(lambda *t: upsample_then_conv(*t, "zeros"), *tensors)
    for a, b in zip(fused[:3], plain[:3], strict=True):  # output, input gradient, weight gradient
        assert (a - b).abs().max() > 0.1


def test_the_right_taps_are_not_rejected(tensors, monkeypatch):
    """The test of wrong taps fails with the right taps."""
    right = [[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]]
    monkeypatch.setitem(WRONG_TAPS, "right", right)
    with pytest.raises(AssertionError):
        test_wrong_taps_are_rejected(tensors, monkeypatch, "right")


def test_merged_kernel_of_ones_counts_the_shared_taps():
    per_axis = torch.tensor([1.0, 2.0, 2.0, 1.0])
    assert torch.equal(
        merge_upsample_into_kernel(torch.ones(1, 1, 3, 3), upsample_matrix())[0, 0], per_axis[:, None] * per_axis
    )


CHANNELS = [(5, 3), (5, 4), (2, 7)]  # images of up to 4 channels use the four-phase form

# Layer -> PyTorch's function that it equals, and the shape of its kernel for channels (in, out).
PHASE_LAYERS = {
    Deconv: (F.conv_transpose2d, lambda c_in, c_out: (c_in, c_out, 4, 4)),
    Conv4x4: (F.conv2d, lambda c_in, c_out: (c_out, c_in, 4, 4)),
}


@pytest.mark.parametrize("kind", PHASE_LAYERS)
@pytest.mark.parametrize("c_in, c_out", [*CHANNELS, *[(b, a) for a, b in CHANNELS]])
def test_layers_next_to_the_image_equal_pytorchs(kind, c_in, c_out):
    function, shape = PHASE_LAYERS[kind]
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(s, generator=generator, dtype=torch.float64)
        for s in ((2, c_in, 8, 6), shape(c_in, c_out), (c_out,))
    )
    layer = kind(c_in, c_out, bias=True).double()
    ours = gradients(lambda x, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, x), x, weight, bias)
    plain = gradients(lambda x, w, b: function(x, w, b, 2, 1), x, weight, bias)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("has_bias", [True, False])
def test_phases_equal_pytorchs_transposed_convolution(has_bias):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 5, 4, 6), (5, 3, 4, 4), (3,)
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    bias = bias if has_bias else None
    phases = transposed_conv_by_phases(x, weight, bias)
    torch.testing.assert_close(phases, F.conv_transpose2d(x, weight, bias, 2, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("height, width, stride", [(9, 7, 2), (8, 7, 2), (9, 6, 2), (8, 6, 1)])
def test_convolutions_that_do_not_halve_the_image_are_pytorchs(height, width, stride):
    layer = Conv4x4(3, 8, stride, bias=True)
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ours, plain = layer(images), F.conv2d(images, layer.weight, layer.bias, stride, 1)
    assert torch.equal(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), images)[0] for out in (ours, plain)))


@pytest.mark.parametrize("wrong", ["rows and columns", "not flipped"])
def test_wrong_phases_are_rejected(monkeypatch, wrong):
    """The comparisons above fail if the taps of the phases are mixed up, in the result and in the gradient."""
    change = {"rows and columns": lambda k: k.transpose(2, 3), "not flipped": lambda k: k.flip(2, 3)}[wrong]
    monkeypatch.setattr(
        convolutions,
        "transposed_conv_by_phases",
        lambda x, kernel, bias: transposed_conv_by_phases(x, change(kernel), bias),
    )
    for kind, c_in, c_out in ((Deconv, 5, 3), (Conv4x4, 3, 5)):
        with pytest.raises(AssertionError):
            test_layers_next_to_the_image_equal_pytorchs(kind, c_in, c_out)


@pytest.fixture
def phase_calls(monkeypatch):
    """A list that grows by one at each call of the four-phase form."""
    calls = []
    right = transposed_conv_by_phases
    monkeypatch.setattr(convolutions, "transposed_conv_by_phases", lambda *args: calls.append(1) or right(*args))
    return calls


def test_layers_next_to_the_image_use_the_four_phase_form(phase_calls):
    for layer, expected in ((UpConv(8, 3, bias=True), 1), (Deconv(8, 3, bias=True), 1), (UpConv(8, 8, bias=True), 0)):
        phase_calls.clear()
        layer(torch.zeros(1, 8, 4, 4))
        assert len(phase_calls) == expected
    images = torch.zeros(1, 3, 4, 4, requires_grad=True)
    Conv4x4(3, 8, bias=True)(images).sum().backward()
    assert len(phase_calls) == 1, "the gradient for the image"


# ---- Second derivatives, for gradient penalties


def as_layer(kind):
    """Return a layer as a function of (x, weight, bias)."""

    def forward(x, weight, bias):
        c_in, c_out = (len(weight), weight.shape[1]) if kind is Deconv else (weight.shape[1], len(weight))
        return torch.func.functional_call(kind(c_in, c_out, bias=True).double(), {"weight": weight, "bias": bias}, x)

    return forward


# Name -> the fast form and PyTorch's own layers as functions of (x, weight, bias), and the shapes of these three.
TWICE = {
    "UpConv": (up_conv, upsample_then_conv, [(2, 4, 3, 4), (3, 4, 3, 3), (3,)]),
    "Deconv": (as_layer(Deconv), lambda *t: F.conv_transpose2d(*t, 2, 1), [(2, 4, 3, 4), (4, 3, 4, 4), (3,)]),
    "Conv4x4": (as_layer(Conv4x4), lambda *t: F.conv2d(*t, 2, 1), [(2, 3, 6, 4), (4, 3, 4, 4), (4,)]),
}


def random_inputs(name):
    generator = torch.Generator().manual_seed(0)
    shapes = TWICE[name][2]
    return [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


def second_derivatives(forward, inputs):
    """Return the gradients of the squared gradients of a nonlinear function of the output."""
    out = forward(*inputs)
    mask = torch.linspace(1, 2, out.numel(), dtype=out.dtype).view_as(out)
    first = torch.autograd.grad((out.sin() * mask).sum(), inputs, create_graph=True)
    return torch.autograd.grad(sum(gradient.square().sum() for gradient in first), inputs)


@pytest.mark.parametrize("name", TWICE)
def test_fast_layers_can_be_differentiated_twice(name, phase_calls):
    """PyTorch compares the first and second derivatives with differences of nearby values."""
    assert torch.autograd.gradcheck(TWICE[name][0], random_inputs(name))
    assert torch.autograd.gradgradcheck(TWICE[name][0], random_inputs(name))
    assert phase_calls, "the fast form was tested"


@pytest.mark.parametrize("name", TWICE)
def test_second_derivatives_equal_pytorchs(name, monkeypatch):
    fast, plain, _ = TWICE[name]
    expected = second_derivatives(plain, random_inputs(name))
    for a, b in zip(second_derivatives(fast, random_inputs(name)), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    # Control: with wrong taps in the gradients the second derivatives differ.
    right = transposed_conv_by_phases
    wrong = lambda x, kernel, bias: right(x, kernel.transpose(2, 3), bias)  # noqa: E731
    monkeypatch.setattr(convolutions, "transposed_conv_by_phases", wrong)
    assert (second_derivatives(fast, random_inputs(name))[1] - expected[1]).abs().max() > 0.1


@pytest.mark.parametrize("name", TWICE)
def test_gradients_that_forbid_a_second_derivative_are_rejected(name, monkeypatch):
    """The layers were once marked with `once_differentiable`, and gradient penalties failed."""
    for function in (convolutions._ConvToImage, convolutions._ConvFromImage):
        monkeypatch.setattr(function, "backward", staticmethod(once_differentiable(function.backward)))
    with pytest.raises(RuntimeError, match="not have been used in the graph"):  # the gradients are constants
        second_derivatives(TWICE[name][0], random_inputs(name))


# ---- Other layers


@pytest.mark.parametrize("kernel_size", [3, 7])
def test_reflect_conv_equals_pytorchs(kernel_size):
    torch.manual_seed(0)
    ours = ReflectConv(2, 3, kernel_size, bias=True).double()
    modes = ("reflect", "replicate")
    plain, wrong = (
        nn.Conv2d(2, 3, kernel_size, padding=kernel_size // 2, padding_mode=mode, dtype=torch.float64) for mode in modes
    )
    plain.load_state_dict(ours.state_dict())
    wrong.load_state_dict(ours.state_dict())
    x = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(ours(x), plain(x))
    assert (ours(x) - wrong(x)).abs().max() > 0.01


def test_latent_conv_equals_padded_conv():
    generator = torch.Generator().manual_seed(0)
    z, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 5, 1, 1), (7, 5, 4, 4), (7,))
    )
    layer = LatentConv(5, 7, bias=True)
    fused = gradients(lambda z, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, z), z, weight, bias)
    plain = gradients(lambda z, w, b: F.conv2d(z, w, b, padding=3), z, weight, bias)
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    wrong = gradients(lambda z, w, b: F.conv2d(z, w.flip(2, 3), b, padding=3), z, weight, bias)  # taps not reversed
    assert (fused[0] - wrong[0]).abs().max() > 0.1


@pytest.mark.parametrize("image_size", [64, 256])
def test_generator_equals_the_textbook_network(image_size):
    """The textbook network has the same weights in nn.Upsample, nn.Conv2d, nn.InstanceNorm2d and nn.ReLU."""
    torch.manual_seed(0)
    G = DCGenerator(image_size, conv_dim=2, noise_size=5).double()
    plain = []
    for layer in G.modules():
        if isinstance(layer, nn.Conv2d):
            padding = 3 if isinstance(layer, LatentConv) else 1
            mode = "reflect" if image_size == 256 and padding == 1 else "zeros"
            copy = nn.Conv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size, padding=padding,
                padding_mode=mode, bias=layer.bias is not None, dtype=torch.float64,
            )  # fmt: skip
            copy.load_state_dict(layer.state_dict())
            plain += [nn.Upsample(scale_factor=2)] * isinstance(layer, UpConv) + [copy]
        elif isinstance(layer, nn.InstanceNorm2d):
            plain += [nn.InstanceNorm2d(layer.num_features), nn.ReLU()]
    z = torch.rand(2, 5, 1, 1, dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(G(z), torch.tanh(nn.Sequential(*plain)(z)), rtol=1e-9, atol=1e-9)
