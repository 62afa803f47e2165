"""evaluate.py as a user calls it, and the evaluations of --eval_every, with tiny networks."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import cycle_gan
import evaluate
import runs
import vanilla_gan
from data.toy_cats import ensure_toy_cats
from tests.conftest import ROOT as PROJECT
from tests.conftest import Canary, assert_same, command, make_domains, make_photo, resume, train
from utils import run_main


def call(*arguments) -> int:
    """Run evaluate.py in this process, in the pixel features if no others are named."""
    arguments = [str(argument) for argument in arguments]
    if not any(argument.startswith(("--features", "--inception")) for argument in arguments):
        arguments.append("--features=pixels")
    try:
        request = evaluate.parse(["--device=cpu", *arguments])
    except SystemExit as stop:
        return stop.code
    return run_main(lambda: evaluate.main(request), evaluate.SCRIPT)


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
def world(tmp_path_factory) -> Path:
    """Runs of both scripts with checkpoints at 2 and 4, and folders of images, which the tests leave as they are."""
    world = tmp_path_factory.mktemp("world")
    for folder, count, first in (("photos", 9, 0), ("others", 6, 50)):
        (world / folder).mkdir()
        for i in range(count):
            make_photo((48, 48), first + i).save(world / folder / f"{i}.png")
    make_domains(world / "domains")
    common = [f"--checkpoint_dir={world}", "--train_iters=4", "--checkpoint_every=2", "--sample_every=4"]
    assert train(*common, f"--data={world / 'photos'}", "--name=dcgan") == 0
    assert train(*common, f"--data={world / 'domains'}", "--name=cyclegan", script="cycle_gan.py") == 0
    cats = ensure_toy_cats(world / "cats", 32, train=8, test=5)
    assert train(*common, f"--data={cats}", "--name=toys", script="cycle_gan.py") == 0
    (world / "one").mkdir()
    (world / "empty").mkdir()
    make_photo((40, 40), 0).save(world / "one" / "a.png")
    (world / "sized").mkdir()
    make_photo((40, 40), 0).save(world / "sized" / "a.png")
    make_photo((64, 48), 1).save(world / "sized" / "b.png")
    (world / "file.txt").write_text("not a checkpoint")
    return world


def test_samples_of_a_dcgan(world, tmp_path, capsys):
    """What is written: the numbers with their protocol, and a picture; the run folder is the default place."""
    run = shutil.copytree(world / "dcgan", tmp_path / "dcgan")
    assert call(run) == 0
    out = capsys.readouterr().out
    assert "at iteration 4, 32x32" in out and "they are no FID" in out and "below 2048" in out
    rows = rows_of(run)
    assert {row["metric"] for row in rows} == {
        "kernel distance x1000", "Frechet distance", "precision", "recall", "nearest distance ratio",
        "SSIM between images", "SSIM between real images",
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


def test_what_is_shown_is_what_the_generator_makes(world, tmp_path):
    """The picture: samples of the averaged G of these latents, the one nearest to a real image first."""
    assert call(world / "dcgan", f"--out={tmp_path}") == 0
    checkpoint = torch.load(world / "dcgan/checkpoint-000004.pt", weights_only=True)
    G = vanilla_gan.build_networks(vanilla_gan.VanillaOptions.from_dict(checkpoint["options"]))["G"].eval()
    G.load_state_dict(checkpoint["ema"]["G"])
    z = torch.rand(9, 4, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = ((G(z) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    paths = [world / "photos" / f"{i}.png" for i in range(9)]
    real = torch.stack([evaluate.decode(path, 32) for path in paths])
    distances = torch.cdist(evaluate.pixels(made), evaluate.pixels(real))
    closest = distances.amin(dim=1).argmin()
    picture = torch.tensor(list(Image.open(tmp_path / "nearest-000004-pixels.png").get_flattened_data()))
    picture = picture.view(2 * (32 + 6) + 6, -1, 3).permute(2, 0, 1)
    assert (picture[:, 6:38, 6:38] - made[closest].int()).abs().max() <= 1
    assert (picture[:, 6:38, 38:70] - real[distances[closest].argmin()].int()).abs().max() <= 1


def test_the_same_seed_gives_the_same_numbers_and_the_batch_size_none_other(world, tmp_path):
    found = {}
    for name, flags in {"a": [], "b": [], "batch": ["--batch_size=2"], "seed": ["--seed=1"]}.items():
        assert call(world / "dcgan", f"--out={tmp_path / name}", *flags) == 0
        found[name] = values(rows_of(tmp_path / name))
    assert found["a"]["Frechet distance"] != found["seed"]["Frechet distance"], "other samples, not only other subsets"
    assert found["a"] == found["b"] == pytest.approx(found["batch"], rel=1e-4) != pytest.approx(found["seed"], rel=1e-4)


def test_checkpoint_and_file(world, tmp_path):
    found = {}
    for name, arguments in {
        "newest": [world / "dcgan"],
        "4": [world / "dcgan", "--checkpoint=4"],
        "2": [world / "dcgan", "--checkpoint=2"],
        "file": [world / "dcgan/checkpoint-000002.pt"],
    }.items():
        assert call(*arguments, f"--out={tmp_path / name}") == 0
        found[name] = values(rows_of(tmp_path / name))
    assert found["newest"] == found["4"] != found["2"] == found["file"]


def test_num_images_and_reference(world, tmp_path):
    assert call(world / "dcgan", "--num_images=5", f"--out={tmp_path / 'n'}") == 0
    assert {row["generated"] for row in rows_of(tmp_path / "n")} == {"5"}
    assert call(world / "dcgan", world / "others", f"--out={tmp_path / 'r'}") == 0
    rows = rows_of(tmp_path / "r")
    assert {(row["generated"], row["reference"], row["split"]) for row in rows} == {("6", "6", str(world / "others"))}


def test_translations_of_a_cyclegan(world, tmp_path):
    """Both directions, both splits; no truth is known of these images."""
    assert call(world / "cyclegan", f"--out={tmp_path}") == 0
    rows = rows_of(tmp_path)
    sizes = {(row["task"], row["split"]): (row["generated"], row["reference"]) for row in rows}
    assert sizes == {("X2Y", "train"): ("10", "7"), ("X2Y", "test"): ("3", "3"), ("Y2X", "train"): ("7", "10"),
                     ("Y2X", "test"): ("3", "3")}  # fmt: skip
    metrics = {row["metric"] for row in rows}
    assert {"L1 to reconstruction", "SSIM with reconstruction"} <= metrics and "L1 to truth" not in metrics
    assert not {"precision", "recall"} & set(values(rows, split="test")), "of 3 images there is no third neighbor"
    assert (tmp_path / "nearest-000004-pixels-X-Y.png").exists() and (
        tmp_path / "nearest-000004-pixels-Y-X.png"
    ).exists()


def test_the_way_back_leads_to_the_input(world, tmp_path):
    """Each translation goes back through the generator of the other direction: compared with a plain computation."""
    assert call(world / "cyclegan", f"--out={tmp_path}") == 0
    checkpoint = torch.load(world / "cyclegan/checkpoint-000004.pt", weights_only=True)
    networks = cycle_gan.build_networks(cycle_gan.CycleOptions.from_dict(checkpoint["options"]))
    for name in ("G_XtoY", "G_YtoX"):
        networks[name].eval().load_state_dict(checkpoint["ema"][name])
    for task, there, back, folder in (("X2Y", "G_XtoY", "G_YtoX", "testA"), ("Y2X", "G_YtoX", "G_XtoY", "testB")):
        inputs = torch.stack([evaluate.decode(world / "domains" / folder / f"{i}.png", 32) for i in range(3)]) / 255
        with torch.no_grad():
            right, wrong = (
                (networks[second](networks[there](inputs * 2 - 1)) / 2 + 0.5 - inputs).abs().mean().item()
                for second in (back, there)
            )
        found = values(rows_of(tmp_path), task=task, split="test")["L1 to reconstruction"]
        assert found == pytest.approx(right, abs=2e-3) and abs(right - wrong) > 4e-3


def test_toy_cats_have_a_truth(world, tmp_path):
    """Of the images to test on: compared with a plain computation."""
    assert call(world / "toys", f"--out={tmp_path}") == 0
    rows = rows_of(tmp_path)
    assert "L1 to truth" not in values(rows, split="train")
    x, y = (
        torch.stack([evaluate.decode(path, 32) for path in sorted((world / "cats" / name).glob("*.png"))])
        for name in ("testA", "testB")
    )
    assert len(x) == 5
    untranslated = (x.float() - y.float()).abs().mean().item() / 255
    for task, direction, inputs, truth in (("X2Y", "G_XtoY", x, y), ("Y2X", "G_YtoX", y, x)):
        found = values(rows, task=task, split="test")
        assert found["L1 to truth, untranslated"] == pytest.approx(untranslated, rel=1e-4)
        checkpoint = torch.load(world / "toys/checkpoint-000004.pt", weights_only=True)
        G = cycle_gan.build_networks(cycle_gan.CycleOptions.from_dict(checkpoint["options"]))[direction].eval()
        G.load_state_dict(checkpoint["ema"][direction])
        with torch.no_grad():
            made = (G(inputs.float() / 127.5 - 1) + 1) / 2
        assert found["L1 to truth"] == pytest.approx((made - truth.float() / 255).abs().mean().item(), abs=2e-3)


def test_two_folders(world, tmp_path, capsys):
    assert call(world / "photos", world / "photos", f"--out={tmp_path}") == 0
    same = values(rows_of(tmp_path))
    assert same["Frechet distance"] == pytest.approx(0, abs=1e-6) and same["nearest distance ratio"] < 1e-6
    assert (same["precision"], same["recall"]) == (1, 1)
    capsys.readouterr()
    assert call(world / "photos", world / "others") == 0
    assert "wrote" not in capsys.readouterr().out, "without --out nothing is"
    assert not (world / "photos" / "metrics.csv").exists()
    assert call(world / "sized", world / "photos", "--image_size=32", f"--out={tmp_path / 'sized'}") == 0
    assert {row["generated"] for row in rows_of(tmp_path / "sized")} == {"2"}


class MeanColor(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=[2, 3])


def test_features_of_a_file(world, tmp_path):
    """A TorchScript module; the weights of a torchvision model; both are named in the rows, neither is called FID."""
    torch.jit.script(MeanColor()).save(str(tmp_path / "mean_color.pt"))
    from torchvision.models import resnet18

    torch.manual_seed(0)
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet18-01234567.pth")
    for file, resize in (("mean_color.pt", "inside the module"), ("resnet18-01234567.pth", "to 224x224")):
        out = tmp_path / file.split(".")[0]
        assert call(world / "photos", world / "others", f"--features={tmp_path / file}", f"--out={out}") == 0
        rows = rows_of(out)
        assert {row["features"] for row in rows} == {Path(file).stem} and resize in rows[0]["resize"]
        assert "FID" not in values(rows) and values(rows)["Frechet distance"] > 0
    a, b = (
        torch.stack([evaluate.decode(path, None) for path in evaluate.list_images(world / name)]).double().mean((2, 3))
        for name in ("photos", "others")
    )
    expected = evaluate.frechet_distances(a, b)[0]
    assert values(rows_of(tmp_path / "mean_color"))["Frechet distance"] == pytest.approx(expected, rel=1e-3)


def test_a_file_by_the_name_of_ours_is_not_called_fid(world, tmp_path):
    torch.jit.script(MeanColor()).save(str(tmp_path / "inception.pt"))
    out = tmp_path / "out"
    assert call(world / "photos", world / "others", f"--features={tmp_path / 'inception.pt'}", f"--out={out}") == 0
    assert "FID" not in values(rows_of(out)) and {row["features"] for row in rows_of(out)} == {"file_inception"}


def test_names_of_features_can_do_no_harm(tmp_path):
    torch.jit.script(MeanColor()).save(str(tmp_path / "=1+1\x1b[31m$.pt"))
    found = evaluate.load_features(str(tmp_path / "=1+1\x1b[31m$.pt"), None, torch.device("cpu"))
    assert found.name == "1_1_31m"


def test_to_load_features_leaves_the_random_generator(tmp_path):
    """A network begins with random weights, before it loads those of a file: a run must not notice."""
    from torchvision.models import squeezenet1_1

    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "squeezenet1_1-01234567.pth")
    before = torch.get_rng_state()
    evaluate.load_features(str(tmp_path / "squeezenet1_1-01234567.pth"), None, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


def test_another_evaluation_does_not_replace_the_first(world, tmp_path):
    for arguments in ([], [], ["--seed=3"], ["--num_images=4"]):
        assert call(world / "dcgan", f"--out={tmp_path}", *arguments) == 0
    names = {path.name for path in tmp_path.glob("evaluation-*")}
    assert names == {f"evaluation-000004-pixels{number}.json" for number in ("", "-2", "-3")}
    seeds = [json.loads((tmp_path / f"evaluation-000004-pixels{n}.json").read_text())["seed"] for n in ("", "-2", "-3")]
    assert seeds == [0, 3, 0] and len(list(tmp_path.glob("nearest-*"))) == 3


def test_a_table_of_other_columns_is_left_alone(world, tmp_path, capsys, monkeypatch):
    """And that is said before anything is measured."""
    monkeypatch.setattr(evaluate, "make_cases", lambda *arguments: pytest.fail("minutes of work for nothing"))
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    assert call(world / "dcgan", f"--out={tmp_path}") == 2
    assert "metrics.csv has other columns" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"], "nothing else is left"
    assert (tmp_path / "metrics.csv").read_text() == "a,b\n1,2\n"


def test_a_folder_of_any_name(world, tmp_path, capsys):
    """As REFERENCE it stands in the table: resolved, so that no spreadsheet takes it for a formula, and on one line."""
    shutil.copytree(world / "others", tmp_path / '=1+1\n\x0b,"\u2028 \udcff')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for _ in range(2):
            assert call(world / "dcgan", '=1+1\n\x0b,"\u2028 \udcff', "--out=out") == 0
    rows = runs.read_metrics(tmp_path / "out")
    assert len(rows) == 14 and {row["split"] for row in rows} == {f'{tmp_path}/=1+1??,"\u2028 \\udcff'}
    assert len((tmp_path / "out/metrics.csv").read_bytes().split(b"\n")) == 1 + 14 + 1
    assert json.loads((tmp_path / "out/evaluation-000004-pixels.json").read_text())["reference"].endswith("\udcff")


def test_decoded_images_are_kept_beside_the_run(world, tmp_path, monkeypatch):
    """Wherever it is now: a run that was moved writes nothing where it was."""
    monkeypatch.setattr("data.decoding._CACHE_SECONDS", 0)
    shutil.copytree(world / "dcgan", tmp_path / "moved/dcgan")
    assert call(tmp_path / "moved/dcgan") == 0
    assert (tmp_path / "moved/.cache").is_dir() and not (world / ".cache").exists()


def test_without_inception_the_rest_is_computed(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    address = (tmp_path / "nowhere-00000000.pth").as_uri()
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3", address)
    assert call(world / "photos", world / "others", "--features=inception", f"--out={tmp_path / 'out'}") == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and address in err and "--inception_weights" in err and "hub/checkpoints" in err
    assert {row["features"] for row in rows_of(tmp_path / "out")} == {"pixels"}


def test_inception_weights_are_downloaded_once_and_checked(tmp_path, monkeypatch):
    """From an address of this test, whose name has the beginning of the SHA-256, as the real one has."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    content = b"weights"
    for digest in (hashlib.sha256(content).hexdigest()[:8], "00000000"):
        source = tmp_path / f"weights-{digest}.pth"
        source.write_bytes(content)
        monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3", source.as_uri())
        if digest == "00000000":
            with pytest.raises(evaluate.UnavailableError, match="hash"):
                evaluate.find_inception_weights(None)
            assert not (tmp_path / "hub/checkpoints" / source.name).exists()
        else:
            found = evaluate.find_inception_weights(None)
            assert found.read_bytes() == content and found.parent == tmp_path / "hub/checkpoints"
            source.unlink()
            assert evaluate.find_inception_weights(None) == found, "the second time it is there"


