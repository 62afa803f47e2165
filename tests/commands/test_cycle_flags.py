"""Every flag of cycle_gan.py changes what its help says.

Flags that test_vanilla_flags.py tests, and that use the same code (the loop and the data loader), are not tested again.
"""

import json

import pytest
import torch
from PIL import Image

import cycle_gan
import models
from options.fields import option_fields
from options.training import CycleOptions
from tests.commands import test_vanilla_flags
from tests.commands.test_vanilla_flags import first_loss
from tests.conftest import FinishedRun, make_domains, resume, train

CYCLE = "--use_cycle_consistency_loss"
NETWORKS = ("G_XtoY", "G_YtoX", "D_X", "D_Y")


def weights(run: FinishedRun, name: str, key: str) -> torch.Tensor:
    return run.checkpoint()["networks"][name][key]


def keys(run: FinishedRun, name: str) -> list[str]:
    return list(run.checkpoint()["networks"][name])


def convs(run: FinishedRun, name: str) -> int:
    return sum(value.dim() == 4 for value in run.checkpoint()["networks"][name].values())


def folders(run: FinishedRun) -> list[str]:
    return [run.data[domain]["folder"].rsplit("/", 1)[1] for domain in ("X", "Y")]


def size(run: FinishedRun, name: str) -> tuple[int, int]:
    return Image.open(run.folder / "samples" / name).size


# Flag -> (arguments, what the run with them must show and the run without must not).
FLAGS = {
    "X": (["--X={tmp}/photos", "--Y={tmp}/domains/trainB"], lambda r: folders(r) == ["photos", "trainB"]),
    "Y": (["--X={tmp}/domains/trainB", "--Y={tmp}/photos"], lambda r: folders(r) == ["trainB", "photos"]),
    "data": (["--data={tmp}/more"], lambda r: r.data["X"]["folder"].endswith("more/trainA")),
    "image_size": (["--image_size=48", "--disc=patch"], lambda r: size(r, "sample-000000-X-Y.png")[0] > 4 * 3 * 48),
    "test_split": (["--test_split=0.5"], lambda r: len(r.data["X"]["train"]) == 5 and len(r.data["Y"]["test"]) == 4),
    "ext": (["--ext=jpg"], lambda r: list(r.data["X"]["train"]) == ["a.jpg"] == r.data["X"]["test"]),
    "train_iters": (["--train_iters=3"], lambda r: r.steps("checkpoint-*.pt") == [3]),
    "pool_size": (
        ["--pool_size=6"],
        lambda r: [pool["images"].shape[0] for pool in r.checkpoint()["pools"].values()] == [6, 6],
    ),
    "gen": (["--gen=resnet_6blocks"], lambda r: weights(r, "G_XtoY", "layers.0.0.weight").shape[-1] == 7),
    "n_res_blocks": (["--n_res_blocks=5"], lambda r: convs(r, "G_YtoX") == 2 + 5 + 2),
    "res_block_convs": (["--res_block_convs=2"], lambda r: convs(r, "G_XtoY") == 2 + 2 * 3 + 2),
    "n_downsample": (["--n_downsample=3"], lambda r: convs(r, "G_XtoY") == 3 + 3 + 3),
    "upsample": (["--upsample=deconv"], lambda r: weights(r, "G_XtoY", "layers.5.0.weight").shape[-1] == 4),
    "g_conv_dim": (["--g_conv_dim=3"], lambda r: weights(r, "G_YtoX", "layers.0.0.weight").shape[0] == 3),
    "d_conv_dim": (["--d_conv_dim=3"], lambda r: weights(r, "D_Y", "layers.0.0.weight").shape[0] == 3),
    "disc": (["--disc=patch70"], lambda r: "layers.0.0.bias" in keys(r, "D_X")),
    CYCLE[2:]: ([CYCLE], lambda r: "cycle" in r.rows()[0] and "identity" not in r.rows()[0]),
    "use_identity_loss": (["--use_identity_loss"], lambda r: "identity" in r.rows()[0] and "cycle" not in r.rows()[0]),
    "norm": (
        ["--norm=batch"],
        lambda r: all("layers.0.1.running_mean" in keys(r, name) for name in NETWORKS),
    ),
    "spectral_norm": (
        ["--spectral_norm"],
        lambda r: all("layers.0.0.parametrizations.weight.original" in keys(r, D) for D in ("D_X", "D_Y"))
        and not any("parametrizations" in key for key in keys(r, "G_XtoY")),
    ),
    "init_type": (
        ["--init_type=normal"],
        lambda r: all(weights(r, name, "layers.0.0.weight").abs().max() < 0.12 for name in NETWORKS),
    ),
    "gan_mode": (["--gan_mode=hinge"], lambda r: first_loss(r, "D_X") > 1.7),
    "r1_gamma": (["--r1_gamma=3"], lambda r: "R1" in r.rows()[0] and first_loss(r, "R1") > 0),
    "r2_gamma": (["--r2_gamma=3"], lambda r: "R2" in r.rows()[0] and first_loss(r, "R2") > 0),
    "lambda_features": (["--lambda_features=1"], lambda r: "features" in r.rows()[0] and first_loss(r, "features") > 0),
    "d_optimizer": test_vanilla_flags.FLAGS["d_optimizer"],
    "lr": (["--lr=0.125"], lambda r: test_vanilla_flags.lrs(r) == [0.125] * 2),
    "ema_decay": (["--ema_decay=0"], lambda r: r.checkpoint()["ema"] == {}),
    "sample_every": (["--sample_every=1"], lambda r: len(list(r.folder.glob("samples/sample-*-Y-X.png"))) == 3),
    "preset": (["--preset=hasey"], lambda r: r.options["upsample"] == "deconv" and r.options["cycle_loss"] == "L2"),
}  # fmt: skip


