"""The device of a run, its precision, random seeds, and memory."""

import ctypes
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from system.processes import join_processes, local_rank, max_over_processes
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
    if name == "cuda" and dist.is_torchelastic_launched():
        if int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():  # every process raises this
            count = torch.cuda.device_count()
            raise UserError(f"--nproc_per_node: more than the {count} GPUs of this machine; use at most {count}")
        torch.cuda.set_device(local_rank())
        return torch.device("cuda", local_rank())
    return torch.device(name)


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed torch on every device. With `deterministic`, allow only kernels that give the same result at every run."""
    torch.manual_seed(seed)
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
    """

    device_type: str
    dtype: torch.dtype | None
    scaler: torch.amp.GradScaler

    @property
    def name(self) -> str:
        """Return float32, bfloat16 or float16."""
        return str(self.dtype or torch.float32).removeprefix("torch.")

    def autocast(self) -> torch.autocast:
        """Return the context for forward passes."""
        return torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None)


def _is_bf16_fast(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # PyTorch has no public name for it
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and has_amx()


def choose_precision(amp: str, device: torch.device) -> Precision:
    """Return the precision of `--amp`: "auto" is bf16 where that is fast, else off. Raises UserError for fp16 on a CPU.

    bf16 is fast on GPUs that have it and on CPUs with AMX; on other CPUs `auto` keeps float32.
    """
    if amp == "fp16" and device.type != "cuda":
        raise UserError(f"--amp: fp16 needs a CUDA device, this run is on {device.type}; use --amp bf16 or off, "
                        "or resume an fp16 run on CUDA")  # fmt: skip
    if amp == "auto":
        amp = "bf16" if _is_bf16_fast(device) else "off"
    dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    return Precision(device.type, dtype, torch.amp.GradScaler(device.type, enabled=amp == "fp16"))


def set_up(options: "CommonOptions") -> tuple[torch.device, Precision]:
    """Choose device and precision, join the other processes, and give all of them the same seed.

    Args:
        options: device, amp, batch_size, seed, deterministic.

    Raises:
        UserError: a device or precision that is not available, or a batch that cannot be shared.
    """
    chosen = choose_device(options.device)
    precision = choose_precision(options.amp, chosen)
    join_processes(chosen, options.batch_size)
    lacks_bf16 = int(precision.dtype is None)
    if options.amp == "auto" and max_over_processes(lacks_bf16, chosen):  # one process without bf16 decides for all
        precision = choose_precision("off", chosen)
    seed_everything(options.seed, options.deterministic)
    tune_malloc()
    return chosen, precision
