"""Commands of the project in this process: torch is imported already, so a training takes a fraction of a second."""

import contextlib
import io
from typing import Any

import evaluate
from options.command_line import parse_command
from options.commands import EvaluateOptions
from system.program import run_main
from tests.conftest import TINY, resume


def run_command(words: list[str]) -> int:
    """Run a command such as [python, .../vanilla_gan.py, --lr=1]; return its exit code."""
    script, arguments = words[1].rpartition("/")[2], words[2:]
    if script in TINY:
        return resume(*arguments, script=script)
    assert script == "evaluate.py"
    return run_main(lambda: evaluate.main(parse_command(EvaluateOptions, "", arguments)), script)


class ProcessHere:
    """Stands in for subprocess.Popen: the command has ended when the object is made."""

    def __init__(self, words: list[str], stdout: Any, **others: Any):
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            self.returncode = run_command(words)
        stdout.write(text.getvalue().encode())

    def poll(self) -> int:
        return self.returncode
