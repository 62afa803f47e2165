"""DiffAugment against a slow and simple reference, which computes one pixel at a time with the same draws."""

import math

import pytest
import torch

from diff_augment import POLICIES, diff_augment, parse_policy

pytestmark = pytest.mark.golden
ALL = "color,translation,cutout"


def half_up(number):
    """Round as the code of the paper's authors rounds sizes."""
    return int(number + 0.5)


def reference(image, u, policy, fill=0.0, cutout_share=2, reach_share=8, rounded=half_up):
    """Augment one image (C, H, W), as nested Python lists, with its uniforms. The keywords make wrong variants."""
    C, H, W = len(image), len(image[0]), len(image[0][0])
    u = list(u)
    for name in policy.split(","):
        if name == "color":
            shift, saturation, contrast = u.pop(0) - 0.5, u.pop(0) * 2, u.pop(0) + 0.5
            image = [[[v + shift for v in row] for row in plane] for plane in image]
            gray = [[sum(image[c][y][x] for c in range(C)) / C for x in range(W)] for y in range(H)]
            image = [
                [[gray[y][x] + saturation * (image[c][y][x] - gray[y][x]) for x in range(W)] for y in range(H)]
                for c in range(C)
            ]
            mean = sum(v for plane in image for row in plane for v in row) / (C * H * W)
            image = [[[mean + contrast * (v - mean) for v in row] for row in plane] for plane in image]
        if name == "translation":
            reach_y, reach_x = rounded(H / reach_share), rounded(W / reach_share)
            dy = math.floor(u.pop(0) * (2 * reach_y + 1)) - reach_y
            dx = math.floor(u.pop(0) * (2 * reach_x + 1)) - reach_x
            image = [
                [
                    [image[c][y - dy][x - dx] if 0 <= y - dy < H and 0 <= x - dx < W else fill for x in range(W)]
                    for y in range(H)
                ]
                for c in range(C)
            ]
        if name == "cutout":
            h, w = rounded(H / cutout_share), rounded(W / cutout_share)
            top = math.floor(u.pop(0) * (H + 1 - h % 2)) - h // 2
            left = math.floor(u.pop(0) * (W + 1 - w % 2)) - w // 2
            image = [
                [
                    [
                        0.0 if top <= y < top + h and left <= x < left + w else image[c][y][x]
                        for x in range(W)
                    ]
                    for y in range(H)
                ]
                for c in range(C)
            ]  # fmt: skip
    return image


def reference_batch(images, uniforms, policy, **wrong):
    return torch.tensor(
        [reference(x, u, policy, **wrong) for x, u in zip(images.tolist(), uniforms.tolist(), strict=True)],
        dtype=images.dtype,
    )


def make_inputs(policy, B=6, H=16, W=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(B, 3, H, W, generator=generator, dtype=torch.float64) * 2 - 1
    count = sum(n for name in parse_policy(policy) for _, n in POLICIES[name])
    return images, torch.rand(B, count, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("policy", ["color", "translation", "cutout", "color,cutout", "cutout,translation", ALL])
@pytest.mark.parametrize("H, W", [(16, 24), (9, 7), (36, 44), (2, 3)])
def test_equals_the_reference(policy, H, W):
    images, uniforms = make_inputs(policy, H=H, W=W)
    torch.testing.assert_close(
        diff_augment(images, policy, uniforms), reference_batch(images, uniforms, policy), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("edge", [0.0, 1 - 2**-24])
def test_extreme_draws(edge):
    images, uniforms = make_inputs(ALL)
    uniforms = torch.full_like(uniforms, edge)
    torch.testing.assert_close(
        diff_augment(images, ALL, uniforms), reference_batch(images, uniforms, ALL), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("wrong", [{"fill": -1.0}, {"cutout_share": 4}, {"reach_share": 4}])
def test_wrong_variants_are_rejected(wrong):
    images, uniforms = make_inputs("translation,cutout", H=32, W=32)
    found = diff_augment(images, "translation,cutout", uniforms)
    assert (found - reference_batch(images, uniforms, "translation,cutout", **wrong)).abs().max() > 0.1


@pytest.mark.parametrize("policy, size", [("translation", 36), ("translation", 44), ("translation", 60),
                                          ("cutout", 33), ("cutout", 35)])  # fmt: skip
def test_sizes_are_rounded_half_up(policy, size):
    """As in the code of the paper's authors. Sizes rounded down, as in earlier versions, are the wrong variant."""
    images, uniforms = make_inputs(policy, B=4, H=size, W=size)
    uniforms[0], uniforms[1] = 0.0, 1 - 2**-24
    found = diff_augment(images, policy, uniforms)
    torch.testing.assert_close(found, reference_batch(images, uniforms, policy), rtol=1e-12, atol=1e-12)
    assert (found - reference_batch(images, uniforms, policy, rounded=math.floor)).abs().max() > 0.1


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_powers_of_two_have_no_rounding(size):
    """Their results are those of earlier versions, which rounded down."""
    images, uniforms = make_inputs("translation,cutout", B=1, H=size, W=size)
    found = diff_augment(images, "translation,cutout", uniforms)
    assert torch.equal(found, reference_batch(images, uniforms, "translation,cutout", rounded=math.floor))


@pytest.mark.parametrize("policy", ["color", "translation", "cutout", ALL])
def test_gradients(policy):
    """First and second derivatives equal the differences when each pixel changes a little."""
    images, uniforms = make_inputs(policy, B=2, H=8, W=8)
    images.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: diff_augment(x, policy, uniforms), (images,))
    assert torch.autograd.gradgradcheck(lambda x: diff_augment(x, policy, uniforms), (images,))


def test_each_image_has_its_own_draw():
    images = make_inputs(ALL)[0][:1].expand(8, -1, -1, -1)
    torch.manual_seed(0)
    augmented = diff_augment(images, ALL)
    assert len({tuple(x.flatten().tolist()) for x in augmented}) == 8


def test_draws_are_uniform_over_their_ranges():
    """Over many draws, shifts reach both ends and every position of the cutout is equally likely."""
    x = torch.zeros(4000, 1, 16, 16)
    x[:, :, 8, 8] = 1
    torch.manual_seed(0)
    y, _ = (diff_augment(x, "translation")[:, 0] == 1).nonzero(as_tuple=True)[1:]
    counts = torch.bincount(y, minlength=16)
    assert counts.nonzero().flatten().tolist() == [6, 7, 8, 9, 10]  # +- 16 // 8
    assert counts[6:11].min() > 0.8 * 4000 / 5
    # A cutout of 8 rows and columns with its center in 0..16 covers the middle with probability (8/17)^2.
    covered = (diff_augment(torch.ones(4000, 1, 16, 16), "cutout")[:, 0, 8, 8] == 0).float().mean()
    assert covered == pytest.approx((8 / 17) ** 2, abs=0.03)


def test_empty_and_unknown_policies():
    images, _ = make_inputs("color")
    assert diff_augment(images, "") is images
    with pytest.raises(ValueError, match=r"'blur'.*color, translation, cutout"):
        diff_augment(images, "color,blur")
