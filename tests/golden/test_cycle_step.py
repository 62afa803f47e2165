"""One update of CycleGAN against the same written out by hand, passes together against passes alone, wrong variants."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cycle_gan
from cycle_gan import build_networks, correlate, draw_samples, find_trouble, train_step
from diff_augment import diff_augment
from losses import CYCLE_LOSSES, has_won, ssim_loss
from models import ImagePool, in_one_pass
from options import CycleOptions
from tests.conftest import assert_same
from trainer import make_state
from utils import choose_precision

CPU = torch.device("cpu")
PLAIN = CycleOptions(image_size=32, g_conv_dim=2, d_conv_dim=2, disc="patch", ema_decay=0.9)
EVERYTHING = dataclasses.replace(
    PLAIN, use_cycle_consistency_loss=True, lambda_cycle=7.0, use_identity_loss=True, lambda_identity=2.0
)


def make(options, amp="off"):
    torch.manual_seed(0)
    optimized = {"G": ["G_XtoY", "G_YtoX"], "D": ["D_X", "D_Y"]}
    networks = build_networks(options)
    pools = {"X": ImagePool(options.pool_size), "Y": ImagePool(options.pool_size)}
    return make_state(networks, optimized, optimized["G"], options, CPU, choose_precision(amp, CPU), pools)


def make_batch(seed=5):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(3, 3, 32, 32, generator=generator) * 2 - 1 for name in ("X", "Y")}


def plain_optimizers(state, options):
    """Adam without fused kernels, for both G and for both D."""
    n, betas = state.networks, (options.beta1, options.beta2)
    return [
        torch.optim.Adam([*n[a].parameters(), *n[b].parameters()], options.lr, betas)
        for a, b in (("G_XtoY", "G_YtoX"), ("D_X", "D_Y"))
    ]


def by_hand(state, adams, batch, options, wrong=None):
    """LSGAN with plain autograd and Adam, every pass alone: both G, then both D on the fakes of the old G."""
    n, x, y, (adam_g, adam_d) = state.networks, batch["X"], batch["Y"], adams
    fake_y, fake_x = n["G_XtoY"](x), n["G_YtoX"](y)
    judges = (n["D_X"], n["D_Y"]) if wrong == "other discriminator" else (n["D_Y"], n["D_X"])
    adversarial = ((judges[0](fake_y) - 1) ** 2).mean() + ((judges[1](fake_x) - 1) ** 2).mean()
    losses, total = {"G_adversarial": adversarial}, adversarial
    if options.use_cycle_consistency_loss:
        first = fake_y.detach() if wrong == "cycle stops half way" else fake_y
        cycle = (n["G_YtoX"](first) - x).abs().mean()
        if wrong != "one cycle":
            cycle = cycle + (n["G_XtoY"](fake_x) - y).abs().mean()
        total = total + (10.0 if wrong == "default weight" else options.lambda_cycle) * cycle
        losses["cycle"] = cycle
    if options.use_identity_loss:
        a, b = (x, y) if wrong == "identity of the source" else (y, x)
        identity = (n["G_XtoY"](a) - a).abs().mean() + (n["G_YtoX"](b) - b).abs().mean()
        total = total + options.lambda_identity * identity
        losses["identity"] = identity
    adam_g.zero_grad()
    total.backward()
    adam_g.step()
    losses["G_total"] = total
    if wrong == "D on new fakes":
        fake_y, fake_x = n["G_XtoY"](x), n["G_YtoX"](y)
    n["D_X"].zero_grad(), n["D_Y"].zero_grad()
    for name, real, fake in (("D_X", x, fake_x), ("D_Y", y, fake_y)):
        losses[name] = ((n[name](real) - 1) ** 2).mean() / 2 + (n[name](fake.detach()) ** 2).mean() / 2
        if wrong != "D_Y ignores y" or name == "D_X":
            losses[name].backward()
        else:
            ((n[name](fake.detach()) ** 2).mean() / 2).backward()
    adam_d.step()
    return losses


def worst_difference(ours, theirs, losses, expected):
    assert losses.keys() == expected.keys() and all(not value.requires_grad for value in losses.values())
    worst = max(abs((losses[name] - expected[name]).item()) for name in losses)
    for name in ours.networks:
        pairs = zip(ours.networks[name].parameters(), theirs.networks[name].parameters(), strict=True)
        worst = max(worst, *((a - b).abs().max().item() for a, b in pairs))
    return worst


def difference(options, wrong=None):
    """The largest difference of weights and losses between our update and the one by hand, after two of each."""
    ours, theirs = make(options), make(options)
    adams, worst = plain_optimizers(theirs, options), 0.0
    for seed in (5, 6):
        losses = train_step(ours, make_batch(seed), options)
        expected = by_hand(theirs, adams, make_batch(seed), options, wrong)
        worst = max(worst, worst_difference(ours, theirs, losses, expected))
    return worst


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_update(norm):
    for options in (PLAIN, EVERYTHING):
        assert difference(dataclasses.replace(options, norm=norm)) < 2e-5


@pytest.mark.parametrize(
    "wrong",
    [
        "other discriminator", "cycle stops half way", "one cycle", "default weight", "identity of the source",
        "D on new fakes", "D_Y ignores y",
    ],
)  # fmt: skip
def test_wrong_updates_are_rejected(wrong):
    assert difference(EVERYTHING, wrong) > 1e-4


def test_identity_weight_is_half_of_the_cycle_weight_by_default():
    options = dataclasses.replace(EVERYTHING, lambda_identity=None)
    losses = train_step(make(options), make_batch(), options)
    expected = losses["G_adversarial"] + 7.0 * losses["cycle"] + 3.5 * losses["identity"]
    torch.testing.assert_close(losses["G_total"], expected)


def gradients(network, batches, options, weights):
    """The gradients of a weighted sum of the network's outputs, for its weights and for what went in."""
    inputs = [images.clone().requires_grad_() for images in batches]
    outputs = in_one_pass(network, inputs, options.norm)
    assert [output.shape[0] for output in outputs] == [len(images) for images in batches]
    total = sum((output * output).sum() * weight for output, weight in zip(outputs, weights, strict=True))
    return outputs, torch.autograd.grad(total, [*network.parameters(), *inputs])


