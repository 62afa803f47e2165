"""One update of a CycleGAN against the same update by hand, joined passes against single ones, and wrong variants."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

import cycle_gan
from cycle_gan import build_networks, draw_samples, train_step
from diff_augment import diff_augment
from layers.image_pool import ImagePool
from options.training import CycleOptions
from system.device import choose_precision
from tests.conftest import assert_same
from training.feature_matching import FeatureMatching
from training.state import TrainingState
from training.steps import forward_together

pytestmark = pytest.mark.golden

CPU = torch.device("cpu")
PLAIN = CycleOptions(image_size=32, g_conv_dim=2, d_conv_dim=2, disc="patch", ema_decay=0.9)
EVERYTHING = dataclasses.replace(
    PLAIN, use_cycle_consistency_loss=True, lambda_cycle=7.0, use_identity_loss=True, lambda_identity=2.0
)
FEATURES = dataclasses.replace(PLAIN, lambda_features=0.5)
R3GAN = dataclasses.replace(PLAIN, gan_mode="relativistic", r1_gamma=3.0, r2_gamma=5.0, penalty_every=4)


def make(options, amp="off"):
    torch.manual_seed(0)
    optimized = {"G": ["G_XtoY", "G_YtoX"], "D": ["D_X", "D_Y"]}
    networks = build_networks(options)
    pools = {"X": ImagePool(options.pool_size), "Y": ImagePool(options.pool_size)}
    state = TrainingState.create(networks, optimized, optimized["G"], options, CPU, choose_precision(amp, CPU), pools)
    if options.lambda_features:
        state.matching = {domain: FeatureMatching([images], 3, CPU) for domain, images in make_batch(9).items()}
    return state


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


def squared_gradient(D, images):
    """The mean squared norm of the gradient of D's mean logit per image, with a graph for the update."""
    images = images.detach().requires_grad_()
    [gradient] = torch.autograd.grad(D(images).flatten(1).mean(dim=1).sum(), images, create_graph=True)
    return (gradient**2).flatten(1).sum(dim=1).mean()


def d_loss(options, real_logits, fake_logits):
    """The loss of one discriminator."""
    if options.gan_mode == "relativistic":
        return F.softplus(fake_logits - real_logits).mean()
    return ((real_logits - 1) ** 2).mean() / 2 + (fake_logits**2).mean() / 2


def by_hand(state, adams, batch, options, with_penalty=False, wrong=None):
    """Plain autograd and Adam, every pass alone: both G, then both D on the fakes of the old G."""
    n, x, y, (adam_g, adam_d) = state.networks, batch["X"], batch["Y"], adams
    fake_y, fake_x = n["G_XtoY"](x), n["G_YtoX"](y)
    D_y, D_x = (n["D_X"], n["D_Y"]) if wrong == "other discriminator" else (n["D_Y"], n["D_X"])
    if options.gan_mode == "relativistic":
        a, b = (x, y) if wrong == "pairs of the other domain" else (y, x)
        adversarial = F.softplus(D_y(a) - D_y(fake_y)).mean() + F.softplus(D_x(b) - D_x(fake_x)).mean()
    else:
        adversarial = ((D_y(fake_y) - 1) ** 2).mean() + ((D_x(fake_x) - 1) ** 2).mean()
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
    if options.lambda_features:
        X, Y = ("Y", "X") if wrong == "features of the source" else ("X", "Y")
        losses["features"] = state.matching[Y](fake_y) + state.matching[X](fake_x)
        total = total + (1 if wrong == "features without weight" else options.lambda_features) * losses["features"]
    adam_g.zero_grad()
    total.backward()
    adam_g.step()
    losses["G_total"] = total
    if wrong == "D on new fakes":
        fake_y, fake_x = n["G_XtoY"](x), n["G_YtoX"](y)
    n["D_X"].zero_grad(), n["D_Y"].zero_grad()
    penalty = 0
    if with_penalty:
        losses["R1"] = squared_gradient(n["D_X"], x) + squared_gradient(n["D_Y"], y)
        losses["R2"] = squared_gradient(n["D_X"], fake_x) + squared_gradient(n["D_Y"], fake_y)
        r1 = squared_gradient(n["D_X"], x) if wrong == "R1 of one domain" else losses["R1"]
        every = 1 if wrong == "interval forgotten" else options.penalty_every
        penalty = every / 2 * (options.r1_gamma * r1 + options.r2_gamma * losses["R2"])
    for name, real, fake in (("D_X", x, fake_x), ("D_Y", y, fake_y)):
        losses[name] = d_loss(options, n[name](real), n[name](fake.detach()))
    d_y = (n["D_Y"](fake_y.detach()) ** 2).mean() / 2 if wrong == "D_Y ignores y" else losses["D_Y"]
    (losses["D_X"] + d_y + penalty).backward()
    adam_d.step()
    return losses


