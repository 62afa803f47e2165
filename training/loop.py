"""The training loop: when to log, draw, evaluate and save; resuming and stopping. Independent of the kind of GAN."""

import gc
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from runs.folder import Run
from system.processes import count_processes, describe_launch, max_over_processes, rank
from system.program import StopSignals
from system.progress import PLAIN_PROGRESS_INTERVAL, ProgressBar
from training.schedule import LR_POLICIES, describe_rate_change
from training.state import TrainingState
from training.steps import StepRunner
from utils import LOG, NonFiniteError, count_parameters, grid_columns, image_grid, printable

if TYPE_CHECKING:
    from data_loader import ImageBatches
    from options.common import CommonOptions


class Recipe(NamedTuple):
    """What a kind of GAN brings to the loop.

    Attributes:
        train_step: (state, domain -> batch, options, with_penalty) -> losses as detached scalars; updates the networks.
        draw_samples: (state, options) -> name -> grid as a uint8 image (3, H, W).
        diagnose: (state, options, rows of losses.csv) -> kind of problem -> a warning that says what to do about it.
            Called whenever grids are drawn; a kind is shown once per run.
        give_hints: (options, fewest images of a domain, iterations) -> advice before training.
        panels: panels of losses.png, title -> losses.
        evaluate: returns rows of metrics.csv for --eval_every, the metric that counts first. It must leave the random
            generators unchanged. None without --eval_every, and in processes above rank 0.
    """

    train_step: Callable[..., dict[str, Tensor]]
    draw_samples: Callable[[TrainingState, Any], dict[str, Tensor]]
    diagnose: Callable[[TrainingState, Any, list[dict[str, float]]], dict[str, str]]
    give_hints: Callable[[Any, int, int], list[str]]
    panels: dict[str, list[str]]
    evaluate: Callable[[], list[dict[str, Any]]] | None = None


class _Session(NamedTuple):
    """What one call of `train` works on; `total` is the number of iterations that the run will have."""

    run: Run
    state: TrainingState
    data: "dict[str, ImageBatches]"
    options: "CommonOptions"
    recipe: Recipe
    total: int


def train(
    run: Run, state: TrainingState, data: "dict[str, ImageBatches]", options: "CommonOptions", recipe: Recipe
) -> int:
    """Train until the run has all its iterations or a signal stops it; return the exit code, 0 or 128 + signal.

    Args:
        data: domain -> its images.
    """
    with run:
        total = options.train_iters or next(iter(data.values())).iterations(options.num_epochs)  # type: ignore
        session = _Session(run, state, data, options, recipe, total)
        if not _restore_and_announce(session):
            return 0
        stopped_by = _Loop(session).take_steps()
        _summarize(session, stopped_by)
    return 128 + stopped_by if stopped_by else 0


def _restore_and_announce(session: _Session) -> bool:
    """Load the newest checkpoint, if there is one, and report what will be trained on what.

    Returns:
        Whether there is anything to do.
    """
    run, state, data, options, recipe, total = session
    run.record_data({domain: images.describe_data() for domain, images in data.items()})
    checkpoint = run.load_checkpoint()
    if checkpoint is not None:
        state.load(checkpoint)
    if state.step >= total:
        if rank() == 0:
            text = f"{run.folder} has already reached iteration {state.step}; use a larger --train_iters to continue"
            if options.lr_policy != "constant":
                text += f", which raises the learning rate again, or start a new run with --init_from {run.folder}"
            print(printable(text))  # not in log.txt: a run that has ended stays as it is
        run.record_moved_images()
        return False
    precision = state.precision
    run.begin_session(options, state.device, precision.name, precision.reason)

    if options.preset is not None:
        LOG.info("Preset %s: %s", options.preset, options.PRESETS[options.preset][0])
    for images in data.values():
        images.report()
    if checkpoint is None:
        for hint in recipe.give_hints(options, min(map(len, data.values())), total):
            LOG.info("Hint: %s", hint)
        for note in state.notes:
            LOG.info("%s", note)
    if count_processes() > 1:
        LOG.info("%d processes share each batch of %d", count_processes(), options.batch_size)
        if options.norm == "batch":
            LOG.warning(
                "batch norm computes its statistics on each process's part of the batch, so the result depends on the "
                "number of processes; with --norm instance it does not"
            )
    weights = ", ".join(f"{name} {count_parameters(network):,}" for name, network in state.networks.items())
    LOG.info("Number of weights: %s", weights)
    if precision.dtype is not None:
        LOG.info("Mixed precision: %s (%s); use --amp off for float32", precision.name, precision.reason)
    elif options.amp == "auto":
        LOG.info("Precision: %s (%s)", precision.name, precision.reason)

    # Show the images as they enter training.
    if checkpoint is None:
        columns = grid_columns(options.image_size)
        for domain, images in data.items():
            name = "real" if len(data) == 1 else f"real-{domain}"
            run.logs.save_grid(name, 0, image_grid(images.preview(columns**2), columns))
    if checkpoint is not None:
        _announce_rate(session, checkpoint["options"])
    start = f", from {state.step}" if state.step else ""
    LOG.info("Training to iteration %d in %s%s", total, run.folder, start)
    return True