@pytest.mark.parametrize("name", ["G_XtoY", "D_X"])
@pytest.mark.parametrize("norm", ["instance", "none"])
def test_passes_together_have_the_gradients_of_passes_alone(name, norm):
    options = dataclasses.replace(PLAIN, norm=norm)
    network = make(options).networks[name].double()
    batches = [images.double()[: i + 2] for i, images in enumerate(make_batch().values())]
    together = gradients(network, batches, options, (1.0, 3.0))
    alone = gradients(network, batches, dataclasses.replace(options, norm="batch"), (1.0, 3.0))  # "batch" means alone
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_batch_norm_passes_alone():
    """Together its statistics would be of both domains: other outputs, which the test above would notice."""
    options = dataclasses.replace(PLAIN, norm="batch")
    network, batches = make(options).networks["G_XtoY"], list(make_batch().values())
    batches[1] = batches[1] * 0.1
    alone, _ = gradients(network, batches, options, (1, 1))
    torch.testing.assert_close(alone[0], network(batches[0]))
    together, _ = gradients(network, batches, PLAIN, (1, 1))
    assert not torch.allclose(alone[0], together[0], atol=1e-2)


def count_passes(state):
    """Have each network of the state note the batch sizes that pass through it; return the notes."""
    passes = {name: [] for name in state.networks}
    for name, network in state.networks.items():
        network.register_forward_hook(lambda _, args, __, name=name: passes[name].append(len(args[0])))
    return passes


@pytest.mark.parametrize(
    "changes, generator, discriminator",
    [
        ({}, [3], [3, 6]),
        ({"use_cycle_consistency_loss": True}, [3, 3], [3, 6]),
        ({"use_cycle_consistency_loss": True, "use_identity_loss": True}, [6, 3], [3, 6]),
        ({"use_identity_loss": True, "norm": "batch"}, [3, 3], [3, 3, 3]),
    ],
)
def test_no_pass_is_wasted(changes, generator, discriminator):
    """Without the cycle loss nothing is reconstructed, and D's update asks no generator."""
    options = dataclasses.replace(PLAIN, **changes)
    state = make(options)
    passes = count_passes(state)
    train_step(state, make_batch(), options)
    assert passes["G_XtoY"] == passes["G_YtoX"] == generator
    assert passes["D_X"] == passes["D_Y"] == discriminator


def test_update_of_the_generators_leaves_no_gradient_in_the_discriminators():
    state, seen = make(EVERYTHING), []
    for name in ("D_X", "D_Y"):
        for parameter in state.networks[name].parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: seen.append(state.optimizers["G"].state != {}))
    train_step(state, make_batch(), EVERYTHING)
    parameters = sum(len(list(state.networks[name].parameters())) for name in ("D_X", "D_Y"))
    assert len(seen) == parameters, "once each, in their own update"
    assert all(p.grad is None for network in state.networks.values() for p in network.parameters())


