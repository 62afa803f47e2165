"""Progress bars on a terminal, lines in the log elsewhere."""

import contextlib
import io
import sys
import threading
from collections.abc import Iterable, Sized
from typing import Any

from tqdm import tqdm

from system.processes import rank
from utils import LOG

PLAIN_PROGRESS_INTERVAL = 10.0  # seconds between two lines of progress in the log

# By default tqdm shares a lock with forked processes: a fork that is killed while it holds the lock blocks all others.
tqdm.set_lock(threading.RLock())


class _LogLines(io.StringIO):
    """A file for tqdm that logs each state of the bar as a line."""

    def write(self, text: str) -> int:
        if text.strip():
            LOG.info(text.strip())
        return len(text)


class ProgressBar(tqdm):
    """Shows the progress, the speed and the time left: a bar on a terminal, else a log line every ten seconds.

    Args:
        items: the items to iterate over; None if `update` is called instead.
        title, unit: the name of the work and of its items, such as "decode" and "images".
        total: number of items, if it is known but `items` has no length.
        initial: number of items done before.
        bar_format: tqdm's format of the bar on a terminal.
        leave: whether the bar stays on the terminal when the work is done.
    """

    monitor_interval = 0  # no thread that watches the bars: each update looks at the clock

    def __init__(
        self,
        items: Iterable | None,
        title: str,
        unit: str,
        total: int | None = None,
        initial: int = 0,
        bar_format: str | None = None,
        leave: bool = False,
    ):
        if total is None and isinstance(items, Sized):
            total = len(items)
        done, left = ("{n_fmt}", "") if total is None else ("{n_fmt}/{total_fmt}", ", {remaining} left")
        self._line = f"{{desc}}{done}{{postfix}}, {{rate_noinv_fmt}}{left}"
        self.is_terminal = sys.stderr.isatty()
        if self.is_terminal:
            look = dict(file=sys.stderr, bar_format=bar_format, dynamic_ncols=True, miniters=1, disable=rank() > 0)
        else:
            wait = PLAIN_PROGRESS_INTERVAL
            look = dict(file=_LogLines(), bar_format=self._line, delay=wait, mininterval=wait, miniters=1)
        title = f"{title}: " if title else ""
        super().__init__(
            items, title, total, initial=initial, unit=f" {unit}", leave=leave and self.is_terminal, **look
        )

    def skip_first(self) -> None:
        """Count an item as `update` does, and measure the speed and the time left from now on."""
        self.unpause()
        self.n += 1
        self.initial = self.last_print_n = self.n

    def as_line(self) -> str:
        """Return the progress as it stands in a log."""
        return self.format_meter(**{**self.format_dict, "bar_format": self._line, "ncols": None})

    def display(self, *args: Any, **kwargs: Any) -> bool | None:
        """Show the progress. A terminal that was closed is not an error."""
        try:
            return super().display(*args, **kwargs)
        except OSError:
            self.disable = True
            return None

    def close(self) -> None:
        """Remove the bar. A terminal that was closed is not an error."""
        with contextlib.suppress(OSError):
            super().close()
