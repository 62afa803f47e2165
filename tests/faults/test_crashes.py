"""Trouble at enumerated operations on files: the run goes on to what it would have become.

Here at some of the operations; benchmarks/reliability.py tries them all.
"""

import sys

import pytest

from tests.faults import crashes
from tests.faults.trainings import OF_SCRIPT, Training

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks into /proc")


@pytest.fixture(scope="module", params=OF_SCRIPT)
def training(request, tmp_path_factory):
    return Training.make(tmp_path_factory.mktemp("crashes"), request.param)


def test_crashes_and_losses_of_power(training, tmp_path):
    """While a checkpoint is saved."""
    log = crashes.operations_of(training, tmp_path)
    names = [disk.operation for disk in log]
    saving = range(names.index("open .checkpoint-000004.pt.tmp"), names.index("replace checkpoint-000004.pt") + 2)
    assert 40 < len(log) and {"write", "fsync", "replace"} <= {name.split()[0] for name in names}
    for number in saving:
        if number % 2:
            assert crashes.crash(training, tmp_path, number, "in"), names[number]
        else:
            assert crashes.lose_power(training, tmp_path, log[number], number % 4 == 0), names[number]


def test_a_full_disk(training, tmp_path):
    """From some of the writes on."""
    log = [disk.operation for disk in crashes.operations_of(training, tmp_path)]
    for name in ("log.txt", "losses.csv", ".sample-000006", ".checkpoint-000004.pt"):
        number = next(i for i, operation in enumerate(log) if operation.startswith(f"write {name}"))
        assert crashes.fill_disk(training, tmp_path, number), name


@pytest.mark.parametrize("moment", ["in", "full"])
def test_a_plain_saver_loses_the_checkpoint(moment, tmp_path):
    """The control."""
    survived = list(crashes.naive_points(tmp_path, moment, every=6))
    assert survived.count(False) > len(survived) / 3


def test_who_never_waits_for_the_disk_loses_what_was_there(training, tmp_path):
    """The control: the same without fsync, when the power fails after the first file was replaced."""
    log = crashes.operations_of(training, tmp_path, syncs=False)
    number = [disk.operation for disk in log].index("replace losses.csv")
    assert not crashes.lose_power(training, tmp_path, log[number], names_survive=True)
