"""Torn files: what a crash can leave behind must cost no more than the iterations since the last checkpoint."""

import json
import os
import shutil
import zipfile

import pytest
import torch

import runs
import vanilla_gan
from generate import load_trained
from runs import read_checkpoint
from tests.conftest import MODULES, Canary, FinishedRun, assert_same, resume, train
from tests.faults import damages
from utils import UserError


@pytest.fixture
def flags(photos, tmp_path):
    return [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--checkpoint_every=2", "--log_step=1"]


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_empty(path):
    path.write_bytes(b"")


def damage_text(path):
    path.write_text("not a checkpoint")


def damage_middle(path):
    """Flip a byte of a tensor: the file's own checksum tells."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
        tensor = archive.read(largest)
    data = path.read_bytes()
    place = data.index(tensor) + len(tensor) // 2
    path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])


@pytest.mark.parametrize("damage", [damage_truncate, damage_empty, damage_text, damage_middle])
def test_broken_checkpoint_falls_back_to_the_one_before(damage, flags, tmp_path, capsys):
    assert train(*flags, "--name=whole", "--train_iters=6") == 0
    assert train(*flags, "--name=torn", "--train_iters=4") == 0
    newest = tmp_path / "torn" / "checkpoint-000004.pt"
    damage(newest)
    capsys.readouterr()
    assert resume(f"--resume={tmp_path / 'torn'}", "--train_iters=6") == 0
    out = capsys.readouterr().out
    assert f"Warning: {newest} is not readable" in out and "from 2" in out
    whole, torn = FinishedRun(tmp_path / "whole"), FinishedRun(tmp_path / "torn")
    assert_same(whole.checkpoint(6)["networks"], torn.checkpoint(6)["networks"])
    assert (whole.folder / "losses.csv").read_bytes() == (torn.folder / "losses.csv").read_bytes()
    assert torn.steps("checkpoint-*.pt") == [2, 4, 6] and torn.checkpoint(4)["step"] == 4, "and made good again"


@pytest.mark.parametrize("script", MODULES)
def test_every_damage_is_noticed(script, images_of, tmp_path):
    """Any bit, any end, any block of zeros; benchmarks/reliability.py tries 600."""
    assert train(f"--data={images_of[script]}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=1",
                 script=script) == 0  # fmt: skip
    held, control_failed = damages.outcomes(tmp_path / "run" / "checkpoint-000001.pt", 60, seed=1)
    assert held == 60 and control_failed > 10


def test_a_checkpoint_by_another_number_is_not_believed(flags, tmp_path, capsys):
    """The newest is the one with the highest number that is what its name says, not the one of the newest date."""
    assert train(*flags, "--name=run", "--train_iters=4") == 0
    folder = tmp_path / "run"
    shutil.copy(folder / "checkpoint-000002.pt", folder / "checkpoint-000099.pt")
    assert read_checkpoint(folder, warn=print)["step"] == 4
    assert "checkpoint-000099.pt is not readable (it is of iteration 2)" in capsys.readouterr().out


def test_the_newest_has_the_highest_number(flags, tmp_path):
    """99 and 100, written in the wrong order, dated 2099 and 2000."""
    assert train(*flags, "--name=run", "--train_iters=100", "--checkpoint_every=1", "--log_step=100") == 0
    folder = tmp_path / "run"
    for path in folder.glob("checkpoint-*.pt"):
        if path.name not in ("checkpoint-000099.pt", "checkpoint-000100.pt"):
            path.unlink()
    (folder / "checkpoint-000099.pt").rename(folder / "checkpoint-99.pt")
    (folder / "checkpoint-000100.pt").rename(folder / "checkpoint-100.pt")
    os.utime(folder / "checkpoint-99.pt", (4e9, 4e9))
    os.utime(folder / "checkpoint-100.pt", (1e9, 1e9))
    assert read_checkpoint(folder, warn=pytest.fail)["step"] == 100
    by_name = max(path.name for path in folder.glob("checkpoint-*.pt"))
    by_date = max(folder.glob("checkpoint-*.pt"), key=lambda path: path.stat().st_mtime).name
    assert by_name == by_date == "checkpoint-99.pt", "the controls"


def change(path, edit) -> None:
    """Edit the content of a checkpoint, and seal it again."""
    content = torch.load(path, weights_only=True)
    edit(content)
    path.write_bytes(runs.seal(content))


def break_shape(content):
    content["networks"]["G"].update({key: value[:1] for key, value in content["networks"]["G"].items()})


def break_type(content):
    content["networks"]["D"] = {key: value.double() for key, value in content["networks"]["D"].items()}


def break_number(content):
    next(iter(content["ema"]["G"].values()))[0] = float("nan")


def break_moment(content):
    content["optimizers"]["G"]["state"][0]["exp_avg"] = torch.zeros(7)


def break_key(content):
    del content["networks"]["D"]


def break_format(content):
    content["format"] = 99


def break_random_generator(content):
    content["rng"]["cpu"] = torch.zeros(3)


@pytest.mark.parametrize(
    "edit, words",
    [
        (break_shape, ["G.layers", " is (1, ", "float32, not (", "more"]),
        (break_type, ["D.layers", "float64, not", "float32"]),
        (break_number, ["the average of G.layers", "is not finite"]),
        (break_moment, ["the first moment of optimizer G.0 is (7,)"]),
        (break_key, ["D is missing"]),
        (break_format, ["format 99", "update it"]),
        (break_random_generator, ["doesn't fit"]),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit(edit, words, flags, tmp_path, capsys):
    """Whole, but not of this run: what differs is said in one line, and nothing is changed."""
    assert train(*flags, "--name=run", "--train_iters=2") == 0
    change(tmp_path / "run" / "checkpoint-000002.pt", edit)
    before = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    capsys.readouterr()
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=4") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and not [word for word in words if word not in err], err
    after = {path: path.read_bytes() for path in sorted((tmp_path / "run").rglob("*")) if path.is_file()}
    assert after == before


def test_a_checkpoint_that_would_run_code_is_refused(flags, tmp_path, capsys):
    """By resumption, by evaluation and by generation, which go by one reader; torch.load as it once was runs it."""
    assert train(*flags, "--name=run", "--train_iters=2") == 0
    path = tmp_path / "run" / "checkpoint-000002.pt"
    content = torch.load(path, weights_only=True)
    path.write_bytes(runs.seal({**content, "hostile": Canary(tmp_path / "canary")}))
    capsys.readouterr()
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=4") == 2
    assert capsys.readouterr().err.count("\n") == 1
    for where in (path, tmp_path / "run"):
        with pytest.raises(UserError):
            load_trained(where)
    assert not (tmp_path / "canary").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "canary").exists(), "the control"


def test_only_the_newest_are_kept(flags, tmp_path):
    """And none is deleted if one of those is damaged."""
    assert train(*flags, "--name=run", "--train_iters=7", "--checkpoint_every=1", "--keep_checkpoints=2") == 0
    run = FinishedRun(tmp_path / "run")
    assert run.steps("checkpoint-*.pt") == [6, 7]
    assert train(*flags, "--name=all", "--train_iters=7", "--checkpoint_every=1") == 0
    assert_same(run.checkpoint()["networks"], FinishedRun(tmp_path / "all").checkpoint()["networks"])
    for step in (3, 4, 5):
        shutil.copy(tmp_path / "all" / f"checkpoint-{step:06d}.pt", run.folder)
    damage_middle(run.folder / "checkpoint-000007.pt")
    shutil.copy(run.folder / "checkpoint-000003.pt", run.folder / "checkpoint-000099.pt")
    runs.Run(run.folder, vanilla_gan.VanillaOptions(), "vanilla_gan.py").prune_checkpoints(2)
    assert run.steps("checkpoint-*.pt") == [5, 6, 7, 99], "two that are whole, and what they say they are"


def test_checkpoints_that_are_gone(flags, tmp_path, capsys):
    """A run that had some doesn't start over: it would write over its best."""
    assert train(*flags, "--name=run", "--train_iters=6", "--eval_every=2") == 0
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    for path in (tmp_path / "run").glob("checkpoint-*"):
        path.unlink()
    with open(tmp_path / "run" / "losses.csv", "a") as file:
        file.write(f"{best['step'] + 1},1,1,1,1,1\n")
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=8") == 2
    assert "the checkpoints of" in capsys.readouterr().err
    assert torch.load(tmp_path / "run" / "best.pt", weights_only=True)["step"] == best["step"]


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")])
def test_what_is_no_damage_is_not_taken_for_it(error, flags, tmp_path, monkeypatch, capsys):
    """Going on from an older checkpoint would cut the logs of a good one."""
    assert train(*flags, "--name=run", "--train_iters=4") == 0
    rows = (tmp_path / "run" / "losses.csv").read_text()

    def read_file(path, step=None):
        raise error

    monkeypatch.setattr(runs, "_read_file", read_file)
    capsys.readouterr()
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=6") == 2
    out, err = capsys.readouterr()
    assert "not readable" not in out and err.count("\n") == 1
    assert (tmp_path / "run" / "losses.csv").read_text() == rows


@pytest.mark.parametrize("name", ["environment.json", "data.json", "options.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", "null"])
def test_damaged_records(name, content, flags, tmp_path, capsys):
    """One line, or the run goes on; never a traceback."""
    assert train(*flags, "--name=run", "--train_iters=2") == 0
    (tmp_path / "run" / name).write_text(content)
    capsys.readouterr()
    code = resume(f"--resume={tmp_path / 'run'}", "--train_iters=4")
    err = capsys.readouterr().err
    assert (code, name, content) == (0, "environment.json", "[]") or (code == 2 and err.count("\n") == 1), err


def test_what_is_not_exact_is_said(flags, tmp_path, capsys):
    """Another number of threads; and nothing if all is as it was."""
    assert train(*flags, "--name=run", "--train_iters=2") == 0
    capsys.readouterr()
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=4") == 0
    assert "Note" not in capsys.readouterr().out
    torch.set_num_threads(2)
    try:
        assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=6") == 0
    finally:
        torch.set_num_threads(1)
    assert "Note: threads 1 became 2: from here on the run may differ, by rounding" in capsys.readouterr().out


@pytest.mark.parametrize("noted", [True, False])
def test_a_run_keeps_its_digits(noted, flags, tmp_path, capsys, monkeypatch):
    """A run that `auto` began in float32 goes on so on a CPU with units for bf16, unless told otherwise."""
    flags = [flag for flag in flags if not flag.startswith("--amp")]
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert train(*flags, "--amp=auto", "--name=run", "--train_iters=2") == 0
    path = tmp_path / "run" / "environment.json"
    if not noted:
        path.write_text(path.read_text().replace('"precision"', '"another"'))  # as early runs have it
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=4") == 0
    assert json.loads(path.read_text())[-1]["precision"] == "float32" and "became" not in capsys.readouterr().out
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=6", "--amp=auto") == 0
    assert "Note: precision float32 became bfloat16: from here on" in capsys.readouterr().out
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=8") == 0
    assert "Note: precision bfloat16 became float32: from here on" in capsys.readouterr().out


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("moment", ["open", "half", "fsync", "replace"])
def test_crash_while_saving_keeps_the_last_checkpoint(moment, flags, tmp_path, monkeypatch):
    """The second checkpoint is cut short at each of its moments: the first stays, and training goes on from it."""
    assert train(*flags, "--name=whole", "--train_iters=4") == 0

    real_save = torch.save

    def crash(*args, **kwargs):
        raise Crash

    def save(content, file):
        if content["step"] < 4:
            return real_save(content, file)
        if moment == "open":
            raise Crash
        if moment == "half":
            file.write(b"PK half of a checkpoint")
            raise Crash
        real_save(content, file)
        monkeypatch.setattr(os, moment, crash)

    with monkeypatch.context() as patch:
        monkeypatch.setattr(torch, "save", save)
        with pytest.raises(Crash):
            train(*flags, "--name=crashed", "--train_iters=4")
        patch.undo()
    monkeypatch.undo()
    crashed = FinishedRun(tmp_path / "crashed")
    assert crashed.steps("checkpoint-*.pt") == [2] and not list(crashed.folder.glob(".*"))
    assert resume(f"--resume={crashed.folder}") == 0
    assert_same(FinishedRun(tmp_path / "whole").checkpoint()["networks"], crashed.checkpoint()["networks"])


def test_a_plain_saver_loses_the_checkpoint(tmp_path):
    """Control: writing in place, as most code does, leaves a torn file under the good name."""
    path = tmp_path / "checkpoint.pt"
    torch.save({"x": torch.ones(1000)}, path)
    with pytest.raises(Crash), open(path, "wb") as file:
        file.write(b"PK half of a checkpoint")
        raise Crash
    with pytest.raises(Exception, match=r".+"):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("script, loss", [("vanilla_gan.py", "D_real"), ("cycle_gan.py", "D_X")])
def test_not_a_number_stops_before_the_checkpoint(script, loss, images_of, tmp_path, monkeypatch, capsys):
    """A loss that is no number ends the run with code 3; the last good checkpoint stays the newest."""
    real = MODULES[script].train_step

    def train_step(state, batch, options):
        if state.step == 5:
            batch = {name: images * float("nan") for name, images in batch.items()}
        return real(state, batch, options)

    monkeypatch.setattr(MODULES[script], "train_step", train_step)
    flags = [f"--data={images_of[script]}", f"--checkpoint_dir={tmp_path}", "--checkpoint_every=2"]
    assert train(*flags, "--name=run", "--train_iters=8", "--log_step=100", script=script) == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"the loss {loss} became nan at iteration 6" in err
    run = FinishedRun(tmp_path / "run")
    [line, *_] = [line for line in run.log.split("\n") if line.startswith("Images of iteration 6, ")]
    names = [part.strip("' ") for part in line.partition(": ")[2].split(",")]
    domain = line.removeprefix("Images of iteration 6, ").partition(":")[0]
    assert len(names) == 4 and set(names) <= run.data[domain]["train"].keys(), "the batch of that iteration"
    assert f"{domain}: {', '.join(map(repr, names[:3]))} and 1 more in log.txt" in err
    assert run.steps("checkpoint-*.pt") == [2, 4] and f"the loss {loss} became nan at iteration 6" in run.log
    for network in run.checkpoint()["networks"].values():
        assert all(torch.isfinite(value).all() for value in network.values())


def test_weights_that_are_no_numbers_are_not_saved(flags, tmp_path, monkeypatch, capsys):
    """An update may overflow after its losses were computed: the weights themselves are checked."""
    real = vanilla_gan.train_step

    def train_step(state, batch, options):
        losses = real(state, batch, options)
        if state.step == 3:
            next(state.networks["G"].parameters()).data[0] = float("inf")
        return losses

    monkeypatch.setattr(vanilla_gan, "train_step", train_step)
    assert train(*flags, "--name=run", "--train_iters=8") == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "weights of G are no longer finite at iteration 4" in err
    assert FinishedRun(tmp_path / "run").steps("checkpoint-*.pt") == [2]


@pytest.mark.parametrize("where", ["moment", "average"])
def test_what_is_saved_beside_the_weights_is_finite(where, flags, tmp_path, monkeypatch, capsys):
    """A moment of Adam that is infinite stops its weight for ever, and the weight looks well."""
    real = vanilla_gan.train_step

    def train_step(state, batch, options):
        losses = real(state, batch, options)
        if state.step == 3:
            if where == "moment":
                next(iter(state.optimizers["D"].state.values()))["exp_avg_sq"][0] = float("inf")
            else:
                next(state.averages["G"].parameters()).data[0] = float("inf")
        return losses

    monkeypatch.setattr(vanilla_gan, "train_step", train_step)
    assert train(*flags, "--name=run", "--train_iters=8") == 3
    what = {"moment": "the moments of optimizer D", "average": "the averaged weights of G"}[where]
    assert f"{what} are no longer finite at iteration 4" in capsys.readouterr().err
    assert FinishedRun(tmp_path / "run").steps("checkpoint-*.pt") == [2]
