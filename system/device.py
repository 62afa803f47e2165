"""The device of a run, its precision, random seeds, and memory."""

import ctypes
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from system.processes import is_launched, join_processes, local_rank, max_over_processes
from utils import UserError

if TYPE_CHECKING:
    from options.common import CommonOptions

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def choose_device(name: str) -> torch.device:
    """Return the device of `--device`: "auto" is CUDA, else MPS, else CPU. Raises UserError if it is not available."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_there in available.items() if is_there)
    if not available[name]:
        raise UserError(f"--device: {name} is not available on this machine; use --device auto")
    if name == "cuda" and is_launched():
        if int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():  # every process raises this
            count = torch.cuda.device_count()
            raise UserError(f"--nproc_per_node: more than the {count} GPUs of this machine; use at most {count}")
        torch.cuda.set_device(local_rank())
        return torch.device("cuda", local_rank())
    return torch.device(name)


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed torch on every device. With `deterministic`, allow only kernels that give the same result at every run."""
    torch.manual_seed(seed)
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # this imports torch.compile: half a start
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it before its first use
    # Denormal numbers (below 1e-38) take a CPU a hundred times as long as others and are not needed here. NumPy tests
    # once whether they exist, and it must do so before they are switched off: later it would print a warning.
    np.finfo(np.float32), np.finfo(np.float64)
    torch.set_flush_denormal(True)


def tune_malloc() -> None:
    """Tell glibc's malloc to keep freed memory instead of returning it to the system.

    By default it returns every large tensor at once and takes new pages for the next one: 10,000 page faults in a
    training step of 64x64 images, up to a third of its time. The peak of the memory stays the same.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl lacks it
    if mallopt is not None:
        if not mallopt(_M_MMAP_THRESHOLD, 2**30):
            mallopt(_M_MMAP_THRESHOLD, 2**25)  # the maximum in older versions of glibc
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


class Precision(NamedTuple):
    """Mixed precision of a training step.

    Attributes:
        device_type: of torch.autocast.
        dtype: bfloat16 or float16 inside autocast, or None for float32 throughout.
        scaler: scales fp16 gradients; does nothing for other types.
        reason: why this precision, in words for the user.
    """

    device_type: str
    dtype: torch.dtype | None
    scaler: torch.amp.GradScaler
    reason: str = ""

    @property
    def name(self) -> str:
        """Return float32, bfloat16 or float16."""
        return str(self.dtype or torch.float32).removeprefix("torch.")

    def autocast(self) -> torch.autocast:
        """Return the context for forward passes."""
        return torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None)


def _has_avx512_bf16() -> bool:
    """Whether the CPU has AVX512_BF16; a CPU with AMX has it, too."""
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()  # the name in older versions of PyTorch


def _is_bf16_fast(device: torch.device) -> tuple[bool, str]:
    """Return whether bf16 is faster than float32 on a device, and why, in words for the user.

    Other CPUs may compute in bf16, too, but oneDNN has no fast kernels for the gradients of their convolutions: on ARM
    for all gradients, and with AVX_NE_CONVERT for the gradients of the weights.
    """
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return is_fast, "the GPU has bf16" if is_fast else "the GPU lacks bf16"
    if device.type == "cpu" and _has_avx512_bf16():
        is_fast = torch.backends.mkldnn.is_available()
        return is_fast, "the CPU has AVX512_BF16" if is_fast else "this PyTorch lacks oneDNN"
    return False, "the CPU lacks AVX512_BF16" if device.type == "cpu" else "the device is not a CPU or CUDA"


def choose_precision(amp: str, device: torch.device) -> Precision:
    """Return the precision of `--amp`: "auto" is bf16 where that is fast, else off. Raises UserError for fp16 on a CPU.

    bf16 is fast on GPUs that have it and on CPUs with AVX512_BF16; on other CPUs `auto` keeps float32.
    """
    if amp == "fp16" and device.type != "cuda":
        raise UserError(f"--amp: fp16 needs a CUDA device, this run is on {device.type}; use --amp bf16 or off, "
                        "or resume an fp16 run on CUDA")  # fmt: skip
    reason = f"--amp {amp}"
    if amp == "auto":
        is_fast, why = _is_bf16_fast(device)
        amp, reason = "bf16" if is_fast else "off", f"--amp auto: {why}"
    dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    return Precision(device.type, dtype, torch.amp.GradScaler(device.type, enabled=amp == "fp16"), reason)


def set_up(options: "CommonOptions") -> tuple[torch.device, Precision]:
    """Choose device and precision, join the other processes, and give all of them the same seed.

    Args:
        options: device, amp, batch_size, seed, deterministic.

    Raises:
        UserError: a device or precision that is not available, or a batch that cannot be shared.
    """
    chosen = choose_device(options.device)
    precision = choose_precision(options.amp, chosen)
    if options.resume is not None and options.amp != "auto":
        precision = precision._replace(reason="the resumed run has it")  # `auto` that chose float32 stays float32
    join_processes(chosen, options.batch_size)
    lacks_bf16 = int(precision.dtype is None)
    if options.amp == "auto" and max_over_processes(lacks_bf16, chosen) > lacks_bf16:  # another decides for all
        precision = choose_precision("off", chosen)._replace(reason="--amp auto: another process lacks bf16")
    seed_everything(options.seed, options.deterministic)
    tune_malloc()
    return chosen, precision
