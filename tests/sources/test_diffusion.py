"""Images of diffusion models, on tiny models with random weights that the tests make, without a network."""

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataset
from options.command_line import parse_subcommand
from sources import diffusion, diffusion_models
from system.program import run_main
from tests.conftest import ROOT
from tests.helpers.tiny_diffusion import make_text_to_image, make_unconditional, serve_hub

PACKAGES = ("diffusers", "transformers", "accelerate")
is_installed = all(importlib.util.find_spec(name) for name in PACKAGES)
needs_diffusers = pytest.mark.skipif(not is_installed, reason="needs pip install -r requirements-diffusion.txt")
PROMPT = "a grumpy cat"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with the tiny models `text` and `unconditional`."""
    folder = tmp_path_factory.mktemp("models")
    make_text_to_image(folder / "text")
    make_unconditional(folder / "unconditional")
    return folder


@pytest.fixture
def run(tmp_path, capfd):
    """A function that runs the command; it returns the exit code and all that was printed."""

    def run(*arguments: object, out: str = "out") -> tuple[int, str]:
        words = ["diffuse", *map(str, arguments), f"--out={tmp_path / out}", "--device=cpu"]
        try:
            options = parse_subcommand(dataset.OPTIONS_OF, "", words)
            code = run_main(lambda: dataset.main(options), "dataset.py")
        except SystemExit as stop:
            code = stop.code
        printed = capfd.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.fixture
def paint(run, models):
    """A function that makes images of the model of a text in two steps, if not told otherwise."""

    def paint(*arguments: object, out: str = "out", n: int = 3) -> tuple[int, str]:
        return run(PROMPT, f"--model={models / 'text'}", "--steps=2", "-n", n, *arguments, out=out)

    return paint


def read(folder: Path) -> dict[str, np.ndarray]:
    """Return the images of a folder by name, as int32."""
    return {path.name: np.asarray(Image.open(path)).astype(np.int32) for path in sorted(folder.glob("*.png"))}


def record_of(folder: Path) -> dict:
    return json.loads((folder / "diffusion.json").read_text())


def difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> int:
    """Return the largest difference of two folders' images, of 255."""
    assert list(a) == list(b) != []
    return max(int(np.abs(a[name] - b[name]).max()) for name in a)


# ----------------------------------------------------------------------------------------------------------------------
# What is made


@needs_diffusers
def test_images_of_a_text_and_their_record(paint, models, tmp_path):
    code, text = paint("--negative_prompt=dog", "--guidance=3", "--seed=7", "--batch_size=2")
    assert code == 0
    lines = text.splitlines()
    assert len(lines) == 3, "libraries are silent"
    assert "no GPU" in lines[0] and lines[1].startswith("load ") and "downloaded" not in lines[1]
    assert lines[2] == f"images in {tmp_path / 'out'}: 3"
    images = read(tmp_path / "out")
    assert list(images) == ["000000.png", "000001.png", "000002.png"]
    assert all(image.shape == (16, 16, 3) for image in images.values())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*images, "diffusion.json"}
    record = record_of(tmp_path / "out")
    assert record["model"] == str(models / "text") and len(record["revision"]) == 64
    assert record["pipeline"] == "StableDiffusionPipeline" and record["images"] == 3 and record["black"] == []
    assert record["settings"] == {
        "prompt": PROMPT, "negative_prompt": "dog", "seed": 7, "steps": 2, "guidance": 3.0, "size": None
    }  # fmt: skip
    assert record["defaults"] == {"steps": 50, "guidance": 7.5}


@needs_diffusers
def test_images_without_a_text(run, models, tmp_path):
    code, text = run("--model", models / "unconditional", "-n3", "--steps=2")
    assert code == 0 and ": 3\n" in text and len(read(tmp_path / "out")) == 3
    assert record_of(tmp_path / "out")["pipeline"] == "DDPMPipeline"


@needs_diffusers
@pytest.mark.golden
@pytest.mark.parametrize("kind", ["text", "unconditional"])
def test_image_k_is_that_of_diffusers_with_the_seed_plus_k(kind, run, models, tmp_path):
    """The reference makes each image alone. The wrong variant takes one generator for the whole batch."""
    from diffusers import DiffusionPipeline

    words = [PROMPT] if kind == "text" else []
    assert run(*words, "--model", models / kind, "-n4", "--steps=3", "--seed=5", "--batch_size=3")[0] == 0
    pipeline = DiffusionPipeline.from_pretrained(models / kind)
    pipeline.set_progress_bar_config(disable=True)

    def call(seed: int, count: int) -> list[np.ndarray]:
        more = {"prompt": [PROMPT] * count} if kind == "text" else {"batch_size": count}
        generator = torch.Generator().manual_seed(seed)
        found = pipeline(generator=generator, num_inference_steps=3, **more).images
        return [np.asarray(image).astype(np.int32) for image in found]

    images = list(read(tmp_path / "out").values())
    assert all(np.abs(images[k] - call(5 + k, 1)[0]).max() <= 1 for k in range(4))
    assert np.abs(images[1] - call(5, 3)[1]).max() > 20


