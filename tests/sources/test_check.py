"""dataset.py check: the report on folders of images, copies among them, the picture, and the cleaned copy."""

import io
import os
import shlex
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image, ImageEnhance, ImageOps

import dataset
from images.decoding import decode_all
from images.toy_cats import draw_cat, random_attributes
from options import VanillaOptions, parse_command_line
from options.command_line import parse_subcommand
from sources import check, clean_copy, preview
from sources.copies import find_matches, find_near_copies, mirror_fingerprints
from sources.folders import read_folder
from sources.inspection import Part, look
from system.program import run_main
from tests.conftest import TINY, make_domains, make_photo, train
from tests.helpers import corpus


@pytest.fixture
def run(capfd, tmp_path, monkeypatch):
    """A function that runs the command in tmp_path and returns the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            options = parse_subcommand(dataset.OPTIONS_OF, "", ["check", *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        else:
            code = run_main(lambda: dataset.main(options), "dataset.py")
        found = capfd.readouterr()
        return code, found.out + found.err

    return run


def detailed(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Return a photo with fine details: images without any look alike when they are small."""
    fine = np.asarray(make_photo(size, seed), float)
    for grid, weight in ((16, 0.3), (60, 0.2)):
        coarse = np.random.default_rng([seed, grid]).integers(0, 256, (grid, grid, 3), dtype=np.uint8)
        fine += weight * (np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), float) - 128)
    return Image.fromarray(fine.clip(0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


def shrink(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


VARIANTS = {
    "half": lambda image: shrink(image, 0.5),
    "double": lambda image: shrink(image, 2),
    "other shape": lambda image: image.resize((128, 128)),
    "jpeg": lambda image: as_jpeg(image, 30),
    "dark": lambda image: ImageEnhance.Brightness(image).enhance(0.5),
    "bright": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "pale": lambda image: ImageEnhance.Color(image).enhance(0.5),
    "mirrored": ImageOps.mirror,
}


def fingerprint(image: Image.Image) -> np.ndarray:
    return look(image).fingerprint


def save_folder(folder: Path, **images: Image.Image) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    return folder


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and date of each file in a folder and below it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# ----------------------------------------------------------------------------------------------------------------------
# Copies


@pytest.mark.golden
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_near_copies_and_other_cats_are_not(name):
    """Toy cats are alike: the bits of a difference hash (dHash), the usual way, do not tell them apart."""
    import random

    draws = random.Random(5)
    cats = [draw_cat(random_attributes(draws), "B", 64) for _ in range(60)]
    prints = np.stack([fingerprint(cat) for cat in cats])
    variants = np.stack([fingerprint(VARIANTS[name](cat)) for cat in cats])
    assert find_matches(variants, prints, 0.12) == {index: index for index in range(60)}
    assert not find_near_copies(prints, [1] * 60, 0.12)

    def dhash(image: Image.Image) -> np.ndarray:
        gray = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), int)
        return (gray[:, 1:] > gray[:, :-1]).ravel()

    hashes = np.stack([dhash(cat) for cat in cats])
    differ = (hashes[:, None] != hashes).sum(axis=2) + 64 * np.eye(60)
    same = [(dhash(VARIANTS[name](cat)) != one).sum() for cat, one in zip(cats, hashes, strict=True)]
    assert name in ("pale", "jpeg", "contrast", "dark") or max(same) >= differ.min()


@pytest.mark.golden
def test_near_copies_are_those_of_a_plain_loop(monkeypatch):
    random = np.random.default_rng(1)
    photos = [detailed(seed, (64, 48)) for seed in range(12)]
    images = [VARIANTS[list(VARIANTS)[random.integers(9)]](photos[i % 12]) for i in range(40)]
    prints, areas = np.stack([fingerprint(one) for one in images]), [one.width * one.height for one in images]
    kept: list[int] = []
    expected = {}
    for index in sorted(range(40), key=lambda index: areas[index], reverse=True):
        pairs = []
        for other in kept:
            both = (images[index].convert("RGB"), ImageOps.mirror(images[index].convert("RGB")))
            pairs.append((min(1 - float(fingerprint(one) @ prints[other]) for one in both), other))
        if pairs and min(pairs)[0] < 0.12:
            expected[index] = min(pairs)[1]
        else:
            kept.append(index)
    assert len(kept) == 12 and find_near_copies(prints, areas, 0.12) == expected
    monkeypatch.setattr("sources.copies._ROWS", 3)  # many blocks
    assert find_near_copies(prints, areas, 0.12) == expected
    assert find_near_copies(prints, [1] * 40, 0.12) != expected  # wrong: the first instead of the largest
    assert not find_near_copies(prints, areas, 0.0)


def test_a_mirrored_fingerprint_is_that_of_the_mirrored_image():
    for size in ((160, 120), (64, 64), (37, 51)):
        image = detailed(3, size)
        mirrored = mirror_fingerprints(fingerprint(image)[None])[0]
        assert mirrored @ fingerprint(ImageOps.mirror(image)) > 0.98 > 0.5 > mirrored @ fingerprint(image)


def test_images_of_one_color_are_exact_copies_only_if_they_have_the_same_color_and_size(run, tmp_path):
    black, gray = Image.new("RGB", (40, 40)), Image.new("RGB", (40, 40), (90, 90, 90))
    save_folder(tmp_path / "in", a=black, b=gray, c=black, d=black.resize((80, 20)))
    code, text = run("in")
    assert code == 0 and "exact copies: 1 (c.png of a.png)" in text and "near copies" not in text
    assert "nearly one color: 4 (a.png, b.png, c.png, and 1 more)" in text


# ----------------------------------------------------------------------------------------------------------------------
# The report


@pytest.fixture
def mixed(tmp_path):
    """A folder with one image of each problem among twenty normal ones."""
    folder = save_folder(tmp_path / "mixed", **{f"photo{seed:02d}": detailed(seed) for seed in range(20)})
    shutil.copy(folder / "photo00.png", folder / "same.png")
    detailed(1).save(folder / "pixels.bmp")
    shrink(detailed(2), 0.5).save(folder / "half.png")
    detailed(30).convert("L").save(folder / "gray.png")
    detailed(31).convert("L").convert("RGB").save(folder / "grayish.jpg")
    detailed(32, (400, 100)).save(folder / "pano.png")
    ImageEnhance.Brightness(detailed(33)).enhance(0.05).save(folder / "night.png")
    detailed(34, (30, 30)).save(folder / "tiny.png")
    (folder / "cut.png").write_bytes((folder / "photo03.png").read_bytes()[:2000])
    (folder / "text.jpg").write_text("not an image")
    (folder / "x.heic").write_bytes(b"?")
    return folder


def test_every_problem_has_its_line(run, mixed):
    before = snapshot(mixed)
    code, text = run(mixed)
    assert code == 0 and snapshot(mixed) == before
    for line in (
        f"images: 28 images in {mixed}",
        "  sizes: 30x30 to 400x100, median 160x120; modes: 27 RGB, 1 L",
        "  not looked at: 1 .heic",
        "  not readable: 2 (cut.png: ",
        "  exact copies: 2 (pixels.bmp of photo01.png, same.png of photo00.png)",
        "  near copies: 1 (half.png of photo02.png)",
        "  gray among color: 2 (gray.png, grayish.jpg)",
        "the median: 1 (night.png: 6)",
        "  longer than 2:1: 1 (pano.png: 4.0:1)",
        "  smaller than 64 pixels, so enlarged: 2 (half.png: 80x60, tiny.png: 30x30)",
        "  center crop: cuts off 25% of a typical image, at most 75%",
        "text.jpg: not an image",
        "--preset few_images: with 28 images",
        "--image_size=64 --preset=few_images --train_iters=5000",
        "--fix OUT: writes a copy of the folder without unreadable files and copies (5)",
    ):
        assert line in text, line
    assert len(text.splitlines()) <= 30


def test_a_folder_without_problems_has_a_short_report(run, tmp_path):
    save_folder(tmp_path / "in", **{str(seed): detailed(seed, (64, 64)) for seed in range(14)})
    code, text = run("in")
    assert code == 0 and len(text.splitlines()) == 8
    assert not any(word in text for word in ("copies", "gray", "crop", "darker", "readable", "enlarged", "--fix"))


def test_brightness_outliers_do_not_hide_each_other(run, tmp_path):
    """The mean and the standard deviation of all images would hide them: a fifth of the images are black."""
    photos = {f"p{seed}": detailed(seed) for seed in range(16)}
    dark = {f"d{seed}": ImageEnhance.Brightness(detailed(50 + seed)).enhance(0.02) for seed in range(4)}
    save_folder(tmp_path / "in", **photos, **dark)
    text = run("in")[1]
    assert "the median: 4 (" in text and text.count(".png: 2") + text.count(".png: 3") == 3
    values = np.array([look(image).brightness for image in (*photos.values(), *dark.values())])
    assert (np.abs(values - values.mean()) <= 4 * values.std()).all()  # the wrong variant finds none


def test_images_with_more_than_8_bits_have_one_range_also_for_the_test_images(run, tmp_path):
    values = np.linspace(0, 4000, 40 * 40).reshape(40, 40).astype(np.uint16)
    for name, factor in (("trainA", 1), ("testA", 0.1), ("trainB", 1)):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.fromarray((values * factor).astype(np.uint16)).save(tmp_path / "in" / name / "a.png")
    text = run("in")[1]
    assert text.count("values 0 to 4095 become 0 to 255 (chosen") == 2
    assert text.count("values 0 to 4095 become 0 to 255 (the range that was set)") == 1 and "modes: 1 I;16" in text
    text = run("in", "--value_range=0,9000")[1]
    assert text.count("values 0 to 9000 become 0 to 255") == 3
    assert " --value_range=0,9000 " in text.splitlines()[-2], "the command trains on what was checked"
    assert " --value_range=0,9000:0,4095 " in run("in", "--value_range=0,9000:0,4095")[1]
    assert " --value_range=0,9000 " in run("in/trainA", "--value_range=0,9000:0,4095")[1], "a DCGAN has one domain"
    code, text = run("in", "--value_range=9")
    assert code == 2 and "--value_range: '9' is not LOW,HIGH" in text


def test_two_folders_are_compared(run, tmp_path):
    save_folder(tmp_path / "x", **{f"x{seed}": detailed(seed) for seed in range(5)})
    save_folder(tmp_path / "y", **{f"y{seed}": detailed(seed) for seed in range(3, 9)})
    code, text = run("x", "y")
    assert code == 0 and "copies in Y of images in X: 2 (y3.png of x3.png, y4.png of x4.png)" in text
    assert "python cycle_gan.py --X=x --Y=y --image_size=64 --preset=few_images --use_cycle" in text


def test_train_and_test_images_of_two_domains_are_compared(run, tmp_path):
    for number, name in enumerate(("trainA", "trainB", "testA", "testB")):
        save_folder(tmp_path / "in" / name, **{f"{seed}": detailed(100 * number + seed) for seed in range(4)})
    ImageOps.mirror(detailed(1)).save(tmp_path / "in/testA/leak.png")
    detailed(102).save(tmp_path / "in/testA/other.png")  # is in trainB, which does not matter
    code, text = run("in")
    assert code == 0 and "copies in testA of images in trainA: 1 (leak.png of 1.png)" in text
    assert "copies in testB of images in trainB: 0" in text and "copies in trainB of images in trainA: 0" in text
    assert "testB of images in testA" not in text and "testA of images in trainB" not in text
    assert "without unreadable files and copies (1)" in text


def test_the_advice_depends_on_the_images(run, tmp_path):
    save_folder(
        tmp_path / "x", **{str(seed): detailed(seed, (140, 140)) for seed in range(9)}, small=detailed(9, (40, 40))
    )
    save_folder(tmp_path / "y", **{str(seed): detailed(50 + seed, (140, 140)) for seed in range(11)})
    text = run("x", "y", "--image_size=256")[1]
    assert "up to 128, for which nine of ten" in text and "--image_size=128" in text
    assert "--use_identity_loss: keeps colors" in text and "--use_identity_loss --train_iters=10000" in text
    assert "about 14,545 times (epochs)" in text  # 10,000 x 16 / 11
    save_folder(tmp_path / "y", **{str(seed): ImageOps.invert(shrink(detailed(50 + seed), 0.3)) for seed in range(11)})
    for path in (tmp_path / "y").iterdir():
        ImageEnhance.Brightness(Image.open(path)).enhance(0.2).save(path)
    text = run("x", "y")[1]
    assert "up to 32" in text and "only to keep colors" in text and "--use_identity_loss --train" not in text
    assert "--preset=few_images --use_cycle_consistency_loss --use_diffaug=translation --train" in text


def test_the_advice_for_few_large_images(run, tmp_path, monkeypatch):
    for name in ("x", "y"):
        save_folder(tmp_path / name, **{str(seed): detailed(seed, (260, 260)) for seed in range(4)})
    command = run("x", "--image_size=256")[1].split("Train with: python vanilla_gan.py ")[1].splitlines()[0]
    options = parse_command_line(VanillaOptions, "", shlex.split(command))
    assert (options.preset, options.image_size, options.disc, options.ema_decay) == ("few_images", 256, "dc", 0.99)
    assert (options.split_noise, options.noise_size, options.lambda_modes, options.code_range) == (False, 32, 0, 1)
    assert options.train_iters == 1500 and options.lambda_codes > 0
    assert "--disc=dc" not in run("x", "--image_size=128")[1]
    assert "--disc=dc" not in run("x", "y", "--image_size=256")[1]
    monkeypatch.setattr(check, "FEW_IMAGES", 4)
    assert "--image_size=256 --train_iters=5000" in run("x", "--image_size=256")[1]


def test_the_command_of_the_advice_trains(run, photos, tmp_path):
    for arguments in ([photos], [photos, save_folder(tmp_path / "other folder", a=detailed(1), b=detailed(2))]):
        text = run(*arguments)[1]
        _, script, *flags = shlex.split(text.partition("Train with: ")[2].splitlines()[0])
        flags = [flag for flag in flags if not flag.startswith(("--image_size", "--train_iters"))]
        assert train(*flags, *TINY[script], "--train_iters=1", script=script) == 0


def test_more_than_a_thousand_images_need_no_diffaug(monkeypatch, run, photos, domains):
    monkeypatch.setattr("sources.check.FEW_IMAGES", 10)
    assert not any(flag in run(photos)[1] for flag in ("--use_diffaug", "few_images"))
    monkeypatch.setattr("sources.check.FEW_IMAGES", 7)
    pair = run(domains)[1]
    assert "few_images" not in pair and "--disc=patch --use_cycle_consistency_loss" in pair


# ----------------------------------------------------------------------------------------------------------------------
# The picture


@pytest.mark.golden
def test_the_picture_shows_what_training_makes_of_the_images():
    """Compared with torchvision; other draws for the same image must fail."""
    shown = [preview.prepare(str(seed), detailed(seed, (100 + 20 * seed, 96)), 32) for seed in range(3)]
    columns = preview.augment(shown, 32, torch.Generator().manual_seed(0))
    labels = [column.label for column in columns]
    training = ["basic", "deluxe", "deluxe", "paper", "paper", "deluxe_autocontrast", "deluxe_autocontrast"]
    assert labels == [*training, "color", "translation", "cutout", "all three", "all three"]
    assert all(column.images.shape == (3, 3, 32, 32) for column in columns)

    def square(seed: int, side: int) -> torch.Tensor:
        image = detailed(seed, (100 + 20 * seed, 96))
        image = TF.center_crop(TF.resize(image, side, TF.InterpolationMode.BICUBIC), [side, side])
        return TF.to_tensor(image) * 2 - 1

    uniforms = torch.Generator().manual_seed(0)
    for label, side in (("deluxe", 35), ("paper", 36)):
        for column in [column for column in columns if column.label == label]:
            draws = torch.rand(3, 3, generator=uniforms)
            for seed, (row, col, flip) in enumerate(draws.tolist()):
                room = side - 32 + 1
                crop = TF.crop(square(seed, side), int(row * room), int(col * room), 32, 32)
                expected = TF.hflip(crop) if flip < 0.5 else crop
                torch.testing.assert_close(column.images[seed], expected, atol=1e-5, rtol=0)
                assert not torch.allclose(column.images[seed], TF.hflip(expected), atol=1e-2)
    for seed in range(3):
        torch.testing.assert_close(columns[0].images[seed], square(seed, 32), atol=1e-5, rtol=0)
        cut = columns[labels.index("cutout")].images[seed]
        changed = cut != columns[0].images[seed]
        assert 0 < changed.any(dim=0).sum() <= 16 * 16 and (cut[changed] == 0).all()
        assert not torch.equal(columns[-1].images[seed], columns[-2].images[seed])


def test_the_cells_of_the_picture(run, tmp_path):
    images = {f"{seed:02d}": detailed(seed, (64, 64)) for seed in range(24)}
    save_folder(tmp_path / "in", **images)
    assert run("in", "--image_size=32", "-o", "new/p.png")[0] == 0
    picture = np.asarray(Image.open(tmp_path / "new/p.png").convert("RGB"))
    pitch = preview.CELL + preview.LINE + preview.GAP
    assert picture.shape[0] == preview.HEAD + 12 * pitch
    left = preview.GAP + preview.CELL + preview.GROUP_GAP
    for row in range(12):  # every second image, as stored: 4x4 pixels for each
        top = preview.HEAD + row * pitch
        cell = picture[top : top + 128 : 4, left : left + 128 : 4]
        wanted = np.asarray(images[f"{2 * row:02d}"].resize((32, 32), Image.Resampling.BICUBIC))
        assert np.abs(cell.astype(int) - wanted).max() <= 1
        assert picture[top + 128 : top + 144, left : left + 100].min() < 160  # a text


def test_the_original_shows_what_the_center_crop_cuts_off():
    cell = np.asarray(preview._draw_original(Image.new("RGB", (200, 100), (0, 0, 100))))
    assert (cell[64, 64] == (0, 0, 100)).all() and cell[64, 2, 0] > 100 and (cell[2, 64] == 255).all()
    assert (cell[64, 32] == preview.RED).all() and (cell[64, 95] == preview.RED).all()
    assert (np.asarray(preview._draw_original(Image.new("RGB", (9, 9), (0, 0, 100)))) == (0, 0, 100)).all()


def test_the_own_picture_is_replaced_and_a_foreign_one_is_not(run, photos, tmp_path):
    assert run(photos)[0] == 0 and preview.is_preview(tmp_path / "preview.png")
    assert run(photos)[0] == 0
    make_photo((9, 9), 0).save(tmp_path / "mine.png")
    before = (tmp_path / "mine.png").read_bytes()
    code, text = run(photos, "-o", "mine.png")
    assert code == 2 and text.splitlines() == [
        "dataset.py: error: --out: mine.png exists; give another name, or add --overwrite"
    ]
    assert (tmp_path / "mine.png").read_bytes() == before
    assert run(photos, "-o", "mine.png", "--overwrite")[0] == 0 and preview.is_preview(tmp_path / "mine.png")


def test_two_domains_share_the_picture_and_strange_names_are_drawn(run, tmp_path):
    make_domains(tmp_path / "in")
    detailed(1, (3, 900)).save(tmp_path / "in/trainA" / ("Ж" * 60 + "\n.png"))
    Image.new("L", (1, 1)).save(tmp_path / "in/trainB/dot.png")
    code, text = run("in", "--image_size=256")
    assert code == 0 and "What training sees of 12 images: preview.png" in text
    pitch = preview.CELL + preview.LINE + preview.GAP
    assert Image.open(tmp_path / "preview.png").height == preview.HEAD + 12 * pitch


# ----------------------------------------------------------------------------------------------------------------------
# The cleaned copy


def test_the_cleaned_copy_has_every_picture_once(run, mixed, tmp_path):
    before = snapshot(mixed)
    code, text = run(mixed, "--fix", "out/clean")
    assert code == 0 and snapshot(mixed) == before
    left_out = {"same.png", "pixels.bmp", "half.png", "cut.png", "text.jpg", "x.heic"}
    names = {path.name for path in (tmp_path / "out/clean").iterdir()}
    assert names == {path.name for path in mixed.iterdir()} - left_out
    assert all((tmp_path / "out/clean" / name).read_bytes() == (mixed / name).read_bytes() for name in names)
    assert "images: 25 images; left out: 3 copies (half.png, pixels.bmp, same.png), 2 not readable (cut.png" in text
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clean"]
    code, text = run("out/clean")
    assert code == 0 and "copies" not in text and "not readable" not in text


def test_the_cleaned_copy_is_upright(run, tmp_path):
    """All orientations in all formats; the same format and name, and bytes that stay where nothing is to be rotated."""
    (tmp_path / "in").mkdir()
    images = {}
    for number, ending in enumerate(("jpg", "png", "webp", "tif")):
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            name, image = f"{orientation}.{ending}", detailed(10 * number + orientation, (64, 48))
            image.save(tmp_path / "in" / name, exif=exif, **({"lossless": True} if ending == "webp" else {}))
            images[name] = image
    code, text = run("in", "--fix", "out")
    assert code == 0 and "images: 32 images; left out: 0 copies, 0 not readable" in text
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270",
             7: "TRANSVERSE", 8: "ROTATE_90"}  # fmt: skip
    for name, image in images.items():
        orientation, is_lossy = int(name[0]), name.endswith(("jpg", "webp"))
        upright = image.transpose(Image.Transpose[turns[orientation]]) if orientation > 1 else image
        with Image.open(tmp_path / "out" / name) as found:
            assert found.getexif().get(0x0112, 1) == 1 and found.format == Image.open(tmp_path / "in" / name).format
            pixels = np.asarray(found.convert("RGB"), float)
        difference = np.abs(pixels - np.asarray(upright, float)).mean()
        assert difference < (12 if is_lossy else 0.01), (name, difference)
        if orientation > 1:  # the tag does something
            assert pixels.shape != np.asarray(image).shape or np.abs(pixels - np.asarray(image, float)).mean() > 30
        else:
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


