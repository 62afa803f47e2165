"""Images in TFRecord files, such as those of Kaggle's gan-getting-started.

A TFRecord file is a sequence of records: length (uint64), its checksum, data, its checksum. The data of each record is
a `tf.train.Example` whose feature `image` holds the bytes of an image file, and `image_name` its name.
"""

import hashlib
import io
import json
import re
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from images.decoding import ImageError, open_checked
from system.progress import ProgressBar
from utils import LOG, UserError, shorten

_EXTENSION = re.compile(r"\.(tfrec|tfrecords?)(?=$|-\d+-of-\d+$)", re.IGNORECASE)  # shards: a.tfrecord-00000-of-00010
IMAGE_KEYS = ("image", "image/encoded", "image_raw", "jpeg", "png")  # features that hold the bytes of an image file
NAME_KEYS = ("image_name", "image/filename", "filename")
JPEG = b"\xff\xd8\xff"
_SIGNATURES = {JPEG: ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp",
               b"II*\0": ".tif", b"MM\0*": ".tif"}  # fmt: skip


class Record(NamedTuple):
    """One record of a TFRecord file.

    Attributes:
        file: the file.
        offset: where the record begins in the file, in bytes.
        name: of the image, different from all others.
        size: of the image's file, in bytes; 0 if the record is damaged.
        start: where the image's file begins in the data of the record.
        is_jpeg: whether the image is a JPEG, which never has more than 8 bits.
    """

    file: Path
    offset: int
    name: str
    size: int
    start: int = 0
    is_jpeg: bool = False


def _checksum(data: bytes) -> int:
    """Return the checksum that a TFRecord file stores for `data`: CRC-32C, rotated and shifted."""
    import crc32c  # here, as tfrecord below: most runs have folders of images

    crc = crc32c.crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_record(file: io.BufferedReader) -> bytes | None:
    """Return the data of the record at the file's position, and move behind it; None at the end of the file.

    Raises:
        ImageError: the data are damaged; the position is behind the record.
        EOFError: the length is damaged or the file ends within the record, so the rest cannot be read.
    """
    header = file.read(12)
    if not header:
        return None
    if len(header) < 12:
        raise EOFError("the file is cut off here")
    length, checksum = struct.unpack("<QI", header)
    if _checksum(header[:8]) != checksum:
        raise EOFError("the checksum of the record's length is wrong")
    data = file.read(min(length, 2**31))
    end = file.read(4)
    if len(data) < length or len(end) < 4:
        raise EOFError("the file is cut off here")
    if _checksum(data) != struct.unpack("<I", end)[0]:
        raise ImageError("the checksum of the record is wrong")
    return data


def parse_image(data: bytes) -> tuple[bytes, str]:
    """Return the bytes of the image file in a record, and the image's name, "" without one.

    Raises:
        ImageError: the record is not a `tf.train.Example`, or none of IMAGE_KEYS is in it.
    """
    from google.protobuf.message import DecodeError
    from tfrecord.example_pb2 import Example

    try:
        features = Example.FromString(data).features.feature
    except DecodeError:
        raise ImageError("the record is not a tf.train.Example") from None
    values = {key: list(features[key].bytes_list.value) for key in (*IMAGE_KEYS, *NAME_KEYS) if key in features}
    images = [values[key][0] for key in IMAGE_KEYS if values.get(key)]
    if not images:
        found = shorten(sorted(features)) or "none"
        raise ImageError(f"the record has no image: its features are {found}, none of {', '.join(IMAGE_KEYS)}")
    names = [values[key][0].decode(errors="replace") for key in NAME_KEYS if values.get(key)]
    return images[0], names[0] if names else ""


def _name_image(image: bytes, name: str, file: Path, number: int) -> str:
    """Return the file name of an image: its own name with an extension, or the file's name with a number."""
    name = re.split(r"[/\\]", name)[-1].replace("\0", "_")
    name = name if name.strip(".") else f"{_EXTENSION.sub('', file.name)}-{number:05d}"
    extension = next((ext for start, ext in _SIGNATURES.items() if image.startswith(start)), "")
    return name if re.search(r"\.(png|jpe?g|webp|bmp|tiff?|gif)$", name, re.IGNORECASE) else name + extension