@needs_diffusers
def test_images_do_not_depend_on_the_batch_or_on_n(paint, tmp_path):
    """Larger images than the model's, because rounding depends on the batch there: by 1 of 255 at most."""
    assert paint("--size=32", "--batch_size=1", n=5)[0] == 0
    assert paint("--size=32", "--batch_size=3", n=2, out="more")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "more").glob("*.png")}
    assert paint("--size=32", "--batch_size=2", n=5, out="more")[0] == 0
    one, more = read(tmp_path / "out"), read(tmp_path / "more")
    assert difference(one, more) <= 1 and len(one) == 5
    assert np.abs(one["000000.png"] - one["000001.png"]).max() > 20
    assert all(path.stat().st_mtime_ns == date for path, date in before.items())
    code, text = paint("--size=32", n=4, out="more")
    assert code == 0 and f"nothing to do: images made before in {tmp_path / 'more'}: 5;" in text


@needs_diffusers
@pytest.mark.parametrize("flag", ["--seed=1", "--steps=3", "--guidance=1", "--negative_prompt=dog", "--size=24"])
def test_each_option_changes_the_images_and_belongs_to_the_folder(flag, paint, tmp_path):
    assert paint(n=1)[0] == paint(flag, n=1, out="other")[0] == 0
    [a], [b] = read(tmp_path / "out").values(), read(tmp_path / "other").values()
    assert a.shape != b.shape or np.abs(a - b).max() > 1
    code, text = paint(flag, n=2)
    assert code == 2 and text.count("\n") == 1 and flag.partition("=")[0] in text and "a new folder" in text
    code, text = paint(n=2, out="other")
    assert code == 2 and text.count("\n") == 1 and "a new folder" in text
    assert len(read(tmp_path / "out")) == len(read(tmp_path / "other")) == 1


@needs_diffusers
def test_another_prompt_or_model_needs_another_folder(paint, run, models, tmp_path):
    assert paint(n=1)[0] == 0
    code, text = run("a dog", "--model", models / "text", "--steps=2", "-n2")
    assert code == 2 and "PROMPT" in text and PROMPT in text
    changed = shutil.copytree(models / "text", tmp_path / "changed")
    weights = changed / "unet/diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, text = paint("--model", changed, n=2)
    assert code == 2 and "--model: " in text and text.count("\n") == 1 and len(read(tmp_path / "out")) == 1
    moved = shutil.copytree(models / "text", tmp_path / "moved")  # the same model
    assert paint("--model", moved, n=2)[0] == 0 and len(read(tmp_path / "out")) == 2


@needs_diffusers
def test_a_deleted_image_stays_deleted(paint, tmp_path):
    assert paint()[0] == 0
    (tmp_path / "out/000001.png").unlink()
    assert paint(n=4)[0] == 0
    assert list(read(tmp_path / "out")) == ["000000.png", "000002.png", "000003.png"]


@needs_diffusers
def test_black_images_of_a_safety_checker_are_left_out(run, tmp_path):
    model = make_text_to_image(tmp_path / "checked", with_safety_checker=True)
    code, text = run(PROMPT, "--model", model, "-n3", "--steps=2")
    assert code == 0 and f"images in {tmp_path / 'out'}: 0" in text and "Warning: 3 of 3 images were black" in text
    assert not read(tmp_path / "out") and record_of(tmp_path / "out")["black"] == [0, 1, 2]
    code, text = run(PROMPT, "--model", model, "-n4", "--steps=2")
    assert record_of(tmp_path / "out")["black"] == [0, 1, 2, 3] and "4 of 4" in text


@needs_diffusers
def test_a_prompt_that_is_too_long_is_a_warning(paint, run, models):
    assert "Warning" not in paint(n=1)[1]
    code, text = run("cat " * 40, "--model", models / "text", "-n1", "--steps=1", out="long")
    assert code == 0 and "Warning: the prompt has 122 tokens" in text and "only 77" in text


# ----------------------------------------------------------------------------------------------------------------------
# Time and interruptions


