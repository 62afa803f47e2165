"""losses.png: its panels, smoothing, memory, and when it is drawn."""

import gc
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import runs.logs
from runs.plots import draw_losses, save_losses, smooth
from system.files import describe_write_error
from tests.conftest import FinishedRun, resume, train


def test_plot_of_losses(tmp_path):
    rows = [{"step": k, "A_b": 5 / k, "C": -1.0, "lr": 1.0} for k in range(1, 300)]
    figure = draw_losses(rows, {"Left": ["A_b"], "Right": ["C"]}, "a run")
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("Left", "Right")
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["A b"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2], "raw and smoothed"
    assert second.get_ylim()[0] <= -1
    figure.savefig(tmp_path / "x.png", dpi=100)
    assert Image.open(tmp_path / "x.png").size == (900, 900)


def test_a_single_row_is_visible(tmp_path):
    """A line of one point is invisible, so it has a marker."""
    [axes] = draw_losses([{"step": 10, "C": 0.5}], {"": ["C"]}, "one row").axes
    assert [line.get_marker() for line in axes.lines] == ["None", "."]


def test_plot_of_evaluations():
    """Their own panel, with the x axis of the losses, from 0 up, and a mark at the best mean."""
    rows = [{"step": k, "A": 1.0, "lr": 1.0} for k in range(10, 110, 10)]
    scores = {20: {"X2Y": 3.0, "Y2X": 9.0}, 40: {"X2Y": 5.0, "Y2X": 5.0}, 60: {"X2Y": 2.0, "Y2X": 9.0}}
    losses, panel = draw_losses(rows, {"": ["A"]}, "a run", "KID x1000 (inception)", scores).axes
    assert panel.get_title() == "KID x1000 (inception)" and panel.get_xlim() == losses.get_xlim()
    assert panel.get_ylim() == (0, pytest.approx(9.9))
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["X2Y", "Y2X", "best: 40"]
    assert [line.get_ydata().tolist() for line in panel.lines[:2]] == [[3, 5, 2], [9, 5, 9]]


def test_losses_that_are_missing_in_some_rows():
    """Such as gradient penalties: their curve has the points that there are; a panel without losses is left out."""
    rows = [{"step": k, "G": 1.0, **({"R1": 2.0} if k % 16 == 0 else {})} for k in range(1, 65)]
    first, second = draw_losses(rows, {"": ["G"], "Gradient penalties": ["R1", "R2"], "None": ["x"]}, "a run").axes
    assert second.get_title() == "Gradient penalties" and list(second.lines[0].get_xdata()) == [16, 32, 48, 64]
    assert len(first.lines) == len(second.lines) == 2


ROWS = [{"step": 1, "G": 1.0, "lr": 1.0}]


def count_figures() -> int:
    return sum(type(thing) is Figure for thing in gc.get_objects())


def test_figures_do_not_stay_in_memory(tmp_path):
    """A figure refers to itself, so a long run would take more and more memory."""
    gc.collect()
    gc.disable()
    try:
        before = count_figures()
        save_losses(tmp_path / "losses.png", ROWS, {"": ["G"]}, "run")
        assert count_figures() == before and not gc.isenabled()
        figure = draw_losses(ROWS, {"": ["G"]}, "x")  # the control: deleting the figure does not free it
        figure.savefig(tmp_path / "x.png")
        del figure
        assert count_figures() > before
    finally:
        gc.enable()


def test_figures_do_not_grow_old(tmp_path):
    """Python looks for young garbage so often here that a figure would be old before it is drawn."""
    gc.collect()
    before, thresholds = count_figures(), gc.get_threshold()
    gc.set_threshold(50, 1, 1_000_000)
    try:
        save_losses(tmp_path / "losses.png", ROWS, {"": ["G"]}, "run")
        assert count_figures() == before and gc.isenabled()
    finally:
        gc.set_threshold(*thresholds)


def test_letters_that_the_font_lacks(tmp_path):
    """No warning of matplotlib appears between the lines of the program."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_losses(tmp_path / "losses.png", ROWS, {"": ["G"]}, "猫")
    assert (tmp_path / "losses.png").exists()


def test_when_losses_png_is_drawn(photos, tmp_path, monkeypatch):
    """When grids are drawn, and at the end."""
    drawn = []
    monkeypatch.setattr(runs.logs, "save_losses", lambda path, rows, *arguments: drawn.append(rows[-1]["step"]))
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--log_step=1", "--sample_every=3"]
    assert train(*flags, "--train_iters=7") == 0
    assert sorted(set(drawn)) == [3, 6, 7]


def test_smoothing_keeps_constants_and_averages_noise():
    assert smooth(np.full(50, 3.0)) == pytest.approx(np.full(50, 3.0))
    line = np.arange(200.0)
    assert smooth(line)[50:150] == pytest.approx(line[50:150]), "centered: no lag"
    noise = np.random.default_rng(0).normal(size=400)
    assert smooth(noise).std() < 0.3 * noise.std()
    assert list(smooth(np.arange(2.0))) == [0, 1], "a mean of both would be flat"
    assert len(smooth(np.ones(1))) == 1 and len(smooth(np.ones(20))) == 20


@pytest.mark.faults
def test_losses_png_is_drawn_with_our_settings(tmp_path):
    """The user's may need LaTeX, for example, which may not be installed. Afterwards they are the user's again."""
    with matplotlib.rc_context({"text.usetex": True, "lines.linewidth": 7, "font.family": "Nowhere"}):
        save_losses(tmp_path / "user.png", ROWS, {"": ["G"]}, "run")
        assert matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["lines.linewidth"] == 7
    save_losses(tmp_path / "default.png", ROWS, {"": ["G"]}, "run")
    assert (tmp_path / "user.png").read_bytes() == (tmp_path / "default.png").read_bytes()


@pytest.mark.faults
@pytest.mark.parametrize(
    "target, error",
    [("draw_losses", ValueError("a font is\nmissing")), ("write_bytes", PermissionError(13, "not allowed"))],
)
def test_a_plot_that_cannot_be_drawn_does_not_end_the_run(target, error, photos, tmp_path, monkeypatch, capsys):
    """One warning reports the first of several errors; the run ends as usual, and a resumed run draws again."""

    def fail(*arguments):
        raise error

    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", "--log_step=1", "--sample_every=1"]
    with monkeypatch.context() as patch:
        patch.setattr(f"runs.plots.{target}", fail)
        assert train(*flags, "--train_iters=3") == 0
    run, out = FinishedRun(tmp_path / "run"), capsys.readouterr().out
    [line] = [line for line in out.splitlines() if line.startswith("Warning")]
    why = f"{type(error).__name__}: " + " ".join(str(error).split())
    assert line.startswith(f"Warning: drawing losses.png failed ({why}). This does not stop the training")
    assert line in run.log and "Traceback" in run.log and "Traceback" not in out
    assert run.steps("checkpoint-*.pt") == [3] and not (run.folder / "losses.png").exists()
    assert resume(f"--resume={run.folder}", "--train_iters=4") == 0 and (run.folder / "losses.png").exists()


@pytest.mark.faults
def test_a_full_disk_ends_the_run_at_its_plot(photos, tmp_path, monkeypatch, capsys):
    """As at every other file."""

    def fail(path, content):
        raise describe_write_error(path, OSError(28, "No space left on device"), len(content))

    monkeypatch.setattr("runs.plots.write_bytes", fail)
    assert train(f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--log_step=1", "--train_iters=1") == 2
    err = capsys.readouterr().err
    assert "losses.png: No space left on device" in err and err.count("\n") == 1
