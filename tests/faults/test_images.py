"""Image files of every kind that breaks loaders: what is usable is used, the rest is named, and the counts add up."""

import os
import re
import runpy
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import generate
import vanilla_gan
from data import decoding
from data.decoding import MAX_PIXELS, cut_middle, decode, open_image, try_decode
from data.media import read_image
from data_loader import list_images, load_images
from evaluate import load_real, read_folder
from options import VanillaOptions
from tests.conftest import ROOT, FinishedRun, make_domains, make_photo, resume, train
from tests.e2e.test_bad_input import snapshot
from tests.faults import images as corpus
from tests.faults.images import KINDS, SPECIAL, batches
from utils import UserError, run_main

# pytest takes back what data/decoding.py says of Pillow's warnings; test_no_warning_is_printed looks at that.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

# What a loader of a few lines gets right. In all other kinds it fails.
HARMLESS = {
    "wrong ending", "CMYK", "1-bit", "broken EXIF",
    "animated WebP", "animated PNG", "GIF renamed .png", "TIFF of several pages",
    "1x1", "1x10000, 1x1000000", "link to an image", "name with spaces", "name with a newline", "name with an emoji",
    "name with an escape sequence", "name with bytes that are no text",
}  # fmt: skip


@pytest.mark.parametrize("name", [*KINDS, *SPECIAL])
def test_kind(name, tmp_path):
    wrong, control_failed = corpus.outcome(name, tmp_path / "x")
    assert wrong == [] and control_failed is (name not in HARMLESS)


def test_all_kinds_are_there():
    """The naive loader fails in so many; a permission that even root would lack can't be made."""
    total = len(KINDS) + len(SPECIAL) - ("no permission" in KINDS)
    assert (total, len(HARMLESS)) == (42, 16) and set(KINDS) >= HARMLESS


def test_the_check_sees_what_is_wrong(tmp_path):
    """An image too many, one too few, other pixels, another reason, and a line unsaid."""
    right = corpus.make("text as .png", tmp_path / "x")
    assert corpus.troubles(tmp_path / "x", right) == []
    for wrong in (
        right._replace(used={**right.used, "more.png": right.used["good.png"]}),
        right._replace(used={}),
        right._replace(used={"good.png": right.used["good.png"] ^ 1}),
        right._replace(skipped={"x.png": "truncated"}),
        right._replace(skipped={}),
        right._replace(says="several frames"),
    ):
        assert corpus.troubles(tmp_path / "x", wrong)


# ---- Large and long images