def test_progress_counts_tenths_of_images_and_says_once_how_long_it_takes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(diffusion.time, "monotonic", lambda: now[0])
    lines = []
    monkeypatch.setattr(diffusion.LOG, "info", lambda text, *values: lines.append(text % values))
    shown = []
    with diffusion.ProgressBar(None, "diffuse", "images", 12, initial=2) as bar:
        progress = diffusion._Progress(bar, is_cpu=True)
        progress.numbers = range(2, 6)
        for _ in diffusion._PipelineBar(progress.report, range(10)):
            now[0] += 9
            shown.append(bar.n)
        with diffusion._PipelineBar(progress.report, total=10) as second:  # of a pipeline with two stages
            second.update()
        shown.append(bar.n)
    assert shown == [2, 2.4, 2.8, 3.2, 3.6, 4, 4.4, 4.8, 5.2, 5.6, 6]
    [line] = lines  # 9 s for each of 10 steps of 2.5 batches of 4
    assert "the images take about 03:45 (images: 10, steps of each: 10)" in line


@needs_diffusers
@pytest.mark.faults
def test_ctrl_c_keeps_whole_images_and_the_same_command_continues(paint, tmp_path, monkeypatch):
    real = diffusion._PipelineBar.update
    steps = []

    def interrupt(self, n=1):
        steps.append(n)
        if len(steps) == 4:  # in the second batch
            raise KeyboardInterrupt
        real(self, n)

    assert paint("--batch_size=2", n=5, out="whole")[0] == 0
    monkeypatch.setattr(diffusion._PipelineBar, "update", interrupt)
    code, text = paint("--batch_size=2", n=5)
    assert code == 130 and "2 of 5 images are in" in text and "interrupted" in text
    assert list(read(tmp_path / "out")) == ["000000.png", "000001.png"]
    code, text = paint("--batch_size=2", n=5)
    assert code == 0 and difference(read(tmp_path / "out"), read(tmp_path / "whole")) <= 1


@needs_diffusers
@pytest.mark.faults
def test_a_full_disk_within_a_batch_loses_nothing(paint, tmp_path, monkeypatch):
    real = diffusion.write_image

    def fail(path, pixels):
        if path.name == "000001.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(diffusion, "write_image", fail)
        code, text = paint()
    assert code == 2 and "000001.png: No space left" in text and "repeat the command" in text
    assert paint()[0] == 0 and len(read(tmp_path / "out")) == 3


@needs_diffusers
@pytest.mark.faults
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("can't allocate memory: 9 bytes")])
def test_out_of_memory_names_the_batch(error, paint, tmp_path, monkeypatch):
    from diffusers import StableDiffusionPipeline

    def fail(self, prompt=None, generator=None, num_inference_steps=None):
        raise error

    monkeypatch.setattr(StableDiffusionPipeline, "__call__", fail)
    code, text = paint()
    assert code == 2 and "out of memory with --batch_size 3; lower" in text and not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize("name", PACKAGES)
