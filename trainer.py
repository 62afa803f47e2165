"""The training loop: cadence, learning rate, averaged weights, checkpoints, resumption, signals. It knows no GAN word.

A script gives it images, networks and three functions: the update of a step, the grids to show, and what to warn of.
"""

import copy
import functools
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from runs import BEST, Run, find_differences
from utils import (
    PLAIN_SECONDS,
    NonFiniteError,
    Precision,
    UserError,
    agree,
    average_over_processes,
    count_parameters,
    count_processes,
    describe_launch,
    few,
    grid_columns,
    image_grid,
    rank,
)  # fmt: skip


@dataclass
class State:
    """All that a run carries from one step to the next, and therefore all that a checkpoint holds.

    Attributes:
        networks: name -> network.
        optimizers: name -> optimizer.
        averages: name -> exponential moving average of the network of that name, in eval mode; empty when off.
        precision: of the forward passes, with the gradient scaler of fp16.
        device: of the networks and of `sums`.
        pools: name -> module whose buffers the steps fill.
        step: number of steps taken.
        losses: names of the losses.
        sums: of each loss since the last row of losses.csv, on the device.
        summed: number of steps in `sums`.
        recent: the losses of those steps that this process took, to find the step at fault; not in the checkpoint.
        warned: what was warned of, so that it is said once.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    averages: dict[str, nn.Module]
    precision: Precision
    device: torch.device
    pools: dict[str, nn.Module] = field(default_factory=dict)
    step: int = 0
    losses: list[str] = field(default_factory=list)
    sums: Tensor | None = None
    summed: int = 0
    recent: list[Tensor] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)

    def to_checkpoint(self) -> dict[str, Any]:
        """Return everything as tensors and plain types, with the random generators of this moment.

        Every process has to call it: the sums are the means over all.
        """
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            rng[self.device.type] = torch.get_device_module(self.device).get_rng_state()
        sums = [] if self.sums is None else [self.sums.clone()]
        average_over_processes(sums)
        return {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "ema": {name: network.state_dict() for name, network in self.averages.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.precision.scaler.state_dict(),
            "pools": {name: pool.state_dict() for name, pool in self.pools.items()},
            "warned": list(self.warned),
            "sums": dict(zip(self.losses, sums[0].cpu(), strict=True)) if sums else {},
            "summed": self.summed,
            "rng": rng,
        }

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Become the state that `to_checkpoint` described.

        Raises:
            UserError: it is not of these networks and optimizers, or not finite.
        """
        differences = self._find_differences(checkpoint)
        if differences:
            raise UserError(f"--resume: the checkpoint doesn't fit the options of its run: {few(differences)}")
        try:
            for name, network in self.networks.items():
                network.load_state_dict(checkpoint["networks"][name])
            for name, network in self.averages.items():
                network.load_state_dict(checkpoint["ema"][name])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(checkpoint["optimizers"][name])
                make_capturable(optimizer, self.device)
            for name, pool in self.pools.items():
                pool.load_state_dict(checkpoint["pools"][name])
            if checkpoint["scaler"]:
                self.precision.scaler.load_state_dict(checkpoint["scaler"])
            self.losses = list(checkpoint["sums"])
            self.sums = torch.stack(list(checkpoint["sums"].values())).to(self.device) if self.losses else None
            self.summed, self.step = checkpoint["summed"], checkpoint["step"]
            self.warned = list(checkpoint.get("warned", []))
            torch.set_rng_state(checkpoint["rng"]["cpu"])
            if self.device.type != "cpu" and self.device.type in checkpoint["rng"]:
                torch.get_device_module(self.device).set_rng_state(checkpoint["rng"][self.device.type])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:  # a file of another's making
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--resume: the checkpoint doesn't fit the options of its run ({reason})") from None

    def _find_differences(self, checkpoint: dict[str, Any]) -> list[str]:
        """Return how the networks, moving averages and optimizers of a checkpoint differ from these."""
        lines = []
        for part, networks in (("networks", self.networks), ("ema", self.averages)):
            found = checkpoint.get(part)
            found = found if isinstance(found, dict) else {}
            lines += [f"{part} has {name}" for name in found.keys() - networks.keys()]
            for name, network in networks.items():
                label = name if part == "networks" else f"the average of {name}"
                lines += find_differences(network.state_dict(), found.get(name), label)
        for name, optimizer in self.optimizers.items():
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            moments = {f"{i}": (parameter, parameter) for i, parameter in enumerate(parameters)}
            try:
                state = checkpoint["optimizers"][name]["state"]
                found = {f"{i}": (of["exp_avg"], of["exp_avg_sq"]) for i, of in state.items()}
            except (KeyError, TypeError, AttributeError):
                lines.append(f"the optimizer {name} is missing")
                continue
            for i, which in enumerate(("first", "second")):
                expected, there = ({key: pair[i] for key, pair in one.items()} for one in (moments, found))
                if there or checkpoint.get("step"):  # before the first step there are none
                    lines += find_differences(expected, there, f"the {which} moment of optimizer {name}")
        return lines

    def for_samples(self, name: str) -> nn.Module:
        """Return the network to show: its moving average, else itself."""
        return self.averages.get(name, self.networks[name])

    @torch.no_grad()
    def show(self, name: str, inputs: Tensor) -> Tensor:
        """Return what the network to show makes of `inputs`, in eval mode."""
        network = self.for_samples(name)
        was_training = network.training
        outputs = network.eval()(inputs)
        network.train(was_training)
        return outputs

    def add_losses(self, losses: list[str], values: Tensor) -> None:
        """Add the losses of one step, (number of losses,), to the sums, without waiting for the device."""
        self.losses = losses
        self.sums = values if self.sums is None else self.sums + values
        self.summed += 1
        self.recent.append(values)

    def clear_losses(self) -> None:
        """Begin new sums."""
        self.sums, self.summed, self.recent = None, 0, []

    def mean_losses(self) -> dict[str, float]:
        """Return the mean of each loss since the sums were last cleared. Raises NonFiniteError if one isn't finite.

        Waits for the device, and for the other processes.
        """
        if self.sums is None:
            return {}
        sums = self.sums.clone()
        average_over_processes([sums])
        means = {name: value / self.summed for name, value in zip(self.losses, sums.tolist(), strict=True)}
        if not all(map(math.isfinite, means.values())):
            values = [(name, mean, self.step) for name, mean in means.items()]
            recent = torch.stack(self.recent) if self.recent else torch.empty(0)
            average_over_processes([recent])  # the first trouble may be another process's
            for step, losses in enumerate(reversed(recent)):  # the earliest of all comes to stand first
                named = zip(self.losses, losses.tolist(), strict=True)
                values = [(name, value, self.step - step) for name, value in named] + values
            name, value, step = next(entry for entry in values if not math.isfinite(entry[1]))
            raise NonFiniteError(
                f"the loss {name} became {value} at iteration {step}; no checkpoint was written since. Start a new run "
                "with a lower --lr or --amp off", step,
            )  # fmt: skip
        return means

    def check_finite(self) -> None:
        """Raise NonFiniteError if a loss since the last row of losses.csv, or anything to be saved, isn't finite."""
        self.mean_losses()
        saved = {f"the weights of {name}": network.state_dict() for name, network in self.networks.items()}
        saved |= {f"the averaged weights of {name}": network.state_dict() for name, network in self.averages.items()}
        saved |= {f"the fakes kept of {name}": pool.state_dict() for name, pool in self.pools.items()}
        for name, optimizer in self.optimizers.items():
            states = enumerate(optimizer.state.values())
            saved[f"the moments of optimizer {name}"] = {(i, key): of[key] for i, of in states for key in of}
        for name, content in saved.items():
            tensors = [value for value in content.values() if isinstance(value, Tensor) and value.is_floating_point()]
            if tensors and not torch.stack([tensor.isfinite().all().to(self.device) for tensor in tensors]).all():
                raise NonFiniteError(
                    f"{name} are no longer finite at iteration {self.step}; no checkpoint was written of them. Start "
                    "a new run with a lower --lr or --amp off", self.step,
                )  # fmt: skip


