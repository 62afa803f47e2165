"""A captured step that is replayed equals the step: shown on the CPU by a recorder that works like a CUDA graph.

A CUDA graph repeats the kernels of a step on the same memory. Whatever a step took from Python, such as a number or a
new tensor, keeps its value from the capture. The recorder here does the same with the operations of PyTorch; the graph
itself is tested on a GPU.
"""

import contextlib
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cycle_gan
import vanilla_gan
from data_loader import ImageBatches, load_images
from layers.image_pool import ImagePool
from options import CycleOptions, VanillaOptions
from system.device import choose_precision
from tests.conftest import assert_same
from training import steps
from training.feature_matching import FeatureMatching, build_feature_matching
from training.image_codes import ImageCodes, build_image_codes
from training.schedule import LR_POLICIES
from training.state import TrainingState
from training.steps import StepRunner, graph_obstacle
from utils import UserError

pytestmark = pytest.mark.golden

CPU = torch.device("cpu")
STEPS = 9
TINY = {"image_size": 32, "batch_size": 4, "lr_policy": "linear", "lr": 1e-3, "use_diffaug": "color,translation,cutout"}
CASES = {
    "vanilla": VanillaOptions(**TINY, conv_dim=2, noise_size=4, spectral_norm=True, data_aug="deluxe"),
    "batch norm": VanillaOptions(**TINY, conv_dim=2, noise_size=4, norm="batch", data_aug="deluxe_autocontrast"),
    "self-modulation": VanillaOptions(
        **TINY,
        conv_dim=2,
        noise_size=5,
        self_modulation=True,
        split_noise=True,
        fine_channels=3,
        lambda_modes=0.1,
        d_optimizer="muon",
        d_lr=1e-4,
    ),
    "cycle": CycleOptions(
        **TINY, g_conv_dim=2, d_conv_dim=2, pool_size=6, use_cycle_consistency_loss=True, use_identity_loss=True
    ),
    "codes": VanillaOptions(**TINY, conv_dim=2, noise_size=4, lambda_codes=1.0),
    "features": VanillaOptions(**TINY, conv_dim=2, noise_size=4, lambda_features=1.0),
    "penalties": VanillaOptions(
        **TINY, conv_dim=2, noise_size=4, gan_mode="relativistic", r1_gamma=1.0, r2_gamma=1.0, penalty_every=2
    ),
    "cycle penalties": CycleOptions(
        **TINY, g_conv_dim=2, d_conv_dim=2, pool_size=6, r1_gamma=1.0, penalty_every=3, d_optimizer="muon"
    ),
    "cycle SSIM": CycleOptions(**TINY, g_conv_dim=2, d_conv_dim=2, use_cycle_consistency_loss=True, cycle_loss="SSIM"),
}


