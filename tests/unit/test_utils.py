"""Device, precision, gradients, grids and exit codes."""

import contextlib
import errno
import os
import platform
import re
import stat
import subprocess
import sys

import pytest
import torch
from torch import nn

import utils
from options import VanillaOptions
from tests.conftest import ROOT, command
from utils import (
    NonFiniteError,
    UserError,
    choose_device,
    choose_precision,
    descend,
    from_uint8,
    image_grid,
    keep_freed_memory,
    printable,
    progress,
    run_main,
    seed_everything,
    to_uint8,
)  # fmt: skip

CPU = torch.device("cpu")


def test_device():
    assert choose_device("cpu") == CPU
    with pytest.MonkeyPatch.context() as patch:
        for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
            patch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
            patch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
            assert choose_device("auto").type == expected
        with pytest.raises(UserError, match="--device: cuda is not available"):
            choose_device("cuda")


def test_precision():
    assert choose_precision("off", CPU).dtype is None and choose_precision("off", CPU).name == "float32"
    assert choose_precision("bf16", CPU).dtype is torch.bfloat16 and choose_precision("bf16", CPU).name == "bfloat16"
    with pytest.raises(UserError, match="--amp: fp16 needs a CUDA device"):
        choose_precision("fp16", CPU)
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    for amp, dtype in (("off", torch.float32), ("bf16", torch.bfloat16)):
        with choose_precision(amp, CPU).autocast():
            assert layer(x).dtype is dtype


@pytest.mark.parametrize("has_it", [True, False])
def test_precision_by_itself(has_it, monkeypatch):
    """bf16 where the device has units for it, and nowhere else."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_it)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it or including_emulation)
    expected = torch.bfloat16 if has_it else None
    assert choose_precision("auto", CPU).dtype is choose_precision("auto", torch.device("cuda")).dtype is expected
    assert choose_precision("auto", torch.device("mps")).dtype is None
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert choose_precision("auto", CPU).dtype is None, "the units are used through oneDNN"
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")  # it may be gone one day
    assert choose_precision("auto", CPU).dtype is None


def test_processes_take_bf16_only_if_all_do(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    for name in ("join_processes", "seed_everything", "keep_freed_memory"):
        monkeypatch.setattr(utils, name, lambda *arguments: None)
    for another, amp, expected in ((0, "auto", torch.bfloat16), (1, "auto", None), (1, "bf16", torch.bfloat16)):
        monkeypatch.setattr(utils, "agree", lambda number, device, another=another: max(number, another))
        options = VanillaOptions(device="cpu", amp=amp)
        assert utils.set_up(options)[1].dtype is expected


def test_deterministic_allows_only_deterministic_kernels():
    try:
        seed_everything(0, True)
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    finally:
        seed_everything(0, False)
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark


def test_seed():
    draws = []
    for seed in (1, 1, 2):
        seed_everything(seed, False)
        draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_descend_updates_only_its_own_parameters():
    """The network in the way gets no gradient; the step is the one that loss.backward() and step() would take."""
    torch.manual_seed(0)
    first, second = nn.Linear(3, 3), nn.Linear(3, 1)
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    x = torch.randn(4, 3)
    loss = second(first(x)).square().mean()
    expected = first.weight - 0.1 * torch.autograd.grad(loss, first.weight, retain_graph=True)[0]
    descend(loss, optimizer, choose_precision("off", CPU).scaler)
    torch.testing.assert_close(first.weight, expected)
    assert all(p.grad is None for p in [*first.parameters(), *second.parameters()])


def test_image_grid():
    images = torch.stack([torch.full((3, 4, 4), value) for value in (-1.0, 0.0, 1.0, 3.0)])
    grid = image_grid(images, 2)
    assert grid.dtype is torch.uint8 and grid.shape == (3, 14, 14)
    assert [grid[0, y, x].item() for y, x in ((3, 3), (3, 9), (9, 3), (9, 9))] == [0, 128, 255, 255]
    assert grid[:, 0, 0].tolist() == [255] * 3, "white between the images"


def test_pixels_there_and_back():
    """All 256 values are their own; beyond [-1, 1] they end, between two they round, and the input stays."""
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(pixels)), pixels)
    assert from_uint8(pixels[[0, 255]]).tolist() == [-1, 1]
    images = torch.tensor([-1.4, 7.0, 100.4 / 127.5 - 1, 100.6 / 127.5 - 1])
    assert to_uint8(images).tolist() == [0, 255, 100, 101]
    floats = torch.full((1,), 3.0)
    from_uint8(floats)
    assert floats.item() == 3 and images[1] == 7


def test_progress_without_a_terminal(monkeypatch, capsys):
    """Plain lines now and then, with speed and time left; none if it is soon done."""
    assert list(progress("abc", "draw", "images")) == ["a", "b", "c"] and capsys.readouterr().out == ""
    monkeypatch.setattr(utils, "PLAIN_SECONDS", 0)
    assert list(progress("abc", "draw", "images")) == ["a", "b", "c"]
    first, *others = capsys.readouterr().out.splitlines()
    assert len(others) == 2 and re.fullmatch(r"draw: 1 of 3, 00:00 left, [\d.]+ images/s", first), first
    assert list(progress(iter("ab"), "draw", "images")) == ["a", "b"]
    assert re.match(r"draw: 1, [\d.]+ images/s\n", capsys.readouterr().out), "without a total"


def test_progress_in_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress(iter("abc"), "draw", "images", 3)) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert out == "" and "draw" in err and "/3 " in err and "images" in err


@pytest.mark.parametrize(
    "error, code",
    [
        (UserError("two\nlines"), 2),
        (OSError(28, "No space left on device", "checkpoint.pt"), 2),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has"), 2),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes. x"
            ),
            2,
        ),
        (RuntimeError("Storage size calculation overflowed with sizes=[9, 9]"), 2),
        (MemoryError("Unable to allocate 2 GiB for an\narray"), 2),  # NumPy's
        (MemoryError(), 2),  # Pillow's
        (NonFiniteError("x", 1), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(capsys, error, code):
    def main():
        raise error

    assert run_main(main, "prog") == code
    err = capsys.readouterr().err
    assert err.startswith("prog: ") and err.count("\n") == 1
    if "allocate" in str(error):  # how much, and what to do
        assert ("2 GiB" in err or "99 bytes" in err) and "lower --batch_size" in err
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "Storage" in str(error):
        assert "out of memory" in err and "lower --batch_size" in err


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Käse 猫 👩\u200d🚀 a b\\c.png", "Käse 猫 👩\u200d🚀 a b\\c.png"),  # a joiner makes one emoji of two
        ("a\nb\tc\r.png", "a\\nb\\tc\\r.png"),
        ("\x1b[2J\x07\x00\x7f", "\\x1b[2J\\x07\\x00\\x7f"),  # would clear the screen, and ring
        ("\x85\x9b31m", "\\x85\\x9b31m"),
        ("a\u2028b\u2029c", "a\\u2028b\\u2029c"),
        ("\u202egnp.exe\u2066\u200f\u061c", "\\u202egnp.exe\\u2066\\u200f\\u061c"),
        (os.fsdecode(b"caf\xe9"), "caf\\udce9"),
    ],
)
def test_printable(text, expected):
    assert printable(text) == expected
    assert expected.encode() and len(expected.splitlines()) == 1


def test_errors_are_printable(capsys):
    for error in (UserError("a\x1b[31m.png"), OSError(2, "No such file", "a\x1b[31m\n.png")):

        def main(error=error):
            raise error

        assert run_main(main, "prog") == 2
        err = capsys.readouterr().err
        assert "a\\x1b[31m" in err and "\x1b" not in err and err.count("\n") == 1


def test_mismatched_torchvision_is_one_line(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    result = command(ROOT / "vanilla_gan.py", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert result.returncode == 2 and result.stdout == "" and result.stderr.count("\n") == 1, result.stderr
    assert "pip install" in result.stderr and torch.__version__ in result.stderr


def test_what_no_deterministic_kernel_can_do_is_one_line(capsys):
    """As torch says it on a GPU; other errors of the same class keep their traceback."""

    def fail(text):
        raise RuntimeError(text)

    text = "reflection_pad2d_backward_cuda does not have a deterministic implementation, but you set it. You can ..."
    assert run_main(lambda: fail(text), "x.py") == 2
    assert capsys.readouterr().err.endswith("but you set it; leave --deterministic out\n")
    with pytest.raises(RuntimeError, match="shapes"):
        run_main(lambda: fail("shapes differ"), "x.py")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's malloc")
def test_freed_memory_is_kept(monkeypatch):
    """A tensor of 64 MB, made anew again and again, takes its 16,384 pages from the system once.

    In a process of its own: after an allocation that failed, as tests make them, glibc goes on in another arena.
    """
    program = """
