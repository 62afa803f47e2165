"""README.md and the pages of docs/: every command runs as written, with small sizes added; links and flags exist."""

import contextlib
import csv
import dataclasses
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from tfrecord import TFRecordWriter

import dataset
import evaluate
import generate
import report
import sweep
from images.video import Frame, write_video
from options.command_line import parse_command, parse_subcommand
from options.commands import EvaluateOptions
from options.report import ReportOptions
from options.sweep import SweepOptions
from sources import folders
from sweeps import local
from sweeps.grid import Sweep
from sweeps.reading import read_sweep
from system.program import run_main
from tests.conftest import ROOT, TINY, FinishedRun, command, make_photo, resume
from tests.helpers.commands_here import ProcessHere
from tests.helpers.tiny_diffusion import make_text_to_image

MAX_README_LINES = 180
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
README, TEXT = PAGES["README.md"], "\n".join(PAGES.values())


def find_commands(text: str) -> list[str]:
    """Return every command line of the bash blocks that starts a script of the project, each once."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    commands = [line.split("&&")[-1].strip() for line in lines]
    return list(dict.fromkeys(line for line in commands if re.match(r"python (?!-m pytest)|torchrun ", line)))


HAS_DIFFUSERS = importlib.util.find_spec("diffusers") is not None  # of requirements-diffusion.txt
COMMANDS = [  # a command of several pages runs once
    line for line in find_commands(TEXT) if HAS_DIFFUSERS or "dataset.py diffuse" not in line
]


@pytest.fixture(scope="module")
def project(checkout):
    """The copy of the project, with the images that the pages name."""
    for folder in (
        "photos/cats",
        "photos/apples",
        "photos/oranges",
        "data/cat/grumpifyAprocessed",
        "data/cat/grumpifyBprocessed",
        "data/apple2orange/trainA",
        "data/apple2orange/trainB",
        "data/apple2orange/testA",
        "data/apple2orange/testB",
        "data/horse2zebra/trainA",
        "data/horse2zebra/trainB",
        "data/summer2winter_yosemite/trainA",
        "data/summer2winter_yosemite/trainB",
        "data/gan-getting-started/monet_jpg",
        "data/gan-getting-started/photo_jpg",
        "data/faces/me",
        "data/faces/other",
    ):
        (checkout / folder).mkdir(parents=True)
        for i in range(6):
            make_photo((40, 40), i).save(checkout / folder / f"{i}.png")
    make_photo((40, 30), 0).save(checkout / "photos/apple.jpg")
    (checkout / "photos/album").mkdir()
    for name in ("album/1.jpg", "me-1.jpg", "me-2.jpg"):  # a real face
        shutil.copy(Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg", checkout / "photos" / name)
    if HAS_DIFFUSERS:  # a folder with the name that the model has on the hub
        make_text_to_image(checkout / "stable-diffusion-v1-5/stable-diffusion-v1-5")
    for name in ("monet", "photo"):
        records = checkout / f"data/gan-getting-started/{name}_tfrec"
        records.mkdir()
        writer = TFRecordWriter(str(records / f"{name}00-6.tfrec"))
        for path in sorted((checkout / f"data/gan-getting-started/{name}_jpg").iterdir()):
            writer.write({"image": (path.read_bytes(), "byte"), "image_name": (path.stem.encode(), "byte")})
        writer.close()
    frames = (Frame(i, 1, np.asarray(make_photo((40, 30), i))) for i in range(4))
    write_video(checkout / "photos/film.mp4", frames, Fraction(25), Fraction(1, 25))
    return checkout


def read_command(line: str, project: Path) -> tuple[list[str], str, list[str]]:
    """Split a command into launcher, script or module, and arguments, with the arguments that make it short."""
    program, *arguments = shlex.split(line)
    if arguments[0] == "-m":
        return ["-m"], arguments[1], arguments[2:]
    at = next(i for i, argument in enumerate(arguments) if argument.endswith(".py"))
    launcher = ["-m", "torch.distributed.run", "--standalone", *arguments[:at]] if program == "torchrun" else []
    script, *arguments = arguments[at:]
    if script in TINY and "list" not in arguments:
        resumed = arguments[arguments.index("--resume") + 1] if "--resume" in arguments else "none"
        extra = [f"--train_iters={2 + len(list((project / resumed).glob('checkpoint-*.pt')))}"]
        arguments += extra if "--resume" in arguments else [*TINY[script], *extra, "--log_step=1"]
        arguments += ["--features=pixels"] if "--eval_every" in arguments and "--features" not in arguments else []
    if "diffuse" in arguments:
        arguments += ["--steps=1"]
    if script == "sweep.py":
        changes = [flag.removeprefix("--") for flag in (*TINY["vanilla_gan.py"], "--train_iters=2", "--log_step=1")]
        arguments += ["--features=pixels", *(word for change in changes for word in ("--set", change))]
    if script.startswith("benchmarks/"):
        arguments += ["--seconds=0.1", "--rounds=1"]
    return launcher, script, arguments


def run_apart(line: str, project: Path) -> subprocess.CompletedProcess:
    """Run a command as a user does."""
    launcher, script, arguments = read_command(line, project)
    if launcher == ["-m"]:
        words = [sys.executable, "-m", script, *arguments]
        return subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=project)
    return command(project / script, *arguments, launcher=launcher, cwd=project)


def run_here(line: str, project: Path) -> subprocess.CompletedProcess:
    """Run a command in this process, which has imported torch already."""
    _, script, arguments = read_command(line, project)
    if script == "evaluate.py" and "--features" not in arguments:
        arguments.append("--features=pixels")  # rather than download Inception
    if script in TINY:
        start = partial(resume, *arguments, script=script)
    elif script == "evaluate.py":
        start = partial(run_main, lambda: evaluate.main(parse_command(EvaluateOptions, "", arguments)), script)
    elif script == "report.py":
        start = partial(run_main, lambda: report.main(parse_command(ReportOptions, "", arguments)), script)
    elif script == "sweep.py":
        start = partial(run_main, lambda: sweep.main(parse_command(SweepOptions, "", arguments)), script)
    else:
        options = partial(parse_subcommand, generate.OPTIONS_OF, "", arguments)
        start = partial(run_main, lambda: generate.main(options()), script)
    out, err = io.StringIO(), io.StringIO()
    before = os.getcwd()
    os.chdir(project)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = start()
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(line, code, out.getvalue(), err.getvalue())


def read_first_runs(*arguments, count: int) -> Sweep:
    """Read a sweep as usual, and keep its first runs only."""
    whole = read_sweep(*arguments)
    return dataclasses.replace(whole, jobs=whole.jobs[:count])


@pytest.fixture(scope="module")
def results(project):
    """Command -> its result. Processes of their own, two at a time where no command needs the other's run, are for
    commands without a flag, torchrun, dataset.py, one resumed training, the benchmark, a module, and the lists.
    """
    is_apart = re.compile(r"\S+ \S+$|.*(list$|torchrun |benchmarks/| -m |dataset\.py )").match
    apart = [line for line in COMMANDS if is_apart(line)]
    resumed_apart = "python vanilla_gan.py --resume checkpoints/my-cats"
    assert resumed_apart in COMMANDS
    with ThreadPoolExecutor(2) as pool:
        first = [line for line in apart if "--resume" not in line]
        results = dict(zip(first, pool.map(partial(run_apart, project=project), first), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "DATA_ROOT", project / "data")
        # A sweep trains its first two runs only, in this process.
        patch.setattr(sweep, "read_sweep", lambda *arguments: read_first_runs(*arguments, count=2))
        patch.setattr(local, "Popen", ProcessHere)
        for line in COMMANDS:
            if line not in results:
                run = run_apart if line in (*apart, resumed_apart) else run_here
                results[line] = run(line, project)
    return results


@pytest.mark.parametrize("line", COMMANDS)
def test_command(line, results):
    assert results[line].returncode == 0, results[line].stderr
    assert "Traceback" not in results[line].stderr and results[line].stdout


@pytest.mark.parametrize("script", TINY)
def test_without_any_flag_it_trains_on_toy_cats(script, project, results):
    """The embedded cats, with grids, a plot and a checkpoint at the end."""
    (folder,) = (project / "checkpoints").glob(f"{script[:-3]}-toy_cats-basic-vanilla-*-001")
    run = FinishedRun(folder)
    for domain in run.data.values():
        assert len(domain["train"]) == 200 and "toy_cats_32/train" in domain["folder"]
    assert run.options["preset"] == "toy_cats" and len(list((folder / "samples").glob("sample-000000*.png"))) > 0
    assert (folder / "losses.png").exists() and run.steps("checkpoint-*.pt") == [2]


def test_quick_start_lines():
    assert "\n```bash\npip install -r requirements.txt && python vanilla_gan.py\n```\n" in README
    assert "\n```bash\npython cycle_gan.py\n```\n" in README
    # .ci/run looks for this line.
    assert README.count("\n```bash\npip install -r requirements-dev.txt && python -m pytest\n```\n") == 1


def test_flags_and_presets_exist():
    calls = [(script, page) for script in TINY for page in ("--help", "--preset=list")]
    calls += [("report.py", "--help"), ("sweep.py", "--help")]
    calls += [("evaluate.py", "--help"), *(("generate.py", name, "--help") for name in generate.OPTIONS_OF)]
    calls += [("dataset.py", name, "--help") for name in dataset.OPTIONS_OF]
    with ThreadPoolExecutor(2) as pool:
        help_text = "".join(pool.map(lambda call: command(ROOT / call[0], *call[1:]).stdout, calls))
    others = {
        *("--logdir", "--samples_per_plugin", "--help"),  # of TensorBoard, and of every command
        *("--case", "--seconds", "--rounds"),  # of benchmarks/speed.py
        "--size",  # of images/toy_cats.py
        "--index",  # --index-url of pip
        *("--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint", "--max"),  # of torchrun
    }
    known = set(re.findall(r"--[a-z_0-9]+", help_text, re.IGNORECASE)) | others
    for page, text in PAGES.items():
        flags = set(re.findall(r"--[a-z_0-9]+", text, re.IGNORECASE))
        assert flags <= known, (page, flags - known)
        presets = set(re.findall(r"--preset (\w+)", text)) - {"list"}
        assert presets <= set(re.findall(r"^\w+", help_text, re.MULTILINE)), page


def test_two_processes_measured_once(project, results):
    with open(project / "checkpoints/two/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    once = [(row["step"], row["task"], row["split"]) for row in rows if row["metric"] == "Frechet distance"]
    assert len(once) == len(set(once)) and {step for step, _, _ in once} == {"2", "3"}
    assert (project / "checkpoints/two/best.pt").exists()


def test_python_of_the_text(project, results, monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", PAGES["docs/generation.md"], re.DOTALL)
    monkeypatch.chdir(project)
    made = {"apples": torch.rand(2, 3, 32, 64) * 2 - 1}
    exec(code, made)
    assert made["images"].shape == (16, 3, 32, 32) and made["oranges"].shape == (2, 3, 32, 64)


def test_run_folder_of_the_text(project, results):
    """Every file that a run wrote is named on the page about run folders."""
    block = PAGES["docs/run-folder.md"].split("checkpoints/<name>/\n")[1].split("\n\n")[0]
    named = [re.sub(r"\d{6}(-inception)?", "*", line.split()[0]) for line in block.splitlines()]
    patterns = [name for name in named if name != "samples/"]
    for path in [*(project / "checkpoints/my-cats").rglob("*"), *(project / "checkpoints/my-fruit").rglob("*")]:
        if path.is_file():
            assert any(path.match(pattern) for pattern in patterns), path


# ----------------------------------------------------------------------------------------------------------------------
# The pages themselves


def find_links(text: str) -> list[str]:
    """Return the targets of all links and pictures of a page, without those on the web."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


def find_anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md"])
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in find_links(page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), target
        assert not anchor or anchor in find_anchors(linked.read_text(encoding="utf-8")), target


def test_every_page_is_linked_from_the_readme():
    assert len(PAGES) > 1
    assert {name for name in PAGES if name != "README.md"} <= {link.partition("#")[0] for link in find_links(README)}


def test_readme_is_short():
    assert len(README.splitlines()) <= MAX_README_LINES


def test_pictures_are_small():
    pictures = []
    for name, text in PAGES.items():
        pictures += [(ROOT / name).parent / target for target in re.findall(r"!\[.+?\]\((.+?)\)", text)]
    assert pictures
    for picture in pictures:
        assert picture.stat().st_size < 300_000, picture
