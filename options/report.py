"""The options of report.py."""

from dataclasses import dataclass
from typing import ClassVar

from options.commands import CommandOptions
from options.fields import option


@dataclass(frozen=True, kw_only=True)
class ReportOptions(CommandOptions):
    """The options of report.py."""

    SCRIPT: ClassVar[str] = "report.py"

    # fmt: off
    runs: list[str] = option(
        None, "run folders of vanilla_gan.py and cycle_gan.py", positional=True, required=True, several=True,
        is_path=True, metavar="RUN")
    out: str = option("report.html", "the page, an HTML file", aliases=("-o",), is_path=True, metavar="FILE")
    overwrite: bool = option(False, "replace a file of the same name that this command did not write")
    watch: bool = option(False, "write the page repeatedly until no run is training, or until Ctrl-C")
    every: int | None = option(
        None, "with --watch: seconds between two pages; default: 10", at_least=1, at_most=86_400, metavar="SECONDS")
    # fmt: on

    def check(self) -> None:
        super().check()
        if self.every is not None and not self.watch:
            raise ValueError(f"--every: {self.every} does nothing without --watch; add --watch, or leave it out")
