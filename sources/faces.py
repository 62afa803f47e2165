"""`dataset.py faces`: a data set of the faces of one person, or of all persons, out of photo albums."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from images.decoding import describe_error
from images.files import write_image
from options.dataset import FacesOptions
from sources.backgrounds import Segmenter, replace_background
from sources.contact_sheets import Tile, draw_sheets
from sources.face_groups import find_near_copies, group_persons
from sources.face_reader import MAX_MISSING, Face, FaceReader, read_photo, reads_heic, require_packages
from sources.face_record import RECORD, REMOVED, REPORT, Entry, FaceRecord, Photo, stamp_of
from sources.folders import EXTENSIONS
from system.files import require_writable
from system.progress import ProgressBar
from utils import LOG, UserError, shorten

HEIC = (".heic", ".heif")
SAVE_SECONDS = 5.0  # between two savings of the record: this much is done again after a crash
REFUSED, UNGROUPED = f"{REPORT}/refused", f"{REPORT}/ungrouped"  # folders of crops


class Search(NamedTuple):
    """What the search for faces in a photo needs; `references` has a row of 128 numbers for each photo of --person."""

    reader: FaceReader
    references: np.ndarray | None
    segmenter: Segmenter | None
    options: FacesOptions
    folder: Path


def faces(options: FacesOptions) -> int:
    """Write the faces in an album, and contact sheets of what was kept and refused; return the exit code.

    Raises:
        UserError: no photos, packages that are missing, reference photos without exactly one face, or an output folder
            with other files. Nothing is written then.
    """
    require_packages()
    folder = Path(os.path.realpath(options.out))  # the record knows each photo by one path
    photos = find_photos(Path(os.path.realpath(options.album)), folder)
    names = ("size", "background", "padding", "min_size", "threshold", "near_copy")
    settings = {"person": _hash_photos(options.person), **{name: getattr(options, name) for name in names}}
    record = FaceRecord(folder, settings)
    require_writable(folder, "--out")
    todo = [path for path in photos if not record.is_done(path)]
    if len(todo) < len(photos):
        LOG.info("%d of %d photos were searched before", len(photos) - len(todo), len(photos))
    if todo or not record.is_finished:
        reader = FaceReader(options.size, options.padding)
        references = None if options.person is None else read_references(reader, options.person, options.threshold)
        segmenter = None if options.background == "keep" else Segmenter()
        try:
            _search(todo, Search(reader, references, segmenter, options, folder), record)
            _sort(record, options)
            _draw(record)
            record.is_finished = True
            record.save()
        except OSError as error:
            where = error.filename or folder
            raise UserError(f"{where}: {error.strerror or error}; fix this, then repeat the command") from None
    _summarize(record, options)
    return 0


def find_photos(album: Path, output: Path) -> list[Path]:
    """Return the photos in a folder and below it, sorted; not those in output folders or in hidden folders.

    Raises:
        UserError: there is no such folder, or no photo in it.
    """
    if not album.is_dir():
        what = "is a file" if album.exists() else "does not exist"
        raise UserError(f"ALBUM: {album} {what}; give a folder of photos")
    if album == output:
        raise UserError(f"--out: {output} is the album; give another folder, so that the photos stay as they are")
    accepted = (*EXTENSIONS, *(HEIC if reads_heic() else ()))
    photos: list[Path] = []
    others: Counter[str] = Counter()
    for place, folders, names in os.walk(album):
        hidden = {name for name in folders if name.startswith(".") or name == "__MACOSX"}
        outputs = {name for name in folders if Path(place, name, REPORT, RECORD).exists()}  # also of other calls
        folders[:] = [name for name in folders if name not in hidden | outputs]
        for name in names:
            ending = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            if ending in accepted:
                photos.append(Path(place, name))
            else:
                others[ending or "no extension"] += 1
    if any(ending in HEIC for ending in others):
        LOG.warning("photos in HEIC are left out; to read them: pip install pillow-heif")
    found = ", ".join(f"{count} {ending}" for ending, count in others.most_common(5))
    if not photos:
        raise UserError(
            f"ALBUM: no photo in {album}{f', but other files: {found}' if found else ''}; accepted extensions: "
            f"{', '.join(accepted)}"
        )
    if found:
        LOG.info("files that are not photos are left out: %s", found)
    return sorted(photos)


def _hash_photos(photos: Sequence[str] | None) -> list[str] | None:
    """Return a hash of the content of each photo of --person, sorted. Raises UserError if one cannot be read."""
    try:
        return None if photos is None else sorted(hashlib.sha256(Path(one).read_bytes()).hexdigest() for one in photos)
    except OSError as error:
        raise UserError(f"--person: {error.filename}: {error.strerror}; give a photo of the person") from None


# ----------------------------------------------------------------------------------------------------------------------
# The photos of --person


def read_references(reader: FaceReader, photos: Sequence[str], threshold: float) -> np.ndarray:
    """Return the numbers of the person's face in each photo: float32 (N, 128). Photos that differ much are a warning.

    Raises:
        UserError: a photo cannot be read, or does not show exactly one face.
    """
    rows = []
    for name in photos:
        try:
            pixels = read_photo(Path(name))
        except Exception as error:  # Pillow's decoders raise any exception for broken bytes
            raise UserError(f"--person: {name}: {describe_error(error)}; give another photo") from None
        found = reader.find(pixels)
        if not found:
            raise UserError(f"--person: {name} shows no face; give one with a larger face, or from the front")
        if len(found) > 1:
            raise UserError(
                f"--person: {name} shows {len(found)} faces: {_positions(found)}; which one is the person? Crop the "
                "photo to it"
            )
        rows.append(reader.describe(pixels, found[0]))
    references = np.stack(rows)
    for index, name in enumerate(photos):
        differences = np.linalg.norm(np.delete(references, index, axis=0) - references[index], axis=1)
        if len(differences) and differences.min() >= threshold:
            LOG.warning("--person: %s seems to show another person than the other photos; leave it out if so", name)
    return references


def _positions(found: Sequence[Face]) -> str:
    """Say where the faces in a photo are: "left (90 pixels wide), right (50 pixels wide)"."""
    across = max(face.x for face in found) - min(face.x for face in found)
    down = max(face.y for face in found) - min(face.y for face in found)
    if down > across:
        found = sorted(found, key=lambda face: face.y)
    first, last = ("upper", "lower") if down > across else ("left", "right")
    names = [first, *(f"number {number} from the {first}" for number in range(2, len(found))), last]
    return ", ".join(f"{name} ({face.width:.0f} pixels wide)" for name, face in zip(names, found, strict=True))


# ----------------------------------------------------------------------------------------------------------------------
# The photos of the album


def _search(photos: Sequence[Path], search: Search, record: FaceRecord) -> None:
    """Cut the faces out of photos, and record them; what was done is saved even after an error or Ctrl-C."""
    record.is_finished = False
    record.save()
    saved = time.monotonic()
    try:
        for path in ProgressBar(photos, "faces", "photos"):
            record.forget(path)
            record.photos[str(path)] = _search_photo(path, search)
            if time.monotonic() - saved > SAVE_SECONDS:
                record.save()
                saved = time.monotonic()
    finally:
        record.save()


def _search_photo(path: Path, search: Search) -> Photo:
    """Cut the faces out of a photo, write them, and return what was found."""
    photo = Photo(stamp_of(path))
    try:
        pixels = read_photo(path)
    except MemoryError:  # not the file's fault
        raise
    except Exception as error:  # Pillow's decoders raise any exception for broken bytes
        photo.problem = describe_error(error)
        return photo
    stem = os.fsencode(path.stem)[:100].decode(errors="ignore")
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]  # photos in several folders may have the same name
    for number, face in enumerate(search.reader.find(pixels), 1):
        entry = Entry(f"{stem}-{digest}-{number}.png", search.reader.source_size(face))
        crop = search.reader.cut(pixels, face)
        entry.reason = _refusal(entry, pixels, face, crop.missing, search)
        portrait = crop.pixels
        if not entry.reason and search.segmenter is not None:
            portrait = replace_background(portrait, search.segmenter(portrait), search.options.background)
        where = REFUSED if entry.reason else UNGROUPED
        if entry.reason or search.references is None:
            entry.file = f"{where}/{entry.file}"
        write_image(search.folder / entry.file, portrait)
        photo.faces.append(entry)
    return photo


def _refusal(entry: Entry, pixels: np.ndarray, face: Face, missing: float, search: Search) -> str:
    """Return why a face is refused, or ""; a face that is large enough gets its numbers and its difference."""
    least = search.options.size if search.options.min_size is None else search.options.min_size
    if entry.size < least:
        return f"small: {entry.size} pixels"
    descriptor = search.reader.describe(pixels, face)
    entry.set_descriptor(descriptor)
    if search.references is not None:
        entry.difference = float(np.linalg.norm(search.references - descriptor, axis=1).min())
        if entry.difference >= search.options.threshold:
            outside = f", {missing:.0%} outside the photo" if missing > MAX_MISSING else ""
            return f"another person: difference {entry.difference:.2f}{outside}"
    return f"cut by the edge of the photo: {missing:.0%} outside" if missing > MAX_MISSING else ""


def _sort(record: FaceRecord, options: FacesOptions) -> None:
    """Find near copies and, without --person, who is who; move every crop where it belongs."""
    entries = [entry for entry in record.entries() if entry.reason in ("", REMOVED)]
    if not entries:
        return
    descriptors = np.stack([entry.descriptor() for entry in entries])
    if options.person is None:
        numbers = group_persons(descriptors, options.threshold, [entry.person for entry in entries])
        for entry, number in zip(entries, numbers, strict=True):
            entry.person = number
    copies = find_near_copies(descriptors, [entry.size for entry in entries], options.near_copy)
    for index, entry in enumerate(entries):
        entry.copy_of = entries[copies[index]].name if index in copies else ""
        where = f"person-{entry.person:02d}/" if entry.person else ""
        record.move(entry, f"{where}{entry.name}" if entry.is_kept else f"{REFUSED}/{entry.name}")
    for folder in [record.folder / UNGROUPED, *record.folder.glob("person-*")]:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


# ----------------------------------------------------------------------------------------------------------------------
# The report


def _describe_reason(entry: Entry) -> str:
    """Return why a face is refused, for the contact sheet."""
    return entry.reason or f"near copy of {entry.copy_of.rsplit('-', 2)[0]}"


def _draw(record: FaceRecord) -> None:
    """Draw the contact sheets."""
    kept, refused = [], []
    for path, photo in record.photos.items():
        for entry in photo.faces:
            title, crop = Path(path).name, record.folder / entry.file
            if entry.is_kept:
                who = f"person-{entry.person:02d}" if entry.person else f"difference {entry.difference or 0:.2f}"
                kept.append((entry.person, Tile(crop, title, who)))
            elif entry.reason != REMOVED:
                refused.append((_describe_reason(entry).partition(":")[0], Tile(crop, title, _describe_reason(entry))))
    for name, tiles in (("kept", kept), ("refused", refused)):
        draw_sheets(record.folder / REPORT, name, [tile for _, tile in sorted(tiles, key=lambda one: one[0])])


def _summarize(record: FaceRecord, options: FacesOptions) -> None:
    """Say how many faces were kept and refused, where they are, and which photos could not be read."""
    entries = record.entries()
    kept = [entry for entry in entries if entry.is_kept]
    persons = "" if options.person else f"; persons: {len({entry.person for entry in kept})}"
    LOG.info("faces kept: %d, in %s; photos: %d%s", len(kept), options.out, len(record.photos), persons)
    reasons = Counter(
        "near copy" if entry.copy_of else entry.reason.partition(":")[0] for entry in entries if not entry.is_kept
    )
    if reasons:
        text = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        LOG.info("faces refused: %d (%s)", reasons.total(), text)
    empty = sum(not photo.faces and not photo.problem for photo in record.photos.values())
    if empty:
        LOG.info("photos without a face: %d", empty)
    problems = [f"{Path(path).name} ({photo.problem})" for path, photo in record.photos.items() if photo.problem]
    if problems:
        LOG.warning("photos that cannot be read: %d: %s", len(problems), shorten(problems))
    sheets = sorted(path.name for path in (record.folder / REPORT).glob("*.jpg"))
    if sheets:
        LOG.info("contact sheets in %s: %s", record.folder / REPORT, shorten(sheets))
    if not kept:
        LOG.warning("no face was kept; look at the refused faces, and see --threshold and --min_size")
