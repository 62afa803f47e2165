"""How a command runs: exit codes, errors of one line, and the lines that the console shows."""

import logging
import sys

import pytest
import torch
import torch.distributed as dist

from system.program import ConsoleHandler, describe_failure, run_main, set_up_log
from utils import LOG, NonFiniteError, UserError


@pytest.mark.parametrize(
    "error, code",
    [
        (UserError("two\nlines"), 2),
        (OSError(28, "No space left on device", "checkpoint.pt"), 2),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has"), 2),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes. x"
            ),
            2,
        ),
        (RuntimeError("Storage size calculation overflowed with sizes=[9, 9]"), 2),
        (MemoryError("Unable to allocate 2 GiB for an\narray"), 2),  # NumPy's
        (MemoryError(), 2),  # Pillow's
        (NonFiniteError("G is not finite between iterations 1 and 9"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(capsys, error, code):
    def main():
        raise error

    assert run_main(main, "prog") == code
    err = capsys.readouterr().err
    assert err.startswith("prog: ") and err.count("\n") == 1
    if "allocate" in str(error):  # the amount, and the remedy
        assert ("2 GiB" in err or "99 bytes" in err) and "lower --batch_size" in err
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "Storage" in str(error):
        assert "out of memory" in err and "lower --batch_size" in err
    words = {3: "stopped: G is not finite", 130: "interrupted"}.get(code, "error: ")
    assert err.startswith(f"prog: {words}")
    if isinstance(error, OSError):
        assert "checkpoint.pt: No space left on device; fix this, then use --resume" in err


def test_errors_are_printable(capsys):
    for error in (UserError("a\x1b[31m.png"), OSError(2, "No such file", "a\x1b[31m\n.png")):

        def main(error=error):
            raise error

        assert run_main(main, "prog") == 2
        err = capsys.readouterr().err
        assert "a\\x1b[31m" in err and "\x1b" not in err and err.count("\n") == 1


def test_mismatched_torchvision_is_one_line(capsys):
    """The error is as torchvision raises it beside another torch, when torchmetrics imports it for an SSIM."""

    def main():
        raise RuntimeError("operator torchvision::nms does not exist")

    assert run_main(main, "x.py") == 2
    err = capsys.readouterr().err
    assert "torchvision::nms" in err and "pip install" in err and torch.__version__ in err and err.count("\n") == 1


def test_a_kernel_that_is_not_deterministic_is_one_line(capsys):
    """The error is as torch raises it on a GPU."""
    text = "reflection_pad2d_backward_cuda does not have a deterministic implementation, but you set it. You can ..."

    def main():
        raise RuntimeError(text)

    assert run_main(main, "x.py") == 2
    assert capsys.readouterr().err.endswith("but you set it; leave --deterministic out\n")


def test_other_errors_keep_their_traceback(capsys):
    for error in (RuntimeError("shapes differ"), KeyError("x")):

        def main(error=error):
            raise error

        with pytest.raises(type(error)) as raised:
            run_main(main, "prog")
        assert raised.value is error and capsys.readouterr().err == ""


def test_the_exit_code_of_main_is_returned():
    assert [run_main(lambda code=code: code, "prog") for code in (0, 1, 143)] == [0, 1, 143]


@pytest.mark.parametrize(
    "error, joined, reporters",
    [
        (UserError("x"), False, [0]),  # all processes raise it
        (UserError("x"), True, [0, 1]),  # only this process raises it
        (OSError(13, "Permission denied", "x"), False, [0, 1]),
        (NonFiniteError("x"), True, [0]),
    ],
)
def test_which_processes_report_an_error(error, joined, reporters, monkeypatch, capsys):
    def main():
        raise error

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(dist, "is_initialized", lambda: joined)
    for number in (0, 1):
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setenv("LOCAL_RANK", str(number))
        run_main(main, "prog")
        err = capsys.readouterr().err
        assert bool(err) is (number in reporters)
        assert ("in process 1" in err) is (isinstance(error, UserError) and joined and number == 1)


def test_a_lost_connection_is_one_line(monkeypatch):
    error = RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")
    assert describe_failure(error) is None, "without other processes this is another error"
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    code, text = describe_failure(error)
    assert code == 1 and "process 1 lost contact with the others" in text and text.endswith("continue with --resume")


# ---- The console


@pytest.fixture
def console(capsys):
    """Set up the log as a command does; return a function that reads the lines printed since its last call."""
    handlers, level = list(LOG.handlers), LOG.level
    set_up_log()
    yield lambda: capsys.readouterr().out.splitlines()
    LOG.handlers[:] = handlers
    LOG.setLevel(level)


def test_lines_of_the_console(console):
    LOG.info("%d images from %s", 3, "a\x1b[31m\n.png")
    LOG.warning("too few images")
    LOG.debug("only for log.txt")
    assert console() == [r"3 images from a\x1b[31m\n.png", "Warning: too few images"]
    set_up_log()
    LOG.info("once")
    assert console() == ["once"], "a second call adds no second handler"


def test_other_processes_are_silent(console, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", "1")
    set_up_log()
    LOG.warning("too few images")
    assert console() == []
    monkeypatch.setenv("RANK", "0")
    set_up_log()
    LOG.warning("too few images")
    assert console() == ["Warning: too few images"]


@pytest.mark.faults
def test_a_closed_terminal_does_not_end_the_program(console, monkeypatch):
    class Closed:
        def write(self, text):
            raise OSError(5, "Input/output error")

        flush = write

    [handler] = [handler for handler in LOG.handlers if isinstance(handler, ConsoleHandler)]
    monkeypatch.setattr(sys, "stdout", Closed())
    LOG.info("nobody reads this")
    with pytest.raises(OSError):  # the control: the terminal is closed
        sys.stdout.write(handler.format(logging.LogRecord("gan", logging.INFO, "", 0, "text", (), None)))
