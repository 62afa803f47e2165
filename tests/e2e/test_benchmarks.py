"""The scripts in benchmarks/."""

import json
import re

import pytest
import torch

from benchmarks import plain, speed, toy_pairs
from data.toy_cats import ensure_toy_cats
from tests.conftest import ROOT, command, train
from utils import UserError


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A few toy cats, in the place of the real ones."""
    root = ensure_toy_cats(tmp_path / "cats", 32, train=6, test=3)
    monkeypatch.setattr(toy_pairs, "toy_cats", lambda size: root)
    return root


@pytest.fixture
def run(root, tmp_path):
    flags = [f"--data={root}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=1"]
    assert train(*flags, script="cycle_gan.py") == 0
    return tmp_path / "run"


def table(capsys, *arguments) -> dict[str, list[float]]:
    """The printed rows: name -> L1 and SSIM of both directions."""
    capsys.readouterr()
    assert toy_pairs.main([*map(str, arguments)]) == 0
    lines = [line.rsplit(maxsplit=4) for line in capsys.readouterr().out.splitlines()[3:]]
    return {name.strip().rsplit("/")[-1]: [float(number) for number in numbers] for name, *numbers in lines}


def test_toy_pairs(run, capsys):
    before = table(capsys, run)
    assert list(before) == ["same image", "mean image", "run, 1 iterations"]
    same, trained = before["same image"], before["run, 1 iterations"]
    assert same[:2] == same[2:] and 0.05 < same[0] < 0.2 and 0.4 < same[1] < 0.9, "both measures are symmetric"
    assert trained[0] > same[0] and trained[1] < same[1], "an untrained generator is worse"

    # It is the moving average that is measured.
    path = run / "checkpoint-000001.pt"
    checkpoint = torch.load(path, weights_only=True)
    for part, changes in (("networks", False), ("ema", True)):
        for value in checkpoint[part]["G_XtoY"].values():
            value.mul_(3)
        torch.save(checkpoint, path)
        after = table(capsys, run)
        assert (after["run, 1 iterations"][:2] != trained[:2]) is changes
    assert after["run, 1 iterations"][2:] == trained[2:], "the other generator is as it was"


def test_directions_and_range(run, root, capsys, monkeypatch):
    """Generators that change nothing score as the identity map, and perfect ones have a difference of 0."""
    size = 32
    cats = {name: toy_pairs.load_all(root / name, size) * 2 - 1 for name in ("testA", "testB", "trainA", "trainB")}

    def use(a_to_b, b_to_a):
        networks = {"G_XtoY": torch.nn.Identity(), "G_YtoX": torch.nn.Identity()}
        networks["G_XtoY"].forward, networks["G_YtoX"].forward = a_to_b, b_to_a
        for network in networks.values():
            network.load_state_dict = lambda state: None
        monkeypatch.setattr(toy_pairs, "build_networks", lambda options: networks)
        return table(capsys, run)

    rows = use(lambda x: x, lambda y: y)
    assert rows["run, 1 iterations"] == rows["same image"]

    def perfect(source, target):
        def translate(images):
            torch.testing.assert_close(images, cats[source])
            return cats[target]

        return translate

    assert use(perfect("testA", "testB"), perfect("testB", "testA"))["run, 1 iterations"] == [0, 1, 0, 1]
    means = [cats[name].mean(0).expand(3, -1, -1, -1) for name in ("trainB", "trainA")]
    rows = use(lambda x: means[0], lambda y: means[1])
    assert rows["run, 1 iterations"] == rows["mean image"]


def test_runs_of_the_same_name(run, root, tmp_path, capsys):
    """Each has its row, and a run on the folders of the toy cats is one on toy cats."""
    flags = [f"--X={root / 'trainA'}", f"--Y={root / 'trainB'}", f"--checkpoint_dir={tmp_path / 'b'}", "--name=run"]
    assert train(*flags, "--train_iters=2", script="cycle_gan.py") == 0
    rows = table(capsys, run, tmp_path / "b" / "run")
    assert list(rows)[2:] == ["run, 1 iterations", "run, 2 iterations"]


def test_scores():
    """A set is at distance 0 from itself, and at a known one from itself made brighter."""
    images = torch.rand(3, 3, 32, 32) * 0.5
    assert toy_pairs.score(images, images) == pytest.approx((0, 1), abs=1e-6)
    l1, ssim = toy_pairs.score(images, images + 0.25)
    assert l1 == pytest.approx(0.25) and ssim < 0.99


def test_only_runs_on_toy_cats(domains, tmp_path):
    flags = [f"--data={domains}", f"--checkpoint_dir={tmp_path}", "--train_iters=1"]
    assert train(*flags, "--name=root", script="cycle_gan.py") == 0
    two = [f"--X={domains / 'trainA'}", f"--Y={domains / 'trainB'}"]
    assert train(*two, *flags[1:], "--name=two", script="cycle_gan.py") == 0
    for name in ("root", "two"):
        with pytest.raises(UserError, match="was not trained on toy cats"):
            toy_pairs.main([str(tmp_path / name)])
    assert train(*flags[1:], "--name=vanilla", f"--data={domains / 'trainA'}") == 0
    with pytest.raises(UserError, match=r"is a run of vanilla_gan\.py"):
        toy_pairs.main([str(tmp_path / "vanilla")])


def test_toy_pairs_on_the_command_line(tmp_path):
    result = command(ROOT / "benchmarks" / "toy_pairs.py", str(tmp_path / "nowhere"), cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == "" and result.stderr.count("\n") == 1
    assert "nowhere is no folder" in result.stderr


# ---- Speed


@pytest.fixture
def speed_here(tmp_path, monkeypatch):
    """The sides of a case measured in this process, on a few toy cats."""
    root = ensure_toy_cats(tmp_path / "cats", 64, train=20, test=2)
    monkeypatch.setattr(speed, "toy_cats", lambda size: root)
    monkeypatch.setattr(speed, "measure_apart", speed.measure_here)


def test_speed(speed_here, capsys):
    flags = ["--case=DCGAN-64", "--seconds=0.1", "--rounds=2", "--device=cpu"]
    assert speed.main([*flags, "--json"]) == 0
    text = capsys.readouterr().out
    result = json.loads(text[text.index("{\n") :])
    [row] = result["cases"]
    assert row["case"] == "DCGAN-64" and len(row["ratios"]) == 2 and "thread(s)" in result["machine"]
    assert row["ratio"] == pytest.approx(sum(row["ratios"]) / 2), "the median of two"
    assert min(row["ratios"]) / 2 < row["ours"]["rate"] / row["plain"]["rate"] < 2 * max(row["ratios"])
    # Per batch of 16 D takes 0.856 GFLOP forward and G 0.869; the step needs 5 and 6 of D (less the first layer's
    # gradients in D's update) and 3 of G (less that for z).
    assert row["gflop"] == pytest.approx(9.34, rel=0.01)
    assert row["share_of_floor"] == pytest.approx(row["ours"]["rate"] * row["gflop"] / row["gflops"])
    assert all(0.1 < row[side]["rate"] < 100 and 200 < row[side]["memory_mb"] < 5000 for side in ("plain", "ours"))
    assert speed.main(flags) == 0
    cells = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    patterns = [
        "DCGAN-64",
        r"[\d.]+",
        r"[\d.]+",
        r"[\d.]+ \([\d.]+, [\d.]+\)",
        r"9\.\d",
        r"[\d.]+ at \d+",
        r"\d+%",
        r"\d+, \d+",
    ]
    assert all(re.fullmatch(pattern, cell) for pattern, cell in zip(patterns, cells, strict=True)), cells


@pytest.mark.parametrize("case", speed.CASES)
def test_the_plain_networks_are_ours(case, tmp_path, speed_here):
    """Up to the bias that a norm would undo, and layers without weights."""
    options = speed.read_options(case, torch.device("cpu"), str(tmp_path))
    networks = speed.CASES[case][0].build_networks(options)
    builders = {
        "DCGAN-64": {"G": plain.dcgan_generator, "D": plain.dc_discriminator},
        "CycleGAN-64": {"G_XtoY": plain.cycle_generator, "D_X": plain.patch_discriminator},
        "CycleGAN-256": {"G_XtoY": plain.resnet_generator, "D_X": plain.patch70_discriminator},
    }
    for name, build in builders[case].items():
        shapes = [[tuple(p.shape) for p in network.parameters()] for network in (networks[name], build())]
        assert shapes[0] == shapes[1]
    assert (options.lr, options.batch_size) == (5e-4, 1 if case == "CycleGAN-256" else 16)


def test_speed_counts_after_a_warm_up(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(speed.time, "monotonic", lambda: now[0])
    watch = speed.Stopwatch(8.0, torch.device("cpu"))
    with pytest.raises(speed.Enough):
        for step in range(100):
            now[0] += 10.0 if step == 0 else 0.5  # the first step is slow
            watch.tick()
    assert watch.rate == pytest.approx(2.0)
