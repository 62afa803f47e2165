"""Two trainings in one folder: the second is refused and the first continues; a lock ends with its process."""

import sys

import pytest

from tests.helpers.trainings import Training, two_in_one_folder

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform == "win32", reason="forks")]


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return Training.make(tmp_path_factory.mktemp("lock"), "cycle_gan.py")


def test_the_second_training_is_refused(training, tmp_path):
    """In one line that names the process that holds the lock."""
    assert two_in_one_folder(training, tmp_path, killed=False)


def test_a_killed_training_holds_no_lock(training, tmp_path):
    (training.stopped / ".checkpoint-000999.pt.99999.tmp").write_text("the temporary file of a killed process")
    assert two_in_one_folder(training, tmp_path, killed=True), "it continues, and the temporary file is deleted"


def test_without_the_lock_two_trainings_mix_their_rows(training, tmp_path):
    """The control."""
    assert not two_in_one_folder(training, tmp_path, killed=False, locked=False)
