"""A training that goes on for long takes no more memory and no more files. The full length is in long_runs.py."""

import sys

import pytest

from tests.faults.long_runs import growth

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_memory_and_open_files_stay(tmp_path):
    memory, files = growth(tmp_path, "cycle_gan.py", 60, 160)
    assert memory < 0.025 and files <= 0, (memory, files)


def test_a_leak_is_found(tmp_path):
    """The control: a script that keeps every batch, and a file for every row."""
    memory, files = growth(tmp_path, "cycle_gan.py", 60, 160, leaks=True)
    assert memory > 0.025 and files >= 8, (memory, files)