MISTAKES = {
    "nothing there": (["{w}/nowhere", "{w}/photos"], ["nowhere", "neither a run folder"]),
    "no reference": (["{w}/photos"], ["REFERENCE", "photos"]),
    "reference of a CycleGAN": (["{w}/cyclegan", "{w}/photos"], ["REFERENCE", "both domains"]),
    "no such checkpoint": (["{w}/dcgan", "--checkpoint=3"], ["--checkpoint", "3", "2, 4"]),
    "no best": (["{w}/dcgan", "--checkpoint=best"], ["best.pt", "--eval_every"]),
    "no checkpoint file": (["{w}/file.txt"], ["file.txt", "no checkpoint"]),
    "sizes": (["{w}/sized", "{w}/photos"], ["--image_size", "sized", "differ"]),
    "other sizes": (["{w}/photos", "{w}/domains/testA"], ["--image_size", "differ"]),
    "size of a run": (["{w}/dcgan", "--image_size=64"], ["--image_size", "32"]),
    "checkpoint of a folder": (["{w}/photos", "{w}/others", "--checkpoint=2"], ["--checkpoint", "no run"]),
    "number for a folder": (["{w}/photos", "{w}/others", "--num_images=2"], ["--num_images", "no run"]),
    "one image": (["{w}/dcgan", "--num_images=1"], ["--num_images", "1", "at least 2"]),
    "no features": (["{w}/dcgan", "--features={w}/nothing.pt"], ["--features", "nothing.pt"]),
    "features of nothing": (["{w}/dcgan", "--features={w}/file.txt"], ["--features", "file.txt"]),
    "no weights": (["{w}/dcgan", "--inception_weights={w}/no.pth"], ["--inception_weights", "no.pth", "https://"]),
    "other weights": (["{w}/dcgan", "--inception_weights={w}/file.txt"], ["--inception_weights", "file.txt"]),
    "no image": (["{w}/empty", "{w}/photos"], ["RUN_OR_FOLDER", "no image in", "empty"]),
    "no real image": (["{w}/photos", "{w}/empty"], ["REFERENCE", "no image in", "empty"]),
    "one image in a folder": (["{w}/one", "{w}/photos"], ["one", "too few"]),
    "one real image": (["{w}/dcgan", "{w}/one"], ["one", "too few"]),
    "seed": (["{w}/dcgan", "--seed=99999999999999999999"], ["--seed", "below 2^63"]),
    "weights not used": (
        ["{w}/dcgan", "--features=pixels", "--inception_weights=x"],
        ["--inception_weights", "pixels"],
    ),
    "device": (["{w}/dcgan", "--device=gpu"], ["--device", "gpu"]),
    "out": (["{w}/dcgan", "--out={w}/file.txt"], ["--out", "file.txt"]),
    "flag": (["{w}/dcgan", "--feature=pixels"], ["--feature", "did you mean --features"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake, world, capsys):
    arguments, words = MISTAKES[mistake]
    before = sorted(world.rglob("*"))
    assert call(*[argument.format(w=world) for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert not [word for word in words if word not in err], err
    assert sorted(world.rglob("*")) == before


@pytest.mark.parametrize("flag", ["--inception_weights", "--features"])
def test_hostile_weights_run_nothing(flag, world, tmp_path, capsys):
    hostile = tmp_path / "resnet18-01234567.pth"
    torch.save(Canary(tmp_path / "canary"), hostile)
    assert call(world / "dcgan", f"{flag}={hostile}", f"--out={tmp_path / 'out'}") == 2
    assert not (tmp_path / "canary").exists() and capsys.readouterr().err.count("\n") == 1


def test_weights_that_do_not_fit_the_options(world, tmp_path, capsys):
    checkpoint = torch.load(world / "dcgan/checkpoint-000004.pt", weights_only=True)
    checkpoint["options"]["conv_dim"] = 3
    (tmp_path / "other.pt").write_bytes(runs.seal(checkpoint))
    assert call(tmp_path / "other.pt") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "don't fit its weights" in err and "G.layers" in err and "float32, not (" in err


def test_as_a_command(world, tmp_path):
    done = command(PROJECT / "evaluate.py", str(world / "dcgan"), "--features=pixels", f"--out={tmp_path}")
    assert done.returncode == 0 and "kernel distance" in done.stdout, done.stderr
    manual = command(PROJECT / "evaluate.py", "--help")
    assert manual.returncode == 0 and "python evaluate.py checkpoints/NAME" in manual.stdout


# ----------------------------------------------------------------------------------------------------------------------
# --eval_every


@pytest.mark.parametrize("script", ["vanilla_gan.py", "cycle_gan.py"])
def test_evaluations_while_training(script, run_once):
    """Rows at each evaluation and at the end, the best kept; and nothing else is changed by it."""
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


def test_the_same_numbers_as_evaluate(run_once, tmp_path):
    run = run_once("--eval_every=2")
    assert call(run.folder) == 0
    rows = rows_of(run.folder)
    assert values(rows, source="training") == values(rows, source="evaluate.py")
    assert call(run.folder, "--checkpoint=best", f"--out={tmp_path / 'best'}") == 0
    assert values(rows_of(tmp_path / "best")) == values(rows, source="training")


def test_the_best_is_not_overwritten_by_a_worse_one(run_once, monkeypatch):
    """With scores of our own: 3, 1, 2 at iterations 1, 2, 3."""
    scores = iter([3.0, 1.0, 2.0])
    measured = {"task": "z", "split": "train", "metric": "m", "std": None, "features": "f", "resize": "", "seed": 0,
                "generated": 2, "reference": 2}  # fmt: skip
    monkeypatch.setattr(evaluate.Judge, "__call__", lambda self, case: ([{**measured, "value": next(scores)}], None))
    run = run_once("--eval_every=1", "--train_iters=3")
    assert torch.load(run.folder / "best.pt", weights_only=True)["step"] == 2


def test_a_resumed_run_measures_the_same(run_once, tmp_path):
    """Stopped at 3, after a measurement at 2, and resumed from a checkpoint at 2: the table of the whole run."""
    flags = ["--eval_every=1", "--checkpoint_every=2"]
    whole = run_once(*flags, "--train_iters=4", name="whole")
    torn = run_once(*flags, "--train_iters=3", name="torn")
    (torn.folder / "checkpoint-000003.pt").unlink()
    with open(torn.folder / "metrics.csv", "a") as file:
        file.write("3,training,z,train,ker")  # a row that a crash has torn
    assert resume(f"--resume={torn.folder}", "--train_iters=4") == 0
    assert (torn.folder / "metrics.csv").read_text() == (whole.folder / "metrics.csv").read_text()
    bests = [torch.load(run.folder / "best.pt", weights_only=True)["step"] for run in (whole, torn)]
    assert bests[0] == bests[1]


def test_rows_after_a_torn_one(world, tmp_path):
    assert call(world / "dcgan", f"--out={tmp_path}") == 0
    whole = rows_of(tmp_path)
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("4,evaluate.py,z,tra")
    assert call(world / "dcgan", f"--out={tmp_path}") == 0
    assert runs.read_metrics(tmp_path) == [*whole, *whole]
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write('4,evaluate.py,z,"/a')
    assert call(world / "dcgan", f"--out={tmp_path}") == 0
    assert runs.read_metrics(tmp_path) == [*whole, *whole, *whole]


def test_a_header_that_a_crash_has_torn(world, tmp_path):
    (tmp_path / "metrics.csv").write_text("step,sou")
    assert call(world / "dcgan", f"--out={tmp_path}") == 0
    assert len(rows_of(tmp_path)) == 7 == len(runs.read_metrics(tmp_path))


def test_a_foreign_table_stops_a_resumption(run_once, capsys):
    run = run_once("--eval_every=2")
    (run.folder / "metrics.csv").write_text("a,b\n1,2\n")
    assert resume(f"--resume={run.folder}", "--train_iters=9") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "other columns" in err


def test_a_run_never_goes_on_from_before_its_best(run_once):
    run = run_once("--eval_every=2", "--train_iters=3", "--checkpoint_every=100")
    assert torch.load(run.folder / "best.pt", weights_only=True)["step"] in run.steps("checkpoint-*.pt")


def test_features_while_training(run_once, tmp_path):
    torch.jit.script(MeanColor()).save(str(tmp_path / "mean_color.pt"))
    run = run_once("--eval_every=2", f"--features={tmp_path / 'mean_color.pt'}")
    assert {row["features"] for row in rows_of(run.folder)} == {"mean_color"}


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


def test_the_plot_has_a_panel_for_it(run_once):
    plain, measured = run_once(name="plain"), run_once("--eval_every=1", name="measured")
    heights = [Image.open(run.folder / "losses.png").height for run in (plain, measured)]
    assert heights[1] > 1.5 * heights[0]
