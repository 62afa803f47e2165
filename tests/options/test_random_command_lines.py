"""Any command line of declared options trains, or ends with one line and leaves no unfinished files."""

import sys

import pytest

from tests.helpers.command_lines import find_leftovers, try_command_lines, try_without_checks

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="limits memory by /proc and setrlimit"),
]


@pytest.mark.parametrize("script", ["vanilla_gan.py", "cycle_gan.py"])
def test_any_command_line_trains_or_ends_with_one_line(script, tmp_path):
    messages = []
    tried, held = try_command_lines(tmp_path, script, 16, seed=5, say=messages.append)
    assert tried >= 12 and held == tried, "\n".join(messages)


def test_a_script_without_checks_fails(tmp_path):
    """The control: without the checks of the options the same command lines give tracebacks, or train with nonsense."""
    tried, held = try_without_checks(tmp_path, "vanilla_gan.py", 20, seed=6)
    assert tried - held >= 2


def test_leftovers_are_found(tmp_path):
    """A failed command may leave its own run folder without a checkpoint, and folders, but nothing else."""
    run = tmp_path / "runs" / "one"
    (run / "samples").mkdir(parents=True)
    (run / "options.json").write_text('{"samples": "samples"}')
    precious, own = str(tmp_path / "precious"), [str(run / "options.json"), str(run / "log.txt")]
    before = {precious: 5}
    after = {**before, **dict.fromkeys(own, 1), str(run): None, str(run / "samples" / "real-000000.png"): 9}
    assert find_leftovers(before, after) == []
    for path in (str(run / "checkpoint-000001.pt"), str(run / ".x.tmp"), str(tmp_path / "other"), precious):
        assert find_leftovers(before, {**after, path: 7}) == [path]
    assert find_leftovers(before, {own[0]: 1}) == [precious]
