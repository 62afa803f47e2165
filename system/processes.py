"""Several processes that share each batch, as torchrun starts them. With one process nothing here does anything."""

import datetime
import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from utils import UserError

if TYPE_CHECKING:  # torch takes seconds to import, and report.py does not need it
    import torch
    from torch import Tensor

Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ["RANK"]) if is_launched() else 0


def local_rank() -> int:
    """Return the number of this process on its machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if is_launched() else 0


def is_joined() -> bool:
    """Whether this process has joined others, as `join_processes` does. Does not import torch to find out."""
    dist = sys.modules.get("torch.distributed")
    return dist is not None and dist.is_initialized()


def count_processes() -> int:
    """Return how many processes share each batch."""
    return sys.modules["torch.distributed"].get_world_size() if is_joined() else 1


def restarts() -> int:
    """Return how often torchrun has restarted the processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) if is_launched() else 0


def describe_launch() -> str:
    """Return the torchrun command that started the processes, as far as environment variables tell it."""
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = count_processes() // local
    return "torchrun " + (f"--nnodes={nodes} --rdzv... " if nodes > 1 else "") + f"--nproc_per_node={local}"


def join_processes(device: "torch.device", batch_size: int) -> None:
    """Initialize the process group when launched by torchrun. Raises UserError if a batch cannot be shared evenly."""
    count = int(os.environ["WORLD_SIZE"]) if is_launched() else 1
    if batch_size % count:
        raise UserError(f"--batch_size: {batch_size} images cannot be shared by {count} processes; use a multiple")
    if count > 1 and not is_joined():
        import torch.distributed as dist

        hour = datetime.timedelta(hours=1)  # one process may wait while another decodes all images
        store, number, _ = next(dist.rendezvous("env://", timeout=hour))
        store = dist.PrefixStore(f"start {restarts()}", store)  # otherwise torch 2.15 finds processes that have ended
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=hour)


def leave_processes() -> None:
    """End the process group, if there is one."""
    if is_joined():
        sys.modules["torch.distributed"].destroy_process_group()


def main_process_only(function: Function) -> Function:
    """Decorate a function that writes: processes above rank 0 skip it, and it returns None there."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) if rank() == 0 else None

    return wrapped  # type: ignore[return-value]


def local_shard(batch: "Tensor") -> "Tensor":
    """Return this process's part (B / processes, ...) of a batch (B, ...) that all processes have."""
    share = len(batch) // count_processes()
    return batch[rank() * share : (rank() + 1) * share]


def draw_shard(draw: Callable[[int], "Tensor"], size: int) -> "Tensor":
    """Return this process's part (size, ...) of random draws for the whole batch, which all processes make alike.

    Args:
        draw: number of images in the whole batch -> draws (B, ...).
        size: number of images in the part.
    """
    return local_shard(draw(size * count_processes()))


def gather_batch(shard: "Tensor") -> "Tensor":
    """Return the whole batch (B, ...) from the parts of all processes. No gradient flows through."""
    if count_processes() == 1:
        return shard
    import torch

    shards = [torch.empty_like(shard, memory_format=torch.contiguous_format) for _ in range(count_processes())]
    torch.distributed.all_gather(shards, shard.detach().contiguous())
    return torch.cat(shards)


def average_over_processes(tensors: "list[Tensor]") -> None:
    """Replace each tensor by its mean over all processes."""
    if count_processes() == 1 or not tensors:
        return
    import torch

    together = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(together)
    together /= count_processes()
    for tensor, mean in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def max_over_processes(number: int, device: "torch.device") -> int:
    """Return the maximum of `number` over all processes."""
    if count_processes() == 1:
        return number
    import torch

    tensor = torch.tensor(number, device=device)
    torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
    return int(tensor.item())


def broadcast(value: Any) -> Any:
    """Broadcast process 0's value to all processes."""
    if count_processes() == 1:
        return value
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def local_main_first(make: Callable[[], Result]) -> Result:
    """Call `make` first in one process per machine, then in the others, so that they find the files it wrote."""
    if count_processes() == 1:
        return make()
    import torch.distributed as dist

    made = make() if local_rank() == 0 else None
    dist.barrier()
    return make() if made is None else made
