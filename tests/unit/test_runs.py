"""The run folder: names, whole files, logs cut back to a checkpoint, and the plot."""

import dataclasses
import gc
import json
import os
import threading
import warnings
import weakref

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import runs
from options import VanillaOptions
from runs import FORMAT, Run, _smooth, draw_losses, list_checkpoints
from utils import UserError, write_json, write_whole

CPU = torch.device("cpu")


def create(tmp_path, **options):
    return Run.create(VanillaOptions(checkpoint_dir=str(tmp_path), data="x/cats", **options), "vanilla_gan.py")


def find(folder):
    return Run.find(VanillaOptions(resume=str(folder), given=frozenset({"resume"})), "vanilla_gan.py")


def test_a_faster_run_takes_the_number(tmp_path, monkeypatch):
    """Two runs choose the same number at once: the slower one takes the next."""
    real, others = Run._next_folder, iter(["vanilla_gan-cats-basic-lsgan-001"])

    def slow(parent, stem):
        folder = real(parent, stem)
        for name in others:
            (tmp_path / name).mkdir()
        return folder

    monkeypatch.setattr(Run, "_next_folder", staticmethod(slow))
    assert create(tmp_path).folder.name == "vanilla_gan-cats-basic-lsgan-002"


def test_a_renamed_run_keeps_its_sample_folder(tmp_path):
    """And does not take that of another run which has its new name."""
    first = create(tmp_path / "a", name="x", sample_dir=str(tmp_path / "grids"))
    other = create(tmp_path / "b", name="y", sample_dir=str(tmp_path / "grids"))
    other.folder.rename(tmp_path / "b" / "x")
    assert find(tmp_path / "b" / "x")[0].samples == other.samples == tmp_path / "grids" / "y"
    assert find(first.folder)[0].samples == first.samples == tmp_path / "grids" / "x"
    inside = create(tmp_path / "a", name="z")
    inside.folder.rename(tmp_path / "a" / "zz")
    assert find(tmp_path / "a" / "zz")[0].samples == tmp_path / "a" / "zz" / "samples"


@pytest.mark.parametrize("text", ["", "st", "step,G", "\0\0\0"])
def test_losses_without_a_whole_header_start_anew(tmp_path, text):
    run = create(tmp_path)
    run.save_checkpoint(5, {})
    (run.folder / "losses.csv").write_text(text)
    assert run.load_checkpoint()["step"] == 5
    run.start(VanillaOptions(checkpoint_dir=str(tmp_path)), CPU, "float32")
    run.add_losses(6, {"G": 1.0}, 0.5)
    assert (run.folder / "losses.csv").read_text() == "step,G,lr\n6,1,0.5\n"


def test_default_names_count_up_and_never_fill_a_gap(tmp_path):
    assert [create(tmp_path).folder.name for _ in range(2)] == [
        "vanilla_gan-cats-basic-lsgan-001",
        "vanilla_gan-cats-basic-lsgan-002",
    ]
    (tmp_path / "vanilla_gan-cats-basic-lsgan-007").mkdir()
    (tmp_path / "vanilla_gan-cats-basic-lsgan-diffaug-900").mkdir()
    assert create(tmp_path).folder.name == "vanilla_gan-cats-basic-lsgan-008"


def test_a_taken_name_is_refused_and_untouched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    request = VanillaOptions(checkpoint_dir=str(tmp_path), name="mine")
    for call in (Run.find, Run.create):
        with pytest.raises(UserError, match=r"--name: .*mine exists; use --resume .*mine .*or another name"):
            call(request, "vanilla_gan.py")
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_taken_sample_folder_is_refused_and_nothing_is_left(tmp_path):
    (tmp_path / "samples" / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match="--sample_dir"):
        create(tmp_path / "runs", name="mine", sample_dir=str(tmp_path / "samples"))
    assert os.listdir(tmp_path) == ["samples"] and os.listdir(tmp_path / "samples") == ["mine"]