import resource, torch
from utils import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
page_faults()
print(page_faults())
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert int(result.stdout) < 1000, result.stderr
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_freed_memory()  # nothing to do elsewhere


def test_denormals_count_as_zero():
    """Only where the processor can do so, which all of the last fifteen years can."""
    torch.set_flush_denormal(False)
    tiny = torch.full((100,), 1e-30) * 1e-10
    assert (tiny > 0).all()
    seed_everything(0, deterministic=False)
    assert (torch.full((100,), 1e-30) * 1e-10 == 0).all()


@pytest.mark.skipif(os.name != "posix", reason="folders are not synced")
@pytest.mark.parametrize("number, is_fine", [(errno.EINVAL, True), (errno.EIO, False)])
def test_folders_that_can_not_be_synced(number, is_fine, tmp_path, monkeypatch):
    """Some file systems don't have it; a failing disk is another matter, and so is a file."""
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with contextlib.nullcontext() if is_fine else pytest.raises(OSError, match="Input/output"):
        utils.write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").read_text() == "{}\n"
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.EINVAL, "Invalid")))
    with pytest.raises(OSError, match="Invalid"):
        utils.write_json(tmp_path / "b.json", {})
    assert not (tmp_path / "b.json").exists()
    with pytest.raises(OSError, match="Invalid"):
        utils.sync(tmp_path / "a.json")


def test_more_processes_than_gpus(monkeypatch):
    """All of them find out, so that the first one says it."""
    monkeypatch.setattr("utils.dist.is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for number in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", number)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        with pytest.raises(UserError, match="--nproc_per_node: more than the 1 GPUs"):
            choose_device("cuda")


def test_names_of_launches(monkeypatch):
    """On the first machine all has to agree; the others don't know its processes, so there the ID has to do."""
    assert utils.launch() is None
    monkeypatch.setattr("utils.dist.is_torchelastic_launched", lambda: True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    name = utils.launch()
    assert name.startswith("7: ") and utils.is_launch(name)
    assert not utils.is_launch(None) and not utils.is_launch(name + "0") and not utils.is_launch("8: x")
    monkeypatch.setenv("GROUP_RANK", "1")
    assert utils.is_launch(name + "0") and not utils.is_launch("8: x") and not utils.is_launch(None)
