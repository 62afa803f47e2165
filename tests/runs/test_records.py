"""What a run records about its images and sessions: data.json, where the images are now, and what has changed."""

import json

import pytest

from options.training import CycleOptions, VanillaOptions
from runs.records import describe_changes, read_images, with_recorded_folders
from utils import UserError

DOMAIN = {"folder": "/x", "train": {"a.png": 1, "b.png": 2}, "test_folder": "/x", "test": ["c.png"], "skipped": {}}


def test_images_of_a_run(tmp_path):
    assert read_images(tmp_path, VanillaOptions()) is None, "a run of an early version, or one that failed at once"
    (tmp_path / "data.json").write_text(json.dumps({"images": DOMAIN}))
    assert read_images(tmp_path, VanillaOptions()) == {"images": DOMAIN}
    with pytest.raises(UserError, match=r"data\.json does not list the images of X, Y; restore it"):
        read_images(tmp_path, CycleOptions())
    (tmp_path / "data.json").write_text(json.dumps({"X": DOMAIN, "Y": DOMAIN}))
    assert read_images(tmp_path, CycleOptions())["Y"] == DOMAIN


@pytest.mark.faults
@pytest.mark.parametrize("key, value", [("train", ["a.png"]), ("test", None), ("skipped", []), ("train", None)])
def test_damaged_images_of_a_run(key, value, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps({"images": {**DOMAIN, key: value}}))
    with pytest.raises(UserError, match=r"data\.json does not list the images of images; restore it"):
        read_images(tmp_path, VanillaOptions())


def test_options_json_says_where_the_images_are_now(tmp_path):
    of_checkpoint = CycleOptions(X="/old/x", Y="/old/y", seed=3)
    assert with_recorded_folders(of_checkpoint, tmp_path) is of_checkpoint, "a checkpoint file alone"
    newer = CycleOptions(X="/new/x", Y="/old/y", seed=4)
    content = {"script": "cycle_gan.py", "samples": "samples", "options": newer.to_dict()}
    (tmp_path / "options.json").write_text(json.dumps(content))
    found = with_recorded_folders(of_checkpoint, tmp_path)
    assert (found.X, found.Y, found.data) == ("/new/x", "/old/y", None)
    assert found.seed == 3, "only the places are taken from options.json"
    other, nameless = {**content, "script": "vanilla_gan.py"}, {"options": newer.to_dict()}
    for damaged in (other, nameless, [], {**content, "options": 1}):
        (tmp_path / "options.json").write_text(json.dumps(damaged))
        assert with_recorded_folders(of_checkpoint, tmp_path) is of_checkpoint


def test_changes_are_named():
    assert describe_changes(DOMAIN, DOMAIN) == ""
    now = {**DOMAIN, "train": {"a.png": 9}, "test": []}
    assert describe_changes(DOMAIN, now) == (
        "1 missing (b.png), 1 of another size (a.png), 1 missing from the test images (c.png)"
    )
