"""Train and measure many settings, listed in a TOML file, and compare them in a table.

    python sweep.py sweeps/leo-dcgan.toml                     # a published table: six settings
    python sweep.py sweeps/leo-dcgan.toml --set data=photos/cats --set train_iters=2000
    python sweep.py my.toml --jobs 2                          # two trainings at a time
    python sweep.py my.toml --slurm --jobs 8                  # on a cluster, eight trainings at a time
    python sweep.py my.toml --dry_run                         # show the commands, and start none

Runs that are missing are trained, runs that were stopped are resumed, and each run is measured by evaluate.py; what is
done already is skipped. Ctrl-C saves a checkpoint of each run, and the same command continues. The table, a picture of
samples and a page go to checkpoints/NAME/ beside the run folders; docs/sweeps.md describes the TOML file.
"""

import sys

from options.command_line import parse_command
from options.sweep import SweepOptions

if __name__ == "__main__":
    OPTIONS = parse_command(SweepOptions, __doc__)  # before torch is imported, so that --help answers at once

import contextlib
import shlex
from collections import Counter
from pathlib import Path

from sweeps.cluster import run_on_cluster
from sweeps.grid import Sweep, commands_of, job_state
from sweeps.local import run_here
from sweeps.reading import check_images, read_sweep
from system.files import require_writable
from system.program import run_main
from utils import LOG, printable


def show_plan(sweep: Sweep) -> None:
    """Print how many runs have which state, the state of each run, and the commands that it still needs."""
    states = [job_state(sweep, job) for job in sweep.jobs]
    counts = ", ".join(f"{count} {state}" for state, count in Counter(states).items())
    print(f"{len(states)} run{'s' * (len(states) > 1)}: {counts}")
    for job, state in zip(sweep.jobs, states, strict=True):
        print(printable(f"{job.folder}: {state}"))
        for command in commands_of(sweep, job):
            words = [word.removeprefix(f"{Path.cwd()}/") for word in command]
            print(printable(f"    {shlex.join(words)}"))


def run(sweep: Sweep, options: SweepOptions) -> int:
    """Train, measure and compare; return the exit code: 0, 1 if a run failed, 128 + signal if a signal stopped it."""
    require_writable(sweep.folder, "--checkpoint_dir")
    code = run_on_cluster(sweep, options) if options.slurm else run_here(sweep, options)
    if code <= 1:
        from sweeps.results import write_results  # matplotlib and Bokeh take their time

        for path in write_results(sweep):
            LOG.info("wrote %s", path)
    return code


def main(options: SweepOptions) -> int:
    """Run the sweep of the command line; return the exit code."""
    features = {} if options.features is None else {"features": options.features}
    sweep = read_sweep(Path(options.file), Path(options.checkpoint_dir), dict(options.changes or []), features)
    check_images(sweep)
    if options.dry_run:
        show_plan(sweep)
        return 0
    if not options.json:
        return run(sweep, options)
    with contextlib.redirect_stdout(sys.stderr):  # messages
        code = run(sweep, options)
    if code <= 1:
        print((sweep.folder / "sweep.json").read_text(encoding="utf-8"), end="")
    return code


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(OPTIONS), OPTIONS.SCRIPT))
