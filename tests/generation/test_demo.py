"""generate.py demo without a browser: its runtime, its mistakes, and the network and latents inside the page."""

import base64
import hashlib
import importlib.util
import io
import json
import re
import tarfile

import numpy as np
import pytest
import torch

import generate
import generation.demo
from generation.demo import BINARY, SCRIPT, read_runtime
from generation.sampling import seed_latent
from generation.trained import load_generator
from options.command_line import parse_subcommand
from system.program import run_main
from tests.conftest import make_photos, train
from tests.helpers.loopback import serve
from tests.helpers.run_folders import work_beside

MODULE = b"var a=1;export{a as Tensor};"


def pack(*members: tuple[str, bytes]) -> bytes:
    """Return a .tgz file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as package:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            package.addfile(about, io.BytesIO(content))
    return file.getvalue()


PACKAGE = pack(("package/README.md", b"-"), (BINARY, b"binary"), (SCRIPT, MODULE))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A DCGAN `cats` and a CycleGAN `fruit` of 32x32 images, of two folders."""
    folder = tmp_path_factory.mktemp("runs")
    apples, oranges = make_photos(folder / "apples", 6), make_photos(folder / "oranges", 6, seed=50)
    flags = [f"--checkpoint_dir={folder}", "--train_iters=1"]
    assert train(f"--data={apples}", "--name=cats", *flags) == 0
    assert train(f"--X={apples}", f"--Y={oranges}", "--name=fruit", *flags, script="cycle_gan.py") == 0
    return folder


@pytest.fixture
def workspace(runs, tmp_path, monkeypatch):
    """A folder with a small package, whose checksum is the right one, and links to the runs."""
    work_beside(runs, tmp_path, monkeypatch)
    (tmp_path / "runtime.tgz").write_bytes(PACKAGE)
    monkeypatch.setattr(generation.demo, "SHA256", hashlib.sha256(PACKAGE).hexdigest())
    monkeypatch.setattr(generation.demo, "SIZE", len(PACKAGE))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("system.downloads.RETRIES", 0)
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    """Networks of a few bytes: an export takes seconds."""
    monkeypatch.setattr(generation.demo, "export_compared", lambda G, format_, metadata: b"onnx")


