"""Every flag of vanilla_gan.py changes what its help says: the folder of a short run with the flag shows it."""

import itertools
import json

import pytest
import torch
from PIL import Image

import models
import vanilla_gan
from options.fields import option_fields
from options.training import VanillaOptions
from tests.conftest import ROOT, FinishedRun, assert_same, train


def G(run: FinishedRun, key: str) -> torch.Tensor:
    return run.checkpoint()["networks"]["G"][key]


def lrs(run: FinishedRun) -> list[float]:
    return [float(row["lr"]) for row in run.rows()]


def betas(run: FinishedRun) -> tuple[float, float]:
    return run.checkpoint()["optimizers"]["D"]["param_groups"][0]["betas"]


def size(run: FinishedRun, name: str) -> tuple[int, int]:
    return Image.open(run.folder / "samples" / name).size


def first_loss(run: FinishedRun, name: str) -> float:
    return float(run.rows()[0][name])


def images(run: FinishedRun) -> dict:
    return run.data["images"]


# Flag -> (arguments, what the run with them must show and the run without must not).
FLAGS = {
    "image_size": (["--image_size=64"], lambda r: size(r, "sample-000000.png") == (8 * 66 + 2, 8 * 66 + 2)),
    "data_aug": (["--data_aug=deluxe"], lambda r: "35x35" in r.log),
    "ext": (["--ext=jpg"], lambda r: list(images(r)["train"]) == ["10.jpg"]),
    "test_split": (["--test_split=0.5"], lambda r: sorted(map(len, (images(r)["test"], images(r)["train"]))) == [5, 6]),
    "cache_gb": (["--cache_gb=0"], lambda r: "streamed from disk" in r.log),
    "norm": (["--norm=batch"], lambda r: "layers.0.1.running_mean" in r.checkpoint()["networks"]["G"]),
    "spectral_norm": (
        ["--spectral_norm"],
        lambda r: "layers.0.0.parametrizations.weight.original" in r.checkpoint()["networks"]["D"]
        and not any("parametrizations" in key for key in r.checkpoint()["networks"]["G"]),
    ),
    "init_type": (["--init_type=normal"], lambda r: G(r, "layers.3.weight").abs().max() < 0.15),
    "gan_mode": (["--gan_mode=hinge"], lambda r: first_loss(r, "D_real") + first_loss(r, "D_fake") > 1.7),
    "r1_gamma": (["--r1_gamma=3"], lambda r: "R1" in r.rows()[0] and first_loss(r, "R1") > 0),
    "r2_gamma": (["--r2_gamma=3"], lambda r: "R2" in r.rows()[0] and first_loss(r, "R2") > 0),
    "train_iters": (["--train_iters=3"], lambda r: r.steps("checkpoint-*.pt") == [3]),
    "num_epochs": (["--num_epochs=2"], lambda r: r.options["num_epochs"] == 2),
    "batch_size": (["--batch_size=16"], lambda r: "Warning: 11 images are fewer than the batch size 16" in r.log),
    "d_optimizer": (
        ["--d_optimizer=muon"],
        lambda r: set(r.checkpoint()["optimizers"]["D"]["state"][0]) == {"momentum"}
        and "exp_avg" in r.checkpoint()["optimizers"]["G"]["state"][0],
    ),
    "lr": (["--lr=0.125"], lambda r: lrs(r) == [0.125] * 2),
    "d_lr": (
        ["--d_lr=0.125", "--lr_policy=cosine"],  # half of the rates in the second and last iteration
        lambda r: [r.checkpoint()["optimizers"][name]["param_groups"][0]["lr"] for name in "DG"]
        == pytest.approx([0.0625, 2.5e-4]),
    ),
    "beta1": (["--beta1=0.25"], lambda r: betas(r)[0] == 0.25),
    "beta2": (["--beta2=0.75"], lambda r: betas(r)[1] == 0.75),
    "lr_policy": (["--lr_policy=cosine"], lambda r: lrs(r) == pytest.approx([5e-4, 2.5e-4])),
    "ema_decay": (["--ema_decay=0"], lambda r: r.checkpoint()["ema"] == {}),
    "log_step": (["--log_step=2"], lambda r: [row["step"] for row in r.rows()] == ["2"]),
    "sample_every": (["--sample_every=1"], lambda r: r.steps("samples/sample-*.png") == [0, 1, 2]),
    "checkpoint_every": (["--checkpoint_every=1"], lambda r: r.steps("checkpoint-*.pt") == [1, 2]),
    "conv_dim": (["--conv_dim=3"], lambda r: G(r, "layers.3.weight").shape == (3, 3, 3, 3)),
    "noise_size": (["--noise_size=9"], lambda r: G(r, "layers.0.0.weight").shape[1] == 9),
    "self_modulation": (["--self_modulation"], lambda r: "layers.0.modulation.bias" in r.checkpoint()["ema"]["G"]),
    "fine_channels": (
        ["--fine_channels=5"],
        lambda r: [value.shape for key, value in r.checkpoint()["ema"]["G"].items() if value.dim() == 4][-2:]
        == [(5, 2, 3, 3), (3, 5, 3, 3)],
    ),
    "split_noise": (
        ["--self_modulation", "--split_noise", "--noise_size=9"],
        lambda r: [value.shape[1] for key, value in r.checkpoint()["ema"]["G"].items() if "modulation.weight" in key]
        == [2, 2, 2],
    ),
    "lambda_modes": (["--lambda_modes=0.5"], lambda r: float(r.rows()[-1].get("modes", 0)) > 0),
    "lambda_codes": (["--lambda_codes=0.5"], lambda r: float(r.rows()[-1].get("codes", 0)) > 0),
    "code_range": (
        ["--lambda_codes=1", "--code_range=0.25"],
        lambda r: "codes" in r.checkpoint()["pools"] and 0.2 < r.checkpoint()["pools"]["codes"]["codes"].max() < 0.25,
    ),
    "lambda_features": (["--lambda_features=0.5"], lambda r: float(r.rows()[-1].get("features", 0)) > 0),
    "upsample": (["--upsample=deconv"], lambda r: G(r, "layers.1.0.weight").shape[-1] == 4),
    "checkpoint_dir": (["--checkpoint_dir={tmp}/elsewhere"], lambda r: r.folder.parent.name == "elsewhere"),
    "name": (["--name=other"], lambda r: r.folder.name == "other"),
    "preset": (["--preset=hasey"], lambda r: r.options["upsample"] == "deconv" and r.options["norm"] == "batch"),
    "data": (["--data={tmp}/more"], lambda r: images(r)["folder"].endswith("more") and len(images(r)["train"]) == 1),
}  # fmt: skip


