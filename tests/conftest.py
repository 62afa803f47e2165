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

import vanilla_gan
from options import VanillaOptions, parse_command_line
from utils import run_main

ROOT = Path(__file__).parent.parent

torch.set_num_threads(1)  # for networks this small more threads only wait for each other

# Small enough that a step takes milliseconds.
TINY = ["--image_size=32", "--conv_dim=2", "--noise_size=4", "--batch_size=4", "--device=cpu"]


def make_photo(size: tuple[int, int], seed: int) -> Image.Image:
    """Return a smooth random RGB image of (width, height)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 10 images of different shapes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(10):
        make_photo((40 + 3 * i, 48), i).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's own files, in which tests may write."""
    target = tmp_path_factory.mktemp("checkout")
    for path in [*ROOT.glob("*.*"), *ROOT.glob("data/*.*"), *ROOT.glob("checkpoints/README.md")]:
        if path.is_file():
            (target / path.relative_to(ROOT)).parent.mkdir(exist_ok=True)
            shutil.copy2(path, target / path.relative_to(ROOT))
    return target


def command(script: Path, *arguments: str, env: dict[str, str] = os.environ, **kwargs) -> subprocess.CompletedProcess:
    """Run a script of the project as a user does, without a terminal."""
    return subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=120,
        stdin=subprocess.DEVNULL, env={**env, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}, **kwargs,
    )  # fmt: skip


def train(*arguments: str) -> int:
    """Run vanilla_gan.py in this process, with tiny networks; return its exit code."""
    try:
        options = parse_command_line(VanillaOptions, [*TINY, *arguments], "vanilla_gan.py", "")
    except SystemExit as stop:
        return stop.code
    return run_main(lambda: vanilla_gan.main(options), "vanilla_gan.py")


def resume(*arguments: str) -> int:
    """Like `train`, but with no flag besides those given: a resumed run has its own."""
    options = parse_command_line(VanillaOptions, arguments, "vanilla_gan.py", "")
    return run_main(lambda: vanilla_gan.main(options), "vanilla_gan.py")


class FinishedRun:
    """What a run folder holds, for assertions."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.options = json.loads((folder / "options.json").read_text())["options"]
        self.data = json.loads((folder / "data.json").read_text())
        self.log = (folder / "log.txt").read_text()

    def rows(self) -> list[dict[str, str]]:
        with open(self.folder / "losses.csv", newline="") as file:
            return list(csv.DictReader(file))

    def steps(self, pattern: str) -> list[int]:
        """The iterations in the names of the files that match."""
        return sorted(int(path.stem.rsplit("-", 1)[1]) for path in self.folder.glob(pattern))

    def checkpoint(self, step: int | None = None) -> dict:
        step = self.steps("checkpoint-*.pt")[-1] if step is None else step
        return torch.load(self.folder / f"checkpoint-{step:06d}.pt", weights_only=True)


@pytest.fixture
def run_once(photos: Path, tmp_path: Path):
    """Train two iterations on `photos` with extra flags; return the FinishedRun."""

    def run(*arguments: str, name: str = "run") -> FinishedRun:
        flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path / 'runs'}", f"--name={name}"]
        assert train(*flags, "--train_iters=2", "--log_step=1", *arguments) == 0
        (options_file,) = tmp_path.glob(f"*/{name}/options.json")
        return FinishedRun(options_file.parent)

    return run


def assert_same(a, b, path: str = "") -> None:
    """Assert that two nests of dicts, lists, tensors and plain values are equal to the last bit."""
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
