"""Trainings to put into trouble: a run that has begun, the same one never stopped, and the comparison of both.

Trouble is made in a copy of the process, so that torch is imported once.
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

import runs
import trainer
from tests.conftest import MODULES, assert_same, make_domains, make_photo, resume, train


def in_a_fork(work: Callable[[], int], errors: str | Path = os.devnull) -> int:
    """Do the work in a copy of this process; return its exit code. What it says on stderr goes to the file `errors`."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            sys.stderr = open(errors, "w")  # that of a test is not the process's
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
OF_SCRIPT = {
    "vanilla_gan.py": ["--eval_every=2", "--spectral_norm", "--norm=batch"],
    "cycle_gan.py": ["--pool_size=6", "--data_aug=deluxe", "--use_cycle_consistency_loss"],
}
BEGUN, TOTAL = 2, 6  # iterations


def make_images(folder: Path, script: str) -> Path:
    """Make the images that a script trains on; return what its --data may be."""
    make_domains(folder / "domains")
    (folder / "photos").mkdir()
    for i in range(10):
        make_photo((40, 40), i).save(folder / "photos" / f"{i}.png")
    return folder / {"vanilla_gan.py": "photos", "cycle_gan.py": "domains"}[script]


class Training(NamedTuple):
    """A run that has begun, and the same run never stopped.

    Attributes:
        begun: run folder with a checkpoint at iteration 2.
        whole: run folder at iteration 6.
    """

    script: str
    begun: Path
    whole: Path

    @classmethod
    def make(cls, folder: Path, script: str) -> "Training":
        """Train both, in `folder`."""
        flags = [f"--data={make_images(folder, script)}", f"--checkpoint_dir={folder}", *FLAGS, *OF_SCRIPT[script]]
        assert train(*flags, "--name=begun", f"--train_iters={BEGUN}", script=script) == 0
        assert train(*flags, "--name=whole", f"--train_iters={TOTAL}", script=script) == 0
        return cls(script, folder / "begun", folder / "whole")

    def go_on(self, run: Path) -> int:
        """Resume a run, to iteration 6; return the exit code."""
        return resume(f"--resume={run}", f"--train_iters={TOTAL}", script=self.script)

    def is_same(self, run: Path) -> bool:
        """Whether a run has become the one that never stopped: state, losses, metrics, grids, and nothing besides."""
        try:
            a, b = (torch.load(at / f"checkpoint-{TOTAL:06d}.pt", weights_only=True) for at in (run, self.whole))
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
            assert not [path for path in run.rglob(".*")], "a temporary file is left"
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
    },
    "cycle_gan.py": {
        "default": [],
        "pool": ["--pool_size=6", "--use_diffaug", "--data_aug=deluxe"],
        "all losses": ["--use_cycle_consistency_loss", "--cycle_loss=SSIM", "--use_identity_loss", "--spectral_norm"],
        "batch norm, no average": ["--norm=batch", "--ema_decay=0", "--lr_policy=linear"],
        "streamed by 2": ["--cache_gb=0", "--data_aug=deluxe_autocontrast", "--num_workers=2", "--pool_size=6"],
    },
}


