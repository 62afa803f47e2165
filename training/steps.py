"""Single training steps: passes, gradients, and whole steps that are captured as CUDA graphs and replayed."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from system.processes import average_over_processes, count_processes
from training.schedule import is_penalty_due
from training.state import TrainingState
from training.threads import SparingThreads
from utils import LOG, UserError, one_line

if TYPE_CHECKING:
    from options.common import CommonOptions

Losses = dict[str, Tensor]


def forward_together(network: nn.Module, batches: Sequence[Tensor], norm: str) -> list[Tensor]:
    """Return the network's result for each batch. The batches pass together, but one by one if `norm` is batch norm.

    On a CPU one pass of 32 images takes three quarters of the time of two passes of 16.
    """
    if norm == "batch" or len(batches) == 1:
        return [network(images) for images in batches]
    return list(network(torch.cat(list(batches))).split([len(images) for images in batches]))


def backward_and_step(loss: Tensor, optimizer: Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Take one optimizer step on a scalar loss.

    Gradients are computed for this optimizer's parameters only, so a network that the loss merely passes through needs
    no freezing. With several processes, gradients are averaged over their parts of the batch.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    scaler.scale(loss).backward(inputs=parameters)
    average_over_processes([parameter.grad for parameter in parameters if parameter.grad is not None])
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)


def graph_obstacle(state: TrainingState, data: dict[str, Any], options: "CommonOptions") -> str | None:
    """Return why the steps of a run on CUDA are not replayed as graphs, None if they are."""
    obstacles = {
        "images are streamed from disk": not all(images.is_cached for images in data.values()),
        "several processes share each batch": count_processes() > 1,
        "fp16 scales its gradients": state.precision.scaler.is_enabled(),
        "--compile": options.compile,
        "--no-cuda_graph": not options.cuda_graph,
    }
    return next((reason for reason, holds in obstacles.items() if holds), None)


def capture(compute: Callable[[], Losses], stream: torch.cuda.Stream) -> tuple[Callable[[], None], Losses]:
    """Capture the kernels of `compute` as a CUDA graph, without running them.

    Args:
        compute: does the same work at every call, on tensors that stay in place.
        stream: on which `compute` has been called before.

    Returns:
        A function that runs the kernels, and the tensors in which it leaves the result.
    """
    graph = torch.cuda.CUDAGraph()  # it knows the default random generator and advances it at every replay
    with torch.cuda.graph(graph, stream=stream):
        losses = compute()
    return graph.replay, losses


class StepRunner:
    """Runs training steps: batch, update of the networks, moving averages.

    On a CPU fewer threads work while other programs use the cores, except with --threads and --deterministic. With
    --compile each number of threads would be compiled again.

    On CUDA a step of small networks is hundreds of short kernels that take longer to launch than to run. After a
    warm-up, each kind of step (with and without gradient penalties) is captured once as a CUDA graph and then replayed:
    the same kernels on the same memory.
    """

    WARM_UP = 11  # steps of a kind before it is captured, in which libraries select their kernels

    def __init__(
        self, state: TrainingState, data: dict[str, Any], options: "CommonOptions", train_step: Callable[..., Losses]
    ):
        self.state, self.data, self.options, self.train_step = state, data, options, train_step
        self.graphs: dict[bool, tuple[Callable[[], None], Losses]] = {}
        self.steps_taken = {False: 0, True: 0}  # by kind: with gradient penalties or without
        is_fixed = options.threads > 0 or options.deterministic or options.compile
        is_fixed |= state.device.type != "cpu" or count_processes() > 1
        self.threads = SparingThreads(options.threads, is_fixed)
        self.stream = torch.cuda.Stream(state.device) if state.device.type == "cuda" else None
        if self.stream is not None and (reason := graph_obstacle(state, data, options)) is not None:
            LOG.info("No CUDA graph: %s", reason)
            self.stream = None

    def run(self, lr: float) -> None:
        """Take one step."""
        self.state.set_learning_rate(lr)
        for images in self.data.values():
            images.select(self.state.step)
        with_penalty = is_penalty_due(self.state.step, self.options)
        with self.threads.watch():
            losses = self._compute(with_penalty) if self.stream is None else self._replay(with_penalty)
        self.state.add_losses(losses)
        self.state.step += 1
        self.steps_taken[with_penalty] += 1

    def _compute(self, with_penalty: bool) -> Losses:
        """Do the work of a step on the selected images; return its losses."""
        batch = {domain: images.augmented() for domain, images in self.data.items()}
        losses = self.train_step(self.state, batch, self.options, with_penalty)
        self.state.update_ema(self.options.ema_decay)
        return losses

    def _compute_on_capture_stream(self, with_penalty: bool) -> Losses:
        """Do the work of a step on the capture stream, as PyTorch requires before capturing."""
        assert self.stream is not None
        current = torch.cuda.current_stream(self.state.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            losses = self._compute(with_penalty)
        current.wait_stream(self.stream)
        return losses

    def _replay(self, with_penalty: bool) -> Losses:
        """Replay the captured step of this kind; capture it first when due; before that, compute it."""
        assert self.stream is not None
        is_due = self.steps_taken[with_penalty] >= self.WARM_UP
        is_due = is_due and all(pool.is_full for pool in self.state.pools.values())
        if with_penalty not in self.graphs:
            if not is_due:
                return self._compute_on_capture_stream(with_penalty)
            try:
                self.graphs[with_penalty] = capture(lambda: self._compute(with_penalty), self.stream)
            except RuntimeError as error:  # the random generator is left in the middle of the capture: no way back
                reason = one_line(error).split(". ")[0]
                raise UserError(f"--cuda_graph: a step cannot be captured ({reason}); use --no-cuda_graph") from None
        replay, losses = self.graphs[with_penalty]
        replay()
        return {name: value.clone() for name, value in losses.items()}  # the next replay overwrites them
