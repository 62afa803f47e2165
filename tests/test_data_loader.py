"""Batches of images: their order, memory and streaming, unreadable images, and what is reported."""

import os

import numpy as np
import pytest
import torch

import data_loader
import images.decoding
from data_loader import ImageBatches, load_images
from images.augment import AUGMENTATIONS
from images.decoding import decode, open_image
from options.training import CycleOptions, VanillaOptions
from sources.folders import EXTENSIONS, list_images
from tests.helpers import corpus
from tests.helpers.corpus import reported
from utils import UserError

CPU = torch.device("cpu")


def batches(files, test=None, **changes) -> ImageBatches:
    """Return batches of 4 images, in the order of seed 11."""
    return corpus.batches(files, test, **{"batch_size": 4, "seed": 11, **changes})


def pixels_of(path) -> torch.Tensor:
    """Return the pixels of a file, uint8 (3, 32, 32)."""
    return decode(open_image(path), 32).pixels


def test_shape_and_range_of_a_batch(photos):
    for name in AUGMENTATIONS:
        x = batches(list_images(photos), data_aug=name).batch(0)
        assert x.shape == (4, 3, 32, 32) and x.dtype == torch.float32 and x.min() >= -1 - 1e-6 and x.max() <= 1 + 1e-6


def test_order_is_a_function_of_seed_and_step(photos):
    files = list_images(photos)
    one, again, other = batches(files), batches(files), batches(files, seed=12)
    assert [one.indices(t).tolist() for t in range(20)] == [again.indices(t).tolist() for t in range(20)]
    assert one.indices(7).tolist() == again.indices(7).tolist(), "the order does not depend on earlier steps"
    assert [one.indices(t).tolist() for t in range(20)] != [other.indices(t).tolist() for t in range(20)]


def test_every_pass_shows_every_image_once(photos):
    images = batches(list_images(photos), batch_size=4)  # 10 images: passes end within batches
    sequence = np.concatenate([images.indices(t) for t in range(15)]).reshape(6, 10)
    assert all(sorted(one_pass.tolist()) == list(range(10)) for one_pass in sequence)
    assert len({tuple(one_pass.tolist()) for one_pass in sequence}) == 6, "each pass has its own order"
    assert images.iterations(3) == 8 and images.iterations(2) == 5


def test_fewer_images_than_a_batch_are_repeated(photos):
    images = batches(list_images(photos)[:3], batch_size=8)
    assert np.bincount(images.indices(0), minlength=3).min() >= 2
    assert images.batch(0).shape[0] == 8
    first, second = reported(images)
    assert second == "Warning: 3 images are fewer than the batch size 8, so batches repeat some"
    assert f"in memory, {3 * 3 * images.images.shape[2] ** 2 / 1e6:.1f} MB" in first
    assert not any("Warning" in line for line in reported(batches(list_images(photos))))


@pytest.mark.parametrize("num_workers", [1, 4])
@pytest.mark.parametrize("data_aug", AUGMENTATIONS)
def test_streamed_batches_equal_cached_ones(photos, data_aug, num_workers):
    files = list_images(photos)
    cached = batches(files, data_aug=data_aug)
    streamed = batches(files, data_aug=data_aug, cache_gb=0, num_workers=num_workers)
    assert cached.is_cached and not streamed.is_cached and streamed.images.numel() == 0
    for step in (0, 1, 2, 7, 8, 3):  # one after another, later, and back
        torch.manual_seed(step)
        expected = cached.batch(step)
        torch.manual_seed(step)
        assert torch.equal(streamed.batch(step), expected), step


def test_cache_limit_counts_bytes(photos):
    files = list_images(photos)
    assert batches(files, cache_gb=(10 * 3 * 32 * 32 + 1) / 1e9).is_cached
    assert not batches(files, cache_gb=(10 * 3 * 32 * 32 - 1) / 1e9).is_cached
    assert not batches(files, data_aug="deluxe", cache_gb=(10 * 3 * 32 * 32 + 1) / 1e9).is_cached


@pytest.mark.parametrize("cache_gb", [4.0, 0.0])
def test_broken_images_are_skipped_and_reported(photos, cache_gb):
    (photos / "4.png").write_bytes((photos / "4.png").read_bytes()[:200])  # truncated: its header is fine
    (photos / "7.png").write_text("not an image")
    images = batches(list_images(photos), cache_gb=cache_gb)
    assert len(images) == 8 and images.skipped.keys() == {"photos/4.png", "photos/7.png"}
    text = "\n".join(reported(images))
    counted = "Warning: 2 of 10 images are not readable: photos/4.png, photos/7.png\n"
    assert f"{counted}    photos/4.png: " in text and "\n    photos/7.png: " in text
    images.batch(0)
    if cache_gb:  # the others stay in order
        for path, image in zip(images.source.files, images.images, strict=True):
            assert torch.equal(image, pixels_of(path))