# Flags that change only numbers, and flags of other files: the test that covers each of them.
ELSEWHERE = {
    "use_diffaug": "test_diffaug_is_what_D_sees",
    "seed": "test_seed",
    "disc": "test_disc",
    "sample_dir": "test_sample_dir",
    "amp": "test_amp",
    "deterministic": "test_deterministic",
    "penalty_every": "test_penalties",
    "resume": "tests/training/test_resume.py",
    "init_from": "tests/training/test_initial_weights.py",
    "partial": "tests/training/test_initial_weights.py",
    "num_workers": "tests/test_data_loader.py",
    "value_range": "tests/commands/test_value_ranges.py",
    "strict": "tests/images/test_hostile_files.py",
    "keep_checkpoints": "tests/runs/test_checkpoints.py",
    "device": "tests/system/test_device.py",
    "compile": "tests/training/test_state.py",
    "threads": "tests/training/test_threads.py",
    "cuda_graph": "tests/training/test_graph.py",
    "eval_every": "tests/commands/test_evaluate.py",
    "features": "tests/commands/test_evaluate.py",
    "inception_weights": "tests/commands/test_evaluate.py",
    "tracker": "tests/runs/test_trackers.py",
}


def test_every_flag_is_covered():
    assert set(FLAGS) | set(ELSEWHERE) == {field.name for field in option_fields(VanillaOptions)}
    for flag, place in ELSEWHERE.items():
        assert flag in (ROOT / place).read_text() if "/" in place else callable(globals()[place]), flag


@pytest.fixture
def more_photos(photos, tmp_path):
    """A JPEG among the PNGs of `photos`, and a second folder of one image."""
    Image.open(photos / "0.png").save(photos / "10.jpg")
    (tmp_path / "more").mkdir()
    Image.open(photos / "0.png").save(tmp_path / "more" / "0.png")


@pytest.mark.parametrize("flag", FLAGS)
def test_flag(flag, run_once, more_photos, tmp_path):
    arguments, shows = FLAGS[flag]
    name = "other" if flag == "name" else "with"
    changed = run_once(*[argument.format(tmp=tmp_path) for argument in arguments], name=name)
    assert shows(changed)
    assert not shows(run_once(name="without"))


def test_num_epochs_counts_images(photos, tmp_path):
    """3 passes over 10 images in batches of 4 are 8 iterations; --train_iters overrides --num_epochs."""
    flags = [f"--data={photos}", f"--checkpoint_dir={tmp_path}"]
    assert train(*flags, "--num_epochs=3", "--name=epochs") == 0
    assert FinishedRun(tmp_path / "epochs").steps("checkpoint-*.pt") == [8]
    assert train(*flags, "--num_epochs=3", "--train_iters=1", "--name=iterations") == 0
    assert FinishedRun(tmp_path / "iterations").steps("checkpoint-*.pt") == [1]


def test_sample_dir(run_once, tmp_path):
    run = run_once(f"--sample_dir={tmp_path / 'grids'}")
    assert not list(run.folder.glob("**/*.png")) or [p.name for p in run.folder.glob("**/*.png")] == ["losses.png"]
    names = sorted(path.name for path in (tmp_path / "grids" / "run").iterdir())
    assert names == ["real-000000.png", "sample-000000.png", "sample-000002.png"]


