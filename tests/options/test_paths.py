"""Paths of the command line: a leading ~ is the home folder for every option of every script that is a path."""

import json
import os
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import options.dataset
import options.report
import options.sweep
from images import toy_cats
from options.command_line import OneLineParser, add_options
from options.commands import CommandOptions, SampleOptions
from options.common import CommonOptions
from options.fields import expand_home, flag_of, option_fields
from options.training import CycleOptions, VanillaOptions
from tests.conftest import make_photos, resume, train


def all_classes(cls: type) -> list[type]:
    """Return the classes below a class that no other class is made of: those that scripts parse."""
    below = cls.__subclasses__()
    return [one for child in below for one in all_classes(child)] if below else [cls]


CLASSES = [*all_classes(CommonOptions), *all_classes(CommandOptions)]

# Options whose values are texts, but not paths: a name, one of several words, numbers.
NOT_PATHS = {"preset", "name", "ext", "use_diffaug", "value_range", "checkpoint", "direction", "seeds"}
NOT_PATHS |= {"prompt", "negative_prompt"}


def is_text(cls: type, name: str) -> bool:
    """Whether the values of an option are texts that its declaration does not restrict to a few words."""
    kind = get_type_hints(cls)[name]
    return str in (kind, *get_args(kind)) or list[str] in (kind, *get_args(kind))


def parse_one(cls: type, name: str, value: str):
    """Parse a command line of this option, and of those that the class requires; return the value of the option."""
    words: list[str] = []
    for field in option_fields(cls):
        meta = field.metadata
        if field.name != name and not meta["required"]:
            continue
        word = value if field.name == name else (meta["choices"] or ["1"])[0]
        words += [word] if meta["positional"] else [flag_of(field), word]
    parser = OneLineParser()
    add_options(parser, cls)
    found = getattr(parser.parse_args(words), name)
    return found[0] if isinstance(found, list) else found


PATHS = [(cls, field.name) for cls in CLASSES for field in option_fields(cls) if field.metadata["is_path"]]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_option_of_free_text_is_a_path_or_is_named_here(cls):
    """A new option that is a path cannot be forgotten."""
    for field in option_fields(cls):
        if is_text(cls, field.name) and field.metadata["choices"] is None:
            is_known = field.metadata["is_path"] != (field.name in NOT_PATHS)
            assert is_known, f"{cls.__name__}.{field.name}: give is_path=True, or add it to NOT_PATHS of this test"


def test_the_paths_are_those_of_all_scripts():
    assert {cls.SCRIPT for cls, _ in PATHS} == {"vanilla_gan.py", "cycle_gan.py", "evaluate.py", "generate.py",
                                                "dataset.py", "report.py", "sweep.py"}  # fmt: skip
    assert issubclass(options.dataset.DownloadOptions, CommandOptions)
    assert issubclass(options.report.ReportOptions, CommandOptions)
    assert issubclass(options.sweep.SweepOptions, CommandOptions)
    names = {name for _, name in PATHS}
    assert {
        "data",
        "X",
        "Y",
        "checkpoint_dir",
        "sample_dir",
        "resume",
        "init_from",
        "run",
        "reference",
        "input",
    } < names
    assert {"out", "grid", "features", "inception_weights", "album", "folder"} < names


@pytest.mark.parametrize("cls, name", PATHS, ids=[f"{cls.__name__}.{name}" for cls, name in PATHS])
def test_a_tilde_is_the_home_folder(cls, name, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/of/me")
    monkeypatch.chdir(tmp_path)
    assert parse_one(cls, name, "~/x/y.png") == "/home/of/me/x/y.png"
    assert parse_one(cls, name, "~") == "/home/of/me"
    for same in ("~no-such-user/x", "a/~/x", "x~", "pixels", "/a/b", "cat/b", "pretrained:horse2zebra", " ~/x"):
        assert parse_one(cls, name, same) == same
    assert parse_one(cls, name, "./~/x") == str(tmp_path / "~" / "x"), "a folder that is really called ~"


def test_an_option_that_is_not_a_path_keeps_a_tilde(monkeypatch):
    """The control: expansion belongs to the declaration of an option."""
    monkeypatch.setenv("HOME", "/home/of/me")
    assert parse_one(VanillaOptions, "name", "~") == "~" and parse_one(SampleOptions, "checkpoint", "~/x") == "~/x"


def test_the_home_of_a_user(monkeypatch):
    monkeypatch.delenv("HOME")
    assert expand_home("~/x") == os.path.expanduser("~/x") != "~/x", "the system knows the home without HOME, too"
    assert expand_home("~root/x") == os.path.expanduser("~root/x")
    assert expand_home("") == ""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder with images, and an empty folder to work in."""
    make_photos(tmp_path / "home/photos", 6)
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def test_a_run_below_the_home_folder(home):
    """A training with all its folders below ~, resumed by ~: nothing is written to the current folder."""
    places = ["--data=~/photos", "--checkpoint_dir=~/t", "--sample_dir=~/grids"]
    assert train(*places, "--name=run", "--train_iters=1") == 0
    assert (home / "grids/run").is_dir() and (home / "t/run/checkpoint-000001.pt").exists()
    assert resume("--resume=~/t/run", "--train_iters=2") == 0
    assert (home / "t/run/checkpoint-000002.pt").exists() and list(Path.cwd().iterdir()) == []
    assert json.loads((home / "t/run/options.json").read_text())["options"]["data"] == str(home / "photos")


def test_a_run_in_a_folder_called_tilde(home, capsys):
    """The line that says how to resume names a folder that the next command finds."""
    assert train("--data=~/photos", "--checkpoint_dir=./~", "--name=run", "--train_iters=1") == 0
    assert [path.name for path in Path.cwd().iterdir()] == ["~"] and not (home / "run").exists()
    [line] = [line for line in capsys.readouterr().out.splitlines() if "--resume" in line]
    named = line.partition("--resume ")[2].split()[0].strip("'")
    assert resume(f"--resume={named}", "--train_iters=2") == 0
    assert Path("./~/run/checkpoint-000002.pt").exists()


def test_which_paths_a_run_keeps_absolute(home, monkeypatch):
    """The folders and files that it reads again; not where it is, which may change, and not names below data/."""
    kept = {field.name for field in option_fields(CycleOptions) if field.metadata["keeps_absolute"]}
    assert kept == {"data", "X", "Y", "init_from", "features", "inception_weights"}
    assert all(field.metadata["is_path"] for field in option_fields(CycleOptions) if field.name in kept)


def test_the_folder_of_the_toy_cats(home, monkeypatch, capsys):
    monkeypatch.setattr(toy_cats, "ensure_toy_cats", lambda root, size, seed: root)
    toy_cats.main(["--out=~/cats"])
    assert capsys.readouterr().out.strip() == str(home / "cats")