def test_a_missing_package_is_one_line(name, run, tmp_path, monkeypatch):
    for other in PACKAGES:
        monkeypatch.setitem(sys.modules, other, None)
    monkeypatch.setattr(diffusion_models.importlib.util, "find_spec", lambda one: None if one == name else object())
    code, text = run(PROMPT, "--model=x", "-n1")
    assert code == 2 and f"diffuse needs {name}; pip install -r requirements-diffusion.txt\n" in text
    assert text.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_version_of_diffusers_that_runs_code_of_models_is_refused(run, monkeypatch):
    monkeypatch.setattr(diffusion_models.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(diffusion_models.metadata, "version", lambda _: "0.37.1")
    code, text = run(PROMPT, "--model=x", "-n1")
    assert code == 2 and "needs diffusers 0.38, because 0.37.1 may run code of a model; pip install" in text


@pytest.mark.parametrize(
    "flags, message",
    [
        (["-n0"], "-n: 0 is out of range"),
        (["-n1", "--steps=0"], "--steps: 0 is out of range"),
        (["-n1", "--size=0"], "--size: 0 is out of range"),
        (["-n1", "--guidance=nan"], "--guidance: nan is not a finite number"),
        (["-n1", "--seed=-1"], "--seed: -1 is out of range"),
        (["-n1", "--batch_size=0"], "--batch_size: 0 is out of range"),
        ([], "-n"),
    ],
)
def test_a_number_out_of_range_is_one_line(flags, message, run):
    code, text = run(PROMPT, "--model=x", *flags)
    assert code == 2 and message in text and text.count("\n") == 1


@needs_diffusers
@pytest.mark.parametrize(
    "kind, words, message",
    [
        ("text", [], "PROMPT: missing; StableDiffusionPipeline"),
        ("unconditional", [PROMPT], "PROMPT: 'a grumpy cat': DDPMPipeline makes images without a text"),
        ("unconditional", ["--guidance=3"], "--guidance: DDPMPipeline does not have this option"),
        ("unconditional", ["--size=32"], "--size: DDPMPipeline does not have this option"),
        ("unconditional", ["--negative_prompt=dog"], "--negative_prompt: DDPMPipeline does not have"),
        ("text", [PROMPT, "--size=33"], "StableDiffusionPipeline cannot make images with these options (`height`"),
    ],
)
def test_options_that_a_pipeline_does_not_have_are_one_line(kind, words, message, run, models, tmp_path):
    code, text = run(*words, "--model", models / kind, "-n1", "--steps=1")
    errors = [line for line in text.splitlines() if "error: " in line]
    assert code == 2 and len(errors) == 1 and message in errors[0] and not (tmp_path / "out").exists()


def set_class(folder: Path, name: object) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": name}))


def damage_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")


def remove_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def use_pickles(folder: Path) -> None:
    """Write the weights as pickles, which diffusers and transformers can read, too."""
    from safetensors.torch import load_file

    for path in folder.glob("*/*.safetensors"):
        torch.save(load_file(path), path.with_name(path.name.replace("model.safetensors", "model.bin")))
        path.unlink()
    (folder / "text_encoder/model.bin").rename(folder / "text_encoder/pytorch_model.bin")


def cut_weights(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def add_code(folder: Path) -> None:
    """Make the UNet a class in a Python file of the model, which writes a file when it is imported."""
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["mine", "MyUNet"]}))
    (folder / "unet/mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass MyUNet: pass\n")


def add_pipeline_code(folder: Path) -> None:
    """Make the pipeline a class in a Python file of the model, which writes a file when it is imported."""
    set_class(folder, ["mine", "MyPipeline"])
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass MyPipeline: pass\n")


