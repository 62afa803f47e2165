"""The presets: their networks can be trained, and they are the settings of the published projects."""

from types import SimpleNamespace

import pytest
import torch

import cycle_gan
from layers.blocks import ResidualBlock
from layers.image_pool import ImagePool
from options.command_line import parse_command_line
from options.fields import DIFFAUGMENT_ALL
from options.training import CycleOptions, VanillaOptions
from system.device import choose_precision
from tests.conftest import MODULES, OPTIONS
from training.image_codes import ImageCodes
from training.state import TrainingState

PRESETS = [(script, name) for script, cls in OPTIONS.items() for name in cls.PRESETS]


@pytest.mark.parametrize("script, preset", PRESETS)
def test_the_networks_of_a_preset_take_a_step(script, preset):
    """On two images, which are smaller than those of the preset if the networks take any size."""
    options = OPTIONS[script](preset=preset, **OPTIONS[script].PRESETS[preset][1])
    options.check()
    module, cpu = MODULES[script], torch.device("cpu")
    networks = module.build_networks(options)
    if script == "vanilla_gan.py":
        optimized, batch = {"G": ["G"], "D": ["D"]}, {"images": torch.zeros(2, 3, *[options.image_size] * 2)}
        state = TrainingState.create(networks, optimized, ["G"], options, cpu, choose_precision("off", cpu))
        images = SimpleNamespace(selected=torch.arange(2))
        state.pools = {"codes": ImageCodes(torch.rand(2, options.noise_size, 1, 1), images)}
        before = networks["G"].layers[-2].weight.detach().clone()
        losses = module.train_step(state, batch, options, with_penalty=False)
        assert not torch.equal(before, networks["G"].layers[-2].weight)
    else:
        optimized = {"G": ["G_XtoY", "G_YtoX"], "D": ["D_X", "D_Y"]}
        side = options.image_size if options.disc == "dc" else 64
        pools = {name: ImagePool(options.pool_size) for name in ("X", "Y")}
        precision = choose_precision("off", cpu)
        state = TrainingState.create(networks, optimized, optimized["G"], options, cpu, precision, pools)
        before = networks["G_YtoX"].layers[-2].weight.detach().clone()
        batch = {name: torch.rand(2, 3, side, side) for name in ("X", "Y")}
        losses = module.train_step(state, batch, options, with_penalty=False)
        assert not torch.equal(before, networks["G_YtoX"].layers[-2].weight)
    assert all(value.isfinite() for value in losses.values())


# ----------------------------------------------------------------------------------------------------------------------
# The settings that the projects published for their CycleGANs

CATS = {"X": "cat/grumpifyAprocessed", "Y": "cat/grumpifyBprocessed"}
LEO = {"lr": 2e-4, "ema_decay": 0.0, "norm": "instance", "disc": "patch", "use_cycle_consistency_loss": True,
       "data_aug": "deluxe", "batch_size": 16, "gen": "cycle", "cycle_loss": "L1", "train_iters": 10_000}  # fmt: skip
LARGE = {**LEO, "image_size": 256, "lambda_cycle": 5.0, "use_identity_loss": True}
PUBLISHED = {
    "hasey": {**CATS, "upsample": "deconv", "cycle_loss": "L2", "use_cycle_consistency_loss": True, "norm": "batch",
              "data_aug": "deluxe", "train_iters": 100_000, "image_size": 64, "lr": 2e-4, "ema_decay": 0.0},
    "agrawal": {**LEO, **CATS, "data_aug": "deluxe_autocontrast", "use_diffaug": DIFFAUGMENT_ALL},
    "grumpycat64": {**LEO, **CATS, "image_size": 64, "use_diffaug": "", "use_identity_loss": False},
    "apple2orange64": {**LEO, "data": "apple2orange", "image_size": 64, "lambda_cycle": 10.0},
    "leo": {**LEO, "X": "faces/me", "Y": "faces/other", "use_diffaug": DIFFAUGMENT_ALL, "spectral_norm": True,
            "lr_policy": "linear", "train_iters": 30_000},
    "yosemite128": {"data": "summer2winter_yosemite", "image_size": 128, "norm": "batch", "upsample": "deconv",
                    "n_downsample": 3, "n_res_blocks": 6, "res_block_convs": 2, "disc": "patch94", "cycle_loss": "L1",
                    "use_cycle_consistency_loss": True, "g_conv_dim": 64, "d_conv_dim": 64},
    "monet256": {"X": "gan-getting-started/monet_jpg", "Y": "gan-getting-started/photo_jpg", "image_size": 256,
                 "batch_size": 1, "lr": 2e-4, "beta1": 0.5, "gen": "resnet_9blocks", "upsample": "deconv",
                 "disc": "patch70", "norm": "instance", "test_split": 0.2, "use_cycle_consistency_loss": True,
                 "use_identity_loss": True, "pool_size": 50, "init_type": "normal", "g_conv_dim": 64,
                 "d_conv_dim": 64},
    "cyclegan_paper": {"data": "horse2zebra", "image_size": 256, "data_aug": "paper", "batch_size": 1, "lr": 2e-4,
                       "beta1": 0.5, "beta2": 0.999, "lr_policy": "linear", "train_iters": 200 * 1334,
                       "disc": "patch70", "gen": "resnet_9blocks", "upsample": "deconv", "g_conv_dim": 64,
                       "d_conv_dim": 64, "pool_size": 50, "norm": "instance", "init_type": "normal",
                       "gan_mode": "lsgan", "cycle_loss": "L1",
                       "use_cycle_consistency_loss": True, "lambda_cycle": 10.0, "use_identity_loss": True,
                       "lambda_identity": 10.0 * 0.5, "ema_decay": 0.0, "use_diffaug": "", "spectral_norm": False},
    "cats256": {**LARGE, **CATS},
    "apple2orange256": {**LARGE, "data": "apple2orange"},
}  # fmt: skip


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_are_the_published_settings(preset):
    options = CycleOptions(**CycleOptions.PRESETS[preset][1]).to_dict()
    assert {name: options[name] for name in PUBLISHED[preset]} == PUBLISHED[preset]
    networks = cycle_gan.build_networks(CycleOptions(**CycleOptions.PRESETS[preset][1]))
    blocks = sum(isinstance(module, ResidualBlock) for module in networks["G_XtoY"].modules())
    assert blocks == {"yosemite128": 6, "monet256": 9, "cyclegan_paper": 9}.get(preset, 3)
    if preset == "yosemite128":
        assert sum(isinstance(module, torch.nn.Conv2d) for module in networks["D_X"].modules()) == 5