def make_state(
    networks: dict[str, nn.Module],
    groups: dict[str, list[str]],
    averaged: list[str],
    options: Any,
    device: torch.device,
    precision: Precision,
    pools: dict[str, nn.Module] | None = None,
) -> State:
    """Move networks to the device and give them their optimizers and moving averages.

    Args:
        groups: name of an optimizer -> the networks that it updates.
        averaged: networks to keep a moving average of, if options.ema_decay is above 0.
        pools: modules whose buffers the steps fill.
    """
    networks = {name: network.to(device) for name, network in networks.items()}
    averages = {}
    if options.ema_decay > 0:
        averages = {name: copy.deepcopy(networks[name]).eval().requires_grad_(False) for name in averaged}
    if options.compile:
        for network in networks.values():
            network.compile()
    optimizers: dict[str, Optimizer] = {
        group: Adam(
            [parameter for name in names for parameter in networks[name].parameters()],
            lr=options.lr,
            betas=(options.beta1, options.beta2),
            fused=True,
        )
        for group, names in groups.items()
    }
    for optimizer in optimizers.values():
        make_capturable(optimizer, device)
    pools = {name: pool.to(device) for name, pool in (pools or {}).items()}
    return State(networks, optimizers, averages, precision, device, pools)


def make_capturable(optimizer: Optimizer, device: torch.device) -> None:
    """Let a CUDA graph hold the steps of an optimizer: it reads the learning rate from the device. Else do nothing."""
    optimizer._warned_capturable_if_run_uncaptured = True  # the first steps are not, and that is no mistake
    for group in optimizer.param_groups:
        group["capturable"] = device.type == "cuda"
        lr = float(group["lr"])
        group["lr"] = torch.tensor(lr, device=device) if device.type == "cuda" else lr


