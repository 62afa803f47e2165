"""One update of both networks against the same written out by hand, and wrong variants to reject."""

import copy

import pytest
import torch

from diff_augment import diff_augment
from options import VanillaOptions
from tests.conftest import assert_same
from trainer import make_state
from utils import choose_precision, image_grid
from vanilla_gan import build_networks, draw_samples, find_trouble, sample_latents, train_step

CPU = torch.device("cpu")
OPTIONS = VanillaOptions(image_size=32, conv_dim=2, noise_size=4, use_diffaug="translation,cutout", ema_decay=0.9)


def make():
    torch.manual_seed(0)
    return make_state(
        build_networks(OPTIONS), {"G": ["G"], "D": ["D"]}, ["G"], OPTIONS, CPU, choose_precision("off", CPU)
    )


def by_hand(state, real, wrong=None):
    """LSGAN with plain autograd and Adam: D on real and fake, then G through the new D, on the same latents."""
    G, D = state.networks["G"], state.networks["D"]
    adam_g, adam_d = (torch.optim.Adam(n.parameters(), OPTIONS.lr, (OPTIONS.beta1, OPTIONS.beta2)) for n in (G, D))
    fake = G(sample_latents(len(real), OPTIONS.noise_size, CPU))
    real_logits = D(diff_augment(real, OPTIONS.use_diffaug))
    fake_logits = D(diff_augment(fake.detach(), OPTIONS.use_diffaug))
    if wrong == "labels swapped":
        real_logits, fake_logits = fake_logits, real_logits
    d_real, d_fake = ((real_logits - 1) ** 2).mean() / 2, (fake_logits**2).mean() / 2
    (d_real if wrong == "D ignores fakes" else d_real + d_fake).backward()
    if wrong != "D is not updated":
        adam_d.step()
    logits = D(fake if wrong == "G unaugmented" else diff_augment(fake, OPTIONS.use_diffaug))
    g = ((logits - (0 if wrong == "G trained to lose" else 1)) ** 2).mean()
    G.zero_grad()
    g.backward()
    adam_g.step()
    return {"D_real": d_real, "D_fake": d_fake, "D_total": d_real + d_fake, "G": g}


def difference(wrong=None):
    """The largest difference of weights and losses between our update and the one by hand."""
    real = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1
    ours, theirs = make(), make()
    torch.manual_seed(1)
    losses = train_step(ours, {"images": real}, OPTIONS)
    torch.manual_seed(1)
    expected = by_hand(theirs, real, wrong)
    assert all(not value.requires_grad for value in losses.values()) and losses.keys() == expected.keys()
    worst = max(abs((losses[name] - expected[name]).item()) for name in losses)
    for name in ("G", "D"):
        pairs = zip(ours.networks[name].parameters(), theirs.networks[name].parameters(), strict=True)
        worst = max(worst, *((a - b).abs().max().item() for a, b in pairs))
    return worst


def test_update():
    assert difference() < 1e-6


@pytest.mark.parametrize(
    "wrong", ["labels swapped", "D ignores fakes", "D is not updated", "G unaugmented", "G trained to lose"]
)
def test_wrong_updates_are_rejected(wrong):
    assert difference(wrong) > 1e-4


def test_update_leaves_no_gradients():
    state = make()
    train_step(state, {"images": torch.zeros(2, 3, 32, 32)}, OPTIONS)
    assert all(p.grad is None for network in state.networks.values() for p in network.parameters())


def test_grid_shows_the_average_in_eval_mode():
    state = make()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in state.averages["G"].parameters():
            parameter.add_(torch.randn_like(parameter))
    before = copy.deepcopy(state.networks["G"].state_dict())
    grid = draw_samples(state, OPTIONS)["sample"]
    z = sample_latents(64, 4, CPU, torch.Generator().manual_seed(OPTIONS.seed + 1))
    assert torch.equal(grid, image_grid(state.averages["G"](z), 8))
    assert not torch.equal(grid, image_grid(state.networks["G"](z), 8))
    assert_same(dict(before), dict(state.networks["G"].state_dict()))
    assert state.networks["G"].training


def test_trouble():
    state = make()
    state.step = 300
    rows = [{"step": step, "D_total": 0.02} for step in range(10, 301, 10)]
    assert "a lower --lr" in find_trouble(state, OPTIONS, rows)["D has won"], "DiffAugment is in use"
    assert "--use_diffaug" in find_trouble(state, VanillaOptions(), rows)["D has won"]
    assert not find_trouble(state, OPTIONS, [{**row, "D_total": 0.03} for row in rows])
    assert not find_trouble(state, OPTIONS, [])
    state.step = 299
    assert not find_trouble(state, OPTIONS, rows), "300 iterations first"