def test_every_cyclegan_of_the_published_projects_has_a_preset():
    assert set(CycleOptions.PRESETS) == {"toy_cats", "grumpycat64_best", "few_images", *PUBLISHED}


def test_our_best_for_the_same_cats():
    """As benchmarks/RESULTS.md says: the cats of the projects, patch, cycle, DiffAugment, and our own defaults."""
    best = parse_command_line(CycleOptions, "", ["--preset=grumpycat64_best"])
    theirs = parse_command_line(CycleOptions, "", ["--preset=grumpycat64"])
    assert (best.X, best.Y) == (theirs.X, theirs.Y) and best.lr == CycleOptions().lr != theirs.lr
    assert best.disc == "patch" and best.use_cycle_consistency_loss and best.data_aug == "basic"
    assert best.use_diffaug == DIFFAUGMENT_ALL and best.train_iters == 3000 and not best.use_identity_loss


def without(options: dict, *names: str) -> dict:
    return {name: value for name, value in options.items() if name not in names}


def test_few_images_is_one_recipe_in_both_scripts():
    """As benchmarks/RESULTS.md says; only the DCGAN has latents, only the CycleGAN a cycle."""
    dcgan, cyclegan = (cls.PRESETS["few_images"][1] for cls in (VanillaOptions, CycleOptions))
    own = {"self_modulation": True, "split_noise": True, "noise_size": 80, "lambda_codes": 5.0, "lambda_modes": 0.3}
    own |= {"code_range": 0.5, "train_iters": 6400}
    assert dcgan.items() - cyclegan.items() == own.items()
    cycle = {"use_cycle_consistency_loss": True, "lambda_cycle": 100.0, "train_iters": 3000}
    assert cyclegan.items() - dcgan.items() == cycle.items()
    shared = {
        "disc": "patch",
        "gan_mode": "vanilla",
        "lr": 1e-3,
        "ema_decay": 0.998,
        "use_diffaug": "color,translation",
        "d_optimizer": "muon",
    }
    assert shared.items() <= dcgan.items() and "data" not in dcgan, "for any folder"
    toy_cats = VanillaOptions.PRESETS["toy_cats"][1]
    changed = {"ema_decay": 0.99, "train_iters": 1250, "lambda_codes": 2.0, "lambda_modes": 0.15}
    changed |= {"noise_size": 48, "fine_channels": 16}
    assert toy_cats == {**without(dcgan, "d_optimizer", "code_range"), **changed}, "for a short run"
    toy_cats = CycleOptions.PRESETS["toy_cats"][1]
    changed = {"ema_decay": 0.99, "train_iters": 800, "use_identity_loss": True}
    assert toy_cats == {**without(cyclegan, "d_optimizer", "lambda_cycle"), **changed}


def test_the_dcgan_of_leos_faces():
    """5,000 epochs, spectral norm, deluxe, DiffAugment, patches, a linear rate."""
    options = VanillaOptions(**VanillaOptions.PRESETS["leo"][1])
    assert (options.num_epochs, options.train_iters, options.data) == (5000, None, "faces/me")
    assert (options.data_aug, options.use_diffaug, options.disc) == ("deluxe", DIFFAUGMENT_ALL, "patch")
    assert (options.spectral_norm, options.lr_policy, options.lr) == (True, "linear", 2e-4)
