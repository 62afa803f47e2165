"""The text of --value_range: one range, or one for each domain."""

import pytest

from options import CycleOptions, VanillaOptions, parse_command_line
from options.command_line import parse_command
from options.commands import EvaluateOptions
from options.value_range import fill_value_ranges, read_value_ranges


@pytest.mark.parametrize(
    "text, expected",
    [
        (None, [None, None]),
        ("0,4095", [(0, 4095), (0, 4095)]),
        ("-1024,3071:", [(-1024, 3071), None]),
        (":-1,1", [None, (-1, 1)]),
        ("0,1:1e-3,2.5", [(0, 1), (0.001, 2.5)]),
    ],
)
def test_ranges_that_are_read(text, expected):
    assert read_value_ranges(text, 2) == expected


@pytest.mark.parametrize(
    "text", ["", " ", "5", "1,0", "1,1", "0,nan", "0,inf", "a,b", "1,2,3", "0;1", "-1e308,1e308", "0,1:x"]
)
def test_texts_that_are_not_ranges(text):
    with pytest.raises(ValueError, match=r"--value_range: .* is not LOW,HIGH with LOW below HIGH; use a range such as"):
        read_value_ranges(text, 2)


def test_too_many_ranges():
    with pytest.raises(ValueError, match=r"--value_range: .0,1:0,2. has 2 ranges; use 1$"):
        VanillaOptions(value_range="0,1:0,2").check()
    with pytest.raises(ValueError, match=r"has 3 ranges; use 1 or 2$"):
        CycleOptions(value_range="0,1:0,2:0,3").check()


def test_ranges_that_were_found_are_recorded_with_all_digits():
    third = 1 / 3
    assert fill_value_ranges(None, [(0.0, 4095.0), None]) == "0,4095:"
    assert fill_value_ranges(None, [(-third, 1e30)]) == "-0.3333333333333333,1e+30"
    assert read_value_ranges(fill_value_ranges(None, [(-third, 1e30)])) == [(-third, 1e30)]
    assert fill_value_ranges(":0,4", [(-1.0, 1.0), (7.0, 9.0)]) == "-1,1:0,4", "what was given stays"
    for text, found in ((None, [None]), ("0,4095.0", [None]), ("0,4095.0", [(1.0, 2.0)]), ("0, 7", [(0.0, 7.0)] * 2)):
        assert fill_value_ranges(text, found) == text


@pytest.mark.parametrize("words", [["--value_range", "-1024,3071"], ["--value_range=-1024,3071"]])
def test_a_range_may_begin_with_a_minus(words):
    """argparse alone takes -1024,3071 for an unknown flag."""
    assert parse_command_line(VanillaOptions, "", words).value_ranges() == [(-1024, 3071)]
    assert parse_command(EvaluateOptions, "", ["a", "b", *words]).value_range == "-1024,3071"


def test_a_flag_that_begins_with_a_minus_is_still_a_flag(capsys):
    with pytest.raises(SystemExit):
        parse_command_line(VanillaOptions, "", ["--value_range", "--strict"])
    assert "--value_range: expected one argument" in capsys.readouterr().err
