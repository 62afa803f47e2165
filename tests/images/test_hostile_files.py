"""Image files of every kind that breaks loaders: usable ones are used, the others are reported, the counts add up."""

import os
import re
import runpy
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF

import generate
import images.decoding
import vanilla_gan
from data_loader import load_images
from generation.translation import resize_shorter
from images.decoding import MAX_PIXELS, crop_extreme_aspect_ratio, decode, describe_error, open_image
from images.files import read_image
from metrics.evaluation import load_real_images
from metrics.folders import read_folder
from options.command_line import parse_subcommand
from options.training import VanillaOptions
from sources.folders import list_images
from system.program import run_main, set_up_log
from tests.conftest import FinishedRun, make_domains, make_photo, resume, train
from tests.helpers import corpus
from tests.helpers.corpus import KINDS, SPECIAL, batches, reported
from utils import UserError

# pytest shows the warnings of Pillow that images/decoding.py ignores; test_no_warning_is_printed checks them.
pytestmark = [
    pytest.mark.faults,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning"),
]


# The kinds that the naive loader loads correctly. It fails with all others.
HARMLESS = {
    "wrong ending", "CMYK", "1-bit", "broken EXIF",
    "animated WebP", "animated PNG", "GIF renamed .png", "TIFF of several pages",
    "1x1", "1x10000, 1x1000000", "link to an image", "name with spaces", "name with a newline", "name with an emoji",
    "name with an escape sequence", "name with bytes that are not text",
}  # fmt: skip


@pytest.mark.parametrize("name", [*KINDS, *SPECIAL])
def test_each_kind_of_file(name, tmp_path):
    problems, control_failed = corpus.try_kind(name, tmp_path / "x")
    assert problems == [] and control_failed is (name not in HARMLESS)


def test_number_of_kinds():
    """The naive loader fails with 26 of 42 kinds. "no permission" is not counted: root may read all files."""
    total = len(KINDS) + len(SPECIAL) - ("no permission" in KINDS)
    assert (total, len(HARMLESS)) == (42, 16) and set(KINDS) >= HARMLESS


def test_the_check_notices_every_difference(tmp_path):
    """One image too many, one too few, other pixels, another reason, and a missing line."""
    right = corpus.make("text as .png", tmp_path / "x")
    assert corpus.find_problems(tmp_path / "x", right) == []
    for wrong in (
        right._replace(used={**right.used, "more.png": right.used["good.png"]}),
        right._replace(used={}),
        right._replace(used={"good.png": right.used["good.png"] ^ 1}),
        right._replace(skipped={"x.png": "truncated"}),
        right._replace(skipped={}),
        right._replace(line="several frames"),
    ):
        assert corpus.find_problems(tmp_path / "x", wrong)


# ---- Large and long images


def refusal(path) -> str:
    """Return the reason why a file cannot be opened."""
    with pytest.raises(UserError) as error:
        open_image(path)
    return describe_error(error.value)


