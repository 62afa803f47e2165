"""Every flag of cycle_gan.py changes what it says it changes.

Those that test_flags.py shows and that go through the same code, the loop and the data loader, are not shown again.
"""

import json

import pytest
import torch
from PIL import Image

import cycle_gan
import models
from options import CycleOptions, option_fields, parse_command_line
from tests.conftest import MODULES, OPTIONS, FinishedRun, make_domains, resume, train
from tests.e2e import test_flags
from tests.e2e.test_flags import first_loss
from trainer import make_state
from utils import choose_precision

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
    "lr": (["--lr=0.125"], lambda r: test_flags.lrs(r) == [0.125] * 2),
    "ema_decay": (["--ema_decay=0"], lambda r: r.checkpoint()["ema"] == {}),
    "sample_every": (["--sample_every=1"], lambda r: len(list(r.folder.glob("samples/sample-*-Y-X.png"))) == 3),
    "preset": (["--preset=hasey"], lambda r: r.options["upsample"] == "deconv" and r.options["cycle_loss"] == "L2"),
}  # fmt: skip

# Flags whose result is the same kind of thing but other numbers.
HERE = {"cycle_loss", "lambda_cycle", "lambda_identity", "use_diffaug", "seed"}


def test_every_flag_is_covered():
    shared = set(test_flags.FLAGS) | set(test_flags.ELSEWHERE)
    fields = {field.name for field in option_fields(CycleOptions)}
    assert fields - shared <= set(FLAGS) | HERE, "a flag of this script alone needs a test here"
    assert set(FLAGS) | HERE <= fields


