"""The pool of past fakes: filling, exchanging, and its state in a checkpoint."""

import torch

from layers.image_pool import ImagePool


def test_the_pool_keeps_images_until_it_is_full():
    pool = ImagePool(6)
    first, second = torch.rand(4, 3, 2, 2), torch.rand(4, 3, 2, 2)
    assert torch.equal(pool(first), first) and torch.equal(pool.images[:4], first)
    result = pool(second)
    assert torch.equal(result[:2], second[:2]), "there was room for two more"
    kept = [any(torch.equal(image, other) for other in [*first, *second]) for image in [*pool.images, *result]]
    assert all(kept) and pool.filled == 6


def test_a_full_pool_exchanges_half():
    """No image is lost or doubled: old and new images together are the returned and the kept ones."""
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


def test_every_place_of_the_pool_is_exchanged():
    pool = ImagePool(10)
    pool(torch.zeros(10, 1, 1, 1))
    for _ in range(200):
        pool(torch.ones(1, 1, 1, 1))
    assert pool.images.sum() == 10


def test_the_pool_continues_from_its_state():
    """It does so at another precision, too."""
    pool, other = ImagePool(4), ImagePool(4)
    pool(torch.rand(3, 3, 2, 2).bfloat16())
    other.load_state_dict(pool.state_dict())
    assert other.filled == 3 and torch.equal(other.images, pool.images) and pool.images.dtype is torch.float32
    assert other(torch.rand(2, 3, 2, 2)).dtype is torch.float32 and other.filled == 4


def test_a_pool_of_size_0_returns_its_input():
    images = torch.rand(2, 3, 4, 4)
    assert ImagePool(0)(images) is images and len(ImagePool(0).state_dict()["images"]) == 0