def test_the_limit_of_pixels(tmp_path):
    """An image of exactly 50 megapixels is accepted; one row more is not, in training, translation and evaluation."""
    corpus.write_png(tmp_path / "a.png", 10_000, MAX_PIXELS // 10_000)
    corpus.write_png(tmp_path / "b.png", 10_000, MAX_PIXELS // 10_000 + 10)
    corpus.write_png(tmp_path / "c.png", 12_000, 10_000)
    with open_image(tmp_path / "a.png") as image:
        assert image.size == (10_000, 5_000)
    assert refusal(tmp_path / "b.png") == "50.1 megapixels, more than 50"
    assert refusal(tmp_path / "c.png") == "120.0 megapixels, more than 50"
    for name in ("b.png", "c.png"):
        with pytest.raises(UserError, match="megapixels, more than 50"):
            read_image(tmp_path / name)


def test_the_limit_is_checked_before_decoding(tmp_path, monkeypatch):
    corpus.write_png(tmp_path / "x.png", 12_000, 10_000)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert refusal(tmp_path / "x.png") == "120.0 megapixels, more than 50"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as notebooks do
    assert refusal(tmp_path / "x.png") == "120.0 megapixels, more than 50"


def test_long_images_cost_little(tmp_path, monkeypatch):
    """Only the middle of a long image is resized, and it is the exact middle."""
    sizes = []
    right = images.decoding.resize_to_square
    monkeypatch.setattr(
        images.decoding, "resize_to_square", lambda image, size: sizes.append(image.size) or right(image, size)
    )
    for width, height in ((1, 10_000), (10_000, 1), (3, 9_999), (7, 1_000_000)):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:] = [0, 0, 255]
        margin = (max(height, width) - 6 * min(height, width)) // 2
        pixels[margin : -margin or None] = [255, 0, 0] if height > width else [0, 0, 255]
        if width > height:
            pixels[:, margin:-margin] = [255, 0, 0]
        Image.fromarray(pixels).save(tmp_path / "x.png")
        assert (decode(open_image(tmp_path / "x.png"), 32).pixels.permute(1, 2, 0).numpy() == [255, 0, 0]).all()
        short, long = sorted(sizes[-1])
        assert short == min(width, height) and long <= 4 * short + 1


def test_cropping_keeps_the_center_to_the_pixel():
    """The crop of a mirrored image is the mirrored crop."""
    for length in (41, 42, 43, 99, 100):
        image = Image.fromarray((np.arange(length * 10) % 251).astype(np.uint8).reshape(10, length))
        crop = crop_extreme_aspect_ratio(image)
        mirrored = crop_extreme_aspect_ratio(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        assert np.array_equal(np.asarray(crop)[:, ::-1], np.asarray(mirrored))
        assert crop.size[1] == 10 and crop.size[0] in (40, 41)
        assert crop_extreme_aspect_ratio(image.rotate(90, expand=True)).size == crop.size[::-1]


@pytest.mark.parametrize("size", [(40, 10), (10, 40), (37, 100), (100, 50), (32, 32), (5, 3)])
def test_ordinary_images_are_not_cropped(size, tmp_path):
    image = make_photo(size, 0)
    assert crop_extreme_aspect_ratio(image) is image
    image.save(tmp_path / "x.png")
    scale = 32 / min(size)
    whole = image.resize([int(side * scale) for side in size], Image.Resampling.BICUBIC)
    expected = TF.center_crop(whole, [32, 32])
    found = decode(open_image(tmp_path / "x.png"), 32).pixels
    assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_a_long_image_is_not_enlarged_for_translation():
    with pytest.raises(UserError, match=r"--image_size: 64 would make it 6400000x64, more than 50 megapixels"):
        resize_shorter(np.zeros((1, 100_000, 3), np.uint8), 64)


def test_no_warning_is_printed(tmp_path):
    """Pillow warns about large images, palettes and metadata; the project reports them in the log instead."""
    corpus.write_png(tmp_path / "x.png", 12_000, 10_000)
    corpus.make("palette with transparency", tmp_path / "palette")
    corpus.make("broken EXIF", tmp_path / "exif")

    def load_all(open_image, decode) -> None:
        with pytest.raises(UserError, match=r"120\.0 megapixels, more than 50"):
            open_image(tmp_path / "x.png")
        for name in ("palette/each.png", "exif/b.png"):
            assert decode(open_image(tmp_path / name), 32).pixels.shape == (3, 32, 32)

    with warnings.catch_warnings(record=True) as printed:
        warnings.simplefilter("always")  # removes the filter that the module has set; this is the control
        load_all(open_image, decode)
        assert any("Bomb" in warning.category.__name__ for warning in printed) and len(printed) > 1
        printed.clear()
        module = runpy.run_path(images.decoding.__file__)  # sets its filter again
        load_all(module["open_image"], module["decode"])
        assert printed == []


# ---- The cache of decoded images


def test_the_cache_keeps_first_frames_and_reasons(tmp_path, monkeypatch):
    """A reason that may pass, such as a missing permission, is not kept."""
    monkeypatch.setattr(images.decoding, "CACHE_SECONDS", -1.0)
    folder, cache = tmp_path / "x", tmp_path / "cache"
    corpus.make("animated WebP", folder)
    for name in ("broken links", "name with bytes that are not text", "zero bytes", "pipe"):
        KINDS[name](folder)
    (folder / "pipe.png").mkdir()
    first, second = (batches(list_images(folder), cache_dir=cache) for _ in range(2))
    assert reported(second)[0].endswith(f" (from the cache {cache})")
    assert (first.source.names, first.skipped) == (second.source.names, second.skipped)
    assert reported(first)[1:] == reported(second)[1:] and len(first.skipped) == 6
    assert any(line.startswith("2 images have several frames; the first is used: ") for line in reported(second))

    (folder / "nothing.png").symlink_to("good.png")  # the target of dangling.png: now an image
    third = batches(list_images(folder), cache_dir=cache)
    assert "dangling.png" in third.source.names and third.num_found == first.num_found + 1

    right = images.decoding.decode

    def refuse(file, size, value_range):
        if file.filename.endswith("good.png"):
            raise PermissionError(13, "Permission denied", file.filename)
        return right(file, size, value_range)

    with monkeypatch.context() as patch:
        patch.setattr(images.decoding, "decode", refuse)
        refused = batches(list_images(folder), cache_dir=tmp_path / "other")
    assert "Permission denied" in refused.skipped["x/good.png"]
    assert "good.png" in batches(list_images(folder), cache_dir=tmp_path / "other").source.names


def test_many_animations_are_reported_in_one_line(photos):
    files = list_images(photos)
    for path in files[:7]:
        frames = [Image.open(path), Image.open(files[8])]
        frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])
    assert reported(batches(files))[1:] == [
        "7 images have several frames; the first is used: 0.png, 1.png, 2.png, 3.png, 4.png, and 2 more"
    ]


