"""Images with more than 8 bits in whole commands: the range of a run is recorded, and used again by every command."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import generate
import generation.translation
import metrics.evaluation
from generation.trained import load_trained
from metrics.evaluation import load_real_images
from options.command_line import parse_command, parse_subcommand
from options.commands import EvaluateOptions
from runs.records import read_images
from system.program import run_main
from tests.conftest import FinishedRun, make_photo, resume, train
from tests.images.test_values import make_folder, ramp


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A CycleGAN `scans` from CT images, -1024 to 3071, to photos, and a DCGAN `gray` of 12-bit images."""
    folder = tmp_path_factory.mktemp("runs")
    make_folder(folder / "ct", [ramp(-1024, top, np.int32) for top in (1000, 2000, 3071, 500)])
    make_folder(folder / "gray12", [ramp(0, top, np.uint16) for top in (4000, 1000, 2000, 3000)], "png")
    (folder / "photos").mkdir()
    for i in range(4):
        make_photo((40, 40), i).save(folder / "photos" / f"{i}.png")
    flags = [f"--checkpoint_dir={folder}", "--train_iters=1"]
    images = [f"--X={folder / 'ct'}", f"--Y={folder / 'photos'}"]
    assert train(*images, "--name=scans", "--disc=patch", *flags, script="cycle_gan.py") == 0
    assert train(f"--data={folder / 'gray12'}", "--name=gray", *flags) == 0
    return folder


def run_command(program, options) -> int:
    return run_main(lambda: program.main(options), options.SCRIPT)


def translate(*arguments: str) -> int:
    return run_command(generate, parse_subcommand(generate.OPTIONS_OF, "", ["translate", *arguments, "--device=cpu"]))


@pytest.fixture
def seen(monkeypatch) -> list[np.ndarray]:
    """The images that the network translates, in order."""
    found: list[np.ndarray] = []
    right = generation.translation.translate_image

    def note(G, pixels):
        found.append(pixels)
        return right(G, pixels)

    monkeypatch.setattr(generation.translation, "translate_image", note)
    return found


def test_a_run_records_the_range_of_each_domain(runs):
    scans, gray = FinishedRun(runs / "scans"), FinishedRun(runs / "gray")
    assert scans.options["value_range"] == scans.checkpoint()["options"]["value_range"] == "-1024,3071:"
    assert gray.options["value_range"] == gray.checkpoint()["options"]["value_range"] == "0,4095"
    line = "4 images have more than 8 bits: values -1024 to 3071 become 0 to 255 (chosen from all their values; "
    assert scans.log.count("more than 8 bits") == 1 and line in scans.log


def test_a_range_that_is_given_is_recorded_as_it_is(runs, run_once):
    data = f"--data={runs / 'gray12'}"
    wide, default = run_once(data, "--value_range", "-4000,4000.0", name="a"), run_once(data, name="b")
    assert wide.options["value_range"] == "-4000,4000.0" and default.options["value_range"] == "0,4095"
    grids = [np.asarray(Image.open(run.folder / "samples" / "real-000000.png")) for run in (wide, default)]
    # A border of white pixels lies around each image.
    darkest, brightest = (grid[grid < 255].min() for grid in grids), grids[0][grids[0] < 255].max()
    assert list(darkest) == [128, 0] and brightest == 254
    assert run_once("--value_range=0,9", name="c").log.count("--value_range does nothing for") == 1


def test_a_resumed_run_keeps_its_range(runs, tmp_path, capsys):
    folder = runs / "gray"
    assert resume(f"--resume={folder}", "--train_iters=2", "--value_range=0,65535") == 2
    assert "--value_range: this run has '0,4095', the command says '0,65535'" in capsys.readouterr().err
    assert resume(f"--resume={folder}", "--train_iters=2", "--value_range=0,4095") == 0
    assert "values 0 to 4095 become 0 to 255 (the range that was set)" in FinishedRun(folder).log


@pytest.mark.golden
def test_a_translation_uses_the_range_of_its_domain(runs, tmp_path, seen, capsys):
    """The images have other values than those of training; the wrong variant chooses a range from the images."""
    values = ramp(0, 1000, np.int32)
    folder = make_folder(tmp_path / "new", [values])
    assert translate(str(runs / "scans"), str(folder), "--direction=X2Y", f"-o={tmp_path / 'a'}") == 0
    assert "values -1024 to 3071 become 0 to 255 (as in training)" in capsys.readouterr().out
    expected = np.array([round((v + 1024) / 4095 * 255) for v in values.ravel().tolist()]).reshape(32, 32)
    assert np.abs(seen[0][:, :, 0].astype(int) - expected).max() <= 1
    wrong = [round(v / 1023 * 255) for v in values.ravel().tolist()]
    assert np.abs(seen[0][:, :, 0].astype(int).ravel() - wrong).max() > 50

    assert translate(str(runs / "scans"), str(folder / "0.tif"), "--direction=X2Y", f"-o={tmp_path / 'b.png'}") == 0
    assert np.array_equal(seen[1], seen[0]), "a single file has the same range"
    flags = ["--direction=X2Y", "--value_range=0,2000"]
    assert translate(str(runs / "scans"), str(folder), *flags, f"-o={tmp_path / 'c'}") == 0
    assert seen[2].max() == 128 and "(as --value_range says)" in capsys.readouterr().out