def demo_cli(*arguments) -> int:
    """Run generate.py demo in this process; return its exit code."""
    try:
        options = parse_subcommand(generate.OPTIONS_OF, "", ["demo", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code
    return run_main(lambda: generate.main(options), "generate.py")


def script_of(page: str, name: str) -> str:
    [text] = re.findall(rf'<script[^>]* id="{name}">(.*?)</script>', page, re.DOTALL)
    return text


# ---- The page


@pytest.mark.golden
def test_the_page_contains_the_network_and_the_latents_of_the_seeds(workspace, monkeypatch, capsys):
    """The options of the run are not exported: they name folders. test_export.py reads the exported network itself."""
    exported = []
    monkeypatch.setattr(generation.demo, "export_compared", lambda *arguments: exported.append(arguments) or b"onnx")
    assert demo_cli("cats", "--runtime=runtime.tgz", "-o", "new/cats.html") == 0
    page = (workspace / "new/cats.html").read_text()
    assert re.search(r"wrote new/cats\.html: \d+\.\d MB, in \d+\.\d s", capsys.readouterr().out)
    [(G, format_, metadata)] = exported
    assert (format_, metadata) == ("onnx", {}) and base64.b64decode(script_of(page, "network-z")) == b"onnx"
    expected = load_generator("cats").state_dict()
    assert all(torch.equal(weights, expected[name]) for name, weights in G.state_dict().items())
    about = json.loads(script_of(page, "about"))
    latents = np.frombuffer(base64.b64decode(about["latents"]), "<f4").reshape(about["seeds"], -1)
    assert latents.shape == (64, G.noise_size)
    for seed in (0, 7, 63):
        assert np.array_equal(latents[seed], seed_latent(seed, G.noise_size).flatten().numpy())
    assert str(workspace.parent) not in page and "checkpoint_dir" not in page


def test_directions(workspace, quick):
    """Both, or the one that is asked for, under the names of the folders."""

    def found(*flags):
        assert demo_cli("fruit", "--runtime=runtime.tgz", "-o=f.html", "--overwrite", *flags) == 0
        page = (workspace / "f.html").read_text()
        inputs = re.findall(r'value="(\w+)"[^>]*><span>([^<]+)<', page)
        assert [f"network-{direction}" for direction, _ in inputs] == re.findall(r'id="(network-\w+)"', page)
        return dict(inputs), json.loads(script_of(page, "about"))["stride"]

    both = {"X2Y": "apples to oranges", "Y2X": "oranges to apples"}
    assert found() == (both, 4)
    assert found("--direction=Y2X") == ({"Y2X": "oranges to apples"}, 4)


def test_names(workspace, quick):
    """The page of a file has the name of its folder, too."""
    checkpoint = next((workspace / "cats").resolve().glob("checkpoint-*.pt"))
    for run, name in {"cats": "cats", "cats/": "cats", checkpoint: "cats: checkpoint-000001"}.items():
        assert demo_cli(run, "--runtime=runtime.tgz", "-o=f.html", "--overwrite") == 0
        page = (workspace / "f.html").read_text()
        assert f"<h1>{name}</h1>" in page and json.loads(script_of(page, "about"))["name"] == name


def test_a_network_that_differs_makes_no_page(workspace, monkeypatch, capsys):
    monkeypatch.setattr(generation.demo, "export_compared", lambda *_: None)
    assert demo_cli("cats", "--runtime=runtime.tgz", "-o=a.html") == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "not written" in err and not (workspace / "a.html").exists()


# ---- The runtime


def test_the_runtime_is_read(workspace):
    runtime = read_runtime(workspace / "runtime.tgz")
    assert (runtime.script, runtime.binary) == (MODULE.decode(), b"binary")


def test_the_runtime_is_fetched_once_and_kept(workspace, quick, monkeypatch):
    with serve() as server:
        monkeypatch.setattr(generation.demo, "ADDRESS", server.add("/runtime.tgz", PACKAGE))
        for name in ("a.html", "b.html"):
            assert demo_cli("cats", "-o", name) == 0
        assert server.requests == ["/runtime.tgz"]
    [kept] = (workspace / "home").rglob("*.tgz")
    assert kept.read_bytes() == PACKAGE


@pytest.mark.faults
@pytest.mark.parametrize("answer", ["another file", "unreachable"])
def test_a_runtime_that_cannot_be_fetched(answer, workspace, quick, monkeypatch, capsys):
    """One line names the command that fetches the file elsewhere, and nothing is kept."""
    with serve() as server:
        address = server.add("/runtime.tgz", bytes(len(PACKAGE)))
        monkeypatch.setattr(generation.demo, "ADDRESS", address)
        if answer == "another file":
            assert demo_cli("cats", "-o=a.html") == 2
    if answer == "unreachable":
        assert demo_cli("cats", "-o=a.html") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"npm pack onnxruntime-web@{generation.demo.VERSION}" in err
    assert "--runtime" in err and address in err
    assert not list((workspace / "home").rglob("*.tgz")) and not (workspace / "a.html").exists()


# ---- Mistakes

MISTAKES = {
    "direction of a DCGAN": (["cats", "--direction=X2Y", "-o=a.html"], ["--direction", "X2Y", "leave it out"]),
    "unknown direction": (["fruit", "--direction=A2B", "-o=a.html"], ["--direction", "A2B", "X2Y or Y2X"]),
    "no run": (["nowhere", "-o=a.html"], ["nowhere", "give a run folder"]),
    "no checkpoint": (["cats", "--checkpoint=7", "-o=a.html"], ["--checkpoint", "7"]),
    "ending": (["cats", "-o=a.png"], ["--out", "a.png", ".html"]),
    "exists": (["cats", "-o=taken.html"], ["--out", "taken.html", "--overwrite"]),
    "no runtime": (["cats", "--runtime=none.tgz", "-o=a.html"], ["--runtime", "none.tgz", "npm pack"]),
    "other runtime": (["cats", "--runtime=taken.html", "-o=a.html"], ["--runtime", "taken.html", "SHA-256"]),
    "no output": (["cats"], ["--out"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake, workspace, monkeypatch, capsys):
    """One line, exit code 2, nothing written, and nothing fetched."""
    monkeypatch.setattr(generation.demo, "fetch", lambda *_: pytest.fail("it must not be fetched"))
    arguments, words = MISTAKES[mistake]
    if not any(word.startswith("--runtime") for word in arguments):
        arguments = [*arguments, "--runtime=runtime.tgz"]
    (workspace / "taken.html").write_text("mine")
    before = sorted(workspace.iterdir())
    assert demo_cli(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and all(word in err for word in words), err
    assert sorted(workspace.iterdir()) == before and (workspace / "taken.html").read_text() == "mine"


def test_missing_packages(workspace, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else find(name))
    assert demo_cli("cats", "-o=a.html") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "pip install onnx onnxscript onnxruntime" in err
