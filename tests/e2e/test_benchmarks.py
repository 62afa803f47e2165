"""The scripts in benchmarks/."""

import pytest
import torch

from benchmarks import toy_pairs
from data.toy_cats import ensure_toy_cats
from tests.conftest import ROOT, command, train


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A few toy cats, in the place of the real ones."""
    root = ensure_toy_cats(tmp_path / "cats", 32, train=6, test=3)
    monkeypatch.setattr(toy_pairs, "toy_cats", lambda size: root)
    return root


def table(capsys, *arguments) -> dict[str, list[float]]:
    """The printed rows: name -> L1 and SSIM of both directions."""
    capsys.readouterr()
    assert toy_pairs.main(["--image_size=32", *map(str, arguments)]) == 0
    lines = capsys.readouterr().out.splitlines()[3:]
    return {line[:36].strip(): [float(word) for word in line[36:].split()] for line in lines}


def test_toy_pairs(root, tmp_path, capsys):
    flags = [f"--data={root}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=1"]
    assert train(*flags, script="cycle_gan.py") == 0
    before = table(capsys, tmp_path / "run")
    assert list(before) == ["same image", "mean image", "run, 1 iterations"]
    same, run = before["same image"], before["run, 1 iterations"]
    assert same[:2] == same[2:] and 0.05 < same[0] < 0.2 and 0.4 < same[1] < 0.9, "both measures are symmetric"
    assert run[0] > same[0] and run[1] < same[1], "an untrained generator is worse"

    # It is the moving average that is measured.
    path = tmp_path / "run" / "checkpoint-000001.pt"
    checkpoint = torch.load(path, weights_only=True)
    for part, changes in (("networks", False), ("ema", True)):
        for value in checkpoint[part]["G_XtoY"].values():
            value.mul_(3)
        torch.save(checkpoint, path)
        after = table(capsys, tmp_path / "run")
        assert (after["run, 1 iterations"][:2] != run[:2]) is changes
    assert after["run, 1 iterations"][2:] == run[2:], "the other generator is as it was"


def test_scores():
    """A set is at distance 0 from itself, and at a known one from itself made brighter."""
    images = torch.rand(3, 3, 32, 32) * 0.5
    assert toy_pairs.score(images, images) == pytest.approx((0, 1), abs=1e-6)
    l1, ssim = toy_pairs.score(images, images + 0.25)
    assert l1 == pytest.approx(0.25) and ssim < 0.99


def test_toy_pairs_on_the_command_line(tmp_path):
    result = command(ROOT / "benchmarks" / "toy_pairs.py", "--image_size=32", str(tmp_path), cwd=tmp_path)
    assert (
        result.returncode == 2 and "holds no complete checkpoint" in result.stderr and "Traceback" not in result.stderr
    )
