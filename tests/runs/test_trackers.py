"""Experiment trackers: what Weights & Biases gets, in its offline mode, and what happens without it."""

import io
import json
import os
import struct
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from runs.trackers import TRACKERS, TensorBoardTracker, WandbTracker
from tests.conftest import ROOT, TINY, FinishedRun, command, resume, train
from utils import UserError, to_png


def read_records(path: Path) -> Iterator:
    """Yield the records of a .wandb file: blocks of 32 KiB with chunks of (checksum, length, kind, content)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        rest_of_block = 32768 - position % 32768
        if rest_of_block < 7:
            position += rest_of_block
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(record)
            record = b""


def read_session(folder: Path) -> tuple[str, dict, dict[int, dict]]:
    """Return what one session sent to W&B: identity of the run, its config, and step -> name -> value."""
    (path,) = folder.glob("*.wandb")
    identity, config, history = "", {}, {}
    for record in read_records(path):
        if record.HasField("run"):
            identity = record.run.run_id
            config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField("history"):
            items = record.history.item
            values = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
            history[values["_step"]] = values
    return identity, config, history


def test_wandb_gets_losses_metrics_and_grids(photos, tmp_path):
    """Two iterations, then two more in a resumed run, as a user calls them. The plain log stays as it is."""
    pytest.importorskip("wandb")
    own_folders = {f"WANDB_{kind}_DIR": str(tmp_path / kind) for kind in ("CACHE", "CONFIG", "DATA")}
    env = {**os.environ, **own_folders, "WANDB_MODE": "offline"}
    script, folder = ROOT / "vanilla_gan.py", tmp_path / "run"
    flags = [*TINY["vanilla_gan.py"], f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run"]
    flags += ["--train_iters=2", "--log_step=1", "--eval_every=2", "--tracker=wandb"]
    first = command(script, *flags, env=env)
    second = command(script, f"--resume={folder}", "--train_iters=4", env=env)
    assert [first.returncode, second.returncode] == [0, 0] and first.stderr == second.stderr == ""
    run = FinishedRun(folder)
    assert run.log == first.stdout + second.stdout and "wandb:" not in run.log
    assert "tensorboard" not in run.log, "the advice to compare runs is of the other tracker"
    assert not list(folder.glob("events.*"))

    sessions = sorted((folder / "wandb").glob("offline-run-*"))
    (identity, config, history), (same, _, continued) = map(read_session, sessions)
    assert len(sessions) == 2 and identity == same, "a resumed run continues its curves"
    assert config["conv_dim"] == 2 and config["tracker"] == "wandb"
    assert sorted(history) == [0, 1, 2] and sorted(continued) == [3, 4]

    # Losses and metrics are those of losses.csv and metrics.csv.
    recorded = {**history, **continued}
    assert len(run.rows()) == 4
    for row in run.rows():
        values = recorded[int(row["step"])]
        for name in ("D_real", "D_fake", "D_total", "G"):
            assert values[f"losses/{name}"] == pytest.approx(float(row[name]), rel=1e-5)
        assert values["lr"] == 5e-4
    measured = {name: value for name, value in recorded[2].items() if name.startswith("metrics/")}
    assert measured and all(np.isfinite(value) for value in measured.values())
    assert measured.keys() == {name for name in recorded[4] if name.startswith("metrics/")}
    assert not any(name.startswith("metrics/") for name in recorded[1])

    # Grids are the pictures of samples/.
    for session, name, step in [(0, "real", 0), (0, "sample", 0), (0, "sample", 2), (1, "sample", 4)]:
        (picture,) = (sessions[session] / "files" / "media" / "images").glob(f"{name}_{step}_*.png")
        assert recorded[step][f"{name}.path"].endswith(picture.name)
        expected = Image.open(folder / "samples" / f"{name}-{step:06d}.png")
        assert np.array_equal(np.array(Image.open(picture)), np.array(expected))


class BothTrackers:
    """Gives everything to TensorBoard and to Weights & Biases."""

    def __init__(self, *arguments):
        self.both = [TensorBoardTracker(*arguments), WandbTracker(*arguments)]

    def scalars(self, *arguments):
        for tracker in self.both:
            tracker.scalars(*arguments)

    def image(self, *arguments):
        for tracker in self.both:
            tracker.image(*arguments)

    def close(self):
        for tracker in self.both:
            tracker.close()


def read_tensorboard(folder: Path) -> tuple[dict, dict]:
    """Return what an events file contains: (name, step) -> number, and (name, step) -> pixels."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), {"scalars": 0, "images": 0}).Reload()  # 0: all of them
    tags = events.Tags()
    numbers = {(name, one.step): one.value for name in tags["scalars"] for one in events.Scalars(name)}
    pictures = {
        (name, one.step): np.array(Image.open(io.BytesIO(one.encoded_image_string)))
        for name in tags["images"]
        for one in events.Images(name)
    }
    return numbers, pictures


