"""Compare decoding the images of TFRecord files with decoding the same JPEG files in a folder.

    python benchmarks/tfrecords.py                                       # 2,000 images of 256x256, half a minute

Each round measures both: the folder first in the first round, the records first in the second round, and so on. What is
measured is what a training does at its start: find the images, verify the checksums of the records, and decode. The
script prints the medians, and for each round the time of the records divided by the time of the folder. It does so for
the clock, and for the time of the processor, which other programs disturb less.
"""

import argparse
import io
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from PIL import Image
from tfrecord import TFRecordWriter
from tqdm import tqdm

from benchmarks.ratios import summarize
from images.decoding import decode_all
from sources.domains import read_images
from system.device import tune_malloc
from system.program import run_main, set_up_log

PER_FILE = 100  # records of a file


def make_jpeg(seed: int, size: int) -> bytes:
    """Return the bytes of a JPEG: smooth random colors with noise."""
    random = np.random.default_rng(seed)
    blobs = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((size, size))
    pixels = np.asarray(blobs) + random.normal(0, 8, (size, size, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_images(folder: Path, records: Path, count: int, size: int) -> None:
    """Write the same JPEGs as files and as records."""
    folder.mkdir()
    records.mkdir()
    for start in range(0, count, PER_FILE):
        numbers = range(start, min(start + PER_FILE, count))
        writer = TFRecordWriter(str(records / f"photo{start // PER_FILE:02d}-{len(numbers)}.tfrec"))
        for number in numbers:
            data, name = make_jpeg(number, size), f"{number:06d}"
            (folder / f"{name}.jpg").write_bytes(data)
            writer.write({"image": (data, "byte"), "image_name": (name.encode(), "byte")})
        writer.close()


def time_decoding(location: Path, size: int) -> tuple[float, float]:
    """Return the seconds that finding and decoding the images of a folder takes: by the clock, and of the processor."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        started = time.monotonic(), time.process_time()
        decoded = decode_all(read_images(location), size, pool)
        ended = time.monotonic(), time.process_time()
    assert not decoded.skipped
    return ended[0] - started[0], ended[1] - started[1]


def main(arguments: list[str]) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="number of images (default: 2000)")
    parser.add_argument("--size", type=int, default=256, help="height and width in pixels (default: 256)")
    parser.add_argument("--rounds", type=int, default=5, help="number of pairs of A and B (default: 5)")
    options = parser.parse_args(arguments)
    if min(options.count, options.rounds) < 1 or options.size < 12:
        parser.error("--count, --rounds and --size: use at least 1, 1 and 12")

    set_up_log()
    tune_malloc()  # as the training does
    rounds = []
    with tempfile.TemporaryDirectory() as work:
        places = [Path(work) / "folder", Path(work) / "records"]
        write_images(places[0], places[1], options.count, options.size)
        for place in places:
            time_decoding(place, options.size)  # the first time is slower
        for number in tqdm(range(options.rounds), "measure", unit=" rounds", disable=None):
            order = places if number % 2 == 0 else places[::-1]
            seconds = {place: time_decoding(place, options.size) for place in order}
            rounds.append([seconds[place] for place in places])
    for kind, what in enumerate(("by the clock", "of the processor")):
        folder, records, ratio = summarize([(folder[kind], records[kind]) for folder, records in rounds])
        print(f"{what}: folder {folder:.2f} s, records {records:.2f} s: {ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:]), "tfrecords.py"))
