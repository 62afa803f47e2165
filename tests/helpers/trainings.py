"""Trainings to disturb: a run that was stopped, the same run without interruption, and the comparison of both.

A disturbed training runs in a fork of this process, so that torch is imported once.
"""

import contextlib
import csv
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from tests.conftest import MODULES, assert_same, make_domains, make_photos, resume, temporary_files, train
from training.state import TrainingState


def run_in_fork(work: Callable[[], int], errors: str | Path = os.devnull) -> int:
    """Call `work` in a fork of this process; return its exit code. Its stderr goes to the file `errors`."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            sys.stderr = open(errors, "w")  # pytest has replaced the one of the process
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(sys.stderr.fileno(), 2)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# ----------------------------------------------------------------------------------------------------------------------
# A training

FLAGS = [
    "--log_step=1",
    "--sample_every=2",
    "--checkpoint_every=2",
    "--keep_checkpoints=3",
    "--use_diffaug",
    "--seed=5",
]
SCRIPT_FLAGS = {
    "vanilla_gan.py": ["--eval_every=2", "--spectral_norm", "--norm=batch"],
    "cycle_gan.py": ["--pool_size=6", "--data_aug=deluxe", "--use_cycle_consistency_loss"],
}
STOPPED, TOTAL = 2, 6  # iterations


def make_images(folder: Path, script: str) -> Path:
    """Make the images that a script trains on; return the folder for its --data."""
    make_domains(folder / "domains")
    make_photos(folder / "photos")
    return folder / {"vanilla_gan.py": "photos", "cycle_gan.py": "domains"}[script]


class Training(NamedTuple):
    """A run that was stopped, and the same run without interruption.

    Attributes:
        stopped: run folder with a checkpoint at iteration 2.
        whole: run folder of the uninterrupted run, at iteration 6.
    """

    script: str
    stopped: Path
    whole: Path

    @classmethod
    def make(cls, folder: Path, script: str) -> "Training":
        """Train both, in `folder`."""
        flags = [f"--data={make_images(folder, script)}", f"--checkpoint_dir={folder}", *FLAGS, *SCRIPT_FLAGS[script]]
        assert train(*flags, "--name=stopped", f"--train_iters={STOPPED}", script=script) == 0
        assert train(*flags, "--name=whole", f"--train_iters={TOTAL}", script=script) == 0
        return cls(script, folder / "stopped", folder / "whole")

    def finish(self, run: Path) -> int:
        """Resume a run and train it to iteration 6; return the exit code."""
        return resume(f"--resume={run}", f"--train_iters={TOTAL}", script=self.script)

    def is_same(self, run: Path) -> bool:
        """Whether a run equals the uninterrupted one: state, losses, metrics, grids, and no other files."""
        try:
            a, b = (torch.load(at / f"checkpoint-{TOTAL:06d}.pt", weights_only=True) for at in (run, self.whole))
            assert a.keys() == b.keys()
            for part in a.keys() - {"options"}:
                assert_same(a[part], b[part], part)
            for name in ("losses.csv", "metrics.csv"):
                if (self.whole / name).exists():
                    with open(run / name, newline="") as one, open(self.whole / name, newline="") as other:
                        assert list(csv.reader(one)) == list(csv.reader(other)), name
            grids = sorted(path.name for path in (self.whole / "samples").iterdir())
            assert grids == sorted(path.name for path in (run / "samples").iterdir())
            for name in grids:
                assert (run / "samples" / name).read_bytes() == (self.whole / "samples" / name).read_bytes(), name
            assert not temporary_files(run)
        except (AssertionError, OSError):
            traceback.print_exc()
            return False
        return True


# ----------------------------------------------------------------------------------------------------------------------
# Resumption at every step

STATES = {
    "vanilla_gan.py": {
        "default": [],
        "DiffAugment, spectral norm": ["--use_diffaug", "--spectral_norm"],
        "batch norm, no average": ["--norm=batch", "--ema_decay=0"],
        "linear rate": ["--lr_policy=linear", "--data_aug=deluxe"],
        "cosine rate": ["--lr_policy=cosine", "--data_aug=deluxe_autocontrast", "--disc=patch"],
        "streamed": ["--cache_gb=0", "--data_aug=deluxe", "--num_workers=0"],
        "streamed by 2": ["--cache_gb=0", "--data_aug=deluxe_autocontrast", "--num_workers=2"],
        "evaluated": ["--eval_every=2"],
        "gradient penalties": ["--gan_mode=relativistic", "--r1_gamma=1", "--r2_gamma=1", "--penalty_every=2"],
    },
    "cycle_gan.py": {
        "default": [],
        "pool": ["--pool_size=6", "--use_diffaug", "--data_aug=deluxe"],
        "gradient penalty": ["--pool_size=6", "--r1_gamma=1", "--penalty_every=4"],
        "all losses": ["--use_cycle_consistency_loss", "--cycle_loss=SSIM", "--use_identity_loss", "--spectral_norm"],
        "batch norm, no average": ["--norm=batch", "--ema_decay=0", "--lr_policy=linear"],
        "streamed by 2": ["--cache_gb=0", "--data_aug=deluxe_autocontrast", "--num_workers=2", "--pool_size=6"],
    },
}


def resumptions(folder: Path, script: str, case: str, forget: bool = False) -> Iterator[bool]:
    """Train 6 steps, and resume after each of the first 5; yield whether every run ends bit-identical.

    Args:
        forget: for the control: do not restore the random generator.
    """
    flags = [f"--data={make_images(folder, script)}", f"--checkpoint_dir={folder}", "--log_step=1", "--sample_every=2"]
    flags += ["--checkpoint_every=1", *STATES[script][case], f"--train_iters={TOTAL}", "--name=whole"]
    assert train(*flags, script=script) == 0
    training = Training(script, folder / "whole", folder / "whole")
    for step in range(1, TOTAL):
        run = shutil.copytree(training.whole, folder / f"from-{step}")
        for later in range(step + 1, TOTAL + 1):
            (run / f"checkpoint-{later:06d}.pt").unlink()
        forgetting = mock.patch("torch.set_rng_state") if forget else contextlib.nullcontext()
        torch.manual_seed(999)  # numbers drawn in this process since must not matter
        with forgetting:
            code = training.finish(run)
        yield code == 0 and training.is_same(run)
        shutil.rmtree(run)


# ----------------------------------------------------------------------------------------------------------------------
# Signals

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
MOMENTS = {
    "a step": "{script}.train_step",
    "a grid": "{script}.draw_samples",
    "an evaluation": "metrics.evaluation.Evaluator.__call__",
    "a checkpoint": "torch.save",
    "a file": "os.replace",
}


@contextlib.contextmanager
def signals_during(moment: str, script: str, *numbers: int) -> Iterator[None]:
    """Raise signals during an operation of the training, the first time that it happens."""
    target = MOMENTS[moment].format(script=script.removesuffix(".py"))
    owner, name = mock._get_target(target)
    real, calls = getattr(owner(), name), []

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if moment != "a file" or "checkpoint" in str(arguments[1]):
            calls.append(1)
        result = real(*arguments, **named)
        for number in numbers if len(calls) == 1 else ():
            signal.raise_signal(number)
        return result

    with mock.patch(target, interrupted):
        yield


class NoStopSignals:
    """Leaves signals to the system, for the control."""

    received = None

    def __enter__(self) -> "NoStopSignals":
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        return self

    def __exit__(self, *error: object) -> None:
        pass


def stop_by_signal(training: Training, folder: Path, number: int, moment: str, handled: bool = True) -> bool:
    """Stop a training by a signal; return whether it saved, and equals the uninterrupted run after it was resumed.

    Args:
        handled: False for the control.
    """
    run = shutil.copytree(
        training.stopped, folder / f"{training.script}-stopped-{number}-{moment.replace(' ', '-')}-{handled}"
    )

    def work() -> int:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and a training keeps it ignored
        with contextlib.nullcontext() if handled else mock.patch("training.loop.StopSignals", NoStopSignals):
            with signals_during(moment, training.script, number):
                return training.finish(run)

    rows = lambda: len((run / "losses.csv").read_text().splitlines()) - 1  # noqa: E731
    held = run_in_fork(work) == 128 + number
    held = held and (run / f"checkpoint-{rows():06d}.pt").exists() and rows() < TOTAL
    held = held and run_in_fork(lambda: training.finish(run)) == 0 and training.is_same(run)
    shutil.rmtree(run)
    return held


# ----------------------------------------------------------------------------------------------------------------------
# Values that are not finite


def _poison_batch(state: TrainingState, batch: dict[str, torch.Tensor]) -> None:
    for images in batch.values():
        images[0] = float("nan")


def _poison_weight(state: TrainingState, batch: dict[str, torch.Tensor]) -> None:
    next(next(iter(state.networks.values())).parameters()).data.view(-1)[0] = float("inf")


def _poison_gradient(state: TrainingState, batch: dict[str, torch.Tensor]) -> None:
    weight = next(next(iter(state.networks.values())).parameters())
    handle = weight.register_hook(lambda gradient: handle.remove() or gradient * float("nan"))


def _poison_moment(state: TrainingState, batch: dict[str, torch.Tensor]) -> None:
    next(iter(next(iter(state.optimizers.values())).state.values()))["exp_avg_sq"].view(-1)[0] = float("inf")


def _poison_average(state: TrainingState, batch: dict[str, torch.Tensor]) -> None:
    next(next(iter(state.ema.values())).parameters()).data.view(-1)[0] = float("nan")


POISONS = {
    "batch": _poison_batch,
    "weight": _poison_weight,
    "gradient": _poison_gradient,
    "moment": _poison_moment,
    "average": _poison_average,
}


def poison(training: Training, folder: Path, what: str, checked: bool = True) -> bool:
    """Poison step 4; return whether the run stops with code 3 and one line, before it saves a poisoned state.

    Args:
        checked: False for the control, which does not check that values are finite.
    """
    run, errors = (
        shutil.copytree(training.stopped, folder / f"{training.script}-poisoned-{what}-{checked}"),
        folder / "errors.txt",
    )
    real = MODULES[training.script].train_step

    def train_step(state: TrainingState, batch: dict[str, torch.Tensor], *arguments: Any) -> dict[str, torch.Tensor]:
        if state.step == 3:
            POISONS[what](state, batch)
        return real(state, batch, *arguments)

    def mean_losses(state: TrainingState) -> dict[str, float]:
        return {name: float(value) / state.counts[name] for name, value in state.sums.items()}

    def work() -> int:
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(MODULES[training.script], "train_step", train_step))
            if not checked:
                stack.enter_context(mock.patch.object(TrainingState, "check_finite", lambda state: None))
                stack.enter_context(mock.patch.object(TrainingState, "mean_losses", mean_losses))
            return training.finish(run)

    code = run_in_fork(work, errors)
    message = errors.read_text()
    saved = sorted(int(path.stem.rpartition("-")[2]) for path in run.glob("checkpoint-*.pt"))
    held = code == 3 and saved == [STOPPED] and message.count("\n") == 1 and "at iteration 4" in message
    held = held and ("the loss " in message or "weights or optimizer moments" in message) and "--lr" in message
    if not held and checked:
        print(f"{what}: exit code {code}, saved {saved}, message: {message}", file=sys.stderr)
    shutil.rmtree(run)
    return held


# ----------------------------------------------------------------------------------------------------------------------
# Two trainings in one folder


def two_in_one_folder(training: Training, folder: Path, killed: bool, locked: bool = True) -> bool:
    """Start a second training in the folder of a running one; return whether each ends as it should.

    The second is refused and the first continues. If the first was killed before, the second continues.

    Args:
        locked: False for the control.
    """
    run, errors = (
        shutil.copytree(training.stopped, folder / f"{training.script}-shared-{killed}-{locked}"),
        folder / "errors.txt",
    )
    script = MODULES[training.script]
    real, gate = script.train_step, folder / f"{training.script}-gate-{killed}-{locked}"

    def wait(*arguments: Any) -> Any:
        (run / "is-training").touch()
        while not gate.exists():
            time.sleep(0.01)
        return real(*arguments)

    with contextlib.nullcontext() if locked else mock.patch("filelock.FileLock.acquire"):
        first = os.fork()
        if first == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                with mock.patch.object(script, "train_step", wait):
                    os._exit(training.finish(run))
            finally:
                os._exit(70)
        while not (run / "is-training").exists():
            time.sleep(0.01)
        if killed:
            os.kill(first, signal.SIGKILL)
            os.waitpid(first, 0)
        code = run_in_fork(lambda: training.finish(run), errors)
        gate.touch()
        if killed:
            held = code == 0
        else:
            refused = code == 2 and f"in use by process {first} on" in errors.read_text()
            held = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == 0 and refused
    (run / "is-training").unlink()
    held = held and training.is_same(run)
    shutil.rmtree(run)
    return held