def test_diffaug_is_what_D_sees(run_once, monkeypatch):
    """D gets the result of diff_augment with the policy of the flag: three batches, the first two in one pass."""
    augmented, seen, policies = [], [], []
    real_augment, real_forward = vanilla_gan.diff_augment, models.DCDiscriminator.forward

    def diff_augment(images, policy):
        policies.append(policy)
        augmented.append(real_augment(images, policy) + 3)  # no image has such values
        return augmented[-1]

    def forward(self, images):
        seen.append(images)
        return real_forward(self, images)

    monkeypatch.setattr(vanilla_gan, "diff_augment", diff_augment)
    monkeypatch.setattr(models.DCDiscriminator, "forward", forward)
    run_once("--use_diffaug=color,cutout", name="with")
    assert policies == ["color,cutout"] * 6
    for step in (0, 1):
        real, fake, again = augmented[3 * step : 3 * step + 3]
        assert torch.equal(seen[2 * step], torch.cat([real, fake])) and seen[2 * step + 1] is again
    policies.clear()
    run_once(name="without")
    assert policies == [""] * 6


def test_hint_where_diffaug_would_help(run_once):
    hint = "Hint: with only 10 images D will overfit; try --use_diffaug, or --preset few_images"
    assert hint in run_once(name="without").log
    assert "overfit" not in run_once("--use_diffaug", name="with").log


def test_hint_where_a_run_is_short(run_once):
    assert "Hint: 2 iterations is short for a GAN; try --train_iters" in run_once().log


def test_disc(run_once):
    """At 32x32 both discriminators have the same weights, but one has 4 logits: other losses from the same start."""
    dc, patch = run_once(name="dc"), run_once("--disc=patch", name="patch")
    assert dc.checkpoint()["networks"]["D"].keys() == patch.checkpoint()["networks"]["D"].keys()
    assert first_loss(dc, "D_real") != first_loss(patch, "D_real")
    options = VanillaOptions(disc="patch", image_size=32)
    assert vanilla_gan.build_networks(options)["D"](torch.zeros(1, 3, 32, 32)).shape == (1, 1, 2, 2)


def test_relativistic_loss(run_once):
    """D compares real with fake images, so both terms of D are halves of one loss of pairs."""
    row, plain = run_once("--gan_mode=relativistic").rows()[0], run_once(name="plain").rows()[0]
    assert row["D_real"] == row["D_fake"] and plain["D_real"] != plain["D_fake"]
    assert float(row["D_total"]) == pytest.approx(2 * float(row["D_real"]), rel=1e-4)


def check_penalties(run_once, script: str, D: str) -> None:
    """Assert that gradient penalties change D in the iterations of --penalty_every, by their weights."""

    def run(*arguments: str) -> FinishedRun:
        return run_once(*arguments, name=f"run{''.join(arguments)}", script=script)

    def weights(run: FinishedRun) -> torch.Tensor:
        return run.checkpoint()["networks"][D]["layers.0.0.weight"]

    plain, rare, both = run(), run("--r1_gamma=3"), run("--r1_gamma=3", "--r2_gamma=3", "--penalty_every=1")
    assert not {"R1", "R2"} & set(plain.rows()[0])
    assert [bool(row["R1"]) for row in rare.rows()] == [True, False] and "R2" not in rare.rows()[0]
    assert [bool(row["R1"]) and bool(row["R2"]) for row in both.rows()] == [True, True]
    every = run("--r1_gamma=3", "--penalty_every=1")
    assert every.rows()[0]["R1"] == rare.rows()[0]["R1"] == both.rows()[0]["R1"], "reported without their weights"
    heavy = run("--r1_gamma=300", "--penalty_every=1")
    runs = [plain, rare, every, both, heavy]
    assert not any(torch.equal(weights(a), weights(b)) for a, b in itertools.combinations(runs, 2))


def test_penalties(run_once):
    check_penalties(run_once, "vanilla_gan.py", "D")


def test_seed(run_once):
    one, same, other = run_once(name="one"), run_once("--seed=11", name="same"), run_once("--seed=12", name="other")
    assert_same(one.checkpoint()["networks"], same.checkpoint()["networks"])
    assert (one.folder / "losses.csv").read_bytes() == (same.folder / "losses.csv").read_bytes()
    assert not torch.equal(G(one, "layers.3.weight"), G(other, "layers.3.weight"))
    for kind in ("real", "sample"):  # order and augmentation of the data, and the latents
        pictures = [(run.folder / "samples" / f"{kind}-000000.png").read_bytes() for run in (one, same, other)]
        assert pictures[0] == pictures[1] != pictures[2]


def test_amp(run_once):
    """bf16 computes the same to three digits, not to six; weights and losses stay float32."""
    full, half = run_once(name="full"), run_once("--amp=bf16", name="half")
    assert first_loss(half, "D_total") != first_loss(full, "D_total")
    assert first_loss(half, "D_total") == pytest.approx(first_loss(full, "D_total"), rel=0.05)
    assert G(half, "layers.3.weight").dtype is torch.float32
    assert "Mixed precision: bfloat16 (--amp bf16); use --amp off for float32" in half.log
    assert "recision" not in full.log
    assert json.loads((half.folder / "environment.json").read_text())[0]["precision_reason"] == "--amp bf16"


def test_deterministic(run_once):
    try:
        run_once("--deterministic")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
