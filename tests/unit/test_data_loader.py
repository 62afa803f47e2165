"""Finding, decoding and batching images."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

import data_loader
from data import decoding
from data.decoding import to_rgb
from data_loader import (
    EXTENSIONS,
    ImageBatches,
    Source,
    decode,
    find_domains,
    find_folder,
    find_images,
    hold_out,
    list_images,
    load_images,
)
from options import CycleOptions, VanillaOptions
from tests.conftest import make_photo
from utils import UserError

CPU = torch.device("cpu")


def batches(files, **changes):
    settings = {"image_size": 32, "data_aug": "basic", "batch_size": 4, "seed": 11, "device": CPU}
    return ImageBatches(files, **{**settings, **changes})


# ---- Files


def test_find_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(data_loader, "_DATA_ROOT", tmp_path)
    (tmp_path / "cat" / "b").mkdir(parents=True)
    assert find_folder("cat/b") == tmp_path / "cat" / "b"
    assert find_folder(str(tmp_path / "cat")) == tmp_path / "cat"
    (tmp_path / "file.png").touch()
    with pytest.raises(UserError, match=r"--data: .*file\.png is a file; give the folder"):
        find_folder("file.png")
    with pytest.raises(UserError, match=r"--X: there is no folder dog"):
        find_folder("dog", flag="--X")
    for name in ("", " ", "~no_such_user/x"):
        with pytest.raises(UserError, match="--data"):
            find_folder(name)


def test_list_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.webp", "d.tiff", "e.bmp", "f.jpeg", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG", "c.webp", "d.tiff", "e.bmp", "f.jpeg"]
    for ext in ("png", ".png", "*.png", "PNG"):
        assert [path.name for path in list_images(tmp_path, ext)] == ["b.PNG"]
    with pytest.raises(UserError, match=r"--ext: 'gif' is unknown; choose from png"):
        list_images(tmp_path, "gif")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        list_images(tmp_path / "empty")
    assert str(tmp_path / "empty") in str(error.value) and all(ext in str(error.value) for ext in EXTENSIONS)


def test_hold_out(photos):
    files = list_images(photos)
    train, test = hold_out(files, 0.3)
    assert len(test) == 3 and sorted(train + test) == files and (train, test) == hold_out(files, 0.3)
    assert hold_out(files, 0.0) == (files, [])
    assert len(hold_out(files, 0.01)[1]) == 1, "who asks for some gets one"
    assert test != files[:3] and test != files[-3:], "drawn, not cut off"
    with pytest.raises(UserError, match="--test_split"):
        hold_out(files[:2], 0.9)


# ---- Decoding


@pytest.mark.parametrize("ext", [ext for ext in EXTENSIONS if ext not in (".jpg", ".jpeg")])
def test_formats(tmp_path, ext):
    photo = make_photo((32, 32), 0)
    photo.save(tmp_path / f"x{ext}", **({"lossless": True} if ext == ".webp" else {}))
    assert np.array_equal(decode(tmp_path / f"x{ext}", 32).permute(1, 2, 0).numpy(), np.asarray(photo))


def test_jpeg(tmp_path):
    photo = make_photo((32, 32), 0)
    photo.save(tmp_path / "x.jpg", quality=95)
    difference = decode(tmp_path / "x.jpg", 32).permute(1, 2, 0).numpy().astype(float) - np.asarray(photo)
    assert np.abs(difference).mean() < 5


def pixel(image):
    """The color of the upper left pixel after conversion."""
    converted = to_rgb(image)
    assert converted.mode == "RGB"
    return converted.getpixel((0, 0))


def test_modes():
    assert pixel(Image.new("L", (2, 2), 100)) == (100, 100, 100)
    assert pixel(Image.new("1", (2, 2), 1)) == (255, 255, 255)
    assert pixel(Image.new("RGB", (2, 2), (1, 2, 3))) == (1, 2, 3)
    assert pixel(Image.new("CMYK", (2, 2), (0, 255, 255, 0))) == (255, 0, 0)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert pixel(palette) == (10, 20, 30)


def test_alpha_is_composed_on_white():
    assert pixel(Image.new("RGBA", (2, 2), (255, 0, 0, 0))) == (255, 255, 255)
    assert pixel(Image.new("RGBA", (2, 2), (255, 0, 0, 255))) == (255, 0, 0)
    assert pixel(Image.new("RGBA", (2, 2), (0, 0, 0, 51))) == (204, 204, 204)
    assert pixel(Image.new("LA", (2, 2), (0, 51))) == (204, 204, 204)
    see_through = Image.new("P", (2, 2), 1)
    see_through.putpalette([0, 0, 0, 10, 20, 30])
    see_through.info["transparency"] = 1
    assert pixel(see_through) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    found = decode(tmp_path / "x.png", 32)[0].numpy()
    assert np.abs(found - values / 257.0).max() <= 0.51 and len(np.unique(found)) == 256


@pytest.mark.parametrize(
    "mode, value, expected",
    [("F", 0.5, 128), ("F", 128.0, 128), ("F", 32768.0, 128), ("I", 128, 128), ("I", 32768, 128)],
)
def test_wide_modes_keep_their_brightness(mode, value, expected):
    assert pixel(Image.new(mode, (2, 2), value)) == (expected,) * 3


def test_float_images_with_nan():
    assert pixel(Image.fromarray(np.array([[np.nan, 1.0], [0.5, 0.25]], dtype=np.float32))) == (0, 0, 0)


def test_exif_rotation(tmp_path):
    photo = make_photo((32, 48), 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    photo.save(tmp_path / "turned.png", exif=exif)
    photo.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    assert torch.equal(decode(tmp_path / "turned.png", 32), decode(tmp_path / "upright.png", 32))


def test_resize_then_center_crop(tmp_path):
    photo = make_photo((100, 50), 3)
    photo.save(tmp_path / "wide.png")
    expected = photo.resize((64, 32), Image.Resampling.BICUBIC).crop((16, 0, 48, 32))
    assert np.array_equal(decode(tmp_path / "wide.png", 32).permute(1, 2, 0).numpy(), np.asarray(expected))


# ---- Batches


def test_batch_shape_and_range(photos):
    for name in data_loader.AUGMENTATIONS:
        x = batches(list_images(photos), data_aug=name).batch(0)
        assert x.shape == (4, 3, 32, 32) and x.dtype == torch.float32 and x.min() >= -1 - 1e-6 and x.max() <= 1 + 1e-6


def test_order_is_a_function_of_seed_and_step(photos):
    files = list_images(photos)
    one, again, other = batches(files), batches(files), batches(files, seed=12)
    assert [one.indices(t).tolist() for t in range(20)] == [again.indices(t).tolist() for t in range(20)]
    assert one.indices(7).tolist() == again.indices(7).tolist(), "not of the steps before"
    assert [one.indices(t).tolist() for t in range(20)] != [other.indices(t).tolist() for t in range(20)]


def test_every_pass_shows_every_image_once(photos):
    images = batches(list_images(photos), batch_size=4)  # 10 images: passes end within batches
    sequence = np.concatenate([images.indices(t) for t in range(15)]).reshape(6, 10)
    assert all(sorted(one_pass.tolist()) == list(range(10)) for one_pass in sequence)
    assert len({tuple(one_pass.tolist()) for one_pass in sequence}) == 6, "each pass has an order of its own"
    assert images.iterations(3) == 8 and images.iterations(2) == 5


def test_fewer_images_than_a_batch(photos):
    images = batches(list_images(photos)[:3], batch_size=8)
    assert np.bincount(images.indices(0), minlength=3).min() >= 2
    assert images.batch(0).shape[0] == 8
    assert any(line.startswith("Warning: 3 images make less than a batch of 8") for line in images.describe())
    assert not any("Warning" in line for line in batches(list_images(photos)).describe())
    assert f"in memory, {3 * 3 * images.images.shape[2] ** 2 / 1e6:.1f} MB" in images.describe()[0]


@pytest.mark.parametrize("num_workers", [1, 4])
@pytest.mark.parametrize("data_aug", data_loader.AUGMENTATIONS)
def test_streamed_batches_equal_cached_ones(photos, data_aug, num_workers):
    files = list_images(photos)
    cached = batches(files, data_aug=data_aug)
    streamed = batches(files, data_aug=data_aug, cache_gb=0, num_workers=num_workers)
    assert cached.is_cached and not streamed.is_cached and streamed.images.numel() == 0
    for step in (0, 1, 2, 7, 8, 3):  # onwards, ahead and back
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
def test_broken_images_are_skipped_and_named(photos, cache_gb):
    (photos / "4.png").write_bytes((photos / "4.png").read_bytes()[:200])  # truncated: its header is fine
    (photos / "7.png").write_text("not an image")
    images = batches(list_images(photos), cache_gb=cache_gb)
    assert len(images) == 8 and {path.name for path in images.skipped} == {"4.png", "7.png"}
    text = "\n".join(images.describe())
    assert "Warning: 2 of 10 images are not readable" in text and "4.png" in text and "7.png" in text
    images.batch(0)
    if cache_gb:  # the others keep their place
        for path, image in zip(images.files, images.images, strict=True):
            assert torch.equal(image, decode(path, 32))


def test_only_broken_images(tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_text("not an image")
    with pytest.raises(UserError) as error:
        batches(list_images(tmp_path))
    assert str(tmp_path) in str(error.value) and all(ext in str(error.value) for ext in EXTENSIONS)


def test_too_little_memory_is_no_fault_of_the_images(photos, monkeypatch):
    """They are not skipped as if they were broken, and a batch that doesn't fit is found out before decoding."""
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        batches(list_images(photos), batch_size=10**10)

    def read(path, size):
        raise MemoryError

    monkeypatch.setattr(decoding, "read", read)
    with pytest.raises(MemoryError):
        batches(list_images(photos))


