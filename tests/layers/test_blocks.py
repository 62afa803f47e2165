"""Building blocks of networks: residual blocks, initialization, instance normalization."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from layers.blocks import INITS, InstanceNorm, ResidualBlock
from layers.convolutions import SameConv
from models import DISCRIMINATORS


def convs(network):
    """Return the convolutions of a network."""
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]


def test_residual_block():
    """The block is x + F(x). F with two convolutions ends without a ReLU, F with one convolution with a ReLU."""
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    for count, sign in ((1, 0), (2, -1)):
        block = ResidualBlock(SameConv, 4, count, "instance")
        change = block(x) - x
        assert len(convs(block)) == count
        assert (change.min().sign() == sign) and change.max() > 0
    torch.testing.assert_close(change, block.layers[1][1](block.layers[1][0](block.layers[0](x))))


def test_initial_weights_have_the_spread_of_their_init_type():
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


@pytest.mark.golden
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_instance_norm_equals_pytorchs(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(3, 5, 4, 6, generator=generator, dtype=dtype) * 3 + 2).requires_grad_()
    mask = torch.randn(x.shape, generator=generator, dtype=dtype)
    ours, plain = InstanceNorm(5)(x), F.instance_norm(x)
    grads = [torch.autograd.grad((y * mask).sum(), x)[0] for y in (ours, plain)]
    torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(*grads, rtol=tolerance, atol=tolerance)
    wrong = F.group_norm(x, 1)  # over all channels of an image
    assert (wrong - plain).abs().max() > 0.1
