"""Logs of a run: log.txt, losses.csv and metrics.csv, and how they are cut back to a checkpoint."""

import math

import pytest
import torch

from options.training import VanillaOptions
from runs.folder import Run
from runs.open_run import open_run
from runs.tables import METRICS, append_metrics, find_scores, last_logged_step, read_metrics
from system.program import set_up_log
from utils import LOG, NonFiniteError, UserError

CPU = torch.device("cpu")


@pytest.fixture
def options(tmp_path):
    return VanillaOptions(checkpoint_dir=str(tmp_path), data="x/cats", name="run")


@pytest.fixture
def new_run(options) -> Run:
    run, _ = open_run(options)
    return run


def find_run(folder) -> Run:
    """Return the run that --resume finds."""
    run, _ = open_run(VanillaOptions(resume=str(folder), explicit=frozenset({"resume"})))
    return run


@pytest.mark.faults
@pytest.mark.parametrize("text", ["", "st", "step,G", "\0\0\0"])
def test_losses_without_a_complete_header_start_again(options, new_run, text):
    with new_run as run:
        run.save_checkpoint(5, {})
        (run.folder / "losses.csv").write_text(text)
        assert run.load_checkpoint()["step"] == 5
        run.begin_session(options, CPU, "float32")
        run.logs.add_losses(6, {"G": 1.0}, 0.5)
    assert (run.folder / "losses.csv").read_text() == "step,G,lr\n6,1,0.5\n"


def test_messages_are_single_printable_lines(options, new_run, capsys):
    set_up_log()
    with new_run as run:
        run.begin_session(options, CPU, "float32")
        LOG.info("my\x1b[31m\ncats\udcff")
        LOG.warning("%s", "a\nb")
        LOG.debug("only in the file")
    LOG.info("after the run")
    lines = "my\\x1b[31m\\ncats\\udcff\nWarning: a\\nb\n"
    assert capsys.readouterr().out == lines + "after the run\n"
    assert (run.folder / "log.txt").read_text() == lines + "only in the file\n"


def test_messages_before_the_folder_exists_stand_in_the_log(options, capsys):
    """Those of a command whose run never began stand in no log, also if its folder was made."""
    open_run(options)
    LOG.warning("of a command that failed")
    run, _ = open_run(options)
    LOG.warning("of reading the images")
    with run:
        LOG.info("of the folder")
        run.begin_session(options, CPU, "float32")
        LOG.info("of training")
    lines = "Warning: of reading the images\nof the folder\nof training\n"
    assert (run.folder / "log.txt").read_text() == lines
    assert capsys.readouterr().out == "Warning: of a command that failed\n" + lines

    with find_run(run.folder):
        LOG.info("the run has ended already")
    assert (run.folder / "log.txt").read_text() == lines


def test_the_log_says_that_the_first_weights_are_those_of_an_older_checkpoint(run_once, photos, tmp_path, capsys):
    """A warning of --init_from, which reads a damaged run before the new run has a folder."""
    old = run_once("--checkpoint_every=1", name="old")
    (old.folder / "checkpoint-000002.pt").write_bytes(b"PK")
    capsys.readouterr()
    new = run_once(f"--init_from={old.folder}", name="new")
    assert new.log.startswith(f"Warning: {old.folder / 'checkpoint-000002.pt'} is not readable")
    assert new.log == capsys.readouterr().out and "iteration 1" in new.log


def test_losses_are_cut_back_to_the_checkpoint(options, new_run):
    with new_run as run:
        run.begin_session(options, CPU, "float32")
        for step in (10, 20, 30):
            run.logs.add_losses(step, {"G": step / 7}, 0.001)
            run.save_checkpoint(step, {}) if step == 20 else None
    path = run.folder / "losses.csv"
    assert path.read_text() == "step,G,lr\n10,1.42857,0.001\n20,2.85714,0.001\n30,4.28571,0.001\n"
    assert last_logged_step(run.folder) == 30
    path.write_text(path.read_text() + "\0" * 200_000 + "\n40,5.7")  # blocks that a power failure left, and a torn line
    with find_run(run.folder) as resumed:
        assert resumed.load_checkpoint()["step"] == 20
    assert path.read_text() == "step,G,lr\n10,1.42857,0.001\n20,2.85714,0.001\n"
    assert resumed.logs.rows == run.logs.rows[:2]


def test_losses_that_are_not_computed_in_every_interval(options, new_run):
    """Such as gradient penalties: their cells are empty. A column is added for a loss that the file does not have."""
    path = new_run.folder / "losses.csv"
    with new_run as run:
        run.begin_session(options, CPU, "float32")
        run.logs.add_losses(1, {"G": 1.0, "R1": 0.5}, 0.1)
        run.logs.add_losses(2, {"G": 2.0}, 0.1)
        run.save_checkpoint(2, {})
    assert path.read_text() == "step,G,R1,lr\n1,1,0.5,0.1\n2,2,,0.1\n"
    with find_run(run.folder) as resumed:
        resumed.load_checkpoint()
        assert (
            resumed.logs.rows
            == run.logs.rows
            == [{"step": 1, "G": 1, "R1": 0.5, "lr": 0.1}, {"step": 2, "G": 2, "lr": 0.1}]
        )
    path.unlink()
    with find_run(run.folder) as resumed:
        resumed.load_checkpoint()
        resumed.logs.add_losses(1000003, {"G": 3.0}, 0.1)
        resumed.logs.add_losses(1000004, {"G": 4.0, "R1": 0.25}, 0.1)
    assert path.read_text() == "step,G,lr,R1\n1000003,3,0.1,\n1000004,4,0.1,0.25\n"


