"""generate.py on two tiny runs: what each flag changes, what each mistake leads to, and which files are written."""

import itertools
import shutil
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import generate
from generate import load_generator
from generation.translation import translate_image
from images.animation import Animation
from images.video import Frame, Video, write_video
from models import DCGenerator, sample_latents
from options.command_line import parse_subcommand
from system.program import run_main
from tests.conftest import ROOT, command, make_domains, make_photo, train
from tests.helpers.run_folders import work_beside
from utils import UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A DCGAN `cats` and a CycleGAN `fruit` of 32x32 images, with checkpoints at 1 and 2."""
    folder = tmp_path_factory.mktemp("runs")
    make_domains(folder / "domains")
    flags = [f"--checkpoint_dir={folder}", "--train_iters=2", "--checkpoint_every=1"]
    assert train(f"--data={folder / 'domains/trainA'}", "--name=cats", *flags) == 0
    assert train(f"--data={folder / 'domains'}", "--name=fruit", "--disc=patch", *flags, script="cycle_gan.py") == 0
    shutil.copy(folder / "cats" / "checkpoint-000002.pt", folder / "cats" / "best.pt")
    return folder


@pytest.fixture
def workspace(runs, tmp_path, monkeypatch):
    """An empty folder to work in, with links to the runs."""
    work_beside(runs, tmp_path, monkeypatch)
    return tmp_path


def generate_cli(*arguments: str) -> int:
    """Run generate.py in this process; return its exit code."""
    device = [] if arguments[0] == "export" else ["--device=cpu"]
    try:
        options = parse_subcommand(generate.OPTIONS_OF, generate.__doc__, [*arguments, *device])
    except SystemExit as stop:
        return stop.code
    return run_main(lambda: generate.main(options), "generate.py")


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def make_video(path, count: int = 12, side: int = 32) -> list[Frame]:
    """Write a video of smooth images with uneven times."""
    frames = [Frame(i + i // 5, 1, np.array(make_photo((side, side), i))) for i in range(count)]
    write_video(path, frames, Fraction(10), Fraction(1, 10))
    return frames


# ---- sample


def test_each_image_depends_on_its_seed_only(workspace):
    assert generate_cli("sample", "cats", "-n", "9", "-o", "many", "--grid", "grid.png") == 0
    assert generate_cli("sample", "cats", "--seeds", "7,3-4", "-o", "few") == 0
    assert sorted(path.name for path in (workspace / "few").iterdir()) == [f"seed-00000{i}.png" for i in (3, 4, 7)]
    assert len(list((workspace / "many").iterdir())) == 9
    for path in (workspace / "few").iterdir():
        assert path.read_bytes() == (workspace / "many" / path.name).read_bytes()
    assert len({path.read_bytes() for path in (workspace / "many").iterdir()}) == 9
    # The grid shows the same images: row 0 has 0 to 2, with 2 pixels between them.
    grid = pixels("grid.png")
    assert grid.shape == (3 * 34 + 2, 3 * 34 + 2, 3)
    assert np.array_equal(grid[2:34, 2 + 34 : 34 + 34], pixels("many/seed-000001.png"))


def test_images_come_from_the_moving_average_and_uniform_latents(workspace):
    """Against G rebuilt from the checkpoint by hand."""
    content = torch.load(workspace / "cats" / "checkpoint-000002.pt", weights_only=True)
    G = load_generator("cats")
    assert all(torch.equal(value, content["ema"]["G"][name]) for name, value in G.state_dict().items())
    assert any(not torch.equal(value, content["networks"]["G"][name]) for name, value in G.state_dict().items())
    assert generate_cli("sample", "cats", "--seeds=5", "--truncation=0.25", "-o", "out") == 0
    z = 0.25 * sample_latents(1, G.noise_size, torch.device("cpu"), torch.Generator().manual_seed(5))
    expected = ((G(z)[0] + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.abs(pixels("out/seed-000005.png") - expected).max() <= 1
    assert not G.training and not any(parameter.requires_grad for parameter in G.parameters())


def test_results_do_not_depend_on_the_number_of_threads(workspace, monkeypatch):
    """To the last bit. With four threads, four images are made at once."""
    forward = DCGenerator.forward
    for threads in (1, 4):
        torch.set_num_threads(threads)
        try:
            for line in (
                f"sample cats -n40 -o out{threads} --grid grid{threads}.png",
                f"interpolate cats --seeds=0-2 --frames=20 -o walk{threads}.gif",
            ):
                calls, together = itertools.count(), threading.Barrier(threads, timeout=30)

                def at_once(G, z, calls=calls, together=together, threads=threads):
                    if next(calls) < threads:
                        together.wait()  # an error unless the first calls run at the same time
                    return forward(G, z)

                monkeypatch.setattr(DCGenerator, "forward", at_once)
                assert generate_cli(*line.split()) == 0
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
    made = [*(workspace / "out1").iterdir(), workspace / "grid1.png", workspace / "walk1.gif"]
    assert len(made) == 42
    for path in made:
        assert path.read_bytes() == (workspace / str(path.relative_to(workspace)).replace("1", "4", 1)).read_bytes()


def test_truncation_and_checkpoint_change_the_images(workspace):
    images = {}
    checkpoints = ("--checkpoint=1", "--checkpoint=newest", "--checkpoint=best")
    for flags in ("", "--truncation=0.5", "--truncation=1.5", *checkpoints):
        assert generate_cli("sample", "cats", "-n2", "--grid=grid.png", "--overwrite", *filter(None, [flags])) == 0
        images[flags] = (workspace / "grid.png").read_bytes()
    assert images["--checkpoint=newest"] == images[""] == images["--checkpoint=best"]
    assert len(set(images.values())) == 4
    assert generate_cli("sample", "cats/checkpoint-000001.pt", "-n2", "--grid=file.png") == 0
    assert (workspace / "file.png").read_bytes() == images["--checkpoint=1"]


def test_through_the_shell(workspace):
    """As users call it; and --help shows a manual, without importing torch."""
    result = command(ROOT / "generate.py", "sample", "cats", "-n", "2", "--grid", "grid.png")
    assert result.returncode == 0 and result.stdout == "sampled 2 images to grid.png\n" and not result.stderr
    code = "import sys, runpy\ntry: runpy.run_path('generate.py', run_name='__main__')\nexcept SystemExit: "
    code += "print('torch' in sys.modules, 'numpy' in sys.modules)"
    for name in ("", *generate.OPTIONS_OF):
        launcher = [
            "-c",
            code.replace("import sys, ", f"import sys; sys.argv[1:] = {[name, '--help'][not name :]}; import "),
        ]
        started = time.monotonic()
        result = command("", launcher=launcher, cwd=ROOT)
        assert f"python generate.py {name or 'sample'} checkpoints/" in result.stdout, result
        assert result.stdout.endswith("False False\n") and time.monotonic() - started < 5


def test_overwrite_leaves_no_samples_of_other_seeds(workspace, capsys):
    """They would be taken for new ones; other files stay."""
    assert generate_cli("sample", "cats", "-n5", "-o", "out") == 0
    for name in ("seed-7.png", "seed-000002.jpg", "my seed-000003.png", "notes.txt"):
        (workspace / "out" / name).touch()
    assert generate_cli("sample", "cats", "--seeds=1,8", "-o", "out", "--overwrite") == 0
    assert "removed 4 earlier samples from out" in capsys.readouterr().out
    names = {"seed-000001.png", "seed-000008.png", "seed-7.png", "seed-000002.jpg", "my seed-000003.png", "notes.txt"}
    assert {path.name for path in (workspace / "out").iterdir()} == names


# ---- interpolate


def test_walk(workspace, capsys):
    """It shows the images that `sample` draws of its seeds; a loop shows no frame twice."""
    assert generate_cli("sample", "cats", "--seeds=3,7", "-o", "images") == 0
    assert generate_cli("interpolate", "cats", "--seeds=3,7", "--frames=5", "-o", "line.gif", "--fps=10") == 0
    assert generate_cli("interpolate", "cats", "--seeds=3,7", "--frames=8", "-o", "loop.gif", "--fps=10", "--loop") == 0
    assert "wrote 8 frames, 0.8 s, to loop.gif" in capsys.readouterr().out
    three, seven = (pixels(f"images/seed-00000{i}.png").astype(int) for i in (3, 7))
    line, loop = ([frame.pixels.astype(int) for frame in Video(workspace / name)] for name in ("line.gif", "loop.gif"))
    assert len(line) == 5 and len(loop) == 8
    for found, expected in ((line[0], three), (line[4], seven), (loop[0], three), (loop[4], seven)):
        assert np.abs(found - expected).mean() < 4  # 256 colors
    assert np.abs(three - seven).mean() > 8
    with Image.open("loop.gif") as looped, Image.open("line.gif") as ended:
        assert looped.info["loop"] == 0 and "loop" not in ended.info and looped.info["duration"] == 100
    last_step = np.abs(loop[7] - loop[0]).mean()  # from the last frame to the first: one step like the others
    assert 0 < last_step < 2 * np.abs(loop[1] - loop[0]).mean() + 2


def test_flags_of_a_walk(workspace):
    walks = {}
    for flags in ("", "--spherical", "--random_walk", "--fps=25", "--seeds=1,2", "--seeds=8,9,10", "--frames=4"):
        arguments = ["--seeds=3,7", "--frames=6", *filter(None, [flags])]
        assert generate_cli("interpolate", "cats", *arguments, "-o", "walk.mp4", "--overwrite") == 0
        walks[flags] = list(Video(workspace / "walk.mp4"))
        assert len(walks[flags]) == (4 if flags == "--frames=4" else 6)
        assert Video(workspace / "walk.mp4").rate == (25 if flags == "--fps=25" else 20)
        for name in ("one.gif", "two.gif"):
            assert generate_cli("interpolate", "cats", *arguments, "-o", name, "--overwrite") == 0
        assert (workspace / "one.gif").read_bytes() == (workspace / "two.gif").read_bytes()
    assert walks[""][0].pixels.shape == (32, 32, 3)
    assert walks["--seeds=1,2"][0].pixels.shape == walks["--random_walk"][0].pixels.shape == (36, 70, 3)
    middle = {flags: frames[2].pixels for flags, frames in walks.items()}
    assert not np.array_equal(middle[""], middle["--spherical"])
    first = {flags: frames[0].pixels[:32, :32].astype(int) for flags, frames in walks.items()}
    changes = {flags: np.abs(image - first[""]).mean() for flags, image in first.items()}
    assert changes["--fps=25"] < 0.3 * changes["--seeds=8,9,10"]  # the compression depends on the rate


# ---- translate


def test_folder(workspace, capsys):
    """N inputs, N outputs, with the same names and sizes; unreadable files are reported, the others translated."""
    folder = workspace / "in"
    folder.mkdir()
    names = {"x.jpg": (40, 36), "x.png": (33, 47), "y.webp": (5, 70), "z.BMP": (32, 32), "t.tiff": (3, 3)}
    names |= {f"{i:03d}.png": (8, 8) for i in range(60)}
    for seed, (name, size) in enumerate(names.items()):
        make_photo(size, seed).save(folder / name)
    (folder / "a-broken.png").write_text("not an image")
    (folder / "notes.txt").write_text("ignored")
    assert generate_cli("translate", "fruit", "in", "--direction=X2Y", "-o", "new/out") == 1
    out, err = capsys.readouterr()
    assert f"translated {len(names)} of {len(names) + 1} to new/out" in out
    assert err.count("\n") == 1 and "a-broken.png: not an image, or a format that" in err
    assert {path.name for path in (workspace / "new/out").iterdir()} == set(names)
    for name, (width, height) in names.items():
        assert pixels(workspace / "new/out" / name).shape == (height, width, 3)
    # Again, over the existing files; and a file alone gives the same.
    assert generate_cli("translate", "fruit", "in", "--direction=X2Y", "-o", "new/out", "--overwrite") == 1
    assert generate_cli("translate", "fruit", "in/x.png", "--direction=X2Y", "-o", "alone.png") == 0
    assert np.array_equal(pixels("alone.png"), pixels("new/out/x.png"))


def test_direction_size_and_network(workspace):
    make_photo((32, 48), 0).save("a.png")
    for name, flags in {"xy": ["--direction=X2Y"], "yx": ["--direction=Y2X"]}.items():
        assert generate_cli("translate", "fruit", "a.png", *flags, "-o", f"{name}.png") == 0
        x = torch.from_numpy(pixels("a.png")).permute(2, 0, 1)[None].float() / 127.5 - 1
        expected = ((load_generator("fruit", flags[0][-3:])(x)[0] + 1) * 127.5).round().permute(1, 2, 0).numpy()
        assert np.abs(pixels(f"{name}.png") - expected).max() <= 1
    assert not np.array_equal(pixels("xy.png"), pixels("yx.png"))
    assert generate_cli("translate", "fruit", "a.png", "--direction=X2Y", "--image_size=20", "-o", "small.png") == 0
    assert pixels("small.png").shape == (30, 20, 3)


def test_alpha_of_a_file(workspace):
    image = make_photo((20, 20), 0)
    image.putalpha(77)
    image.save("a.png")
    assert generate_cli("translate", "fruit", "a.png", "--direction=X2Y", "-o", "b.png") == 0
    assert generate_cli("translate", "fruit", "a.png", "--direction=X2Y", "-o", "b.jpg") == 0
    assert pixels("b.png").shape == (20, 20, 4) and (pixels("b.png")[:, :, 3] == 77).all()
    assert pixels("b.jpg").shape == (20, 20, 3)


@pytest.mark.parametrize("source, target", [("a.mp4", "b.mp4"), ("a.gif", "b.gif"), ("a.mkv", "b.webm")])
def test_video(workspace, capsys, source, target):
    """The same number of frames, at the same times, each the translation of its own frame."""
    make_video(workspace / source, side=34)
    assert generate_cli("translate", "fruit", source, "--direction=X2Y", "-o", target) == 0
    assert "translated 12 of 12 frames" in capsys.readouterr().out
    before, after = list(Video(workspace / source)), list(Video(workspace / target))
    seconds = [[float(f.time * Video(workspace / name).time_base) for f in frames]
               for name, frames in ((source, before), (target, after))]  # fmt: skip
    assert len(after) == 12 and seconds[0] == pytest.approx(seconds[1], abs=0.002)
    assert Video(workspace / source).rate == pytest.approx(float(Video(workspace / target).rate), rel=0.02)
    G = load_generator("fruit", "X2Y")
    expected = np.stack([translate_image(G, frame.pixels) for frame in before]).astype(int)
    for i, frame in enumerate(after):  # compression changes each frame, but its own translation is the nearest
        assert np.abs(expected - frame.pixels).mean(axis=(1, 2, 3)).argmin() == i
    assert sorted(path.name for path in workspace.iterdir()) == sorted(["cats", "fruit", source, target])


@pytest.mark.faults
def test_a_video_that_is_cut_off_is_reported(workspace, capsys):
    make_video(workspace / "a.mkv", 60)
    content = (workspace / "a.mkv").read_bytes()
    (workspace / "cut.mkv").write_bytes(content[: len(content) // 2])
    for name, is_cut_off in (("a.mkv", False), ("cut.mkv", True)):
        assert generate_cli("translate", "fruit", name, "--direction=X2Y", "-o", f"to-{name}") == 0
        warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning: ")]
        assert [f"the frames of {name} end after" in line and "is it cut off?" in line for line in warnings] == (
            [True] * is_cut_off
        )


def test_an_image_that_is_too_large_for_the_format(workspace, capsys):
    make_photo((16500, 8), 0).save(workspace / "long.png")
    assert generate_cli("translate", "fruit", "long.png", "--direction=X2Y", "-o", "long.webp") == 2
    err = capsys.readouterr().err
    assert (
        err.count("\n") == 1
        and "--out: long.webp cannot be written" in err
        and "another extension" in err
        and not (workspace / "long.webp").exists()
    )


def make_animation(path, modes=("RGBA",) * 3, size=(20, 16)) -> None:
    """Write an animation, or a TIFF with several pages, of half transparent photos."""
    frames = []
    for seed, mode in enumerate(modes):
        frame = make_photo(size, seed)
        frame.putalpha(100)
        frames.append(frame.convert(mode))
    how = {"lossless": True} if str(path).endswith(".webp") else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[50, 200, 700], loop=3, **how)


@pytest.mark.parametrize("source", ["a.webp", "a.png", "a.tiff"])
@pytest.mark.parametrize("target", ["b.webp", "b.png", "b.tiff", "b.gif", "b.mp4"])
def test_all_frames_of_an_image_are_translated(workspace, capsys, source, target):
    """Each is the translation of its own frame, with its alpha, its delay and the number of plays."""
    make_animation(workspace / source)
    assert generate_cli("translate", "fruit", source, "--direction=X2Y", "-o", target) == 0
    assert f"translated 3 of 3 frames to {target}" in capsys.readouterr().out
    reader = Video if target in ("b.gif", "b.mp4") else Animation
    before, after = Animation(workspace / source), reader(workspace / target)
    pairs = list(zip(before, after, strict=True))
    G = load_generator("fruit", "X2Y")
    expected = np.stack([translate_image(G, old.pixels) for old, _ in pairs])[..., :3].astype(float)
    if reader is Animation:
        expected = (expected * 100 + 255 * 155) / 255  # it blends the pixels of the output with white
    for i, (old, new) in enumerate(pairs):
        if target != "b.tiff":  # pages have no times
            assert old.duration == round(1000 * new.duration * after.time_base)
        if reader is Animation:
            assert (new.pixels[:, :, 3] == 100).all()
        elif target == "b.mp4":
            assert new.pixels.shape == (16, 20, 3)
        errors = np.abs(expected - new.pixels[:, :, :3])
        assert errors.mean(axis=(1, 2, 3)).argmin() == i
        assert target not in ("b.png", "b.tiff") or errors[i].max() <= 1  # the others compress with losses
    if source != "a.tiff" and target not in ("b.tiff", "b.mp4"):
        assert before.plays == after.plays == 3


def test_animations_in_a_folder(workspace, capsys):
    """Where the format of the output holds one image only, a line says so."""
    (workspace / "in").mkdir()
    for name in ("a.webp", "b.png", "c.tiff"):
        make_animation(workspace / "in" / name)
    make_animation(workspace / "g.gif")
    (workspace / "g.gif").rename(workspace / "in" / "d.jpg")  # GIFs are often saved with another extension
    make_photo((20, 16), 0).save(workspace / "in" / "e.png")
    assert generate_cli("translate", "fruit", "in", "--direction=X2Y", "-o", "out") == 0
    out = capsys.readouterr().out
    assert "translated 5 of 5 to out" in out and "of d.jpg only the first frame is translated" in out
    counts = {}
    for path in (workspace / "out").iterdir():
        with Image.open(path) as image:
            counts[path.name] = getattr(image, "n_frames", 1)
    assert counts == {"a.webp": 3, "b.png": 3, "c.tiff": 3, "d.jpg": 1, "e.png": 1}
    # An animation alone gives the same; a single image format gets the first frame, and a line says of how many.
    assert generate_cli("translate", "fruit", "in/b.png", "--direction=X2Y", "-o", "b.png") == 0
    assert (workspace / "b.png").read_bytes() == (workspace / "out/b.png").read_bytes()
    assert generate_cli("translate", "fruit", "in/b.png", "--direction=X2Y", "-o", "b.jpg") == 0
    assert "translated the first of 3 frames to b.jpg" in capsys.readouterr().out
    # Files of an earlier command are not removed, since they may be the user's, but a line tells about them.
    (workspace / "in/e.png").unlink()
    assert generate_cli("translate", "fruit", "in", "--direction=X2Y", "-o", "out", "--overwrite") == 0
    assert "Other files in out, which are not from this command: 1" in capsys.readouterr().out


def test_pages_of_other_sizes_and_with_16_bits(workspace, capsys):
    """One range of values for all pages: the second page is half as bright as the first one."""
    pages = [Image.new("I;16", (20, 16), 60000), Image.new("I;16", (12, 30), 30000)]
    pages[0].save(workspace / "a.tiff", save_all=True, append_images=pages[1:])
    G = load_generator("fruit", "X2Y")
    assert generate_cli("translate", "fruit", "a.tiff", "--direction=X2Y", "-o", "b.tiff") == 0
    with Image.open(workspace / "b.tiff") as image:
        for page, value in zip(ImageSequence.Iterator(image), (60000, 30000), strict=True):
            gray = np.full((page.height, page.width, 3), round(255 * value / 65535), np.uint8)
            assert np.abs(np.array(page).astype(int) - translate_image(G, gray)).max() <= 1
    for name in ("b.png", "b.mp4"):
        assert generate_cli("translate", "fruit", "a.tiff", "--direction=X2Y", "-o", name) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "differ in size" in err and not (workspace / name).exists()


def test_smooth_works_on_animations(workspace):
    make_animation(workspace / "a.png", modes=("RGB",) * 3)
    for name, flags in {"plain": [], "smooth": ["--smooth=0.9"], "small": ["--image_size=8"]}.items():
        assert generate_cli("translate", "fruit", "a.png", "--direction=X2Y", *flags, "-o", f"{name}.png") == 0
    frames = {name: np.stack([f.pixels for f in Animation(workspace / f"{name}.png")]) for name in ("plain", "smooth")}
    change = {name: np.abs(np.diff(images.astype(int), axis=0)).mean() for name, images in frames.items()}
    assert change["smooth"] < 0.5 * change["plain"]
    assert next(iter(Animation(workspace / "small.png"))).pixels.shape == (8, 10, 3)


def test_smooth_and_size_of_a_video(workspace):
    make_video(workspace / "a.mp4")
    for name, flags in {"plain": [], "smooth": ["--smooth=0.9"], "small": ["--image_size=16"]}.items():
        assert generate_cli("translate", "fruit", "a.mp4", "--direction=X2Y", *flags, "-o", f"{name}.mp4") == 0
    change = {}
    for name in ("plain", "smooth", "small"):
        frames = np.stack([frame.pixels for frame in Video(workspace / f"{name}.mp4")]).astype(int)
        change[name] = np.abs(np.diff(frames, axis=0)).mean()
    assert change["smooth"] < 0.5 * change["plain"]
    assert frames.shape == (12, 16, 16, 3)


# ---- Mistakes

MISTAKES = {
    "no run": (["sample", "nowhere", "-n1", "--grid=g.png"], ["nowhere", "give a run folder"]),
    "no checkpoint": (["sample", "cats", "-n1", "--grid=g.png", "--checkpoint=7"], ["--checkpoint", "7", "1, 2"]),
    "no best.pt": (["translate", "fruit", "a.png", "--checkpoint=best", "-o", "b.png"], ["best.pt", "--eval_every"]),
    "choice of a file": (
        ["sample", "cats/checkpoint-000001.pt", "-n1", "--grid=g.png", "--checkpoint=2"],
        ["--checkpoint", "000001.pt", "leave it out"],
    ),
    "CycleGAN sampled": (
        ["sample", "fruit", "-n1", "--grid=g.png"],
        ["fruit", "cycle_gan.py", "generate.py translate"],
    ),
    "CycleGAN walked": (["interpolate", "fruit", "--seeds=1,2", "-o", "w.gif"], ["fruit", "generate.py translate"]),
    "DCGAN translated": (
        ["translate", "cats", "a.png", "-o", "b.png"],
        ["cats", "vanilla_gan.py", "generate.py sample"],
    ),
    "n and seeds": (["sample", "cats", "-n2", "--seeds=1", "--grid=g.png"], ["-n", "2", "--seeds", "1"]),
    "neither": (["sample", "cats", "--grid=g.png"], ["--seeds", "missing", "-n"]),
    "no output": (["sample", "cats", "-n1"], ["--out", "--grid"]),
    "bad seeds": (["sample", "cats", "--seeds=5-3", "--grid=g.png"], ["--seeds", "5-3", "3,7,10-12"]),
    "twice": (["sample", "cats", "--seeds=3,3", "--grid=g.png"], ["--seeds", "twice"]),
    "no images": (["sample", "cats", "-n0", "--grid=g.png"], ["-n", "0", "at least 1"]),
    "truncation": (["sample", "cats", "-n1", "--grid=g.png", "--truncation=2.5"], ["--truncation", "2.5", "at most 2"]),
    "truncation nan": (
        ["sample", "cats", "-n1", "--grid=g.png", "--truncation=nan"],
        ["--truncation", "nan", "above 0"],
    ),
    "grid ending": (["sample", "cats", "-n1", "--grid=g.txt"], ["--grid", "g.txt", ".png"]),
    "grid exists": (["sample", "cats", "-n1", "--grid=a.png"], ["--grid", "a.png", "--overwrite"]),
    "grid folder": (["sample", "cats", "-n1", "--grid=dir.png"], ["--grid", "dir.png", "folder"]),
    "folder with files": (["sample", "cats", "-n1", "-o", "full"], ["--out", "full", "--overwrite"]),
    "unwritable": (["sample", "cats", "-n1", "-o", "a.png/x"], ["--out", "a.png", "not a writable folder"]),
    "mistyped": (["sample", "cats", "-n1", "--gird=a.png"], ["--gird", "did you mean --grid"]),
    "one seed": (["interpolate", "cats", "--seeds=1", "-o", "w.gif"], ["--seeds", "at least 2", "--random_walk"]),
    "few frames": (["interpolate", "cats", "--seeds=1-9", "--frames=5", "-o", "w.gif"], ["--frames", "5", "9"]),
    "one frame": (["interpolate", "cats", "--seeds=1-2", "--frames=1", "-o", "w.gif"], ["--frames", "1", "at least 2"]),
    "fps": (
        ["interpolate", "cats", "--seeds=1,2", "--fps=0", "-o", "w.mp4"],
        ["--fps", "0", "at least 1 and at most 120"],
    ),
    "fps of a GIF": (["interpolate", "cats", "--seeds=1,2", "--fps=60", "-o", "w.gif"], ["--fps", "60", "GIF", "50"]),
    "walk ending": (["interpolate", "cats", "--seeds=1,2", "-o", "w.png"], ["--out", "w.png", ".mp4", ".gif"]),
    "walk exists": (["interpolate", "cats", "--seeds=1,2", "-o", "taken.mp4"], ["taken.mp4", "--overwrite"]),
    "no input": (["translate", "fruit", "b", "--direction=X2Y", "-o", "c"], ["INPUT", "b does not exist"]),
    "kind of input": (
        ["translate", "fruit", "a.txt", "--direction=X2Y", "-o", "c"],
        ["INPUT", "a.txt", ".png", ".mp4"],
    ),
    "no image": (
        ["translate", "fruit", "bad.png", "--direction=X2Y", "-o", "b.png"],
        ["INPUT", "bad.png", "not a readable image"],
    ),
    "empty video": (
        ["translate", "fruit", "empty.mp4", "--direction=X2Y", "-o", "b.mp4"],
        ["empty.mp4", "not a readable video"],
    ),
    "broken video": (
        ["translate", "fruit", "bad.mp4", "--direction=X2Y", "-o", "b.mp4"],
        ["bad.mp4", "not a readable video"],
    ),
    "empty folder": (["translate", "fruit", "dir.png", "--direction=X2Y", "-o", "b"], ["INPUT", "no image", "dir.png"]),
    "no direction": (["translate", "fruit", "a.png", "-o", "b.png"], ["--direction", "missing", "X2Y or Y2X"]),
    "direction": (["translate", "fruit", "a.png", "-o", "b.png", "--direction=X"], ["--direction", "X", "X2Y or Y2X"]),
    "into itself": (["translate", "fruit", "full", "--direction=X2Y", "-o", "full", "--overwrite"], ["--out", "input"]),
    "inside": (["translate", "fruit", "full", "--direction=X2Y", "-o", "full/b"], ["--out", "full/b", "inside"]),
    "over itself": (["translate", "fruit", "a.png", "--direction=X2Y", "-o", "a.png", "--overwrite"], ["is the input"]),
    "output folder with files": (
        ["translate", "fruit", "full", "--direction=X2Y", "-o", "full2"],
        ["full2", "--overwrite"],
    ),
    "output a file": (["translate", "fruit", "full", "--direction=X2Y", "-o", "a.txt"], ["a.txt", "file", "folder"]),
    "file exists": (
        ["translate", "fruit", "a.png", "--direction=X2Y", "-o", "full/a.png"],
        ["full/a.png", "--overwrite"],
    ),
    "video to image": (["translate", "fruit", "taken.mp4", "--direction=X2Y", "-o", "b.png"], ["b.png", ".mp4"]),
    "image to video": (["translate", "fruit", "a.png", "--direction=X2Y", "-o", "b.mp4"], ["b.mp4", ".png"]),
    "folder to video": (
        ["translate", "fruit", "full", "--direction=X2Y", "-o", "b.mp4"],
        ["--out", "b.mp4", "folder", "such as b"],
    ),
    "folder to image": (["translate", "fruit", "full", "--direction=X2Y", "-o", "b.PNG"], ["--out", "b.PNG", "folder"]),
    "samples to an image": (["sample", "cats", "-n1", "-o", "b.png"], ["--out", "b.png", "--grid b.png"]),
    "range of a video": (
        ["translate", "fruit", "taken.mp4", "--direction=X2Y", "-o", "b.mp4", "--value_range=0,9"],
        ["--value_range", "taken.mp4", "leave it out"],
    ),
    "smooth of one frame": (
        ["translate", "fruit", "cut.png", "--direction=X2Y", "-o", "b.jpg", "--smooth=0.5"],
        ["--smooth", "b.jpg", "leave it out"],
    ),
    "broken animation": (
        ["translate", "fruit", "cut.png", "--direction=X2Y", "-o", "b.png"],
        ["cut.png is broken at frame 3", "give another"],
    ),
    "smooth images": (["translate", "fruit", "a.png", "--direction=X2Y", "-o", "b.png", "--smooth=0.5"], ["--smooth"]),
    "smooth": (["translate", "fruit", "taken.mp4", "-o", "b.mp4", "--smooth=1"], ["--smooth", "1", "below 1"]),
    "size": (["translate", "fruit", "a.png", "-o", "b.png", "--image_size=0"], ["--image_size", "0", "at least 8"]),
    "export ending": (["export", "cats", "--format=onnx", "-o", "a.pt"], ["--out", "a.pt", ".onnx"]),
    "export exists": (["export", "cats", "--format=torchscript", "-o", "taken.pt"], ["taken.pt", "--overwrite"]),
    "export direction": (["export", "fruit", "--format=torchscript", "-o", "b.pt"], ["--direction", "missing", "X2Y"]),
    "no such direction": (
        ["export", "cats", "--format=torchscript", "-o", "b.pt", "--direction=X2Y"],
        ["--direction", "X2Y", "leave it out"],
    ),
    "no command": (["draw", "cats"], ["draw", "sample"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake, workspace, capsys):
    """One line that names flag, value and remedy, exit code 2, and nothing written."""
    arguments, words = MISTAKES[mistake]
    for name in ("full", "full2", "dir.png"):
        (workspace / name).mkdir()
    for name in ("a.png", "full/a.png", "full2/a.png"):
        make_photo((8, 8), 0).save(workspace / name)
    for name in ("empty.mp4", "a.txt", "taken.pt"):
        (workspace / name).touch()
    for name in ("bad.png", "bad.mp4"):
        (workspace / name).write_text("neither image nor video")
    make_video(workspace / "taken.mp4", 2)
    make_animation(workspace / "cut.png")
    content = (workspace / "cut.png").read_bytes()
    (workspace / "cut.png").write_bytes(content[: len(content) * 4 // 5])
    before = snapshot(workspace)
    assert generate_cli(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("generate.py"), err
    assert all(word in err for word in words), err
    assert snapshot(workspace) == before


@pytest.mark.faults
def test_a_video_that_breaks_in_the_middle_leaves_no_file(workspace, capsys):
    """Some frames were translated already."""
    make_video(workspace / "a.mkv", 60)
    content = (workspace / "a.mkv").read_bytes()
    real = Video.__iter__

    def breaks(self):
        for i, frame in enumerate(real(self)):
            if i == 40:
                raise UserError("a.mkv is broken after 4.0 s")
            yield frame

    Video.__iter__ = breaks
    try:
        assert generate_cli("translate", "fruit", "a.mkv", "--direction=X2Y", "-o", "b.mkv") == 2
    finally:
        Video.__iter__ = real
    assert "broken after" in capsys.readouterr().err and (workspace / "a.mkv").read_bytes() == content
    assert sorted(path.name for path in workspace.iterdir()) == ["a.mkv", "cats", "fruit"]


@pytest.mark.faults
def test_a_full_disk(workspace, monkeypatch, capsys):
    def refuse(path, write):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("images.files.atomic_write", refuse)
    assert generate_cli("sample", "cats", "-n1", "--grid=g.png") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "g.png: No space left on device" in err


def test_load_generator(workspace):
    """As its docstring says, without a command line."""
    G = load_generator("cats")
    assert G(sample_latents(3, G.noise_size, "cpu")).shape == (3, 3, 32, 32)
    G = load_generator("fruit", "Y2X", checkpoint=1)
    assert G(torch.zeros(2, 3, 32, 44)).shape == (2, 3, 32, 44)
    other = load_generator("fruit", "Y2X", checkpoint=2)
    assert not torch.equal(G(torch.zeros(1, 3, 32, 32)), other(torch.zeros(1, 3, 32, 32)))
    with pytest.raises(UserError, match="X2Y or Y2X"):
        load_generator("fruit")