def test_of_two_domains_both_folders_are_cleaned_and_leaks_leave_the_test_images(run, tmp_path):
    for number, name in enumerate(("trainA", "trainB", "testA")):
        save_folder(tmp_path / "in" / name, **{f"{seed}": detailed(100 * number + seed) for seed in range(4)})
    shrink(detailed(1), 2).save(tmp_path / "in/testA/leak.png")  # larger, and yet the training image stays
    detailed(2).save(tmp_path / "in/trainB/both.png")
    code, text = run("in", "--fix", "out")
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")}
    assert code == 0 and files == {
        *(f"{name}/{seed}.png" for name in ("trainA", "trainB", "testA") for seed in range(4)),
        "trainB/both.png",  # nobody knows to which domain it belongs
    }
    assert "copies in trainB of images in trainA: 1 (both.png of 2.png)" in text
    assert run(tmp_path / "in/trainA", tmp_path / "in/trainB", "--fix", "pair")[0] == 0
    assert {path.name for path in (tmp_path / "pair").iterdir()} == {"trainA", "trainB"}


class Zipped:
    """Images in a zip file: another kind of image source than a folder."""

    def __init__(self, location: Path):
        self.location, self.left_out = location, ""
        self.names = sorted(zipfile.ZipFile(location).namelist())

    def open(self, index: int) -> Image.Image:
        return Image.open(io.BytesIO(zipfile.ZipFile(self.location).read(self.names[index])))

    def may_be_wide(self, index: int) -> bool:
        return True