def test_ceiling(tmp_path):
    """Exactly 50 megapixels pass; one row more does not, in training, translation and evaluation alike."""
    corpus.write_png(tmp_path / "a.png", 10_000, MAX_PIXELS // 10_000)
    corpus.write_png(tmp_path / "b.png", 10_000, MAX_PIXELS // 10_000 + 10)
    corpus.write_png(tmp_path / "c.png", 12_000, 10_000)
    with open_image(tmp_path / "a.png") as image:
        assert image.size == (10_000, 5_000)
    assert try_decode(tmp_path / "b.png", 32) == "50.1 megapixels, more than 50"
    assert try_decode(tmp_path / "c.png", 32) == "120.0 megapixels, more than 50"
    for name in ("b.png", "c.png"):
        with pytest.raises(UserError, match="megapixels, more than 50"):
            read_image(tmp_path / name)


def test_ceiling_comes_before_decoding(tmp_path, monkeypatch):
    corpus.write_png(tmp_path / "x.png", 12_000, 10_000)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert try_decode(tmp_path / "x.png", 32) == "120.0 megapixels, more than 50"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as notebooks do
    assert try_decode(tmp_path / "x.png", 32) == "120.0 megapixels, more than 50"


def test_long_images_cost_little(tmp_path, monkeypatch):
    """What is resized is never longer than its middle, and the middle is that of the image."""
    sizes = []
    right = decoding.TF.resize
    monkeypatch.setattr(decoding.TF, "resize", lambda image, *rest: sizes.append(image.size) or right(image, *rest))
    for width, height in ((1, 10_000), (10_000, 1), (3, 9_999), (7, 1_000_000)):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:] = [0, 0, 255]
        margin = (max(height, width) - 6 * min(height, width)) // 2
        pixels[margin : -margin or None] = [255, 0, 0] if height > width else [0, 0, 255]
        if width > height:
            pixels[:, margin:-margin] = [255, 0, 0]
        Image.fromarray(pixels).save(tmp_path / "x.png")
        assert (decode(tmp_path / "x.png", 32).permute(1, 2, 0).numpy() == [255, 0, 0]).all()
        short, long = sorted(sizes[-1])
        assert short == min(width, height) and long <= 4 * short + 1


def test_the_cut_keeps_the_center():
    """To the pixel: a cut image and the whole, mirrored, are cut to the mirror image."""
    for length in (41, 42, 43, 99, 100):
        image = Image.fromarray((np.arange(length * 10) % 251).astype(np.uint8).reshape(10, length))
        cut, mirrored = cut_middle(image), cut_middle(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        assert np.array_equal(np.asarray(cut)[:, ::-1], np.asarray(mirrored))
        assert cut.size[1] == 10 and cut.size[0] in (40, 41)
        assert cut_middle(image.rotate(90, expand=True)).size == cut.size[::-1]


@pytest.mark.parametrize("size", [(40, 10), (10, 40), (37, 100), (100, 50), (32, 32), (5, 3)])
def test_ordinary_images_are_not_cut(size, tmp_path):
    image = make_photo(size, 0)
    assert cut_middle(image) is image
    image.save(tmp_path / "x.png")
    scale = 32 / min(size)
    whole = image.resize([int(side * scale) for side in size], Image.Resampling.BICUBIC)
    expected = decoding.TF.center_crop(whole, [32, 32])
    assert np.array_equal(decode(tmp_path / "x.png", 32).permute(1, 2, 0).numpy(), np.asarray(expected))


def test_a_long_image_is_not_blown_up_to_be_translated():
    with pytest.raises(UserError, match=r"--image_size: 64 would make it 6400000x64, more than 50 megapixels"):
        generate.resize_shorter(np.zeros((1, 100_000, 3), np.uint8), 64)


def test_no_warning_is_printed(tmp_path):
    """Pillow has some for large images and for palettes; ours are lines in the log."""
    corpus.write_png(tmp_path / "x.png", 12_000, 10_000)
    corpus.make("palette with transparency", tmp_path / "palette")
    corpus.make("broken EXIF", tmp_path / "exif")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        Image.open(tmp_path / "x.png").close()
        assert len(said) == 1 and "Bomb" in said[0].category.__name__
        said.clear()
        try_decode = runpy.run_path(str(ROOT / "data" / "decoding.py"))["try_decode"]  # as it is when it begins
        assert try_decode(tmp_path / "x.png", 32) == "120.0 megapixels, more than 50"
        assert try_decode(tmp_path / "palette" / "each.png", 32).shape == (3, 32, 32)
        assert try_decode(tmp_path / "exif" / "b.png", 32).shape == (3, 32, 32)
        assert said == []


# ---- The cache of decoded images


def test_what_the_cache_keeps(tmp_path, monkeypatch):
    """First frames and reasons come back from it; a refusal that may pass is not kept."""
    monkeypatch.setattr(decoding, "_CACHE_SECONDS", -1.0)
    folder, cache = tmp_path / "x", tmp_path / "cache"
    corpus.make("animated WebP", folder)
    for name in ("links that lead nowhere", "name with bytes that are no text", "zero bytes", "pipe"):
        KINDS[name](folder)
    (folder / "pipe.png").mkdir()
    first, second = (batches(list_images(folder), cache_dir=cache) for _ in range(2))
    assert second.describe()[0].endswith(f"decoded before, in {cache}")
    assert (first.files, first.skipped, first.cut) == (second.files, second.skipped, second.cut)
    assert first.describe()[1:] == second.describe()[1:] and len(first.cut) == 2 and len(first.skipped) == 6

    (folder / "nothing.png").symlink_to("good.png")  # where dangling.png leads: an image now
    third = batches(list_images(folder), cache_dir=cache)
    assert folder / "dangling.png" in third.files and third.found == first.found + 1

    read = decoding.read

    def refusing(path, size):
        if path.name == "good.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, size)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "read", refusing)
        refused = batches(list_images(folder), cache_dir=tmp_path / "other")
    assert "Permission denied" in refused.skipped[folder / "good.png"]
    assert folder / "good.png" in batches(list_images(folder), cache_dir=tmp_path / "other").files


def test_many_animations_are_one_line(photos):
    files = list_images(photos)
    for path in files[:7]:
        frames = [Image.open(path), Image.open(files[8])]
        frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])
    assert batches(files).describe()[1:] == [
        "7 images have several frames, of which the first is used: 0.png, 1.png, 2.png, 3.png, 4.png, and 2 more"
    ]


