"""Decoding image files of any kind to uint8 tensors, and the cache of decoded images."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

import images.decoding
from data_loader import load_images
from images.decoding import decode, decode_all, open_image, resize_to_square, to_rgb
from options.training import CycleOptions
from sources.folders import EXTENSIONS, FolderSource, list_images
from tests.conftest import make_photo
from tests.helpers.corpus import batches, reported


def pixels_of(path, size=None) -> np.ndarray:
    """Decode an image file; return its pixels (H, W, 3)."""
    return decode(open_image(path), size).pixels.permute(1, 2, 0).numpy()


# ---- Decoding


@pytest.mark.parametrize("ext", [ext for ext in EXTENSIONS if ext not in (".jpg", ".jpeg")])
def test_lossless_formats_keep_the_pixels(tmp_path, ext):
    photo = make_photo((32, 32), 0)
    photo.save(tmp_path / f"x{ext}", **({"lossless": True} if ext == ".webp" else {}))
    assert np.array_equal(pixels_of(tmp_path / f"x{ext}", 32), np.asarray(photo))


def test_a_jpeg_is_close_to_the_photo(tmp_path):
    photo = make_photo((32, 32), 0)
    photo.save(tmp_path / "x.jpg", quality=95)
    difference = pixels_of(tmp_path / "x.jpg", 32).astype(float) - np.asarray(photo)
    assert np.abs(difference).mean() < 5


def pixel(image) -> tuple[int, ...]:
    """Return the color of the upper left pixel after conversion."""
    converted = to_rgb(image)
    assert converted.mode == "RGB"
    return converted.getpixel((0, 0))


def test_modes_are_converted_to_rgb():
    assert pixel(Image.new("L", (2, 2), 100)) == (100, 100, 100)
    assert pixel(Image.new("1", (2, 2), 1)) == (255, 255, 255)
    assert pixel(Image.new("RGB", (2, 2), (1, 2, 3))) == (1, 2, 3)
    assert pixel(Image.new("CMYK", (2, 2), (0, 255, 255, 0))) == (255, 0, 0)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert pixel(palette) == (10, 20, 30)


def test_transparent_pixels_become_white():
    assert pixel(Image.new("RGBA", (2, 2), (255, 0, 0, 0))) == (255, 255, 255)
    assert pixel(Image.new("RGBA", (2, 2), (255, 0, 0, 255))) == (255, 0, 0)
    assert pixel(Image.new("RGBA", (2, 2), (0, 0, 0, 51))) == (204, 204, 204)
    assert pixel(Image.new("LA", (2, 2), (0, 51))) == (204, 204, 204)
    transparent = Image.new("P", (2, 2), 1)
    transparent.putpalette([0, 0, 0, 10, 20, 30])
    transparent.info["transparency"] = 1
    assert pixel(transparent) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    found = pixels_of(tmp_path / "x.png", 32)[:, :, 0]
    assert np.abs(found - values / 257.0).max() <= 0.51 and len(np.unique(found)) == 256


@pytest.mark.parametrize(
    "mode, value, expected",
    [("F", 0.5, 128), ("F", 128.0, 128), ("I", 128, 128), ("I", 32768, 128)],
)
def test_wide_modes_keep_their_brightness(mode, value, expected):
    assert pixel(Image.new(mode, (2, 2), value)) == (expected,) * 3


def test_nan_pixels_of_float_images_become_black():
    assert pixel(Image.fromarray(np.array([[np.nan, 1.0], [0.5, 0.25]], dtype=np.float32))) == (0, 0, 0)


def test_exif_rotation(tmp_path):
    photo = make_photo((32, 48), 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    photo.save(tmp_path / "rotated.png", exif=exif)
    photo.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    assert np.array_equal(pixels_of(tmp_path / "rotated.png", 32), pixels_of(tmp_path / "upright.png", 32))


def test_resize_then_center_crop(tmp_path):
    photo = make_photo((100, 50), 3)
    photo.save(tmp_path / "wide.png")
    expected = photo.resize((64, 32), Image.Resampling.BICUBIC).crop((16, 0, 48, 32))
    assert np.array_equal(pixels_of(tmp_path / "wide.png", 32), np.asarray(expected))


@pytest.mark.golden
@pytest.mark.parametrize("size", [(32, 32), (33, 64), (71, 40), (100, 31), (9, 20), (63, 95)])
def test_the_square_equals_torchvisions(size):
    """Larger and smaller images, of even and odd sides; another filter must fail."""
    photo = make_photo(size, 0)
    bicubic, bilinear = (
        TF.center_crop(TF.resize(photo, 32, filter), [32, 32])
        for filter in (InterpolationMode.BICUBIC, InterpolationMode.BILINEAR)
    )
    square = np.asarray(resize_to_square(photo, 32))
    assert np.array_equal(square, np.asarray(bicubic))
    assert size == (32, 32) or not np.array_equal(square, np.asarray(bilinear))


def save_detailed_jpeg(path, size, **kwargs):
    """A photo with fine detail, on which an error of half a pixel shows."""
    noise = np.random.default_rng(0).integers(-40, 40, (size[1], size[0], 3))
    pixels = np.clip(np.asarray(make_photo(size, 0)).astype(int) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=95, **kwargs)


def in_full(path, size) -> np.ndarray:
    return np.asarray(resize_to_square(to_rgb(Image.open(path)), size)).astype(float)


@pytest.mark.parametrize("size, read", [
    ((512, 256), (128, 64)), ((260, 254), (130, 127)), ((640, 1024), (80, 128)), ((130, 128), (65, 64)),
    ((255, 256), (255, 256)), ((62, 128), (62, 128)),
])  # fmt: skip
def test_large_jpegs_are_decoded_at_a_fraction_of_their_size(tmp_path, monkeypatch, size, read):
    """At least 64 pixels for squares of 32, and only if both sides can be divided. The result is nearly the same."""
    save_detailed_jpeg(tmp_path / "x.jpg", size)
    seen, right = [], images.decoding.to_rgb
    monkeypatch.setattr(images.decoding, "to_rgb", lambda image, *more: seen.append(image.size) or right(image, *more))
    difference = np.abs(pixels_of(tmp_path / "x.jpg", 32) - in_full(tmp_path / "x.jpg", 32))
    assert seen == [read] and difference.mean() < 1.5
    shifted = np.abs(np.roll(in_full(tmp_path / "x.jpg", 32), 1, axis=1) - in_full(tmp_path / "x.jpg", 32))
    assert shifted.mean() > 5, "a shift by one pixel would be seen"


def test_fractions_of_rotated_and_broken_jpegs(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    save_detailed_jpeg(tmp_path / "turned.jpg", (512, 256), exif=exif)
    assert np.abs(pixels_of(tmp_path / "turned.jpg", 32) - in_full(tmp_path / "turned.jpg", 32)).mean() < 1.5
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "turned.jpg").read_bytes()[:20_000])
    with pytest.raises(OSError, match="truncated"):
        pixels_of(tmp_path / "cut.jpg", 32)


def test_an_image_keeps_its_own_size_without_a_size(tmp_path):
    make_photo((100, 50), 3).save(tmp_path / "wide.png")
    assert np.array_equal(pixels_of(tmp_path / "wide.png"), np.asarray(make_photo((100, 50), 3)))


# ---- Decoded images in the cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder that also keeps quickly decoded images, and a list of the names of the files decoded so far."""
    monkeypatch.setattr(images.decoding, "CACHE_SECONDS", -1.0)
    decoded = []
    right = images.decoding.decode

    def count(file, size, value_range):
        decoded.append(os.path.basename(file.filename))
        return right(file, size, value_range)

    monkeypatch.setattr(images.decoding, "decode", count)
    return tmp_path / "cache", decoded