def test_other_image_sources_than_folders_are_cleaned_too(run, tmp_path, monkeypatch):
    save_folder(tmp_path / "in", a=detailed(1), b=detailed(2), c=shrink(detailed(2), 2))
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as file:
        for path in (tmp_path / "in").iterdir():
            file.write(path, path.name)
        file.writestr("broken.jpg", b"?")
    monkeypatch.setattr("sources.inspection.find_folder", lambda name, flag: Path(name))
    monkeypatch.setattr("sources.inspection.read_images", lambda folder, flag: Zipped(folder))
    code, text = run("in.zip", "--fix", "out")
    assert code == 0 and "near copies: 1 (b.png of c.png)" in text and "not readable: 1 (broken.jpg: " in text
    names = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert names == {name: (tmp_path / "in" / name).read_bytes() for name in ("a.png", "c.png")}


@pytest.mark.faults
@pytest.mark.parametrize("kind", corpus.KINDS)
def test_hostile_files_are_told_and_copied_as_training_uses_them(tmp_path, kind):
    """The unreadable files are those that training skips, and the cleaned copy gives the same images as the folder."""
    corpus.make(kind, tmp_path / "in")
    part = Part("images", read_folder(tmp_path / "in"))
    with ThreadPoolExecutor(2) as pool:
        part.inspect(pool, None, 0.12)
        trained = decode_all(part.source, 32, pool)
        assert part.indices == trained.readable
        assert part.unreadable == {part.source.names[index]: reason for index, reason in trained.skipped.items()}
        clean_copy.write_clean_copy(tmp_path / "out", [part], {"images": set()})
        copied = decode_all(read_folder(tmp_path / "out"), 32, pool)
    assert not copied.skipped and (copied.images.float() - trained.images.float()).abs().mean() < 4