def test_an_animation_among_the_test_images_is_reported(tmp_path, photos):
    corpus.make("animated PNG", tmp_path / "x")
    lines = reported(batches(list_images(photos), list_images(tmp_path / "x")))
    assert lines[-1] == "1 image has several frames; the first is used: x.png"


def test_a_gif_that_is_cut_off_anywhere(tmp_path):
    """As soon as the first frame is whole it is used, however broken the others are."""
    frames = [make_photo((8, 8), seed).quantize(4) for seed in range(3)]
    frames[0].save(tmp_path / "whole.gif", save_all=True, append_images=frames[1:])
    content = (tmp_path / "whole.gif").read_bytes()
    states: list[str | bool] = []
    for length in range(len(content) + 1):
        (tmp_path / "x.png").write_bytes(content[:length])
        try:
            with Image.open(tmp_path / "x.png") as image:
                image.load()
        except Exception:
            with pytest.raises(Exception, match=r".*"):
                decode(open_image(tmp_path / "x.png"), 8)
            states.append("broken")
            continue
        states.append(decode(open_image(tmp_path / "x.png"), 8).has_more_frames)
    usable = next(length for length, state in enumerate(states) if state != "broken")
    assert 0 < usable < len(content) / 2 and "broken" not in states[usable:] and states[-1] is True


def test_the_second_image_of_a_camera_is_not_an_animation(tmp_path):
    photo = make_photo((32, 32), 0)
    photo.save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[photo])
    assert Image.open(tmp_path / "x.jpg").format == "MPO"
    assert len(reported(batches(list_images(tmp_path)))) == 1


# ---- Folders without an image


@pytest.mark.parametrize(
    "make, words", [("mkdir", "but folders: cat.png; give one"), ("mkfifo", "first: cat.png, a pipe, not a file")]
)
def test_a_folder_without_an_image(make, words, tmp_path):
    getattr(os, make)(tmp_path / "cat.png")
    (tmp_path / "__MACOSX").mkdir()
    with pytest.raises(UserError) as error:
        batches(list_images(tmp_path))
    assert words in str(error.value) and "MACOSX" not in str(error.value)


# ---- The real commands


def snapshot(folder):
    """Return the content of all files below a folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A folder of all kinds at once: the folder, the names of usable files, and the names of unusable ones."""
    parent = tmp_path_factory.mktemp("all")
    folder, used, skipped = parent / "images", set(), set()
    folder.mkdir()
    for i, name in enumerate(KINDS):
        expected = corpus.make(name, parent / str(i))
        for path in (parent / str(i)).iterdir():
            hidden = path.name.startswith(".") or path.name == "__MACOSX"
            new = path.name if hidden else f"{i:02d} {path.name}"
            if path.is_symlink():
                (folder / new).symlink_to(path)  # its target stays in the old folder
            elif not (folder / new).exists():
                path.rename(folder / new) if path.name != "good.png" else (folder / new).symlink_to(path)
            if not hidden:
                (used if path.name in expected.used else skipped).add(new)
    return folder, used, skipped


