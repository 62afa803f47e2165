"""How a command runs: console output, exit codes, and signals that ask it to stop."""

import contextlib
import io
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

from system.processes import is_joined, leave_processes, local_rank, rank
from utils import LOG, NonFiniteError, UserError, one_line, printable

MEMORY_ADVICE = "lower --batch_size, --image_size, --cache_gb or the width of the networks"
_CPU_MEMORY_ERRORS = ("can't allocate memory", "Storage size calculation overflowed")  # RuntimeErrors of PyTorch


class LineFormatter(logging.Formatter):
    """One printable line per message; a warning begins with "Warning: "."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = "Warning: " if record.levelno >= logging.WARNING else ""
        return printable(prefix + record.getMessage())


class ConsoleHandler(logging.Handler):
    """Prints messages above the progress bar. A terminal or pipe that was closed does not end the program."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            tqdm.write(self.format(record))


def set_up_log() -> None:
    """Show messages of level INFO and above on the terminal; DEBUG goes to log.txt only. Ranks above 0 are silent."""
    LOG.propagate = False
    LOG.setLevel(logging.DEBUG if rank() == 0 else logging.CRITICAL)
    if not any(isinstance(handler, ConsoleHandler) for handler in LOG.handlers):
        handler = ConsoleHandler(logging.INFO)
        handler.setFormatter(LineFormatter())
        LOG.addHandler(handler)


def describe_failure(error: Exception) -> tuple[int, str] | None:
    """Return the exit code and a line for the user, or None for an error that needs a traceback."""
    message = one_line(error, limit=10_000)
    if isinstance(error, UserError):
        who = f" in process {rank()}" if rank() else ""
        return 2, f"error{who}: {printable(message)}"
    if isinstance(error, NonFiniteError):
        return 3, f"stopped: {message}"
    if isinstance(error, OSError):  # a full disk or a missing permission
        name = f"{error.filename}: " if error.filename else ""
        text = printable(f"{name}{error.strerror or error}")
        return 2, f"error: {text}; fix this, then use --resume or start a new run"
    import torch  # here, because its import takes a while

    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in message for text in _CPU_MEMORY_ERRORS):
        amount = re.search(r"allocate ([\d.]+ ?\w+)", message)  # PyTorch and NumPy name it
        requested = f" ({amount[1]} requested)" if amount else ""
        return 2, f"error: out of memory{requested}; {MEMORY_ADVICE}"
    if isinstance(error, RuntimeError) and "does not have a deterministic implementation" in message:
        return 2, f"error: {message.split('. ')[0]}; leave --deterministic out"
    if isinstance(error, ImportError | RuntimeError) and "torchvision" in message:  # torchmetrics imports it
        return 2, (
            f"error: torchvision does not load beside torch {torch.__version__} ({message}); install a matching pair: "
            "pip install --force-reinstall -r requirements.txt"
        )
    if is_joined() and _is_lost_connection(error):
        return 1, (
            f"process {torch.distributed.get_rank()} lost contact with the others; see the message of the process that "
            "stopped, then continue with --resume"
        )
    return None


def _is_lost_connection(error: Exception) -> bool:
    """Whether a collective operation failed because another process has ended."""
    import torch.distributed as dist

    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "Connection", "NCCL", "closed"))
    )


def set_handlers(handlers: dict[int, Any]) -> dict[int, Any]:
    """Set signal handlers, number -> handler; return those that were set before, to be restored in the same way.

    In a thread nothing is set, and the result is empty: Python allows handlers in the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) or signal.SIG_DFL for number, handler in handlers.items()}


def run_main(main: Callable[[], int], prog: str) -> int:
    """Call `main` and return the exit code: its own, 2 after a UserError, 3 after NonFiniteError, 130 after Ctrl-C.

    Afterwards Ctrl-C does what it did before; a notebook needs that.
    """
    before = set_handlers({signal.SIGINT: signal.default_int_handler})
    try:
        return _run_main(main, prog)
    finally:
        if signal.SIG_DFL not in before.values():  # `parse_command_line` set it, in place of Python's own handler
            set_handlers(before)


def _run_main(main: Callable[[], int], prog: str) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not be able to show a file name
    set_up_log()
    try:
        code = main()
        leave_processes()
        return code
    except Exception as error:
        failure = describe_failure(error)
        if failure is None:
            raise
        # All processes raise a NonFiniteError, and a UserError if they have not joined yet: one of them reports it.
        raised_by_all = NonFiniteError if is_joined() else (NonFiniteError, UserError)
        if local_rank() == 0 or not isinstance(error, raised_by_all):
            sys.stderr.write(f"{prog}: {failure[1]}\n")
        return failure[0]
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted\n")
        return 130


class StopSignals:
    """Within this context, signals that ask the process to end are recorded in `received` instead.

    They are Ctrl-C, SIGTERM, SIGHUP (a terminal closes) and SIGUSR1 (SLURM sends it before it kills a job). Under nohup
    SIGHUP stays ignored. A second Ctrl-C raises KeyboardInterrupt at once. In a thread nothing is recorded.
    """

    NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Windows has only the first two

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def _record(self, number: int, frame: Any) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number

    def __enter__(self) -> "StopSignals":
        numbers = {name: getattr(signal, name) for name in self.NAMES if hasattr(signal, name)}
        if "SIGHUP" in numbers and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            del numbers["SIGHUP"]
        self._before = set_handlers(dict.fromkeys(numbers.values(), self._record))
        return self

    def __exit__(self, *exception: object) -> None:
        set_handlers(self._before)
