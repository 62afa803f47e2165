"""Reading a run folder for display: state, numbers, pictures; and what is missing or damaged."""

import filelock
import numpy as np
import pytest
import torch

from runs.overview import is_locked, read_overview
from tests.conftest import train
from tests.helpers.run_folders import write_metrics, write_run
from utils import UserError


def test_a_trained_run(photos, tmp_path):
    """A run of the program itself: every number is found in its files."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=a", "--log_step=1", "--eval_every=2"]
    assert train(*flags, "--train_iters=4") == 0
    run = read_overview(tmp_path / "a")
    assert (run.script, run.state, run.reason, run.step, run.total) == ("vanilla_gan.py", "finished", "", 4, 4)
    assert run.losses["step"].tolist() == [1, 2, 3, 4] and np.isfinite(run.losses["G"]).all()
    assert run.sessions[0]["device"] == "cpu" and run.has_best and run.best_step in (2, 4) and len(run.scores) == 2
    assert list(run.grids["sample"]) == [0, 4] and list(run.grids["real"]) == [0]
    assert not run.problems and run.images


@pytest.mark.parametrize(
    "script, names", [("vanilla_gan.py", {"sample"}), ("cycle_gan.py", {"sample-X-Y", "sample-Y-X"})]
)
def test_a_run_made_of_files(script, names, tmp_path):
    run = read_overview(write_run(tmp_path / "a", script, rows=20))
    assert (run.state, run.step, run.total, run.speed) == ("finished", 200, 200, 12.5)
    assert set(run.grids) == names and all(list(steps) == [0, 100, 200] for steps in run.grids.values())
    assert not run.problems


@pytest.mark.parametrize(
    "end, state, reason",
    [
        ("Stopped by SIGINT at iteration 120 of {total}. Resume with:", "stopped", "by SIGINT"),
        ("Stopped: the loss G became NaN at iteration 7", "failed", "the loss G became NaN at iteration 7"),
        ("", "failed", "it ended without a message: it was killed, or an error stopped it"),
        ("Finished 200 iterations: x\nTraining to iteration 400 in x, from 200", "failed", "it ended without"),
        ("Training to iteration 9 in x\nFinished 9 iterations: x", "finished", ""),
    ],
)
def test_state_of_the_newest_session(end, state, reason, tmp_path):
    run = read_overview(write_run(tmp_path / "a", end=end))
    assert run.state == state and run.reason.startswith(reason) and bool(run.reason) == bool(reason)


def test_a_locked_folder_is_a_running_training(tmp_path):
    folder = write_run(tmp_path / "a", end="")
    assert not is_locked(folder) and not (folder / ".lock").exists()  # nothing is written
    with filelock.FileLock(folder / ".lock"):
        assert read_overview(folder).state == "running"
    assert read_overview(folder).state == "failed"


def test_a_run_without_anything_but_options(tmp_path):
    folder = write_run(tmp_path / "a")
    for name in ("environment.json", "data.json", "log.txt", "losses.csv"):
        (folder / name).unlink()
    for path in (folder / "samples").iterdir():
        path.unlink()
    run = read_overview(folder)
    told = "\n".join(run.problems)
    assert all(word in told for word in ("environment.json", "data.json", "log.txt", "losses.csv", "grids"))
    assert (run.step, run.losses, run.speed) == (0, {}, None) and run.state == "failed"


@pytest.mark.faults
@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("environment.json", b"[{", "environment.json is damaged"),
        ("environment.json", b"7", "environment.json is not a list of sessions"),
        ("data.json", b"\xff\xfe", "data.json is damaged"),
        ("data.json", b"[]", "data.json is damaged"),
        ("losses.csv", b"a,b\n1,2\n", "its first column is not called step"),
        ("losses.csv", b"", "losses.csv has no rows yet"),
        ("metrics.csv", b"a,b\n1,2\n", "metrics.csv has other columns"),
    ],
)
def test_a_damaged_file_is_a_problem_and_the_rest_is_read(name, content, problem, tmp_path):
    folder = write_run(tmp_path / "a")
    (folder / name).write_bytes(content)
    run = read_overview(folder)
    assert [text for text in run.problems if problem in text]
    assert run.state == "finished" and run.grids["sample"] and run.speed == 12.5
    assert (len(run.losses) > 0) == (name != "losses.csv")


@pytest.mark.faults
def test_damaged_cells_of_tables(tmp_path):
    folder = write_run(tmp_path / "a", rows=3)
    (folder / "losses.csv").write_text("step,G,lr\n10,1,0.1\nx,2,0.1\n20,oops,0.1\n30,,0.1\n40,1\n50,4,0.1\n60,5,0.")
    write_metrics(folder, 10, 5.0, "training")
    write_metrics(folder, 20, float("nan"), "training")
    run = read_overview(folder)
    assert run.losses["step"].tolist() == [10, 20, 30, 50]
    assert np.array_equal(run.losses["G"], [1, np.nan, np.nan, 4], equal_nan=True)
    assert "losses.csv: 1 damaged rows are left out" in run.problems
    assert "metrics.csv: 2 damaged rows are left out" in run.problems and run.scores == {10: {"z": 5.0}}


def test_the_newest_picture_of_nearest_images_counts(tmp_path):
    folder = write_run(tmp_path / "a")
    for name in ("000100-pixels", "000200-pixels-2", "000200-pixels-X-Y", "000150-resnet18-X-Y", "x"):
        (folder / f"nearest-{name}.png").write_bytes(b"")
    nearest = read_overview(folder).nearest
    assert {task: path.name for task, path in nearest.items()} == {
        "": "nearest-000200-pixels-2.png", "X-Y": "nearest-000200-pixels-X-Y.png"
    }  # fmt: skip


def test_equal_images_have_an_equal_checksum(tmp_path):
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    assert read_overview(first).images == read_overview(second).images
    (second / "data.json").write_text('{"images": {"train": {"1.png": 101}, "test": [], "skipped": {}}}')
    assert read_overview(first).images != read_overview(second).images


def test_a_folder_that_is_not_a_run(tmp_path):
    write_run(tmp_path / "runs" / "a")
    with pytest.raises(UserError, match=r"is not a run folder .*; give the folder of a run"):
        read_overview(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"it contains runs: give .*runs/\*"):
        read_overview(tmp_path / "runs")
    file = tmp_path / "x.pt"
    torch.save({}, file)
    with pytest.raises(UserError, match="not a run folder"):
        read_overview(file)
    for content in ("{", "[]", "{}", '{"script": 1, "options": {}, "samples": "samples"}'):
        (tmp_path / "runs/a/options.json").write_text(content)
        with pytest.raises(UserError, match=r"no readable options\.json"):
            read_overview(tmp_path / "runs/a")
