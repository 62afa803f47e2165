"""grids.png: the images of generate.py sample, translations under their inputs, missing networks, long labels."""

from pathlib import Path

import numpy as np
import pytest
import torch

from generate import load_generator
from generation.sampling import sample
from images.decoding import decode
from images.files import read_image
from models import build_dc_generator, build_translator
from options.commands import SampleOptions
from runs.checkpoints import write_checkpoint
from sweeps.figure import GAP, LARGE, MARGIN, SMALL, Strip, draw_strips, write_grids
from sweeps.grid import Case, Job, Sweep
from system.program import set_up_log
from tests.conftest import OPTIONS, make_photo, make_photos
from tests.helpers.run_folders import write_run


def make_sweep(root: Path, script: str, labels=("a", "b")) -> Sweep:
    """Return a sweep with one seed; its runs do not exist yet."""
    cases = [Case(label=label) for label in labels]
    jobs = [Job(case=case, seed=1, folder=root / f"{i}-1") for i, case in enumerate(cases)]
    return Sweep(name="s", script=script, base={}, cases=cases, seeds=[1], folder=root, jobs=jobs)


def write_network(folder: Path, script: str, **options) -> None:
    """Write a run with a checkpoint of untrained generators."""
    write_run(folder, script, grids=0, **options)
    (folder / "data.json").unlink()
    values = OPTIONS[script](**options)
    is_dcgan = script == "vanilla_gan.py"
    build, names = (build_dc_generator, ["G"]) if is_dcgan else (build_translator, ["G_XtoY", "G_YtoX"])
    networks = {name: build(values).state_dict() for name in names}
    content = {"script": script, "options": values.to_dict(), "step": 7, "networks": networks, "ema": {}}
    write_checkpoint(folder / "checkpoint-000007.pt", content)


def find(page: np.ndarray, image: np.ndarray) -> list[tuple[int, int]]:
    """Return where a page shows an image: (top, left) of each place."""
    first = np.argwhere((page == image[0, 0]).all(axis=2))
    h, w = image.shape[:2]
    return [(y, x) for y, x in first.tolist() if np.array_equal(page[y : y + h, x : x + w], image)]


@pytest.mark.golden
def test_rows_of_dcgans_show_the_samples_of_generate(tmp_path):
    """Number i of each row is the image of seed i, at twice its size; the next row has another network."""
    sweep = make_sweep(tmp_path, "vanilla_gan.py")
    for job, scale in zip(sweep.jobs, (2, 3), strict=True):
        write_network(job.folder, "vanilla_gan.py", image_size=32, conv_dim=scale, noise_size=4)
    assert write_grids(tmp_path / "grids.png", sweep)
    page = read_image(tmp_path / "grids.png")
    places = []
    for job in sweep.jobs:
        assert sample(SampleOptions(run=str(job.folder), n=3, out=str(job.folder / "out"), device="cpu")) == 0
        shown = [read_image(job.folder / f"out/seed-{seed:06d}.png").repeat(2, 0).repeat(2, 1) for seed in range(3)]
        places.append([find(page, image) for image in shown])
    (top, left) = places[0][0][0]
    side = SMALL + GAP
    assert places == [[[(top + row * side, left + i * side)] for i in range(3)] for row in range(2)]


def test_rows_of_cyclegans_show_translations_under_their_inputs(tmp_path):
    sweep = make_sweep(tmp_path / "runs", "cycle_gan.py", ("a", "b", "larger", "missing"))
    for name in ("X", "Y"):
        make_photos(tmp_path / name, 3, seed=ord(name))
    folders = {name: str(tmp_path / name) for name in ("X", "Y")}
    for job, size in zip(sweep.jobs, (32, 32, 64), strict=False):
        write_network(job.folder, "cycle_gan.py", image_size=size, g_conv_dim=2, n_res_blocks=1, **folders)
    assert write_grids(tmp_path / "grids.png", sweep)
    page = read_image(tmp_path / "grids.png")
    x = {size: decode(make_photo((40, 48), ord("X")), size).pixels for size in (32, 64)}  # (3, S, S)

    def places(pixels: torch.Tensor) -> list[tuple[int, int]]:
        scale = SMALL // pixels.shape[1]
        return find(page, pixels.permute(1, 2, 0).numpy().repeat(scale, 0).repeat(scale, 1))

    [(top, left)] = places(x[32])  # one row of inputs for two settings
    assert places(x[64]) == [(top + 3 * (SMALL + GAP), left)]  # another one for those of another size
    G = load_generator(sweep.jobs[1].folder, "X2Y")
    images = torch.stack([decode(make_photo((40 + 3 * i, 48), ord("X") + i), 32).pixels for i in range(3)])
    translation = ((G(images / 127.5 - 1) + 1) * 127.5).round().byte()
    assert places(translation[2]) == [(top + 2 * (SMALL + GAP), left + 2 * (SMALL + GAP))]
    assert page.shape[0] == top + 6 * (SMALL + GAP) + MARGIN


def test_no_picture_without_a_network(tmp_path):
    assert not write_grids(tmp_path / "grids.png", make_sweep(tmp_path, "vanilla_gan.py"))
    assert not (tmp_path / "grids.png").exists()


@pytest.mark.faults
def test_missing_inputs_leave_a_row_empty(tmp_path, capsys):
    set_up_log()
    sweep = make_sweep(tmp_path / "runs", "cycle_gan.py", ("a",))
    folders = {name: str(make_photos(tmp_path / name, 1)) for name in ("X", "Y")}
    write_network(sweep.jobs[0].folder, "cycle_gan.py", image_size=32, g_conv_dim=2, n_res_blocks=1, **folders)
    (tmp_path / "X/0.png").write_bytes(b"no picture")
    assert not write_grids(tmp_path / "grids.png", sweep)
    assert "its images cannot be read" in capsys.readouterr().out


def test_long_labels_and_large_images():
    """A label has at most four lines; large images become smaller, and fewer if there are many rows."""
    noise = torch.randint(0, 256, (8, 3, 128, 128), dtype=torch.uint8)
    words = " ".join(["option=value,"] * 100)
    one = draw_strips([Strip(words, [noise], "iteration 7")], "title", [])
    many = draw_strips([Strip(words, [noise])] * 9, "title " * 100, [])
    assert one.height < 140 and one.width - many.width == 4 * (LARGE + GAP)
    assert many.width < 700 and many.height < 1000


def test_nothing_is_drawn_over_anything_else():
    """Two groups of four images keep their distance, and a long label stays in its row."""
    noise = torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
    rows = [Strip("option=value, " * 50, [noise, noise]), Strip("", [noise, noise])]
    page = np.asarray(draw_strips(rows, "", ["X to Y", "Y to X"]).convert("L"))
    top = page.shape[0] - MARGIN - SMALL - GAP  # of the second row, whose label is empty
    filled = np.flatnonzero(page[top] == 0)
    assert len(filled) == 8 * SMALL and sorted(set(np.diff(filled).tolist())) == [1, GAP + 1, GAP + MARGIN + 1]
    assert (page[top:, : filled[0]] == 255).all() and not (page[: top - GAP, : filled[0]] == 255).all()
