"""The import graph of the project: imports point down the list of DESIGN, section 2."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

TRAINING = {"evaluate", "trainer", "runs", "data_loader", "models", "losses", "diff_augment", "options", "utils"}

# Each file and what it may import of the project.
ALLOWED = {
    "vanilla_gan.py": TRAINING,
    "cycle_gan.py": TRAINING,
    "evaluate.py": {"generate", "models", "data_loader", "data.decoding", "data.toy_cats", "runs", "options", "utils"},
    "generate.py": {"models", "data_loader", "data.decoding", "data.media", "runs", "options", "utils"},
    "trainer.py": {"runs", "utils"},
    "runs.py": {"utils"},
    "data_loader.py": {"utils", "data.decoding", "data.toy_cats"},
    "models.py": set(),
    "losses.py": set(),
    "diff_augment.py": {"utils"},
    "options.py": set(),
    "utils.py": set(),
    "data/toy_cats.py": set(),
    "data/decoding.py": {"utils"},
    "data/media.py": {"data.decoding", "utils"},
}
OURS = {name.removesuffix(".py").replace("/", ".") for name in ALLOWED}


def imported(source: str) -> set[str]:
    """Return the names of all modules that a source text imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("name", ALLOWED)
def test_imports_point_down(name):
    assert imported((ROOT / name).read_text()) & OURS <= ALLOWED[name]


def test_every_file_is_on_the_list():
    files = {path.relative_to(ROOT).as_posix() for pattern in ("*.py", "data/*.py") for path in ROOT.glob(pattern)}
    assert files == set(ALLOWED)


def test_a_wrong_import_is_seen():
    assert imported("def f():\n    from runs import Run") & OURS == {"runs"}
    assert imported("import data.toy_cats as t") & OURS == {"data.toy_cats"}


def test_trainer_knows_no_gan_word():
    words = set(ast.unparse(ast.parse((ROOT / "trainer.py").read_text())).lower().replace("_", " ").split())
    assert not words & {"generator", "discriminator", "fake", "latent", "latents", "cycle", "adversarial"}


def test_nothing_is_imported_that_a_run_may_not_use():
    """Each takes its time; a run imports them when it draws, logs, or computes an SSIM."""
    code = "import sys, vanilla_gan, cycle_gan; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"matplotlib", "tensorboard", "torchmetrics", "torch_fidelity", "imageio", "av"} & set(
        found.stdout.split()
    )
    assert "torchvision" in found.stdout.split()
