"""Tables that compare runs: the options in which they differ, and the measurements with the best in bold."""

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pages.curves import Shown
from runs.open_run import LOCATION_OPTIONS
from utils import printable

# The beginning of a metric's name -> which value is best. Others have no best value, such as the SSIM between images.
BETTER = {
    "KID": min, "kernel distance": min, "FID": min, "MiFID": min, "Frechet distance": min, "L1": min,
    "precision": max, "recall": max, "coverage": max, "SSIM with": max,
}  # fmt: skip
NOT_COMPARED = LOCATION_OPTIONS | {"sample_dir"}  # options that say where a run is
# What two measurements must share to be compared, in words for the user.
PROTOCOL = {
    "images": "real images", "size": "image size", "features": "features", "resize": "resizing",
    "generated": "number of generated images", "reference": "number of real images", "seed": "seed",
}  # fmt: skip


def format_option(value: Any) -> str:
    """Return the value of an option as text: on, off, a dash for none."""
    if value in (None, ""):
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    return printable(value if isinstance(value, str) else json.dumps(value))


def compare_options(runs: Sequence[Shown]) -> tuple[list[tuple[str, list[str]]], list[tuple[str, list[str]]]]:
    """Return the options of runs of one script, (name, value of each run): those in which they differ, and the others.

    The options that say where a run is are left out.
    """
    names = dict.fromkeys(name for one in runs for name in one.run.options if name not in NOT_COMPARED)
    missing = object()
    differing: list[tuple[str, list[str]]] = []
    equal: list[tuple[str, list[str]]] = []
    for name in names:
        values = [one.run.options.get(name, missing) for one in runs]
        shown = ["not recorded" if value is missing else format_option(value) for value in values]
        is_equal = all(type(value) is type(values[0]) and value == values[0] for value in values)
        (equal if is_equal else differing).append((printable(name), shown))
    return differing, equal


def best_of(metric: str) -> Any:
    """Return min or max, which of several values of a metric is best; None for a metric without a best value."""
    if "untranslated" in metric:
        return None
    return next((choose for start, choose in BETTER.items() if metric.startswith(start)), None)


@dataclass
class Row:
    """The numbers of one evaluation.

    Attributes:
        values: metric -> (value, deviation).
        protocol: what it was measured on and with; keys as in PROTOCOL.
        group: letter of the rows that can be compared with it.
        is_alone: no other row can be compared with it.
        best: the metrics in which it is the best of its group.
    """

    shown: Shown
    step: int
    source: str
    protocol: dict[str, str]
    values: dict[str, tuple[float, float]] = field(default_factory=dict)
    group: str = ""
    is_alone: bool = False
    best: set[str] = field(default_factory=set)


@dataclass
class Table:
    """The evaluations of one kind of generated images against one kind of real images.

    Attributes:
        task: "z" for samples, "X2Y" or "Y2X" for translations.
        split: the real images: "train", "test", or the path of other images.
        differences: the parts of the protocol in which its rows differ, key -> words; empty if all are comparable.
        shared: the other parts and their values, in words.
    """

    task: str
    split: str
    title: str
    metrics: list[str]
    rows: list[Row]
    differences: dict[str, str]
    shared: str


def title_of(task: str, split: str) -> str:
    """Return what is compared with what, such as "Samples against training images"."""
    against = {"train": "training images", "test": "test images"}.get(split, f"images of {printable(split)}")
    made = f"Translations {task[0]} to {task[-1]}" if "2" in task else "Samples"
    return f"{made} against {against}"


def _read_rows(shown: Shown) -> dict[tuple[str, str], dict[tuple, Row]]:
    """Return the evaluations of a run by (task, split): all of evaluate.py, and the best and newest while training."""
    run = shown.run
    kept_steps = {run.best_step, max(run.scores, default=None)}
    found: dict[tuple[str, str], dict[tuple, Row]] = {}
    for cells in run.metrics:
        step = int(cells["step"])
        if cells["source"] == "training" and step not in kept_steps:
            continue
        # The split is "train", "test", or the path of other images.
        images = cells["split"] if cells["split"] not in ("train", "test") else run.images or f"of {run.folder}"
        protocol = {name: cells[name] for name in ("features", "resize", "generated", "reference", "seed")}
        if protocol["features"] == "imagenet" and run.options.get("lambda_features"):
            protocol["features"] = "imagenet, which trained G"
        protocol |= {"images": images, "size": str(run.options.get("image_size"))}
        source = "while training" if cells["source"] == "training" else cells["source"]
        rows = found.setdefault((cells["task"], cells["split"]), {})
        row = rows.setdefault((step, *protocol.values()), Row(shown, step, source, protocol))
        row.source = source
        try:
            row.values[cells["metric"]] = float(cells["value"]), float(cells["std"] or 0)
        except ValueError:
            row.values[cells["metric"]] = float(cells["value"]), 0.0
    return found


def _mark(rows: list[Row], metrics: list[str]) -> dict[str, str]:
    """Give every row its group and its best metrics; return the parts of the protocol in which the rows differ."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.protocol[name] for name in PROTOCOL), []).append(row)
    for number, members in enumerate(groups.values()):
        letter = string.ascii_uppercase[number % 26] + (str(number // 26) if number >= 26 else "")
        for row in members:
            row.group, row.is_alone = letter, len(members) == 1
        for metric in metrics:
            choose = best_of(metric)
            having = [row for row in members if metric in row.values]
            if choose is not None and having:
                best = choose(row.values[metric][0] for row in having)
                leaders = [row for row in having if row.values[metric][0] == best]
                for row in leaders if len(leaders) < len(having) else ():
                    row.best.add(metric)
    return {name: words for name, words in PROTOCOL.items() if len({row.protocol[name] for row in rows}) > 1}


def compare_metrics(runs: Sequence[Shown]) -> list[Table]:
    """Return the measurements of runs of one script, a table for each task and each kind of real images."""
    found: dict[tuple[str, str], list[Row]] = {}
    for one in runs:
        for key, own in _read_rows(one).items():
            found.setdefault(key, []).extend(own.values())
    tables = []
    for (task, split), rows in sorted(found.items()):
        metrics = list(dict.fromkeys(metric for row in rows for metric in row.values))
        metrics.sort(key=lambda metric: best_of(metric) is None)
        differences = _mark(rows, metrics)
        equal = {name: rows[0].protocol[name] for name in PROTOCOL if name not in differences and name != "images"}
        shared = "; ".join(f"{PROTOCOL[name]}: {printable(value)}" for name, value in equal.items() if value)
        tables.append(Table(task, split, title_of(task, split), metrics, rows, differences, shared))
    return tables
