"""Every kind of file that breaks loaders, the expected result for each, and a naive loader as the control.

`try_kinds` tells for every kind whether the project did what it should, and whether the naive loader failed: it raised
an error, used a file that is not an image, left out an image, or got other pixels. This file does not use pytest, so
that a benchmark can use it, too.
"""

import logging
import os
import re
import socket
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import nn

from data_loader import ImageBatches
from generation.translation import translate_files
from sources.domains import Domain
from sources.folders import FolderSource, list_images
from system.program import LineFormatter
from utils import LOG, UserError

SIZE = 32  # of the images and of the batches: nothing is resized, so that pixels can be compared
NOT_AN_IMAGE = "^not an image, or a format that Pillow does not know$"  # pattern of a reason
JPEG_TOLERANCE = 4.0  # largest mean difference that the compression of a JPEG may cause

KINDS: dict[str, Callable[[Path], "Expected"]] = {}  # name -> function that writes files into an empty folder
SPECIAL: dict[str, Callable[[Path], tuple[bool, bool]]] = {}  # name -> function that returns (held, control failed)


class Expected(NamedTuple):
    """The expected result of loading a folder.

    Attributes:
        used: name -> pixels, uint8 (32, 32, 3).
        skipped: name -> pattern of the reason.
        line: pattern of a line for the user; "": there is no line besides the number of images and the warnings.
        tolerance: largest mean difference of pixels.
    """

    used: dict[str, np.ndarray]
    skipped: dict[str, str] = MappingProxyType({})
    line: str = ""
    tolerance: float = 0.0


def kind(name: str) -> Callable:
    """Register a function that writes the files of a kind."""
    return lambda make: KINDS.setdefault(name, make)


def special(name: str) -> Callable:
    """Register a function that does more than load a folder."""
    return lambda check: SPECIAL.setdefault(name, check)


def photo(seed: int = 0) -> np.ndarray:
    """Return a smooth random image, uint8 (32, 32, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def save(path: Path, pixels: np.ndarray | Image.Image, **how: Any) -> Path:
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **how)
    return path


def write_png(path: Path, width: int, height: int, extra: bytes = b"") -> None:
    """Write a black PNG with one bit per pixel, row by row: large images in small files."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packer = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row * min(1000, height - i)) for i in range(0, height, 1000)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    text = chunk(b"zTXt", extra) if extra else b""
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + text + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


# ----------------------------------------------------------------------------------------------------------------------
# Broken files


def _truncated(ending: str, reason: str, **how: Any) -> None:
    @kind(f"truncated {ending}")
    def make(folder: Path) -> Expected:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        path = save(folder / f"x.{ending}", noise, **how)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return Expected({}, {path.name: reason})


_truncated("jpg", "truncated")
_truncated("png", "truncated")
_truncated("webp", "decoder", lossless=True)
_truncated("bmp", "truncated")
_truncated("tif", "Error|truncated")


