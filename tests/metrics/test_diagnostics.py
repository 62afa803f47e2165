"""Warnings about a training (D too strong, collapse, inverted colors) at their limits, and the hints before it."""

import dataclasses

import numpy as np
import pytest
import torch

import cycle_gan
import vanilla_gan
from layers.image_pool import ImagePool
from metrics.diagnostics import correlate, diagnose_cyclegan, diagnose_dcgan, discriminator_dominates, give_hints
from options import CycleOptions, VanillaOptions, parse_command_line
from system.device import choose_precision
from training.state import TrainingState

CPU = torch.device("cpu")

DCGAN = VanillaOptions(image_size=32, conv_dim=2, noise_size=4)
PLAIN = CycleOptions(image_size=32, g_conv_dim=2, d_conv_dim=2, disc="patch", ema_decay=0.9)
ALL_REMEDIES = dataclasses.replace(
    PLAIN, use_cycle_consistency_loss=True, use_identity_loss=True, lambda_identity=2.0, use_diffaug="color"
)


def make_dcgan_state() -> TrainingState:
    groups = {"G": ["G"], "D": ["D"]}
    return TrainingState.create(
        vanilla_gan.build_networks(DCGAN), groups, ["G"], DCGAN, CPU, choose_precision("off", CPU)
    )


def make_batch(seed: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(3, 3, 32, 32, generator=generator) * 2 - 1 for name in ("X", "Y")}


