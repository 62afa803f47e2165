"""The results of a sweep: means and deviations, the best in bold, published numbers, missing runs, hostile labels."""

import csv
import dataclasses
import json
import math
import re
import statistics
from pathlib import Path

import pytest

from metrics.report import save_evaluation
from options.commands import EvaluateOptions
from pages.summary import Cell, Summary, SummaryTable
from sweeps.grid import Case, Job, Sweep
from sweeps.numbers import Number, read_published
from sweeps.results import to_lines, write_results
from system.program import set_up_log
from tests.helpers.run_folders import write_run

HOSTILE = "a|b <script>alert(1)</script> *x* _y_ `z` [l](u)\n## 猫 \u202e &amp;"


def make_sweep(root: Path, labels=("a", "b"), seeds=(1, 2), published=None, script="vanilla_gan.py", **base) -> Sweep:
    """Return a sweep whose runs do not exist yet."""
    cases = [Case(label=label, published=(published or {}).get(label, {})) for label in labels]
    jobs = [
        Job(case=case, seed=seed, folder=root / "s" / f"{number}-{seed}")
        for number, case in enumerate(cases)
        for seed in seeds
    ]
    return Sweep(
        name="s", script=script, base={"train_iters": 200, "data": str(root), **base}, cases=cases, seeds=list(seeds),
        folder=root / "s", jobs=jobs, evaluate={"features": "pixels"},
    )  # fmt: skip


