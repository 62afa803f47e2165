"""The progress bar: a bar on a terminal, log lines elsewhere."""

import errno
import io
import os
import re
import sys
import threading
import time

import pytest

from system import progress
from system.program import set_up_log
from system.progress import ProgressBar


@pytest.fixture(autouse=True)
def log():
    """Show log lines, as a command does."""
    set_up_log()


def test_without_a_terminal_quick_work_prints_nothing(capsys):
    assert list(ProgressBar("abc", "draw", "images")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_there_are_lines_with_speed_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_PROGRESS_INTERVAL", 0)
    assert list(ProgressBar("abc", "draw", "images")) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and len(lines) == 4 and lines[0] == "draw: 0/3, ? images/s, ? left"
    assert re.fullmatch(r"draw: 3/3, +[\d.]+ images/s, 00:00 left", lines[-1]), lines


def test_a_first_item_that_is_skipped_is_not_in_the_speed(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_PROGRESS_INTERVAL", 0)
    bar = ProgressBar(None, "draw", "images", total=9, initial=2)
    time.sleep(0.6)
    bar.skip_first()
    for _ in range(2):
        time.sleep(0.1)
        bar.update()
        assert 4 < bar.format_dict["rate"] <= 10, "one image in 0.1 seconds or more"
    assert bar.n == 5
    bar.close()


def test_without_a_terminal_and_a_total_there_is_no_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PLAIN_PROGRESS_INTERVAL", 0)
    assert list(ProgressBar(iter("ab"), "draw", "images")) == ["a", "b"]
    assert re.fullmatch(r"draw: 2, +[\d.]+ images/s", capsys.readouterr().out.splitlines()[-1])


def test_lines_of_a_training(monkeypatch, capsys):
    """They have losses but no title, and begin at the iteration that the run continues from."""
    monkeypatch.setattr(progress, "PLAIN_PROGRESS_INTERVAL", 0)
    bar = ProgressBar(None, "", "it", 20, initial=10)
    bar.set_postfix_str("D 0.1  G 0.5", refresh=False)
    bar.update()
    bar.close()
    first, last = capsys.readouterr().out.splitlines()
    assert first == "10/20, ? it/s, ? left"
    assert re.fullmatch(r"11/20, D 0\.1  G 0\.5, +[\d.]+ it/s, [\d:]+ left", last), last


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(ProgressBar(iter("abc"), "draw", "images", 3)) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert out == "" and "draw: " in err and "/3 " in err and "images" in err


@pytest.mark.faults
@pytest.mark.parametrize("number", [errno.EIO, errno.EPIPE])
@pytest.mark.parametrize("writes", range(6))
def test_a_terminal_that_closes_is_not_an_error(writes, number, monkeypatch):
    class Terminal(io.StringIO):
        left = writes

        def isatty(self):
            return True

        def write(self, text):
            self.left -= 1
            if self.left < 0:
                raise OSError(number, os.strerror(number))
            return super().write(text)

    monkeypatch.setattr(sys, "stderr", Terminal())
    bar = ProgressBar("abc", "draw", "images")
    bar.mininterval = 0
    assert list(bar) == ["a", "b", "c"]
    bar.set_postfix_str("text")
    bar.close()
    assert sys.stderr.left < 0, "the terminal was closed"


@pytest.mark.faults
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks")
def test_a_fork_that_is_killed_while_it_shows_progress_blocks_nobody():
    """tqdm's own lock, which forks share, would stay taken: the second bar would wait for ever."""
    child = os.fork()
    if child == 0:
        ProgressBar.get_lock().acquire()
        os._exit(9)
    os.waitpid(child, 0)
    lock = ProgressBar.get_lock()
    assert lock.acquire(blocking=False) and lock.release() is None
    threads = threading.active_count()
    assert list(ProgressBar("ab", "draw", "images")) == ["a", "b"]
    assert threading.active_count() == threads, "no thread that watches the bar"
