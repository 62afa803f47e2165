"""The text of --value_range: which values of images with more than 8 bits become black and white."""

import math
from collections.abc import Sequence

ValueRange = tuple[float, float]  # the values that become 0 and 255


def read_value_ranges(text: str | None, count: int = 1) -> list[ValueRange | None]:
    """Return the range of each of `count` domains, None where it is not given.

    "0,4095" is the range of every domain, "0,4095:-1,1" has one for each, "0,4095:" only the first one.

    Raises:
        ValueError: the text is something else.
    """
    parts = [""] if text is None else text.split(":")
    ranges: list[ValueRange | None] = []
    for part in parts:
        try:
            low, high = map(float, part.split(",")) if part or text == "" else (0.0, 1.0)
        except ValueError:
            low = high = math.nan
        if not (math.isfinite(high - low) and low < high):
            raise ValueError(f"--value_range: {text!r} is not LOW,HIGH with LOW below HIGH; use a range such as 0,4095")
        ranges.append((low, high) if part else None)
    if len(parts) not in (1, count):
        raise ValueError(f"--value_range: {text!r} has {len(parts)} ranges; use {'1 or ' * (count > 1)}{count}")
    return ranges * count if len(parts) == 1 else ranges


def fill_value_ranges(text: str | None, found: Sequence[ValueRange | None]) -> str | None:
    """Return --value_range with the ranges that were found, by domain, where `text` gives none.

    All digits of the numbers are kept. If the text gives all ranges, or none was found, it stays the same.
    """
    given = read_value_ranges(text, len(found))
    ranges = [one or other for one, other in zip(given, found, strict=True)]
    if ranges == given:
        return text
    numbers = [[repr(float(number)).removesuffix(".0") for number in one or ()] for one in ranges]
    return ":".join(",".join(pair) for pair in numbers)
