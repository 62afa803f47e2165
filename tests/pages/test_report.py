"""The page as HTML: what it says about runs, hostile text, runs with missing parts, its size."""

import itertools
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pages.cards import commands_for, describe_command
from pages.pictures import PictureEncoder
from pages.report import make_page, read_runs
from runs.overview import read_overview
from tests.helpers.run_folders import write_metrics, write_run


class Page(HTMLParser):
    """The elements of a page, (name, attributes), and its texts."""

    def __init__(self, *folders: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.source = make_page(*read_runs(folders), PictureEncoder())
        self.feed(self.source)
        self.close()
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text += data + " "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_what_the_page_says(tmp_path):
    first, second = write_run(tmp_path / "first", lr=0.001), write_run(tmp_path / "second", end="")
    with open(first / "log.txt", "a") as file:
        file.write("Warning: iteration 200: mode collapse; try --use_diffaug\nWarning: once\nWarning: once\n")
    write_metrics(first, 200, 0.25)
    page = Page(first, second)
    for words in (
        "200 of 200 iterations", "12.5 iterations per second", "cpu, float32, 2 threads", "2026-01-02 03:04",
        "finished", "failed", "it was killed", "mode collapse; try --use_diffaug", "Options in which the runs differ:",
        "0.001", "0.25", "No run was evaluated while it trained", "evaluate.py draws them",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.text.count("once") == 1
    texts = [image["alt"] for image in page.all("img")]
    assert "Samples of first, at iteration 100" in texts and len(texts) == 6 and all(texts)
    assert [image.get("hidden", "shown") for image in page.all("img")][:3] == [None, None, "shown"]


def test_every_control_and_table_has_a_name(tmp_path):
    write_metrics(write_run(tmp_path / "a"), 200, 0.25)
    page = Page(tmp_path / "a")
    labelled = {label.get("for") for label in page.all("label")}
    ranges = [one for one in page.all("input") if one["type"] == "range"]
    assert len(ranges) == 2 and all(one["id"] in labelled and one["aria-valuetext"] for one in ranges)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) and page.all("html") == [{"lang": "en"}]
    assert all(section["aria-labelledby"] in ids for section in page.all("section"))
    assert {link["href"][1:] for link in page.all("a")} <= set(ids)
    plots = [one for one in page.all("div") if one.get("class") == "plot"]
    assert plots and all(one["role"] == "img" and "Last values: a 1." in one["aria-label"] for one in plots)
    assert len(page.all("caption")) == len(page.all("table")) >= 2


@pytest.mark.parametrize("scripts", [["vanilla_gan.py"], ["vanilla_gan.py", "cycle_gan.py"]])
def test_no_level_of_headings_is_skipped(scripts, tmp_path):
    page = Page(*(write_run(tmp_path / script, script, rows=0) for script in scripts))
    levels = [int(name[1]) for name, _ in page.elements if name in ("h1", "h2", "h3", "h4", "h5")]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert max(levels) == 3 + len(scripts)


HOSTILE = (
    "</script><script>alert(1)</script><!-- \u2028 <img src=x onerror=alert(1)> {{ 1234*5678 }} \" ' & \u202e \x1b[2J"
)


@pytest.mark.faults
def test_hostile_text_is_harmless(tmp_path):
    """In the name of a run, options, log, columns, metrics and the record of the session."""
    folder = write_run(tmp_path / HOSTILE.replace("/", "_"), name=None, data=HOSTILE, columns=("G", HOSTILE))
    other = write_run(tmp_path / "b")
    with open(folder / "log.txt", "a", encoding="utf-8") as file:
        file.write(f"Warning: {HOSTILE}\n")
    session = {"started": HOSTILE, "command": ["python", HOSTILE], "device": HOSTILE, "precision": [HOSTILE]}
    (folder / "environment.json").write_text(json.dumps([session]))
    write_metrics(folder, 200, 0.25, features=HOSTILE, split=HOSTILE, resize=HOSTILE)
    write_metrics(folder, 100, 0.25, "training", features=HOSTILE)
    page, plain = Page(folder, other), Page(write_run(tmp_path / "c"), other)
    assert len(page.all("script")) == len(plain.all("script")) == 3
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("src", "data:").startswith("data:")
    assert not {"\u2028", "\u202e", "\x1b"} & set(page.source)
    assert str(1234 * 5678) not in page.text and "alert(1)" in page.text  # shown as text
    curves = page.source.split('id="curves">')[1].split("</script>")[0]
    assert len(json.loads(curves)) == 2 and "<" not in curves


@pytest.mark.faults
def test_a_name_that_is_not_valid_text(tmp_path):
    write_run(tmp_path / "a\udcff")
    source = make_page(*read_runs([tmp_path / "a\udcff"]), PictureEncoder())
    assert "a\\udcff" in source and source.encode()


def test_runs_of_both_scripts_are_two_parts(tmp_path):
    folders = [write_run(tmp_path / "a", "cycle_gan.py", columns=("cycle",)), write_run(tmp_path / "b", lr=0.1)]
    page = Page(*folders)
    titles = page.text.count("DCGAN"), page.text.count("CycleGAN")
    assert min(titles) >= 4  # in each section with a table, charts or grids
    assert "Input, translation, translation back of a, X to Y, at iteration 200" in [i["alt"] for i in page.all("img")]
    assert len([one for one in page.all("input") if one.get("id") == "step"]) == 1  # one slider for all
    assert "options in which" not in page.text  # options of two scripts are not compared
    assert "--direction X2Y" in page.text and "generate.py sample" in page.text


@pytest.mark.faults
def test_missing_and_damaged_parts_are_named_and_the_rest_is_shown(tmp_path):
    bare, good = write_run(tmp_path / "bare", rows=0, grids=0), write_run(tmp_path / "good")
    (good / "samples/sample-000100.png").write_bytes(b"no picture")
    (good / "environment.json").write_text("[{")
    page = Page(bare, good)
    for words in ("losses.csv has no rows yet", "has no grids", "sample-000100.png cannot be read as a picture"):
        assert words in page.text
    assert "environment.json is damaged" in page.text and len(page.all("img")) == 2
    alone = Page(bare)
    assert "There are no losses yet." in alone.text and "There are no grids yet." in alone.text


def test_size_of_the_page(tmp_path):
    """3 runs of 2,000 rows: at most 3 MB beside the pictures."""
    names = ("D_real", "D_fake", "D_total", "G", "R1", "R2")
    folders = [write_run(tmp_path / name, rows=2000, grids=0, columns=names) for name in "abc"]
    assert 1_300_000 < len(make_page(*read_runs(folders), PictureEncoder())) < 3_000_000


def test_runs_are_shown_once_and_have_different_names(tmp_path):
    first, second = write_run(tmp_path / "x/a"), write_run(tmp_path / "y/a")
    runs, left_out = read_runs([first, second, second / "../a", tmp_path])
    assert [one.name for one in runs] == [str(first), str(second)] and len(left_out) == 1
    assert len({one.color for one in runs}) == 2


def test_more_runs_than_colors_have_other_dashes(tmp_path):
    runs = read_runs([write_run(tmp_path / str(i), rows=1, grids=0) for i in range(20)])[0]
    assert len({(one.color, one.dashes) for one in runs}) == 20 and runs[0].dashes == 0


@pytest.mark.parametrize(
    "end, options, what",
    [
        ("", {}, {"Resume": "python vanilla_gan.py --resume {}"}),
        ("Finished 200 iterations: x", {}, {"Train longer": "python vanilla_gan.py --resume {} --train_iters 400"}),
        (
            "Finished 200 iterations: x",
            {"lr_policy": "linear", "data": "my cats"},
            {"Train a new run from these weights": "python vanilla_gan.py --init_from {} --data 'my cats'"},
        ),
    ],
)
def test_commands(end, options, what, tmp_path):
    folder = write_run(tmp_path / "it's", end=end, **options)
    quoted = f"'{tmp_path}/it'\"'\"'s'"
    commands = commands_for(read_overview(folder))
    assert commands.items() >= {name: text.format(quoted) for name, text in what.items()}.items()
    (folder / "best.pt").write_bytes(b"")
    assert commands_for(read_overview(folder))["Measure"] == f"python evaluate.py {quoted} --checkpoint best"


def test_the_command_line_on_a_card(tmp_path):
    """The script has no folder, as a sweep starts it by its absolute path; long arguments may break after / = and ,"""
    folder = write_run(tmp_path / "run")
    session = json.loads((folder / "environment.json").read_text())[0]
    for script, shown in (("/a/b/vanilla_gan.py", "vanilla_gan.py"), ("/a/other.py", "/a/other.py")):
        session["command"] = ["/bin/python", script, "--data=/c/d", "--use_diffaug=color,<b>"]
        (folder / "environment.json").write_text(json.dumps([session]))
        assert describe_command(read_overview(folder)).startswith(f"python {shown} --data=/c/d ")
    source = Page(folder).source
    assert "<span>--data=<wbr>/<wbr>c/<wbr>d</span>" in source
    assert "<span>&#39;--use_diffaug=<wbr>color,<wbr>&lt;b&gt;&#39;</span>" in source
