"""Small things that every other file may use: mistakes and exit codes, processes, device, precision, files, grids."""

import ctypes
import datetime
import errno
import io
import json
import os
import platform
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

try:
    from torchvision.utils import make_grid
except (ImportError, RuntimeError, OSError) as error:  # the compiled parts of the two refuse each other
    sys.stderr.write(
        f"torchvision does not load beside torch {torch.__version__} ({type(error).__name__}); install a matching "
        "pair: pip install --force-reinstall -r requirements.txt\n"
    )
    raise SystemExit(2) from None


Item = TypeVar("Item")
Result = TypeVar("Result")
PLAIN_SECONDS = 10.0  # without a terminal: time between two lines of progress
_LESS_MEMORY = "lower --batch_size, --image_size, --cache_gb or the width of the networks"
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Control characters, line separators, what turns the direction of writing, and the halves of broken text.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


class UserError(Exception):
    """A mistake or a misfortune that the user can mend. Its message is one line: what, the value found, the remedy."""


class NonFiniteError(Exception):
    """Training left the finite numbers. Its message names the loss and the iteration.

    Attributes:
        step: the iteration, counted from 1.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


def printable(text: str) -> str:
    """Return a text that may hold names of files so that it stays one line, and does nothing to a terminal.

    Characters that would, and bytes of a name that are no text, become escapes such as \\n, \\x1b and \\udcff.
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def run_main(main: Callable[[], int], prog: str) -> int:
    """Call `main` and return the exit code: its own, 2 after a UserError, 3 after NonFiniteError, 130 after Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal can't show
    try:
        code = main()
        if dist.is_initialized():
            dist.destroy_process_group()
        return code
    except UserError as error:
        if local_rank() == 0 or dist.is_initialized():  # before they have met, all make the same mistake
            who = f" in process {rank()}" if rank() else ""
            sys.stderr.write(f"{prog}: error{who}: {printable(' '.join(str(error).split()))}\n")
        return 2
    except NonFiniteError as error:
        if local_rank() == 0:
            sys.stderr.write(f"{prog}: stopped: {error}\n")
        return 3
    except OSError as error:  # a full disk, a missing permission: nothing that a traceback would explain better
        name = f"{error.filename}: " if error.filename else ""
        text = printable(f"{name}{error.strerror or error}")
        sys.stderr.write(f"{prog}: error: {text}; mend it and use --resume or start again\n")
        return 2
    except MemoryError as error:  # Python's, NumPy's and Pillow's
        reason = f" ({' '.join(str(error).split())})" if str(error) else ""
        sys.stderr.write(f"{prog}: error: out of memory{reason}; {_LESS_MEMORY}\n")
        return 2
    except torch.OutOfMemoryError as error:
        reason = ". ".join(str(error).split(". ")[:2])  # that, and how much was asked
        sys.stderr.write(f"{prog}: error: {reason}; {_LESS_MEMORY}\n")
        return 2
    except RuntimeError as error:
        if dist.is_initialized() and _is_lost_connection(error):
            sys.stderr.write(
                f"{prog}: process {dist.get_rank()} lost the others: one of them has ended, and its message says why; "
                "go on from the newest checkpoint with --resume\n"
            )
            return 1
        if "can't allocate memory" in str(error):  # what a CPU says
            asked = str(error).partition("you tried to allocate ")[2].partition(" ")[0]
            sys.stderr.write(f"{prog}: error: out of memory, {asked} bytes were asked for; {_LESS_MEMORY}\n")
            return 2
        if "Storage size calculation overflowed" in str(error):  # more than any memory has
            sys.stderr.write(f"{prog}: error: out of memory; {_LESS_MEMORY}\n")
            return 2
        if "deterministic" not in str(error):
            raise
        sys.stderr.write(f"{prog}: error: {str(error).split('. ')[0]}; leave --deterministic out\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted\n")
        return 130


# ----------------------------------------------------------------------------------------------------------------------
# Several processes, as torchrun starts them. One process is the special case that does nothing here.


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def local_rank() -> int:
    """Return the number of this process on its machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if dist.is_torchelastic_launched() else 0


def count_processes() -> int:
    """Return how many processes share each batch."""
    return dist.get_world_size() if dist.is_initialized() else 1


def describe_launch() -> str:
    """Return how torchrun was called, as far as it says."""
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = count_processes() // local
    return "torchrun " + (f"--nnodes={nodes} --rdzv... " if nodes > 1 else "") + f"--nproc_per_node={local}"