def test_without_a_range_of_training_it_is_chosen_for_the_whole_folder(runs, tmp_path, seen, capsys):
    """Domain Y has photos. A folder with one image of a 12-bit camera and one that is darker."""
    folder = make_folder(tmp_path / "new", [ramp(0, 4000, np.uint16), ramp(0, 400, np.uint16)], "png")
    for name in ("x.heic", "y.HEIC", "z.gif"):
        (folder / name).touch()
    (folder / "more").mkdir()
    assert translate(str(runs / "scans"), str(folder), "--direction=Y2X", f"-o={tmp_path / 'a'}") == 0
    assert [image.max() for image in seen] == [249, 25]
    out = capsys.readouterr().out
    assert "2 images have more than 8 bits: values 0 to 4095 become 0 to 255 (chosen from all their values" in out
    assert f"translated 2 of 2 to {tmp_path / 'a'} (left out: 2 .heic, 1 .gif, 1 folder)\n" in out


def test_a_range_does_nothing_for_photos_and_is_refused_if_it_is_none(runs, tmp_path, capsys):
    photos = str(runs / "photos")
    flags = ["--direction=Y2X", "--value_range=0,9", f"-o={tmp_path / 'a'}"]
    assert translate(str(runs / "scans"), photos, *flags) == 0
    assert "--value_range does nothing: no gray image has more than 8 bits per value" in capsys.readouterr().out
    for program in ("translate", "evaluate"):
        with pytest.raises(SystemExit) as stop:
            if program == "translate":
                translate(str(runs / "scans"), photos, "--value_range=9,0", "-o=b")
            parse_command(EvaluateOptions, "", ["a", "b", "--value_range=9,0"])
        assert stop.value.code == 2 and "is not LOW,HIGH" in capsys.readouterr().err


def test_an_evaluation_uses_the_range_of_the_run(runs, tmp_path, monkeypatch, capsys):
    """Also if the images with the largest values are missing, and for other images than those of training."""
    trained = load_trained(runs / "scans")
    options = dataclasses.replace(trained.options, checkpoint_dir=str(tmp_path))
    whole = load_real_images(options, read_images(runs / "scans", options)).images["X", "train"]
    (runs / "ct" / "2.tif").rename(tmp_path / "2.tif")
    try:
        rest = load_real_images(options, read_images(runs / "scans", options)).images["X", "train"]
        alone = load_real_images(dataclasses.replace(options, value_range=None)).images["X", "train"]
    finally:
        (tmp_path / "2.tif").rename(runs / "ct" / "2.tif")
    assert torch.equal(rest, whole[[0, 1, 3]]) and not torch.equal(alone, rest)

    folder = make_folder(tmp_path / "dark", [ramp(0, 400, np.uint16)] * 2, "png")
    real = []
    right = evaluate.make_comparisons
    monkeypatch.setattr(
        evaluate, "make_comparisons", lambda G, images, *rest: real.append(images) or right(G, images, *rest)
    )
    words = [str(runs / "gray"), str(folder), "--features=pixels", "--device=cpu", f"-o={tmp_path / 'out'}"]
    assert run_command(evaluate, parse_command(EvaluateOptions, "", words)) == 0
    [images] = real[0].images.values()
    assert images.max() == 25
    assert run_command(evaluate, parse_command(EvaluateOptions, "", [*words, "--value_range=0,1"])) == 2
    assert "--value_range: a run keeps the range that it was trained with" in capsys.readouterr().err


def test_evaluations_while_training_use_the_range(runs, run_once, monkeypatch):
    asked = []
    right = metrics.evaluation.decode_all

    def note(source, size, pool, keep, cache, part, value_range):
        asked.append(value_range)
        return right(source, size, pool, keep, cache, part, value_range)

    monkeypatch.setattr(metrics.evaluation, "decode_all", note)
    run_once(f"--data={runs / 'gray12'}", "--eval_every=1")
    assert asked == [(0, 4095)]


def test_options_of_earlier_versions_have_no_range(runs):
    trained = load_trained(runs / "scans")
    old = {name: value for name, value in trained.options.to_dict().items() if name != "value_range"}
    assert type(trained.options).from_dict(old).value_ranges() == [None, None]