def worst_difference(ours, theirs, losses, expected, relativistic):
    assert losses.keys() == expected.keys() and all(not value.requires_grad for value in losses.values())
    worst = max(abs((losses[name] - expected[name]).item()) for name in losses)
    for name in ours.networks:
        pairs = zip(ours.networks[name].parameters(), theirs.networks[name].parameters(), strict=True)
        differences = [(a - b).abs().max().item() for a, b in pairs]
        if relativistic and name.startswith("D"):
            differences.pop()  # the last bias: it cancels out, so its gradient is rounding noise, which Adam scales up
        worst = max(worst, *differences)
    return worst


def difference(options, wrong=None, with_penalty=False):
    """The largest difference of weights and losses between our update and the one by hand, after two of each."""
    ours, theirs = make(options), make(options)
    adams, worst = plain_optimizers(theirs, options), 0.0
    for seed in (5, 6):
        losses = train_step(ours, make_batch(seed), options, with_penalty)
        expected = by_hand(theirs, adams, make_batch(seed), options, with_penalty, wrong)
        relativistic = options.gan_mode == "relativistic"
        worst = max(worst, worst_difference(ours, theirs, losses, expected, relativistic))
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


@pytest.mark.parametrize("with_penalty", [False, True])
def test_relativistic_update(with_penalty):
    assert difference(R3GAN, with_penalty=with_penalty) < 2e-5


@pytest.mark.parametrize("wrong", ["pairs of the other domain", "R1 of one domain", "interval forgotten"])
def test_wrong_relativistic_updates_are_rejected(wrong):
    assert difference(R3GAN, wrong, with_penalty=True) > 1e-4


@pytest.mark.parametrize("wrong", [None, "features of the source", "features without weight"])
def test_feature_matching(wrong):
    assert (difference(FEATURES, wrong) > 1e-4) == (wrong is not None)


def test_identity_weight_is_half_of_the_cycle_weight_by_default():
    options = dataclasses.replace(EVERYTHING, lambda_identity=None)
    losses = train_step(make(options), make_batch(), options, False)
    expected = losses["G_adversarial"] + 7.0 * losses["cycle"] + 3.5 * losses["identity"]
    torch.testing.assert_close(losses["G_total"], expected)


def gradients(network, batches, options, weights):
    """The gradients of a weighted sum of the network's outputs, for its weights and for what went in."""
    inputs = [images.clone().requires_grad_() for images in batches]
    outputs = forward_together(network, inputs, options.norm)
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
    train_step(state, make_batch(), options, False)
    assert passes["G_XtoY"] == passes["G_YtoX"] == generator
    assert passes["D_X"] == passes["D_Y"] == discriminator


def test_update_of_the_generators_leaves_no_gradient_in_the_discriminators():
    state, seen = make(EVERYTHING), []
    for name in ("D_X", "D_Y"):
        for parameter in state.networks[name].parameters():
            parameter.register_post_accumulate_grad_hook(lambda p: seen.append(state.optimizers["G"].state != {}))
    train_step(state, make_batch(), EVERYTHING, False)
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
    losses, plain = train_step(ours, batch, PLAIN, False), train_step(theirs, batch, PLAIN, False)
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
    train_step(state, make_batch(), options, False)
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
    full, half = (
        train_step(make(options), make_batch(), options, False),
        train_step(state, make_batch(), options, False),
    )
    assert set(seen) == {torch.bfloat16} and all(value.dtype is torch.float32 for value in half.values())
    assert all(half[name].item() == pytest.approx(full[name].item(), rel=0.05) for name in full)
    assert any(half[name] != full[name] for name in full)
    assert state.pools["X"].images.dtype is torch.float32, "a run may continue at another precision"


def test_logits_are_judged_in_float32(monkeypatch):
    kinds = set()
    lsgan = cycle_gan.ADVERSARIAL_LOSSES["lsgan"]

    def noting(term):
        return lambda *logits: kinds.update(one.dtype for one in logits) or term(*logits)

    recording = lsgan._replace(discriminator=noting(lsgan.discriminator), generator=noting(lsgan.generator))
    monkeypatch.setitem(cycle_gan.ADVERSARIAL_LOSSES, "lsgan", recording)
    train_step(make(PLAIN, amp="bf16"), make_batch(), PLAIN, False)
    assert kinds == {torch.float32}


# ----------------------------------------------------------------------------------------------------------------------
# Grids and warnings


def translating(maps, options=PLAIN):
    """A state whose generators are plain functions."""

    class Map(torch.nn.Module):
        def __init__(self, function):
            super().__init__()
            self.forward = function

    state = make(options)
    state.step, state.ema = 300, {name: Map(function) for name, function in maps.items()}
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
