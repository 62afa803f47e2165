"""StopSignals: signals are recorded, a second Ctrl-C stops at once, and handlers are restored."""

import signal

import pytest

from system.program import StopSignals


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