@pytest.mark.parametrize("cache_gb", [4.0, 0.0])
def test_the_second_start_decodes_nothing(photos, domains, cache, cache_gb):
    folder, decoded = cache
    (photos / "4.png").write_text("not an image")
    settings = {"cache_dir": folder, "test": list_images(domains / "testA"), "cache_gb": cache_gb}
    first = batches(list_images(photos), **settings)
    readable = [f"{i}.png" for i in range(10) if i != 4] + [f"{i}.png" for i in range(3)]  # 4.png cannot be opened
    assert sorted(decoded) == sorted(readable)
    decoded.clear()
    second = batches(list_images(photos), **settings)
    assert decoded == []
    assert torch.equal(first.images, second.images) and first.images.shape[0] == (9 if cache_gb else 0)
    assert first.describe_data() == second.describe_data() and first.skipped.keys() == {"photos/4.png"}
    assert reported(first)[0].endswith(f" (decoded in 0 s, kept in {folder})")
    assert reported(second)[0].endswith(f" (from the cache {folder})") and reported(first)[1:] == reported(second)[1:]
    assert torch.equal(*(torch.manual_seed(0) and data.batch(3) for data in (first, second)))
    assert [path.suffix for path in folder.iterdir()] == [".pt", ".pt"], "one file for training, one for testing"