def test_discriminators_see_fakes_of_the_pools():
    """With a pool that returns something else, D_X and D_Y learn of that; G's update does not."""
    ours, theirs = make(PLAIN), make(PLAIN)
    batch = make_batch()

    class Fixed:
        size = 4

        def __init__(self, value):
            self.value = value

        def __call__(self, fakes):
            return torch.full_like(fakes, self.value)

    ours.pools = {"X": Fixed(0.0), "Y": Fixed(1.0)}
    D_X, D_Y = (copy.deepcopy(ours.networks[name]) for name in ("D_X", "D_Y"))
    losses, plain = train_step(ours, batch, PLAIN), train_step(theirs, batch, PLAIN)
    assert losses["G_adversarial"] == plain["G_adversarial"]
    zeros, ones = torch.zeros(3, 3, 32, 32), torch.ones(3, 3, 32, 32)
    for D, name, fake in ((D_X, "D_X", zeros), (D_Y, "D_Y", ones)):
        expected = ((D(batch[name[-1]]) - 1) ** 2).mean() / 2 + (D(fake) ** 2).mean() / 2
        torch.testing.assert_close(losses[name], expected.detach())


def test_everything_that_a_discriminator_sees_is_augmented(monkeypatch):
    """And nothing that a generator sees."""
    options = dataclasses.replace(EVERYTHING, use_diffaug="color")
    monkeypatch.setattr("cycle_gan.diff_augment", lambda images, policy: images * 0 + len(policy))
    state, seen = make(options), {}
    for name, network in state.networks.items():
        seen[name] = []
        network.register_forward_hook(lambda _, args, __, name=name: seen[name].append(args[0].detach()))
    train_step(state, make_batch(), options)
    assert all((images == len("color")).all() for name in ("D_X", "D_Y") for images in seen[name])
    assert not any((images == len("color")).all() for name in ("G_XtoY", "G_YtoX") for images in seen[name])
    assert diff_augment(make_batch()["X"], "color").shape == (3, 3, 32, 32), "the real one"


def test_mixed_precision():
    """Every pass in bf16, in both updates; logits and losses in float32, close to those of float32 throughout."""
    options = dataclasses.replace(EVERYTHING, cycle_loss="SSIM", pool_size=4)
    state, seen = make(options, amp="bf16"), []
    for network in state.networks.values():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    full, half = train_step(make(options), make_batch(), options), train_step(state, make_batch(), options)
    assert set(seen) == {torch.bfloat16} and all(value.dtype is torch.float32 for value in half.values())
    assert all(half[name].item() == pytest.approx(full[name].item(), rel=0.05) for name in full)
    assert any(half[name] != full[name] for name in full)
    assert state.pools["X"].images.dtype is torch.float32, "a run may go on at another precision"


def test_logits_are_judged_in_float32(monkeypatch):
    kinds = set()
    lsgan = cycle_gan.GAN_MODES["lsgan"]
    noting = [lambda logits, term=term: kinds.add(logits.dtype) or term(logits) for term in lsgan]
    monkeypatch.setitem(cycle_gan.GAN_MODES, "lsgan", type(lsgan)(*noting))
    train_step(make(PLAIN, amp="bf16"), make_batch(), PLAIN)
    assert kinds == {torch.float32}


# ----------------------------------------------------------------------------------------------------------------------
# Distances between images


def test_distances():
    x, y = make_batch()["X"], make_batch()["Y"]
    assert CYCLE_LOSSES["L1"](x, y).item() == pytest.approx(np.abs(x.numpy() - y.numpy()).mean(), rel=1e-5)
    assert CYCLE_LOSSES["L2"](x, y).item() == pytest.approx(((x.numpy() - y.numpy()) ** 2).mean(), rel=1e-5)
    assert CYCLE_LOSSES["SSIM"] is ssim_loss and list(CYCLE_LOSSES) == ["L1", "L2", "SSIM"]


