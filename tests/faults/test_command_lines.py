"""Any command line of the declared options either runs or ends with one line, and leaves nothing half made."""

import sys

import pytest

from tests.faults.flags import control_outcomes, outcomes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bounds memory by /proc and setrlimit")
SCRIPTS = ["vanilla_gan.py", "cycle_gan.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_any_command_line_runs_or_ends_with_one_line(script, tmp_path):
    told = []
    tried, held = outcomes(tmp_path, script, 16, seed=5, say=told.append)
    assert tried >= 12 and held == tried, "\n".join(told)


def test_a_naive_script_does_not(tmp_path):
    """The control: without the checks of options.py the same command lines end in tracebacks, or run with nonsense."""
    tried, held = control_outcomes(tmp_path, "vanilla_gan.py", 20, seed=5)
    assert tried - held >= 2
