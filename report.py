"""Make one page that shows and compares runs: an HTML file without links to other files.

    python report.py checkpoints/a checkpoints/b -o report.html
    python report.py checkpoints/*                            # every run; other files and folders are left out
    python report.py checkpoints/a --watch                    # write the page again while the run trains

The page shows state, speed, options, losses, evaluations, grids and measurements of each run, and the commands that
resume or use the run. Runs of vanilla_gan.py and cycle_gan.py can share a page. Run folders are only read.
"""

import sys

from options.command_line import parse_command
from options.report import ReportOptions

if __name__ == "__main__":
    OPTIONS = parse_command(ReportOptions, __doc__)  # before torch is imported, so that --help answers at once

from pages.report import report
from system.program import run_main
from utils import UserError


def main(options: ReportOptions) -> int:
    """Write the page of the command line; return the exit code."""
    try:
        return report(options)
    except OSError as error:  # a missing permission, such as to list a run folder
        raise UserError(
            f"{error.filename or options.out}: {error.strerror or error}; fix this, and try again"
        ) from None


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(OPTIONS), OPTIONS.SCRIPT))
