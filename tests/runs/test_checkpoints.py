"""Checkpoints: damaged, hostile, missing and unfitting files; a crash costs only the iterations since the last one."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

import vanilla_gan
from generation.trained import load_trained
from runs.checkpoints import BEST, list_checkpoints, prune_checkpoints, read_checkpoint, write_checkpoint
from tests.conftest import MODULES, Canary, FinishedRun, assert_same, resume, temporary_files, train
from tests.helpers.damages import try_damages
from utils import LOG, UserError

pytestmark = pytest.mark.faults


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
    """Flip a byte of a tensor, which the checksum of the zip archive shows."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
        tensor = archive.read(largest)
    data = path.read_bytes()
    place = data.index(tensor) + len(tensor) // 2
    path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])


@pytest.mark.parametrize("damage", [damage_truncate, damage_empty, damage_text, damage_middle])
def test_resume_falls_back_from_a_damaged_checkpoint_to_the_previous_one(damage, flags, tmp_path, capsys):
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
    assert torn.steps("checkpoint-*.pt") == [2, 4, 6] and torn.checkpoint(4)["step"] == 4, (
        "the damaged file is replaced"
    )


@pytest.mark.parametrize("script", MODULES)
def test_no_damaged_content_is_loaded(script, images_of, tmp_path):
    """A damaged file is refused, or read with exactly the same content; benchmarks/reliability.py tries 600 damages."""
    assert train(f"--data={images_of[script]}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=1",
                 script=script) == 0  # fmt: skip
    held, refused, control_failed = try_damages(tmp_path / "run" / "checkpoint-000001.pt", 60, seed=1)
    assert held == 60 and refused > 50 and control_failed > 10


def test_a_checkpoint_with_a_wrong_number_is_skipped(flags, tmp_path, capsys):
    """A copy under a higher number: its content has another iteration than its name."""
    assert train(*flags, "--name=run", "--train_iters=4") == 0
    folder = tmp_path / "run"
    shutil.copy(folder / "checkpoint-000002.pt", folder / "checkpoint-000099.pt")
    assert read_checkpoint(folder)["step"] == 4
    assert "checkpoint-000099.pt is not readable (it is of iteration 2); trying the previous" in capsys.readouterr().out


def test_the_newest_checkpoint_has_the_highest_number(tmp_path, monkeypatch):
    """99 and 100, with the dates 2096 and 2001."""
    folder = tmp_path
    for step, date in ((100, 1e9), (99, 4e9)):
        write_checkpoint(folder / f"checkpoint-{step}.pt", {"step": step})
        os.utime(folder / f"checkpoint-{step}.pt", (date, date))
    monkeypatch.setattr(LOG, "warning", pytest.fail)
    assert read_checkpoint(folder)["step"] == 100
    assert [step for step, _ in list_checkpoints(folder)] == [100, 99]
    by_name = max(path.name for path in folder.glob("checkpoint-*.pt"))
    by_date = max(folder.glob("checkpoint-*.pt"), key=lambda path: path.stat().st_mtime).name
    assert by_name == by_date == "checkpoint-99.pt", "the controls"


def edit_checkpoint(path, edit) -> None:
    """Change the content of a checkpoint file."""
    content = torch.load(path, weights_only=True)
    edit(content)
    torch.save(content, path)