def test_unwritable_parent(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(UserError, match=r"--checkpoint_dir: .*file is no folder that you can write to"):
            create(folder)


def test_write_whole_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def fail(file):
        file.write(b"half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_whole(path, fail)
    assert json.loads(path.read_text()) == {"a": 1} and os.listdir(tmp_path) == ["x.json"]
    before = path.stat().st_ino
    write_json(path, {"a": 2})
    assert path.stat().st_ino != before, "a new file takes the name; the old one is never written to"


def test_what_is_said_is_one_printable_line(tmp_path, capsys):
    run = create(tmp_path)
    run.say("my\x1b[31m\ncats\udcff")
    assert capsys.readouterr().out == "my\\x1b[31m\\ncats\\udcff\n" == (run.folder / "log.txt").read_text()


def test_the_errors_of_threads_are_shown_again_after_a_run(tmp_path):
    before = threading.excepthook
    run = create(tmp_path)
    with run:
        run.start(VanillaOptions(checkpoint_dir=str(tmp_path)), CPU, "float32")
        assert threading.excepthook is not before
    assert threading.excepthook is before


def test_losses_are_cut_back_to_the_checkpoint(tmp_path):
    run = create(tmp_path)
    run.start(VanillaOptions(checkpoint_dir=str(tmp_path)), CPU, "float32")
    for step in (10, 20, 30):
        run.add_losses(step, {"G": step / 7}, 0.001)
        run.save_checkpoint(step, {}) if step == 20 else None
    run.__exit__(None, None, None)
    path = run.folder / "losses.csv"
    assert path.read_text() == "step,G,lr\n10,1.42857,0.001\n20,2.85714,0.001\n30,4.28571,0.001\n"
    path.write_text(path.read_text() + "40,5.7")  # torn by a crash
    again, _ = find(run.folder)
    assert again.load_checkpoint()["step"] == 20
    assert path.read_text() == "step,G,lr\n10,1.42857,0.001\n20,2.85714,0.001\n"


def test_newest_checkpoint_is_the_highest_step(tmp_path):
    run = create(tmp_path)
    for step in (100, 99, 1000000):
        run.save_checkpoint(step, {"x": torch.ones(2)})
    os.utime(run.folder / "checkpoint-000099.pt", (2**31, 2**31))
    assert [step for step, _ in list_checkpoints(run.folder)] == [1000000, 100, 99]
    content = run.load_checkpoint()
    assert (content["step"], content["format"], content["script"]) == (1000000, FORMAT, "vanilla_gan.py")


def test_plot(tmp_path):
    rows = [{"step": k, "A_b": 5 / k, "C": -1.0, "lr": 1.0} for k in range(1, 300)]
    figure = draw_losses(rows, {"Left": ["A_b"], "Right": ["C"]}, "a run")
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("Left", "Right")
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["A b"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2], "raw and smoothed"
    assert second.get_ylim()[0] <= -1
    figure.savefig(tmp_path / "x.png", dpi=100)
    assert Image.open(tmp_path / "x.png").size == (900, 900)
    draw_losses(rows[:1], {"": ["C"]}, "one row").savefig(tmp_path / "y.png")


def test_plot_of_evaluations():
    """A panel of its own, on the axis of the losses, from 0 on, with the best of the means marked."""
    rows = [{"step": k, "A": 1.0, "lr": 1.0} for k in range(10, 110, 10)]
    scores = {20: {"X2Y": 3.0, "Y2X": 9.0}, 40: {"X2Y": 5.0, "Y2X": 5.0}, 60: {"X2Y": 2.0, "Y2X": 9.0}}
    losses, panel = draw_losses(rows, {"": ["A"]}, "a run", "KID x1000 (inception)", scores).axes
    assert panel.get_title() == "KID x1000 (inception)" and panel.get_xlim() == losses.get_xlim()
    assert panel.get_ylim() == (0, pytest.approx(9.9))
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["X2Y", "Y2X", "best: 40"]
    assert [line.get_ydata().tolist() for line in panel.lines[:2]] == [[3, 5, 2], [9, 5, 9]]


def row(step, value, source="training", metric="m", split="train", features="f", task="z"):
    columns = {"step": step, "source": source, "task": task, "split": split, "metric": metric, "value": value}
    return {**dict.fromkeys(runs.METRICS, ""), **columns, "features": features}


def test_scores_are_those_of_the_metric_that_stands_first(tmp_path):
    """Read from metrics.csv: not the other metrics, splits, features, nor what evaluate.py measured."""
    runs.append_metrics(tmp_path, [row(1, 9.0, features="old"), row(2, 1.0), row(2, 7.0, metric="n")])
    runs.append_metrics(tmp_path, [row(2, 8.0, source="evaluate.py"), row(2, 6.0, split="test")])
    runs.append_metrics(tmp_path, [row(4, 3.0), row(4, 5.0, task="y"), row(4, 7.0, metric="n")])
    rows = runs.read_metrics(tmp_path)
    assert len(rows) == 8 and rows[0]["features"] == "old"
    assert runs.find_scores(rows) == ("m (f)", {2: {"z": 1.0}, 4: {"z": 3.0, "y": 5.0}})
    assert runs.find_scores([]) == ("", {})


def test_drawing_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    """A drawing of a second is not repeated for 50 seconds, a quick one for 10; the last one always comes."""
    clock, cost, drawn = [0.0], [1.0], []

    def draw(rows, panels, title, *scores):
        clock[0] += cost[0]
        drawn.append(clock[0])
        return Figure()

    monkeypatch.setattr(runs, "draw_losses", draw)
    monkeypatch.setattr(runs.time, "monotonic", lambda: clock[0])
    run = create(tmp_path)
    run.rows = [{"step": 1, "G": 1.0}]
    for clock[0] in (5.0, 10.0, 40.0, 60.9, 61.0):
        run.plot_losses({})
    assert drawn == [11.0, 62.0]
    cost[0] = 0.01
    for clock[0] in (112.0, 121.0, 122.1):
        run.plot_losses({})
    assert drawn[2:] == pytest.approx([112.01, 122.11])
    run.plot_losses({}, now=True)
    assert len(drawn) == 5


def test_drawings_do_not_pile_up(tmp_path):
    """A long run would take more and more memory: a figure refers to itself."""
    run = create(tmp_path, name="run")
    run.rows = [{"step": 1, "G": 1.0, "lr": 1.0}]
    gc.collect()
    gc.disable()
    try:
        before = sum(type(thing) is Figure for thing in gc.get_objects())
        run.plot_losses({"": ["G"]}, now=True)
        assert sum(type(thing) is Figure for thing in gc.get_objects()) == before
        figure = draw_losses(run.rows, {"": ["G"]}, "x")  # the control: what is merely dropped stays
        figure.savefig(tmp_path / "x.png")
        del figure
        assert sum(type(thing) is Figure for thing in gc.get_objects()) > before
    finally:
        gc.enable()


def test_letters_that_the_font_has_not(tmp_path):
    """No warning of matplotlib ends up between the lines of the program."""
    run = Run.create(VanillaOptions(checkpoint_dir=str(tmp_path), name="猫"), "vanilla_gan.py")
    run.rows = [{"step": 1, "G": 1.0, "lr": 1.0}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.plot_losses({"": ["G"]}, now=True)
    assert (run.folder / "losses.png").exists()


def test_a_plot_collects_all_garbage(tmp_path):
    """Of evaluations too, whose metrics hold the features of all images."""
    run = create(tmp_path, name="x")

    def forget() -> weakref.ref:
        circle = nn.Identity()
        circle.itself = [circle]
        return weakref.ref(circle)

    run.rows = [{"step": 1, "G": 1.0, "lr": 1.0}]
    for _ in range(3):
        forgotten = forget()
        run.plot_losses({"": ["G"]}, now=True)
        assert forgotten() is None


def test_smoothing_keeps_constants_and_averages_the_rest():
    assert _smooth(np.full(50, 3.0)) == pytest.approx(np.full(50, 3.0))
    line = np.arange(200.0)
    assert _smooth(line)[50:150] == pytest.approx(line[50:150]), "centered: no lag"
    noise = np.random.default_rng(0).normal(size=400)
    assert _smooth(noise).std() < 0.3 * noise.std()
    assert list(_smooth(np.arange(2.0))) == [0, 1], "a mean of both would be flat"
    assert len(_smooth(np.ones(1))) == 1 and len(_smooth(np.ones(20))) == 20


def test_environment(tmp_path):
    options = VanillaOptions(checkpoint_dir=str(tmp_path), name="x")
    run = create(tmp_path, name="x")
    for _ in range(2):  # the run and its resumption
        run.start(options, CPU, "float32")
    starts = json.loads((run.folder / "environment.json").read_text())
    assert len(starts) == 2 and starts[0]["torch"] == torch.__version__ and starts[0]["device"] == "cpu"
    assert dataclasses.is_dataclass(options) and starts[0]["threads"] == torch.get_num_threads()