class Map(torch.nn.Module):
    """A generator that is a plain function."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def make_cyclegan_state(maps) -> TrainingState:
    """A state at iteration 300 whose generators are plain functions."""
    groups = {"G": ["G_XtoY", "G_YtoX"], "D": ["D_X", "D_Y"]}
    pools = {"X": ImagePool(0), "Y": ImagePool(0)}
    networks, precision = cycle_gan.build_networks(PLAIN), choose_precision("off", CPU)
    state = TrainingState.create(networks, groups, groups["G"], PLAIN, CPU, precision, pools)
    state.step, state.ema = 300, {name: Map(function) for name, function in maps.items()}
    return state


def problems_of(maps, rows=()) -> set[str]:
    return set(diagnose_cyclegan(make_cyclegan_state(maps), PLAIN, list(rows), make_batch()))


SAME = {"G_XtoY": lambda x: x, "G_YtoX": lambda y: y}


def opposite_hues(x):
    return 2 * x.mean(1, keepdim=True) - x


# ---- A discriminator that is too strong


@pytest.mark.parametrize(
    "gan_mode, guessing",
    [("lsgan", 0.5), ("vanilla", 2 * np.log(2)), ("hinge", 2.0), ("relativistic", np.log(2))],
)
def test_discriminator_dominates_below_a_twentieth_of_the_loss_of_guessing(gan_mode, guessing):
    """`guessing` is the loss of a D with logits of 0, for real and fake images together."""
    limit = 0.05 * guessing
    assert discriminator_dominates([0.99 * limit, 9.0, 0.0], gan_mode), "one large loss does not count"
    assert not discriminator_dominates([0.0, 1.01 * limit, 1.01 * limit], gan_mode)
    assert not discriminator_dominates([], gan_mode)


def test_a_dcgan_whose_discriminator_dominates():
    state = make_dcgan_state()
    state.step = 300
    rows = [{"step": step, "D_total": 0.02} for step in range(10, 301, 10)]
    with_diffaug = dataclasses.replace(DCGAN, use_diffaug="color")
    plain, used = (diagnose_dcgan(state, options, rows)["D has won"] for options in (DCGAN, with_diffaug))
    assert plain.startswith("D has become too strong") and plain.endswith("so G learns little; try --use_diffaug")
    assert used.endswith("so G learns little; try a lower --lr"), "DiffAugment is in use"
    with_rate = dataclasses.replace(with_diffaug, d_lr=1e-3)
    assert diagnose_dcgan(state, with_rate, rows)["D has won"].endswith("try a lower --d_lr")
    assert not diagnose_dcgan(state, DCGAN, [{**row, "D_total": 0.03} for row in rows])
    assert not diagnose_dcgan(state, DCGAN, [])
    state.step = 299
    assert not diagnose_dcgan(state, DCGAN, rows), "300 iterations first"


def test_a_cyclegan_whose_discriminator_dominates():
    rows = [{"step": step, "D_X": 0.001, "D_Y": 0.25} for step in range(10, 301, 10)]
    assert problems_of(SAME, rows) == {"D_X has won"}
    larger = [{**row, "D_X": 0.03} for row in rows]
    assert problems_of(SAME, [*rows[:10], *larger[10:]]) == set(), "not in most rows"
    older = [{**row, "step": row["step"] - 300} for row in larger]
    assert problems_of(SAME, [*older, *rows]) == {"D_X has won"}
    assert problems_of(SAME, [*older, *larger]) == set()
    assert problems_of(SAME, []) == set(), "nothing is known yet"
    state = make_cyclegan_state(SAME)
    state.step = 299
    assert not diagnose_cyclegan(state, PLAIN, rows, make_batch()), "300 iterations first"
    state.ema["G_XtoY"].forward = lambda x: 0 * x
    assert not diagnose_cyclegan(state, PLAIN, [], make_batch()), "an untrained generator may ignore its input"


# ---- Generators that invert or collapse


def test_inversion_and_collapse():
    def negative(x):
        return 0.2 - 0.5 * x

    assert problems_of(SAME) == set()
    assert problems_of({**SAME, "G_XtoY": negative}) == {"G_XtoY inverts light and dark", "G_XtoY inverts the colors"}
    assert problems_of({**SAME, "G_YtoX": opposite_hues}) == {"G_YtoX inverts the colors"}
    assert problems_of({**SAME, "G_YtoX": lambda y: opposite_hues(negative(y))}) == {"G_YtoX inverts light and dark"}
    assert problems_of({**SAME, "G_YtoX": lambda y: y * 0.0}) == {"G_YtoX has collapsed"}
    assert problems_of({**SAME, "G_XtoY": lambda x: x.roll(9, 3)}) == set(), "different, but not inverted"
    assert problems_of({**SAME, "G_XtoY": lambda x: x.mean(1, keepdim=True).expand_as(x)}) == set(), "gray has no hue"


def test_limits_of_inversion_and_collapse():
    """A correlation of -0.5, and a tenth of the deviation of the images of the target domain."""

    def correlated(c):  # the noise is the image itself, moved
        return lambda x: c * x + (1 - c * c) ** 0.5 * x.roll((7, 5), (2, 3))

    assert problems_of({**SAME, "G_XtoY": correlated(-0.4)}) == set()
    both = {"G_XtoY inverts light and dark", "G_XtoY inverts the colors"}
    assert problems_of({**SAME, "G_XtoY": correlated(-0.6)}) == both
    for share, expected in ((0.09, {"G_XtoY has collapsed"}), (0.11, set())):
        maps = {**SAME, "G_XtoY": lambda x, share=share: x[:1].expand_as(x) + share * (x - x[:1])}
        assert problems_of(maps) == expected
    batch = make_batch()
    fixed = {"X": batch["X"], "Y": 0.05 * batch["Y"]}  # images of Y are nearly equal, so translations may be, too
    state = make_cyclegan_state({**SAME, "G_XtoY": lambda x: x[:1].expand_as(x) + 0.03 * x})
    assert set(diagnose_cyclegan(state, PLAIN, [], fixed)) == {"G_YtoX has collapsed"}
    one = {name: images[:1] for name, images in batch.items()}
    assert not diagnose_cyclegan(make_cyclegan_state(SAME), PLAIN, [], one), "a single image has no deviation"


def test_a_warning_names_a_remedy_that_is_not_in_use():
    def warnings_with(options):
        state = make_cyclegan_state({"G_XtoY": opposite_hues, "G_YtoX": lambda y: 0 * y})
        return diagnose_cyclegan(state, options, [{"step": 300, "D_X": 0.25, "D_Y": 0.0}], make_batch())

    plain, used = warnings_with(PLAIN), warnings_with(ALL_REMEDIES)
    assert plain["G_XtoY inverts the colors"].endswith(
        "(correlation of inputs and translations -1.00); try --use_identity_loss"
    )
    assert plain["G_YtoX has collapsed"].endswith("try --use_cycle_consistency_loss")
    assert plain["D_Y has won"].endswith("so G_XtoY learns little; try --use_diffaug")
    assert used["G_XtoY inverts the colors"].endswith("try a larger --lambda_identity")
    assert used["G_YtoX has collapsed"].endswith("try a lower --lr")
    assert used["D_Y has won"].endswith("try a lower --lr")


@pytest.mark.golden
def test_correlation_equals_numpys():
    a, b = make_batch()["X"], make_batch()["Y"]
    expected = [np.corrcoef(one.flatten(), other.flatten())[0, 1] for one, other in zip(a, b, strict=True)]
    np.testing.assert_allclose(correlate(a, b), expected, atol=1e-6)
    uncentered = torch.nn.functional.cosine_similarity((a + 1).flatten(1), (b + 1).flatten(1))
    assert (correlate(a + 1, b + 1) - uncentered).abs().min() > 0.1, "without the means it is another number"


# ---- Hints before a training


def test_hints():
    def hints(cls, *arguments, images=2000, iterations=5000):
        return give_hints(parse_command_line(cls, "", arguments), images, iterations)

    assert hints(VanillaOptions, "--data=x") == []
    assert hints(VanillaOptions, "--data=x", "--use_diffaug", images=10) == []
    [small] = hints(VanillaOptions, "--data=x", images=10)
    assert "only 10 images" in small and "try --use_diffaug" in small
    assert hints(CycleOptions, images=200, iterations=800) == [], "the length of the toy cats is chosen"
    [short] = hints(VanillaOptions, "--data=x", iterations=7)
    assert "7 iterations" in short and "--train_iters 5000" in short
    cycle, same = hints(CycleOptions, "--X=a", "--Y=a")
    assert "without --use_cycle_consistency_loss" in cycle and "--X and --Y are the same folder" in same
    assert len(hints(CycleOptions, "--X=a", "--Y=b")) == 1
    assert hints(CycleOptions) == []


@pytest.mark.parametrize(
    "weight, cycle, is_hinted",
    [
        (0.5, 10, True),
        (1, 5, True),
        (0.2, 10, True),
        (1.01, 5, False),
        (0.5, 4.9, False),
        (5, 10, False),
        (0, 10, False),
    ],
)
def test_hint_for_an_identity_weight_of_the_authors_commands(weight, cycle, is_hinted):
    """Theirs is a factor on lambda, ours the weight."""
    flags = ["--X=a", "--Y=b", "--use_identity_loss", f"--lambda_identity={weight}", "--use_cycle_consistency_loss"]
    options = parse_command_line(CycleOptions, "", [*flags, f"--lambda_cycle={cycle}"])
    hints = give_hints(options, 2000, 5000)
    assert len(hints) == is_hinted
    if is_hinted:
        assert f"which is --lambda_identity {weight * cycle:g} here" in hints[0]
        assert give_hints(dataclasses.replace(options, lambda_identity=weight * cycle), 2000, 5000) == []
        assert give_hints(dataclasses.replace(options, use_identity_loss=False), 2000, 5000) == []
        assert give_hints(dataclasses.replace(options, lambda_identity=None), 2000, 5000) == []


def test_limits_of_hints():
    for count, expected in ((999, 1), (1000, 0)):
        assert len(give_hints(VanillaOptions(), count, 5000)) == expected
        assert len(give_hints(VanillaOptions(), 5000, count)) == expected