def set_learning_rate(state: State, lr: float) -> None:
    """Set the learning rate of every optimizer, in place where it lives on the device."""
    for optimizer in state.optimizers.values():
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr


@torch.no_grad()
def update_averages(state: State, decay: float) -> None:
    """Move each average towards its network: average = decay * average + (1 - decay) * network, buffers included."""
    for name, average in state.averages.items():
        network = state.networks[name]
        pairs = list(zip(average.state_dict().values(), network.state_dict().values(), strict=True))
        floats = [(old, new) for old, new in pairs if old.is_floating_point()]
        get_ema_multi_avg_fn(decay)([old for old, _ in floats], [new for _, new in floats], None)
        for old, new in pairs:
            if not old.is_floating_point():  # a counter
                old.copy_(new)


def _constant(progress: float) -> float:
    return 1.0


def _linear(progress: float) -> float:
    """1 for the first half, then down to 0 (Zhu et al. 2017, CycleGAN)."""
    return min(1.0, 2 - 2 * progress)


def _cosine(progress: float) -> float:
    """Half a cosine from 1 down to 0 (Loshchilov & Hutter 2017)."""
    return (1 + math.cos(math.pi * progress)) / 2


# Share of the run that is done, from 0 to 1 -> factor on the learning rate.
LR_POLICIES: dict[str, Callable[[float], float]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
}


# ----------------------------------------------------------------------------------------------------------------------
# Taking steps


