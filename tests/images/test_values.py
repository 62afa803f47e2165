"""Images with more than 8 bits: one range of values for a whole folder, and transparent colors of PNG files."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import images.decoding
from images.decoding import decode_all, open_checked, to_rgb
from images.files import image_to_pixels
from images.values import Extent, Scale, choose_range, find_scale, fix_transparency, to_8_bits
from sources.folders import FolderSource, list_images
from tests.helpers.corpus import batches, reported


def make_folder(folder: Path, arrays: list[np.ndarray], ext: str = "tif") -> Path:
    """Write arrays as image files 0.tif, 1.tif, ... to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, values in enumerate(arrays):
        Image.fromarray(values).save(folder / f"{i}.{ext}")
    return folder


def ramp(low: float, high: float, dtype: type) -> np.ndarray:
    """Return an image of 32x32 whose values rise from `low` to `high`."""
    return np.linspace(low, high, 32 * 32).reshape(32, 32).astype(dtype)


def scale_of(folder: Path, value_range=None) -> Scale | None:
    with ThreadPoolExecutor(2) as pool:
        return find_scale(FolderSource(list_images(folder)), pool, value_range)


# ---- The range that is chosen


@pytest.mark.parametrize(
    "dtype, low, high, expected",
    [
        (np.uint16, 0, 65535, (0, 65535)),
        (np.uint16, 200, 40000, (0, 65535)),
        (np.uint16, 0, 16383, (0, 16383)),
        (np.uint16, 0, 4095, (0, 4095)),
        (np.uint16, 17, 3000, (0, 4095)),
        (np.uint16, 0, 1023, (0, 1023)),
        (np.uint16, 0, 255, (0, 255)),
        (np.uint16, 0, 3, (0, 3)),  # labels
        (np.uint16, 31744, 35839, (31744, 35839)),  # CT images with an offset of 32768
        (np.uint16, 7000, 9000, (7000, 9000)),  # thermal images
        (np.uint16, 65535, 65535, (0, 65535)),
        (np.int32, 0, 250, (0, 255)),
        (np.int32, 0, 260, (0, 255)),
        (np.int32, -1024, 3071, (-1024, 3071)),
        (np.int32, 0, 1_000_000, (0, 1_000_000)),
        (np.float32, 0, 1, (0, 1)),
        (np.float32, 0, 1.004, (0, 1)),
        (np.float32, -0.01, 0.9, (0, 1)),
        (np.float32, -1, 1, (-1, 1)),
        (np.float32, -0.7, 0.8, (-1, 1)),
        (np.float32, 0, 250, (0, 255)),
        (np.float32, 0, 256.5, (0, 255)),
        (np.float32, -1000, 500, (-1000, 500)),
        (np.float32, 0, 0.125, (0, 0.125)),
        (np.float32, 0, 3, (0, 3)),
        (np.float32, 0.95, 1, (0, 1)),
        (np.float32, -0.01, 0.125, (-0.01, 0.125)),
    ],
)
def test_the_range_follows_from_all_values_of_a_folder(tmp_path, dtype, low, high, expected):
    middle = (low + high) / 2
    folder = make_folder(tmp_path / "x", [ramp(low, middle, dtype), ramp(middle, high, dtype)])
    found = scale_of(folder)
    assert found.range == pytest.approx(expected) and found.num_images == 2 and found.is_measured and not found.is_mixed


def test_degenerate_extents_have_a_range():
    nothing = Extent(np.inf, -np.inf, True)
    for extents in ([nothing], [Extent(0, 0, False)], [Extent(-7, -7, True)], [Extent(1e9, 1e9, False), nothing]):
        low, high = choose_range(extents)
        assert low < high and np.isfinite([low, high]).all()
    assert choose_range([nothing, Extent(0, 0.9, True)]) == (0, 1)
    assert np.asarray(to_8_bits(Image.new("I;16", (2, 2), 0))).max() == 0, "a black image stays black"


def test_8_bit_folders_have_no_scale(tmp_path, photos):
    assert scale_of(photos) is None and scale_of(photos, (0.0, 9.0)) is None
    (photos / "broken.tif").write_bytes(b"II*\0")
    (photos / "folder.png").mkdir()
    assert scale_of(photos) is None
    Image.fromarray(ramp(0, 4000, np.uint16)).save(photos / "wide.png")
    assert scale_of(photos) == Scale(0, 4095, 1, True) and scale_of(photos, (1.0, 2.0)) == Scale(1, 2, 1, False)


def test_whole_numbers_among_floats_are_said(tmp_path):
    folder = make_folder(tmp_path / "x", [ramp(0, 60000, np.uint16), ramp(0, 1, np.float32)])
    found = scale_of(folder)
    assert found.is_mixed and "whole numbers and floats share this range" in found.describe()


# ---- From values to brightness


