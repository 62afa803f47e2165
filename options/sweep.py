"""The options of sweep.py."""

import argparse
import contextlib
from dataclasses import dataclass
from typing import Any, ClassVar

from options.commands import CommandOptions
from options.fields import option


def read_change(text: str) -> tuple[str, Any]:
    """Return the option and the value of "lr=0.001", which becomes the type that it would have in a TOML file."""
    name, sign, value = (part.strip() for part in text.partition("="))
    if not (name and sign):
        raise argparse.ArgumentTypeError(f"{text!r} is not OPTION=VALUE; use one such as train_iters=2000")
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            if str(kind(value)) == value:  # not a folder that is called 007
                return name, kind(value)
    return name, {"true": True, "false": False}.get(value, value)


@dataclass(frozen=True, kw_only=True)
class SweepOptions(CommandOptions):
    """The options of sweep.py."""

    SCRIPT: ClassVar[str] = "sweep.py"

    # fmt: off
    file: str = option(
        "", "TOML file that lists the settings (docs/sweeps.md)", positional=True, required=True, metavar="FILE.toml",
        is_path=True)
    changes: list[tuple[str, Any]] | None = option(
        None, "change an option of all settings, such as --set train_iters=2000 or --set data=photos/cats; may be "
        "given several times", flag="--set", read=read_change, repeats=True, metavar="OPTION=VALUE")
    checkpoint_dir: str = option(
        "checkpoints", "folder that holds the folder of the sweep, which holds the run folders", metavar="FOLDER",
        is_path=True)
    features: str | None = option(
        None, "feature space of the measurements, as for evaluate.py; default: as the file says, else inception",
        metavar="{inception,imagenet,pixels,FILE}", is_path=True)
    dry_run: bool = option(False, "show what is done and the commands that are missing, and start nothing")
    json: bool = option(False, "print the results as JSON on standard output, and all messages on standard error")

    jobs: int | None = option(
        None, "trainings at a time; default: one, or one for each GPU; with --slurm: as many as the cluster allows",
        at_least=1, metavar="N")

    slurm: bool = option(
        False, "train on the nodes of a SLURM cluster, as the table [slurm] of the file says", "SLURM cluster")
    no_wait: bool = option(False, "submit the runs, and do not wait for them", "SLURM cluster")
    # fmt: on

    def check(self) -> None:
        super().check()
        if self.no_wait and not self.slurm:
            raise ValueError("--no_wait: does nothing without --slurm; leave it out")
        if self.json and self.dry_run:
            raise ValueError("--json: does nothing with --dry_run; leave one of them out")
