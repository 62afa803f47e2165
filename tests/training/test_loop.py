"""The training loop: means in losses.csv, the moving average, TensorBoard, logs on disk before a checkpoint."""

import gc
import io
import os
import time
import weakref

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import runs.logs
import training.loop
import vanilla_gan
from metrics.evaluation import Evaluator
from runs.logs import RunLogs
from runs.tables import read_metrics
from tests.conftest import FinishedRun, assert_same, resume, train
from utils import UserError


def test_rows_are_the_means_since_the_previous_row(run_once):
    every, third = (run_once("--train_iters=6", f"--log_step={k}", name=f"log{k}").rows() for k in (1, 3))
    for name in ("D_real", "D_fake", "D_total", "G"):
        values = [float(row[name]) for row in every]
        expected = [sum(values[:3]) / 3, sum(values[3:]) / 3]
        assert [float(row[name]) for row in third] == pytest.approx(expected, rel=1e-4)
    assert [row["step"] for row in third] == ["3", "6"]


def test_moving_average_follows_the_weights_of_every_iteration(run_once, monkeypatch):
    weights = []
    real = vanilla_gan.train_step

    def train_step(state, batch, options, with_penalty):
        if not weights:
            weights.append(state.networks["G"].layers[3].weight.detach().clone())
        losses = real(state, batch, options, with_penalty)
        weights.append(state.networks["G"].layers[3].weight.detach().clone())
        return losses

    monkeypatch.setattr(vanilla_gan, "train_step", train_step)
    run = run_once("--train_iters=3", "--ema_decay=0.75", "--lr=0.01")
    expected = weights[0]
    for new in weights[1:]:
        expected = 0.75 * expected + 0.25 * new
    found = run.checkpoint()["ema"]["G"]["layers.3.weight"]
    torch.testing.assert_close(found, expected)
    assert len(weights) == 4 and not torch.allclose(found, weights[0]) and not torch.allclose(found, weights[-1])


def test_the_first_step_is_not_in_the_speed(run_once, monkeypatch):
    """It prepares much that later steps use. On a resume, too. Neither its time nor its iteration is counted."""
    states, waits = [], [1.5, 0.2, 0.2, 1.5, 0.2]
    real = vanilla_gan.train_step

    class Bar(training.loop.ProgressBar):
        def update(self, *args):
            super().update(*args)
            state = self.format_dict
            states.append((state["n"], state["n"] - state["initial"], state["elapsed"]))

    def train_step(*args):
        time.sleep(waits.pop(0))
        return real(*args)

    monkeypatch.setattr(training.loop, "ProgressBar", Bar)
    monkeypatch.setattr(vanilla_gan, "train_step", train_step)
    run = run_once("--train_iters=3")
    assert resume(f"--resume={run.folder}", "--train_iters=5") == 0
    assert [(n, counted) for n, counted, _ in states] == [(2, 1), (3, 2), (5, 1)]
    assert all(0.2 * counted < seconds < 1.5 for _, counted, seconds in states)


@pytest.mark.parametrize("seconds, plotted_at", [(0.2, [1, 6]), (0.0, [1, 2, 3, 4, 5, 6])])
def test_plots_take_a_small_part_of_the_time(seconds, plotted_at, run_once, monkeypatch):
    """A grid is due after each iteration. After a slow plot the next one waits, but the last is always drawn."""
    plots = []

    def plot_losses(logs, panels):
        plots.append(len(logs.rows))
        if seconds:
            time.sleep(seconds)

    monkeypatch.setattr(RunLogs, "plot_losses", plot_losses)
    run_once("--train_iters=6", "--sample_every=1", "--log_step=1")
    assert plots == plotted_at


def test_a_grid_is_encoded_once(run_once):
    """TensorBoard gets the PNG file itself."""
    run = run_once("--train_iters=2", "--sample_every=2")
    events = EventAccumulator(str(run.folder)).Reload()
    grids = {(tag, image.step): image for tag in events.Tags()["images"] for image in events.Images(tag)}
    assert set(grids) == {("real", 0), ("sample", 0), ("sample", 2)}
    for (name, step), image in grids.items():
        png = (run.folder / "samples" / f"{name}-{step:06d}.png").read_bytes()
        assert image.encoded_image_string == png
        assert (image.width, image.height) == Image.open(io.BytesIO(png)).size


