"""Curves of losses and evaluations: Bokeh figures on linked axes, as JSON for the page."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.models import BasicTickFormatter, ColumnDataSource, HoverTool, Range1d
from bokeh.plotting import figure
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from runs.overview import RunOverview
from utils import printable

MAX_POINTS = 100_000  # of all curves of a page, about 1.1 MB
MAX_LOSS = 1e38  # the page has the curves as float32
MIN_POINTS = 100  # of a curve, however many there are
DASHES = ("solid", "dashed", "dotted")  # for more runs than colors
COLORS = ("#3f7fd6", "#d9662b", "#23937a", "#a656b8", "#a07d0a", "#d1495b", "#5f6fd0", "#5b8c2a")


@dataclass(frozen=True)
class Shown:
    """A run with its name on the page, and the color and the dashes of its curves (an index of DASHES)."""

    run: RunOverview
    name: str
    color: str
    dashes: int
    number: int


@dataclass
class Chart:
    """A figure of the page.

    Attributes:
        id: of the HTML element that it is drawn in.
        title, summary: in words; the summary tells a screen reader what the curves show.
    """

    id: str
    title: str
    summary: str


@dataclass
class Curves:
    """All charts of a page.

    Attributes:
        losses, scores: by script the charts of the losses, and of the evaluations while training.
        is_thinned: whether points of a curve were averaged, to keep the page small.
        documents: for each group of charts the Bokeh document, and its figures: identity -> id of the chart.
    """

    losses: dict[str, list[Chart]] = field(default_factory=dict)
    scores: dict[str, list[Chart]] = field(default_factory=dict)
    is_thinned: bool = False
    documents: list[tuple[Document, dict[str, str]]] = field(default_factory=list)

    def as_json(self) -> Markup:
        """Return the documents as JSON that is safe inside a <script> element."""
        documents = [{"doc": one.to_json(deferred=False), "roots": roots} for one, roots in self.documents]
        return htmlsafe_json_dumps(documents)


def thin(steps: np.ndarray, values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Average neighboring points so that at most `most` remain; each gets the iteration of its last point.

    Args:
        steps, values: (n,), finite.
    """
    size = -(-len(values) // most)
    if size <= 1:
        return steps, values
    starts = np.arange(0, len(values), size)
    ends = np.append(starts[1:], len(values))
    return steps[ends - 1], np.add.reduceat(values, starts) / (ends - starts)


def _make_figure(x_range: Range1d, low: float, high: float) -> Any:
    """Return an empty figure whose colors the page sets, for light and dark."""
    top = high + 0.05 * (high - low) if high > low else low + 1
    chart = figure(
        height=240, sizing_mode="stretch_width", tools="box_zoom", toolbar_location=None, x_range=x_range,
        y_range=Range1d(start=low, end=top), min_border=4, background_fill_color=None, border_fill_color=None,
        outline_line_color=None, x_axis_label="iteration",
    )  # fmt: skip
    chart.xaxis.formatter = BasicTickFormatter(use_scientific=False)
    chart.yaxis.formatter = BasicTickFormatter(power_limit_low=-6)
    return chart


def _add_hover(chart: Any, lines: list[Any]) -> None:
    """Show run, iteration and value of the line at the pointer."""
    tips = [("", "$name"), ("iteration", "@step{0,0}"), ("value", "@y{0.0000}")]
    chart.add_tools(HoverTool(renderers=lines, tooltips=tips, line_policy="nearest"))


def _finite(run: RunOverview, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return iterations and values of a loss, without missing and infinite values."""
    values = run.losses.get(name, np.empty(0))
    known = np.abs(values) < MAX_LOSS
    return (run.losses["step"][known], values[known]) if len(values) else (values, values)


def _draw_loss(chart: Any, name: str, runs: Sequence[Shown], most: int) -> bool:
    """Draw a loss of several runs, raw and smoothed; return whether points were averaged.

    The page computes the smoothed curve from the raw one, whose identity is in the tags.
    """
    lines, is_thinned = [], False
    for one in runs:
        steps, values = thin(*_finite(one.run, name), most)
        is_thinned |= len(values) < len(_finite(one.run, name)[1])
        raw = ColumnDataSource({"step": steps.astype("i4"), "y": values.astype("f4")})
        style = dict(line_color=one.color, line_dash=DASHES[one.dashes], name=one.name)
        if name == "lr":
            lines.append(chart.line("step", "y", source=raw, line_width=2, **style))
            continue
        smooth = ColumnDataSource({"step": [], "y": []}, tags=["smooth", raw.id])
        chart.line("step", "y", source=raw, line_alpha=0.28, line_width=1, **style)
        lines.append(chart.line("step", "y", source=smooth, line_width=2, **style))
    _add_hover(chart, lines)
    return is_thinned


def _draw_losses(curves: Curves, script: str, runs: Sequence[Shown], most: int) -> None:
    """Add a chart for each loss of the runs of a script, on one axis of iterations."""
    names = list(dict.fromkeys(name for one in runs for name in one.run.losses if name != "step"))
    rates = {rate for one in runs for rate in _finite(one.run, "lr")[1]}
    names = [name for name in names if name != "lr"] + ["lr"] * (len(rates) > 1)  # a constant rate is not a curve
    last_step = max(float(one.run.losses["step"][-1]) for one in runs if one.run.losses)
    x_range = Range1d(start=0, end=last_step)
    document, roots = Document(), {}
    charts = curves.losses.setdefault(script, [])
    for i, name in enumerate(names):
        shown = [one for one in runs if len(_finite(one.run, name)[1])]
        if not shown:
            continue
        low, high = np.transpose([np.quantile(_finite(one.run, name)[1], (0.01, 0.99)) for one in shown])
        chart = _make_figure(x_range, min(0.0, low.min()), high.max())  # a few early spikes are cut off
        curves.is_thinned |= _draw_loss(chart, name, shown, most)
        ends = "; ".join(f"{one.name} {_finite(one.run, name)[1][-1]:.4g}" for one in shown)
        title = "learning rate" if name == "lr" else printable(name.replace("_", " "))
        summary = f"Curves of {title} over the iterations. Last values: {ends}."
        charts.append(Chart(f"loss-{len(curves.documents)}-{i}", title, summary))
        document.add_root(chart)
        roots[chart.id] = charts[-1].id
    curves.documents.append((document, roots))


def _draw_scores(curves: Curves, script: str, runs: Sequence[Shown]) -> None:
    """Add a chart for each metric by which the runs of a script evaluate themselves, with a star at each best."""
    document, roots = Document(), {}
    charts = curves.scores.setdefault(script, [])
    x_range = Range1d(start=0, end=1.03 * max(max(one.run.scores) for one in runs))
    for i, title in enumerate(dict.fromkeys(one.run.score_name for one in runs)):
        shown = [one for one in runs if one.run.score_name == title]
        means = [mean_scores(one.run) for one in shown]
        values = [value for scores in means for value in scores.values()]
        chart = _make_figure(x_range, min(0.0, *values), max(values))
        dots, parts = [], []
        for one, scores in zip(shown, means, strict=True):
            source = ColumnDataSource({"step": list(scores), "y": list(scores.values())})
            style = dict(line_color=one.color, line_dash=DASHES[one.dashes], line_width=2)
            chart.line("step", "y", source=source, name=one.name, **style)
            dots.append(chart.scatter("step", "y", source=source, color=one.color, size=6, name=one.name))
            best = min(scores, key=lambda step: scores[step])
            chart.scatter([best], [scores[best]], marker="star", size=18, color=one.color, name=one.name)
            parts.append(f"{one.name}: {scores[best]:.4g} at iteration {best}")
        _add_hover(chart, dots)
        summary = f"Best evaluation of each run, by {title}, where less is better: {'; '.join(parts)}."
        charts.append(Chart(f"score-{len(curves.documents)}-{i}", printable(title), printable(summary)))
        document.add_root(chart)
        roots[chart.id] = charts[-1].id
    curves.documents.append((document, roots))


def mean_scores(run: RunOverview) -> dict[int, float]:
    """Return the evaluations while training, iteration -> mean over the tasks, the first iteration first."""
    return {step: statistics.mean(of_step.values()) for step, of_step in sorted(run.scores.items())}


def draw_curves(runs: Sequence[Shown]) -> Curves:
    """Return the charts of the losses and of the evaluations while training, for each script on one axis."""
    curves = Curves()
    count = sum(len(one.run.losses) for one in runs)
    for script in dict.fromkeys(one.run.script for one in runs if one.run.losses):
        of_script = [one for one in runs if one.run.script == script]
        _draw_losses(curves, script, of_script, max(MIN_POINTS, MAX_POINTS // count))
    for script in dict.fromkeys(one.run.script for one in runs if one.run.scores):
        _draw_scores(curves, script, [one for one in runs if one.run.script == script and one.run.scores])
    return curves