class Recorder(TorchDispatchMode):
    """Keeps every operation with the tensors that it read and wrote."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self.operations.append((function, args, kwargs, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Do it all again, on the same memory."""
        for function, args, kwargs, result in self.operations:
            read = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
            for old, new in zip(tree_leaves(result), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.untyped_storage().data_ptr() not in read:
                    old.copy_(new)


def capture(compute, stream):
    """In place of training.steps.capture. Recording takes the step at once, so the first replay does nothing."""
    recorder = Recorder()
    with recorder:
        losses = compute()
    calls = iter([lambda: None])
    return lambda: next(calls, recorder.replay)(), losses


@pytest.fixture
def run(photos, domains, monkeypatch):
    """Take STEPS steps of a case; return the state as a checkpoint."""
    monkeypatch.setattr(steps, "capture", capture)
    monkeypatch.setattr(StepRunner, "_compute_on_capture_stream", StepRunner._compute)
    monkeypatch.setattr(StepRunner, "WARM_UP", 2)

    def run(name: str, as_graph: bool, lr_on_device: bool = True) -> dict:
        options = CASES[name]
        script, data = vanilla_gan, photos
        groups, pools = {"G": ["G"], "D": ["D"]}, {}
        if isinstance(options, CycleOptions):
            script, data = cycle_gan, domains
            groups = {"G": ["G_XtoY", "G_YtoX"], "D": ["D_X", "D_Y"]}
            pools = {domain: ImagePool(options.pool_size) for domain in ("X", "Y")}
        images = load_images(dataclasses.replace(options, data=str(data)), CPU)
        torch.manual_seed(0)
        precision, networks = choose_precision("off", CPU), script.build_networks(options)
        state = TrainingState.create(networks, groups, groups["G"], options, CPU, precision, pools)
        state.matching = build_feature_matching(images, options)
        if isinstance(options, VanillaOptions):
            state.pools = build_image_codes(images, options)
        for optimizer in state.optimizers.values() if lr_on_device else []:
            optimizer.param_groups[0]["lr"] = torch.tensor(1.0)
        runner = StepRunner(state, images, options, script.train_step)
        runner.stream = "a stream" if as_graph else None
        for step in range(STEPS):
            runner.run(options.lr * LR_POLICIES["linear"](step / STEPS))
        has_penalty = bool(options.r1_gamma)
        assert len(runner.graphs) == as_graph * (1 + has_penalty), "a graph for each kind of step"
        assert state.step == STEPS
        return state.to_checkpoint()

    return run


@pytest.mark.parametrize("name", CASES)
def test_replayed_steps_equal_computed_steps(run, name):
    assert_same(run(name, as_graph=True), run(name, as_graph=False))


def test_a_learning_rate_on_the_host_is_seen(run):
    with pytest.raises(AssertionError):
        assert_same(run("vanilla", True, lr_on_device=False), run("vanilla", False, lr_on_device=False))


def test_one_graph_for_both_kinds_of_step_is_seen(run, monkeypatch):
    """A single graph would compute the penalties in every step, or never."""
    expected = run("penalties", as_graph=False)
    monkeypatch.setattr(StepRunner, "_replay", lambda self, kind, right=StepRunner._replay: right(self, False))
    with pytest.raises(AssertionError):
        assert_same(run("penalties", as_graph=True), expected)


def test_images_in_another_place_are_seen(run, monkeypatch):
    def select(self, step, whole=False):
        self.selected = self._indices(step, whole)

    expected = run("vanilla", as_graph=False)
    monkeypatch.setattr(ImageBatches, "select", select)
    with pytest.raises(AssertionError):
        assert_same(run("vanilla", as_graph=True), expected)


def test_a_pool_that_still_fills_is_seen(run, monkeypatch):
    """The graph waits for it; captured before, it would fill the same places again and again."""
    expected = run("cycle", as_graph=False)
    monkeypatch.setattr(ImagePool, "is_full", True)
    monkeypatch.setattr(StepRunner, "WARM_UP", 0)
    with pytest.raises(AssertionError):
        assert_same(run("cycle", as_graph=True), expected)


# ----------------------------------------------------------------------------------------------------------------------
# What a graph cannot contain


def step_without_memory(name: str) -> None:
    """Take a step on tensors with a shape and a device but without values: nothing can be read from them."""
    options, meta = CASES[name], torch.device("meta")
    is_cycle = isinstance(options, CycleOptions)
    script = cycle_gan if is_cycle else vanilla_gan
    groups = {"G": ["G_XtoY", "G_YtoX"], "D": ["D_X", "D_Y"]} if is_cycle else {"G": ["G"], "D": ["D"]}
    networks = {name: network.to(meta) for name, network in script.build_networks(options).items()}
    optimizers = {
        group: torch.optim.SGD([p for name in names for p in networks[name].parameters()])
        for group, names in groups.items()
    }
    pools = {domain: ImagePool(0) for domain in ("X", "Y")}
    state = TrainingState(networks, optimizers, {}, choose_precision("off", CPU), meta, pools)
    if options.lambda_features:
        matching = FeatureMatching([torch.rand(4, 3, 32, 32)], 4, CPU)
        matching.maps.to(meta)
        matching.windows = {size: windows.to(meta) for size, windows in matching.windows.items()}
        for name in ("mean", "scale", "real", "real_kernel"):
            setattr(matching, name, getattr(matching, name).to(meta))
        state.matching = {"images": matching}
    if not is_cycle and options.lambda_codes:
        images = SimpleNamespace(selected=torch.empty(4, dtype=torch.int64, device=meta))
        state.pools = {"codes": ImageCodes(torch.rand(4, 4, 1, 1, device=meta), images)}
    batch = {domain: torch.empty(4, 3, 32, 32, device=meta) for domain in ("images", "X", "Y")}
    losses = script.train_step(state, batch, options, bool(options.r1_gamma))
    assert {value.device for value in losses.values()} == {meta}


@pytest.fixture
def no_autocast(monkeypatch):
    """The device without memory has none."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())


@pytest.mark.parametrize("name", ["vanilla", "batch norm", "cycle", "penalties", "codes"])
def test_a_step_reads_nothing_back_and_brings_nothing_along(name, no_autocast):
    step_without_memory(name)


def test_a_step_that_reads_back_is_seen(monkeypatch, no_autocast):
    right = vanilla_gan.train_step
    for wrong in (lambda losses: losses["G"].item(), lambda losses: losses["G"] + torch.ones(2)):
        monkeypatch.setattr(vanilla_gan, "train_step", lambda *args, wrong=wrong: wrong(right(*args)))
        with pytest.raises((RuntimeError, AttributeError)):
            step_without_memory("vanilla")


@pytest.mark.parametrize(
    "change, reason",
    [
        ("streamed", "images are streamed from disk"),
        ("fp16", "fp16 scales its gradients"),
        ("compile", "--compile"),
        ("flag", "--no-cuda_graph"),
        ("processes", "several processes share each batch"),
        (None, None),
    ],
)
def test_why_there_is_no_graph(photos, monkeypatch, change, reason):
    changes = {"streamed": {"cache_gb": 0.0}, "compile": {"compile": True}, "flag": {"cuda_graph": False}}
    options = VanillaOptions(**TINY, **changes.get(change, {}))
    data = load_images(dataclasses.replace(options, data=str(photos)), CPU)
    precision = choose_precision("off", CPU)
    if change == "fp16":
        precision = precision._replace(scaler=torch.amp.GradScaler("cpu"))
    monkeypatch.setattr(steps, "count_processes", lambda: 2 if change == "processes" else 1)
    state = TrainingState({}, {}, {}, precision, CPU)
    assert graph_obstacle(state, data, options) == reason


def test_a_capture_that_fails_is_one_line(run, monkeypatch):
    def fail(compute, stream):
        raise RuntimeError("operation not permitted\nwhen stream is capturing. And more")

    monkeypatch.setattr(steps, "capture", fail)
    line = r"--cuda_graph: a step cannot be captured \(operation not permitted when .* capturing\); use --no-cuda_graph"
    with pytest.raises(UserError, match=line):
        run("vanilla", as_graph=True)


def test_the_capture_waits_until_the_pools_are_full(run, monkeypatch):
    expected = run("cycle", as_graph=False)
    monkeypatch.setattr(StepRunner, "WARM_UP", 0)
    assert_same(run("cycle", as_graph=True), expected)