@kind("truncated JPEG that verify() passes")
def _(folder: Path) -> Expected:
    path = save(folder / "x.jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:-200])
    with Image.open(path) as image:
        image.verify()
    return Expected({}, {"x.jpg": "truncated"})


@kind("zero bytes")
def _(folder: Path) -> Expected:
    for name in ("a.png", "b.jpg"):
        (folder / name).touch()
    return Expected({}, {"a.png": NOT_AN_IMAGE, "b.jpg": NOT_AN_IMAGE})


@kind("text as .png")
def _(folder: Path) -> Expected:
    (folder / "x.png").write_text("<html><body>404 Not Found</body></html>")
    return Expected({}, {"x.png": NOT_AN_IMAGE})


@kind("EPS as .png")
def _(folder: Path) -> Expected:
    """EPS files are programs, which Pillow would run in Ghostscript."""
    save(folder / "x.png", photo(), format="EPS")
    return Expected({}, {"x.png": NOT_AN_IMAGE})


# ----------------------------------------------------------------------------------------------------------------------
# Images of unusual kinds


@kind("wrong ending")
def _(folder: Path) -> Expected:
    save(folder / "a.png", photo(0), format="JPEG", quality=95)
    save(folder / "b.jpg", photo(1), format="PNG")
    return Expected({"a.png": photo(0), "b.jpg": photo(1)}, tolerance=JPEG_TOLERANCE)


@kind("CMYK")
def _(folder: Path) -> Expected:
    ink = np.dstack([255 - photo(), np.zeros((SIZE, SIZE), np.uint8)])
    save(folder / "a.tif", Image.fromarray(ink, mode="CMYK"))
    save(folder / "b.jpg", Image.fromarray(ink, mode="CMYK"), quality=95)
    return Expected({"a.tif": photo(), "b.jpg": photo()}, tolerance=JPEG_TOLERANCE)


@kind("16-bit gray")
def _(folder: Path) -> Expected:
    values = np.linspace(0, 65535, SIZE**2).round().astype(np.uint16).reshape(SIZE, SIZE)
    save(folder / "x.png", values)
    save(folder / "y.tif", values)
    gray = np.repeat((values / 257).round().astype(np.uint8)[:, :, None], 3, axis=2)
    line = "^2 images have more than 8 bits: values 0 to 65535 become 0 to 255"
    return Expected({"x.png": gray, "y.tif": gray}, tolerance=0.01, line=line)


@kind("float TIFF")
def _(folder: Path) -> Expected:
    values = np.linspace(0, 1, SIZE**2, dtype=np.float32).reshape(SIZE, SIZE)
    save(folder / "x.tif", values)
    gray = np.repeat((values * 255).round().astype(np.uint8)[:, :, None], 3, axis=2)
    return Expected({"x.tif": gray}, line="^1 image has more than 8 bits: values 0 to 1 become 0 to 255")


@kind("1-bit")
def _(folder: Path) -> Expected:
    values = np.indices((SIZE, SIZE)).sum(axis=0) % 2 == 0
    save(folder / "x.png", values)
    return Expected({"x.png": np.repeat(values.astype(np.uint8)[:, :, None] * 255, 3, axis=2)})


@kind("palette with transparency")
def _(folder: Path) -> Expected:
    places = np.indices((SIZE, SIZE)).sum(axis=0).astype(np.uint8) % 3
    image = Image.fromarray(places, mode="P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    save(folder / "one.png", image, transparency=1)
    save(folder / "each.png", image, transparency=bytes([0, 255, 51]))
    one = np.array([[200, 0, 0], [255, 255, 255], [0, 0, 200]], np.uint8)[places]
    each = np.array([[255, 255, 255], [0, 200, 0], [204, 204, 244]], np.uint8)[places]
    return Expected({"one.png": one, "each.png": each})


@kind("gray and alpha")
def _(folder: Path) -> Expected:
    gray, alpha = photo()[:, :, 0], photo(1)[:, :, 0]
    save(folder / "x.png", Image.merge("LA", [Image.fromarray(gray), Image.fromarray(alpha)]))
    share = alpha / 255
    on_white = (gray * share + 255 * (1 - share)).round().astype(np.uint8)
    return Expected({"x.png": np.repeat(on_white[:, :, None], 3, axis=2)}, tolerance=1.0)


@kind("EXIF rotations 1-8")
def _(folder: Path) -> Expected:
    upright, used = photo(), {}
    transposed = upright.transpose(1, 0, 2)
    stored = [
        upright, upright[:, ::-1], upright[::-1, ::-1], upright[::-1],
        transposed, np.rot90(upright, 1), transposed[::-1, ::-1], np.rot90(upright, -1),
    ]  # fmt: skip
    for turn, pixels in enumerate(stored, start=1):
        exif = Image.Exif()
        exif[0x0112] = turn
        save(folder / f"{turn}.jpg", np.ascontiguousarray(pixels), exif=exif, quality=95)
        used[f"{turn}.jpg"] = upright
    return Expected(used, tolerance=JPEG_TOLERANCE)


@kind("broken EXIF")
def _(folder: Path) -> Expected:
    """The metadata is damaged, the image is not."""
    exif_blocks = {
        "a": b"Exif\0\0garbage",
        "b": b"Exif\0\0II*\0\x08\0\0\0\xff\xff\1\2",
        "c": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    }
    for name, exif in exif_blocks.items():
        save(folder / f"{name}.png", photo(), exif=exif)
        save(folder / f"{name}.webp", photo(), exif=exif, lossless=True)
    return Expected({f"{name}{ending}": photo() for name in exif_blocks for ending in (".png", ".webp")})


def _animated(name: str, file: str, **how: Any) -> None:
    @kind(name)
    def make(folder: Path) -> Expected:
        frames = [Image.fromarray(photo(i)).quantize(16) for i in range(3)]
        first = np.array(frames[0].convert("RGB"))
        if how["format"] != "GIF":
            frames = [frame.convert("RGB") for frame in frames]
        frames[0].save(folder / file, save_all=True, append_images=frames[1:], duration=100, **how)
        return Expected({file: first}, line=rf"^1 image has several frames; the first is used: {file}$")


_animated("animated WebP", "x.webp", format="WEBP", lossless=True)
_animated("animated PNG", "x.png", format="PNG")
_animated("GIF renamed .png", "gif.png", format="GIF")
_animated("TIFF of several pages", "x.tif", format="TIFF")


@kind("1x1")
def _(folder: Path) -> Expected:
    save(folder / "x.png", np.full((1, 1, 3), 77, np.uint8))
    return Expected({"x.png": np.full((SIZE, SIZE, 3), 77, np.uint8)})


@kind("1x10000, 1x1000000")
def _(folder: Path) -> Expected:
    names = {"high.png": (10_000, 1), "wide.png": (1, 10_000), "longest.png": (1, 1_000_000)}
    for name, size in names.items():
        save(folder / name, np.full(size, 77, np.uint8))
    return Expected({name: np.full((SIZE, SIZE, 3), 77, np.uint8) for name in names})


@kind("bomb of 200 megapixels in 25 kB")
def _(folder: Path) -> Expected:
    write_png(folder / "x.png", 20_000, 10_000)
    return Expected({}, {"x.png": r"^200\.0 megapixels, more than 50$"})


@kind("bomb of text")
def _(folder: Path) -> Expected:
    write_png(folder / "x.png", 32, 32, extra=b"Comment\0\0" + zlib.compress(bytes(100_000_000), 1))
    return Expected({}, {"x.png": "too large"})


# ----------------------------------------------------------------------------------------------------------------------
# Files that are not images, and names


@kind("hidden files and __MACOSX")
def _(folder: Path) -> Expected:
    (folder / "__MACOSX").mkdir()
    for name in (".DS_Store", "._good.png", ".hidden.png", "__MACOSX/._good.png"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    return Expected({})


def _named(what: str, name: str) -> None:
    """Register an animation with a special name: a line for the user shows the name."""

    @kind(f"name with {what}")
    def make(folder: Path) -> Expected:
        expected = KINDS["animated PNG"](folder)
        (folder / "x.png").rename(folder / name)
        return Expected({name: expected.used["x.png"]}, line=r"^1 image has several frames.*\.png$")


_named("spaces", " two  spaces .png")
_named("a newline", "new\nline.png")
_named("an emoji", "👩\u200d🚀.png")
_named("an escape sequence", "\x1b[2J\u202e.png")
_named("bytes that are not text", os.fsdecode(b"caf\xe9.png"))


@kind("link to an image")
def _(folder: Path) -> Expected:
    (folder / "x.png").symlink_to("good.png")
    return Expected({"x.png": photo(99)})


@kind("broken links")
def _(folder: Path) -> Expected:
    (folder / "dangling.png").symlink_to("nothing.png")
    (folder / "circular.png").symlink_to("circular.png")
    return Expected({}, dict.fromkeys(("dangling.png", "circular.png"), r"^a broken link \("))


@kind("folder called cat.png")
def _(folder: Path) -> Expected:
    (folder / "cat.png").mkdir()
    return Expected({}, {"cat.png": "^a folder, not a file$"})


@kind("pipe")
def _(folder: Path) -> Expected:
    os.mkfifo(folder / "x.png")
    return Expected({}, {"x.png": "^a pipe, not a file$"})


@kind("socket")
def _(folder: Path) -> Expected:
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket is limited to about 100 characters
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("x.png")
    finally:
        os.chdir(here)
    return Expected({}, {"x.png": "^a socket, not a file$"})


if os.geteuid() != 0:  # root may read all files

    @kind("no permission")
    def _(folder: Path) -> Expected:
        save(folder / "x.png", photo()).chmod(0)
        return Expected({}, {"x.png": "Permission denied"})


# ----------------------------------------------------------------------------------------------------------------------
# The project and a naive loader


def make(name: str, folder: Path) -> Expected:
    """Make a folder with the files of a kind and one good image."""
    folder.mkdir(parents=True)
    save(folder / "good.png", photo(99))
    expected = KINDS[name](folder)
    return expected._replace(used={"good.png": photo(99), **expected.used})


def batches(files: list[Path], test: list[Path] | None = None, **changes: Any) -> ImageBatches:
    """Return the batches of image files, without augmentation; `test` are the files to test on."""
    domain = Domain(FolderSource(files), None if test is None else FolderSource(test), "--data")
    settings = {"image_size": SIZE, "data_aug": "basic", "batch_size": 1, "seed": 0, "num_workers": 1}
    return ImageBatches(domain, **{**settings, "device": torch.device("cpu"), **changes})


def reported(images: ImageBatches) -> list[str]:
    """Return the lines that `images.report()` logs, as a user sees them."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.setFormatter(LineFormatter())
    handler.emit = lambda record: lines.append(handler.format(record))  # type: ignore[method-assign]
    level = LOG.level
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    try:
        images.report()
    finally:
        LOG.removeHandler(handler)
        LOG.setLevel(level)
    return lines


def naive(folder: Path) -> dict[str, np.ndarray]:
    """Load a folder as the code of a course does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            path.name: np.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE))) for path in folder.iterdir()
        }


