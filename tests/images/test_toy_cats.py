"""The embedded data set: its pictures, its layout, and that it appears whole or not at all."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from images import toy_cats
from images.toy_cats import BACKGROUNDS, DEFAULT_ROOT, SIGNED, UNIT, default_root, draw_cat, random_attributes
from options.fields import IMAGE_SIZES
from system.program import run_main
from tests.conftest import ROOT, command
from utils import UserError


def cat(seed: int = 0) -> dict:
    """Return the attributes of a cat."""
    return random_attributes(random.Random(seed))


def files(root: Path) -> dict[str, bytes]:
    """Return the content of all files below a folder."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def pixels(root: Path, name: str) -> np.ndarray:
    """Return the pixels of an image file."""
    with Image.open(root / name) as image:
        return np.asarray(image).astype(np.float32)


def make(root: Path, **changes) -> Path:
    """Draw a small data set."""
    return toy_cats.ensure_toy_cats(root, **({"size": 32, "seed": 11, "train": 3, "test": 2} | changes))


# ---- Pictures


@pytest.mark.parametrize("domain", ["A", "B"])
@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_picture_has_the_size_and_mode_asked_for(size, domain):
    image = draw_cat(cat(), domain, size)
    assert (image.size, image.mode) == ((size, size), "RGB")
    assert np.asarray(image).std() > 20


def test_a_cat_looks_the_same_at_every_size():
    """A 256x256 picture, averaged down to 64x64 and blurred as this size is, is the 64x64 picture except for edges."""
    for seed in range(4):
        large = np.asarray(draw_cat(cat(seed), "B", 256).reduce(4), np.float32)
        large = toy_cats.blur(large.transpose(2, 0, 1)).transpose(1, 2, 0)
        assert np.abs(large - np.asarray(draw_cat(cat(seed), "B", 64), np.float32)).mean() < 3


def test_edges_are_anti_aliased():
    """The silhouette against a flat background has many shades, not two."""
    rows = np.asarray(draw_cat(cat() | {"background": "plain", "vignette": 0.0}, "A", 64))[:32]
    assert len(np.unique(rows.reshape(-1, 3), axis=0)) > 200


def test_a_point_becomes_a_small_gaussian():
    """The blur is the product of two Gaussians of 0.8 pixels, cut after three pixels; a flat picture stays flat."""
    point = np.zeros((3, 9, 10), np.float32)
    point[:, 4, 5] = 1
    blurred = toy_cats.blur(point)
    rows, columns = np.mgrid[:9, :10]
    near = (abs(rows - 4) < 4) & (abs(columns - 5) < 4)
    wrong, right = (
        near * np.exp(-((rows - 4) ** 2 + (columns - 5) ** 2) / (2 * deviation**2)) for deviation in (0.7, 0.8)
    )
    np.testing.assert_allclose(blurred, [right / right.sum()] * 3, atol=1e-6)
    assert np.abs(blurred - wrong / wrong.sum()).max() > 0.05
    np.testing.assert_allclose(toy_cats.blur(np.full((3, 4, 4), 0.7, np.float32)), 0.7, atol=1e-6)


def test_the_pictures_of_a_format_stay_as_they_are():
    """If this fails, raise FORMAT and put the new gray values here: else a folder of old pictures passes for new."""
    rows = [np.asarray(draw_cat(cat(), domain, 64).convert("L"), int)[30, 4::6] for domain in "AB"]
    expected = [
        [110, 124, 130, 151, 95, 139, 130, 122, 106, 121],
        [110, 180, 90, 105, 111, 200, 175, 109, 103, 97],
    ]
    assert toy_cats.FORMAT == 3 and np.abs(np.subtract(rows, expected)).max() <= 2


def test_the_whole_picture_is_blurred(monkeypatch):
    sharp = []
    blur = toy_cats.blur
    monkeypatch.setattr(toy_cats, "blur", lambda image: sharp.append(image) or blur(image))
    found = np.asarray(draw_cat(cat(), "B", 64), np.float32).transpose(2, 0, 1)
    [picture] = sharp
    assert np.abs(found - 255 * blur(picture)).max() < 1 < 20 < np.abs(found - 255 * picture).max()


def test_attributes_are_plain_json_in_their_ranges():
    for seed in range(50):
        attributes = cat(seed)
        assert json.loads(json.dumps(attributes)) == attributes
        assert set(attributes) == {*UNIT, *SIGNED, "background", "grain"}
        assert all(0 <= attributes[name] <= 1 for name in UNIT)
        assert all(-1 <= attributes[name] <= 1 for name in SIGNED)
        assert attributes["background"] in BACKGROUNDS and 0 <= attributes["grain"] < 65536


@pytest.mark.parametrize("domain", ["A", "B"])
@pytest.mark.parametrize("name", [*UNIT, *SIGNED, "grain"])
def test_every_attribute_shows_in_both_domains(name, domain):
    """An attribute that does not change the picture could not be read from it."""
    low, high = (1, 60000) if name == "grain" else (-0.9 if name in SIGNED else 0.1, 0.9)
    base = cat() | {"background": "two-tone"}
    one, other = (np.asarray(draw_cat(base | {name: value}, domain, 64), np.float32) for value in (low, high))
    assert np.abs(one - other).max() > 8