def test_an_animation_to_test_on_is_said_too(tmp_path, photos):
    corpus.make("animated PNG", tmp_path / "x")
    images = batches(list_images(photos), test=list_images(tmp_path / "x"))
    assert images.describe()[-1] == "1 image has several frames, of which the first is used: x.png"


def test_a_gif_that_is_cut_anywhere(tmp_path):
    """Once the first frame is whole it is used, however broken the others are."""
    frames = [make_photo((8, 8), seed).quantize(4) for seed in range(3)]
    frames[0].save(tmp_path / "whole.gif", save_all=True, append_images=frames[1:])
    content = (tmp_path / "whole.gif").read_bytes()
    states = []
    for length in range(len(content) + 1):
        (tmp_path / "x.png").write_bytes(content[:length])
        try:
            with Image.open(tmp_path / "x.png") as image:
                image.load()
        except Exception:
            with pytest.raises(Exception, match=r".*"):
                decoding.read(tmp_path / "x.png", 8)
            states.append("broken")
            continue
        states.append(decoding.read(tmp_path / "x.png", 8).is_cut)
    usable = next(length for length, state in enumerate(states) if state != "broken")
    assert 0 < usable < len(content) / 2 and "broken" not in states[usable:] and states[-1] is True


def test_the_second_image_of_a_camera_is_no_animation(tmp_path):
    photo = make_photo((32, 32), 0)
    photo.save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[photo])
    assert Image.open(tmp_path / "x.jpg").format == "MPO"
    assert len(batches(list_images(tmp_path)).describe()) == 1


# ---- Folders without an image


@pytest.mark.parametrize(
    "make, words", [("mkdir", "but folders: cat.png; give one"), ("mkfifo", "first: cat.png, a p")]
)
def test_nothing_but(make, words, tmp_path):
    getattr(os, make)(tmp_path / "cat.png")
    (tmp_path / "__MACOSX").mkdir()
    with pytest.raises(UserError) as error:
        batches(list_images(tmp_path))
    assert words in str(error.value) and "MACOSX" not in str(error.value)


