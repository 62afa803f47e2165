"""Two trainings in one folder: the second is refused and the first goes on; a lock dies with its process."""

import pytest

from tests.faults.trainings import Training, two_in_one_folder

pytest.importorskip("fcntl")


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return Training.make(tmp_path_factory.mktemp("lock"), "cycle_gan.py")


def test_the_second_is_refused(training, tmp_path):
    """In one line that names the holder."""
    assert two_in_one_folder(training, tmp_path, killed=False)


def test_a_killed_one_holds_nothing(training, tmp_path):
    (training.begun / ".checkpoint-000999.pt.99999.tmp").write_text("what a killed process leaves goes, too")
    assert two_in_one_folder(training, tmp_path, killed=True)


def test_without_the_lock_two_mix_their_rows(training, tmp_path):
    """The control."""
    assert not two_in_one_folder(training, tmp_path, killed=False, locked=False)