@pytest.mark.parametrize("domain", ["A", "B"])
def test_painting_only_some_rows_changes_no_pixel(domain, monkeypatch):
    """Canvas.between saves time; even the most extreme cats may not reach beyond its rows."""
    extremes = [dict.fromkeys(UNIT, unit) | dict.fromkeys(SIGNED, sign) for unit in (0.0, 1.0) for sign in (-1.0, 1.0)]
    cats = [cat(seed) for seed in range(6)] + [cat() | extreme for extreme in extremes]
    fast = [draw_cat(attributes, domain, 64).tobytes() for attributes in cats]
    monkeypatch.setattr(toy_cats.Canvas, "between", lambda self, top, bottom: self)
    assert fast == [draw_cat(attributes, domain, 64).tobytes() for attributes in cats]


@pytest.mark.parametrize(
    ("domain", "size", "error", "found"),
    [
        ("C", 64, KeyError, "'C'"),
        ("A", 48, UserError, "size 48 is not one of 32, 64, 128, 256"),
        ("A", 512, UserError, "size 512 is not one of 32, 64, 128, 256"),
    ],
)
def test_an_unknown_domain_or_size_is_refused(domain, size, error, found):
    with pytest.raises(error, match=found):
        draw_cat(cat(), domain, size)


def test_domains_differ_in_color_as_their_names_say():
    """Gray cats are gray and grumpy cats are cream: red minus blue over many foreheads."""
    gray, grumpy = (
        np.mean([np.asarray(draw_cat(cat(seed), domain, 64))[22:28, 28:36] for seed in range(40)], axis=(0, 1, 2))
        for domain in "AB"
    )
    assert gray[0] - gray[2] < 0 < 25 < grumpy[0] - grumpy[2]


# ---- The data set


def test_files_of_the_set(tmp_path):
    root = make(tmp_path / "cats", train=3, test=2)
    train, test = ["000.png", "001.png", "002.png"], ["000.png", "001.png"]
    for split, names in (("trainA", train), ("trainB", train), ("testA", test), ("testB", test)):
        assert sorted(os.listdir(root / split)) == names
    assert sorted(os.listdir(root)) == ["attributes.json", "testA", "testB", "trainA", "trainB"]
    assert os.listdir(tmp_path) == ["cats"]
    found = json.loads((root / "attributes.json").read_text())
    assert {key: found[key] for key in ("size", "seed", "train", "test")} == dict(size=32, seed=11, train=3, test=2)
    assert {split: sorted(cats) for split, cats in found["cats"].items()} == dict(trainA=train, trainB=train, test=test)


def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path):
    one, same, other = (files(make(tmp_path / name, seed=seed)) for name, seed in (("1", 11), ("2", 11), ("3", 12)))
    assert one == same
    assert one.keys() == other.keys() and all(one[name] != other[name] for name in one)


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path):
    few, many = files(make(tmp_path / "few")), files(make(tmp_path / "many", train=5, test=4))
    del few["attributes.json"]
    assert len(few) == 10 and all(many[name] == few[name] for name in few)


def test_attributes_do_not_depend_on_the_size(tmp_path):
    roots = [make(tmp_path / str(size), size=size) for size in (32, 64)]
    small, large = (json.loads((root / "attributes.json").read_text()) for root in roots)
    assert small["cats"] == large["cats"]


def test_pairs_are_one_cat_in_two_domains(tmp_path):
    root = make(tmp_path / "cats", size=64)
    cats = json.loads((root / "attributes.json").read_text())["cats"]["test"]
    for name, attributes in cats.items():
        for domain in "AB":
            drawn = np.asarray(draw_cat(attributes, domain, 64))
            assert np.array_equal(pixels(root, f"test{domain}/{name}"), drawn)
        a, b = pixels(root, f"testA/{name}"), pixels(root, f"testB/{name}")
        assert np.abs(a - b)[16:, 8:56].mean() > 10  # the face differs ...
        assert np.array_equal(a[:4, 30:34], b[:4, 30:34])  # ... the background above it does not


def test_training_images_are_not_pairs(tmp_path):
    root = make(tmp_path / "cats", train=8)
    cats = json.loads((root / "attributes.json").read_text())["cats"]
    seen = [tuple(attributes.values()) for split in cats.values() for attributes in split.values()]
    assert len(set(seen)) == len(seen) == 8 + 8 + 2
    # Pairs have the same background in a corner; among unpaired images this is rare.
    corners = [pixels(root, f"{split}/{i:03d}.png")[0, 0] for i in range(8) for split in ("trainA", "trainB")]
    assert sum(np.array_equal(a, b) for a, b in zip(corners[::2], corners[1::2], strict=True)) <= 1


