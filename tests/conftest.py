"""Shared by all tests: small image folders, a copy of the project, and ways to run a training."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cycle_gan
import vanilla_gan
from options import CycleOptions, VanillaOptions, parse_command_line
from system.program import run_main

ROOT = Path(__file__).parent.parent

torch.set_num_threads(1)  # for networks this small more threads only wait for each other

# The training scripts, their options, and sizes so small that a step takes milliseconds; float32, so that the numbers
# are the same on every CPU.
MODULES = {"vanilla_gan.py": vanilla_gan, "cycle_gan.py": cycle_gan}
OPTIONS = {"vanilla_gan.py": VanillaOptions, "cycle_gan.py": CycleOptions}
_SMALL = ["--image_size=32", "--batch_size=4", "--device=cpu", "--amp=off"]
TINY = {
    "vanilla_gan.py": [*_SMALL, "--conv_dim=2", "--noise_size=7"],
    "cycle_gan.py": [*_SMALL, "--g_conv_dim=2", "--d_conv_dim=2"],
}


def make_photo(size: tuple[int, int], seed: int) -> Image.Image:
    """Return a smooth random RGB image of (width, height)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def make_photos(folder: Path, count: int = 10, seed: int = 0) -> Path:
    """Write images of different shapes, 0.png and so on, to a folder; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        make_photo((40 + 3 * i, 48), seed + i).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 10 images of different shapes."""
    return make_photos(tmp_path / "photos")


def make_domains(root: Path, jpeg: bool = False) -> None:
    """Write two domains: trainA with 10 images, trainB with 7, testA and testB with 3; with `jpeg` one more in each."""
    for seed, (name, count) in enumerate({"trainA": 10, "trainB": 7, "testA": 3, "testB": 3}.items()):
        make_photos(root / name, count, 100 * (seed + 1))
        if jpeg:
            make_photo((40, 40), seed).save(root / name / "a.jpg")


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    """Two domains, made by `make_domains`."""
    make_domains(tmp_path / "domains")
    return tmp_path / "domains"


@pytest.fixture
def images_of(photos: Path, domains: Path) -> dict[str, Path]:
    """Script -> a folder that its --data can name."""
    return {"vanilla_gan.py": photos, "cycle_gan.py": domains}


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's own files, where tests may write."""
    target = tmp_path_factory.mktemp("checkout")
    packages = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests"]
    packages.append(ROOT / "pages" / "templates")
    files = [path for folder in (ROOT, *packages) for path in folder.glob("*.*")]
    for path in [*files, ROOT / "checkpoints" / "README.md", ROOT / "data" / "README.md"]:
        if path.is_file():
            (target / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / path.relative_to(ROOT))
    return target


def command(
    script: Path, *arguments: str, launcher: list[str] = (), env: dict[str, str] = os.environ, **kwargs
) -> subprocess.CompletedProcess:
    """Run a script of the project as a user does, without a terminal."""
    return subprocess.run(
        [sys.executable, *launcher, str(script), *arguments], capture_output=True, text=True, timeout=120,
        stdin=subprocess.DEVNULL, env={**env, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}, **kwargs,
    )  # fmt: skip


def train(*arguments: str, script: str = "vanilla_gan.py") -> int:
    """Run a training script in this process, with tiny networks; return its exit code."""
    return resume(*TINY[script], *arguments, script=script)


def resume(*arguments: str, script: str = "vanilla_gan.py") -> int:
    """Like `train`, but without other flags than the given ones: a resumed run has its own options.

    Evaluations use pixels unless the flags name other features: a network would take most of the time of a test.
    """
    if any(one.startswith("--eval_every") for one in arguments) and not any("--features" in one for one in arguments):
        arguments = (*arguments, "--features=pixels")
    try:
        options = parse_command_line(OPTIONS[script], "", arguments)
    except SystemExit as stop:
        return stop.code
    return run_main(lambda: MODULES[script].main(options), script)


def temporary_files(folder: Path) -> list[Path]:
    """Return the hidden files in a folder and below it, without the locks of runs, which may stay."""
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


class FinishedRun:
    """The files of a run folder, for assertions."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.options = json.loads((folder / "options.json").read_text())["options"]
        self.data = json.loads((folder / "data.json").read_text())
        self.log = (folder / "log.txt").read_text()

    def rows(self) -> list[dict[str, str]]:
        with open(self.folder / "losses.csv", newline="") as file:
            return list(csv.DictReader(file))

    def steps(self, pattern: str) -> list[int]:
        """Return the iterations in the names of the files that match."""
        return sorted(int(path.stem.rsplit("-", 1)[1]) for path in self.folder.glob(pattern))

    def checkpoint(self, step: int | None = None) -> dict:
        step = self.steps("checkpoint-*.pt")[-1] if step is None else step
        return torch.load(self.folder / f"checkpoint-{step:06d}.pt", weights_only=True)


@pytest.fixture
def run_once(images_of: dict[str, Path], tmp_path: Path):
    """A function that trains two iterations with extra flags and returns the FinishedRun."""

    def run(*arguments: str, name: str = "run", script: str = "vanilla_gan.py") -> FinishedRun:
        flags = [f"--data={images_of[script]}", f"--checkpoint_dir={tmp_path / 'runs'}", f"--name={name}"]
        if any(argument.startswith(("--X=", "--Y=")) for argument in arguments):
            del flags[0]
        assert train(*flags, "--train_iters=2", "--log_step=1", *arguments, script=script) == 0
        (options_file,) = tmp_path.glob(f"*/{name}/options.json")
        return FinishedRun(options_file.parent)

    return run


class Canary:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def assert_same(a, b, path: str = "") -> None:
    """Assert that two nested structures of dicts, lists, tensors and plain values are equal to the last bit."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), path
    else:
        assert a == b, path