def resumptions(folder: Path, script: str, case: str, forget: bool = False) -> Iterator[bool]:
    """Train 6 steps, and go on from each of the first 5; yield whether all became the same to the last bit.

    Args:
        forget: for the control: don't set the random generator.
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
        torch.manual_seed(999)  # whatever this process drew since must not matter
        with forgetting:
            code = training.go_on(run)
        yield code == 0 and training.is_same(run)
        shutil.rmtree(run)


# ----------------------------------------------------------------------------------------------------------------------
# Signals

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
MOMENTS = {
    "a step": "{script}.train_step",
    "a grid": "{script}.draw_samples",
    "an evaluation": "evaluate.Judge.__call__",
    "a checkpoint": "runs.seal",
    "a file": "os.replace",
}


@contextlib.contextmanager
def signals_in(moment: str, script: str, *numbers: int) -> Iterator[None]:
    """Have signals arrive in the middle of something, at its first time."""
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


class Unprepared:
    """A training loop that knows no signals, for the control."""

    received = None

    def __enter__(self) -> "Unprepared":
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        return self

    def __exit__(self, *error: object) -> None:
        pass


def stop_by_signal(training: Training, folder: Path, number: int, moment: str, prepared: bool = True) -> bool:
    """Stop a training by a signal; return whether it ended well, and then became what it would have been.

    Args:
        prepared: False for the control.
    """
    run = shutil.copytree(
        training.begun, folder / f"{training.script}-stopped-{number}-{moment.replace(' ', '-')}-{prepared}"
    )

    def work() -> int:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and a training leaves it so
        with contextlib.nullcontext() if prepared else mock.patch("trainer.StopSignals", Unprepared):
            with signals_in(moment, training.script, number):
                return training.go_on(run)

    rows = lambda: len((run / "losses.csv").read_text().splitlines()) - 1  # noqa: E731
    held = in_a_fork(work) == 128 + number
    held = held and (run / f"checkpoint-{rows():06d}.pt").exists() and rows() < TOTAL
    held = held and in_a_fork(lambda: training.go_on(run)) == 0 and training.is_same(run)
    shutil.rmtree(run)
    return held


# ----------------------------------------------------------------------------------------------------------------------
# Numbers that are not finite


def _poison_batch(state: Any, batch: dict[str, torch.Tensor]) -> None:
    for images in batch.values():
        images[0] = float("nan")


def _poison_weight(state: Any, batch: dict[str, torch.Tensor]) -> None:
    next(next(iter(state.networks.values())).parameters()).data.view(-1)[0] = float("inf")


def _poison_gradient(state: Any, batch: dict[str, torch.Tensor]) -> None:
    weight = next(next(iter(state.networks.values())).parameters())
    handle = weight.register_hook(lambda gradient: handle.remove() or gradient * float("nan"))


def _poison_moment(state: Any, batch: dict[str, torch.Tensor]) -> None:
    next(iter(next(iter(state.optimizers.values())).state.values()))["exp_avg_sq"].view(-1)[0] = float("inf")


def _poison_average(state: Any, batch: dict[str, torch.Tensor]) -> None:
    next(next(iter(state.averages.values())).parameters()).data.view(-1)[0] = float("nan")


POISONS = {
    "batch": _poison_batch,
    "weight": _poison_weight,
    "gradient": _poison_gradient,
    "moment": _poison_moment,
    "average": _poison_average,
}


def poison(training: Training, folder: Path, what: str, checked: bool = True) -> bool:
    """Poison step 4; return whether the run stops with code 3, in one line, before it saves anything of it.

    Args:
        checked: False for the control, which doesn't look at numbers.
    """
    run, errors = (
        shutil.copytree(training.begun, folder / f"{training.script}-poisoned-{what}-{checked}"),
        folder / "errors.txt",
    )
    module = training.script.removesuffix(".py")
    real = MODULES[training.script].train_step

    def train_step(state: Any, batch: dict[str, torch.Tensor], options: Any) -> dict[str, torch.Tensor]:
        if state.step == 3:
            POISONS[what](state, batch)
        return real(state, batch, options)

    def means(state: Any) -> dict[str, float]:
        return dict(zip(state.losses, (state.sums / state.summed).tolist(), strict=True)) if state.summed else {}

    def work() -> int:
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch(f"{module}.train_step", train_step))
            if not checked:
                stack.enter_context(mock.patch.object(trainer.State, "check_finite", lambda state: None))
                stack.enter_context(mock.patch.object(trainer.State, "mean_losses", means))
            return training.go_on(run)

    code = in_a_fork(work, errors)
    said = errors.read_text()
    saved = sorted(int(path.stem.rpartition("-")[2]) for path in run.glob("checkpoint-*.pt"))
    held = code == 3 and saved == [BEGUN] and said.count("\n") == 1 and "at iteration 4" in said and ".png" in said
    if not held and checked:
        print(f"{what}: exit code {code}, saved {saved}, said: {said}", file=sys.stderr)
    shutil.rmtree(run)
    return held


# ----------------------------------------------------------------------------------------------------------------------
# Two in one folder


def two_in_one_folder(training: Training, folder: Path, killed: bool, locked: bool = True) -> bool:
    """Start a second training in the folder of one that is at work; return whether each ends as it should.

    The second is refused and the first goes on, or, if the first was killed before, the second does.

    Args:
        locked: False for the control.
    """
    run, errors = (
        shutil.copytree(training.begun, folder / f"{training.script}-shared-{killed}-{locked}"),
        folder / "errors.txt",
    )
    module = training.script.removesuffix(".py")
    real, gate = MODULES[training.script].train_step, folder / f"{training.script}-gate-{killed}-{locked}"

    def wait(state: Any, *arguments: Any) -> Any:
        (run / "at-work").touch()
        while not gate.exists():
            time.sleep(0.01)
        return real(state, *arguments)

    with contextlib.nullcontext() if locked else mock.patch.object(runs, "fcntl", None):
        first = os.fork()
        if first == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                with mock.patch(f"{module}.train_step", wait):
                    os._exit(training.go_on(run))
            finally:
                os._exit(70)
        while not (run / "at-work").exists():
            time.sleep(0.01)
        if killed:
            os.kill(first, signal.SIGKILL)
            os.waitpid(first, 0)
        code = in_a_fork(lambda: training.go_on(run), errors)
        gate.touch()
        if killed:
            held = code == 0
        else:
            refused = code == 2 and f"in use by process {first} on" in errors.read_text()
            held = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == 0 and refused
    (run / "at-work").unlink()
    held = held and training.is_same(run)
    shutil.rmtree(run)
    return held
