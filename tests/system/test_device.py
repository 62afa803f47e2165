"""The device of a run, its precision, seeds, deterministic kernels, and memory."""

import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

import system.device
from options.training import VanillaOptions
from system.device import choose_device, choose_precision, seed_everything, tune_malloc
from tests.conftest import ROOT
from utils import UserError

CPU = torch.device("cpu")


def set_capabilities(monkeypatch, **capabilities):
    """Pretend that the CPU has these instructions only."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)


def test_choice_of_the_device():
    assert choose_device("cpu") == CPU
    with pytest.MonkeyPatch.context() as patch:
        for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
            patch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
            patch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
            assert choose_device("auto").type == expected
        with pytest.raises(UserError, match="--device: cuda is not available"):
            choose_device("cuda")


def test_choice_of_the_precision():
    assert choose_precision("off", CPU).dtype is None and choose_precision("off", CPU).name == "float32"
    assert choose_precision("bf16", CPU).dtype is torch.bfloat16 and choose_precision("bf16", CPU).name == "bfloat16"
    with pytest.raises(UserError, match="--amp: fp16 needs a CUDA device"):
        choose_precision("fp16", CPU)
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    for amp, dtype in (("off", torch.float32), ("bf16", torch.bfloat16)):
        with choose_precision(amp, CPU).autocast():
            assert layer(x).dtype is dtype


@pytest.mark.parametrize("is_fast", [True, False])
def test_automatic_precision_is_bf16_only_where_it_is_fast(is_fast, monkeypatch):
    set_capabilities(monkeypatch, avx512_bf16=is_fast)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: is_fast or including_emulation)
    expected = torch.bfloat16 if is_fast else None
    assert choose_precision("auto", CPU).dtype is choose_precision("auto", torch.device("cuda")).dtype is expected
    assert choose_precision("auto", torch.device("mps")).dtype is None
    verb = "has" if is_fast else "lacks"
    assert choose_precision("auto", CPU).reason == f"--amp auto: the CPU {verb} AVX512_BF16"
    assert choose_precision("auto", torch.device("cuda")).reason == f"--amp auto: the GPU {verb} bf16"
    assert choose_precision("bf16", CPU).reason == "--amp bf16"
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert choose_precision("auto", CPU).dtype is None, "bf16 is fast through oneDNN"
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in older versions of PyTorch
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: is_fast, raising=False)
    assert choose_precision("auto", CPU).dtype is expected
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert choose_precision("auto", CPU).dtype is None


@pytest.mark.parametrize("found", [{"avx_ne_convert": True, "avx2": True}, {"bf16": True, "sve_bf16": True}, {}])
def test_automatic_precision_is_float32_on_cpus_whose_gradients_would_be_slow(found, monkeypatch):
    """CPUs that only convert bf16, ARM, and others: oneDNN has no fast kernels for all gradients of convolutions."""
    set_capabilities(monkeypatch, **found)
    assert choose_precision("auto", CPU).dtype is None


def test_processes_use_bf16_only_if_it_is_fast_for_all(monkeypatch):
    set_capabilities(monkeypatch, avx512_bf16=True)
    for name in ("join_processes", "seed_everything", "tune_malloc"):
        monkeypatch.setattr(system.device, name, lambda *arguments: None)
    for another, amp, expected in ((0, "auto", torch.bfloat16), (1, "auto", None), (1, "bf16", torch.bfloat16)):
        maximum = lambda number, device, another=another: max(number, another)  # noqa: E731
        monkeypatch.setattr(system.device, "max_over_processes", maximum)
        options = VanillaOptions(device="cpu", amp=amp)
        assert system.device.set_up(options)[1].dtype is expected
        if another and amp == "auto":
            assert system.device.set_up(options)[1].reason == "--amp auto: another process lacks bf16"


def test_deterministic_allows_only_deterministic_kernels():
    try:
        seed_everything(0, True)
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    finally:
        seed_everything(0, False)
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark


def test_equal_seeds_give_equal_draws():
    draws = []
    for seed in (1, 1, 2):
        seed_everything(seed, False)
        draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's malloc")
def test_freed_memory_is_kept(monkeypatch):
    """A tensor of 64 MB that is made again and again takes its 16,384 pages from the system only a few times.

    This runs in its own process: after a failed allocation, as in other tests, glibc uses another arena.
    """
    program = """
import resource, torch
from system.device import tune_malloc

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.zeros(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

page_faults()
print(page_faults())
tune_malloc()
for _ in range(5):  # at first, holes are a few bytes too small for tensors, which are aligned, until they join
    page_faults()
print(page_faults())
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    before, after = map(int, result.stdout.split())
    assert before > 10_000 and after < 1000, result.stderr
    monkeypatch.setattr(sys, "platform", "darwin")
    tune_malloc()  # does nothing on other systems


def test_denormals_count_as_zero():
    """All processors of the last fifteen years can do so."""
    torch.set_flush_denormal(False)
    tiny = torch.full((100,), 1e-30) * 1e-10
    assert (tiny > 0).all()
    seed_everything(0, deterministic=False)
    assert (torch.full((100,), 1e-30) * 1e-10 == 0).all()


def test_more_processes_than_gpus(monkeypatch):
    """Every process raises the error, so the first one reports it."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for number in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", number)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        with pytest.raises(UserError, match="--nproc_per_node: more than the 1 GPUs of this machine; use at most 1"):
            choose_device("cuda")