def by_hand(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return gray values pixel by pixel, in Python's own numbers."""
    gray = [0 if v != v else round(max(0.0, min(1.0, (v - low) / (high - low))) * 255) for v in values.ravel().tolist()]
    return np.array(gray).reshape(values.shape)


FOLDERS = {
    "12 bits": ([ramp(0, top, np.uint16) for top in (4095, 2000, 1000)], "png", (0, 4095)),
    "signed": ([ramp(-1024, top, np.int32) for top in (3071, 1000, 0)], "tif", (-1024, 3071)),
    "overshoot": ([ramp(0, top, np.float32) for top in (1.004, 1.0, 0.5)], "tif", (0, 1)),
    "integers": ([ramp(0, top, np.int32) for top in (260, 250, 100)], "tif", (0, 255)),
}


@pytest.mark.golden
@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("cache_gb", [4, 0])
def test_images_keep_their_brightness_relative_to_each_other(tmp_path, name, cache_gb):
    """In memory and streamed. The wrong variant chooses a range for each image, as earlier versions did."""
    arrays, ext, (low, high) = FOLDERS[name]
    data = batches(list_images(make_folder(tmp_path / "x", arrays, ext)), batch_size=3, cache_gb=cache_gb)
    assert data.value_range == (low, high)
    order = data.indices(0).tolist()
    found = ((data.batch(0) + 1) * 127.5).round().numpy()
    alone = [np.asarray(to_rgb(Image.fromarray(values)))[:, :, 0].astype(int) for values in arrays]
    for gray, index in zip(found, order, strict=True):
        assert np.abs(gray[0] - by_hand(arrays[index], low, high)).max() <= 1
    if name in ("12 bits", "signed"):
        wrong = [abs(by_hand(values, low, high) - one).max() for values, one in zip(arrays, alone, strict=True)]
        assert max(wrong) > 20, "a range for each image makes dark images bright"


@pytest.mark.golden
def test_values_that_are_not_finite_and_large_integers():
    values = np.array([[np.nan, np.inf], [-np.inf, 0.5]], np.float32)
    assert np.asarray(to_8_bits(Image.fromarray(values), (-1.0, 1.0))).tolist() == [[0, 255], [0, 191]]
    assert np.asarray(to_8_bits(Image.fromarray(values))).tolist() == [[0, 255], [0, 128]]  # chosen: 0 to 1
    expected = np.arange(256).reshape(16, 16)
    large = (2**30 + expected).astype(np.int32)
    assert np.array_equal(np.asarray(to_8_bits(Image.fromarray(large), (2**30, 2**30 + 255))), expected)
    wrong = (large.astype(np.float32) - np.float32(2**30)).clip(0, 255).round()
    assert not np.array_equal(wrong, expected), "float32 has too few digits"


def test_test_images_get_the_range_of_the_training_images(tmp_path):
    train = make_folder(tmp_path / "a", [ramp(0, 4000, np.uint16)], "png")
    test = make_folder(tmp_path / "b", [ramp(0, 60000, np.uint16)], "png")
    data = batches(list_images(train), list_images(test))
    assert data.value_range == (0, 4095) and ((data.preview_images(1) + 1) * 127.5).mean() > 200
    assert reported(data)[2] == (
        "1 image has more than 8 bits: values 0 to 4095 become 0 to 255 (chosen from all their values; "
        "--value_range=LOW,HIGH sets another range)"
    )


def test_a_range_that_is_given_is_used_or_said_to_do_nothing(tmp_path, photos):
    files = list_images(make_folder(tmp_path / "x", [ramp(0, 4000, np.uint16)], "png"))
    lines = reported(batches(files, value_range=(0.0, 65535.0)))
    assert lines[1] == "1 image has more than 8 bits: values 0 to 65535 become 0 to 255 (the range that was set)"
    assert batches(files, value_range=(0.0, 65535.0)).images.max() == round(4000 / 257)
    assert reported(batches(list_images(photos), value_range=(0.0, 9.0)))[1:] == [
        f"--value_range does nothing for {photos}: no gray image there has more than 8 bits per value"
    ]


def test_the_cache_never_returns_another_range(tmp_path, monkeypatch):
    """A resumed run names the range that its first start measured, and finds the images of that start."""
    monkeypatch.setattr(images.decoding, "CACHE_SECONDS", -1.0)
    source = FolderSource(list_images(make_folder(tmp_path / "x", [ramp(0, 4000, np.uint16)], "png")))

    def load(value_range=None):
        with ThreadPoolExecutor(1) as pool:
            return decode_all(source, 32, pool, cache=tmp_path / "cache", value_range=value_range)

    first = load()
    assert first.scale.range == (0, 4095) and "kept in" in first.note
    for again in (load(), load((0.0, 4095.0))):
        assert "from the cache" in again.note and again.scale == first.scale
        assert torch.equal(again.images, first.images)
    other = load((0.0, 65535.0))
    assert "kept in" in other.note and other.images.max() < 20 and "from the cache" in load((0.0, 65535.0)).note
    assert torch.equal(load().images, first.images), "a range that was set is not taken for a measured one"


# ---- Transparent colors of PNG files


def png(depth: int, color: int, row: bytes, width: int, *chunks: tuple[bytes, bytes]) -> Image.Image:
    """Return an opened PNG file of one row, made by hand: Pillow cannot write all kinds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, color, 0, 0, 0))
    data = b"".join([header, *(chunk(*one) for one in chunks), chunk(b"IDAT", zlib.compress(b"\0" + row))])
    return open_checked(io.BytesIO(b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b"")))


GRAY, RGB, PALETTE, GRAY_ALPHA = 0, 2, 3, 4
# Kind -> (file, the expected RGB of each pixel on white, the expected alpha).
TRANSPARENT = {
    "1-bit gray": (lambda: png(1, GRAY, b"\x40", 2, (b"tRNS", b"\0\1")), [0, 255], [255, 0]),
    "1-bit gray, black": (lambda: png(1, GRAY, b"\x40", 2, (b"tRNS", b"\0\0")), [255, 255], [0, 255]),
    "2-bit gray": (lambda: png(2, GRAY, b"\x1b", 4, (b"tRNS", b"\0\2")), [0, 85, 255, 255], [255, 255, 0, 255]),
    "4-bit gray": (lambda: png(4, GRAY, b"\x2f", 2, (b"tRNS", b"\0\2")), [255, 255], [0, 255]),
    "8-bit gray": (lambda: png(8, GRAY, b"\x02\x80", 2, (b"tRNS", b"\0\2")), [255, 128], [0, 255]),
    "16-bit gray": (
        lambda: png(16, GRAY, b"\x00\x10\x80\x00\xff\xff", 3, (b"tRNS", b"\x80\x00")), [0, 255, 255], [255, 0, 255]),
    "16-bit gray and alpha": (
        lambda: png(16, GRAY_ALPHA, b"\x20\x00\x00\x00\x80\x00\xff\xff", 2), [255, 128], [0, 255]),
    "8-bit RGB": (lambda: png(8, RGB, b"\1\2\3\x80\x80\x80", 2, (b"tRNS", b"\0\1\0\2\0\3")), [255, 128], [0, 255]),
    "16-bit RGB": (
        lambda: png(16, RGB, b"\1\2" * 3 + b"\x80\x80" * 3, 2, (b"tRNS", b"\1\2" * 3)), [255, 128], [0, 255]),
    "palette": (
        lambda: png(8, PALETTE, b"\0\1\2", 3, (b"PLTE", bytes([9] * 3 + [20] * 3 + [0] * 3)), (b"tRNS", b"\xff\0\x33")),
        [9, 255, 204], [255, 0, 51]),
    "2-bit palette": (
        lambda: png(2, PALETTE, b"\x40", 2, (b"PLTE", bytes([9] * 3 + [20] * 3)), (b"tRNS", b"\xff\0")),
        [255, 9], [0, 255]),
}  # fmt: skip


@pytest.mark.golden
@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_colors_of_png_files_become_white(name):
    """On white for training, and as alpha for translations."""
    make, on_white, alpha = TRANSPARENT[name]
    assert np.asarray(to_rgb(make()))[0].tolist() == [[value] * 3 for value in on_white]
    pixels = image_to_pixels(make())[0]
    assert pixels[:, 3].tolist() == alpha and pixels[:, :3].tolist() == [[value] * 3 for value in on_white]


@pytest.mark.golden
@pytest.mark.parametrize("name", ["2-bit gray", "4-bit gray", "16-bit RGB"])
def test_pillow_alone_misses_the_transparent_color(name, monkeypatch):
    """The wrong variant: the color as the file has it, beside pixels that Pillow has scaled."""
    monkeypatch.setattr(images.decoding, "fix_transparency", lambda image: None)
    make, on_white, _ = TRANSPARENT[name]
    image = make()
    assert np.asarray(to_rgb(image.copy()))[0].tolist() != [[value] * 3 for value in on_white]
    monkeypatch.setattr(images.decoding, "fix_transparency", fix_transparency)
    assert np.asarray(to_rgb(make()))[0].tolist() == [[value] * 3 for value in on_white]


def test_the_transparent_value_does_not_count_for_the_range(tmp_path):
    values = np.array([[0, 3000], [65535, 1500]], np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png", transparency=65535)
    assert scale_of(tmp_path).range == (0, 4095)
    assert np.asarray(to_rgb(Image.open(tmp_path / "x.png")))[:, :, 0].tolist() == [[0, 187], [255, 93]]
