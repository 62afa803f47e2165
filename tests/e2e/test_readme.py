"""The commands of the README, run as they stand there, with small sizes added."""

import contextlib
import csv
import io
import os
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch

import data_loader
import evaluate
import generate
from data.media import Frame, write_video
from tests.conftest import ROOT, TINY, FinishedRun, command, make_photo, resume
from utils import run_main

README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    """Return every command line of the bash blocks that starts one of our scripts."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    scripts = [line.split("&&")[-1].strip() for line in lines]
    return [line for line in scripts if re.match(r"python (?!-m pytest)|torchrun ", line)]


@pytest.fixture(scope="module")
def project(checkout):
    """The copy of the project, with the images that the README speaks of."""
    for folder in (
        "photos/cats", "photos/apples", "photos/oranges", "data/cat/grumpifyAprocessed", "data/cat/grumpifyBprocessed",
        "data/apple2orange/trainA", "data/apple2orange/trainB", "data/apple2orange/testA", "data/apple2orange/testB",
        "data/summer2winter_yosemite/trainA", "data/summer2winter_yosemite/trainB",
        "data/gan-getting-started/monet_jpg", "data/gan-getting-started/photo_jpg",
    ):  # fmt: skip
        (checkout / folder).mkdir(parents=True)
        for i in range(6):
            make_photo((40, 40), i).save(checkout / folder / f"{i}.png")
    make_photo((40, 30), 0).save(checkout / "photos/apple.jpg")
    frames = (Frame(i, 1, np.asarray(make_photo((40, 30), i))) for i in range(4))
    write_video(checkout / "photos/film.mp4", frames, Fraction(25), Fraction(1, 25))
    return checkout


@pytest.fixture(scope="module")
def results(project):
    """What each command did. Those without a flag, those of torchrun, one that goes on, the benchmark and the lists of
    presets are commands, two at a time where they don't need each other; the others run in this process, which has
    torch already.
    """

    def read(line: str) -> tuple[list[str], str, list[str]]:
        """Split into launcher, script, and arguments, with those that make it short."""
        program, *arguments = shlex.split(line)
        at = next(i for i, argument in enumerate(arguments) if argument.endswith(".py"))
        launcher = ["-m", "torch.distributed.run", "--standalone", *arguments[:at]] if program == "torchrun" else []
        script, *arguments = arguments[at:]
        if script in TINY and "list" not in arguments:
            resumed = arguments[arguments.index("--resume") + 1] if "--resume" in arguments else "none"
            extra = [f"--train_iters={2 + len(list((project / resumed).glob('checkpoint-*.pt')))}"]
            arguments += extra if "--resume" in arguments else [*TINY[script], *extra, "--log_step=1"]
        if script.startswith("benchmarks/"):
            arguments += ["--seconds=0.1", "--rounds=1"]
        return launcher, script, arguments

    def run(line: str):
        launcher, script, arguments = read(line)
        return line, command(project / script, *arguments, launcher=launcher, cwd=project)

    def use(line: str):
        _, script, arguments = read(line)
        if script == "evaluate.py" and "--features" not in arguments:
            arguments.append("--features=pixels")  # rather than download Inception
        if script in TINY:
            start = partial(resume, *arguments, script=script)
        else:
            module = {"evaluate.py": evaluate, "generate.py": generate}[script]
            start = partial(run_main, lambda: module.main(module.parse(arguments)), script)
        out, err = io.StringIO(), io.StringIO()
        before = os.getcwd()
        os.chdir(project)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = start()
        finally:
            os.chdir(before)
        return line, subprocess.CompletedProcess(line, code, out.getvalue(), err.getvalue())

    lines = commands()
    apart = [line for line in lines if line.count(" ") == 1 or re.search("list|torchrun|benchmarks/", line)]
    goes_on = "python vanilla_gan.py --resume checkpoints/my-cats"
    with ThreadPoolExecutor(2) as pool:
        results = dict(pool.map(run, [line for line in apart if "--resume" not in line]))
    results |= dict(run(line) for line in apart if "--resume" in line)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_loader, "_DATA_ROOT", project / "data")
        for line in lines:
            if line not in results:
                results |= [(run if line == goes_on else use)(line)]
    return results


@pytest.mark.parametrize("line", commands())
def test_command(line, results):
    assert results[line].returncode == 0, results[line].stderr
    assert "Traceback" not in results[line].stderr and results[line].stdout


@pytest.mark.parametrize("script", TINY)
def test_without_any_flag_it_trains_on_toy_cats(script, project, results):
    """The embedded cats, with grids, a plot and a checkpoint at the end."""
    (folder,) = (project / "checkpoints").glob(f"{script[:-3]}-toy_cats-*")
    run = FinishedRun(folder)
    for domain in run.data.values():
        assert len(domain["train"]) == 200 and "toy_cats_32/train" in domain["folder"]
    assert run.options["preset"] == "toy_cats" and len(list((folder / "samples").glob("sample-000000*.png"))) > 0
    assert (folder / "losses.png").exists() and run.steps("checkpoint-*.pt") == [2]


def test_the_two_lines_of_the_start():
    assert "\npip install -r requirements.txt && python vanilla_gan.py\n" in README
    assert "\npip install -r requirements-dev.txt && python -m pytest\n" in README


def test_flags_and_presets_in_the_text_exist():
    pages = [command(ROOT / script, page).stdout for script in TINY for page in ("--help", "--preset=list")]
    pages.append(command(ROOT / "evaluate.py", "--help").stdout)
    pages += [parser.format_help() for parser in generate.build_parser()[1].values()]
    text = "".join(pages)
    flags = set(re.findall(r"--[a-z_0-9]+", README)) - {
        "--logdir",
        "--case",
        "--seconds",
        "--rounds",
        "--help",
        "--index",  # with a hyphen after it: a flag of pip
    }
    flags -= {"--nproc_per_node", "--nnodes", "--rdzv_backend", "--rdzv_endpoint", "--max"}  # torchrun's
    assert flags and not [flag for flag in flags if flag not in text]
    assert not [name for name in re.findall(r"--preset (\w+)", README) if name not in text and name != "list"]


def test_two_processes_measured_once(project, results):
    with open(project / "checkpoints/two/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    once = [(row["step"], row["task"], row["split"]) for row in rows if row["metric"] == "Frechet distance"]
    assert len(once) == len(set(once)) and {step for step, _, _ in once} == {"2", "3"}
    assert (project / "checkpoints/two/best.pt").exists()


def test_the_python_of_the_text(project, results, monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(project)
    made = {"apples": torch.rand(2, 3, 32, 64) * 2 - 1}
    exec(code, made)
    assert made["images"].shape == (16, 3, 32, 32) and made["oranges"].shape == (2, 3, 32, 64)


def test_pictures_exist_and_are_small():
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", README)
    assert pictures
    for name in pictures:
        assert (ROOT / name).stat().st_size < 300_000, name


def test_run_folder_of_the_text(project, results):
    """Every file that a run wrote is one that the README names."""
    block = README.split("checkpoints/<name>/\n")[1].split("\n\n")[0]
    named = [re.sub(r"\d{6}(-inception)?", "*", line.split()[0]) for line in block.splitlines()]
    patterns = [name for name in named if name != "samples/"]
    for path in [*(project / "checkpoints/my-cats").rglob("*"), *(project / "checkpoints/my-fruit").rglob("*")]:
        if path.is_file():
            assert any(path.match(pattern) for pattern in patterns), path
