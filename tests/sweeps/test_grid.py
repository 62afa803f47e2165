"""The runs of a sweep: what each still needs, the commands that finish it, and the progress of all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.grid import Job, Sweep, commands_of, find_evaluation, job_state, progress_of
from sweeps.reading import read_sweep
from tests.conftest import FinishedRun, make_photos
from tests.helpers.commands_here import run_command
from tests.sweeps.test_reading import HEAD, write

Open = Callable[..., Sweep]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a sweep of two seeds. The run of the first one is trained for two iterations, and measured."""
    folder = tmp_path_factory.mktemp("finished")
    make_photos(folder / "photos")
    sweep = open_sweep(folder)
    for words in commands_of(sweep, sweep.jobs[0]):
        assert run_command(words) == 0
    return folder


def open_sweep(folder: Path, text: str = "", changes: dict | None = None, **evaluate) -> Sweep:
    path = write(folder, f"seeds = [1, 2]\n{HEAD}log_step = 1\ncheckpoint_every = 1\n{text}")
    changes = {"data": str(folder / "photos"), **(changes or {})}
    return read_sweep(path, folder / "runs", changes, {"features": "pixels", **evaluate})


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """A copy of the sweep, which a test may change. The images stay where the run found them."""
    shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "photos")
    (tmp_path / "copy" / "photos").symlink_to(finished / "photos")
    return tmp_path / "copy"


def words_of(sweep: Sweep, job: Job) -> list[str]:
    """Return the scripts of the commands that a job needs, with --resume behind one that resumes."""
    return [
        Path(words[1]).name + " --resume" * any(word.startswith("--resume") for word in words)
        for words in commands_of(sweep, job)
    ]


def test_states_and_commands(finished):
    sweep = open_sweep(finished)
    done, missing = sweep.jobs
    assert job_state(sweep, done) == "done" and commands_of(sweep, done) == []
    assert job_state(sweep, missing) == "missing" and words_of(sweep, missing) == ["vanilla_gan.py", "evaluate.py"]


def test_a_larger_length_trains_a_finished_run_longer(copy):
    sweep = open_sweep(copy, changes={"train_iters": 4})
    job = sweep.jobs[0]
    assert job_state(sweep, job) == "unfinished" and words_of(sweep, job) == ["vanilla_gan.py --resume", "evaluate.py"]
    for words in commands_of(sweep, job):
        assert run_command(words) == 0
    run = FinishedRun(job.folder)
    assert run.steps("checkpoint-*.pt") == [1, 2, 3, 4] and run.options["train_iters"] == 4
    assert job_state(sweep, job) == "done" and find_evaluation(sweep, job)["step"] == 4


def test_a_run_without_its_last_checkpoint_is_resumed(copy):
    sweep = open_sweep(copy)
    (sweep.jobs[0].folder / "checkpoint-000002.pt").unlink()
    assert words_of(sweep, sweep.jobs[0]) == ["vanilla_gan.py --resume", "evaluate.py"]
    (sweep.jobs[0].folder / "checkpoint-000001.pt").unlink()  # killed before its first checkpoint
    assert words_of(sweep, sweep.jobs[0]) == ["vanilla_gan.py --resume", "evaluate.py"]


def test_a_run_that_failed_before_its_first_step_is_started_again(copy):
    sweep = open_sweep(copy)
    folder = sweep.jobs[0].folder
    for path in folder.iterdir():
        if path.name != "options.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert job_state(open_sweep(copy, changes={"lr": 0.1}), sweep.jobs[0]) == "missing"


@pytest.mark.parametrize("evaluate", [{"seed": 3}, {"num_images": 5}, {"features": "inception"}, {"checkpoint": "1"}])
def test_other_options_of_the_measurement_measure_again(finished, evaluate):
    sweep = open_sweep(finished, **evaluate)
    assert words_of(sweep, sweep.jobs[0]) == ["evaluate.py"]


@pytest.mark.parametrize("evaluate", [{"batch_size": 3}, {"device": "cpu"}, {"checkpoint": "newest"}])
def test_options_that_leave_the_numbers_as_they_are_do_not(finished, evaluate):
    sweep = open_sweep(finished, **evaluate)
    assert commands_of(sweep, sweep.jobs[0]) == []


def test_a_measurement_in_other_features_than_asked_counts_until_their_weights_are_there(copy, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(copy))
    sweep = open_sweep(copy, features="inception")
    job = sweep.jobs[0]
    path = job.folder / "evaluation-000002-pixels.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "features": "inception"}))
    assert commands_of(sweep, job) == [] and find_evaluation(sweep, job)["step"] == 2
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3", "https://no.example/w.pth")
    (copy / "hub/checkpoints").mkdir(parents=True)
    (copy / "hub/checkpoints/w.pth").touch()
    assert words_of(sweep, job) == ["evaluate.py"] and find_evaluation(sweep, job)["step"] == 2
    content["rows"][0]["features"] = "inception"
    path.write_text(json.dumps({**content, "features": "inception"}))
    assert commands_of(sweep, job) == []
    path.write_text("{")
    assert words_of(sweep, job) == ["evaluate.py"] and find_evaluation(sweep, job) is None


def test_progress_counts_iterations_of_all_runs(copy):
    sweep = open_sweep(copy, changes={"train_iters": 5})
    assert progress_of(sweep, sweep.jobs) == (2, 10)
    # Ten images in batches of four: three epochs are eight iterations, which the run that has not begun also counts.
    sweep = open_sweep(copy, changes={"num_epochs": 3})
    assert progress_of(sweep, sweep.jobs) == (2, 16)
    assert job_state(sweep, sweep.jobs[0]) == "unfinished"
    shutil.rmtree(sweep.jobs[0].folder)
    assert progress_of(sweep, sweep.jobs) == (0, 0)
