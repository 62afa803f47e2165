"""Small things that every other file may use: mistakes and exit codes, device, seeds, precision, files, grids."""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

try:
    from torchvision.utils import make_grid
except (ImportError, RuntimeError, OSError) as error:  # the compiled parts of the two refuse each other
    sys.stderr.write(
        f"torchvision does not load beside torch {torch.__version__} ({type(error).__name__}); install a matching "
        "pair: pip install --force-reinstall -r requirements.txt\n"
    )
    raise SystemExit(2) from None


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class UserError(Exception):
    """A mistake or a misfortune that the user can mend. Its message is one line: what, the value found, the remedy."""


class NonFiniteError(Exception):
    """Training left the finite numbers. Its message names the loss and the iteration."""


def run_main(main: Callable[[], int], prog: str) -> int:
    """Call `main` and return the exit code: its own, 2 after a UserError, 3 after NonFiniteError, 130 after Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return main()
    except UserError as error:
        sys.stderr.write(f"{prog}: error: {' '.join(str(error).split())}\n")
        return 2
    except NonFiniteError as error:
        sys.stderr.write(f"{prog}: stopped: {error}\n")
        return 3
    except OSError as error:  # a full disk, a missing permission: nothing that a traceback would explain better
        name = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"{prog}: error: {name}{error.strerror or error}; mend it and use --resume or start again\n")
        return 2
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        sys.stderr.write(
            f"{prog}: error: {reason}; lower --batch_size, --image_size, --cache_gb or the width of the networks\n"
        )
        return 2
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        sys.stderr.write(f"{prog}: error: {str(error).split('. ')[0]}; leave --deterministic out\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted\n")
        return 130


def choose_device(name: str) -> torch.device:
    """Return the device of `--device`: "auto" is CUDA, else MPS, else CPU. Raises UserError if it isn't there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_there in available.items() if is_there)
    if not available[name]:
        raise UserError(f"--device: {name} is not available on this machine; use --device auto")
    return torch.device(name)


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed torch on every device. With `deterministic`, allow only kernels that give the same result at every run."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it before its first use
    # Numbers below 1e-38 cost a CPU a hundred times the time of others and mean nothing here. NumPy, which looks for
    # them once, is asked to look first: it would warn that there are none.
    np.finfo(np.float32), np.finfo(np.float64)
    torch.set_flush_denormal(True)


def keep_freed_memory() -> None:
    """Have the C library keep the memory that is freed, as far as it is glibc's.

    It would return every large tensor to the system at once and take pages anew for the next one: 10,000 page faults
    in a training step of 64x64 images, a tenth to a third of its time. The peak of the memory stays the same.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file whole or not at all, even if the power fails: temporary file, sync, rename, sync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name is safe once its folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, content: Any) -> None:
    """Write plain types as indented JSON, whole or not at all."""
    write_whole(path, lambda file: file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()))


class Precision(NamedTuple):
    """Mixed precision of a training step.

    Attributes:
        device_type: of torch.autocast.
        dtype: bfloat16 or float16 inside autocast, or None for float32 throughout.
        scaler: keeps fp16 gradients in range; does nothing for other types.
    """

    device_type: str
    dtype: torch.dtype | None
    scaler: torch.amp.GradScaler

    def autocast(self) -> torch.autocast:
        """Return the context for forward passes."""
        return torch.autocast(self.device_type, self.dtype, enabled=self.dtype is not None)


def choose_precision(amp: str, device: torch.device) -> Precision:
    """Return the precision of `--amp`: "auto" is bf16 on a GPU that has it, else off. fp16 off CUDA raises UserError.

    bf16 on a CPU without AMX is slower than fp32, and with it the results depend on the kind of CPU: not by itself.
    """
    if amp == "fp16" and device.type != "cuda":
        raise UserError(f"--amp: fp16 needs a CUDA device, this run is on {device.type}; use --amp bf16 or off, "
                        "or resume an fp16 run on CUDA")  # fmt: skip
    if amp == "auto":
        amp = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "off"
    dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    return Precision(device.type, dtype, torch.amp.GradScaler(device.type, enabled=amp == "fp16"))


def set_up(device: str, amp: str, seed: int, deterministic: bool) -> tuple[torch.device, Precision]:
    """Choose device and precision by their flags and seed everything. Raises UserError for what isn't available."""
    chosen = choose_device(device)
    precision = choose_precision(amp, chosen)
    seed_everything(seed, deterministic)
    keep_freed_memory()
    return chosen, precision


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Take one step of `optimizer` down the gradient of `loss` (a scalar).

    Gradients are computed for this optimizer's parameters alone: a network that the loss merely passes through costs
    no weight gradients and needs no freezing.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    scaler.scale(loss).backward(inputs=parameters)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)


def count_parameters(network: nn.Module) -> int:
    """Return the number of trained weights."""
    return sum(parameter.numel() for parameter in network.parameters())


def grid_columns(image_size: int) -> int:
    """Return how many columns, and rows, make a grid of about 500 to 1,000 pixels: 8, or 4 at 256x256."""
    return 8 if image_size <= 128 else 4


def image_grid(images: Tensor, columns: int, padding: int = 2) -> Tensor:
    """Lay images (N, 3, H, W) in [-1, 1] out in rows of `columns`, as one uint8 image (3, H', W') on the CPU.

    Args:
        padding: white pixels between the images and around them.
    """
    images = images.detach().float().cpu()
    grid = make_grid(images, nrow=columns, padding=padding, normalize=True, value_range=(-1, 1), pad_value=1)
    return grid.mul(255).round().to(torch.uint8)  # (3, H', W')
