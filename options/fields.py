"""The declaration of an option, and the checks of its value that follow from the declaration."""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

DEVICES = ("auto", "cuda", "mps", "cpu")
DIFFAUGMENT_ALL = "color,translation,cutout"
IMAGE_SIZES = (32, 64, 128, 256)
NOISE_PARTS = {32: 4, 64: 5, 128: 6, 256: 12}  # of --split_noise, with --fine_channels one more
MAX_INT = 10**9  # largest whole number of an option without another limit: above it, sizes overflow


def option(
    default: Any,
    help: str,
    group: str | None = None,
    *,
    choices: Sequence | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    resumable: bool = False,
    aliases: Sequence[str] = (),
    const: str | None = None,
    metavar: str | None = None,
    needs: str | None = None,
    is_path: bool = False,
    keeps_absolute: bool = False,
    flag: str | None = None,
    positional: bool = False,
    required: bool = False,
    read: Callable[[str], Any] | None = None,
    repeats: bool = False,
    several: bool = False,
) -> Any:
    """Declare one option, as a field of an options class.

    Args:
        default: the value if the command line does not give one.
        help: the text of `--help`.
        group: the heading in `--help`; None: the one that argparse chooses.
        choices, at_least, above, at_most, below: the allowed values.
        resumable: the option may change when a run is resumed, because the iterations of the run stay the same.
        aliases: other flags for the same option.
        const: the value of the flag when it is given without an argument.
        metavar: the name of the argument in `--help`.
        needs: name of another option; without that one, this option does nothing.
        is_path: the value may be a file or folder, so the command line replaces a leading `~` (see `expand_home`).
        keeps_absolute: a file or folder that a run reads again later, so the run records its absolute path.
        flag: the flag, if it is not two dashes and the name.
        positional: the option has no flag, only a place on the command line.
        required: the command line must give the option.
        read: function from the argument to the value, if the field's type cannot convert it; raises ValueError.
        repeats: the option may be given several times; the value is the list of all.
        several: the option takes one or more values; the value is the list of all.
    """
    metadata = {name: value for name, value in locals().items() if name != "default"}
    return dataclasses.field(default=default, metadata=metadata)


def option_fields(cls: type) -> list[dataclasses.Field]:
    """Return the fields of a class that were declared by `option`."""
    return [field for field in dataclasses.fields(cls) if field.metadata]


def flag_of(field: dataclasses.Field) -> str:
    """Return how messages refer to an option: its flag, such as --lr, or of a positional one its metavar, RUN."""
    if field.metadata["positional"]:
        return field.metadata["metavar"]
    return field.metadata["flag"] or f"--{field.name}"


def expand_home(path: str) -> str:
    """Return a path of the command line with the home folder instead of a leading `~` or `~user`.

    The home of an unknown user stays as it is. A folder that is really called `~` can be given as `./~`: its absolute
    path is returned, because pathlib shortens `./~` to `~`.
    """
    return os.path.abspath(path) if path.startswith("./~") else os.path.expanduser(path)


def check_range(field: dataclasses.Field, value: Any) -> None:
    """Raise ValueError if a value is not among the choices of its field or not within its bounds."""
    limits = field.metadata
    if value is None:
        return
    if limits["choices"] is not None and value not in limits["choices"]:
        choices = ", ".join(map(str, limits["choices"]))
        raise ValueError(f"{flag_of(field)}: {value!r} is unknown; choose from {choices}")
    at_most = limits["at_most"]
    if isinstance(value, int) and at_most is None and limits["choices"] is None:
        at_most = MAX_INT
    bounds = [
        ("at least", limits["at_least"], lambda bound: value >= bound),
        ("above", limits["above"], lambda bound: value > bound),
        ("at most", at_most, lambda bound: value <= bound),
        ("below", limits["below"], lambda bound: value < bound),
    ]
    stated = " and ".join(f"{words} {bound}" for words, bound, _ in bounds if bound is not None)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{flag_of(field)}: {value} is not a finite number; use one {stated}")
    if not all(holds(bound) for _, bound, holds in bounds if bound is not None):
        raise ValueError(f"{flag_of(field)}: {value} is out of range; use a number {stated}")