def _announce_rate(session: _Session, saved: dict[str, Any]) -> None:
    """Say how the learning rate changes if the length is no longer that of the options in the checkpoint."""
    run, state, data, options, _, total = session
    length = saved["train_iters"] or next(iter(data.values())).iterations(saved["num_epochs"])
    change = describe_rate_change(options, state.step, length, total)
    if change:
        LOG.warning(
            "%s. Alternatively start a new run from these weights, with any --lr_policy (constant is the default): "
            "%s --init_from %s ...", change, _describe_script(run), shlex.quote(str(run.folder)),
        )  # fmt: skip


class _Loop:
    """Takes the steps of a run, and does everything that happens between them."""

    def __init__(self, session: _Session):
        self.run, self.state, data, self.options, self.recipe, self.total = session
        self.steps = StepRunner(self.state, data, self.options, self.recipe.train_step)
        self.saved_step = self.run.resumed_step
        self.bar = ProgressBar(
            None, "", "it", self.total, initial=self.state.step, bar_format="{l_bar}{bar:8}{r_bar}", leave=True
        )
        self.logged = time.monotonic()  # when log.txt got its last line of progress
        self.next_plot = 0.0  # when losses.png may be drawn again

    def take_steps(self) -> int:
        """Train until the last iteration or a signal; return the number of the signal, 0 if there was none."""
        state, options = self.state, self.options
        stopped_by = 0
        with StopSignals() as stop, self.bar, self.steps.threads:
            # Show what the networks generate before their first step.
            if state.step == 0:
                self.draw()

            first = state.step + 1
            while state.step < self.total:
                # Stop if a signal has come. Several processes agree on it; on GPUs only when a row is due.
                if state.device.type == "cpu" or count_processes() == 1 or state.step % options.log_step == 0:
                    stopped_by = max_over_processes(stop.received or 0, state.device)
                    if stopped_by:
                        break

                # Update the networks on one batch, then the moving averages.
                lr = options.lr * LR_POLICIES[options.lr_policy](state.step / self.total)
                self.steps.run(lr)
                if state.step == first:
                    self.bar.skip_first()  # it is slow, and says nothing about the time left
                else:
                    self.bar.update()

                is_last = state.step == self.total
                is_grid_due = state.step % options.sample_every == 0 or is_last
                if state.step % options.log_step == 0:
                    self.log(lr)
                if is_grid_due:
                    self.draw()
                    self.warn()
                if options.eval_every and (state.step % options.eval_every == 0 or is_last):
                    self.evaluate()
                if is_last or (is_grid_due and time.monotonic() >= self.next_plot):
                    self.plot()
                if state.step % options.checkpoint_every == 0 and self.saved_step != state.step:
                    self.save()

            # Save where training ended or was stopped.
            if self.saved_step != state.step:
                self.save()
            if stopped_by:
                self.plot()
        return stopped_by

    def log(self, lr: float) -> None:
        """Log the mean losses since the last row."""
        means = self.state.mean_losses()
        self.run.logs.add_losses(self.state.step, means, lr)
        self.state.clear_losses()
        is_last = self.state.step == self.total
        self.bar.set_postfix_str("  ".join(f"{name} {value:.3f}" for name, value in means.items()), refresh=is_last)
        if self.bar.is_terminal and (is_last or time.monotonic() - self.logged >= PLAIN_PROGRESS_INTERVAL):
            LOG.debug("%s", self.bar.as_line())  # log.txt has lines of progress, too
            self.logged = time.monotonic()

    def draw(self) -> None:
        """Draw what the networks generate now."""
        if rank() == 0:
            with self.run.logs.continue_after_errors("drawing the grids of samples"):
                for name, grid in self.recipe.draw_samples(self.state, self.options).items():
                    self.run.logs.save_grid(name, self.state.step, grid)

    def plot(self) -> None:
        """Draw losses.png. It takes at most 2% of the time: on a GPU 200 iterations take less time than one plot."""
        start = time.monotonic()
        self.run.logs.plot_losses(self.recipe.panels)
        now = time.monotonic()
        self.next_plot = now + 49 * (now - start)

    def warn(self) -> None:
        """Warn about problems, about each kind once per run."""
        problems: dict[str, str] = {}
        if rank() == 0:
            with self.run.logs.continue_after_errors("the search for problems"):
                problems = self.recipe.diagnose(self.state, self.options, self.run.logs.rows)
        for kind, text in problems.items():
            if kind not in self.state.warned:
                LOG.warning("iteration %d: %s", self.state.step, text)
                self.state.warned.append(kind)

    def evaluate(self) -> None:
        """Evaluate what the networks generate now, and keep the best."""
        self.state.check_finite()
        rows: list[dict[str, Any]] = []
        if self.recipe.evaluate is not None:
            with self.run.logs.continue_after_errors("the evaluation (--eval_every)", stop_for=NonFiniteError):
                rows = self.recipe.evaluate()
        gc.collect()  # metrics hold the features of all images in reference cycles
        is_best = bool(rows) and self.run.logs.add_metrics(self.state.step, rows)
        if max_over_processes(int(is_best), self.state.device):
            self.save(is_best=True)

    def save(self, is_best: bool = False) -> None:
        """Write a checkpoint, after a check that all values are finite: a broken state must not become the newest."""
        self.state.check_finite()
        content = {"options": self.options.to_dict(), **self.state.to_checkpoint()}
        if is_best:
            self.run.save_checkpoint(self.state.step, content, is_best=True)
        self.run.save_checkpoint(self.state.step, content)  # beside best.pt, too: no run continues from before its best
        self.saved_step = self.state.step
        if self.options.keep_checkpoints is not None:
            self.run.prune_checkpoints(self.options.keep_checkpoints)