def find_records(file: Path) -> Iterator[Record]:
    """Yield the records of a file; damaged ones have the name `FILE at byte N`."""
    with file.open("rb") as stream:
        if stream.read(3) == b"\x1f\x8b\x08":
            raise UserError(f"{file} is compressed with gzip; unpack it first, such as with gunzip")
        stream.seek(0)
        number = 0
        while True:
            offset = stream.tell()
            try:
                data = read_record(stream)
                if data is None:
                    return
                image, name = parse_image(data)
                name = _name_image(image, name, file, number)
                yield Record(file, offset, name, len(image), data.find(image), image.startswith(JPEG))
            except (ImageError, EOFError) as error:
                yield Record(file, offset, f"{file.name} at byte {offset}", 0)
                if isinstance(error, EOFError):
                    return
            number += 1


class TFRecordSource:
    """Images in TFRecord files, in the order of their names: the same images as files in a folder give the same run.

    Args:
        records: the records, in their order.
        location, left_out: as in `ImageSource`.
    """

    def __init__(self, records: Sequence[Record], location: Path, left_out: str = ""):
        self.records, self.location, self.left_out = list(records), location, left_out
        self.names: Sequence[str] = [record.name for record in self.records]

    def open(self, index: int) -> Image.Image:
        """Return an image before its pixels are decoded.

        Raises:
            ImageError: the record is damaged, or has no image.
            Exception: whatever Pillow raises for broken bytes.
        """
        record = self.records[index]
        with record.file.open("rb") as file:
            file.seek(record.offset)
            try:
                data = read_record(file)
            except EOFError as error:
                raise ImageError(f"{error}, so the rest of the file cannot be read") from None
        if data is None:
            raise ImageError("the file is shorter than it was")
        image = data[record.start : record.start + record.size] if record.size else parse_image(data)[0]
        return open_checked(io.BytesIO(image))

    def may_be_wide(self, index: int) -> bool:
        return not self.records[index].is_jpeg

    def sizes(self) -> list[int]:
        return [record.size for record in self.records]

    def fingerprint(self) -> str:
        """Return a hash of the records, and of the sizes and dates of their files."""
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(self.files)]
        places = [(record.file.name, record.offset) for record in self.records]
        return hashlib.sha256(json.dumps([stats, places]).encode()).hexdigest()

    @property
    def files(self) -> set[Path]:
        """The files that hold the images."""
        return {record.file for record in self.records}

    def select(self, indices: Sequence[int]) -> "TFRecordSource":
        return TFRecordSource([self.records[index] for index in indices], self.location, self.left_out)


def is_record_file(path: Path) -> bool:
    """Whether a name has the extension of a TFRecord file, perhaps with the number of a shard behind it."""
    return _EXTENSION.search(path.name) is not None


def list_record_files(location: Path) -> list[Path]:
    """Return the TFRecord files of a folder, sorted by name, or the file itself; none if there are none."""
    if location.is_file():
        return [location] if is_record_file(location) else []
    visible = (path for path in location.iterdir() if not path.name.startswith("."))
    return sorted(path for path in visible if is_record_file(path) and path.is_file())


def _count_in_name(file: Path) -> int | None:
    """Return how many images the name of a file says that it has, as Kaggle's monet00-60.tfrec does; None if none."""
    match = re.fullmatch(r"\D*\d+-(\d+)", file.stem)
    return int(match[1]) if match else None


def read_tfrecords(files: Sequence[Path], location: Path, left_out: str = "") -> TFRecordSource:
    """Find all images in TFRecord files; verify the checksums of all records.

    Warns about files that hold fewer records than their names say, and about missing shards.

    Args:
        location, left_out: as in `ImageSource`.

    Raises:
        UserError: there is no record in the files, or a file is compressed.
    """
    records = []
    for file in ProgressBar(files, "index", "files", len(files)):
        found = list(find_records(file))
        expected = _count_in_name(file)
        if expected not in (None, len(found)):
            LOG.warning("%s has %d records, but its name says %d; download it again", file, len(found), expected)
        records += found
    shards = [re.fullmatch(r"(.*-)(\d+)-of-(\d+)(\.\w+)?", file.name) for file in files]
    missing = {shard[1]: int(shard[3]) for shard in shards if shard}
    for stem, total in missing.items():
        number = sum(1 for shard in shards if shard and shard[1] == stem)
        if number != total:
            LOG.warning("%s has %d of %d shards %s*; download the others", location, number, total, stem)
    times = Counter(record.name for record in records)
    records = [
        record if times[record.name] == 1 else record._replace(name=f"{record.file.name}-{record.offset}-{record.name}")
        for record in records
    ]
    if not records:
        raise UserError(f"{location}: the TFRecord files are empty; download them again")
    return TFRecordSource(sorted(records, key=lambda record: record.name), location, left_out)