def matches(found: dict[str, np.ndarray], expected: Expected) -> bool:
    """Whether the images found are the expected ones, with the expected pixels."""
    return found.keys() == expected.used.keys() and all(
        np.abs(found[name].astype(float) - pixels).mean() <= expected.tolerance
        for name, pixels in expected.used.items()
    )


def find_problems(folder: Path, expected: Expected) -> list[str]:
    """Load a folder with the project, cached and streamed; return every difference from the expected result."""
    found = []
    cached, streamed = (batches(list_images(folder), cache_gb=gb) for gb in (4, 0))
    pixels = {
        name: image.permute(1, 2, 0).numpy() for name, image in zip(cached.source.names, cached.images, strict=True)
    }
    if not matches(pixels, expected):
        found.append(f"used {sorted(pixels)}, not {sorted(expected.used)}, or with other pixels")
    if not all(torch.equal(cached.batch(step), streamed.batch(step)) for step in range(len(cached))):
        found.append("streamed batches differ")
    for images in (cached, streamed):
        reasons = {name.removeprefix(f"{folder.name}/"): reason for name, reason in images.skipped.items()}
        if reasons.keys() != expected.skipped.keys():
            found.append(f"skipped {sorted(reasons)}, not {sorted(expected.skipped)}")
        elif not all(re.search(pattern, reasons[name]) for name, pattern in expected.skipped.items()):
            found.append(f"reasons: {reasons}")
        lines = reported(images)
        text = "\n".join(lines)
        bad = len(expected.skipped)
        counted = f"Warning: {bad} of {bad + len(expected.used)} images {'is' if bad == 1 else 'are'} not readable: "
        if (counted in text) != bool(expected.skipped) or not re.search(expected.line, text, re.MULTILINE):
            found.append(f"lines: {lines}")
        if len(lines) != 1 + (1 + len(expected.skipped)) * bool(expected.skipped) + bool(expected.line):
            found.append(f"number of lines: {lines}")
        if any(len(line.splitlines()) > 1 or "\x1b" in line or line != line.encode().decode() for line in lines):
            found.append(f"not printable: {lines}")
    return found


