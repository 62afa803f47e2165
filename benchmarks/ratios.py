"""What the benchmarks that measure two things in turn print about them."""

import statistics
from collections.abc import Sequence


def summarize(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, str]:
    """Return the medians of both, and a text: the median ratio second / first, and the ratio of each pair."""
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [pair[1] / pair[0] for pair in pairs]
    return first, second, f"{statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"
