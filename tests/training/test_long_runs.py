"""A long training does not use more and more memory or open files. benchmarks/reliability.py tries the full length."""

import sys

import pytest

from tests.helpers.long_runs import growth

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_memory_and_open_files_do_not_grow(tmp_path):
    memory, files = growth(tmp_path, "cycle_gan.py", 60, 160)
    assert memory < 0.025 and files <= 0, (memory, files)


def test_a_leak_is_found(tmp_path):
    """The control: a script that keeps every batch, and a file for every row."""
    memory, files = growth(tmp_path, "cycle_gan.py", 60, 160, leaks=True)
    assert memory > 0.025 and files >= 8, (memory, files)
