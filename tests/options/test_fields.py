"""The declaration of options, and the checks that follow from it."""

from dataclasses import dataclass, fields

import pytest

from options.fields import MAX_INT, check_range, flag_of, option, option_fields


@dataclass(frozen=True, kw_only=True)
class Example:
    """One option of each kind, and a field that is not an option."""

    explicit: frozenset = frozenset()
    run: str = option("", "help", positional=True, metavar="RUN")
    count: int = option(5, "help", at_least=1)
    few: int | None = option(None, "help", flag="-n", at_most=10)
    share: float = option(0.0, "help", at_least=0, below=1)
    rate: float = option(0.5, "help", above=0)
    mode: str = option("a", "help", choices=("a", "b"))
    level: int = option(1, "help", choices=(1, 2 * MAX_INT))
    loud: bool = option(False, "help")


FIELDS = {field.name: field for field in fields(Example)}


def refusal(name: str, value) -> str:
    """Return the message with which a value is refused."""
    with pytest.raises(ValueError) as error:
        check_range(FIELDS[name], value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_option_fields_are_those_that_option_declared():
    assert [field.name for field in option_fields(Example)] == [name for name in FIELDS if name != "explicit"]
    assert Example().count == 5 and Example().mode == "a"


def test_messages_name_the_flag_that_the_user_types():
    assert [flag_of(FIELDS[name]) for name in ("run", "few", "share")] == ["RUN", "-n", "--share"]


@pytest.mark.parametrize(
    "name, values",
    {
        "run": ["", "anything"],
        "count": [1, MAX_INT],
        "few": [None, -MAX_INT, 10],
        "share": [0.0, 0, 0.999],
        "rate": [1e-300, 1e300],
        "mode": ["a", "b"],
        "level": [1, 2 * MAX_INT],
        "loud": [True, False],
    }.items(),
)
def test_values_within_the_bounds_pass(name, values):
    for value in values:
        check_range(FIELDS[name], value)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("count", 0, "--count: 0 is out of range; use a number at least 1 and at most 1000000000"),
        ("count", MAX_INT + 1, "--count: 1000000001 is out of range; use a number at least 1 and at most 1000000000"),
        ("few", 11, "-n: 11 is out of range; use a number at most 10"),
        ("share", -1e-9, "--share: -1e-09 is out of range; use a number at least 0 and below 1"),
        ("share", 1.0, "--share: 1.0 is out of range; use a number at least 0 and below 1"),
        ("share", float("nan"), "--share: nan is not a finite number; use one at least 0 and below 1"),
        ("rate", 0.0, "--rate: 0.0 is out of range; use a number above 0"),
        ("rate", float("inf"), "--rate: inf is not a finite number; use one above 0"),
        ("mode", "c", "--mode: 'c' is unknown; choose from a, b"),
        ("mode", "", "--mode: '' is unknown; choose from a, b"),
        ("level", 3, "--level: 3 is unknown; choose from 1, 2000000000"),
    ],
)
def test_values_outside_are_refused_with_flag_value_and_remedy(name, value, message):
    assert refusal(name, value) == message