def join_processes(device: torch.device, batch_size: int) -> None:
    """Meet the other processes, if torchrun started several. Raises UserError if they can't share a batch evenly."""
    count = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
    if batch_size % count:
        raise UserError(f"--batch_size: {batch_size} images can't be shared by {count} processes; use a multiple")
    if count > 1 and not dist.is_initialized():
        hour = datetime.timedelta(hours=1)  # one may have to wait while another decodes all images
        store, number, _ = next(dist.rendezvous("env://", timeout=hour))
        store = dist.PrefixStore(f"start {restarts()}", store)  # else they find those who died, in torch 2.15
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=hour)


def my_part(batch: Tensor) -> Tensor:
    """Return what this process works on of a batch (B, ...) that all have: (B / processes, ...)."""
    share = len(batch) // count_processes()
    return batch[rank() * share : (rank() + 1) * share]


def whole_batch(part: Tensor) -> Tensor:
    """Return the batch (B, ...) whose parts (B / processes, ...) the processes have. No gradient flows through."""
    if count_processes() == 1:
        return part
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(count_processes())]
    dist.all_gather(parts, part.detach().contiguous())
    return torch.cat(parts)


def average_over_processes(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over all processes."""
    if count_processes() == 1 or not tensors:
        return
    together = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(together)
    together /= count_processes()
    for tensor, mean in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def agree(number: int, device: torch.device) -> int:
    """Return the largest of the numbers that the processes name."""
    if count_processes() == 1:
        return number
    tensor = torch.tensor(number, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor.item())


def launch() -> str | None:
    """Return a name for the torchrun that started this process, which stays when it starts all anew; else None."""
    if not dist.is_torchelastic_launched():
        return None
    agent = Path(f"/proc/{os.getppid()}")
    since = f" since {agent.stat().st_mtime:.0f}" if agent.exists() else ""  # numbers of processes come again
    return f"{os.environ.get('TORCHELASTIC_RUN_ID')}: {platform.node()} {os.getppid()}{since}"


def is_launch(name: str | None) -> bool:
    """Whether a process that recorded this name of its launch is of ours. On other machines the ID has to do."""
    if os.environ.get("GROUP_RANK", "0") == "0":
        return name == launch()
    return name is not None and name.startswith(f"{os.environ.get('TORCHELASTIC_RUN_ID')}: ")


def restarts() -> int:
    """Return how often torchrun has started all processes anew."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) if dist.is_torchelastic_launched() else 0


def tell_all(value: Any) -> Any:
    """Return what process 0 gave, in every process."""
    if count_processes() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def first_locally(make: Callable[[], Result]) -> Result:
    """Return what `make` makes in each process, after the first one on each machine has: it may leave files."""
    if count_processes() == 1:
        return make()
    made = make() if local_rank() == 0 else None
    dist.barrier()
    return make() if made is None else made


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective operation failed because another process has gone."""
    text = str(error)
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "Connection", "NCCL", "closed"))


# ----------------------------------------------------------------------------------------------------------------------
# Device, seeds, precision


def choose_device(name: str) -> torch.device:
    """Return the device of `--device`: "auto" is CUDA, else MPS, else CPU. Raises UserError if it isn't there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_there in available.items() if is_there)
    if not available[name]:
        raise UserError(f"--device: {name} is not available on this machine; use --device auto")
    if name == "cuda" and dist.is_torchelastic_launched():
        if int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():  # as all of them find
            raise UserError(f"--nproc_per_node: more than the {torch.cuda.device_count()} GPUs here; use as many")
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
    # Numbers below 1e-38 cost a CPU a hundred times the time of others and mean nothing here. NumPy, which looks for
    # them once, is asked to look first: it would warn that there are none.
    np.finfo(np.float32), np.finfo(np.float64)
    torch.set_flush_denormal(True)


def keep_freed_memory() -> None:
    """Have the C library keep the memory that is freed, as far as it is glibc's.

    It would return every large tensor to the system at once and take pages anew for the next one: 10,000 page faults
    in a training step of 64x64 images, up to a third of its time. The peak of the memory stays the same.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        if not mallopt(_M_MMAP_THRESHOLD, 2**30):
            mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most that older ones take
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def name_trouble(path: Path, error: OSError, size: int) -> Exception:
    """Return an error that says which file could not be written; if it had no room, how many bytes it needs."""
    if error.errno not in _NO_ROOM:
        return OSError(error.errno, error.strerror or str(error), str(path))
    free = shutil.disk_usage(path.parent).free
    return UserError(
        f"{path}: {error.strerror}: it needs {size / 1e6:.3g} MB, and {free / 1e6:.3g} MB are free; make room (a "
        "training then goes on with --resume)"
    )


def sync(path: Path) -> None:
    """Have what a file holds, or the names in a folder, survive a loss of power.

    A new file is only safe once its name is, too.
    """
    if os.name != "posix" and path.is_dir():
        return
    try:
        opened = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_SYNC):  # some file systems have none for folders
            raise


def make_folder(folder: Path) -> None:
    """Make a folder and those that it lies in, so that they survive a loss of power. One that is there may stay."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def few(lines: list[str]) -> str:
    """Return the first three of some lines, and how many more there are."""
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")


def append(path: Path, text: str) -> None:
    """Add text to the end of a file, which is made if it isn't there. Raises UserError if there is no room for it."""
    is_new = not path.exists()
    try:
        with open(path, "a", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(text)
    except OSError as error:
        raise name_trouble(path, error, len(text)) from None
    if is_new:
        sync(path.parent)


def write_whole(path: Path, write: Callable[[BinaryIO], Any], size: int | None = None) -> None:
    """Write a file whole or not at all, even if the power fails: temporary file, sync, rename, sync of the folder.

    Args:
        size: in bytes, for messages, if it is known before.

    Raises:
        UserError: there is no room for it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            size = size or file.tell()
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        written = temporary.stat().st_size if temporary.exists() else 0
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise name_trouble(path, error, max(size or 0, written)) from None
        raise
    sync(path.parent)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all, as `write_whole` does."""
    write_whole(path, lambda file: file.write(content), len(content))


def write_json(path: Path, content: Any) -> None:
    """Write plain types as indented JSON, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # A file name may hold bytes that are no text: JSON has an escape for those.
    write_bytes(path, text.encode(errors="backslashreplace"))


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
    """Return the precision of `--amp`: "auto" is bf16 where that is fast, else off. fp16 off CUDA raises UserError.

    Fast it is on GPUs that have it and on CPUs with matrix units for it (AMX); on other CPUs it is slower than float32.
    """
    if amp == "fp16" and device.type != "cuda":
        raise UserError(f"--amp: fp16 needs a CUDA device, this run is on {device.type}; use --amp bf16 or off, "
                        "or resume an fp16 run on CUDA")  # fmt: skip
    if amp == "auto":
        amp = "bf16" if _is_bf16_fast(device) else "off"
    dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    return Precision(device.type, dtype, torch.amp.GradScaler(device.type, enabled=amp == "fp16"))


def set_up(options: Any) -> tuple[torch.device, Precision]:
    """Choose device and precision, meet the other processes, and seed all alike.

    Args:
        options: device, amp, batch_size, seed, deterministic.

    Raises:
        UserError: what isn't available, or a batch that can't be shared.
    """
    chosen = choose_device(options.device)
    precision = choose_precision(options.amp, chosen)
    join_processes(chosen, options.batch_size)
    if options.amp == "auto" and agree(int(precision.dtype is None), chosen):  # one has no bf16, so nobody takes it
        precision = choose_precision("off", chosen)
    seed_everything(options.seed, options.deterministic)
    keep_freed_memory()
    return chosen, precision


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Take one step of `optimizer` down the gradient of `loss` (a scalar).

    Gradients are computed for this optimizer's parameters alone: a network that the loss merely passes through costs
    no weight gradients and needs no freezing. Of several processes each has its part of the batch, and the gradient is
    the mean of theirs.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    scaler.scale(loss).backward(inputs=parameters)
    average_over_processes([parameter.grad for parameter in parameters if parameter.grad is not None])
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)


def count_parameters(network: nn.Module) -> int:
    """Return the number of trained weights."""
    return sum(parameter.numel() for parameter in network.parameters())


def grid_columns(image_size: int) -> int:
    """Return how many columns, and rows, make a grid of about 500 to 1,000 pixels: 8, or 4 at 256x256."""
    return 8 if image_size <= 128 else 4


def from_uint8(pixels: Tensor) -> Tensor:
    """[0, 255] -> [-1, 1], float32."""
    return pixels.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1], as a network may exceed it -> [0, 255], rounded."""
    return (images.detach().float().clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8)


def image_grid(images: Tensor, columns: int, padding: int = 2) -> Tensor:
    """Lay images (N, 3, H, W) in [-1, 1] out in rows of `columns`, as one uint8 image (3, H', W') on the CPU.

    Args:
        padding: white pixels between the images and around them.
    """
    return make_grid(to_uint8(images).cpu(), nrow=columns, padding=padding, pad_value=255)  # (3, H', W')


def progress(items: Iterable[Item], title: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items, and show how many there have been, how fast, and the time left.

    Where stderr is no terminal, as a line on stdout now and then.
    """
    if total is None:
        total = len(items) if isinstance(items, Sized) else None
    if sys.stderr.isatty():
        yield from tqdm(items, title, total, unit=f" {unit}", leave=False)
        return
    started = said = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said >= PLAIN_SECONDS:
            said, rate = now, done / (now - started)
            left = f" of {total}, {tqdm.format_interval((total - done) / rate)} left" if total else ""
            print(f"{title}: {done}{left}, {rate:.1f} {unit}/s", flush=True)
