"""Signals are recorded, a second Ctrl-C stops at once, handlers are restored, and a thread sets none."""

import contextlib
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from system.program import StopSignals, run_main
from utils import UserError


def test_signals_are_recorded_and_handlers_restored():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        assert stop.received is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.received == signal.SIGTERM
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_the_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received == signal.SIGINT
        signal.raise_signal(signal.SIGINT)


def test_signals_that_the_system_lacks(monkeypatch):
    """Windows has no SIGHUP and no SIGUSR1."""
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.delattr(signal, "SIGUSR1")
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.received == signal.SIGTERM


def run_in_thread(work):
    """Return what `work` returns in a thread; an error is raised here."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_in_a_thread_no_handler_is_set():
    """Python refuses it there: a notebook or a server may call `main` in a thread."""
    before = signal.getsignal(signal.SIGINT)

    def work():
        with StopSignals() as stop:
            return stop.received, signal.getsignal(signal.SIGINT)

    assert run_in_thread(work) == (None, before)
    with pytest.raises(ValueError, match="main thread"):  # the control
        run_in_thread(lambda: signal.signal(signal.SIGINT, before))


def fail(error: BaseException):
    raise error


@pytest.mark.parametrize(
    "main",
    [
        lambda: 0,
        lambda: fail(UserError("x")),
        lambda: fail(KeyboardInterrupt()),
        lambda: fail(RuntimeError("an error of the program")),
        lambda: fail(SystemExit(2)),
    ],
)
def test_after_a_command_ctrl_c_does_what_it_did_before(main):
    def handler(number, frame):
        pass

    before = signal.signal(signal.SIGINT, handler)
    try:
        with contextlib.suppress(RuntimeError, SystemExit):
            run_main(main, "prog")
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_within_a_command_ctrl_c_is_an_exception():
    """And after it, too, if the handler before was set for the import of torch only."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        assert run_main(lambda: signal.raise_signal(signal.SIGINT), "prog") == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_command_in_a_thread():
    before = signal.getsignal(signal.SIGINT)
    assert run_in_thread(lambda: run_main(lambda: 7, "prog")) == 7 and signal.getsignal(signal.SIGINT) is before