def test_training_on_all_kinds(everything, tmp_path, capsys):
    folder, used, skipped = everything
    flags = [f"--data={folder}", f"--checkpoint_dir={tmp_path}", "--train_iters=2", "--log_step=1"]
    logs = {}
    for name, cache_gb in (("cached", 4), ("streamed", 0)):
        assert train(*flags, f"--name={name}", f"--cache_gb={cache_gb}") == 0
        assert capsys.readouterr().err == ""
        run = FinishedRun(tmp_path / name)
        counted = f"Warning: {len(skipped)} of {len(used) + len(skipped)} images are not readable: "
        assert run.log.startswith(f"{len(used)} images from {folder}, 32x32, ") and counted in run.log
        first, *lines = run.log.partition(counted)[2].split("\n")
        assert first.endswith(f", and {len(skipped) - 5} more") and lines[: len(skipped)] == [
            line for line in run.log.split("\n") if line.startswith("    images/")
        ]
        assert "\x1b" not in run.log and "9 images have several frames" in run.log
        assert set(run.data["images"]["train"]) == used
        assert set(run.data["images"]["skipped"]) == {f"images/{name}" for name in skipped}
        logs[name] = (run.folder / "losses.csv").read_bytes()
    assert logs["cached"] == logs["streamed"]
    assert resume(f"--resume={tmp_path / 'cached'}", "--train_iters=3") == 0


@pytest.mark.parametrize("script", ["vanilla_gan.py", "cycle_gan.py"])
def test_strict_refuses_unreadable_images(script, photos, domains, tmp_path, capsys):
    """The error is one line; --strict without unreadable images changes nothing."""
    where = {"vanilla_gan.py": [f"--data={photos}"], "cycle_gan.py": [f"--data={domains}"]}[script]
    flags = [*where, f"--checkpoint_dir={tmp_path / 'runs'}", "--train_iters=1", "--strict"]
    bad = [photos / "a\nb.png"] if script == "vanilla_gan.py" else [domains / "trainB/2.png", domains / "testA/1.png"]
    assert train(*flags, "--name=good", script=script) == 0
    for path in bad:
        path.write_text("not an image")
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert train(*flags, "--name=bad", script=script) == 2
    out, err = capsys.readouterr()
    counted = "1 of 11 images is" if script == "vanilla_gan.py" else "2 of 23 images are"
    name = r"photos/a\nb.png" if script == "vanilla_gan.py" else "testA/1.png"
    assert out == "" and err.count("\n") == 1 and f"{script}: error: --strict: {counted} not readable" in err
    assert err.count("(not an image, or a format") == len(bad), "each is named"
    assert f"{name} (not an image, or" in err and "leave out --strict" in err and snapshot(tmp_path) == before
    assert train(*flags, "--name=bad", "--no-strict", script=script) == 0


def test_an_evaluation_ignores_strict(photos, tmp_path):
    options = VanillaOptions(data=str(photos), image_size=32, strict=True, checkpoint_dir=str(tmp_path))
    (photos / "3.png").write_text("not an image")
    with pytest.raises(UserError, match="--strict"):
        load_images(options, torch.device("cpu"))
    assert len(load_real_images(options).images["images", "train"]) == 9


@pytest.fixture(scope="module")
def fruit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_domains(folder / "domains")
    flags = [f"--data={folder / 'domains'}", f"--checkpoint_dir={folder}", "--name=fruit", "--train_iters=1"]
    assert train(*flags, "--disc=patch", script="cycle_gan.py") == 0
    return folder / "fruit"


def generate_cli(*arguments: str) -> int:
    """Run generate.py in this process; return its exit code."""
    options = parse_subcommand(generate.OPTIONS_OF, "", [*arguments, "--device=cpu"])
    return run_main(lambda: generate.main(options), "generate.py")