def read_wandb(folder: Path) -> tuple[dict, dict]:
    """Return the same of a session of W&B."""
    (session,) = (folder / "wandb").glob("offline-run-*")
    numbers, pictures = {}, {}
    for step, values in read_session(session)[2].items():
        for name, value in values.items():
            if name.endswith(".path"):
                pictures[name.removesuffix(".path"), step] = np.array(Image.open(session / "files" / value))
            elif not name.startswith("_") and isinstance(value, float | int) and "." not in name:
                numbers[name, step] = value
    return numbers, pictures


@pytest.mark.parametrize(
    "script, names",
    [
        ("vanilla_gan.py", {"real", "sample"}),
        ("cycle_gan.py", {"real-X", "real-Y", "sample-X-Y", "sample-Y-X"}),
    ],
)
def test_tensorboard_and_wandb_show_the_same(script, names, run_once, monkeypatch, tmp_path):
    """The same numbers and grids, with the same names and iterations; the grids are the pictures of samples/."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for kind in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / kind))
    monkeypatch.setitem(TRACKERS, "tensorboard", BothTrackers)
    run = run_once("--eval_every=2", "--features=pixels", script=script)
    numbers, pictures = read_tensorboard(run.folder)
    other_numbers, other_pictures = read_wandb(run.folder)

    assert numbers.keys() == other_numbers.keys()
    assert [numbers[key] for key in numbers] == pytest.approx([other_numbers[key] for key in numbers], rel=1e-6)
    recorded = {name for name, _ in numbers}
    assert recorded >= {"lr", *(f"losses/{name}" for name in run.rows()[0].keys() - {"step", "lr"})}
    assert any(name.startswith("metrics/") for name in recorded)

    assert {name for name, _ in pictures} == names
    assert pictures.keys() == other_pictures.keys()
    files = {}
    for name, step in pictures:
        first, *rest = name.split("-")
        files[name, step] = run.folder / "samples" / ("-".join([first, f"{step:06d}", *rest]) + ".png")
    assert {*files.values()} == {*(run.folder / "samples").iterdir()}
    for key, pixels in pictures.items():
        assert np.array_equal(pixels, np.array(Image.open(files[key]))) and np.array_equal(pixels, other_pictures[key])


def test_without_wandb_one_line_says_so(photos, tmp_path, monkeypatch, capsys):
    """The name can be used again."""
    monkeypatch.setitem(sys.modules, "wandb", None)  # `import wandb` then fails as if it was not installed
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=1"]
    assert train(*flags, "--tracker=wandb") == 2
    err = capsys.readouterr().err
    assert err == ("vanilla_gan.py: error: --tracker: wandb is not installed; pip install wandb, or use tensorboard\n")
    assert train(*flags) == 0 and list((tmp_path / "run").glob("events.*"))


def test_a_resumed_run_may_change_its_tracker(photos, tmp_path, monkeypatch, capsys):
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=1"]
    assert train(*flags) == 0
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=2", "--tracker=wandb") == 2
    assert "wandb is not installed" in capsys.readouterr().err
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=2", "--tracker=tensorboard") == 0


class FakeWandb(types.ModuleType):
    """Stands for the wandb module: keeps what `init` was called with, and makes the folder that wandb makes."""

    class Error(Exception):
        pass

    def __init__(self, problem: str | None = None):
        super().__init__("wandb")
        self.problem, self.calls, self.logged = problem, [], []
        self.Settings, self.Image = dict, lambda picture: picture

    def init(self, **arguments):
        if self.problem is not None:
            raise self.Error(self.problem)
        self.calls.append(arguments)
        name = f"run-20260101_0000{len(self.calls):02d}-{arguments['id']}"
        (Path(arguments["dir"]) / "wandb" / name).mkdir(parents=True)
        return types.SimpleNamespace(log=lambda values, step: self.logged.append((step, values)), finish=lambda: None)


def test_a_resumed_run_has_the_same_identity_and_a_new_run_another(tmp_path, monkeypatch):
    """A new run in a folder that was used before must not continue the curves of the deleted run."""
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for resumed_step in (None, 5, None, 7):
        WandbTracker(tmp_path, {"lr": 1.0}, resumed_step)
    first, resumed, new, resumed_new = (call["id"] for call in wandb.calls)
    assert first == resumed != new == resumed_new
    assert all(call["resume"] == "allow" and call["config"] == {"lr": 1.0} for call in wandb.calls)
    (tmp_path / "wandb").rename(tmp_path / "moved")
    WandbTracker(tmp_path, {}, 7)
    assert wandb.calls[-1]["id"] not in (first, new)


def test_the_terminal_is_left_alone(tmp_path, monkeypatch):
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    tracker = WandbTracker(tmp_path, {}, None)
    assert wandb.calls[0]["settings"] == {"silent": True, "console": "off"}
    tracker.scalars({"lr": 0.5}, 3)
    tracker.image("sample", to_png(torch.zeros(3, 2, 4, dtype=torch.uint8)), 3)
    assert wandb.logged[0] == (3, {"lr": 0.5}) and wandb.logged[1][1]["sample"].size == (4, 2)


def test_a_missing_account_or_connection_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb("No API key\nconfigured."))
    with pytest.raises(UserError) as error:
        WandbTracker(tmp_path, {}, None)
    assert str(error.value) == (
        "--tracker: wandb: No API key configured; fix this, set WANDB_MODE=offline, or use tensorboard"
    )


class BrokenTracker:
    """Fails in some of its methods; the others count their calls."""

    def __init__(self, broken: set[str]):
        self.broken, self.calls = broken, []
        self._call("opening")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.broken:
            raise RuntimeError(f"no connection for {name}")

    def scalars(self, values, step):
        self._call("scalars")

    def image(self, name, grid, step):
        self._call("image")

    def close(self):
        self._call("close")


@pytest.mark.faults
@pytest.mark.parametrize("broken", [{"opening"}, {"scalars"}, {"image"}, {"close"}, {"scalars", "image", "close"}])
def test_a_tracker_that_fails_does_not_end_the_run(broken, photos, tmp_path, monkeypatch, capsys):
    """The first error is one warning. All other calls, and the files of the run, are as ever."""
    made = []

    def open_tracker(*arguments):
        made.append(BrokenTracker(broken))
        return made[0]

    monkeypatch.setitem(TRACKERS, "tensorboard", open_tracker)
    before = threading.excepthook
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", "--log_step=1", "--eval_every=2"]
    assert train(*flags, "--train_iters=2") == 0
    captured = capsys.readouterr()
    [warning] = [line for line in captured.out.splitlines() if line.startswith("Warning")]
    assert warning.startswith("Warning: the tracker (--tracker) failed (RuntimeError: no connection for ")
    assert captured.err == "" and threading.excepthook is before
    run = FinishedRun(tmp_path / "run")
    assert len(run.rows()) == 2 and run.steps("checkpoint-*.pt") == [2] and (run.folder / "metrics.csv").exists()
    assert "opening" in broken or made[0].calls == [
        "opening", "image", "image", "scalars", "scalars", "image", "scalars", "close"
    ]  # fmt: skip


@pytest.mark.faults
def test_tensorboard_that_cannot_be_imported_does_not_end_the_run(photos, tmp_path, monkeypatch, capsys):
    """As with a protobuf that does not fit."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert train(f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--train_iters=1", "--log_step=1") == 0
    assert capsys.readouterr().out.count("Warning: the tracker (--tracker) failed (ModuleNotFoundError: ") == 1


@pytest.mark.faults
def test_a_folder_in_which_tensorboard_may_no_longer_write(photos, tmp_path, monkeypatch, capsys):
    """An error that is not a full disk, as of a network folder. No traceback of TensorBoard's own thread is shown."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    written, real = [], RecordWriter.write

    def write(self, data):
        written.append(data)
        if len(written) > 3:
            raise OSError(5, "Input/output error")
        real(self, data)

    monkeypatch.setattr(RecordWriter, "write", write)
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", "--log_step=1"]
    assert train(*flags, "--train_iters=40") == 0
    captured = capsys.readouterr()
    assert captured.out.count("Warning: the tracker (--tracker) failed (OSError: ") == 1 and captured.err == ""
    assert len(FinishedRun(tmp_path / "run").rows()) == 40