@pytest.mark.faults
def test_after_an_error_nothing_of_the_cleaned_copy_is_left(run, photos, tmp_path, monkeypatch):
    def fails(image, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(clean_copy, "_copy", fails)
    code, text = run(photos, "--fix", "out")
    assert code == 2 and "No space left on device; fix this, then repeat the command" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "preview.png"]


# ----------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.faults
def test_a_picture_that_cannot_be_written_is_one_line(run, photos, monkeypatch):
    def fails(path, write):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(preview, "atomic_write", fails)
    code, text = run(photos)
    assert code == 2 and text.splitlines()[-1] == (
        "dataset.py: error: --out: preview.png: Input/output error; fix this, then repeat the command"
    )


@pytest.mark.faults
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "FOLDER: the folder nowhere does not exist"),
        (["apple2orange"], "to download it: python dataset.py download apple2orange"),
        (["photos", "nowhere"], "OTHER: the folder nowhere does not exist"),
        (["photos/0.png"], "FOLDER: photos/0.png is a file"),
        (["photos", "photos/../photos"], "OTHER: photos/../photos is the same folder as FOLDER"),
        (["empty"], "FOLDER: no image in empty"),
        (["photos", "empty"], "OTHER: no image in empty"),
        (["broken"], "FOLDER: none of the 2 images in broken is readable (first: a.png, "),
        (["photos", "--fix", "photos"], "--fix: photos lies in the folder of the images"),
        (["photos", "--fix", "photos/new/deep"], "--fix: photos/new/deep lies in the folder of the images"),
        (["link", "--fix", "photos/new"], "--fix: photos/new lies in the folder of the images"),
        (["photos", "broken", "--fix", "broken/new"], "--fix: broken/new lies in the folder of the images"),
        (["pair", "--fix", "pair/clean"], "--fix: pair/clean lies in the folder of the images"),
        (["photos", "--fix", "broken"], "--fix: broken contains files"),
        (["photos", "--fix", "photos/0.png"], "--fix: photos/0.png is a file"),
        (["photos", "-o", "photos/preview.png"], "--out: photos/preview.png lies in the folder of the images"),
        (
            ["photos", "-o", "preview.jpg"],
            "--out: preview.jpg has an extension that cannot be written; use one of .png",
        ),
        (["photos", "-o", "empty"], "--out: empty needs one of the endings .png"),
        (["photos", "--fix", "new", "-o", "new/p.png"], "--out: new/p.png lies in the folder of --fix"),
        (["records/a.tfrec", "-o", "records/p.png"], "--out: records/p.png lies in the folder of the images"),
        (["photos", "--image_size", "5"], "--image_size: 5 is out of range"),
        (["photos", "--near_copy", "2"], "--near_copy: 2.0 is out of range"),
        ([], "required: FOLDER"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run, photos, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/a.png").write_bytes(b"?")
    (tmp_path / "broken/b.jpg").write_bytes(b"")
    (tmp_path / "link").symlink_to("photos")
    (tmp_path / "records").mkdir()
    (tmp_path / "records/a.tfrec").write_bytes(b"?")
    make_domains(tmp_path / "pair")
    before = snapshot(tmp_path), sorted(tmp_path.rglob("*"))
    code, text = run(*arguments)
    assert code == 2 and message in text and len(text.splitlines()) == 1, text
    assert before == (snapshot(tmp_path), sorted(tmp_path.rglob("*")))


@pytest.mark.faults
@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_one_line(run, photos, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    for arguments in (["--fix", "locked/new"], ["-o", "locked/p.png"]):
        code, text = run(photos, *arguments)
        assert code == 2 and "is not a writable folder" in text and len(text.splitlines()) == 1
