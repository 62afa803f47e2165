"""One update of a DCGAN against the same update written by hand, and wrong variants that must be rejected."""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import vanilla_gan
from diff_augment import diff_augment
from models import sample_latents
from options import VanillaOptions
from system.device import choose_precision
from tests.conftest import assert_same
from training.feature_matching import FeatureMatching
from training.image_codes import ImageCodes
from training.state import TrainingState
from utils import UserError, image_grid
from vanilla_gan import build_networks, draw_samples, train_step

pytestmark = pytest.mark.golden

CPU = torch.device("cpu")
OPTIONS = VanillaOptions(image_size=32, conv_dim=2, noise_size=4, use_diffaug="translation,cutout", ema_decay=0.9)
MODES = dataclasses.replace(OPTIONS, lambda_modes=0.02)
FEATURES = dataclasses.replace(OPTIONS, lambda_features=0.5)
CODES = dataclasses.replace(OPTIONS, lambda_codes=0.5)
SELECTED = torch.tensor([4, 0, 2])  # the images of the batch, of five
R3GAN = dataclasses.replace(OPTIONS, gan_mode="relativistic", r1_gamma=3.0, r2_gamma=5.0, penalty_every=4)


def make(options=OPTIONS, amp="off"):
    torch.manual_seed(0)
    networks = build_networks(options)
    state = TrainingState.create(networks, {"G": ["G"], "D": ["D"]}, ["G"], options, CPU, choose_precision(amp, CPU))
    state.matching = {"images": FeatureMatching([real_images()], 3, CPU)} if options.lambda_features else {}
    state.pools = {"codes": ImageCodes(codes(), SimpleNamespace(selected=SELECTED))} if options.lambda_codes else {}
    return state


def real_images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1


def codes():
    return torch.rand(5, 4, 1, 1, generator=torch.Generator().manual_seed(6)) * 2 - 1


def squared_gradient(D, images, options):
    """The mean squared norm of the gradient of D on augmented images, with a graph for the update."""
    images = images.detach().requires_grad_()
    [gradient] = torch.autograd.grad(D(diff_augment(images, options.use_diffaug)).sum(), images, create_graph=True)
    return (gradient**2).flatten(1).sum(dim=1).mean()