@pytest.fixture
def more_domains(domains, photos, tmp_path):
    """Folders beside those of the fixtures: `domains` with a JPEG in each folder, and a copy of it."""
    for folder in (domains, tmp_path / "more"):
        make_domains(folder, jpeg=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run without any of the flags, on images as those of `more_domains`."""
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


def test_run_folder(run_once):
    """Grids of both directions from the start to the end, a plot, and a checkpoint with the names of the design."""
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
    columns = set(run_once(CYCLE, "--use_identity_loss", script="cycle_gan.py").rows()[0])
    assert columns - {name for names in cycle_gan.PANELS.values() for name in names} == {"step", "lr", "G_total"}
    assert list(cycle_gan.PANELS) == ["Discriminators", "Generators"]


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


def test_warnings_are_printed_once(run_once, monkeypatch, domains, tmp_path):
    monkeypatch.setattr(cycle_gan, "find_trouble", lambda *args, fixed: {"a": "trouble A", "b": "trouble B"})
    run = run_once("--sample_every=1", "--train_iters=3", script="cycle_gan.py")
    assert (
        run.log.count("Warning, iteration 1: trouble A")
        == run.log.count("trouble A")
        == run.log.count("trouble B")
        == 1
    )
    assert resume(f"--resume={run.folder}", "--train_iters=5", script="cycle_gan.py") == 0
    assert FinishedRun(run.folder).log.count("trouble A") == 1, "also after a resumption"


PRESETS = [(script, name) for script, cls in OPTIONS.items() for name in cls.PRESETS]


@pytest.mark.parametrize("script, preset", PRESETS)
def test_preset(script, preset):
    """The networks of every preset take a step, on few images, and on smaller ones where the networks take any size."""
    options = OPTIONS[script](preset=preset, **OPTIONS[script].PRESETS[preset][1])
    options.check()
    module, cpu = MODULES[script], torch.device("cpu")
    networks = module.build_networks(options)
    if script == "vanilla_gan.py":
        optimized, batch = {"G": ["G"], "D": ["D"]}, {"images": torch.zeros(2, 3, *[options.image_size] * 2)}
        state = make_state(networks, optimized, ["G"], options, cpu, choose_precision("off", cpu))
        before = networks["G"].layers[-2].weight.detach().clone()
        losses = module.train_step(state, batch, options)
        assert not torch.equal(before, networks["G"].layers[-2].weight)
    else:
        optimized = {"G": ["G_XtoY", "G_YtoX"], "D": ["D_X", "D_Y"]}
        side = options.image_size if options.disc == "dc" else 64
        pools = {name: models.ImagePool(options.pool_size) for name in ("X", "Y")}
        state = make_state(networks, optimized, optimized["G"], options, cpu, choose_precision("off", cpu), pools)
        before = networks["G_YtoX"].layers[-2].weight.detach().clone()
        losses = module.train_step(state, {name: torch.rand(2, 3, side, side) for name in ("X", "Y")}, options)
        assert not torch.equal(before, networks["G_YtoX"].layers[-2].weight)
    assert all(value.isfinite() for value in losses.values())


# What the projects say of their CycleGANs, DESIGN.md sections 1 and 4.
CATS = {"X": "cat/grumpifyAprocessed", "Y": "cat/grumpifyBprocessed"}
LEO = {"lr": 2e-4, "ema_decay": 0.0, "norm": "instance", "disc": "patch", "use_cycle_consistency_loss": True,
       "data_aug": "deluxe", "batch_size": 16, "gen": "cycle", "cycle_loss": "L1", "train_iters": 10_000}  # fmt: skip
LARGE = {**LEO, "image_size": 256, "lambda_cycle": 5.0, "use_identity_loss": True}
PUBLISHED = {
    "hasey": {**CATS, "upsample": "deconv", "cycle_loss": "L2", "use_cycle_consistency_loss": True, "norm": "batch",
              "data_aug": "deluxe", "train_iters": 100_000, "image_size": 64, "lr": 2e-4, "ema_decay": 0.0},
    "agrawal": {**LEO, **CATS, "data_aug": "deluxe_autocontrast", "use_diffaug": "color,translation,cutout"},
    "grumpycat64": {**LEO, **CATS, "image_size": 64, "use_diffaug": "", "use_identity_loss": False},
    "apple2orange64": {**LEO, "data": "apple2orange", "image_size": 64, "lambda_cycle": 10.0},
    "yosemite128": {"data": "summer2winter_yosemite", "image_size": 128, "norm": "batch", "upsample": "deconv",
                    "n_downsample": 3, "n_res_blocks": 6, "res_block_convs": 2, "disc": "patch94", "cycle_loss": "L1",
                    "use_cycle_consistency_loss": True, "g_conv_dim": 64, "d_conv_dim": 64},
    "monet256": {"X": "gan-getting-started/monet_jpg", "Y": "gan-getting-started/photo_jpg", "image_size": 256,
                 "batch_size": 1, "lr": 2e-4, "beta1": 0.5, "gen": "resnet_9blocks", "upsample": "deconv",
                 "disc": "patch70", "norm": "instance", "test_split": 0.2, "use_cycle_consistency_loss": True,
                 "use_identity_loss": True, "pool_size": 50, "init_type": "normal", "g_conv_dim": 64,
                 "d_conv_dim": 64},
    "cats256": {**LARGE, **CATS},
    "apple2orange256": {**LARGE, "data": "apple2orange"},
}  # fmt: skip


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_are_what_was_published(preset):
    options = CycleOptions(**CycleOptions.PRESETS[preset][1]).to_dict()
    assert {name: options[name] for name in PUBLISHED[preset]} == PUBLISHED[preset]
    networks = cycle_gan.build_networks(CycleOptions(**CycleOptions.PRESETS[preset][1]))
    blocks = sum(isinstance(module, models.ResidualBlock) for module in networks["G_XtoY"].modules())
    assert blocks == {"yosemite128": 6, "monet256": 9}.get(preset, 3)
    if preset == "yosemite128":
        assert sum(isinstance(module, torch.nn.Conv2d) for module in networks["D_X"].modules()) == 5


def test_every_cyclegan_of_the_published_projects_has_a_preset():
    assert set(CycleOptions.PRESETS) == {"toy_cats", "grumpycat64_best", *PUBLISHED}


def test_our_best_for_the_same_cats():
    """What benchmarks/RESULTS.md names: the cats of the projects, patch, cycle, DiffAugment, and our own defaults."""
    best = parse_command_line(CycleOptions, ["--preset=grumpycat64_best"], "cycle_gan.py", "")
    theirs = parse_command_line(CycleOptions, ["--preset=grumpycat64"], "cycle_gan.py", "")
    assert (best.X, best.Y) == (theirs.X, theirs.Y) and best.lr == CycleOptions().lr != theirs.lr
    assert best.disc == "patch" and best.use_cycle_consistency_loss and best.data_aug == "basic"
    assert best.use_diffaug == "color,translation,cutout" and best.train_iters == 3000 and not best.use_identity_loss
