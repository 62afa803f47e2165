"""Pictures of the page: WebP, even thinning, damaged files, files that did not change."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pages import pictures
from pages.pictures import PictureEncoder, choose_grids, thin_evenly
from tests.conftest import make_photo


def test_a_picture_becomes_webp(tmp_path):
    photo = make_photo((120, 90), 0)
    photo.save(tmp_path / "a.png")
    encoded = PictureEncoder()([tmp_path / "a.png"])[tmp_path / "a.png"]
    kind, _, content = encoded.src.partition(",")
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert (kind, image.format, image.size) == ("data:image/webp;base64", "WEBP", (120, 90))
        difference = np.abs(np.asarray(image.convert("RGB"), float) - np.asarray(photo, float))
    assert difference.mean() < 3 and (encoded.width, encoded.height) == (120, 90)


@pytest.mark.faults
def test_damaged_files_are_left_out(tmp_path):
    make_photo((60, 60), 0).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (pictures.MAX_SIDE + 1, 1)).save(tmp_path / "wide.png")
    names = ["good.png", "cut.png", "text.png", "empty.png", "wide.png", "deleted.png"]
    assert [path.name for path in PictureEncoder()([tmp_path / name for name in names])] == ["good.png"]


def test_a_file_is_encoded_again_only_if_it_changed(tmp_path, monkeypatch):
    path, encode, calls = tmp_path / "a.png", PictureEncoder(), []
    original = pictures._encode
    monkeypatch.setattr(pictures, "_encode", lambda path: calls.append(path) or original(path))
    make_photo((60, 60), 0).save(path)
    first = encode([path])[path]
    assert encode([path])[path] is first and len(calls) == 1
    make_photo((61, 60), 0).save(path)
    assert encode([path])[path].width == 61 and len(calls) == 2


def test_even_thinning_keeps_the_ends():
    assert thin_evenly([0, 5, 10], 5) == [0, 5, 10]
    assert thin_evenly(range(0, 1010, 10), 5) == [0, 250, 500, 750, 1000]
    chosen = thin_evenly(list(range(97)), 30)
    assert len(set(chosen)) == 30 and chosen[0] == 0 and chosen[-1] == 96
    assert set(np.diff(chosen)) == {3, 4}


def test_many_large_grids_are_thinned(tmp_path, monkeypatch):
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    long, short = dict.fromkeys(range(100), tmp_path / "a.png"), dict.fromkeys(range(10), tmp_path / "a.png")
    assert [len(grids) for grids in choose_grids([long, short])] == [100, 10]
    monkeypatch.setattr(pictures, "MAX_PIXELS", 55 * 100 * 100)
    assert [len(grids) for grids in choose_grids([long, short])] == [50, 5]
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1)
    assert [len(grids) for grids in choose_grids([long, short])] == [4, 4]


def test_grids_of_a_damaged_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    assert choose_grids([{0: tmp_path / "a.png"}]) == [{0: tmp_path / "a.png"}] and choose_grids([]) == []
