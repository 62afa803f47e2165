"""Measure the translation of a video beside the network alone.

    python benchmarks/video.py checkpoints/my-fruit --direction X2Y             # ten seconds of film, under two minutes

A film of toy cats that wander through the picture, 256x256 at 30 frames a second, is translated by the network alone,
its frames in memory one after another (A), and by `generate.py translate`, with decoding and encoding (B); in turn,
A B A B. Printed are the medians of the frames a second, and of the ratios of the rounds. Nothing else should run
meanwhile.
"""

import argparse
import contextlib
import io
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from tqdm import tqdm

import generate
from data.media import Frame, Video, read_image, write_video
from data_loader import list_images, toy_cats
from utils import keep_freed_memory, run_main

_RATE = 30


def film(seconds: float) -> Iterator[Frame]:
    """Yield frames of (256, 256, 3): a cat a second, which moves to the left by two pixels a frame."""
    files = list_images(toy_cats(256) / "trainA", flag="")
    for i in range(round(seconds * _RATE)):
        cat = read_image(files[i // _RATE % len(files)])
        yield Frame(i, 1, np.ascontiguousarray(np.roll(cat, -2 * i, axis=1)))


def time_network(run: str, direction: str, video: Path) -> float:
    """Return the frames a second of the network alone, on the device that `translate` would take."""
    options = generate.parse(["translate", run, str(video), "--direction", direction, "-o", "unused.mp4"])
    G = generate.choose_generator(generate.load_for(options, "cycle_gan.py"), direction)
    frames = list(Video(video))
    translations = (generate.translate_pixels(G, frame.pixels[None]).cpu() for frame in frames)
    next(translations)
    started = time.monotonic()
    for _ in translations:
        pass
    return (len(frames) - 1) / (time.monotonic() - started)


def time_translate(run: str, direction: str, video: Path) -> float:
    """Return the frames a second that `generate.py translate` prints."""
    printed = io.StringIO()
    arguments = ["translate", run, str(video), "--direction", direction, "-o", str(video.with_name("translated.mp4"))]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        generate.main(generate.parse([*arguments, "--overwrite"]))
    return float(re.search(r"([\d.]+) frames/s", printed.getvalue())[1])


def main(arguments: list[str]) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="run folder of cycle_gan.py, or one of its checkpoints")
    parser.add_argument("--direction", default="X2Y", choices=("X2Y", "Y2X"))
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the film (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, help="A B pairs (default: 3)")
    options = parser.parse_args(arguments)
    if options.seconds < 0.1 or options.rounds < 1:
        parser.error("--seconds and --rounds: use at least 0.1 and 1")

    keep_freed_memory()  # as the command does
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "film.mp4"
        write_video(video, film(options.seconds), Fraction(_RATE), Fraction(1, _RATE))
        for _ in tqdm(range(options.rounds), "video", unit=" rounds", disable=None):
            rates.append([measure(options.run, options.direction, video) for measure in (time_network, time_translate)])
    alone, whole = (statistics.median(column) for column in zip(*rates, strict=True))
    ratios = [pair[1] / pair[0] for pair in rates]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"the network {alone:.1f} frames/s, translate {whole:.1f}: {statistics.median(ratios):.2f} ({each})")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:]), "video.py"))