CHANGES = ("other time", "other content", "one more", "other size")
DAMAGES = ("other bytes", "cut off", "empty", "a list", "a part is missing", "other type", "other shape")


@pytest.mark.parametrize("change", [*CHANGES, *DAMAGES])
def test_changed_images_or_a_damaged_cache_are_decoded_again(photos, cache, change):
    folder, decoded = cache
    batches(list_images(photos), cache_dir=folder)
    decoded.clear()
    path = photos / "3.png"
    before = path.stat()
    [kept] = folder.glob("*.pt")
    content = torch.load(kept, weights_only=True)
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
    elif change == "other bytes":
        kept.write_bytes(b"x" * 1000)
    elif change == "cut off":
        kept.write_bytes(kept.read_bytes()[:-1])
    elif change == "empty":
        kept.write_bytes(b"")
    elif change == "a list":
        torch.save(list(content.values()), kept)
    elif change == "a part is missing":
        torch.save({"images": content["images"]}, kept)
    elif change == "other type":
        torch.save({**content, "images": content["images"].float()}, kept)
    else:
        torch.save({**content, "images": content["images"][1:]}, kept)
    data = batches(list_images(photos), image_size=image_size, cache_dir=folder)
    assert len(decoded) == 10 + (change == "one more")
    assert len(list(folder.iterdir())) == (2 if change == "other size" else 1), "outdated files are deleted"
    for file, image in zip(data.source.files, data.images, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels_of(file, image_size))


def test_a_cache_that_cannot_be_written_is_not_an_error(photos, cache):
    folder, decoded = cache
    folder.write_text("a file")
    for _ in range(2):
        assert "kept in" not in reported(batches(list_images(photos), cache_dir=folder))[0]
    assert len(decoded) == 20


def test_quickly_decoded_images_are_not_kept(photos, tmp_path):
    batches(list_images(photos), cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_cache_lies_beside_the_runs(domains, cache, tmp_path):
    options = CycleOptions(image_size=32, batch_size=4, data=str(domains), checkpoint_dir=str(tmp_path / "runs"))
    for expected in (10 + 7 + 3 + 3, 0):
        load_images(options, torch.device("cpu"))
        assert len(cache[1]) == expected
        cache[1].clear()
    assert len(list((tmp_path / "runs" / ".cache").glob("*.pt"))) == 4


def test_both_parts_of_one_folder_stay_in_the_cache(photos, cache):
    """Test images that are held out of the same folder, as an evaluation decodes them."""
    folder, decoded = cache
    source = FolderSource(list_images(photos))
    for expected in (10, 0):
        with ThreadPoolExecutor(1) as pool:
            for part, indices in (("train", range(7)), ("test", range(7, 10))):
                decode_all(source.select(indices), 32, pool, cache=folder, part=part)
        assert len(decoded) == expected
        decoded.clear()


def test_temporary_files_of_killed_processes_are_deleted(photos, cache):
    """They may be as large as the images."""
    folder, _ = cache
    batches(list_images(photos), cache_dir=folder)
    [kept] = folder.glob("*.pt")
    left = kept.with_name(f".{kept.name}.99999.tmp")
    left.write_bytes(b"half of it")
    make_photo((40, 40), 77).save(photos / "new.png")
    batches(list_images(photos), cache_dir=folder)
    assert not left.exists()
