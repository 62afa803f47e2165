"""Exported networks against PyTorch, at sizes that they were not traced with."""

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import generate
import generation.export
from generate import load_generator
from models import DCGenerator, ResnetGenerator
from options.command_line import parse_subcommand
from system.program import run_main
from tests.conftest import ROOT, make_domains, train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A DCGAN `cats` and a CycleGAN `fruit` of 32x32 images."""
    folder = tmp_path_factory.mktemp("runs")
    make_domains(folder / "domains")
    flags = [f"--checkpoint_dir={folder}", "--train_iters=1"]
    assert train(f"--data={folder / 'domains/trainA'}", "--name=cats", "--self_modulation", *flags) == 0
    assert train(f"--data={folder / 'domains'}", "--name=fruit", *flags, script="cycle_gan.py") == 0
    return folder


def generate_cli(*arguments) -> int:
    """Run generate.py in this process; return its exit code."""
    options = parse_subcommand(generate.OPTIONS_OF, generate.__doc__, [str(argument) for argument in arguments])
    return run_main(lambda: generate.main(options), "generate.py")


def check_metadata(metadata: dict[str, str], direction: str, step: int = 1) -> None:
    assert metadata["direction"] == direction and metadata["step"] == str(step)
    assert metadata["input_range"] == metadata["output_range"] == "[-1, 1]" and "NCHW" in metadata["output_layout"]
    assert json.loads(metadata["options"])["image_size"] == 32
    assert metadata.get("pad_multiple") == (None if direction == "z to image" else "4")


CASES = {"cats": (None, [(4, 7, 1, 1), (1, 7, 1, 1)]), "fruit": ("Y2X", [(2, 3, 24, 56), (1, 3, 100, 32)])}


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_torchscript(runs, tmp_path, capsys, name):
    direction, shapes = CASES[name]
    flags = [f"--direction={direction}"] if direction else []
    assert generate_cli("export", runs / name, "--format=torchscript", "-o", tmp_path / "G.pt", *flags) == 0
    assert "largest difference from PyTorch" in capsys.readouterr().out
    extra = {"metadata.json": ""}
    exported, G = torch.jit.load(tmp_path / "G.pt", _extra_files=extra), load_generator(runs / name, direction)
    check_metadata(json.loads(extra["metadata.json"]), direction or "z to image")
    for shape in shapes:
        x = torch.rand(shape) * 2 - 1
        assert torch.allclose(exported(x), G(x), atol=1e-5)
    if direction:  # the network of the other direction gives other images
        assert not torch.allclose(exported(x), load_generator(runs / name, "X2Y")(x), atol=1e-2)


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_onnx(runs, tmp_path, capsys, name):
    pytest.importorskip("onnxscript")
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    direction, shapes = CASES[name]
    flags = [f"--direction={direction}"] if direction else []
    assert generate_cli("export", runs / name, "--format=onnx", "-o", tmp_path / "G.onnx", *flags) == 0
    assert "largest difference from PyTorch" in capsys.readouterr().out
    model = onnx.load(tmp_path / "G.onnx")
    check_metadata({entry.key: entry.value for entry in model.metadata_props}, direction or "z to image")
    del model.metadata_props[:]  # the options name folders of the run; nothing else names folders of this computer
    content = model.SerializeToString()
    assert not any(str(path).encode() in content for path in (ROOT, runs, Path(torch.__file__).parent))
    session, G = onnxruntime.InferenceSession(tmp_path / "G.onnx"), load_generator(runs / name, direction)
    for shape in shapes:
        x = torch.rand(shape) * 2 - 1
        np.testing.assert_allclose(session.run(["output"], {"input": x.numpy()})[0], G(x).numpy(), atol=1e-5)


@pytest.mark.parametrize("format_", ["onnx", "torchscript"])
def test_a_network_that_differs_is_not_written(runs, tmp_path, monkeypatch, capsys, format_):
    """It adds 0.001 to every pixel."""
    ending = generation.export.EXPORTS[format_][2]
    G = load_generator(runs / "cats")
    changed = (lambda *_: b"", lambda content: lambda x: G(x) + 1e-3, ending, ())
    monkeypatch.setitem(generation.export.EXPORTS, format_, changed)
    assert generate_cli("export", runs / "cats", f"--format={format_}", "-o", tmp_path / f"G{ending}") == 1
    out, err = capsys.readouterr()
    assert "0.001" in out and err.count("\n") == 1 and "not written" in err and not list(tmp_path.iterdir())


def test_missing_packages(runs, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else find(name))
    assert generate_cli("export", runs / "cats", "--format=onnx", "-o", tmp_path / "G.onnx") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "pip install onnx onnxscript onnxruntime" in err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "G, shape, other",
    [
        (ResnetGenerator(conv_dim=2, n_res_blocks=1), (1, 3, 16, 16), (3, 3, 20, 28)),
        (ResnetGenerator(conv_dim=2, n_res_blocks=1, upsample="deconv", norm="batch"), (1, 3, 16, 16), (2, 3, 32, 20)),
        (DCGenerator(conv_dim=2, noise_size=3, upsample="deconv"), (2, 3, 1, 1), (5, 3, 1, 1)),
        (DCGenerator(conv_dim=2, noise_size=3, self_modulation=True), (2, 3, 1, 1), (5, 3, 1, 1)),
        (DCGenerator(64, 2, 7, self_modulation=True, split_noise=True, fine_channels=3), (2, 7, 1, 1), (5, 7, 1, 1)),
        (DCGenerator(image_size=256, conv_dim=1, noise_size=3, norm="none"), (2, 3, 1, 1), (1, 3, 1, 1)),
    ],
)
def test_every_layer_can_be_traced(G: nn.Module, shape, other):
    """Layers that the two runs do not have."""
    G = G.eval().requires_grad_(False)
    with pytest.warns(Warning):  # torch.jit is deprecated
        network = G if isinstance(G, DCGenerator) else G.layers
        content = generation.export.export_torchscript(network, torch.rand(shape), {}, {})
        exported = torch.jit.load(io.BytesIO(content))
    x = torch.rand(other)
    assert torch.allclose(exported(x), G(x), atol=1e-5)
