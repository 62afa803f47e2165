"""Generators of the CycleGAN authors by name, downloaded from a server on this machine."""

import hashlib
import io
import time

import numpy as np
import pytest
import torch
from PIL import Image

import generate
from generation import pretrained
from generation.pretrained import fetch_pretrained
from options.command_line import parse_subcommand
from options.pretrained import PRETRAINED
from system.program import run_main
from tests.conftest import make_photo
from tests.generation.test_authors_models import plain_translation, random_generator
from tests.helpers.loopback import serve
from utils import UserError


def run(*arguments: object) -> int:
    """Run generate.py in this process; return its exit code."""
    try:
        options = parse_subcommand(generate.OPTIONS_OF, "", [*map(str, arguments)])
    except SystemExit as stop:
        return stop.code
    return run_main(lambda: generate.main(options), "generate.py")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of torch's downloaded weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return tmp_path / "torch/hub/checkpoints"


@pytest.fixture
def server(cache, monkeypatch):
    with serve() as server:
        content = io.BytesIO()
        torch.save(random_generator(9), content)
        server.add("/horse2zebra.pth", content.getvalue())
        monkeypatch.setattr(pretrained, "ADDRESS", server.address)
        yield server


@pytest.fixture
def horse(tmp_path):
    make_photo((48, 32), 0).save(tmp_path / "horse.png")
    return tmp_path / "horse.png"


@pytest.mark.golden
def test_a_translation(server, cache, horse, tmp_path, capsys):
    """The pixels are those of a plain network with the weights that the server has; other weights give other pixels."""
    assert run("translate", "pretrained:horse2zebra", horse, "-o", tmp_path / "zebra.png", "--device=cpu") == 0
    out = capsys.readouterr().out
    assert "horses to zebras, trained by Zhu et al. (ICCV 2017)" in out and "BSD license" in out
    assert "junyanz/pytorch-CycleGAN-and-pix2pix" in out and f"{server.address}/horse2zebra.pth" in out
    x = torch.from_numpy(np.array(Image.open(horse))).permute(2, 0, 1)[None].float() / 127.5 - 1
    found = np.array(Image.open(tmp_path / "zebra.png")).astype(int)
    for seed, most in ((0, 1), (1, 255)):
        expected = (
            ((plain_translation(random_generator(9, seed), x, 9)[0].permute(1, 2, 0) + 1) * 127.5).round().numpy()
        )
        assert np.abs(found - expected).max() <= most
    assert np.abs(found - expected).max() > 20, "the weights of another seed"


def test_it_is_downloaded_once(server, cache, capsys):
    file = fetch_pretrained("horse2zebra")
    assert file == cache / "cyclegan-horse2zebra.pth"
    sha256 = hashlib.sha256(server.files["/horse2zebra.pth"]).hexdigest()
    assert (cache / "cyclegan-horse2zebra.pth.sha256").read_text() == f"{sha256}  cyclegan-horse2zebra.pth\n"
    fetch_pretrained("horse2zebra")
    G = generate.load_generator("pretrained:horse2zebra")
    assert server.requests == ["/horse2zebra.pth"] and G(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 32, 32)
    file.write_bytes(b"damaged")
    fetch_pretrained("horse2zebra")
    assert len(server.requests) == 2 and file.read_bytes() == server.files["/horse2zebra.pth"]


def test_a_file_that_the_user_put_there(server, cache):
    cache.mkdir(parents=True)
    torch.save(random_generator(6), cache / "cyclegan-zebra2horse.pth")
    assert fetch_pretrained("zebra2horse").exists() and not server.requests
    (cache / "cyclegan-sat2map.pth").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"cyclegan-sat2map\.pth: no weights \(.*a web page\); delete it, and use"):
        fetch_pretrained("sat2map")
    assert (cache / "cyclegan-sat2map.pth").exists(), "a file of the user is not deleted"


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["network", "missing", "page", "changed"])
def test_a_failed_download(server, cache, horse, tmp_path, capsys, fault):
    if fault == "changed":
        fetch_pretrained("horse2zebra").unlink()
        server.files["/horse2zebra.pth"] += b"x"
    elif fault == "page":
        server.add("/horse2zebra.pth", b"<html>log in</html>")
    elif fault == "missing":
        server.files.clear()
    else:
        server.server_close()
    capsys.readouterr()
    assert run("translate", "pretrained:horse2zebra", horse, "-o", tmp_path / "zebra.png") == 2
    words = {
        "network": "no connection to the server",
        "missing": f"404 Not Found; get the file in another way and put it at {cache}",
        "page": "a web page); try again later",
        "changed": "is not that of the first download",
    }
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and words[fault] in err, err
    assert not [*cache.glob("*.pth")] and not (tmp_path / "zebra.png").exists()
    assert [*cache.iterdir()] == [cache / "cyclegan-horse2zebra.pth.sha256"] * (fault == "changed")


def test_names(server, horse, tmp_path, capsys):
    assert len(PRETRAINED) == 18
    assert run("translate", "pretrained:list") == 0
    out = capsys.readouterr().out
    assert all(f"pretrained:{name} " in out for name in PRETRAINED) and "Zhu et al." in out
    for name, hint in (("horse2zebr", "did you mean pretrained:horse2zebra"), ("cats", "pretrained:list shows")):
        assert run("translate", f"pretrained:{name}", horse, "-o", tmp_path / "zebra.png") == 2
        err = capsys.readouterr().err
        assert f"RUN: pretrained:{name} is unknown" in err and hint in err and err.count("\n") == 1
    assert not server.requests


def test_other_commands(server, horse, tmp_path, capsys):
    assert run("sample", "pretrained:horse2zebra", "-n", 1, "-o", tmp_path / "x") == 2
    assert "use generate.py translate" in capsys.readouterr().err
    flags = ["-o", tmp_path / "zebra.png"]
    assert run("translate", "pretrained:horse2zebra", horse, "--direction=Y2X", *flags) == 2
    assert "--direction: Y2X is unknown" in capsys.readouterr().err
    assert run("translate", "pretrained:horse2zebra", horse, "--direction=X2Y", *flags) == 0
    out = tmp_path / "x.pt"
    assert run("export", "pretrained:horse2zebra", "--format=torchscript", "-o", out) == 0 and out.exists()
