"""The batched augmentations against torchvision's own transforms of single images, on the same draws."""

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode, RandomCrop, RandomResizedCrop
from torchvision.transforms import functional as TF

from images.augment import AUGMENTATIONS, autocontrast, random_boxes, resized_crop

pytestmark = pytest.mark.golden
B = 24


def stored(side, seed=0, count=B):
    """Return random stored images, uint8 (count, 3, side, side)."""
    return torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def uniforms(count, seed=1):
    """Return random numbers in [0, 1), (B, count)."""
    return torch.rand(B, count, generator=torch.Generator().manual_seed(seed))


def to_unit_range(image):
    """Do what the usual ToTensor and Normalize(0.5, 0.5) do."""
    return TF.normalize(image.float() / 255, [0.5] * 3, [0.5] * 3)


def test_basic_only_scales_to_unit_range():
    images = stored(32)
    expected = torch.stack([to_unit_range(image) for image in images])
    found = AUGMENTATIONS["basic"].apply(images, 32, uniforms(0))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.min() >= -1 and found.max() <= 1


def test_deluxe_is_crop_then_flip():
    images, u = stored(70), uniforms(3)
    expected = []
    for image, (top, left, flip) in zip(images, u.tolist(), strict=True):
        crop = TF.crop(image, math.floor(top * 7), math.floor(left * 7), 64, 64)
        expected.append(to_unit_range(TF.hflip(crop) if flip < 0.5 else crop))
    found = AUGMENTATIONS["deluxe"].apply(images, 64, u)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-6)


def test_deluxe_is_distributed_as_torchvision_draws_it():
    """Every position of a 64x64 crop in 70x70 is equally likely, and so is a flip."""
    assert AUGMENTATIONS["deluxe"].stored_size(64) == 70
    ramp = torch.arange(70, dtype=torch.uint8).view(1, 1, 70, 1) + torch.zeros(2000, 3, 70, 70, dtype=torch.uint8)
    ramp[:, 1] = torch.arange(70, dtype=torch.uint8)  # channel 0 holds the row, channel 1 the column
    torch.manual_seed(0)
    found = (AUGMENTATIONS["deluxe"].apply(ramp, 64, torch.rand(2000, 3)) + 1) * 127.5
    flipped = found[:, 1, 0, 0] > found[:, 1, 0, -1]
    assert flipped.float().mean().item() == pytest.approx(0.5, abs=0.05)
    places = {RandomCrop.get_params(torch.empty(3, 70, 70), (64, 64))[0] for _ in range(500)}
    tops = torch.bincount(found[:, 0, 0, 0].round().long(), minlength=7)
    assert places == set(range(7)) and len(tops) == 7 and tops.min() > 0.7 * 2000 / 7


def test_paper_is_as_the_cyclegan_authors_crop():
    """Crops of 256 from 286, at each of 31 x 31 places, and a flip. From 281, as deluxe has it, they reach less far."""
    assert [AUGMENTATIONS["paper"].stored_size(size) for size in (256, 128, 64)] == [286, 143, 72]
    assert AUGMENTATIONS["deluxe"].stored_size(256) == 281
    images, u = stored(286, count=6), uniforms(3)[:6]
    u[0], u[1] = torch.zeros(3), torch.full((3,), 1 - 2**-24)
    expected, wrong = [], []
    for image, (top, left, flip) in zip(images, u.tolist(), strict=True):
        for crops, places in ((expected, 31), (wrong, 26)):
            crop = TF.crop(image, math.floor(top * places), math.floor(left * places), 256, 256)
            crops.append(to_unit_range(TF.hflip(crop) if flip < 0.5 else crop))
    found = AUGMENTATIONS["paper"].apply(images, 256, u)
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-6)
    assert (found[1] - wrong[1]).abs().max() > 0.5


