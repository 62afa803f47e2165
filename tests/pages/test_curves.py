"""Curves of the page: averages of long runs, ranges of the axes, JSON that a page can contain."""

import json

import numpy as np
import pytest

from pages import curves
from pages.curves import draw_curves, thin
from pages.report import read_runs
from tests.helpers.run_folders import write_metrics, write_run


@pytest.mark.golden
@pytest.mark.parametrize("count, most", [(1, 5), (5, 5), (6, 5), (10, 5), (11, 5), (103, 10)])
def test_thinned_curves_are_means_of_neighbors(count, most):
    steps, values = np.arange(1, count + 1) * 10, np.random.default_rng(count).random(count)
    at, thinned = thin(steps, values, most)
    size = -(-count // most)
    parts = [range(i, min(i + size, count)) for i in range(0, count, size)]
    assert at.tolist() == [10 * (part[-1] + 1) for part in parts] and len(at) <= most
    np.testing.assert_allclose(thinned, [sum(values[i] for i in part) / len(part) for part in parts])
    if size > 1:  # every nth value is something else
        assert not np.allclose(thinned, values[::size][: len(thinned)])


def figures(drawn):
    """Return all figures of the page as the browser gets them: id of the chart -> attributes."""
    content = json.loads(str(drawn.as_json()))
    found = {}
    for one in content:
        for root in one["doc"]["roots"]:
            found[one["roots"][root["id"]]] = root["attributes"]
    return found


def test_charts_of_runs_on_shared_axes(tmp_path):
    folders = [write_run(tmp_path / "a", rows=20), write_run(tmp_path / "b", rows=50)]
    drawn = draw_curves(read_runs(folders)[0])
    assert [chart.title for chart in drawn.losses["vanilla_gan.py"]] == ["D total", "G"] and not drawn.scores
    first, second = figures(drawn).values()
    assert first["x_range"]["attributes"]["end"] == 500 and second["x_range"] == {"id": first["x_range"]["id"]}
    assert "a 1." in drawn.losses["vanilla_gan.py"][0].summary and not drawn.is_thinned


def test_a_spike_does_not_flatten_the_curves_and_missing_values_are_left_out(tmp_path):
    folder = write_run(tmp_path / "a", rows=400)
    lines = (folder / "losses.csv").read_text().splitlines()
    lines[1] = "10,1e9,nan,0.0005"
    lines[2] = "20,,,0.001"
    (folder / "losses.csv").write_text("\n".join(lines) + "\n")
    drawn = draw_curves(read_runs([folder])[0])
    assert [chart.title for chart in drawn.losses["vanilla_gan.py"]] == ["D total", "G", "learning rate"]
    assert all(figure["y_range"]["attributes"]["end"] < 3 for figure in figures(drawn).values())


def test_losses_that_one_run_lacks(tmp_path):
    folders = [write_run(tmp_path / "a", columns=("G", "R1")), write_run(tmp_path / "b", columns=("G",))]
    drawn = draw_curves(read_runs(folders)[0])
    assert [chart.title for chart in drawn.losses["vanilla_gan.py"]] == ["G", "R1"]
    assert "; b" not in drawn.losses["vanilla_gan.py"][1].summary


def test_two_scripts_have_axes_of_their_own(tmp_path):
    folders = [write_run(tmp_path / "a", "cycle_gan.py", columns=("cycle",)), write_run(tmp_path / "b", rows=50)]
    drawn = draw_curves(read_runs(folders)[0])
    assert list(drawn.losses) == ["vanilla_gan.py", "cycle_gan.py"] and len(drawn.documents) == 2


def test_evaluations_and_the_best(tmp_path):
    folder = write_run(tmp_path / "a")
    for step, value in ((10, 3.0), (20, 1.5), (30, 2.0)):
        write_metrics(folder, step, value, "training")
    other = write_run(tmp_path / "b", "cycle_gan.py")
    write_metrics(other, 10, 3.0, "training", task="X2Y")
    scores = draw_curves(read_runs([folder, other])[0]).scores
    [chart] = scores["vanilla_gan.py"]
    assert len(scores["cycle_gan.py"]) == 1  # the numbers of two scripts are not on one axis
    assert chart.title == "Frechet distance (pixels)" and "a: 1.5 at iteration 20" in chart.summary


def test_many_rows_are_averaged(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "MAX_POINTS", 300)
    folder = write_run(tmp_path / "a", rows=500)
    drawn = draw_curves(read_runs([folder])[0])
    assert drawn.is_thinned and len(str(drawn.as_json())) < 20_000


def test_a_run_without_losses_beside_one_with(tmp_path):
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    (folders[0] / "losses.csv").unlink()
    assert len(draw_curves(read_runs(folders)[0]).losses["vanilla_gan.py"]) == 2
    (folders[1] / "losses.csv").unlink()
    assert not draw_curves(read_runs(folders)[0]).losses
