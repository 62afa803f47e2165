"""Torn files: what a crash can leave behind must cost no more than the iterations since the last checkpoint."""

import os
import zipfile

import pytest
import torch

import vanilla_gan
from tests.conftest import MODULES, FinishedRun, assert_same, resume, train


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