def test_translating_all_kinds(everything, fruit, tmp_path, capsys):
    """N inputs give N outputs or failures, each reported once and in one line."""
    folder, used, skipped = everything
    some = tmp_path / "some"
    some.mkdir()
    long = {name for name in used if "high" in name or "wide" in name or "longest" in name}
    for name in (used | skipped) - long:
        (some / name).symlink_to(folder / name)
    used = used - long
    assert generate_cli("translate", str(fruit), str(some), "--direction=X2Y", "-o", str(tmp_path / "out")) == 1
    out, err = capsys.readouterr()
    assert f"translated {len(used)} of {len(used) + len(skipped)} to {tmp_path / 'out'}" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == used
    assert err.count("\n") == len(skipped) and err.count("failed: ") == len(skipped) and "\x1b" not in err
    reason = re.search(r"failed: .*cat\.png: (.*)\n", err)[1]
    assert reason == "a folder, not a file"
    missing = str(some / "no")
    assert generate_cli("translate", str(fruit), missing, "--direction=X2Y", "-o", str(tmp_path / "a.png")) == 2


def test_names_of_broken_files_are_printable(fruit, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        make_photo((32, 32), 0).save(folder / name)
    (folder / "\x1b[2J\nc.png").write_text("not an image")
    read_folder(str(folder), 32)
    assert generate_cli("translate", str(fruit), str(folder), "--direction=X2Y", "-o", str(tmp_path / "out")) == 1
    out, err = capsys.readouterr()
    warning, _, translated = out.partition("\n")
    assert r"\x1b[2J\nc.png" in warning and translated.startswith("translated 2 of 3") and translated.count("\n") == 1
    assert err.count("\n") == 1 and r"\x1b[2J\nc.png" in err and "\x1b" not in out + err


def test_alpha_is_rotated_with_the_image(tmp_path):
    image, exif = make_photo((40, 20), 0), Image.Exif()
    image.putalpha(make_photo((40, 20), 1).convert("L"))
    exif[0x0112] = 6
    image.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "x.png")[:, :, 3], np.rot90(np.asarray(image)[:, :, 3], -1))


def test_translating_a_pipe(fruit, tmp_path, capsys):
    """A naive program would wait for the pipe forever."""
    os.mkfifo(tmp_path / "x.png")
    files = [str(tmp_path / "x.png"), "-o", str(tmp_path / "y.png")]
    assert generate_cli("translate", str(fruit), *files, "--direction=X2Y") == 2
    assert "x.png is not a readable image (a pipe, not a file); give another" in capsys.readouterr().err


def test_evaluating_all_kinds(everything, capsys):
    folder, used, skipped = everything
    set_up_log()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_folder(str(folder), 32)) == len(used)
    out, err = capsys.readouterr()
    counted = f"Warning: {len(skipped)} of {len(used) + len(skipped)} images in {folder} are not readable: "
    scale, unreadable = out.splitlines()
    assert err == "" and unreadable.startswith(counted) and unreadable.endswith(f", and {len(skipped) - 5} more")
    assert re.match("3 images have more than 8 bits: .* whole numbers and floats share this range", scale)


@pytest.mark.parametrize("cache_gb, code", [(4, 0), (0, 2)])
def test_files_that_disappear_during_training(cache_gb, code, photos, tmp_path, monkeypatch, capsys):
    """Images in memory are not affected. Streamed ones end the run in one line; with the files back it can resume."""
    right = vanilla_gan.train_step

    def train_step(state, *arguments):
        if state.step == 4:
            for path in photos.glob("*.png"):
                path.rename(path.with_suffix(".away"))
        return right(state, *arguments)

    monkeypatch.setattr(vanilla_gan, "train_step", train_step)
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", f"--cache_gb={cache_gb}"]
    assert train(*flags, "--train_iters=12", "--checkpoint_every=2") == code
    run, err = FinishedRun(tmp_path / "run"), capsys.readouterr().err
    assert err.count("\n") == (code == 2) and ("has become unreadable" in err and "--resume" in err) is (code == 2)
    assert run.steps("checkpoint-*.pt")[-1] >= 4
    for path in photos.glob("*.away"):
        path.rename(path.with_suffix(".png"))
    assert resume(f"--resume={run.folder}", "--train_iters=13") == 0 and run.checkpoint(13)["step"] == 13