def test_a_second_call_writes_nothing(tmp_path, monkeypatch):
    root = make(tmp_path / "cats")
    before = {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}
    monkeypatch.setattr(toy_cats, "draw_cat", lambda *_: pytest.fail("drew again"))
    assert make(root) == root
    assert {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]} == before


@pytest.mark.parametrize("change", [dict(size=64), dict(seed=12), dict(train=4), dict(test=1)])
def test_other_parameters_are_refused_and_change_nothing(tmp_path, change):
    before = files(root := make(tmp_path / "cats"))
    with pytest.raises(UserError, match=f"{next(iter(change))}.*delete") as error:
        make(root, **change)
    message = str(error.value)
    assert str(root) in message and "\n" not in message and len(message) < len(str(root)) + 200
    assert files(root) == before and os.listdir(tmp_path) == ["cats"]


def test_another_format_is_refused(tmp_path, monkeypatch):
    root = make(tmp_path / "cats")
    monkeypatch.setattr(toy_cats, "FORMAT", toy_cats.FORMAT + 1)
    with pytest.raises(UserError, match=r"another version of this project drew it.*rename or delete"):
        make(root)


@pytest.mark.parametrize("missing", ["trainB/002.png", "testA/000.png", "attributes.json"])
def test_an_incomplete_set_is_refused(tmp_path, missing):
    root = make(tmp_path / "cats")
    (root / missing).unlink()
    with pytest.raises(UserError, match="delete") as error:
        make(root)
    assert str(root) in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", '{"format": 1'])
def test_a_damaged_description_is_refused(tmp_path, text):
    root = make(tmp_path / "cats")
    (root / "attributes.json").write_text(text)
    with pytest.raises(UserError, match="delete"):
        make(root)


def test_a_folder_with_other_files_is_not_changed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"my cat")
    with pytest.raises(UserError, match="mine"):
        make(tmp_path / "mine")
    assert files(tmp_path) == {"mine/photo.jpg": b"my cat"}


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt(), RuntimeError("bug")])
def test_a_failure_midway_leaves_nothing_behind(tmp_path, monkeypatch, failure):
    drawn = []

    def failing(*arguments):
        drawn.append(arguments)
        if len(drawn) == 5:
            assert len(files(tmp_path)) == 4  # some images are on disk already
            raise failure
        return draw_cat(*arguments)

    monkeypatch.setattr(toy_cats, "draw_cat", failing)
    with pytest.raises(type(failure)):
        make(tmp_path / "cats")
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    make(tmp_path / "cats")


@pytest.mark.parametrize("theirs", [dict(), dict(seed=12)])
def test_a_faster_process_wins(tmp_path, monkeypatch, theirs):
    """Another process finishes the same folder while this one draws: its files stay, ours are deleted."""
    root, draw = tmp_path / "cats", draw_cat

    def draw_slowly(*arguments):
        monkeypatch.setattr(toy_cats, "draw_cat", draw)
        make(root, **theirs)
        (root / "theirs").touch()
        return draw(*arguments)

    monkeypatch.setattr(toy_cats, "draw_cat", draw_slowly)
    if theirs:
        with pytest.raises(UserError, match="seed 12, not 11"):
            make(root)
    else:
        assert make(root) == root
    assert (root / "theirs").exists() and os.listdir(tmp_path) == ["cats"]


def test_missing_parents_are_made(tmp_path):
    assert make(tmp_path / "deep" / "er" / "cats").is_dir()


def test_an_unknown_size_writes_nothing(tmp_path):
    with pytest.raises(UserError, match="size 48 is not one of 32, 64, 128, 256"):
        make(tmp_path / "deep" / "cats", size=48)
    assert os.listdir(tmp_path) == []


def test_each_size_has_its_own_default_folder():
    assert default_root(64) == DEFAULT_ROOT == ROOT / "data" / "toy_cats"
    assert [default_root(size).name for size in (32, 128, 256)] == ["toy_cats_32", "toy_cats_128", "toy_cats_256"]
    assert default_root(128).parent == DEFAULT_ROOT.parent


# ---- The command line


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(toy_cats, "random_attributes", lambda _: cat())
    monkeypatch.setattr(toy_cats, "draw_cat", lambda *_: Image.new("RGB", (8, 8)))  # 500 real ones take two seconds
    arguments = ["--size", "32", "--out", str(tmp_path / "cats")]
    assert run_main(lambda: toy_cats.main(arguments), "toy_cats.py") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "cats")
    assert len(files(tmp_path / "cats")) == 501

    (tmp_path / "file").touch()
    for more, words in ((["--seed", "3"], "seed 11, not 3"), ([f"--out={tmp_path / 'file' / 'cats'}"], "file")):
        assert run_main(lambda more=more: toy_cats.main([*arguments, *more]), "toy_cats.py") == 2
        error = capsys.readouterr().err
        assert error.startswith("toy_cats.py: error: --out: ") and words in error and error.count("\n") == 1


def test_it_runs_as_a_module():
    result = command("-m", "images.toy_cats", "--size", "48", cwd=ROOT)
    assert result.returncode == 2 and "usage: toy_cats.py" in result.stderr and "invalid choice: 48" in result.stderr