@pytest.mark.parametrize("num_workers, expected", [(3, 3), (None, os.cpu_count()), (0, os.cpu_count())])
def test_num_workers_is_the_number_of_threads(photos, monkeypatch, num_workers, expected):
    threads = []
    pool = data_loader.ThreadPoolExecutor
    monkeypatch.setattr(data_loader, "ThreadPoolExecutor", lambda n: threads.append(n) or pool(n))
    batches(list_images(photos), cache_gb=0, num_workers=num_workers).batch(0)
    assert threads == [expected]


def test_a_file_that_goes_while_it_is_streamed(photos):
    images = batches(list_images(photos), cache_gb=0)
    for path in photos.iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"photos/\d\.png could be read before but not now .*--resume"):
        images.batch(0)


# ---- Decoded images that the next run finds


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder for decoded images, which takes those of quick sets too, and the names of the files decoded so far."""
    monkeypatch.setattr(decoding, "_CACHE_SECONDS", -1.0)
    decoded = []
    right = decoding.read
    monkeypatch.setattr(decoding, "read", lambda path, size: decoded.append(path.name) or right(path, size))
    return tmp_path / "cache", decoded


@pytest.mark.parametrize("cache_gb", [4.0, 0.0])
def test_the_second_start_decodes_nothing(photos, domains, cache, cache_gb):
    folder, decoded = cache
    (photos / "4.png").write_text("no image")
    settings = {"cache_dir": folder, "test": list_images(domains / "testA"), "cache_gb": cache_gb}
    first = batches(list_images(photos), **settings)
    assert sorted(decoded) == sorted([f"{i}.png" for i in range(10)] + [f"{i}.png" for i in range(3)])
    decoded.clear()
    second = batches(list_images(photos), **settings)
    assert (
        decoded == [] and torch.equal(first.images, second.images) and first.images.shape[0] == (9 if cache_gb else 0)
    )
    assert (first.files, first.skipped, first.test) == (second.files, second.skipped, second.test)
    assert first.describe()[0].endswith(f"; decoded in 0 s, kept in {folder}")
    assert (
        second.describe()[0].endswith(f"; decoded before, in {folder}")
        and first.describe()[1:] == second.describe()[1:]
    )
    assert torch.equal(*(torch.manual_seed(0) and data.batch(3) for data in (first, second)))
    assert {path.suffix for path in folder.iterdir()} == {".npy", ".json"}


@pytest.mark.parametrize(
    "change",
    ["other time", "other content", "one more", "other size", "damaged", "cut", "text", "empty", "null", "header"],
)
def test_what_makes_it_decode_anew(photos, cache, change):
    folder, decoded = cache
    batches(list_images(photos), cache_dir=folder)
    decoded.clear()
    path = photos / "3.png"
    before = path.stat()
    [kept] = folder.glob("*.npy")
    image_size = 32
    if change == "other time":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    elif change == "other content":
        make_photo((50, 48), 99).save(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "one more":
        make_photo((50, 48), 99).save(photos / "new.png")
    elif change == "other size":
        image_size = 64
    elif change == "damaged":
        kept.write_bytes(b"x" * 1000)
    elif change == "empty":
        kept.write_bytes(b"")
    elif change == "header":
        kept.write_bytes(kept.read_bytes()[:10] + b"(((" + kept.read_bytes()[13:])
    elif change == "null":
        kept.with_suffix(".json").write_text('{"skipped": null}')
    elif change == "cut":
        kept.write_bytes(kept.read_bytes()[:-1])
    else:
        kept.with_suffix(".json").write_text("[]")
    images = batches(list_images(photos), image_size=image_size, cache_dir=folder)
    assert len(decoded) == 10 + (change == "one more")
    assert len(list(folder.glob("*.npy"))) == (2 if change == "other size" else 1), "what is out of date goes"
    for path, image in zip(images.files, images.images, strict=True):
        assert torch.equal(image, decode(path, image_size))


def test_no_room_for_the_cache_is_no_mistake(photos, cache):
    folder, decoded = cache
    folder.write_text("a file")
    for _ in range(2):
        assert "kept in" not in batches(list_images(photos), cache_dir=folder).describe()[0]
    assert len(decoded) == 20


def test_what_is_quick_to_decode_is_not_kept(photos, tmp_path):
    batches(list_images(photos), cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_cache_is_beside_the_runs(domains, cache, tmp_path):
    options = CycleOptions(image_size=32, batch_size=4, checkpoint_dir=str(tmp_path / "runs"))
    for expected in (10 + 7 + 3 + 3, 0):
        load_images(find_domains(CycleOptions(data=str(domains))), options, CPU)
        assert len(cache[1]) == expected
        cache[1].clear()
    assert len(list((tmp_path / "runs" / ".cache").glob("*.npy"))) == 4


# ---- Domains


def test_sources(domains, photos, monkeypatch):
    assert find_images(VanillaOptions(data=str(photos))) == {"images": Source(photos, None, "--data")}
    root = find_domains(CycleOptions(data=str(domains)))
    assert root["X"] == Source(domains / "trainA", domains / "testA", "--data")
    assert root["Y"] == Source(domains / "trainB", domains / "testB", "--data")
    (domains / "testA").rename(domains / "elsewhere")
    assert find_domains(CycleOptions(data=str(domains)))["X"].test is None
    two = find_domains(CycleOptions(X=str(photos), Y=str(domains / "trainB")))
    assert two == {"X": Source(photos, None, "--X"), "Y": Source(domains / "trainB", None, "--Y")}
    monkeypatch.setattr(data_loader, "toy_cats", lambda size: domains / str(size))
    assert find_images(VanillaOptions(image_size=32))["images"].train == domains / "32" / "trainB"
    with pytest.raises(UserError, match=r"--data: .*128 holds no folder trainA"):
        find_domains(CycleOptions(image_size=128))


def test_domains_have_an_order_of_their_own(photos):
    """Else images of equal place would always come together, as if they were pairs."""
    one, other = (batches(list_images(photos), stream=stream) for stream in (0, 1))
    passes = [[data.indices(step).tolist() for step in range(5)] for data in (one, other)]
    assert passes[0] != passes[1]
    assert all(sorted(index for batch in orders for index in batch) == sorted([*range(10)] * 2) for orders in passes)
    assert batches(list_images(photos), seed=12).indices(0).tolist() != passes[1][0], "nor that of the next seed"


def test_load_images(domains):
    settings = {"image_size": 32, "batch_size": 4}
    data = load_images(find_domains(CycleOptions(data=str(domains))), CycleOptions(**settings), CPU)
    assert {name: (len(images), images.stream) for name, images in data.items()} == {"X": (10, 0), "Y": (7, 1)}
    assert data["X"].test == list_images(domains / "testA")
    split = load_images(find_domains(CycleOptions(data=str(domains))), CycleOptions(test_split=0.3, **settings), CPU)
    assert len(split["X"]) == 7 and {path.parent.name for path in split["X"].test} == {"trainA"}
    size = 10 * 3 * 32 * 32 / 1e9
    for cache_gb, expected in ((2.01 * size, True), (1.99 * size, False)):  # half for each domain
        options = CycleOptions(cache_gb=cache_gb, **settings)
        assert load_images(find_domains(CycleOptions(data=str(domains))), options, CPU)["X"].is_cached is expected


def test_images_to_look_at(domains):
    """Held-out images if there are any, whole and without augmentation; else those trained on. Unreadable ones go."""
    test, train = list_images(domains / "testA"), list_images(domains / "trainA")
    test[1].write_text("no image")
    data = batches(train, data_aug="deluxe", test=test)
    expected = torch.stack([decode(path, 32) for path in (test[0], test[2])]) / 127.5 - 1
    torch.testing.assert_close(data.to_look_at(5), expected)
    torch.testing.assert_close(data.to_look_at(1), expected[:1])
    assert data.test == [test[0], test[2]] and list(data.skipped) == [test[1]] and len(data) == 10
    assert data.describe()[1].startswith("2 images to test on from") and "1 of 13 images" in data.describe()[2]
    assert "testA/1.png" in data.describe()[3]
    expected = torch.stack([decode(path, 32) for path in train[:3]]) / 127.5 - 1
    torch.testing.assert_close(batches(train, data_aug="deluxe").to_look_at(3), expected)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"--data: there is no folder x/../dog, nor [^.]*dog; give the folder"):
        find_folder("x/../dog")
    with pytest.raises(UserError, match="--data: there is no folder /no/where; give the folder"):
        find_folder("/no/where")


def test_what_a_killed_process_left_in_the_cache_goes(photos, tmp_path, monkeypatch):
    """It may be as large as the images."""
    monkeypatch.setattr(decoding, "_CACHE_SECONDS", 0)
    batches(list_images(photos), cache_dir=tmp_path / "cache")
    [kept] = (tmp_path / "cache").glob("*.npy")
    left = kept.with_name(f".{kept.name}.99999.tmp")
    left.write_bytes(b"half of it")
    make_photo((40, 40), 77).save(photos / "new.png")
    batches(list_images(photos), cache_dir=tmp_path / "cache")
    assert not left.exists()