def test_ssim_keeps_float32_inside_autocast():
    x, y = make_batch()["X"], make_batch()["Y"]
    near = (x + 0.01 * y).clamp(-1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ssim_loss(near, x)
        assert ssim_loss(near.bfloat16(), x).dtype is torch.float32
    torch.testing.assert_close(inside, ssim_loss(near, x))


def ssim_by_hand(a, b):
    """SSIM (Wang et al. 2004) of images in [0, 1]: 11x11 Gaussian windows of deviation 1.5, reflected at the border."""
    u = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(u[:, None] ** 2 + u[None] ** 2) / (2 * 1.5**2))
    window = (window / window.sum()).expand(3, 1, 11, 11)

    def mean(x):
        return F.conv2d(F.pad(x, (5, 5, 5, 5), mode="reflect"), window, groups=3)

    variance_a, variance_b, covariance = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2, None
    covariance = mean(a * b) - mean(a) * mean(b)
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * mean(a) * mean(b) + c1) * (2 * covariance + c2)
    return (index / ((mean(a) ** 2 + mean(b) ** 2 + c1) * (variance_a + variance_b + c2))).mean()


def test_ssim_loss():
    x, y = (images.double() for images in make_batch().values())
    y = (x + 0.3 * y).clamp(-1, 1)
    unit_x, unit_y = x / 2 + 0.5, y / 2 + 0.5
    expected = 0.84 * (1 - ssim_by_hand(unit_y, unit_x)) + 0.16 * (unit_y - unit_x).abs().mean()
    assert ssim_loss(y, x).item() == pytest.approx(expected.item(), abs=1e-5)
    assert ssim_loss(x, x).item() == pytest.approx(0, abs=1e-6)
    wrong = [
        0.84 * (1 - ssim_by_hand(y, x)) + 0.16 * (y - x).abs().mean(),  # on [-1, 1]
        0.84 * (1 - ssim_by_hand(unit_y, unit_x)) + 0.16 * (y - x).abs().mean(),  # L1 on [-1, 1]
        0.84 * ssim_by_hand(unit_y, unit_x) + 0.16 * (unit_y - unit_x).abs().mean(),  # pushes apart
    ]
    assert all(abs(value.item() - expected.item()) > 1e-2 for value in wrong)


# ----------------------------------------------------------------------------------------------------------------------
# Grids and warnings


def translating(maps, options=PLAIN):
    """A state whose generators are plain functions."""

    class Map(torch.nn.Module):
        def __init__(self, function):
            super().__init__()
            self.forward = function

    state = make(options)
    state.step, state.averages = 300, {name: Map(function) for name, function in maps.items()}
    return state


def test_grids_are_triplets_of_the_averages():
    fixed = {name: images[:2] for name, images in make_batch().items()}
    grids = draw_samples(translating({"G_XtoY": lambda x: x * 0.5, "G_YtoX": lambda y: -y}), PLAIN, fixed)
    assert list(grids) == ["sample-X-Y", "sample-Y-X"]
    x, y = fixed["X"], fixed["Y"]
    for name, triplet in (("sample-X-Y", (x, x / 2, -x / 2)), ("sample-Y-X", (y, -y, -y / 2))):
        assert grids[name].dtype is torch.uint8 and grids[name].shape == (3, 32 + 12, 2 * (96 + 6) + 6)
        for i in range(2):
            for column, image in enumerate(triplet):
                left = 6 + 102 * i + 32 * column
                shown = grids[name][:, 6:38, left : left + 32].float() / 127.5 - 1
                torch.testing.assert_close(shown, image[i], rtol=0, atol=0.005)


def test_networks_of_the_grids_are_in_eval_mode_and_go_back():
    options = dataclasses.replace(PLAIN, norm="batch", ema_decay=0.0)
    state, modes = make(options), []
    for name in ("G_XtoY", "G_YtoX"):
        state.networks[name].register_forward_hook(lambda network, *_: modes.append(network.training))
    before = copy.deepcopy(state.networks["G_XtoY"].state_dict())
    draw_samples(state, options, make_batch())
    assert modes == [False] * 4 and state.networks["G_XtoY"].training
    assert_same(dict(before), dict(state.networks["G_XtoY"].state_dict()))


def kinds(maps, rows=()):
    return set(find_trouble(translating(maps), PLAIN, list(rows), make_batch()))


SAME = {"G_XtoY": lambda x: x, "G_YtoX": lambda y: y}


def opposite_hues(x):
    return 2 * x.mean(1, keepdim=True) - x


def test_trouble_of_the_generators():
    def negative(x):
        return 0.2 - 0.5 * x

    assert kinds(SAME) == set()
    assert kinds({**SAME, "G_XtoY": negative}) == {"G_XtoY inverts light and dark", "G_XtoY inverts the colors"}
    assert kinds({**SAME, "G_YtoX": opposite_hues}) == {"G_YtoX inverts the colors"}
    assert kinds({**SAME, "G_YtoX": lambda y: opposite_hues(negative(y))}) == {"G_YtoX inverts light and dark"}
    assert kinds({**SAME, "G_YtoX": lambda y: y * 0.0}) == {"G_YtoX has collapsed"}
    assert kinds({**SAME, "G_XtoY": lambda x: x.roll(9, 3)}) == set(), "unlike, but not inverted"
    assert kinds({**SAME, "G_XtoY": lambda x: x.mean(1, keepdim=True).expand_as(x)}) == set(), "gray is no hue"