def by_hand(state, real, options, with_penalty, wrong=None):
    """Plain autograd and Adam: D on real and fake, then G through the new D, on the same latents."""
    G, D = state.networks["G"], state.networks["D"]
    adam_g, adam_d = (torch.optim.Adam(n.parameters(), options.lr, (options.beta1, options.beta2)) for n in (G, D))
    z = sample_latents(len(real), options.noise_size, CPU)
    if options.lambda_codes:
        place = 0 if wrong == "code at another place" else 1
        z[place] = codes()[1 if wrong == "code of another image" else SELECTED[place]]
    fake = G(z)
    real_logits = D(diff_augment(real, options.use_diffaug))
    fake_logits = D(diff_augment(fake.detach(), options.use_diffaug))
    if wrong == "labels swapped":
        real_logits, fake_logits = fake_logits, real_logits
    if options.gan_mode == "relativistic":
        d_real = d_fake = F.softplus(fake_logits - real_logits).mean() / 2
    else:
        d_real, d_fake = ((real_logits - 1) ** 2).mean() / 2, (fake_logits**2).mean() / 2
    losses = {"D_real": d_real, "D_fake": d_fake, "D_total": d_real + d_fake}
    total = d_real if wrong == "D ignores fakes" else losses["D_total"]
    if with_penalty:
        losses["R1"], losses["R2"] = squared_gradient(D, real, options), squared_gradient(D, fake, options)
        every = 1 if wrong == "interval forgotten" else options.penalty_every
        weights = (options.r2_gamma, options.r1_gamma) if wrong == "R1 is R2" else (options.r1_gamma, options.r2_gamma)
        half = 1 if wrong == "no half" else 0.5
        for weight, name in zip(weights, ("R1", "R2"), strict=True):
            total = total + half * weight * every * (
                losses[name].detach() if wrong == "penalty has no gradient" else losses[name]
            )
    total.backward()
    if wrong != "D is not updated":
        adam_d.step()
    real_logits = D(diff_augment(real, options.use_diffaug)) if options.gan_mode == "relativistic" else None
    logits = D(fake if wrong == "G unaugmented" else diff_augment(fake, options.use_diffaug))
    if options.gan_mode == "relativistic":
        sign = -1 if wrong == "G trained to lose" else 1
        losses["G"] = F.softplus(sign * (real_logits - logits)).mean()
    else:
        losses["G"] = ((logits - (0 if wrong == "G trained to lose" else 1)) ** 2).mean()
    total = losses["G"]
    if options.lambda_modes:
        images = diff_augment(fake, options.use_diffaug) if wrong == "modes of augmented images" else fake
        images = images.detach() if wrong == "modes have no gradient" else images
        losses["modes"] = 1 / ((images[0] - images[1]).abs().mean() / (z[0] - z[1]).abs().mean() + 1e-5)
        total = total + (1 if wrong == "modes without weight" else options.lambda_modes) * losses["modes"]
    if options.lambda_features:
        images = diff_augment(fake, options.use_diffaug) if wrong == "features of augmented images" else fake
        images = images.detach() if wrong == "features have no gradient" else images
        losses["features"] = state.matching["images"](images)
        total = total + (1 if wrong == "features without weight" else options.lambda_features) * losses["features"]
    if options.lambda_codes:
        images = diff_augment(fake, options.use_diffaug) if wrong == "codes give augmented images" else fake
        images = images.detach() if wrong == "codes have no gradient" else images
        losses["codes"] = (images[1] - real[1]).abs().mean()
        total = total + (1 if wrong == "codes without weight" else options.lambda_codes) * losses["codes"]
    G.zero_grad()
    total.backward()
    adam_g.step()
    return losses


def difference(options=OPTIONS, with_penalty=False, wrong=None):
    """The largest difference of weights and losses between our update and the one by hand."""
    ours, theirs = make(options), make(options)
    torch.manual_seed(1)
    losses = train_step(ours, {"images": real_images()}, options, with_penalty)
    torch.manual_seed(1)
    expected = by_hand(theirs, real_images(), options, with_penalty, wrong)
    assert all(not value.requires_grad for value in losses.values()) and losses.keys() == expected.keys()
    worst = max(abs((losses[name] - expected[name]).item()) for name in losses)
    for name in ("G", "D"):
        pairs = zip(ours.networks[name].parameters(), theirs.networks[name].parameters(), strict=True)
        differences = [(a - b).abs().max().item() for a, b in pairs]
        if options.gan_mode == "relativistic" and name == "D":
            differences.pop()  # the last bias: it cancels out, so its gradient is rounding noise, which Adam scales up
        worst = max(worst, *differences)
    return worst


@pytest.mark.parametrize("with_penalty", [False, True])
@pytest.mark.parametrize(
    "options", [OPTIONS, MODES, FEATURES, CODES, R3GAN], ids=["lsgan", "modes", "features", "codes", "R3GAN"]
)
def test_update(options, with_penalty):
    options = dataclasses.replace(options, r1_gamma=3.0, r2_gamma=5.0) if with_penalty else options
    assert difference(options, with_penalty) < 2e-6


@pytest.mark.parametrize(
    "wrong", ["labels swapped", "D ignores fakes", "D is not updated", "G unaugmented", "G trained to lose"]
)
def test_wrong_updates_are_rejected(wrong):
    assert difference(wrong=wrong) > 1e-4


@pytest.mark.parametrize("wrong", ["labels swapped", "G trained to lose"])
def test_wrong_relativistic_updates_are_rejected(wrong):
    assert difference(R3GAN, wrong=wrong) > 1e-4


@pytest.mark.parametrize("wrong", [None, "modes of augmented images", "modes have no gradient", "modes without weight"])
def test_wrong_mode_seeking_is_rejected(wrong):
    assert (difference(MODES, wrong=wrong) > 1e-4) == (wrong is not None)


