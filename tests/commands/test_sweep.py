"""The command sweep.py, with trainings in this process: a sweep to its end, again, longer, and its bad input."""

import json
from pathlib import Path

import pytest

import sweep
from options.command_line import parse_command
from options.sweep import SweepOptions
from sweeps import local
from system.program import run_main
from tests.conftest import ROOT, TINY, FinishedRun
from tests.helpers.commands_here import ProcessHere
from tests.sweeps.test_reading import write


@pytest.fixture
def started(monkeypatch) -> list[list[str]]:
    """The commands that a sweep starts: each ends in this process before the next one."""
    commands: list[list[str]] = []

    def start(words: list[str], **others) -> ProcessHere:
        commands.append([Path(words[1]).name, *words[2:]])
        return ProcessHere(words, **others)

    monkeypatch.setattr(local, "Popen", start)
    monkeypatch.setattr(local, "POLL_SECONDS", 0)
    return commands


def run(*arguments: str) -> int:
    """Run sweep.py in this process; return its exit code."""
    try:
        options = parse_command(SweepOptions, "", arguments)
    except SystemExit as stop:
        return stop.code
    return run_main(lambda: sweep.main(options), "sweep.py")


def file_of(script: str, folder: Path, images: Path, norms: str = '"none", "batch"') -> list[str]:
    """Write a sweep of some settings; return the arguments that start it with tiny networks on these images."""
    text = f'script = "{script}"\nseeds = [5]\n[base]\ntrain_iters = 2\nlog_step = 1\n[grid]\nnorm = [{norms}]\n'
    text += "[evaluate]\nnum_images = 4\n"
    tiny = [word for flag in TINY[script] for word in ("--set", flag.removeprefix("--"))]
    place = ["--checkpoint_dir", str(folder / "runs"), "--features=pixels", "--set", f"data={images}"]
    return [str(write(folder, text)), *tiny, *place]


def test_a_sweep_to_its_end_and_again(photos, tmp_path, started, monkeypatch, capsys):
    arguments = file_of("vanilla_gan.py", tmp_path, photos)
    monkeypatch.chdir(tmp_path)
    assert run(*arguments, "--dry_run") == 0
    out = capsys.readouterr().out
    assert out.startswith("2 runs: 2 missing\n") and out.count(": missing\n") == 2
    assert out.count(f" {ROOT}/vanilla_gan.py --") == 2 and out.count(f" {ROOT}/evaluate.py ") == 2
    assert started == [] and not (tmp_path / "runs").exists()
    monkeypatch.chdir(ROOT)
    assert run(*arguments, "--dry_run") == 0
    assert capsys.readouterr().out.count(" vanilla_gan.py --") == 2

    assert run(*arguments) == 0
    assert [command[0] for command in started] == ["vanilla_gan.py", "evaluate.py"] * 2
    runs = [FinishedRun(tmp_path / "runs" / "try" / f"norm={norm}-5") for norm in ("none", "batch")]
    assert [run.options["norm"] for run in runs] == ["none", "batch"] and {run.options["seed"] for run in runs} == {5}
    table = (tmp_path / "runs" / "try" / "sweep.md").read_text()
    assert "norm=none" in table and "norm=batch" in table
    capsys.readouterr()

    arguments = file_of("vanilla_gan.py", tmp_path, photos, '"none", "batch", "instance"')
    assert run(*arguments, "--dry_run") == 0
    assert capsys.readouterr().out.startswith("3 runs: 2 done, 1 missing\n")
    arguments = file_of("vanilla_gan.py", tmp_path, photos)

    # The same command has nothing to do.
    assert run(*arguments, "--json") == 0
    captured = capsys.readouterr()
    assert len(started) == 4 and json.loads(captured.out)["name"] == "try" and "2 of 2 runs are done" in captured.err


def test_a_sweep_of_cyclegans(domains, tmp_path, started):
    assert run(*file_of("cycle_gan.py", tmp_path, domains, '"batch"')) == 0
    assert [command[0] for command in started] == ["cycle_gan.py", "evaluate.py"]
    assert "X to Y" in (tmp_path / "runs" / "try" / "sweep.md").read_text()


@pytest.mark.faults
def test_a_setting_that_fails_leaves_the_others(photos, tmp_path, started, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    arguments = file_of("vanilla_gan.py", tmp_path, tmp_path / "broken")
    folder = tmp_path / "runs" / "try"
    assert run(*arguments) == 1
    out = capsys.readouterr().out
    message = "failed: vanilla_gan.py: error: --data: "
    assert out.count(message) == 2 and f"see {folder / 'logs'}" in out
    assert len(started) == 2 and "norm=none" in (folder / "sweep.md").read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["no.toml"], "error: no.toml: No such file or directory; give a file such as sweeps/leo-dcgan.toml"),
        (["try.toml", "--set=lr"], "argument --set: 'lr' is not OPTION=VALUE"),
        (["try.toml", "--set=lr=x"], "error: --set: argument --lr: invalid float value: 'x'"),
        (["try.toml", "--set=lrr=1"], "error: --set: the option 'lrr' of vanilla_gan.py is unknown; did you"),
        (["try.toml", "--set=data=no/such"], "error: data: the folder no/such does not exist, and neither does "),
        (
            ["try.toml", "--set=data=no/such", "--dry_run"],
            "error: data: the folder no/such does not exist, and neither does ",
        ),
        (["try.toml", "--json", "--dry_run"], "error: --json: does nothing with --dry_run; leave one of them out"),
        (["try.toml", "--jobs=0"], "error: --jobs: 0 is out of range; use a number at least 1"),
        (["try.toml", "--checkpoint_dir=try.toml/x"], "error: --checkpoint_dir: "),
        ([], "the following arguments are required: FILE.toml"),
    ],
)
def test_bad_input_is_one_line(arguments, message, photos, tmp_path, monkeypatch, started, capsys):
    file_of("vanilla_gan.py", tmp_path, photos)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert started == [] and sorted(tmp_path.rglob("*")) == before


def test_values_of_the_command_line_have_the_types_of_a_file():
    texts = ["a=1", "a=0.5", "a=1e-3", "a=true", "a=false", "a=007", "a=x=y", "a=", " a = 2 "]
    changes = parse_command(SweepOptions, "", ["x.toml", *(f"--set={text}" for text in texts)]).changes
    assert [name for name, _ in changes] == ["a"] * len(texts)
    values = [value for _, value in changes]
    assert values == [1, 0.5, "1e-3", True, False, "007", "x=y", "", 2] and values[3] is True