def test_limits_of_trouble():
    """A correlation of -0.5, and a tenth of the deviation that the images of the target domain have."""

    def correlated(c):  # noise is made of the image itself, moved
        return lambda x: c * x + (1 - c * c) ** 0.5 * x.roll((7, 5), (2, 3))

    assert kinds({**SAME, "G_XtoY": correlated(-0.4)}) == set()
    assert kinds({**SAME, "G_XtoY": correlated(-0.6)}) == {"G_XtoY inverts light and dark", "G_XtoY inverts the colors"}
    for share, expected in ((0.09, {"G_XtoY has collapsed"}), (0.11, set())):
        maps = {**SAME, "G_XtoY": lambda x, share=share: x[:1].expand_as(x) + share * (x - x[:1])}
        assert kinds(maps) == expected
    batch = make_batch()
    fixed = {"X": batch["X"], "Y": 0.05 * batch["Y"]}  # Y's images are nearly equal: then translations may be, too
    state = translating({**SAME, "G_XtoY": lambda x: x[:1].expand_as(x) + 0.03 * x})
    assert set(find_trouble(state, PLAIN, [], fixed)) == {"G_YtoX has collapsed"}
    one = {name: images[:1] for name, images in batch.items()}
    assert not find_trouble(translating(SAME), PLAIN, [], one), "a single image has no deviation"


def test_trouble_names_a_remedy_that_is_not_in_use():
    def text(options):
        maps = {"G_XtoY": opposite_hues, "G_YtoX": lambda y: 0 * y}
        rows = [{"step": 300, "D_X": 0.25, "D_Y": 0.0}]
        return find_trouble(translating(maps), options, rows, make_batch())

    plain = text(PLAIN)
    assert plain["G_XtoY inverts the colors"].endswith("(correlation of inputs and translations -1.00); try "
                                                       "--use_identity_loss")  # fmt: skip
    assert plain["G_YtoX has collapsed"].endswith("try --use_cycle_consistency_loss")
    assert plain["D_Y has won"].endswith("so G_XtoY learns little; try --use_diffaug")
    used = text(dataclasses.replace(EVERYTHING, use_diffaug="color"))
    assert used["G_XtoY inverts the colors"].endswith("try a larger --lambda_identity")
    assert used["G_YtoX has collapsed"].endswith("try a lower --lr") and used["D_Y has won"].endswith("a lower --lr")


def test_correlation():
    a, b = make_batch()["X"], make_batch()["Y"]
    expected = [np.corrcoef(one.flatten(), other.flatten())[0, 1] for one, other in zip(a, b, strict=True)]
    np.testing.assert_allclose(correlate(a, b), expected, atol=1e-6)


def test_trouble_of_the_discriminators():
    rows = [{"step": step, "D_X": 0.001, "D_Y": 0.25} for step in range(10, 301, 10)]
    assert kinds(SAME, rows) == {"D_X has won"}
    lost = [{**row, "D_X": 0.03} for row in rows]
    assert kinds(SAME, [*rows[:10], *lost[10:]]) == set(), "not in most rows"
    older = [{**row, "step": row["step"] - 300} for row in lost]
    assert kinds(SAME, [*older, *rows]) == {"D_X has won"} and kinds(SAME, [*older, *lost]) == set()
    assert kinds(SAME, []) == set(), "nothing is known yet"
    state = translating(SAME)
    state.step = 290
    assert not find_trouble(state, PLAIN, rows, make_batch()), "300 iterations first"
    state.averages["G_XtoY"].forward = lambda x: 0 * x
    assert not find_trouble(state, PLAIN, [], make_batch()), "an untrained generator may make one image of all"


def test_has_won():
    """Below 5% of what a D with logits of 0 has: 0.5 for LSGAN, 1.386 for cross-entropy, 2 for hinge."""
    for gan_mode, limit in (("lsgan", 0.025), ("vanilla", 0.0693), ("hinge", 0.1)):
        assert has_won([0.99 * limit, 9.0, 0.0], gan_mode), "a spike is no defeat"
        assert not has_won([0.0, 1.01 * limit, 1.01 * limit], gan_mode) and not has_won([], gan_mode)