def attempt(load: Callable[[], Any], folder: Path, seconds: float) -> Any:
    """Return the result of `load`, the exception that it raises, or TimeoutError if it waits for a pipe in `folder`."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(load())
        except Exception as error:
            result.append(error)

    pipes = [path for path in folder.iterdir() if path.is_fifo()]
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds if pipes else None)
    if thread.is_alive():
        while thread.is_alive():
            for pipe in pipes:  # end of file, for a reader that waits for a writer
                try:
                    os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
                except OSError:  # it does not wait yet
                    pass
            thread.join(0.01)
        return TimeoutError()
    return result[0]


class Identity(nn.Module):
    """A translator that returns its input."""

    stride = 1

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.weight


def translate(folder: Path, out: Path) -> set[str]:
    """Translate a folder with the project; return the names of the outputs."""
    files = list_images(folder)
    translate_files(Identity(), files, [out / path.name for path in files], None)
    return {path.name for path in out.iterdir()}


@special("x.jpg beside x.png")
def _(folder: Path) -> tuple[bool, bool]:
    """Two inputs give two outputs; code that writes every output as PNG overwrites one of them."""
    names = {"x.jpg", "x.png"}
    for name in names:
        save(folder / name, photo())
    plain = {f"{path.stem}.png" for path in folder.iterdir()}
    return translate(folder, folder / "out") == names, len(plain) < 2


@special("metadata in the output")
def _(folder: Path) -> tuple[bool, bool]:
    """The camera, the author and the color profile of a photo are not in its translation."""
    exif, texts, profile = Image.Exif(), PngImagePlugin.PngInfo(), b"profile of a screen" * 9
    exif[0x010F], exif[0x013B] = "a camera", "by Ann"
    texts.add_text("Comment", "by Ann")
    save(folder / "a.jpg", photo(), exif=exif, icc_profile=profile, xmp=b"<x/>", comment=b"by Ann")
    save(folder / "b.png", photo(), exif=exif, icc_profile=profile, pnginfo=texts)
    save(folder / "c.webp", photo(), exif=exif, icc_profile=profile, xmp=b"<x/>")
    save(folder / "d.tif", photo(), exif=exif, icc_profile=profile)

    def has_metadata(path: Path) -> bool:
        content = path.read_bytes()
        with Image.open(path) as image:
            if image.info.get("icc_profile"):  # compressed in a PNG
                return True
        return any(word in content for word in (b"a camera", b"Exif", b"by Ann", b"profile of a screen", b"<x/>"))

    inputs = list_images(folder)
    assert all(map(has_metadata, inputs))
    names = translate(folder, folder / "out")
    (folder / "plain").mkdir()
    for path in inputs:
        Image.open(path).convert("RGB").resize((SIZE, SIZE)).save(folder / "plain" / f"{path.name}.png")
    held = len(names) == len(inputs) and not any(map(has_metadata, (folder / "out").iterdir()))
    return held, any(map(has_metadata, (folder / "plain").iterdir()))


def _pair(folder: Path) -> list[Path]:
    return [save(folder / f"{i}.png", photo(i)) for i in range(2)]


def _opens_later(files: list[Path]) -> bool:
    """Whether a data set that opens each file when it is used fails without the second file."""
    files[1].unlink()
    try:
        return not [np.asarray(Image.open(path)) for path in files]
    except FileNotFoundError:
        return True


@special("deleted before it is decoded")
def _(folder: Path) -> tuple[bool, bool]:
    files = _pair(folder)
    control = _opens_later(files)
    images = batches(files)
    return len(images) == 1 and "No such file" in images.skipped[f"{folder.name}/{files[1].name}"], control


@special("deleted while training, cached")
def _(folder: Path) -> tuple[bool, bool]:
    files = _pair(folder)
    images = batches(files)
    control = _opens_later(files)
    return {images.batch(step).sum().item() for step in range(2)} == {
        batches([save(path, photo(i))]).batch(0).sum().item() for i, path in enumerate(files)
    }, control


@special("deleted while training, streamed")
def _(folder: Path) -> tuple[bool, bool]:
    """Training cannot continue: one line names the file and how to continue later."""
    files = _pair(folder)
    images = batches(files, cache_gb=0)
    control = _opens_later(files)
    try:
        for step in range(2):
            images.batch(step)
    except UserError as error:
        return str(files[1]) in str(error) and "--resume" in str(error), control
    return False, control


def try_kind(name: str, folder: Path) -> tuple[list[str], bool]:
    """Try a kind in a new folder: return the differences from the expected result, and whether the control failed."""
    if name in SPECIAL:
        folder.mkdir(parents=True)
        held, control_failed = SPECIAL[name](folder)
        return [] if held else ["not the expected result"], control_failed
    expected = make(name, folder)
    found = attempt(lambda: find_problems(folder, expected), folder, 10)
    plain = attempt(lambda: naive(folder), folder, 0.3)
    control_failed = isinstance(plain, Exception) or not matches(plain, expected)
    return [repr(found)] if isinstance(found, Exception) else found, control_failed


def try_kinds(folder: Path) -> dict[str, tuple[bool, bool]]:
    """Try every kind, each in its own folder below `folder`: kind -> (the project held, the control failed)."""
    results = {}
    for i, name in enumerate((*KINDS, *SPECIAL)):
        problems, control_failed = try_kind(name, folder / f"{i:02d}")
        results[name] = (not problems, control_failed)
    return results