@pytest.mark.parametrize("size", [32, 64])
def test_resized_crop_equals_torchvision(size):
    images = stored(80)
    boxes = random_boxes(uniforms(22), 80)
    boxes[0] = torch.tensor([0, 0, 80, 80])
    boxes[1] = torch.tensor([79, 3, 1, 77])
    found = resized_crop(images, boxes, size)
    for image, box, ours in zip(images, boxes.tolist(), found, strict=True):
        theirs = TF.resized_crop(image.double(), *box, [size, size], InterpolationMode.BILINEAR, antialias=True)
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=2e-2)
    # Control: without antialias the result differs.
    blunt = TF.resized_crop(images[0].double(), 0, 0, 80, 80, [size, size], InterpolationMode.BILINEAR, antialias=False)
    assert (found[0] - blunt).abs().max() > 10


def test_random_boxes_are_distributed_as_torchvision_draws_them():
    torch.manual_seed(0)
    ours = random_boxes(torch.rand(4000, 22), 128).float()
    image = torch.empty(3, 128, 128)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)], dtype=torch.float32
    )
    assert (ours[:, 0] + ours[:, 2]).max() <= 128 and (ours[:, 1] + ours[:, 3]).max() <= 128 and ours.min() >= 0
    for name, a, b in zip(("top", "left", "height", "width"), ours.T, theirs.T, strict=True):
        # Kolmogorov-Smirnov: two samples of 4,000 from one distribution differ by more than 0.043 once in 1,000.
        grid = torch.arange(129.0)
        distance = ((a[:, None] <= grid).float().mean(0) - (b[:, None] <= grid).float().mean(0)).abs().max()
        assert distance < 0.043, name


def test_boxes_that_never_fit_are_the_whole_image():
    u = torch.full((1, 22), 1 - 1e-6)  # area of the whole image at ratio 4/3: too wide, ten times
    assert random_boxes(u, 64).tolist() == [[0, 0, 64, 64]]


def test_autocontrast_equals_torchvision():
    images = (stored(16) // 3 + 40).float()
    images[3, 1] = 77  # a constant channel stays as it is
    expected = torch.stack([TF.autocontrast(image / 255) * 255 for image in images])
    torch.testing.assert_close(autocontrast(images), expected, rtol=1e-5, atol=1e-3)
    assert (autocontrast(images) - images).abs().max() > 50


def test_deluxe_autocontrast_is_crop_flip_contrast():
    images, u = stored(64) // 2 + 30, uniforms(24)
    images[:4] = torch.tensor([255, 200, 37], dtype=torch.uint8)[
        :, None, None
    ]  # flat images stay flat: no rounding noise is amplified
    u[:4, 23] = 0.0
    expected = []
    for image, box, numbers in zip(images, random_boxes(u[:, :22], 64).tolist(), u.tolist(), strict=True):
        out = TF.resized_crop(image, *box, [32, 32], InterpolationMode.BILINEAR, antialias=True)  # uint8
        out = TF.hflip(out) if numbers[22] < 0.5 else out
        out = TF.autocontrast(out) if numbers[23] < 0.5 else out
        expected.append(to_unit_range(out))
    found = AUGMENTATIONS["deluxe_autocontrast"].apply(images, 32, u)
    # torchvision rounds the stretched values down, and its crops sometimes differ by one level, which the stretch
    # amplifies.
    difference = (found - torch.stack(expected)).abs() * 127.5
    assert difference.max() < 6 and difference.mean() < 0.5 and difference[:4].max() < 1e-3
    for draws in (u[:, 22], u[:, 23]):  # flips and contrasts: some images get them, some do not
        assert set((draws < 0.5).tolist()) == {True, False}


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("edge", [0.0, 1 - 2**-24, 1.0])
def test_crops_of_extreme_draws_stay_inside(name, edge):
    """No crop may leave the image, not even with the largest float32 below 1, or with 1 itself."""
    augmentation = AUGMENTATIONS[name]
    images = stored(augmentation.stored_size(64), count=2)
    found = augmentation.apply(images, 64, torch.full((2, augmentation.uniforms), edge))
    assert found.shape == (2, 3, 64, 64) and found.abs().max() <= 1 + 1e-5