def make_row(step, value, source="training", metric="m", split="train", features="f", task="z"):
    columns = {"step": step, "source": source, "task": task, "split": split, "metric": metric, "value": value}
    return {**dict.fromkeys(METRICS, ""), **columns, "features": features}


def test_scores_are_those_of_the_first_metric(tmp_path):
    """Read from metrics.csv, without other metrics, splits and features, and without the rows of evaluate.py."""
    append_metrics(tmp_path, [make_row(1, 9.0, features="old"), make_row(2, 1.0), make_row(2, 7.0, metric="n")])
    append_metrics(tmp_path, [make_row(2, 8.0, source="evaluate.py"), make_row(2, 6.0, split="test")])
    append_metrics(tmp_path, [make_row(4, 3.0), make_row(4, 5.0, task="y"), make_row(4, 7.0, metric="n")])
    rows = read_metrics(tmp_path)
    assert len(rows) == 8 and rows[0]["features"] == "old"
    assert find_scores(rows) == ("m (f)", {2: {"z": 1.0}, 4: {"z": 3.0, "y": 5.0}})
    assert find_scores([]) == ("", {})


@pytest.mark.faults
def test_metrics_after_a_crash(tmp_path):
    """A torn row is dropped and does not swallow the next; a torn header is written again."""
    path = tmp_path / "metrics.csv"
    append_metrics(tmp_path, [make_row(1, 9.0)])
    path.write_text(path.read_text() + '2,training,"z')
    append_metrics(tmp_path, [make_row(3, 1.0)])
    assert [(row["step"], row["value"]) for row in read_metrics(tmp_path)] == [("1", "9"), ("3", "1")]
    path.write_text(path.read_text()[:20])
    append_metrics(tmp_path, [make_row(4, 2.0)])
    assert [row["step"] for row in read_metrics(tmp_path)] == ["4"]


def test_metrics_with_other_columns_are_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    for call in (lambda: read_metrics(tmp_path), lambda: append_metrics(tmp_path, [make_row(1, 1.0)])):
        with pytest.raises(UserError, match=r"metrics.csv has other columns than this program writes; move it away"):
            call()
    assert (tmp_path / "metrics.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.faults
def test_a_value_that_is_not_finite_is_never_the_best(new_run, capsys):
    """As rows of an earlier version of the program may be. A later finite value is the best, and is drawn."""
    values = [math.nan, 5.0, math.inf, 6.0, 4.0]
    with new_run:
        best = [new_run.logs.add_metrics(step, [make_row(step, value)]) for step, value in enumerate(values, 1)]
        assert best == [False, True, False, False, True]
        assert find_scores(new_run.logs.metrics) == find_scores(read_metrics(new_run.folder))
        new_run.logs.add_losses(5, {"G": 1.0}, 0.1)
        new_run.logs.plot_losses({"": ["G"]})
    assert (new_run.folder / "losses.png").exists()
    out = capsys.readouterr().out
    assert out.count("has no finite value") == 2 and "Iteration 2: m (f) 5, the best so far" in out


@pytest.mark.faults
@pytest.mark.parametrize("text", ["a;b\n1;2\n", None])
def test_metrics_that_a_user_changed_do_not_end_a_training(text, new_run, capsys):
    """Other columns, as a spreadsheet program saves them; and a path that cannot be written, a folder here."""
    path = new_run.folder / "metrics.csv"
    with new_run:
        assert new_run.logs.add_metrics(1, [make_row(1, 3.0)])
        if text is None:
            path.unlink()
            path.mkdir()
        else:
            path.write_text(text)
        assert new_run.logs.add_metrics(2, [make_row(2, 2.0)]) and not new_run.logs.add_metrics(3, [make_row(3, 9.0)])
    assert capsys.readouterr().out.count("Warning: writing metrics.csv failed") == (text is None)


@pytest.mark.faults
def test_an_error_is_reported_once_for_each_part(new_run, capsys):
    logs = new_run.logs
    for part in ("the plot", "the tracker", "the plot"):
        with logs.continue_after_errors(part):
            raise KeyError("x")
    out = capsys.readouterr().out
    assert [line.partition(" failed")[0] for line in out.splitlines()] == ["Warning: the plot", "Warning: the tracker"]


@pytest.mark.faults
@pytest.mark.parametrize("error", [UserError("a full disk"), NonFiniteError("G"), KeyboardInterrupt(), SystemExit(3)])
def test_errors_that_end_a_training_as_ever(new_run, error, capsys):
    with pytest.raises(type(error)), new_run.logs.continue_after_errors("the plot"):
        raise error
    with pytest.raises(NonFiniteError), new_run.logs.continue_after_errors("the plot", stop_for=NonFiniteError):
        raise NonFiniteError("G")
    assert capsys.readouterr().out == ""
