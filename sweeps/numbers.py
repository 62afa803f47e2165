"""The numbers of a sweep: what evaluate.py measured of each run, and mean and deviation over the seeds of a setting."""

import dataclasses
import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pages.comparison import best_of, compare_metrics, title_of
from pages.curves import Shown
from sweeps.grid import Job, Sweep, find_evaluation, job_state


@dataclass(frozen=True)
class Number:
    """A metric of a setting.

    Attributes:
        values: seed of the training -> value; at least one.
        is_best: whether its mean is the best of all settings.
    """

    values: dict[int, float]
    is_best: bool = False

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.mean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation over the seeds, with n - 1; None for one seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    def __str__(self) -> str:
        if not self.deviation:
            return f"{self.mean:.4g}" + ("" if self.deviation is None else " ± 0")
        decimals = min(6, max(0, 1 - math.floor(math.log10(self.deviation))))  # two digits of the deviation
        return f"{self.mean:.{decimals}f} ± {self.deviation:.{decimals}f}"


@dataclass
class Comparison:
    """The settings of a sweep, measured against one kind of real images.

    Attributes:
        task: "z" for samples, "X2Y" or "Y2X" for translations.
        split: the real images: "train", "test", or the path of other images.
        shared: what all runs were measured with, in words; "" if no run was measured.
        differences: in what the measurements differ, in words; the numbers are comparable if it is empty.
        metrics: the measured ones, those with a best value first.
        numbers: label of the setting -> metric -> number.
        published: label of the setting -> metric -> published number.
    """

    task: str
    split: str
    shared: str = ""
    differences: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    numbers: dict[str, dict[str, Number]] = field(default_factory=dict)
    published: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What is compared with what, such as "Samples against training images"."""
        return title_of(self.task, self.split)


@dataclass(frozen=True)
class Measured:
    """A run of a sweep.

    Attributes:
        state: "missing", "unfinished", "unmeasured" or "done".
        step: iterations of the checkpoint that was measured; None for a run that is not done.
        rows: as in metrics.csv, one for each metric whose value is a number.
    """

    job: Job
    state: str
    step: int | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)


def read_measurements(sweep: Sweep) -> list[Measured]:
    """Return the runs of a sweep in their order; those that are finished and measured have rows."""
    found = []
    for job in sweep.jobs:
        state = job_state(sweep, job)
        evaluation = find_evaluation(sweep, job) if state in ("unmeasured", "done") else None
        if evaluation is None:
            found.append(Measured(job, state))
            continue
        # The state may be "unmeasured": the run was measured in other features, whose place the right ones can take.
        rows = [row for row in evaluation["rows"] if math.isfinite(row["value"])]
        found.append(Measured(job, "done", evaluation["step"], rows))
    return found


def compare_settings(sweep: Sweep, measured: list[Measured], shown: Mapping[Path, Shown]) -> list[Comparison]:
    """Return the comparisons of a sweep, one for each task and each kind of real images.

    Args:
        shown: the run folders that exist, by path.
    """
    by_number = {shown[one.job.folder].number: one for one in measured if one.rows}
    runs = []
    for own in by_number.values():
        of_run = shown[own.job.folder]
        rows = [{key: str(value) for key, value in row.items()} for row in own.rows]
        runs.append(dataclasses.replace(of_run, run=dataclasses.replace(of_run.run, metrics=rows)))
    found: dict[tuple[str, str], Comparison] = {}
    for table in compare_metrics(runs):
        values: dict[str, dict[str, dict[int, float]]] = {}
        for row in table.rows:
            job = by_number[row.shown.number].job
            for metric, (value, _) in row.values.items():
                values.setdefault(job.case.label, {}).setdefault(metric, {})[job.seed] = value
        one = Comparison(table.task, table.split, table.shared, list(table.differences.values()), table.metrics)
        for label, by_metric in values.items():
            one.numbers[label] = {metric: Number(by_seed) for metric, by_seed in by_metric.items()}
        if not one.differences:
            mark_best(one)
        found[one.task, one.split] = one
    for case in sweep.cases:
        for name, value in case.published.items():
            metric, task = read_published(name)
            one = found.setdefault((task, "train"), Comparison(task, "train"))
            one.published.setdefault(case.label, {})[metric] = value
    return [found[key] for key in sorted(found, key=lambda key: (key[0], key[1] != "train", key[1]))]


def read_published(name: str) -> tuple[str, str]:
    """Return metric and task of a published number: "FID" -> ("FID", "z"), "FID, X to Y" -> ("FID", "X2Y")."""
    match = re.fullmatch(r"(.+), ([XY]) to ([XY])", name)
    return (match[1], f"{match[2]}2{match[3]}") if match else (name, "z")


def mark_best(comparison: Comparison) -> None:
    """Mark the best mean of each metric, or several equal ones; none if all are equal or only one has a value."""
    for metric in comparison.metrics:
        choose = best_of(metric)
        means = {label: own[metric].mean for label, own in comparison.numbers.items() if metric in own}
        leaders = [label for label, mean in means.items() if choose and mean == choose(means.values())]
        for label in leaders if len(leaders) < len(means) else ():
            own = comparison.numbers[label]
            own[metric] = dataclasses.replace(own[metric], is_best=True)