def _describe_script(run: Run) -> str:
    """Return the command that starts the script of a run, without options."""
    script = sys.argv[0] if os.path.basename(sys.argv[0]) == run.script else run.script
    launch = "python" if count_processes() == 1 else describe_launch()
    return f"{launch} {shlex.quote(script)}"


def _summarize(session: _Session, stopped_by: int) -> None:
    """Say where everything is and how to continue."""
    run, state, _, options, _, total = session
    command, folder = _describe_script(run), shlex.quote(str(run.folder))
    resume = f"{command} --resume {folder}"
    if stopped_by:
        name = signal.Signals(stopped_by).name
        LOG.info("Stopped by %s at iteration %d of %d. Resume with:", name, state.step, total)
        LOG.info("    %s", resume)
        return
    plot = f" and {run.folder / 'losses.png'}" if run.logs.rows else ""
    LOG.info("Finished %d iterations: %s", total, run.folder)
    LOG.info("    results    %s%s", run.samples, plot)
    if options.tracker == "tensorboard":
        LOG.info("    compare    tensorboard --logdir %s", shlex.quote(str(run.folder.parent)))
    if options.lr_policy == "constant":
        LOG.info("    continue   %s --train_iters %d", resume, 2 * total)
    else:  # a longer schedule would raise the learning rate again
        LOG.info("    continue   %s --init_from %s ... (a new run with these weights: the learning rate of this run "
                 "has fallen)", command, folder)  # fmt: skip
