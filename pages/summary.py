"""The part on top of a page about the runs of a sweep: tables with a row for each setting, notes, and a picture."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Cell(NamedTuple):
    """A cell of a table: its text, and whether it is the best of its column."""

    text: str
    is_best: bool = False


@dataclass(frozen=True)
class SummaryTable:
    """A table with a row for each setting.

    Attributes:
        title, about: texts above the table; `about` says what all rows share.
        columns: the headings, of the settings first.
        rows: as many cells as columns each.
    """

    title: str
    about: str
    columns: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Summary:
    """What a page shows above its runs.

    Attributes:
        title: heading of the page.
        about: a text above the tables.
        notes: texts below the tables.
        picture: a PNG file with a row of images for each setting; None if there is none.
    """

    title: str
    about: str
    tables: list[SummaryTable]
    notes: list[str] = field(default_factory=list)
    picture: Path | None = None
