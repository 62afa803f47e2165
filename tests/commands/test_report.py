"""report.py as a command: the file it writes, what it refuses, --watch."""

import time

import filelock
import pytest

import report
from options.command_line import parse_command
from options.report import ReportOptions
from system.program import run_main
from tests.conftest import train
from tests.helpers.run_folders import write_run


def call(*arguments) -> int:
    """Run the command in this process; return its exit code."""
    try:
        options = parse_command(ReportOptions, "", [str(one) for one in arguments])
    except SystemExit as stop:
        return stop.code
    return run_main(lambda: report.main(options), "report.py")


def test_a_page_of_trained_runs(images_of, tmp_path, capsys):
    """Runs of both scripts, trained and measured by the program itself."""
    for script, name in (("vanilla_gan.py", "cats"), ("cycle_gan.py", "fruit")):
        flags = [f"--data={images_of[script]}", f"--checkpoint_dir={tmp_path}", f"--name={name}", "--log_step=1"]
        assert train(*flags, "--train_iters=2", "--eval_every=2", script=script) == 0
    out = tmp_path / "page.html"
    assert call(tmp_path / "cats", tmp_path / "fruit", "-o", out) == 0
    assert f"wrote {out}: 2 runs, 0 of them training" in capsys.readouterr().out
    text = out.read_text(encoding="utf-8")
    assert text.count('<article class="card"') == 2 and text.count("data:image/webp;base64,") == 2 + 1 + 4 + 2
    assert "Missing or damaged" not in text and "Training images of fruit, domain X" in text


def test_the_page_replaces_only_a_page(tmp_path, capsys):
    folder, out = write_run(tmp_path / "a"), tmp_path / "page.html"
    assert call(folder, "-o", out) == call(folder, "-o", out) == 0  # its own page
    out.write_text("<html>of somebody else</html>")
    assert call(folder, "-o", out) == 2 and out.read_text() == "<html>of somebody else</html>"
    assert f"--out: {out} exists; give another name, or add --overwrite" in capsys.readouterr().err
    assert call(folder, "-o", out, "--overwrite") == 0 and "report.py" in out.read_text()[:500]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the following arguments are required: RUN"),
        (["{tmp}/missing"], "missing is not a run folder (no readable options.json); give the folder of a run"),
        (["{tmp}"], "it contains runs: give {tmp}/*"),
        (["{tmp}/missing", "{tmp}/x.txt"], "RUN: none of these is a run folder"),
        (["{tmp}/a", "-o", "{tmp}/page.pdf"], "page.pdf has an extension that cannot be written; use one of .html"),
        (["{tmp}/a", "-o", "{tmp}/x.txt/page.html"], "is not a writable folder"),
        (["{tmp}/a", "-o", "{tmp}/b.html"], "b.html is a folder"),
        (["{tmp}/a", "--every", "5"], "--every: 5 does nothing without --watch; add --watch, or leave it out"),
        (["{tmp}/a", "--watch", "--every", "0"], "--every: 0 is out of range; use a number at least 1"),
        (["{tmp}/a", "--wach"], "did you mean --watch?"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "a")
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "b.html").mkdir()
    monkeypatch.chdir(tmp_path)
    assert call(*(one.format(tmp=tmp_path) for one in arguments)) == 2
    error = capsys.readouterr().err
    assert message.format(tmp=tmp_path) in error and error.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_what_is_not_a_run_is_left_out(tmp_path, capsys):
    write_run(tmp_path / "a")
    (tmp_path / "README.md").write_text("x")
    assert call(tmp_path / "README.md", tmp_path / "a", "-o", tmp_path / "page.html") == 0
    assert "README.md is not a run folder (no readable options.json); left out" in capsys.readouterr().out
    assert "README.md is not a run folder" in (tmp_path / "page.html").read_text()


@pytest.mark.faults
def test_a_page_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    def write_bytes(path, content):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pages.report.write_bytes", write_bytes)
    assert call(write_run(tmp_path / "a"), "-o", tmp_path / "page.html") == 2
    assert (
        capsys.readouterr().err
        == f"report.py: error: {tmp_path}/page.html: Permission denied; fix this, and try again\n"
    )


def test_a_run_folder_is_only_read(tmp_path):
    folder = write_run(tmp_path / "a")
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    assert call(folder, "-o", tmp_path / "page.html") == 0
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before


def test_watch_writes_until_the_runs_end(tmp_path, monkeypatch, capsys):
    folder, out = write_run(tmp_path / "a", end=""), tmp_path / "page.html"
    lock, waits = filelock.FileLock(folder / ".lock"), []

    def sleep(seconds):
        waits.append(seconds)
        assert "reload this page" in out.read_text() and 'class="state running"' in out.read_text()
        if len(waits) == 2:
            lock.release()
            (folder / "log.txt").write_text("Training to iteration 200 in x\nFinished 200 iterations: x\n")

    monkeypatch.setattr(time, "sleep", sleep)
    lock.acquire()
    assert call(folder, "-o", out, "--watch", "--every", "7") == 0
    assert waits == [7, 7] and capsys.readouterr().out.count("wrote") == 3
    assert 'class="state finished"' in out.read_text() and "reload this page" not in out.read_text()


def test_without_watch_a_page_is_written_once(tmp_path, monkeypatch, capsys):
    folder = write_run(tmp_path / "a", end="")
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    with filelock.FileLock(folder / ".lock"):
        assert call(folder, "-o", tmp_path / "page.html") == 0
    assert "1 run, 1 of them training" in capsys.readouterr().out


def test_ctrl_c_ends_watching_and_leaves_the_page(tmp_path, monkeypatch, capsys):
    folder, out = write_run(tmp_path / "a", end=""), tmp_path / "page.html"

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    with filelock.FileLock(folder / ".lock"):
        assert call(folder, "-o", out, "--watch") == 0
    assert f"stopped; {out} stays as it is" in capsys.readouterr().out and out.stat().st_size > 1_000_000