@pytest.mark.faults
@pytest.mark.parametrize("last", [3, 0])
def test_tensorboard_has_each_step_once_after_a_crash(last, photos, tmp_path):
    """Rows after the last checkpoint, or all if there is none, are computed again; TensorBoard shows them once."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", "--log_step=1", "--checkpoint_every=3"]
    assert train(*flags, "--train_iters=5") == 0
    for step in (3, 5):
        if step > last:  # as if it had not been reached
            (tmp_path / "run" / f"checkpoint-{step:06d}.pt").unlink()
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=6") == 0
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [event.step for event in events.Scalars("losses/G")] == [1, 2, 3, 4, 5, 6]
    assert [int(row["step"]) for row in FinishedRun(tmp_path / "run").rows()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux to name an open file")
def test_losses_are_on_the_disk_before_the_checkpoint(photos, tmp_path, monkeypatch):
    """Otherwise a power failure could leave a checkpoint whose log lacks rows that are never written again."""
    synced = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real_fsync(descriptor)

    def replace(source, target):
        if str(target).endswith(".pt"):
            assert synced[-2].endswith("losses.csv") and synced[-1] == str(source)
            synced.append("checkpoint")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    assert train(f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--train_iters=2", "--log_step=1") == 0
    assert "checkpoint" in synced


EVALUATION = "the evaluation (--eval_every)"


@pytest.mark.faults
@pytest.mark.parametrize(
    "error",
    [
        ValueError("All elements of the batch are equal"),
        UserError("metrics need at least 2 different images"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has"),
        MemoryError(),
    ],
)
def test_an_evaluation_that_fails_does_not_end_the_run(error, run_once, monkeypatch, capsys):
    """One warning reports the first error. The run is the same as a run without evaluations."""
    evaluations = []

    def measure(self, comparison):
        evaluations.append(comparison)
        if len(evaluations) in (1, 2):
            raise error
        return real(self, comparison)

    def max_over_processes(number, device):
        agreed.append(number)
        return number

    real, agreed = Evaluator.__call__, []
    monkeypatch.setattr(Evaluator, "__call__", measure)
    monkeypatch.setattr(training.loop, "max_over_processes", max_over_processes)
    run = run_once("--train_iters=3", "--eval_every=1", "--ema_decay=0", "--norm=batch", name="failed")
    assert agreed == [0, 0, 0, 0, 0, 1], "after a failure, too, the processes agree whether it is the best: here not"
    out = capsys.readouterr().out
    [line] = [line for line in out.splitlines() if line.startswith(f"Warning: {EVALUATION}")]
    assert line.startswith(f"Warning: {EVALUATION} failed ({type(error).__name__}: ") and len(evaluations) == 3
    assert {row["step"] for row in read_metrics(run.folder)} == {"3"}, "the third evaluation is recorded"
    plain = run_once("--train_iters=3", "--ema_decay=0", "--norm=batch", name="plain")
    assert_same(plain.checkpoint()["networks"], run.checkpoint()["networks"])


def test_an_evaluation_leaves_no_garbage(run_once, monkeypatch):
    """Metrics hold the features of all images in reference cycles, which Python frees late."""
    garbage = []

    def measure(self, comparison):
        circle = torch.nn.Identity()
        circle.itself = [circle]
        garbage.append(weakref.ref(circle))
        gc.disable()  # as if Python did not look
        return real(self, comparison)

    real = Evaluator.__call__
    monkeypatch.setattr(Evaluator, "__call__", measure)
    monkeypatch.setattr(runs.logs, "save_losses", lambda *arguments: None)  # it frees young objects, too
    try:
        run_once("--train_iters=1", "--eval_every=1")
        assert garbage and not any(one() for one in garbage)
    finally:
        gc.enable()


@pytest.mark.faults
@pytest.mark.parametrize("broken", ["draw_samples", "image_grid"])
def test_a_grid_that_cannot_be_drawn_does_not_end_the_run(broken, run_once, monkeypatch, capsys):
    """One warning reports the first error. The networks are those of a run that draws."""
    plain = run_once("--train_iters=2", "--sample_every=1", name="plain")

    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has")

    monkeypatch.setattr(vanilla_gan, broken, fail)
    run = run_once("--train_iters=2", "--sample_every=1", name="failed")
    assert capsys.readouterr().out.count("Warning: drawing the grids of samples failed (OutOfMemoryError: CUDA") == 1
    assert not list((run.folder / "samples").glob("sample-*.png"))
    assert_same(plain.checkpoint()["networks"], run.checkpoint()["networks"])