# ---- The real commands


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A folder of all kinds at once: the folder, the names to be used, and those to be skipped."""
    parent = tmp_path_factory.mktemp("all")
    folder, used, skipped = parent / "images", set(), set()
    folder.mkdir()
    for i, name in enumerate(KINDS):
        expected = corpus.make(name, parent / str(i))
        for path in (parent / str(i)).iterdir():
            hidden = path.name.startswith(".") or path.name == "__MACOSX"
            new = path.name if hidden else f"{i:02d} {path.name}"
            if path.is_symlink():
                (folder / new).symlink_to(path)  # with its target in the old place
            elif not (folder / new).exists():
                path.rename(folder / new) if path.name != "good.png" else (folder / new).symlink_to(path)
            if not hidden:
                (used if path.name in expected.used else skipped).add(new)
    return folder, used, skipped


def test_train(everything, tmp_path, capsys):
    folder, used, skipped = everything
    flags = [f"--data={folder}", f"--checkpoint_dir={tmp_path}", "--train_iters=2", "--log_step=1"]
    logs = {}
    for name, cache_gb in (("cached", 4), ("streamed", 0)):
        assert train(*flags, f"--name={name}", f"--cache_gb={cache_gb}") == 0
        assert capsys.readouterr().err == ""
        run = FinishedRun(tmp_path / name)
        counted = f"Warning: {len(skipped)} of {len(used) + len(skipped)} images are not readable:\n"
        assert run.log.startswith(f"{len(used)} images from {folder}, 32x32, ") and counted in run.log
        assert run.log.partition(counted)[2].split("\n")[: len(skipped)] == [
            line for line in run.log.split("\n") if line.startswith("    images/")
        ]
        assert "\x1b" not in run.log and "9 images have several frames" in run.log
        assert set(run.data["images"]["train"]) == used
        assert set(run.data["images"]["skipped"]) == {f"images/{name}" for name in skipped}
        logs[name] = (run.folder / "losses.csv").read_bytes()
    assert logs["cached"] == logs["streamed"]
    assert resume(f"--resume={tmp_path / 'cached'}", "--train_iters=3") == 0


@pytest.mark.parametrize("script", ["vanilla_gan.py", "cycle_gan.py"])
def test_strict(script, photos, domains, tmp_path, capsys):
    """One line, before anything is written; without unreadable images it changes nothing."""
    where = {"vanilla_gan.py": [f"--data={photos}"], "cycle_gan.py": [f"--data={domains}"]}[script]
    flags = [*where, f"--checkpoint_dir={tmp_path / 'runs'}", "--train_iters=1", "--strict"]
    bad = [photos / "a\nb.png"] if script == "vanilla_gan.py" else [domains / "trainB/2.png", domains / "testA/1.png"]
    assert train(*flags, "--name=good", script=script) == 0
    for path in bad:
        path.write_text("no image")
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert train(*flags, "--name=bad", script=script) == 2
    out, err = capsys.readouterr()
    counted = "1 of 11" if script == "vanilla_gan.py" else "2 of 23"
    name = r"photos/a\nb.png" if script == "vanilla_gan.py" else "testA/1.png"
    assert out == "" and err.count("\n") == 1 and f"{script}: error: --strict: {counted} images are not readable" in err
    assert err.count("(not an image, or of a kind") == len(bad), "each is named"
    assert f"{name} (not an image, or" in err and "leave --strict out" in err and snapshot(tmp_path) == before
    assert train(*flags, "--name=bad", "--no-strict", script=script) == 0


def test_strict_of_a_run_is_no_matter_of_its_evaluation(photos, tmp_path):
    options = VanillaOptions(data=str(photos), image_size=32, strict=True, checkpoint_dir=str(tmp_path))
    (photos / "3.png").write_text("no image")
    with pytest.raises(UserError, match="--strict"):
        load_images({"images": vanilla_gan.find_images(options)["images"]}, options, torch.device("cpu"))
    assert len(load_real(options, is_translator=False).images["images", "train"]) == 9


@pytest.fixture(scope="module")
def fruit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_domains(folder / "domains")
    flags = [f"--data={folder / 'domains'}", f"--checkpoint_dir={folder}", "--name=fruit", "--train_iters=1"]
    assert train(*flags, "--disc=patch", script="cycle_gan.py") == 0
    return folder / "fruit"


def use(*arguments: str) -> int:
    """Run generate.py in this process; return its exit code."""
    return run_main(lambda: generate.main(generate.parse([*arguments, "--device=cpu"])), "generate.py")


def test_translate(everything, fruit, tmp_path, capsys):
    """N inputs, N outputs or failures, each named once and in one line."""
    folder, used, skipped = everything
    some = tmp_path / "some"
    some.mkdir()
    long = {name for name in used if "high" in name or "wide" in name or "longest" in name}
    for name in (used | skipped) - long:
        (some / name).symlink_to(folder / name)
    used = used - long
    assert use("translate", str(fruit), str(some), "--direction=X2Y", "-o", str(tmp_path / "out")) == 1
    out, err = capsys.readouterr()
    assert f"translated {len(used)} of {len(used) + len(skipped)} to {tmp_path / 'out'}" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == used
    assert err.count("\n") == len(skipped) and err.count("failed: ") == len(skipped) and "\x1b" not in err
    reason = re.search(r"failed: .*cat\.png: (.*)\n", err)[1]
    assert reason == "a folder, not a file"
    assert use("translate", str(fruit), str(some / "no"), "--direction=X2Y", "-o", str(tmp_path / "a.png")) == 2


def test_names_of_broken_files_are_printable(fruit, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        make_photo((32, 32), 0).save(folder / name)
    (folder / "\x1b[2J\nc.png").write_text("no image")
    read_folder(str(folder), 32)
    assert use("translate", str(fruit), str(folder), "--direction=X2Y", "-o", str(tmp_path / "out")) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 2 and err.count(r"\x1b[2J\nc.png") >= 2 and "\x1b" not in err


def test_alpha_turns_with_the_image(tmp_path):
    image, exif = make_photo((40, 20), 0), Image.Exif()
    image.putalpha(make_photo((40, 20), 1).convert("L"))
    exif[0x0112] = 6
    image.save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "x.png")[:, :, 3], np.rot90(np.asarray(image)[:, :, 3], -1))


def test_translate_a_pipe(fruit, tmp_path, capsys):
    """A single input that would hang the program."""
    os.mkfifo(tmp_path / "x.png")
    assert use("translate", str(fruit), str(tmp_path / "x.png"), "-o", str(tmp_path / "y.png"), "--direction=X2Y") == 2
    assert "x.png is no image that can be read (a pipe, not a file); give another" in capsys.readouterr().err


def test_evaluate(everything, capsys):
    folder, used, skipped = everything
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_folder(str(folder), 32)) == len(used)
    err = capsys.readouterr().err
    counted = f"Warning: {len(skipped)} of {len(used) + len(skipped)} images in {folder} are not readable: "
    assert err.startswith(counted) and err.endswith(", ...\n") and err.count("\n") == 1


@pytest.mark.parametrize("cache_gb, code", [(4, 0), (0, 2)])
def test_a_file_goes_while_training(cache_gb, code, photos, tmp_path, monkeypatch, capsys):
    """In memory it doesn't matter. Streamed it ends in one line; with the file back the run goes on."""
    right = vanilla_gan.train_step

    def train_step(state, batch, options):
        if state.step == 4:
            for path in photos.glob("*.png"):
                path.rename(path.with_suffix(".away"))
        return right(state, batch, options)

    monkeypatch.setattr(vanilla_gan, "train_step", train_step)
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", f"--cache_gb={cache_gb}"]
    assert train(*flags, "--train_iters=12", "--checkpoint_every=2") == code
    run, err = FinishedRun(tmp_path / "run"), capsys.readouterr().err
    assert err.count("\n") == (code == 2) and ("could be read before but not now" in err) is (code == 2)
    assert run.steps("checkpoint-*.pt")[-1] >= 4
    for path in photos.glob("*.away"):
        path.rename(path.with_suffix(".png"))
    assert resume(f"--resume={run.folder}", "--train_iters=13") == 0 and run.checkpoint(13)["step"] == 13