def why_no_graph(state: State, data: dict[str, Any], options: Any) -> str | None:
    """Return why the steps of a run on CUDA are not replayed as a graph, or None if they are."""
    reasons = {
        "the images are streamed from disk": not all(images.is_cached for images in data.values()),
        "several processes share the batches": count_processes() > 1,
        "fp16 scales its gradients": state.precision.scaler.is_enabled(),
        "--compile": options.compile,
        "--no-cuda_graph": not options.cuda_graph,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def capture(take: Callable[[], Tensor], stream: torch.cuda.Stream) -> tuple[Callable[[], None], Tensor]:
    """Record what `take` does on the device, without doing it, as a CUDA graph.

    Args:
        take: does the same work at every call, on tensors that stay where they are.
        stream: on which `take` has been called before.

    Returns:
        A function that does the work, and the tensor in which it leaves what `take` returned.
    """
    graph = torch.cuda.CUDAGraph()  # it knows the default random generator and moves it on at every replay
    with torch.cuda.graph(graph, stream=stream):
        values = take()
    return graph.replay, values


class Steps:
    """Takes the steps of a run: data, augmentation, updates of the networks, moving averages.

    On CUDA a step of small networks is hundreds of short kernels, and to start each takes longer than to run it. So
    after a few steps one is recorded, and from then on replayed with one call: the same kernels on the same memory.

    Args:
        say: gets a line if that can't be.
    """

    WARM_UP = 11  # steps before the recording, in which libraries choose their kernels

    def __init__(
        self, state: State, data: dict[str, Any], options: Any, train_step: Callable, say: Callable[[str], None]
    ):
        self.state, self.data, self.options, self.train_step, self.say = state, data, options, train_step, say
        self.losses: list[str] = []
        self.taken = 0
        self.replay: Callable[[], None] | None = None
        self.values: Tensor | None = None  # of the losses, where a replay leaves them
        self.stream = torch.cuda.Stream(state.device) if state.device.type == "cuda" else None
        if self.stream is not None and (reason := why_no_graph(state, data, options)) is not None:
            say(f"No CUDA graph: {reason}")
            self.stream = None

    def take(self, lr: float) -> None:
        """Take one step."""
        set_learning_rate(self.state, lr)
        for images in self.data.values():
            images.choose(self.state.step)
        if self.stream is not None and self.replay is None and self.taken >= self.WARM_UP:
            self._record()
        if self.replay is not None:
            self.replay()
            values = self.values.clone()  # the next replay overwrites them
        elif self.stream is not None:
            values = self._take_aside()
        else:
            values = self._take()
        self.state.add_losses(self.losses, values)
        self.state.step += 1
        self.taken += 1

    def _take(self) -> Tensor:
        """Do the work of a step on the images chosen; return its losses, (number of losses,)."""
        batch = {domain: images.draw() for domain, images in self.data.items()}
        losses = self.train_step(self.state, batch, self.options)
        update_averages(self.state, self.options.ema_decay)
        self.losses = list(losses)
        return torch.stack(list(losses.values()))

    def _take_aside(self) -> Tensor:
        """Do it on the stream of the recording to come, as PyTorch asks for."""
        self.stream.wait_stream(torch.cuda.current_stream(self.state.device))
        with torch.cuda.stream(self.stream):
            values = self._take()
        torch.cuda.current_stream(self.state.device).wait_stream(self.stream)
        return values

    def _record(self) -> None:
        """Record a step, if everything that a step uses is in place."""
        if not all(pool.is_steady for pool in self.state.pools.values()):
            return
        try:
            self.replay, self.values = capture(self._take, self.stream)
        except RuntimeError as error:  # the random generator is left in the middle of a recording: no way on from here
            reason = " ".join(str(error).split(". ")[0].split())
            raise UserError(f"--cuda_graph: a step can't be recorded ({reason}); use --no-cuda_graph") from None


class StopSignals:
    """Within this context, signals that ask the process to end are noted in `received` instead.

    Ctrl-C, SIGTERM, SIGHUP of a terminal that closes, and SIGUSR1, SLURM's warning before it kills. One that is ignored
    stays so: SIGHUP under nohup. A second Ctrl-C raises KeyboardInterrupt at once.
    """

    NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Windows has the first two

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def _note(self, number: int, frame: Any) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number

    def __enter__(self) -> "StopSignals":
        for name in self.NAMES:
            number = getattr(signal, name, None)
            if number is not None and (name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


class Progress:
    """One line that shows iteration, losses, speed and time left; without a terminal a plain line now and then."""

    def __init__(self, run: Run, step: int, total: int):
        self.run, self.first, self.total = run, step, total
        self.is_terminal = sys.stderr.isatty() and rank() == 0
        self.bar = tqdm(
            initial=step, total=total, unit="it", disable=not self.is_terminal, dynamic_ncols=True,
            bar_format="{l_bar}{bar:8}{r_bar}",  # leaves room for the losses
        )  # fmt: skip
        self.started = self.told = time.monotonic()

    def advance(self) -> None:
        """Count one step."""
        try:
            self.bar.update()
        except OSError:  # the terminal was closed
            self.bar.disable = True

    def tell(self, step: int, losses: dict[str, float]) -> None:
        """Show the losses of a step."""
        text = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self.bar.set_postfix_str(text, refresh=False)
        now = time.monotonic()
        if now - self.told >= PLAIN_SECONDS or step == self.total:
            rate = (step - self.first) / (now - self.started)
            left = (self.total - step) / rate
            line = f"{step}/{self.total}  {text}  {rate:.1f} it/s, {tqdm.format_interval(left)} left"
            if self.is_terminal:
                self.run.log(line)
            else:
                self.run.say(line)
            self.told = now


@contextmanager
def naming_images(run: Run, data: dict[str, Any]) -> Iterator[None]:
    """Have a NonFiniteError also name the images of its iteration: a few to the user, all in log.txt."""
    try:
        yield
    except NonFiniteError as error:
        few_files = []
        for domain, images in data.items():
            names = [path.name for path in images.files_of(error.step - 1)]
            run.log(f"Images of iteration {error.step}, {domain}: {', '.join(map(repr, names))}")
            more = f" and {len(names) - 3} more in log.txt" if len(names) > 3 else ""
            few_files.append(f"{domain}: {', '.join(map(repr, names[:3]))}{more}")
        raise NonFiniteError(f"{error}. The batch of that iteration: {'; '.join(few_files)}", error.step) from None


def _open(run: Run, state: State, options: Any, data: dict[str, Any], total: int) -> bool:
    """Load the newest checkpoint, if there is one, and say what will be trained on what.

    Returns:
        Whether there is anything to do.
    """
    run.record_data(data)
    checkpoint = run.load_checkpoint()
    if checkpoint is not None:
        state.load(checkpoint)
    if state.step >= total:
        if rank() == 0:
            print(
                f"{run.folder} is at iteration {state.step} of {total}: nothing to do; a larger --train_iters goes on"
            )
        return False
    run.start(options, state.device, state.precision.name)

    if options.preset is not None:
        run.say(f"Preset {options.preset}: {options.PRESETS[options.preset][0]}")
    for line in [line for images in data.values() for line in images.describe()]:
        run.say(line)
    for line in options.hints(min(map(len, data.values())), total) if checkpoint is None else []:
        run.say(line)
    if count_processes() > 1:
        run.say(f"{count_processes()} processes share each batch of {options.batch_size}")
        if options.norm == "batch":
            run.say(
                "Warning: batch norm takes its statistics from each process's part of the batch, so the result depends "
                "on their number; with --norm instance it doesn't"
            )
    weights = ", ".join(f"{name} {count_parameters(network):,}" for name, network in state.networks.items())
    run.say(f"Weights: {weights}")
    if state.precision.dtype is not None:
        run.say(f"Mixed precision: {state.precision.name} on {state.device.type.upper()}; --amp off for float32")

    # Show the images as they will come.
    if checkpoint is None:
        columns = grid_columns(options.image_size)
        for domain, images in data.items():
            name = "real" if len(data) == 1 else f"real-{domain}"
            run.save_grid(name, 0, image_grid(images.preview(columns**2), columns))
    return True


def _leave_nothing_half_made(train: Callable[..., int]) -> Callable[..., int]:
    """Have the folder of a new run go away if an error comes before its first step is done, such as too little memory.

    The command can then be given again, mended, with the same --name.
    """

    @functools.wraps(train)
    def wrapped(run: Run, state: State, *args: Any, **kwargs: Any) -> int:
        try:
            return train(run, state, *args, **kwargs)
        except Exception:
            if state.step == 0:
                run.discard()
            raise

    return wrapped


@_leave_nothing_half_made
def train(
    run: Run,
    state: State,
    options: Any,
    data: dict[str, Any],
    total: int,
    train_step: Callable[[State, dict[str, Tensor], Any], dict[str, Tensor]],
    draw_samples: Callable[[State, Any], dict[str, Tensor]],
    find_trouble: Callable[[State, Any, list[dict[str, float]]], dict[str, str]],
    panels: dict[str, list[str]],
    measure: Callable[[], list[dict[str, Any]]] | None = None,
) -> int:
    """Train until `total` steps are taken or a signal says stop; return the exit code, 0 or 128 + signal.

    Args:
        data: domain -> its images, an ImageBatches.
        train_step: (state, domain -> batch, options) -> losses as detached scalars; updates the networks of the state.
        draw_samples: (state, options) -> name -> grid as a uint8 image (3, H, W).
        find_trouble: (state, options, rows of losses.csv) -> kind of trouble -> a line that says what to do about it.
            Asked whenever grids are drawn; a kind is shown once in a run.
        panels: panels of losses.png, title -> losses.
        measure: returns rows of metrics.csv, of which the first names the metric that counts, for --eval_every. It must
            leave the random generators as they are. None in the processes beside the first.
    """
    if not _open(run, state, options, data, total):
        return 0

    def save_grids() -> None:
        if rank() == 0:
            for name, grid in draw_samples(state, options).items():
                run.save_grid(name, state.step, grid)

    def save() -> None:
        nonlocal saved_step
        state.check_finite()  # a broken state must not become the newest checkpoint
        run.save_checkpoint(state.step, {"options": options.to_dict(), **state.to_checkpoint()})
        saved_step = state.step
        if options.keep_checkpoints is not None:
            run.prune_checkpoints(options.keep_checkpoints)

    def evaluate() -> None:
        state.check_finite()
        is_best = run.add_metrics(state.step, measure()) if measure is not None else False
        if agree(int(is_best), state.device):
            run.save_checkpoint(state.step, {"options": options.to_dict(), **state.to_checkpoint()}, BEST)
            save()  # so that a run never goes on from before its best

    saved_step = run.resumed_step
    run.say(f"Training to iteration {total} in {run.folder}" + (f", from {state.step}" if state.step else ""))
    progress = Progress(run, state.step, total)
    steps = Steps(state, data, options, train_step, run.say)
    with naming_images(run, data), StopSignals() as stop, progress.bar:
        # Show what the untrained networks make.
        if state.step == 0:
            save_grids()

        stopped_by = 0
        while state.step < total:
            # Stop if a signal has come. Several processes agree on it, on GPUs where they wait for each other anyway.
            if state.device.type == "cpu" or count_processes() == 1 or state.step % options.log_step == 0:
                stopped_by = agree(stop.received or 0, state.device)
                if stopped_by:
                    break

            # Update the networks on one batch, then the moving averages.
            lr = options.lr * LR_POLICIES[options.lr_policy](state.step / total)
            steps.take(lr)
            progress.advance()

            # Log the mean losses since the last row.
            if state.step % options.log_step == 0:
                means = state.mean_losses()
                run.add_losses(state.step, means, lr)
                state.clear_losses()
                progress.tell(state.step, means)
                run.plot_losses(panels)

            # Draw what the networks make now, and warn of what goes wrong.
            if state.step % options.sample_every == 0 or state.step == total:
                save_grids()
                trouble = find_trouble(state, options, run.rows) if rank() == 0 else {}
                for kind, text in trouble.items():
                    if kind not in state.warned:
                        run.say(f"Warning, iteration {state.step}: {text}")
                        state.warned.append(kind)

            # Measure what they make, and keep the best.
            if options.eval_every and (state.step % options.eval_every == 0 or state.step == total):
                evaluate()

            # Save everything.
            if state.step % options.checkpoint_every == 0 and saved_step != state.step:
                save()

        # Save where training ended or was stopped.
        if saved_step != state.step:
            save()
        run.plot_losses(panels, now=True)

    # Say where everything is and how to go on.
    script = sys.argv[0] if os.path.basename(sys.argv[0]) == run.script else run.script
    start = "python" if count_processes() == 1 else describe_launch()
    resume = f"{start} {shlex.quote(script)} --resume {shlex.quote(str(run.folder))}"
    if state.step < total:
        run.say(f"Stopped by {signal.Signals(stopped_by).name} at iteration {state.step} of {total}. Go on with:")
        run.say(f"    {resume}")
    else:
        run.say(f"Finished {total} iterations: {run.folder}")
        run.say(f"    look at    {run.samples}" + (f" and {run.folder / 'losses.png'}" if run.has_losses() else ""))
        run.say(f"    compare    tensorboard --logdir {shlex.quote(str(run.folder.parent))}")
        run.say(f"    train on   {resume} --train_iters {2 * total}")
    return 0 if state.step == total else 128 + stopped_by