def finish(
    sweep: Sweep, number: int, metrics: dict[str, float] | None, tasks=("z",), splits=("train",), step=200, **cells
) -> Path:
    """Write the run of a job, and what evaluate.py records about it: these metrics for each task."""
    job = sweep.jobs[number]
    options = {name: value for name, value in sweep.base.items() if name != "train_iters"}
    folder = write_run(job.folder, sweep.script, rows=step // 10, grids=1, seed=job.seed, **options)
    (folder / f"checkpoint-{step:06d}.pt").write_bytes(b"")
    if metrics is not None:
        asked = dataclasses.asdict(EvaluateOptions(run=str(folder), **sweep.evaluate))
        about = {"std": 0.0, "features": "pixels", "resize": "mean", "generated": 10, "reference": 9}
        about |= {"seed": 0, "step": step, "source": "evaluate.py", **cells}
        rows = [
            {**about, "task": task, "split": split, "metric": name, "value": value}
            for task in tasks
            for split in splits
            for name, value in metrics.items()
        ]
        save_evaluation(folder, step, about["features"], asked, rows, {})
    return folder


def read_table(path: Path, title: str = "") -> list[list[str]]:
    """Return the cells of the Markdown table under a title, without the line of dashes."""
    section = path.read_text(encoding="utf-8").partition(f"\n## {title}")[2].partition("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("|")]
    assert all(len(row) == len(rows[0]) for row in rows)
    return [[cell.strip() for cell in row] for row in rows if row[0] != "---"]


@pytest.fixture
def no_page(monkeypatch):
    """No test of the tables needs the page, which takes most of the time."""
    monkeypatch.setattr("sweeps.results.make_page", lambda *_: "")


@pytest.mark.golden
def test_mean_and_deviation():
    """Against the statistics module; the deviation of a population, with n, is the wrong variant."""
    values = {1: 3.0, 2: 5.5, 3: 4.25}
    number = Number(values)
    assert number.mean == statistics.mean(values.values()) == 4.25
    assert number.deviation == pytest.approx(statistics.stdev(values.values())) == pytest.approx(math.sqrt(3.125 / 2))
    assert number.deviation != pytest.approx(statistics.pstdev(values.values()))
    assert str(number) == "4.2 ± 1.2" and str(Number({1: 3.0})) == "3" and Number({1: 3.0}).deviation is None
    assert [str(Number({1: a, 2: b})) for a, b in ((0, 0), (100, 400), (1.191, 1.2))] == [
        "0 ± 0",
        "250 ± 212",
        "1.1955 ± 0.0064",
    ]


def test_the_files_of_a_sweep(tmp_path, capsys):
    """Two settings with two seeds: every file says the same; the best is bold in the direction of the metric."""
    sweep = make_sweep(tmp_path, published={"a": {"FID": 384}, "b": {"FID": 55.5}})
    numbers = [(8.0, 0.5), (9.0, 0.75), (10.0, 1.0), (12.0, 0.75)]
    for number, (fid, recall) in enumerate(numbers):
        metrics = {"FID": fid, "recall": recall, "SSIM between images": fid, "SSIM between real images": 0.25}
        finish(sweep, number, metrics)
    set_up_log()
    written = write_results(sweep)
    names = ["sweep.csv", "sweep.md", "sweep.json", "report.html"]  # no grids: the checkpoints are empty
    assert [path.name for path in written] == names and all(path.stat().st_size for path in written)
    assert read_table(sweep.folder / "sweep.md") == [
        ["setting", "FID ↓", "FID, published", "recall ↑", "SSIM between images"],
        ["a", "**8.50 ± 0.71**", "384", "0.62 ± 0.18", "8.50 ± 0.71"],
        ["b", "11.0 ± 1.4", "55.5", "**0.88 ± 0.18**", "11.0 ± 1.4"],
    ]
    text = (sweep.folder / "sweep.md").read_text(encoding="utf-8")
    for words in ("seeds 1, 2", "200 iterations", "features: pixels", "generated images: 10", "real images: 9"):
        assert words in text
    chance = "A difference that is smaller than the deviations may be chance."
    assert f"\n- {chance}\n" in text
    plain = json.loads((sweep.folder / "sweep.json").read_text())
    a = plain["comparisons"][0]["settings"]["a"]
    assert a["published"] == {"FID": 384} and a["measured"]["FID"]["values"] == {"1": 8.0, "2": 9.0}
    assert a["measured"]["FID"]["deviation"] == statistics.stdev([8.0, 9.0]) and a["measured"]["FID"]["is_best"]
    rows = list(csv.DictReader((sweep.folder / "sweep.csv").open(encoding="utf-8")))
    fids = [(row["case"], row["seed"], float(row["value"])) for row in rows if row["metric"] == "FID"]
    assert fids == [("a", "1", 8.0), ("a", "2", 9.0), ("b", "1", 10.0), ("b", "2", 12.0)]
    page = (sweep.folder / "report.html").read_text(encoding="utf-8")
    assert "<strong>8.50 ± 0.71</strong>" in page and "FID, published" in page and "<h1>s</h1>" in page
    assert chance in page
    printed = capsys.readouterr().out
    assert "8.50 ± 0.71 *" in printed and "11.0 ± 1.4 *" not in printed


def rows_of_runs_with(folder, *options: dict) -> list[dict[str, str]]:
    """Return the rows of sweep.csv for a sweep of two runs with these options."""
    sweep = make_sweep(folder, seeds=(1,))
    for number, own in enumerate(options):
        path = finish(sweep, number, {"recall": 1.0}) / "options.json"
        saved = json.loads(path.read_text())
        path.write_text(json.dumps({**saved, "options": saved["options"] | own}))
    write_results(sweep)
    return list(csv.DictReader((sweep.folder / "sweep.csv").open(encoding="utf-8")))


@pytest.mark.usefixtures("no_page")
def test_an_option_that_is_off_is_a_word_in_the_csv(tmp_path):
    """pandas reads an empty cell as missing, and its groupby drops these rows."""
    rows = rows_of_runs_with(
        tmp_path,
        {"use_diffaug": "", "preset": None, "spectral_norm": False},
        {"use_diffaug": "color", "preset": "hasey", "spectral_norm": True},
    )
    assert [(row["use_diffaug"], row["preset"], row["spectral_norm"]) for row in rows] == [
        ("false", "none", "False"),
        ("color", "hasey", "True"),
    ]


@pytest.mark.usefixtures("no_page")
def test_options_that_differ_are_columns_of_the_csv(tmp_path):
    rows = rows_of_runs_with(tmp_path, {"lr": 0.1, "features": "pixels"}, {"lr": 0.2, "features": "inception"})
    assert [(row["lr"], row["option_features"], row["features"]) for row in rows] == [
        ("0.1", "pixels", "pixels"),
        ("0.2", "inception", "pixels"),
    ]


@pytest.mark.usefixtures("no_page")
def test_runs_without_numbers_are_dashes_with_a_note(tmp_path):
    """Missing, unfinished and unmeasured runs: the others have their numbers."""
    sweep = make_sweep(tmp_path, ["done", "half", "unmeasured", "short", "new"])
    for number, metrics in enumerate([{"FID": 3.0}, {"FID": 4.0}, {"FID": 2.5}, None, None, None]):
        finish(sweep, number, metrics)
    finish(sweep, 6, {"FID": 1.0}, step=100)
    write_results(sweep)
    text = (sweep.folder / "sweep.md").read_text(encoding="utf-8")
    assert [row[1] for row in read_table(sweep.folder / "sweep.md")[1:]] == ["3.50 ± 0.71", "**2.5**", "-", "-", "-"]
    assert "Not trained yet: short (seed 2); new (seeds 1, 2)." in text
    assert "Not finished: short (seed 1)." in text and "Not measured: half (seed 2); unmeasured (seeds 1, 2)." in text


def test_a_sweep_without_any_run(tmp_path):
    sweep = make_sweep(tmp_path, published={"b": {"FID": 55}})
    assert [path.name for path in write_results(sweep)] == ["sweep.csv", "sweep.md", "sweep.json"]
    assert read_table(sweep.folder / "sweep.md") == [["setting", "FID, published"], ["a", "-"], ["b", "55"]]


@pytest.mark.usefixtures("no_page")
def test_numbers_that_cannot_be_compared_are_not_bold(tmp_path):
    sweep = make_sweep(tmp_path, seeds=(1,), published={"a": {"FID": 55}})
    finish(sweep, 0, {"Frechet distance": 1.0})
    finish(sweep, 1, {"Frechet distance": 2.0}, generated=11)
    write_results(sweep)
    text = (sweep.folder / "sweep.md").read_text(encoding="utf-8")
    assert "differ in number of generated images" in text and "**" not in text and "may be chance" not in text
    assert "No run is measured by FID: compare the published numbers only with each other." in text
    assert read_table(sweep.folder / "sweep.md")[1] == ["a", "55", "1"]


@pytest.mark.usefixtures("no_page")
def test_features_in_place_of_inception_are_shown(tmp_path):
    """Without Inception's weights evaluate.py uses other features; the sweep shows these, and says so."""
    sweep = dataclasses.replace(make_sweep(tmp_path, seeds=(1,)), evaluate={})
    finish(sweep, 0, {"Frechet distance": 4.0})
    write_results(sweep)
    assert read_table(sweep.folder / "sweep.md")[1][1] == "4"
    note = "- The weights of the features inception were missing, so evaluate.py used pixels. "
    assert note in (sweep.folder / "sweep.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_page")
def test_directions_of_a_cyclegan(tmp_path):
    published = {"a": {"FID, X to Y": 115, "FID, Y to X": 73}}
    sweep = make_sweep(tmp_path, seeds=(1,), published=published, script="cycle_gan.py")
    finish(sweep, 0, {"FID": 100.0}, tasks=("X2Y", "Y2X"), splits=("train", "test"))
    write_results(sweep)
    titles = re.findall("## (.*)", (sweep.folder / "sweep.md").read_text(encoding="utf-8"))
    ways = ["Translations X to Y against", "Translations Y to X against"]
    assert titles == [f"{way} {split} images" for way in ways for split in ("training", "test")]
    for way, value in (("X to Y", "115"), ("Y to X", "73")):
        title = f"Translations {way} against training images"
        assert read_table(sweep.folder / "sweep.md", title)[1] == ["a", "100", value]
    assert read_published("FID") == ("FID", "z")


@pytest.mark.faults
def test_hostile_labels(tmp_path):
    """A label stays in its cell: in Markdown, on the page, in the CSV file and on a terminal."""
    sweep = make_sweep(tmp_path, [HOSTILE, "b"], seeds=(1,))
    finish(sweep, 0, {"FID": 1.0})
    finish(sweep, 1, {"FID": 2.0})
    write_results(sweep)
    table = read_table(sweep.folder / "sweep.md")
    assert [len(row) for row in table] == [2, 2, 2] and [row[1] for row in table[1:]] == ["**1**", "2"]
    for text in (r"\|b \<script\>", r"\*x\*", r"\_y\_", r"\`z\`", r"\[l\](u)\\n\#\# 猫", r"\\u202e \&amp;"):
        assert text in table[1][0]
    page = (sweep.folder / "report.html").read_text(encoding="utf-8")
    assert page.count("alert(1)") == 1 and "&lt;script&gt;alert(1)" in page and "\u202e" not in page
    rows = list(csv.DictReader((sweep.folder / "sweep.csv").open(encoding="utf-8")))
    assert rows[0]["case"] == HOSTILE.replace("\n", "?") and len(rows) == 2
    assert json.loads((sweep.folder / "sweep.json").read_text())["runs"][0]["setting"] == HOSTILE


def test_a_table_on_a_narrow_terminal():
    rows = [[Cell("a"), Cell("1", True), Cell("2")], [Cell("b"), Cell("3"), Cell("4")]]
    summary = Summary("s", "Words.", [SummaryTable("T", "About.", ["setting", "FID", "recall"], rows)], ["A note."])
    table = ["setting  FID  recall", "a        1 *       2", "b        3         4"]
    assert to_lines(summary, 20) == ["Words.", "", "T. About.", *table, "", "A note."]
    assert to_lines(summary, 19)[3:] == [
        "setting  FID", "a        1 *", "b        3", "(1 more columns are in sweep.md)", "", "A note.",
    ]  # fmt: skip
