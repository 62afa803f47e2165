"""The weights that a new run takes from another run: --init_from."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from runs.checkpoints import read_checkpoint
from runs.folder import Run
from training.state import TrainingState
from utils import UserError, all_finite, one_line, shorten

if TYPE_CHECKING:
    from options.common import CommonOptions


def load_initial_weights(state: TrainingState, run: Run, options: "CommonOptions") -> None:
    """Copy the weights of --init_from into the networks, if the run has no checkpoint yet.

    Each network takes the weights and buffers of the network of its name, as the old run trained them. A moving average
    continues the average of the old run, if there is one, and else starts from the same weights. Everything else of the
    old run is ignored: optimizers, iteration, random numbers, options. What was taken is added to `state.notes`.

    Raises:
        UserError: there is no such checkpoint, or it is of another script, or its weights do not all fit and --partial
            is not given, or none of them fits, or a value is not finite.
    """
    if options.init_from is None or not run.starts_from_the_beginning:
        return
    where = options.init_from
    try:
        content = read_checkpoint(Path(where))
    except UserError as error:
        raise UserError(f"--init_from: {error}") from None
    except OSError as error:  # such as a name that is too long
        raise UserError(f"--init_from: {where[:40]}: {error.strerror}; give a run folder, or a checkpoint") from None
    if content.get("script") != options.SCRIPT:
        raise UserError(f"--init_from: {where} is a run of {content.get('script')}; give a run of {options.SCRIPT}")
    try:
        _copy_networks(state, content, options)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else one_line(error)
        raise UserError(f"--init_from: the checkpoint of {where} is not complete ({reason}); use another") from None


def _copy_networks(state: TrainingState, content: dict[str, Any], options: "CommonOptions") -> None:
    """Copy what fits into networks and averages, after a check of all of them."""
    where, found = options.init_from, content["networks"]
    taken, left_out = {}, []
    for name, network in state.networks.items():
        if name in found:
            taken[name], misfits = select_fitting(network, found[name])
            left_out += [f"{name} {misfit}" for misfit in misfits]
    if left_out and not options.partial:
        differing = describe_differences(content["options"], options)
        raise UserError(
            f"--init_from: {where} does not fit: {shorten(left_out, 3, '; ')}. "
            f"{f'That run has {differing}: use the same options' if differing else 'Use the options of that run'}, or "
            "add --partial to take only the layers that fit"
        )
    if not any(taken.values()):
        raise UserError(f"--init_from: no layer of {where} fits; use the options of that run")
    averages = {name: select_fitting(state.ema[name], content["ema"].get(name) or found[name])[0]
                for name in state.ema if name in found}  # fmt: skip
    if not all_finite(value for weights in [*taken.values(), *averages.values()] for value in weights.values()):
        raise UserError(f"--init_from: {where} contains values that are not finite; use another checkpoint")
    for weights, networks in ((taken, state.networks), (averages, state.ema)):
        for name, values in weights.items():
            networks[name].load_state_dict(values, strict=False)
    names = ", ".join(name for name, weights in taken.items() if weights)
    state.notes.append(f"Weights of {names} from {where}, iteration {content['step']}")
    if left_out:
        state.notes.append(f"Not taken, because of other shapes or names: {'; '.join(left_out)}")
    new = [name for name in state.networks if not taken.get(name)]
    if new:
        state.notes.append(f"{', '.join(new)}: new weights")


def select_fitting(network: nn.Module, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Compare weights with a network, layer by layer.

    Returns:
        The weights and buffers of the layers that fit by name and shape, none if no kernel is among them; and for each
        layer that does not fit a text.
    """
    own = network.state_dict()
    names = {key.replace(".stage.", "."): key for key in own}  # a stage within a ModulatedStage is such a stage, too
    weights = {names.get(key.replace(".stage.", "."), key): value for key, value in weights.items()}
    misfits: dict[str, str] = {}  # layer -> text
    for key in dict.fromkeys([*own, *weights]):
        here, there = ("x".join(map(str, side[key].shape)) if key in side else None for side in (own, weights))
        if here is None or there is None:
            misfits.setdefault(_layer_of(key), f"{key} exists only {'there' if here is None else 'here'}")
        elif here != there:
            misfits.setdefault(_layer_of(key), f"{key} {there} there, {here} here")
    fitting = {key: weights[key] for key in own if _layer_of(key) not in misfits}
    return fitting if any(value.dim() > 1 for value in fitting.values()) else {}, list(misfits.values())


def _layer_of(key: str) -> str:
    """layers.0.0.weight, and layers.0.0.parametrizations.weight.0._u of a spectral norm -> layers.0.0"""
    return key.partition(".parametrizations.")[0] if ".parametrizations." in key else key.rpartition(".")[0]


def describe_differences(saved: dict[str, Any], options: "CommonOptions") -> str:
    """Return the options of a saved run that shape the networks and differ from `options`, as flags."""
    names = [field.name for field in dataclasses.fields(options) if field.metadata.get("group") == "Networks"]
    flags = []
    for name in ["image_size", *names]:
        value = saved.get(name, getattr(options, name))
        if value == getattr(options, name) or name == "init_type":
            continue
        flags.append(f"no --{name}" if value in (None, False) else f"--{name}" + f" {value}" * (value is not True))
    return ", ".join(flags)
