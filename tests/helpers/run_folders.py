"""Run folders made by writing their files, for tests of what reads them: long runs, stopped ones, hostile names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runs.tables import append_metrics
from tests.conftest import OPTIONS
from utils import printable

TIME = "2026-01-02T03:04:05+00:00"


def work_beside(runs: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `folder` the current folder, with links to the run folders in `runs`."""
    monkeypatch.chdir(folder)
    for run in runs.glob("*/options.json"):
        (folder / run.parent.name).symlink_to(run.parent)


def write_run(
    folder: Path,
    script: str = "vanilla_gan.py",
    rows: int = 20,
    grids: int = 3,
    end: str = "Finished {total} iterations: {folder}",
    size: int = 70,
    columns: tuple[str, ...] = ("D_total", "G"),
    **options: Any,
) -> Path:
    """Write the folder of a run with a row of losses.csv every 10 iterations; return the folder.

    Args:
        end: the last line of log.txt; "" for none.
        size: of the grids, in pixels.
        options: those that differ from their default.
    """
    total = 10 * rows
    (folder / "samples").mkdir(parents=True)
    values = OPTIONS[script](train_iters=total, **options).to_dict()
    (folder / "options.json").write_text(json.dumps({"script": script, "samples": "samples", "options": values}))
    session = {"started": TIME, "command": ["/bin/python", script, "--name", folder.name], "device": "cpu"}
    (folder / "environment.json").write_text(json.dumps([session | {"precision": "float32", "threads": 2}]))
    domains = ("images",) if script == "vanilla_gan.py" else ("X", "Y")
    data = {name: {"train": {"1.png": 100}, "test": [], "skipped": {}} for name in domains}
    (folder / "data.json").write_text(json.dumps(data))
    log = [f"Training to iteration {total} in {folder}", f"20/{total}, G 1.0,  12.50 it/s, 00:10 left"]
    log.append(end.format(total=total, folder=folder))
    (folder / "log.txt").write_text("\n".join(map(printable, "\n".join(log).split("\n"))) + "\n")
    rng = np.random.default_rng(rows)
    lines = [",".join(["step", *columns, "lr"])]
    for i in range(rows):
        lines.append(",".join([str(10 * i + 10), *(f"{x:.6g}" for x in 1 + rng.random(len(columns))), "0.0005"]))
    (folder / "losses.csv").write_text("\n".join(lines) + "\n")
    for i in range(grids):
        pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((size, size))
        for way in ("",) if script == "vanilla_gan.py" else ("-X-Y", "-Y-X"):
            picture.save(folder / "samples" / f"sample-{i * total // max(grids - 1, 1):06d}{way}.png")
    return folder


def write_metrics(folder: Path, step: int, value: float, source: str = "evaluate.py", **cells: Any) -> None:
    """Add a Frechet distance and a recall of the same value to metrics.csv of a run."""
    about = {"task": "z", "split": "train", "std": 0.0, "features": "pixels", "resize": "mean", "generated": 10}
    about |= {"step": step, "source": source, "reference": 10, "seed": 0, **cells}
    append_metrics(folder, [{**about, "metric": name, "value": value} for name in ("Frechet distance", "recall")])
