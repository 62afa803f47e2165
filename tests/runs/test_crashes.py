"""Crashes, losses of power and full disks at single file operations: the resumed run equals an uninterrupted one.

These tests try some of the operations; benchmarks/reliability.py tries all.
"""

import sys

import pytest

from tests.helpers import crashes
from tests.helpers.trainings import SCRIPT_FLAGS, Training

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")]


@pytest.fixture(scope="module", params=SCRIPT_FLAGS)
def training(request, tmp_path_factory):
    return Training.make(tmp_path_factory.mktemp("crashes"), request.param)


def test_crashes_and_power_failures(training, tmp_path):
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
    """From one of these writes on."""
    log = [disk.operation for disk in crashes.operations_of(training, tmp_path)]
    for name in ("log.txt", "losses.csv", ".sample-000006", ".checkpoint-000004.pt"):
        number = next(i for i, operation in enumerate(log) if operation.startswith(f"write {name}"))
        assert crashes.fill_disk(training, tmp_path, number), name


@pytest.mark.parametrize("moment", ["in", "full"])
def test_plain_saving_loses_the_checkpoint(moment, tmp_path):
    """The control."""
    survived = list(crashes.naive_points(tmp_path, moment, every=6))
    assert survived.count(False) > len(survived) / 3


def test_without_fsync_a_power_failure_loses_files(training, tmp_path):
    """The control: the power fails after the first file was replaced."""
    log = crashes.operations_of(training, tmp_path, syncs=False)
    [first, *_] = [disk for disk in log if disk.operation.startswith("replace")]
    assert not crashes.lose_power(training, tmp_path, first, names_survive=True)