def files_in(folder) -> dict:
    """Return the content of each file of a run folder by its path."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def break_shape(content):
    content["networks"]["G"].update({key: value[:1] for key, value in content["networks"]["G"].items()})


def break_name(content):
    content["networks"]["D"]["layers.99.weight"] = torch.zeros(1)


def break_number(content):
    next(iter(content["ema"]["G"].values()))[0] = float("nan")


def break_moment(content):
    content["optimizers"]["G"]["state"][0]["exp_avg"] = torch.zeros(7)


def break_moments(content):
    content["optimizers"]["D"]["state"] = {}


def break_key(content):
    del content["networks"]["D"]


def break_part(content):
    del content["scaler"]


def break_format(content):
    content["format"] = 99


def break_random_generator(content):
    content["rng"]["cpu"] = torch.zeros(3)


@pytest.mark.parametrize(
    "edit, words",
    [
        (break_shape, ["does not fit", "DCGenerator", "size mismatch for layers", "shape torch.Size([1, "]),
        (break_name, ["does not fit", "DCDiscriminator", "layers.99.weight"]),
        (break_number, ["not finite", "start a new run"]),
        (break_moment, ["does not fit", "optimizer G lacks moments of the shapes of its weights"]),
        (break_moments, ["does not fit", "optimizer D lacks moments of the shapes of its weights"]),
        (break_key, ["does not fit", "networks are ['G'], not ['D', 'G']"]),
        (break_part, ["does not fit", "no 'scaler'"]),
        (break_format, ["format 99", "update it"]),
        (break_random_generator, ["does not fit"]),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit(edit, words, flags, tmp_path, capsys):
    """A complete file, but not of this run: one line names the difference, and nothing is changed."""
    assert train(*flags, "--name=run", "--train_iters=2") == 0
    edit_checkpoint(tmp_path / "run" / "checkpoint-000002.pt", edit)
    before = files_in(tmp_path / "run")
    capsys.readouterr()
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=4") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and not [word for word in words if word not in err], err
    assert files_in(tmp_path / "run") == before


def test_weights_of_another_type_are_converted(flags, tmp_path):
    """PyTorch copies float64 into float32 weights: the same values, so the run continues exactly."""
    assert train(*flags, "--name=whole", "--train_iters=4") == 0
    assert train(*flags, "--name=run", "--train_iters=2") == 0

    def widen(content):
        content["networks"]["D"] = {name: value.double() for name, value in content["networks"]["D"].items()}

    edit_checkpoint(tmp_path / "run" / "checkpoint-000002.pt", widen)
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=4") == 0
    whole, run = (FinishedRun(tmp_path / name).checkpoint(4)["networks"] for name in ("whole", "run"))
    assert_same(whole, run)


def test_a_checkpoint_that_would_run_code_is_refused(flags, tmp_path, capsys):
    """When a run is resumed, evaluated or used; all read checkpoints by one function. Without weights_only it runs."""
    assert train(*flags, "--name=run", "--train_iters=2") == 0
    path = tmp_path / "run" / "checkpoint-000002.pt"
    edit_checkpoint(path, lambda content: content.update(hostile=Canary(tmp_path / "canary")))
    capsys.readouterr()
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=4") == 2
    assert capsys.readouterr().err.count("\n") == 1
    for where in (path, tmp_path / "run"):
        with pytest.raises(UserError):
            load_trained(where)
    assert not (tmp_path / "canary").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "canary").exists(), "the control"


def test_only_the_newest_checkpoints_are_kept(flags, tmp_path):
    """Damaged ones do not count."""
    assert train(*flags, "--name=run", "--train_iters=7", "--checkpoint_every=1", "--keep_checkpoints=2") == 0
    run = FinishedRun(tmp_path / "run")
    assert run.steps("checkpoint-*.pt") == [6, 7]
    assert train(*flags, "--name=all", "--train_iters=7", "--checkpoint_every=1") == 0
    assert_same(run.checkpoint()["networks"], FinishedRun(tmp_path / "all").checkpoint()["networks"])
    for step in (3, 4, 5):
        shutil.copy(tmp_path / "all" / f"checkpoint-{step:06d}.pt", run.folder)
    damage_middle(run.folder / "checkpoint-000007.pt")
    shutil.copy(run.folder / "checkpoint-000003.pt", run.folder / "checkpoint-000099.pt")
    prune_checkpoints(run.folder, 2)
    assert run.steps("checkpoint-*.pt") == [5, 6, 7, 99], "two readable ones that have the iteration of their name"


def test_missing_checkpoints(flags, tmp_path, capsys):
    """A run that had checkpoints does not start from the beginning, because it would overwrite best.pt."""
    assert train(*flags, "--name=run", "--train_iters=6", "--eval_every=2") == 0
    best = torch.load(tmp_path / "run" / "best.pt", weights_only=True)
    for path in (tmp_path / "run").glob("checkpoint-*"):
        path.unlink()
    with open(tmp_path / "run" / "losses.csv", "a") as file:
        file.write(f"{best['step'] + 1},1,1,1,1,1\n")
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=8") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"the checkpoints of {tmp_path / 'run'} are missing, except {BEST}" in err
    assert torch.load(tmp_path / "run" / "best.pt", weights_only=True)["step"] == best["step"]


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")])
def test_other_errors_do_not_mean_that_a_checkpoint_is_damaged(error, flags, tmp_path, monkeypatch, capsys):
    """An older checkpoint must not be used then: the rows of the newest would be lost."""
    assert train(*flags, "--name=run", "--train_iters=4") == 0
    rows = (tmp_path / "run" / "losses.csv").read_text()
    real = Path.read_bytes

    def read_bytes(path):
        if path.suffix == ".pt":
            raise error
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    capsys.readouterr()
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=6") == 2
    out, err = capsys.readouterr()
    assert "not readable" not in out and err.count("\n") == 1
    assert (tmp_path / "run" / "losses.csv").read_text() == rows


@pytest.mark.parametrize("name", ["environment.json", "data.json", "options.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", "null"])
def test_damaged_records(name, content, flags, tmp_path, capsys):
    """One line, or the run continues; never a traceback."""
    assert train(*flags, "--name=run", "--train_iters=2") == 0
    (tmp_path / "run" / name).write_text(content)
    capsys.readouterr()
    code = resume(f"--resume={tmp_path / 'run'}", "--train_iters=4")
    err = capsys.readouterr().err
    assert (code, name, content) == (0, "environment.json", "[]") or (code == 2 and err.count("\n") == 1), err


def test_a_note_says_why_a_resumed_run_may_differ(flags, tmp_path, capsys):
    """Another number of threads; no note if nothing has changed."""
    assert train(*flags, "--name=run", "--train_iters=2") == 0
    capsys.readouterr()
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=4") == 0
    assert "Note" not in capsys.readouterr().out
    torch.set_num_threads(2)
    try:
        assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=6") == 0
    finally:
        torch.set_num_threads(1)
    note = "Note: threads changed from 1 to 2, so results may differ by rounding from an uninterrupted run"
    assert note in capsys.readouterr().out


def test_a_run_keeps_its_precision(flags, tmp_path, capsys, monkeypatch):
    """A run for which `auto` chose float32 continues so on a CPU with AVX512_BF16, unless --amp is given.

    Earlier versions of the program chose float32 on such a CPU, and did not record the reason.
    """
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert train(*flags, "--amp=auto", "--name=run", "--train_iters=2") == 0
    path = tmp_path / "run" / "environment.json"
    assert "Precision: float32 (--amp auto: the CPU lacks AVX512_BF16)" in (tmp_path / "run" / "log.txt").read_text()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    [session] = json.loads(path.read_text())
    assert session.pop("precision_reason") == "--amp auto: the CPU lacks AVX512_BF16"
    path.write_text(json.dumps([session]))
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=4") == 0
    session = json.loads(path.read_text())[-1]
    assert (session["precision"], session["precision_reason"]) == ("float32", "the resumed run has it")
    assert "Note" not in capsys.readouterr().out
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=6", "--amp=auto") == 0
    assert "Note: precision changed from float32 to bfloat16, so results may differ" in capsys.readouterr().out
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert resume(f"--resume={tmp_path / 'run'}", "--train_iters=8") == 0
    assert "Note: precision changed from bfloat16 to float32, so results may differ" in capsys.readouterr().out


class Crash(BaseException):
    """Ends the process."""


@pytest.mark.parametrize("moment", ["open", "half", "fsync", "replace"])
def test_crash_while_saving_keeps_the_last_checkpoint(moment, flags, tmp_path, monkeypatch):
    """Each operation of writing the second checkpoint fails: the first stays, and training continues from it."""
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
    assert crashed.steps("checkpoint-*.pt") == [2] and not temporary_files(crashed.folder)
    assert resume(f"--resume={crashed.folder}") == 0
    assert_same(FinishedRun(tmp_path / "whole").checkpoint()["networks"], crashed.checkpoint()["networks"])


def test_plain_saving_loses_the_checkpoint(tmp_path):
    """Control: writing in place, as most code does, leaves a torn file under the final name."""
    path = tmp_path / "checkpoint.pt"
    torch.save({"x": torch.ones(1000)}, path)
    with pytest.raises(Crash), open(path, "wb") as file:
        file.write(b"PK half of a checkpoint")
        raise Crash
    with pytest.raises(Exception, match=r".+"):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("script, loss", [("vanilla_gan.py", "D_real"), ("cycle_gan.py", "D_X")])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(
    script, loss, images_of, tmp_path, monkeypatch, capsys
):
    """With code 3; the last good checkpoint stays the newest. The message names the loss and the interval."""
    real = MODULES[script].train_step

    def train_step(state, batch, options, with_penalty):
        if state.step == 5:
            batch = {name: images * float("nan") for name, images in batch.items()}
        return real(state, batch, options, with_penalty)

    monkeypatch.setattr(MODULES[script], "train_step", train_step)
    flags = [f"--data={images_of[script]}", f"--checkpoint_dir={tmp_path}", "--checkpoint_every=2"]
    assert train(*flags, "--name=run", "--train_iters=8", "--log_step=100", script=script) == 3
    err = capsys.readouterr().err
    message = f"the loss {loss} became nan between iterations 1 and 6; no checkpoint was written since"
    assert err.count("\n") == 1 and message in err and "lower --lr or --amp off" in err
    run = FinishedRun(tmp_path / "run")
    assert run.steps("checkpoint-*.pt") == [2, 4] and f"Stopped: {message}" in run.log
    for network in run.checkpoint()["networks"].values():
        assert all(torch.isfinite(value).all() for value in network.values())


def test_weights_that_are_not_finite_are_not_saved(flags, tmp_path, monkeypatch, capsys):
    """An update may overflow after its losses were computed: the weights themselves are checked."""
    real = vanilla_gan.train_step

    def train_step(state, batch, options, with_penalty):
        losses = real(state, batch, options, with_penalty)
        if state.step == 3:
            next(state.networks["G"].parameters()).data[0] = float("inf")
        return losses

    monkeypatch.setattr(vanilla_gan, "train_step", train_step)
    assert train(*flags, "--name=run", "--train_iters=8") == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "weights or optimizer moments are no longer finite at iteration 4" in err
    assert FinishedRun(tmp_path / "run").steps("checkpoint-*.pt") == [2]


@pytest.mark.parametrize("where", ["moment", "average"])
def test_moments_and_averages_that_are_not_finite_are_not_saved(where, flags, tmp_path, monkeypatch, capsys):
    """An infinite moment of Adam stops its weight for ever, although the weight stays finite."""
    real = vanilla_gan.train_step

    def train_step(state, batch, options, with_penalty):
        losses = real(state, batch, options, with_penalty)
        if state.step == 3:
            if where == "moment":
                next(iter(state.optimizers["D"].state.values()))["exp_avg_sq"][0] = float("inf")
            else:
                next(state.ema["G"].parameters()).data[0] = float("inf")
        return losses

    monkeypatch.setattr(vanilla_gan, "train_step", train_step)
    assert train(*flags, "--name=run", "--train_iters=8") == 3
    assert "weights or optimizer moments are no longer finite at iteration 4" in capsys.readouterr().err
    assert FinishedRun(tmp_path / "run").steps("checkpoint-*.pt") == [2]


@pytest.mark.parametrize("has_best", [False, True])
def test_a_checkpoint_that_does_not_exist_lists_those_that_do(has_best, tmp_path):
    write_checkpoint(tmp_path / "checkpoint-000002.pt", {"step": 2})
    if has_best:
        write_checkpoint(tmp_path / "best.pt", {"step": 2})
    with pytest.raises(UserError) as raised:
        read_checkpoint(tmp_path, "77")
    assert str(raised.value).endswith("available: newest, best, 2" if has_best else "available: newest, 2")