@pytest.mark.parametrize(
    "wrong", [None, "features of augmented images", "features have no gradient", "features without weight"]
)
def test_wrong_feature_matching_is_rejected(wrong):
    assert (difference(FEATURES, wrong=wrong) > 1e-4) == (wrong is not None)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "code at another place",
        "code of another image",
        "codes give augmented images",
        "codes have no gradient",
        "codes without weight",
    ],
)
def test_wrong_codes_are_rejected(wrong):
    assert (difference(CODES, wrong=wrong) > 1e-4) == (wrong is not None)


@pytest.mark.parametrize("wrong", ["interval forgotten", "R1 is R2", "no half", "penalty has no gradient"])
def test_wrong_penalties_are_rejected(wrong):
    assert difference(R3GAN, with_penalty=True, wrong=wrong) > 1e-5


def test_a_penalty_without_weight_is_not_computed():
    options = dataclasses.replace(OPTIONS, r2_gamma=1.0)
    losses = train_step(make(options), {"images": real_images()}, options, True)
    assert "R2" in losses and "R1" not in losses


def test_every_loss_has_a_panel():
    options = dataclasses.replace(R3GAN, lambda_modes=0.1, lambda_features=0.1, lambda_codes=0.1)
    losses = train_step(make(options), {"images": real_images()}, options, True)
    assert sorted(losses) == sorted(name for names in vanilla_gan.PANELS.values() for name in names)


def test_update_leaves_no_gradients():
    state = make()
    train_step(state, {"images": torch.zeros(2, 3, 32, 32)}, R3GAN, True)
    assert all(p.grad is None for network in state.networks.values() for p in network.parameters())


def test_penalties_are_computed_in_float32_in_a_bf16_run():
    state, half = make(R3GAN), make(R3GAN, amp="bf16")
    torch.manual_seed(1)
    full = train_step(state, {"images": real_images()}, R3GAN, True)
    torch.manual_seed(1)
    mixed = train_step(half, {"images": real_images()}, R3GAN, True)
    assert mixed["R1"].dtype is torch.float32
    torch.testing.assert_close(mixed["R1"], full["R1"], rtol=1e-5, atol=1e-8)


def test_grid_shows_the_average_in_eval_mode():
    state = make()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in state.ema["G"].parameters():
            parameter.add_(torch.randn_like(parameter))
    before = copy.deepcopy(state.networks["G"].state_dict())
    grid = draw_samples(state, OPTIONS)["sample"]
    z = sample_latents(64, 4, CPU, torch.Generator().manual_seed(OPTIONS.seed + 1))
    assert torch.equal(grid, image_grid(state.ema["G"](z), 8))
    assert not torch.equal(grid, image_grid(state.networks["G"](z), 8))
    assert_same(dict(before), dict(state.networks["G"].state_dict()))
    assert state.networks["G"].training


@pytest.mark.parametrize("options", [MODES, CODES], ids=["modes", "codes"])
@pytest.mark.parametrize(("size", "processes", "fits"), [(6, 1, True), (3, 1, True), (6, 2, False), (8, 2, True)])
def test_processes_that_cut_pairs_apart_are_refused(options, size, processes, fits, monkeypatch):
    """With an odd part, the last image of each process would have no partner."""

    def stop(*_):
        raise InterruptedError

    options = dataclasses.replace(options, batch_size=size, device="cpu")
    monkeypatch.setattr(vanilla_gan, "count_processes", lambda: processes)
    monkeypatch.setattr(vanilla_gan, "open_run", lambda request: (None, request))
    monkeypatch.setattr(vanilla_gan, "build_networks", stop)
    with pytest.raises(InterruptedError if fits else UserError) as raised:
        vanilla_gan.main(options)
    loss = "--lambda_modes" if options.lambda_modes else "--lambda_codes"
    assert fits or f"--batch_size: 6 leaves images without a partner for {loss} in" in str(raised.value)
