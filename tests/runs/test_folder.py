"""The run folder: new and taken names, the folder of the grids, resumed runs, and the records of sessions."""

import dataclasses
import json
import os

import pytest
import torch

import runs.folder
import runs.new_run
import runs.open_run
import vanilla_gan
from options import parse_command_line
from options.training import VanillaOptions
from runs.checkpoints import FORMAT, list_checkpoints
from runs.folder import Run
from runs.open_run import open_run
from runs.records import read_sessions
from tests.conftest import TINY, assert_same, resume, train
from utils import LOG, UserError

CPU = torch.device("cpu")


def new_run(tmp_path, **options) -> Run:
    """Return a new run on data that is not read here."""
    run, _ = open_run(VanillaOptions(checkpoint_dir=str(tmp_path), data="x/cats", **options))
    return run


def find_run(folder) -> Run:
    """Return the run that --resume finds."""
    run, _ = open_run(VanillaOptions(resume=str(folder), explicit=frozenset({"resume"})))
    return run


def make_folder(tmp_path, **options) -> Run:
    """Return a new run whose folder exists, as after its first session."""
    run = new_run(tmp_path, **options)
    with run:
        pass
    return run


def test_nothing_is_written_before_the_run_is_entered(tmp_path):
    run = new_run(tmp_path / "runs", name="x", sample_dir=str(tmp_path / "grids"))
    assert not list(tmp_path.iterdir())
    with run:
        assert (tmp_path / "runs" / "x" / "options.json").is_file() and (tmp_path / "grids" / "x").is_dir()


def test_a_number_that_a_faster_run_takes(tmp_path, monkeypatch):
    """Two runs choose the same number at the same time: the slower run takes the next."""
    real, others = os.mkdir, iter(["vanilla_gan-cats-basic-lsgan-001"])

    def slow_mkdir(path, *arguments, **named):
        for name in others:
            real(tmp_path / name)
        real(path, *arguments, **named)

    monkeypatch.setattr(os, "mkdir", slow_mkdir)
    folder = runs.new_run.make_numbered_folder(tmp_path, "vanilla_gan-cats-basic-lsgan")
    assert folder.name == "vanilla_gan-cats-basic-lsgan-002"


def test_default_names_count_up_and_never_fill_a_gap(tmp_path):
    assert [make_folder(tmp_path).folder.name for _ in range(2)] == [
        "vanilla_gan-cats-basic-lsgan-001",
        "vanilla_gan-cats-basic-lsgan-002",
    ]
    (tmp_path / "vanilla_gan-cats-basic-lsgan-007").mkdir()
    (tmp_path / "vanilla_gan-cats-basic-lsgan-diffaug-900").mkdir()
    assert make_folder(tmp_path).folder.name == "vanilla_gan-cats-basic-lsgan-008"


def test_a_renamed_run_keeps_its_sample_folder(tmp_path):
    """It does not use the sample folder of another run that has its new name."""
    first = make_folder(tmp_path / "a", name="x", sample_dir=str(tmp_path / "grids"))
    other = make_folder(tmp_path / "b", name="y", sample_dir=str(tmp_path / "grids"))
    other.folder.rename(tmp_path / "b" / "x")
    assert find_run(tmp_path / "b" / "x").samples == other.samples == tmp_path / "grids" / "y"
    assert find_run(first.folder).samples == first.samples == tmp_path / "grids" / "x"
    inside = make_folder(tmp_path / "a", name="z")
    inside.folder.rename(tmp_path / "a" / "zz")
    assert find_run(tmp_path / "a" / "zz").samples == tmp_path / "a" / "zz" / "samples"


# ----------------------------------------------------------------------------------------------------------------------
# Taken names


@pytest.mark.parametrize("names", [["thesis.txt"], ["options.json", "thesis.txt"], ["samples/photo.png"], ["a.pt"]])
def test_a_folder_with_other_files_is_refused_and_unchanged(names, tmp_path):
    for name in names:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"--name: .*mine exists; use --resume .*mine .*or another name"):
        new_run(tmp_path, name="mine")
    assert sorted(tmp_path.rglob("*")) == before
    assert {(tmp_path / "mine" / name).read_text() for name in names} == {"precious"}


