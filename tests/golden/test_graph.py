"""A recorded step, replayed, is the step: shown on the CPU by a recorder that works as a CUDA graph does.

A CUDA graph repeats the kernels of a step on the same memory. Whatever a step took from Python, such as a number or a
new tensor, stays what it was when the graph was recorded. The recorder here does the same with the operations of
PyTorch; the graph itself is tested on a GPU.
"""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cycle_gan
import data_loader
import trainer
import vanilla_gan
from data_loader import find_domains, find_images, load_images
from models import ImagePool
from options import CycleOptions, VanillaOptions
from tests.conftest import assert_same
from trainer import Steps, make_state
from utils import UserError, choose_precision

CPU = torch.device("cpu")
STEPS = 9
TINY = {"image_size": 32, "batch_size": 4, "lr_policy": "linear", "lr": 1e-3, "use_diffaug": "color,translation,cutout"}
CASES = {
    "vanilla": VanillaOptions(**TINY, conv_dim=2, noise_size=4, spectral_norm=True, data_aug="deluxe"),
    "batch norm": VanillaOptions(**TINY, conv_dim=2, noise_size=4, norm="batch", data_aug="deluxe_autocontrast"),
    "cycle": CycleOptions(
        **TINY, g_conv_dim=2, d_conv_dim=2, pool_size=6, use_cycle_consistency_loss=True, use_identity_loss=True
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


def capture(take, stream):
    """In place of trainer.capture. Recording takes the step at once, so the first replay does nothing."""
    recorder = Recorder()
    with recorder:
        values = take()
    calls = iter([lambda: None])
    return lambda: next(calls, recorder.replay)(), values


@pytest.fixture
def run(photos, domains, monkeypatch):
    """Take STEPS steps of a case; return the state as a checkpoint."""
    monkeypatch.setattr(trainer, "capture", capture)
    monkeypatch.setattr(Steps, "_take_aside", Steps._take)
    monkeypatch.setattr(Steps, "WARM_UP", 2)

    def run(name: str, as_graph: bool, lr_on_device: bool = True) -> dict:
        options, said = CASES[name], []
        script, find, data = vanilla_gan, find_images, photos
        groups, pools = {"G": ["G"], "D": ["D"]}, {}
        if isinstance(options, CycleOptions):
            script, find, data = cycle_gan, find_domains, domains
            groups = {"G": ["G_XtoY", "G_YtoX"], "D": ["D_X", "D_Y"]}
            pools = {domain: ImagePool(options.pool_size) for domain in ("X", "Y")}
        images = load_images(find(type(options)(data=str(data))), options, CPU)
        torch.manual_seed(0)
        precision = choose_precision("off", CPU)
        state = make_state(script.build_networks(options), groups, groups["G"], options, CPU, precision, pools)
        for optimizer in state.optimizers.values() if lr_on_device else []:
            optimizer.param_groups[0]["lr"] = torch.tensor(1.0)
        steps = Steps(state, images, options, script.train_step, said.append)
        steps.stream = "a stream" if as_graph else None
        for step in range(STEPS):
            steps.take(options.lr * trainer.LR_POLICIES["linear"](step / STEPS))
        assert (steps.replay is not None) is as_graph and said == [] and state.step == STEPS
        return {**state.to_checkpoint(), "recent": state.recent}

    return run


@pytest.mark.parametrize("name", CASES)
def test_replayed_steps_are_the_steps(run, name):
    assert_same(run(name, as_graph=True), run(name, as_graph=False))


def test_a_learning_rate_on_the_host_is_seen(run):
    with pytest.raises(AssertionError):
        assert_same(run("vanilla", True, lr_on_device=False), run("vanilla", False, lr_on_device=False))


def test_images_in_another_place_are_seen(run, monkeypatch):
    def choose(self, step, whole=False):
        self._chosen = self._places(step, whole)

    expected = run("vanilla", as_graph=False)
    monkeypatch.setattr(data_loader.ImageBatches, "choose", choose)
    with pytest.raises(AssertionError):
        assert_same(run("vanilla", as_graph=True), expected)


def test_a_pool_that_still_fills_is_seen(run, monkeypatch):
    """The graph waits for it; recorded before, it would go on to fill the same places."""
    expected = run("cycle", as_graph=False)
    monkeypatch.setattr(ImagePool, "is_steady", True)
    monkeypatch.setattr(Steps, "WARM_UP", 0)
    with pytest.raises(AssertionError):
        assert_same(run("cycle", as_graph=True), expected)


# ---- What a graph can't hold


def step_without_memory(name: str) -> None:
    """Take a step on tensors that have a shape and a device but no values: nothing can be read from them."""
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
    state = trainer.State(networks, optimizers, {}, choose_precision("off", CPU), meta, pools)
    batch = {domain: torch.empty(4, 3, 32, 32, device=meta) for domain in ("images", "X", "Y")}
    losses = script.train_step(state, batch, options)
    assert {value.device for value in losses.values()} == {meta}


@pytest.fixture
def no_autocast(monkeypatch):
    """The device without memory has none."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())


@pytest.mark.parametrize("name", ["vanilla", "batch norm", "cycle"])
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
        ("streamed", "the images are streamed from disk"),
        ("fp16", "fp16 scales its gradients"),
        ("compile", "--compile"),
        ("flag", "--no-cuda_graph"),
        ("processes", "several processes share the batches"),
        (None, None),
    ],
)
def test_why_there_is_no_graph(photos, monkeypatch, change, reason):
    changes = {"streamed": {"cache_gb": 0.0}, "compile": {"compile": True}, "flag": {"cuda_graph": False}}
    options = VanillaOptions(**TINY, **changes.get(change, {}))
    data = load_images(find_images(VanillaOptions(data=str(photos))), options, CPU)
    precision = choose_precision("off", CPU)
    if change == "fp16":
        precision = precision._replace(scaler=torch.amp.GradScaler("cpu"))
    monkeypatch.setattr(trainer, "count_processes", lambda: 2 if change == "processes" else 1)
    state = trainer.State({}, {}, {}, precision, CPU)
    assert trainer.why_no_graph(state, data, options) == reason


def test_a_recording_that_fails_is_one_line(run, monkeypatch):
    def fail(take, stream):
        raise RuntimeError("operation not permitted\nwhen stream is capturing. And more")

    monkeypatch.setattr(trainer, "capture", fail)
    line = r"--cuda_graph: a step can't be recorded \(operation not permitted when .* capturing\); use --no-cuda_graph"
    with pytest.raises(UserError, match=line):
        run("vanilla", as_graph=True)


def test_the_recording_waits_until_the_pools_are_full(run, monkeypatch):
    expected = run("cycle", as_graph=False)
    monkeypatch.setattr(Steps, "WARM_UP", 0)
    assert_same(run("cycle", as_graph=True), expected)