def test_only_broken_images(tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_text("not an image")
    with pytest.raises(UserError) as error:
        batches(list_images(tmp_path))
    assert str(tmp_path) in str(error.value) and all(ext in str(error.value) for ext in EXTENSIONS)


def test_too_little_memory_is_not_the_fault_of_the_images(photos, monkeypatch):
    """The images are not skipped as if they were broken, and a batch that is too large is an error before decoding."""
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        batches(list_images(photos), batch_size=10**10)

    def run_out_of_memory(file, size, value_range):
        raise MemoryError

    monkeypatch.setattr(images.decoding, "decode", run_out_of_memory)
    with pytest.raises(MemoryError):
        batches(list_images(photos))


@pytest.mark.parametrize("num_workers, expected", [(3, 3), (None, os.cpu_count()), (0, os.cpu_count())])
def test_num_workers_is_the_number_of_threads(photos, monkeypatch, num_workers, expected):
    threads = []
    pool = data_loader.ThreadPoolExecutor
    monkeypatch.setattr(data_loader, "ThreadPoolExecutor", lambda n: threads.append(n) or pool(n))
    batches(list_images(photos), cache_gb=0, num_workers=num_workers).batch(0)
    assert threads == [expected]


def test_a_file_that_disappears_while_it_is_streamed(photos):
    images = batches(list_images(photos), cache_gb=0)
    for path in photos.iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"photos/\d\.png has become unreadable .*restore it and use --resume"):
        images.batch(0)


def test_domains_have_different_orders(photos):
    """With equal orders, images with the same index would always come together, as if they were pairs."""
    one, other = (batches(list_images(photos), stream=stream) for stream in (0, 1))
    passes = [[data.indices(step).tolist() for step in range(5)] for data in (one, other)]
    assert passes[0] != passes[1]
    assert all(sorted(index for batch in orders for index in batch) == sorted([*range(10)] * 2) for orders in passes)
    assert batches(list_images(photos), seed=12).indices(0).tolist() != passes[1][0], "nor the order of the next seed"


def test_load_images(domains, tmp_path):
    settings = {"data": str(domains), "image_size": 32, "batch_size": 4, "checkpoint_dir": str(tmp_path)}
    data = load_images(CycleOptions(**settings), CPU)
    assert {name: (len(images), images.stream) for name, images in data.items()} == {"X": (10, 0), "Y": (7, 1)}
    assert data["X"].test.files == list_images(domains / "testA")
    split = load_images(CycleOptions(test_split=0.3, **settings), CPU)
    assert len(split["X"]) == 7 and {path.parent.name for path in split["X"].test.files} == {"trainA"}
    size = 10 * 3 * 32 * 32 / 1e9
    for cache_gb, expected in ((2.01 * size, True), (1.99 * size, False)):  # half for each domain
        assert load_images(CycleOptions(cache_gb=cache_gb, **settings), CPU)["X"].is_cached is expected


def test_strict_names_the_unreadable_images(photos, tmp_path):
    for name in ("3.png", "new\nline.png"):
        (photos / name).write_text("not an image")
    settings = {"data": str(photos), "image_size": 32, "batch_size": 4, "checkpoint_dir": str(tmp_path)}
    assert len(load_images(VanillaOptions(**settings), CPU)["images"]) == 9
    with pytest.raises(UserError, match=r"--strict: 2 of 11 .*: photos/3\.png \(.*\), photos/new\\nline\.png \(not an"):
        load_images(VanillaOptions(strict=True, **settings), CPU)


def test_preview_images(domains):
    """They are test images, or training images if there are none, without augmentation and without unreadable ones."""
    test, train = list_images(domains / "testA"), list_images(domains / "trainA")
    test[1].write_text("not an image")
    data = batches(train, test, data_aug="deluxe")
    expected = torch.stack([pixels_of(path) for path in (test[0], test[2])]) / 127.5 - 1
    torch.testing.assert_close(data.preview_images(5), expected)
    torch.testing.assert_close(data.preview_images(1), expected[:1])
    assert data.test.files == [test[0], test[2]] and list(data.skipped) == ["testA/1.png"] and len(data) == 10
    lines = reported(data)
    assert lines[1].startswith("2 test images from") and "1 of 13 images" in lines[2] and "testA/1.png" in lines[3]
    expected = torch.stack([pixels_of(path) for path in train[:3]]) / 127.5 - 1
    torch.testing.assert_close(batches(train, data_aug="deluxe").preview_images(3), expected)


def test_preview_is_the_first_augmented_batches(photos):
    data = batches(list_images(photos), data_aug="deluxe")
    torch.manual_seed(0)
    expected = torch.cat([data.batch(0), data.batch(1)])[:6]
    torch.manual_seed(0)
    assert torch.equal(data.preview(6), expected)


def test_data_json_describes_the_images(domains):
    test, train = list_images(domains / "testA"), list_images(domains / "trainA")
    train[2].write_text("not an image")
    found = batches(train, test).describe_data()
    assert found["folder"] == str(domains / "trainA") and found["test_folder"] == str(domains / "testA")
    assert found["train"] == {path.name: path.stat().st_size for path in train if path != train[2]}
    assert found["test"] == [path.name for path in test] and found["skipped"].keys() == {f"trainA/{train[2].name}"}
    assert batches(train).describe_data()["test_folder"] is None
