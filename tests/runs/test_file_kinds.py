"""Files that are not checkpoints: one line says what each is, and no code from it runs."""

import gzip
import io
import json
import pickle
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from evaluate import main as evaluate
from generate import load_generator
from generation.export import export_torchscript
from metrics.features import load_features
from options.command_line import parse_command
from options.commands import EvaluateOptions
from runs.checkpoints import read_checkpoint, write_checkpoint
from runs.file_kinds import unpack
from system.program import run_main
from tests.conftest import Canary, resume
from utils import UserError

pytestmark = pytest.mark.faults
NETWORK = nn.Sequential(nn.Conv2d(3, 4, 3))


def saved(content, **arguments) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **arguments)
    return file.getvalue()


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format=kind)
    return file.getvalue()


def archive(**files: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
    return file.getvalue()


def arrays() -> bytes:
    file = io.BytesIO()
    np.savez(file, weights=np.zeros(3))
    return file.getvalue()


def tar() -> bytes:
    """With a file of torch.save, which zipfile finds there."""
    content, file = saved(NETWORK.state_dict()), io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as made:
        member = tarfile.TarInfo("weights.pth")
        member.size = len(content)
        made.addfile(member, io.BytesIO(content))
    return file.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


def torchscript() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export_torchscript(NETWORK, torch.zeros(1, 3, 8, 8), {0: "batch"}, {"script": "vanilla_gan.py"})


def onnx() -> bytes:
    helper = pytest.importorskip("onnx.helper")
    return helper.make_model(helper.make_graph([], "graph", [], []), producer_name="pytorch").SerializeToString()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 45\n"
OBJECTS = "it contains Python objects such as torch.nn.modules.container.Sequential, which cannot be read without"
OLD = {"_use_new_zipfile_serialization": False}

# Name -> a function that returns the bytes, and words that the message must contain.
FILES = {
    "empty.pt": (lambda: b"", "it is an empty file"),
    "pointer.pth": (lambda: LFS, "it is a Git LFS pointer"),
    "text.pt": (lambda: "ein Müsli\n".encode() * 200, "it is a text file"),
    "options.json": (lambda: b"{}", "it is a text file"),
    "page.pth": (lambda: b"\n<!DOCTYPE html>\n<html>404</html>", "it is a web page"),
    "image.png": (lambda: picture("PNG"), "it is a PNG image"),
    "image.pt": (lambda: picture("JPEG"), "it is a JPEG image"),
    "image.webp": (lambda: picture("WEBP"), "it is a WEBP image"),
    "model.safetensors": (safetensors, "it is a safetensors file"),
    "model.h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "it is an HDF5 file"),
    "model.onnx": (onnx, "it is an ONNX model"),
    "script.pt": (torchscript, "it is a TorchScript module, as `generate.py export` writes"),
    "arrays.npz": (arrays, "it is a NumPy archive"),
    "document.docx": (lambda: archive(**{"word/document.xml": b"<w/>"}), "it is a zip archive"),
    "weights.tar": (tar, "it is a tar archive"),
    "text.gz": (lambda: gzip.compress(b"text"), "it is a gzip archive"),
    "cut.pt": (lambda: saved(NETWORK.state_dict())[:300], "it is cut off or damaged"),
    "noise.pt": (lambda: bytes(range(255, 0, -1)), "torch.save did not write it"),
    "zeros.pt": (lambda: bytes(1000), "torch.save did not write it"),
    "module.pt": (lambda: saved(NETWORK), OBJECTS),
    "old-module.pt": (lambda: saved(NETWORK, **OLD), OBJECTS),
    "pickle.pkl": (lambda: pickle.dumps({"a": 1}, 2), "it is a Python pickle that torch.save did not write"),
    "pickle4.pkl": (lambda: pickle.dumps({"a": np.zeros(3)}, 4), "it is a Python pickle of another kind, which"),
    "weights.pth": (lambda: saved(NETWORK.state_dict()), "a state dict of another program, with 0.weight, 0.bias"),
    "old-weights.pth": (lambda: saved(NETWORK.state_dict(), **OLD), "a state dict of another program, with 0.weight"),
    "training.pth": (lambda: saved({"epoch": 1, "model": {}}), "it contains a dict with epoch, model"),
    "format.pth": (lambda: saved({"format": "pt", "step": 1}), "it contains a dict with format, step"),
    "number.pth": (lambda: saved({"format": 1, "model": {}}), "it contains a dict with format, model"),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, (make, _) in FILES.items():
        (folder / name).write_bytes(make())
    return folder


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_named(name, files, recwarn):
    """In one line of printable text, without PyTorch's advice to load unsafely, and without a warning."""
    with pytest.raises(UserError) as raised:
        load_generator(files / name)
    message = str(raised.value)
    assert message.startswith(f"{files / name} is not a readable checkpoint (") and FILES[name][1] in message
    assert message.endswith("); give a run folder, or a checkpoint from one") and message.isprintable()
    assert "weights_only" not in message and not recwarn.list


@pytest.mark.parametrize("name", ["module.pt", "script.pt", "model.safetensors", "pointer.pth"])
def test_other_commands_say_the_same(name, files, tmp_path, capfd):
    """evaluate.py and --init_from."""
    options = parse_command(EvaluateOptions, "", [str(files / name), "--device=cpu", f"--out={tmp_path}"])
    assert run_main(lambda: evaluate(options), "evaluate.py") == 2
    assert resume(f"--init_from={files / name}", "--name=x", f"--checkpoint_dir={tmp_path}") == 2
    out, err = capfd.readouterr()
    assert err.count("\n") == 2 and err.count(FILES[name][1]) == 2 and not out
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("flag", ["--features", "--inception_weights"])
@pytest.mark.parametrize("name", ["module.pt", "old-module.pt", "cut.pt", "model.safetensors"])
def test_files_of_other_networks_say_the_same(flag, name, files, tmp_path):
    """Also in one line of printable text, without PyTorch's advice to load unsafely."""
    path = tmp_path / "resnet18.pth"  # a name of torchvision
    path.write_bytes((files / name).read_bytes())
    features, weights = (str(path), None) if flag == "--features" else ("inception", str(path))
    with pytest.raises(UserError) as raised:
        load_features(features, weights, torch.device("cpu"))
    message = str(raised.value)
    assert message.startswith(f"{flag}: {path}") and message.isprintable() and "weights_only" not in message
    assert FILES[name][1][:60] in message


@pytest.mark.parametrize("arguments", [{}, OLD])
def test_no_code_runs(arguments, tmp_path):
    """In either format of torch.save. The control loads the file unsafely."""
    (tmp_path / "file.pt").write_bytes(saved({"format": 3, "x": Canary(tmp_path / "canary")}, **arguments))
    with pytest.raises(UserError, match="it contains Python objects such as "):
        read_checkpoint(tmp_path / "file.pt")
    assert not (tmp_path / "canary").exists()
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", FILES)
def test_the_previous_checkpoint_is_used_instead(name, files, tmp_path, capsys, monkeypatch):
    """A file of another kind under the name of the newest checkpoint of a run."""
    from system.program import set_up_log

    set_up_log()
    write_checkpoint(tmp_path / "checkpoint-000002.pt", {"step": 2})
    (tmp_path / "checkpoint-000004.pt").write_bytes((files / name).read_bytes())
    assert read_checkpoint(tmp_path)["step"] == 2
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "is not readable (" in out and out.endswith("; trying the previous one\n")


def test_what_torch_save_writes_is_read():
    """The control: nothing else is mistaken for a foreign file."""
    for content in ({"a": torch.ones(2)}, [1], {"x" * 9: "{"}):
        for arguments in ({}, OLD):
            assert type(unpack(saved(content, **arguments))) is type(content)