def test_a_name_that_is_taken_while_the_run_starts(tmp_path):
    """Another run with the same name has finished since: it stays unchanged."""
    slow, fast = new_run(tmp_path, name="mine"), new_run(tmp_path, name="mine", lr=0.1)
    with fast:
        fast.save_checkpoint(1, {})
        with pytest.raises(UserError, match=r"--name: .*mine is in use by process"), slow:
            pass
    options = (tmp_path / "mine" / "options.json").read_bytes()
    with pytest.raises(UserError, match=r"--name: .*mine exists"), slow:
        pass
    assert (tmp_path / "mine" / "options.json").read_bytes() == options


@pytest.mark.faults
@pytest.mark.parametrize("flag", [None, "--sample_dir"])
def test_the_name_of_a_run_that_failed_at_once_can_be_used_again(flag, photos, domains, tmp_path, monkeypatch):
    """A run that fails in its first step; the same name then gives the same files as a new name, by either script."""
    flags = [f"--checkpoint_dir={tmp_path / 'runs'}", "--train_iters=2", "--log_step=1"]
    flags += [f"{flag}={tmp_path / 'grids'}"] if flag else []

    def fail(*arguments):
        raise UserError("--lr: it fails in the first step")

    with monkeypatch.context() as patch:
        patch.setattr("vanilla_gan.train_step", fail)
        assert train(f"--data={photos}", *flags, "--name=run", "--lr=0.1") == 2
    folder, new = tmp_path / "runs" / "run", tmp_path / "runs" / "new"
    assert (folder / "data.json").is_file() and not list(folder.glob("*.pt"))
    script = "cycle_gan.py"
    assert train(f"--data={domains}", *flags, "--name=run", script=script) == 0
    assert train(f"--data={domains}", *flags, "--name=new", script=script) == 0
    files = [sorted(p.name for p in f.rglob("*") if not p.name.startswith("events")) for f in (folder, new)]
    assert files[0] == files[1]
    assert (folder / "losses.csv").read_bytes() == (new / "losses.csv").read_bytes()
    assert len(read_sessions(folder)) == 1 and len(list(folder.glob("events*"))) == 1
    assert (folder / "log.txt").read_text().count("Finished") == 1
    assert "0.1" not in (folder / "log.txt").read_text(), "nothing of the run that failed"
    contents = [torch.load(where / "checkpoint-000002.pt") for where in (folder, new)]
    assert_same(*({**content, "options": None} for content in contents))
    assert train(f"--data={domains}", *flags, "--name=run", script=script) == 2, "now it has a checkpoint"


