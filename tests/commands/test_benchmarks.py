"""The scripts in benchmarks/: what they measure, print and start."""

import json
import re
import subprocess
from types import SimpleNamespace

import pytest
import torch

from benchmarks import plain, speed, tfrecords, video
from images.toy_cats import ensure_toy_cats
from images.video import Video
from tests.conftest import train


@pytest.fixture
def speed_here(tmp_path, monkeypatch):
    """speed.py measures in this process, on 20 toy cats."""
    root = ensure_toy_cats(tmp_path / "cats", 64, train=20, test=2)
    monkeypatch.setattr(speed, "toy_cats", lambda size: root)
    monkeypatch.setattr(speed, "measure_apart", speed.measure_here)


def test_speed(speed_here, capsys):
    flags = ["--case=DCGAN-64", "--seconds=0.1", "--rounds=2", "--device=cpu", "--amp=off", "--json"]
    assert speed.main(flags) == 0
    text = capsys.readouterr().out
    result = json.loads(text[text.index("{\n") :])
    [row] = result["cases"]
    assert row["case"] == "DCGAN-64" and row["precision"] == "float32" and len(row["ratios"]) == 2
    assert "thread(s)" in result["machine"]
    assert row["ratio"] == pytest.approx(sum(row["ratios"]) / 2), "the median of two numbers is their mean"
    assert min(row["ratios"]) / 2 < row["ours"]["rate"] / row["plain"]["rate"] < 2 * max(row["ratios"])
    # Per batch of 16 D takes 0.856 GFLOP forward and G 0.869; the step needs 5 and 6 of D (less the first layer's
    # gradients in D's update) and 3 of G (less that for z).
    assert row["gflop"] == pytest.approx(9.34, rel=0.01)
    assert row["share_of_floor"] == pytest.approx(row["ours"]["rate"] * row["gflop"] / row["gflops"])
    sides = ("plain", "ours", "busy")
    assert all(0.1 < row[side]["rate"] < 100 and 200 < row[side]["memory_mb"] < 5000 for side in sides)


@pytest.mark.parametrize("case", speed.CASES)
def test_the_plain_networks_are_those_of_the_project(case, tmp_path, speed_here):
    """Except for biases that a norm cancels, and layers without weights."""
    options = speed.read_options(case, torch.device("cpu"), str(tmp_path), "auto")
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


def test_speed_in_bf16(speed_here, monkeypatch, capsys):
    """The project and the matrix product use bf16; the result is a table."""
    seen = []
    products = speed.measure_products
    monkeypatch.setattr(speed, "measure_products", lambda *arguments: seen.append(arguments[2]) or products(*arguments))
    started = speed.cycle_gan.main
    monkeypatch.setattr(speed.cycle_gan, "main", lambda options: seen.append(options.amp) or started(options))
    assert speed.main(["--case=CycleGAN-64", "--seconds=0.1", "--rounds=1", "--device=cpu", "--amp=bf16"]) == 0
    assert seen == ["bf16", torch.bfloat16, "off", "bf16"], "the operations are counted in float32"
    cells = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    number = r"[\d.]+"
    patterns = ["CycleGAN-64", "bfloat16", number, number, rf"{number} \({number}\)", r"27\.8", rf"{number} at \d+"]
    for pattern, cell in zip([*patterns, r"\d+%", rf"{number} \(\d+%\)", r"\d+, \d+"], cells, strict=True):
        assert re.fullmatch(pattern, cell), cells


def test_another_process_is_busy_only_while_the_busy_side_runs(monkeypatch):
    """And it does not outlive the measurement."""
    events = []
    popen = subprocess.Popen

    def start(command):
        events.append(popen(command))
        return events[-1]

    def measure(command, **_):
        side = command[command.index("--side") + 1]
        events.append((side, bool(events) and not isinstance(events[-1], tuple) and events[-1].poll() is None))
        return SimpleNamespace(returncode=0, stdout='{"rate": 1.0}\n')

    monkeypatch.setattr(speed.subprocess, "Popen", start)
    monkeypatch.setattr(speed.subprocess, "run", measure)
    for side in ("ours", "busy"):
        assert speed.measure_apart(side, "DCGAN-64", 1.0, torch.device("cpu"), "off") == {"rate": 1.0}
    (first, process, second) = events
    assert (first, second) == (("ours", False), ("busy", True)) and process.poll() is not None


def test_speed_counts_after_a_warm_up(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(speed.time, "monotonic", lambda: now[0])
    watch = speed.Stopwatch(8.0, torch.device("cpu"))
    with pytest.raises(speed.TimeIsUp):
        for step in range(100):
            now[0] += 10.0 if step == 0 else 0.5  # the first step is slow
            watch.tick()
    assert watch.rate == pytest.approx(2.0)


def test_video(domains, tmp_path, monkeypatch, capsys):
    """It measures the network alone and the command, on a video of the requested length."""
    assert train(f"--data={domains}", "--train_iters=1", f"--checkpoint_dir={tmp_path}", "--name=run",
                 script="cycle_gan.py") == 0  # fmt: skip
    monkeypatch.setattr(video, "toy_cats", lambda size: ensure_toy_cats(tmp_path / "cats", size, train=2, test=2))
    lengths, rates = [], iter([10.0, 8.0, 20.0, 18.0])
    for name in ("time_network", "time_translate"):
        measure = getattr(video, name)
        monkeypatch.setattr(video, name, lambda run, direction, path, measure=measure: (
            lengths.append(len(list(Video(path)))), measure(run, direction, path))[1])  # fmt: skip
    capsys.readouterr()
    assert video.main([str(tmp_path / "run"), "--direction=Y2X", "--seconds=0.5", "--rounds=1"]) == 0
    assert lengths == [15, 15]
    number = r"\d+\.\d+"
    assert re.fullmatch(rf"the network {number} frames/s, translate {number}: {number} \({number}\)\n",
                        capsys.readouterr().out)  # fmt: skip
    for name in ("time_network", "time_translate"):
        monkeypatch.setattr(video, name, lambda *arguments: next(rates))
    assert video.main([str(tmp_path / "run"), "--seconds=0.1", "--rounds=2"]) == 0
    assert capsys.readouterr().out == "the network 15.0 frames/s, translate 13.0: 0.85 (0.80, 0.90)\n"


def test_tfrecords(monkeypatch, capsys):
    """It measures the same images in both places, in alternate order, and divides the records by the folder."""
    places, measure = [], tfrecords.time_decoding

    def time_decoding(location, size):
        assert all(seconds > 0 for seconds in measure(location, size))
        places.append((location.name, sum(1 for _ in location.iterdir())))
        return (3.0, 4.0) if location.name == "records" else (2.0, 4.0)

    monkeypatch.setattr(tfrecords, "time_decoding", time_decoding)
    assert tfrecords.main(["--count=103", "--size=16", "--rounds=2"]) == 0
    folder, records = ("folder", 103), ("records", 2)
    assert places == [folder, records, folder, records, records, folder]
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "by the clock: folder 2.00 s, records 3.00 s: 1.50 (1.50, 1.50)",
        "of the processor: folder 4.00 s, records 4.00 s: 1.00 (1.00, 1.00)",
    ]
