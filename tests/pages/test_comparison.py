"""Tables that compare runs: differing options, groups of comparable measurements, the best of each group."""

import pytest

from pages.comparison import best_of, compare_metrics, compare_options
from pages.report import read_runs
from tests.helpers.run_folders import write_metrics, write_run


def shown(*folders):
    return read_runs(folders)[0]


def test_options_that_differ(tmp_path):
    runs = shown(
        write_run(tmp_path / "a", lr=0.001, use_diffaug="color"), write_run(tmp_path / "b", spectral_norm=True)
    )
    differing, equal = compare_options(runs)
    assert differing == [
        ("spectral_norm", ["off", "on"]),
        ("use_diffaug", ["color", "-"]),
        ("lr", ["0.001", "0.0005"]),
    ]
    assert ("batch_size", ["16", "16"]) in equal
    assert not {"name", "checkpoint_dir", "resume"} & {name for name, _ in [*differing, *equal]}


def test_options_of_an_older_program(tmp_path):
    runs = shown(write_run(tmp_path / "a"), write_run(tmp_path / "b"))
    del runs[0].run.options["lr"]
    runs[1].run.options["norm"] = 1  # another type is another value
    runs[0].run.options["norm"] = True
    differing = dict(compare_options(runs)[0])
    assert differing == {"norm": ["on", "1"], "lr": ["not recorded", "0.0005"]}


@pytest.mark.golden
def test_the_best_of_comparable_rows(tmp_path):
    """Three runs; the smallest distance of all was measured on fewer images, so it is not the best of the others."""
    folders = [write_run(tmp_path / name) for name in "abc"]
    for folder, value, generated in zip(folders, (0.5, 0.4, 0.1), (10, 10, 5), strict=True):
        write_metrics(folder, 200, value, generated=generated)
    [table] = compare_metrics(shown(*folders))
    assert [(row.group, row.is_alone) for row in table.rows] == [("A", False), ("A", False), ("B", True)]
    assert [row.best for row in table.rows] == [{"recall"}, {"Frechet distance"}, set()]
    assert list(table.differences.values()) == ["number of generated images"]
    wrong = min(table.rows, key=lambda row: row.values["Frechet distance"][0])  # without regard to the protocol
    assert not wrong.best


@pytest.mark.parametrize(
    "cells, words",
    [
        ({"features": "resnet18"}, "features"),
        ({"resize": "none"}, "resizing"),
        ({"reference": 11}, "number of real images"),
        ({"seed": 1}, "seed"),
    ],
)
def test_every_part_of_the_protocol_makes_a_group(cells, words, tmp_path):
    folders = [write_run(tmp_path / name) for name in "ab"]
    write_metrics(folders[0], 200, 0.5)
    write_metrics(folders[1], 200, 0.4, **cells)
    [table] = compare_metrics(shown(*folders))
    assert list(table.differences.values()) == [words] and all(row.is_alone and not row.best for row in table.rows)


@pytest.mark.parametrize("features, groups", [("imagenet", ["A", "B"]), ("pixels", ["A", "A"])])
def test_features_that_trained_a_generator_make_a_group(features, groups, tmp_path):
    """--lambda_features matches features of the network that --features imagenet names."""
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", lambda_features=2.0)]
    for folder in folders:
        write_metrics(folder, 200, 0.5, features=features)
    [table] = compare_metrics(shown(*folders))
    assert [row.group for row in table.rows] == groups
    assert table.differences == ({"features": "features"} if features == "imagenet" else {})


def test_other_images_or_sizes_are_not_comparable(tmp_path):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b"), write_run(tmp_path / "c", image_size=32)]
    (folders[1] / "data.json").write_text('{"images": {"train": {"2.png": 100}, "test": [], "skipped": {}}}')
    for folder in folders:
        write_metrics(folder, 200, 0.5)
    [table] = compare_metrics(shown(*folders))
    assert [row.group for row in table.rows] == ["A", "B", "C"] and list(table.differences) == ["images", "size"]
    assert table.shared.startswith("features: pixels; resizing: mean; number of generated images: 10;")
    # Without data.json nobody knows on what a run was measured.
    for folder in folders[:2]:
        (folder / "data.json").unlink()
    [table] = compare_metrics(shown(*folders[:2]))
    assert [row.is_alone for row in table.rows] == [True, True]


def test_a_folder_given_as_reference_is_the_same_for_all_runs(tmp_path):
    folders = [write_run(tmp_path / name) for name in "ab"]
    (folders[1] / "data.json").write_text('{"images": {"train": {"2.png": 100}, "test": [], "skipped": {}}}')
    for folder, value in zip(folders, (0.5, 0.4), strict=True):
        write_metrics(folder, 200, value, split="/photos/others")
    [table] = compare_metrics(shown(*folders))
    assert table.title == "Samples against images of /photos/others" and not table.differences


def test_equal_numbers_have_no_best(tmp_path):
    folders = [write_run(tmp_path / name) for name in "ab"]
    for folder in folders:
        write_metrics(folder, 200, 0.5)
    [table] = compare_metrics(shown(*folders))
    assert not any(row.best for row in table.rows)


def test_of_evaluations_while_training_the_best_and_the_newest_are_shown(tmp_path):
    folder = write_run(tmp_path / "a")
    for step, value in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 4.0)):
        write_metrics(folder, step, value, "training")
    [table] = compare_metrics(shown(folder))
    assert [(row.step, row.source) for row in table.rows] == [(20, "while training"), (40, "while training")]


def test_tables_of_a_cyclegan(tmp_path):
    folder = write_run(tmp_path / "a", "cycle_gan.py")
    for task, split in (("Y2X", "test"), ("X2Y", "train"), ("X2Y", "test")):
        write_metrics(folder, 200, 0.5, task=task, split=split)
    assert [table.title for table in compare_metrics(shown(folder))] == [
        "Translations X to Y against test images",
        "Translations X to Y against training images",
        "Translations Y to X against test images",
    ]


def test_directions_of_the_metrics():
    less = ["FID", "KID x1000", "MiFID", "Frechet distance", "kernel distance x1000", "L1 to truth"]
    assert {name: best_of(name) for name in less} == dict.fromkeys(less, min)
    more = ["precision", "recall", "coverage", "SSIM with reconstruction"]
    assert {name: best_of(name) for name in more} == dict.fromkeys(more, max)
    none = ["SSIM between images", "nearest distance ratio", "density", "L1 to truth, untranslated"]
    assert {name: best_of(name) for name in none} == dict.fromkeys(none)
