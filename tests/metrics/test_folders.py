"""Folders to be measured: one range of values for both, and what is left out."""

import numpy as np
import pytest
from PIL import Image

from metrics.folders import read_folder, read_folders
from system.program import set_up_log


@pytest.fixture
def two(tmp_path):
    """Two folders of scans: the values of `made` reach 1000, those of `real` 3000."""
    for name, top in (("made", 1000), ("real", 3000)):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(np.array([[-500, 0], [top - i, top]], np.int32)).save(tmp_path / name / f"{i}.tif")
    return {"RUN_OR_FOLDER": str(tmp_path / "made"), "REFERENCE": str(tmp_path / "real")}


@pytest.mark.golden
def test_both_folders_have_one_range(two, capsys):
    """The wrong variant, a range for each folder, hides the difference that is to be measured."""
    set_up_log()
    made, real = read_folders(two, None)
    assert made.shape == real.shape == (2, 3, 2, 2)
    assert made[0, 0].tolist() == [[0, 36], [109, 109]] and real[0, 0].tolist() == [[0, 36], [255, 255]]
    assert "4 images have more than 8 bits: values -500 to 3000 become 0 to 255" in capsys.readouterr().out
    wrong = read_folder(two["RUN_OR_FOLDER"], None)
    assert wrong[0, 0].tolist() == [[0, 85], [255, 255]]


def test_a_range_that_is_given(two, photos, capsys):
    set_up_log()
    made, real = read_folders(two, None, (0.0, 65535.0))
    assert made.max() == 4 and real.max() == 12
    assert "values 0 to 65535 become 0 to 255 (the range that was set)" in capsys.readouterr().out
    read_folders({"RUN_OR_FOLDER": str(photos), "REFERENCE": str(photos)}, 32, (0.0, 1.0))
    assert "--value_range does nothing: no gray image has more than 8 bits per value" in capsys.readouterr().out


def test_what_is_left_out_is_said(photos, capsys):
    set_up_log()
    read_folder(str(photos), 32)
    assert capsys.readouterr().out == ""
    (photos / "a.heic").touch()
    read_folder(str(photos), 32)
    assert capsys.readouterr().out == f"Left out in {photos}: 1 .heic\n"
