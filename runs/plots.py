"""losses.png: curves of the losses, and of the evaluations while training."""

import gc
import io
import statistics
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from system.files import write_bytes
from utils import import_matplotlib

Rows = list[dict[str, float]]


def smooth(values: np.ndarray) -> np.ndarray:
    """Return the centered moving average over a tenth of a curve; shorter windows at its ends. Few values stay."""
    width = len(values) // 20 * 2 + 1
    kernel = np.ones(min(width, 2 * len(values) - 1))
    half = len(kernel) // 2
    return (np.convolve(values, kernel) / np.convolve(np.ones_like(values), kernel))[half : half + len(values)]


def _finish(axes: Any, title: str, low: float, high: float) -> None:
    """Set title, legend, grid and limits of a panel: from `low` (at most 0) to a little above `high`."""
    axes.set(xlabel="iteration", title=title, ylim=(low, 1.1 * high if high > low else None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def _draw_panel(axes: Any, rows: Rows, title: str, names: list[str]) -> None:
    """Draw losses: raw values faint, smoothed ones strong."""
    low, high = 0.0, 0.0
    for i, name in enumerate(names):
        steps, values = zip(*((row["step"], row[name]) for row in rows if name in row), strict=True)
        smoothed = smooth(np.array(values))
        marker = "." if len(values) == 1 else None  # a line of one point is invisible
        axes.plot(steps, values, color=f"C{i}", alpha=0.25, linewidth=0.8)
        axes.plot(steps, smoothed, color=f"C{i}", marker=marker, linewidth=2, label=name.replace("_", " "))
        low = min(low, *values)
        high = max(high, float(np.quantile(values, 0.99)), float(smoothed.max()))  # a few early spikes are cut off
    axes.set_ylabel("loss")
    _finish(axes, title, low, high)


def _draw_scores(axes: Any, title: str, scores: dict[int, dict[str, float]]) -> None:
    """Draw the evaluations while training, step -> task -> value, and mark the best."""
    tasks = list(scores[max(scores)])
    for task in tasks:
        points = [(step, values[task]) for step, values in sorted(scores.items()) if task in values]
        axes.plot(*zip(*points, strict=True), marker=".", label=task if len(tasks) > 1 else "samples")
    best = min(scores, key=lambda step: statistics.mean(scores[step].values()))
    axes.axvline(best, color="black", alpha=0.4, linestyle=":", label=f"best: {best}")
    values = [value for of_step in scores.values() for value in of_step.values()]
    _finish(axes, title, min(0.0, *values), max(values))


def draw_losses(
    rows: Rows,
    panels: dict[str, list[str]],
    title: str,
    score_name: str = "",
    scores: dict[int, dict[str, float]] | None = None,
) -> Any:
    """Return a matplotlib figure of the rows of losses.csv.

    Args:
        panels: title of each panel -> the losses that it shows, as far as the rows have them.
        score_name, scores: evaluations, step -> task -> value, for a panel of their own.
    """
    import_matplotlib()
    from matplotlib.figure import Figure  # here, because its import takes a while

    known = {name for row in rows for name in row}
    shown = {panel: [name for name in names if name in known] for panel, names in panels.items()}
    shown = {panel: names for panel, names in shown.items() if names}
    count = len(shown) + bool(scores)
    height = 0.6 + 4.2 * count  # inches
    figure = Figure(figsize=(9, height))
    # Fixed margins, with room for the legends: fitting them to the text takes as long as the drawing itself.
    figure.subplots_adjust(left=0.08, right=0.8, top=1 - 0.7 / height, bottom=0.5 / height, hspace=0.25)
    figure.suptitle(title, fontsize=11, y=1 - 0.15 / height, parse_math=False)
    subplots = list(figure.subplots(count, squeeze=False)[:, 0])
    for axes, (panel, names) in zip(subplots, shown.items(), strict=False):
        _draw_panel(axes, rows, panel, names)
    if scores:
        _draw_scores(subplots[-1], score_name, scores)
        subplots[-1].set_xlim(subplots[0].get_xlim())
    return figure


def save_losses(path: Path, *arguments: Any) -> None:
    """Draw the losses with `draw_losses(*arguments)`, and write the figure to a PNG file."""
    import_matplotlib()
    import matplotlib

    drawn, is_collecting = io.BytesIO(), gc.isenabled()
    gc.disable()  # so that all objects of the figure are young, and only those are searched below
    try:
        with warnings.catch_warnings(), matplotlib.rc_context():
            warnings.filterwarnings("ignore", "Glyph")  # the font may lack letters of the run's name
            matplotlib.rcdefaults()  # the user's settings may need LaTeX, for example
            draw_losses(*arguments).savefig(drawn, format="png", dpi=100)
    finally:
        gc.collect(0)  # a figure is full of reference cycles; dozens of them take megabytes each until Python looks
        if is_collecting:
            gc.enable()
    write_bytes(path, drawn.getvalue())