# Flags that change only numbers: each has a test of its own below.
HERE = {
    "cycle_loss": "test_cycle_loss_and_weights",
    "lambda_cycle": "test_cycle_loss_and_weights",
    "lambda_identity": "test_cycle_loss_and_weights",
    "use_diffaug": "test_diffaug_is_what_D_sees",
    "seed": "test_seed",
    "penalty_every": "test_penalties",
}


def test_every_flag_is_covered():
    shared = set(test_vanilla_flags.FLAGS) | set(test_vanilla_flags.ELSEWHERE)
    fields = {field.name for field in option_fields(CycleOptions)}
    assert fields - shared <= {*FLAGS, *HERE}, "a flag of this script alone needs a test here"
    assert {*FLAGS, *HERE} <= fields and not set(FLAGS) & set(HERE)
    assert all(callable(globals()[test]) for test in HERE.values())


@pytest.fixture
def more_domains(domains, photos, tmp_path):
    """Folders beside those of the fixtures: `domains` with a JPEG in each folder, and a copy of it."""
    for folder in (domains, tmp_path / "more"):
        make_domains(folder, jpeg=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without any of the flags, on the images of `more_domains`."""
    tmp_path = tmp_path_factory.mktemp("plain")
    make_domains(tmp_path / "domains", jpeg=True)
    flags = [f"--data={tmp_path / 'domains'}", f"--checkpoint_dir={tmp_path}", "--name=run"]
    assert train(*flags, "--train_iters=2", "--log_step=1", script="cycle_gan.py") == 0
    return FinishedRun(tmp_path / "run")


@pytest.mark.parametrize("flag", FLAGS)
def test_flag(flag, run_once, more_domains, plain, tmp_path):
    arguments, shows = FLAGS[flag]
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    assert shows(run_once(*arguments, name="with", script="cycle_gan.py"))
    assert not shows(plain)


def test_cycle_loss_and_weights(run_once):
    """The terms are logged without their weights; G_total has them."""

    def run(*arguments):
        return run_once(*arguments, name=f"run{len(arguments)}{arguments[-1][-3:]}", script="cycle_gan.py").rows()[0]

    rows = {loss: run(CYCLE, f"--loss_type={loss}") for loss in ("L1", "L2", "SSIM")}
    assert len({row["cycle"] for row in rows.values()}) == 3
    for row, weight in ((rows["L1"], 10), (run(CYCLE, "--cycle_loss=L1", "--lambda_cycle=3"), 3)):
        expected = float(row["G_adversarial"]) + weight * float(row["cycle"])
        assert float(row["G_total"]) == pytest.approx(expected, rel=1e-4)
    row = run("--use_identity_loss", "--lambda_identity=4")
    assert float(row["G_total"]) == pytest.approx(float(row["G_adversarial"]) + 4 * float(row["identity"]), rel=1e-4)


def test_diffaug_is_what_D_sees(run_once, monkeypatch):
    policies = []
    real = cycle_gan.diff_augment
    monkeypatch.setattr(
        cycle_gan, "diff_augment", lambda images, policy: policies.append(policy) or real(images, policy)
    )
    run_once("--use_diffaug=color,cutout", script="cycle_gan.py")
    assert policies == ["color,cutout"] * 6 * 2, "two fakes for the generators, two pairs for the discriminators"


def test_seed(run_once):
    one, same, other = (
        run_once(f"--seed={seed}", name=name, script="cycle_gan.py") for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    for name in ("real-000000-X.png", "real-000000-Y.png", "sample-000000-X-Y.png", "sample-000002-Y-X.png"):
        pictures = [(run.folder / "samples" / name).read_bytes() for run in (one, same, other)]
        assert pictures[0] == pictures[1] != pictures[2]
    assert (one.folder / "losses.csv").read_bytes() == (same.folder / "losses.csv").read_bytes()


def test_relativistic_loss(run_once, monkeypatch):
    """The generators' update shows real images to the discriminators, too: 8 images in a pass, not the 4 fakes."""
    passes = []
    forward = models.DCDiscriminator.forward
    monkeypatch.setattr(
        models.DCDiscriminator, "forward", lambda self, images: passes.append(len(images)) or forward(self, images)
    )
    row = run_once("--gan_mode=relativistic", name="with", script="cycle_gan.py").rows()[0]
    assert passes == [8, 8, 8, 8] * 2
    passes.clear()
    plain = run_once(name="without", script="cycle_gan.py").rows()[0]
    assert passes == [4, 4, 8, 8] * 2
    assert all(row[name] != plain[name] for name in ("D_X", "D_Y", "G_adversarial"))


def test_penalties(run_once):
    test_vanilla_flags.check_penalties(run_once, "cycle_gan.py", "D_X")


def test_run_folder(run_once):
    """Grids of both directions from the start to the end, a plot, and a checkpoint with the documented names."""
    run = run_once(CYCLE, "--use_identity_loss", script="cycle_gan.py")
    assert sorted(path.name for path in (run.folder / "samples").iterdir()) == [
        "real-000000-X.png", "real-000000-Y.png", "sample-000000-X-Y.png", "sample-000000-Y-X.png",
        "sample-000002-X-Y.png", "sample-000002-Y-X.png",
    ]  # fmt: skip
    checkpoint = run.checkpoint()
    assert list(checkpoint["networks"]) == ["G_XtoY", "G_YtoX", "D_X", "D_Y"]
    assert list(checkpoint["ema"]) == ["G_XtoY", "G_YtoX"] and list(checkpoint["optimizers"]) == ["G", "D"]
    assert checkpoint["script"] == "cycle_gan.py" and (run.folder / "losses.png").stat().st_size > 10_000
    assert list(run.rows()[0]) == ["step", "D_X", "D_Y", "G_adversarial", "cycle", "identity", "G_total", "lr"]


def test_every_network_is_trained(run_once):
    run = run_once("--checkpoint_every=1", script="cycle_gan.py")
    for name in NETWORKS:
        first, second = (run.checkpoint(step)["networks"][name] for step in (1, 2))
        assert all(not torch.equal(first[key], second[key]) for key in first if key.endswith("weight"))


def test_the_plot_shows_every_term(run_once):
    flags = [CYCLE, "--use_identity_loss", "--lambda_features=1", "--r1_gamma=1", "--r2_gamma=1"]
    columns = set(run_once(*flags, script="cycle_gan.py").rows()[0])
    assert columns - {name for names in cycle_gan.PANELS.values() for name in names} == {"step", "lr", "G_total"}
    assert list(cycle_gan.PANELS) == ["Discriminators", "Generators", "Feature matching", "Gradient penalties"]


def test_default_name_tells_data_and_losses(domains, tmp_path):
    flags = [f"--checkpoint_dir={tmp_path / 'runs'}", "--train_iters=1"]
    assert train(f"--data={domains}", CYCLE, "--use_diffaug", *flags, script="cycle_gan.py") == 0
    flags += [f"--X={domains / 'trainA'}", f"--Y={domains / 'trainB'}", "--gan_mode=hinge", "--use_identity_loss"]
    assert train(*flags, script="cycle_gan.py") == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "cycle_gan-domains-basic-lsgan-cycle-L1-diffaug-001", "cycle_gan-trainA-trainB-basic-hinge-identity-001",
    ]  # fmt: skip


def test_domains_may_differ_in_number_and_are_drawn_independently(run_once):
    data = json.loads((run_once(script="cycle_gan.py").folder / "data.json").read_text())
    assert {name: len(domain["train"]) for name, domain in data.items()} == {"X": 10, "Y": 7}
    assert data["X"]["test"] == ["0.png", "1.png", "2.png"] and data["Y"]["test_folder"].endswith("testB")


def test_warnings_are_printed_once(run_once, monkeypatch):
    monkeypatch.setattr(cycle_gan, "diagnose_cyclegan", lambda *args, fixed: {"a": "problem A", "b": "problem B"})
    run = run_once("--sample_every=1", "--train_iters=3", script="cycle_gan.py")
    assert run.log.count("Warning: iteration 1: problem A\n") == 1
    assert run.log.count("problem A") == run.log.count("problem B") == 1
    assert resume(f"--resume={run.folder}", "--train_iters=5", script="cycle_gan.py") == 0
    assert FinishedRun(run.folder).log.count("problem A") == 1, "a resumed run does not repeat them"
