"""What `dataset.py faces` has done so far: a file in the output folder, so that a second call continues."""

import base64
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from system.files import read_json, write_json
from utils import UserError

REPORT = "report"  # folder in the output, for the record, the contact sheets and the refused faces
RECORD = "faces.json"
FORMAT = 1  # of the record
REMOVED = "deleted by hand"


@dataclass
class Entry:
    """A face that was cut out of a photo.

    Attributes:
        file: where the crop is, relative to the output folder.
        size: side of the crop in the photo, in pixels.
        reason: why the face is refused; "": it is not.
        difference: to the nearest reference photo; None: not compared.
        numbers: the 128 numbers, float32, as base64; "": too small to be described.
        person: number of the person, if the faces are grouped by person.
        copy_of: name of the larger face of which this one is a near copy; "": none.
    """

    file: str
    size: int
    reason: str = ""
    difference: float | None = None
    numbers: str = ""
    person: int = 0
    copy_of: str = ""

    @property
    def name(self) -> str:
        return self.file.rpartition("/")[2]

    @property
    def is_kept(self) -> bool:
        return not self.reason and not self.copy_of

    def descriptor(self) -> np.ndarray:
        """Return the 128 numbers: float32 (128,)."""
        return np.frombuffer(base64.b64decode(self.numbers), dtype="<f4")

    def set_descriptor(self, descriptor: np.ndarray) -> None:
        self.numbers = base64.b64encode(descriptor.astype("<f4").tobytes()).decode()


@dataclass
class Photo:
    """A photo that was searched.

    Attributes:
        stamp: size and date of the file.
        problem: why the photo could not be read; "": it could.
        faces: the faces in it, from left to right.
    """

    stamp: list[int]
    problem: str = ""
    faces: list[Entry] = field(default_factory=list)


class FaceRecord:
    """All photos that were searched, by their absolute paths, and the settings that they were searched with.

    Args:
        folder: the output folder.
        settings: the options that the faces depend on, as plain values.

    Attributes:
        is_finished: the faces were sorted and the contact sheets drawn after the last photo.

    Raises:
        UserError: the folder contains other files, or faces that were made with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder, self.settings = folder, settings
        self.photos: dict[str, Photo] = {}
        self.is_finished = False
        self.path = folder / REPORT / RECORD
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--out: {folder} is a file; give a folder")
        if self.path.exists():
            self._load()
        elif folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"--out: {folder} contains files that this command did not write; give a new folder")

    def _load(self) -> None:
        content = read_json(self.path)
        if content.get("format") != FORMAT:
            raise UserError(f"--out: {self.path} is of another version of this program; give a new folder")
        before = content["settings"]
        for name, value in self.settings.items():
            if before[name] != value:
                used = "other photos" if name == "person" else before[name]
                what = f"without --{name}" if before[name] is None else f"with {used}"
                raise UserError(
                    f"--{name}: the faces in {self.folder} were made {what}; use that again, or a new folder"
                )
        self.is_finished = content["is_finished"]
        for path, photo in content["photos"].items():
            self.photos[path] = Photo(photo["stamp"], photo["problem"], [Entry(**face) for face in photo["faces"]])
        lost = [entry for entry in self.entries() if entry.is_kept and not (self.folder / entry.file).exists()]
        moved = {path.name: path for path in self.folder.rglob("*.png")} if lost else {}
        for entry in lost:  # deleted by the user, or the program was killed when it had just moved the file
            if entry.name in moved:
                entry.file = moved[entry.name].relative_to(self.folder).as_posix()
            else:
                entry.reason = REMOVED

    def save(self) -> None:
        """Write the record, whole or not at all."""
        photos = {path: asdict(photo) for path, photo in self.photos.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            self.path,
            {"format": FORMAT, "settings": self.settings, "is_finished": self.is_finished, "photos": photos},
        )

    def entries(self) -> list[Entry]:
        """Return the faces of all photos."""
        return [entry for photo in self.photos.values() for entry in photo.faces]

    def is_done(self, path: Path) -> bool:
        """Whether a photo was searched and has not changed since."""
        photo = self.photos.get(str(path))
        return photo is not None and photo.stamp == stamp_of(path)

    def forget(self, path: Path) -> None:
        """Delete the faces of a photo that has changed."""
        for entry in self.photos.pop(str(path), Photo([])).faces:
            (self.folder / entry.file).unlink(missing_ok=True)

    def move(self, entry: Entry, file: str) -> None:
        """Move the crop of a face to another place in the output folder; a crop that is not there stays away."""
        source, target = self.folder / entry.file, self.folder / file
        if source != target and source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
        entry.file = file


def stamp_of(path: Path) -> list[int]:
    """Return size and date of a file; of a file that cannot be reached, zeros."""
    try:
        found = path.stat()
    except OSError:
        return [0, 0]
    return [found.st_size, found.st_mtime_ns]