def test_the_name_of_a_run_with_iterations_is_refused(photos, tmp_path, monkeypatch):
    """A run that a power failure ended before its first checkpoint has grids and losses that must not be lost."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--train_iters=2", "--log_step=1", "--name=run"]

    def fail(*arguments):
        raise UserError("--lr: it fails after two iterations")

    with monkeypatch.context() as patch:
        patch.setattr(runs.folder.Run, "save_checkpoint", fail)
        assert train(*flags) == 2
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert train(*flags) == 2
    (tmp_path / "run" / "losses.csv").unlink()
    del before[tmp_path / "run" / "losses.csv"]
    assert train(*flags) == 2, "it has grids"
    assert before == {path: path.read_bytes() for path in before}
    assert resume(f"--resume={tmp_path / 'run'}") == 0, "it can be resumed, from the beginning"


@pytest.mark.parametrize("content", ['{"a": 1}', "[]", "no JSON", '{"script": "x", "samples": "y", "options": {}}'])
def test_a_folder_with_foreign_files_is_refused(content, photos, tmp_path):
    folder = tmp_path / "run"
    (folder / "samples").mkdir(parents=True)
    (folder / "options.json").write_text(content)
    (folder / "samples" / "photo.png").write_bytes(b"mine")
    assert train(f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--train_iters=2", "--name=run") == 2
    assert (folder / "options.json").read_text() == content and (
        folder / "samples" / "photo.png"
    ).read_bytes() == b"mine"


def test_a_taken_sample_folder_is_refused(tmp_path):
    """And at most an empty run folder is left."""
    (tmp_path / "samples" / "mine").mkdir(parents=True)
    (tmp_path / "samples" / "mine" / "photo.png").write_text("precious")
    with pytest.raises(UserError, match=r"--sample_dir: .*mine: it contains files; use another folder or --name"):
        make_folder(tmp_path / "runs", name="mine", sample_dir=str(tmp_path / "samples"))
    assert os.listdir(tmp_path / "samples" / "mine") == ["photo.png"] and not list((tmp_path / "runs/mine").iterdir())
    make_folder(tmp_path / "runs", name="mine")
    with pytest.raises(UserError, match=r"--sample_dir: .*x: it is the run folder; use another"):
        make_folder(tmp_path / "runs", name="x", sample_dir=str(tmp_path / "runs"))


def test_an_unwritable_parent(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(UserError, match=r"--checkpoint_dir: .*file is not a writable folder; choose another"):
            new_run(folder)


# ----------------------------------------------------------------------------------------------------------------------
# Restarts by torchrun


@pytest.fixture
def restarted(monkeypatch):
    """Let this process look like one that torchrun has started again."""
    monkeypatch.setattr(runs.open_run, "restarts", lambda: 1)


def test_a_restart_resumes_the_run_of_its_name(restarted, tmp_path):
    with pytest.raises(UserError, match=r"--name: missing, so torchrun cannot resume .*; use --resume RUN_FOLDER"):
        new_run(tmp_path)
    assert not new_run(tmp_path, name="x").folder.exists(), "the first start ended before it made its folder"
    make_folder(tmp_path, name="x").save_checkpoint(5, {})
    _, options = open_run(VanillaOptions(checkpoint_dir=str(tmp_path), data="x/cats", name="x"))
    assert options.resume == str(tmp_path / "x")


def test_a_restart_does_not_resume_a_run_with_other_options(restarted, tmp_path):
    make_folder(tmp_path, name="x").save_checkpoint(5, {})
    with pytest.raises(UserError, match=r"--name: .*x exists"):
        new_run(tmp_path, name="x", lr=0.1)


# ----------------------------------------------------------------------------------------------------------------------
# Records


def test_the_newest_checkpoint_is_loaded(tmp_path):
    with new_run(tmp_path, name="x") as run:
        for step in (100, 99, 1000000):
            run.save_checkpoint(step, {"x": torch.ones(2)})
        os.utime(run.folder / "checkpoint-000099.pt", (2**31, 2**31))
        assert [step for step, _ in list_checkpoints(run.folder)] == [1000000, 100, 99]
        content = run.load_checkpoint()
    assert (content["step"], content["format"], content["script"]) == (1000000, FORMAT, "vanilla_gan.py")


def test_a_run_that_was_resumed_is_found_after_another_restart(tmp_path, monkeypatch):
    """A resumed run may have fixed its precision; the command of torchrun still says `auto`."""
    request = VanillaOptions(checkpoint_dir=str(tmp_path), data="x/cats", name="x")
    make_folder(tmp_path, name="x", amp="off", resume=None)
    monkeypatch.setattr(runs.open_run, "restarts", lambda: 2)
    run, _ = open_run(request)
    assert run.folder == tmp_path / "x" and not run._is_new
    run, _ = open_run(dataclasses.replace(request, lr=0.1, name="y"))
    assert run._is_new
    make_folder(tmp_path, name="z", lr=0.1)
    run, _ = open_run(dataclasses.replace(request, name="z"))
    assert run._is_new, "a run with other options is not resumed"


def test_main_in_a_notebook_shows_its_messages(photos, tmp_path, capsys, monkeypatch):
    """A `main` that is called without run_main prints the same lines."""
    monkeypatch.setattr(LOG, "handlers", [])
    flags = [*TINY["vanilla_gan.py"], f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--train_iters=1", "--name=x"]
    assert vanilla_gan.main(parse_command_line(VanillaOptions, "", flags)) == 0
    assert capsys.readouterr().out == (tmp_path / "x" / "log.txt").read_text()


def test_environment(tmp_path):
    options = VanillaOptions(checkpoint_dir=str(tmp_path), name="x")
    run = new_run(tmp_path, name="x")
    with run:
        run.begin_session(options, CPU, "float32")
        run.begin_session(options, CPU, "float32")
    sessions = json.loads((run.folder / "environment.json").read_text())
    assert len(sessions) == 2 and sessions[0]["torch"] == torch.__version__ and sessions[0]["device"] == "cpu"
    assert sessions[0]["threads"] == torch.get_num_threads() and sessions[0]["process"] == os.getpid()


def test_a_run_that_does_not_exist_is_named_with_similar_ones(tmp_path):
    for name in ("my-cats", "dogs"):
        make_folder(tmp_path, name=name)
    with pytest.raises(UserError, match=r"--resume: .*mycats does not exist; did you mean [^ ]*/my-cats\?$"):
        find_run(tmp_path / "mycats")
    with pytest.raises(UserError, match=r"nothing/x does not exist$"):
        find_run(tmp_path / "nothing/x")