@needs_diffusers
@pytest.mark.faults
@pytest.mark.parametrize(
    "damage, message",
    [
        (damage_index, "model_index.json is damaged"),
        (remove_index, "is not a model of diffusers, because it has no model_index.json"),
        (use_pickles, "only weights in safetensors are read"),
        (cut_weights, "cannot be loaded"),
        (add_code, "cannot be loaded"),
        (lambda folder: (folder / "None.py").write_text(f"open({str(folder / 'ran')!r}, 'w')"), "cannot be loaded"),
        (add_pipeline_code, "Code of a model is never run"),
        (lambda folder: set_class(folder, "NoSuchPipeline"), "needs the pipeline NoSuchPipeline, which diffusers"),
        (lambda folder: set_class(folder, "UNet2DModel"), "needs the pipeline UNet2DModel, which diffusers"),
        (lambda folder: set_class(folder, "DiTPipeline"), "DiTPipeline does not make images of a text or without one: "
         "it also needs class_labels"),
        (lambda folder: set_class(folder, "WanPipeline"), "WanPipeline does not make images of a text"),
        (lambda folder: set_class(folder, "DanceDiffusionPipeline"), "DanceDiffusionPipeline does not make images"),
        (lambda folder: set_class(folder, "StableDiffusionImg2ImgPipeline"), "StableDiffusionImg2ImgPipeline cannot"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_used_is_one_line(damage, message, paint, models, tmp_path):
    model = shutil.copytree(models / "text", tmp_path / "model")
    damage(model)
    code, text = paint("--model", model)
    errors = [line for line in text.splitlines() if "error: " in line]
    assert code == 2 and len(errors) == 1 and message in errors[0] and "Traceback" not in text
    assert not (tmp_path / "out").exists() and not (model / "ran").exists()


@needs_diffusers
@pytest.mark.parametrize(
    "name, message",
    [
        ("./missing", "does not exist, and"),
        ("a/b/c", "does not exist, and"),
        ("nötig/x", "does not exist, and"),
        ("", "not a model of diffusers"),
        ("model.safetensors", "is a file; give the folder"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(name, message, paint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").touch()
    code, text = paint("--model", name)
    assert code == 2 and message in text and text.count("\n") == 1 and not (tmp_path / "out").exists()


@needs_diffusers
@pytest.mark.faults
def test_files_of_others_stay(paint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/000000.png").write_text("mine")
    code, text = paint()
    assert code == 2 and "contains files that this command did not write" in text
    assert (tmp_path / "out/000000.png").read_text() == "mine"
    (tmp_path / "file").touch()
    assert "is a file; give a folder" in paint(out="file")[1]
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/diffusion.json").write_text("{")
    code, text = paint(out="damaged")
    assert code == 2 and "damaged/diffusion.json is damaged" in text


# ----------------------------------------------------------------------------------------------------------------------
# The hub

CLIENT = """
import contextlib, io, json, sys
import dataset
from huggingface_hub import constants
from huggingface_hub.utils import _http
from options.command_line import parse_subcommand
from system.program import run_main
_http.time.sleep = lambda seconds: None  # between attempts
for line in sys.stdin:
    is_offline, words = json.loads(line)
    constants.HF_HUB_OFFLINE = is_offline
    getattr(_http, "reset_sessions", lambda: None)()  # versions before 1.0 read the constant once
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        options = parse_subcommand(dataset.OPTIONS_OF, "", words)
        code = run_main(lambda: dataset.main(options), "dataset.py")
    print(json.dumps([code, text.getvalue()]), flush=True)
"""


class Client:
    """A process that runs the command with another hub: its library reads the address when it is imported."""

    def __init__(self, address: str, folder: Path):
        self.folder = folder
        environment = {**os.environ, "HF_HOME": str(folder / "hub"), "HF_ENDPOINT": address, "OMP_NUM_THREADS": "1"}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.process = subprocess.Popen([sys.executable, "-c", CLIENT], cwd=ROOT, env=environment, text=True, **pipes)

    def call(self, name: str, n: int = 1, out: str = "out", is_offline: bool = False) -> tuple[int, str]:
        """Run the command; return the exit code and what was printed."""
        flags = [f"--model={name}", "-n", str(n), "--steps=1", f"--out={self.folder / out}", "--device=cpu"]
        self.process.stdin.write(json.dumps([is_offline, ["diffuse", PROMPT, *flags]]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        return tuple(json.loads(line))

    def fail(self, name: str) -> str:
        """Run the command, which must fail with one line; return that line."""
        code, text = self.call(name, out="bad")
        [error] = [line for line in text.splitlines() if "error: " in line]
        assert code == 2 and "Traceback" not in text and not (self.folder / "bad").exists()
        return error


@pytest.fixture
def client(tmp_path):
    """A function that starts a Client, which ends with the test."""
    started = []

    def start(address: str) -> Client:
        started.append(Client(address, tmp_path))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


@needs_diffusers
def test_models_of_the_hub(client, models, tmp_path):
    pickles = shutil.copytree(models / "text", tmp_path / "pickles")
    use_pickles(pickles)
    (tmp_path / "empty").mkdir()
    first, second = "a" * 40, "b" * 40
    folders = {"us/cats": models / "text", "us/pickles": pickles, "us/none": tmp_path / "empty", "us/gated": pickles}
    with serve_hub({name: (folder, first) for name, folder in folders.items()}) as (address, hub):
        hub.gated.add("us/gated")
        start = client(address)
        code, text = start.call("us/cats", is_offline=True)
        assert code == 2 and "HF_HUB_OFFLINE is set; download the model first" in text and not hub.served
        code, text = start.call("us/cats")
        assert code == 0, text
        record = record_of(tmp_path / "out")
        assert (record["model"], record["revision"]) == ("us/cats", first)
        assert "unet/diffusion_pytorch_model.safetensors" in hub.served and len(text.splitlines()) == 3

        # A new version on the hub: the folder continues with the version that it was begun with.
        hub.models["us/cats"] = (models / "text", second)
        hub.served.clear()
        assert start.call("us/cats", n=2)[0] == 0 and record_of(tmp_path / "out")["revision"] == first
        code, text = start.call("us/cats", n=3, is_offline=True)
        assert code == 0 and not hub.served and "downloaded" not in text
        assert len(read(tmp_path / "out")) == 3
        assert start.call("us/cats", out="new")[0] == 0 and record_of(tmp_path / "new")["revision"] == second

        assert f"is neither a folder here nor a model at {address}/us/nobody" in start.fail("us/nobody")
        assert "needs your consent; accept its terms" in start.fail("us/gated")
        assert "has no model_index.json; give another model" in start.fail("us/none")
        assert "only weights in safetensors are read, and no code; try again later" in start.fail("us/pickles")
        assert "cannot be downloaded" in start.fail("us/--..")
        assert not any(name.endswith(".bin") for name in hub.served)
    assert f"{address} cannot be reached; download the model first" in start.fail("us/other")
