"""Compare the speed of translating a video with the speed of the network alone.

    python benchmarks/video.py checkpoints/my-fruit --direction X2Y             # a video of ten seconds, two minutes

A video of toy cats that move to the left, 256x256 at 30 frames per second, is translated by the network alone, its
frames in memory one after another (A), and by `generate.py translate`, with decoding and encoding (B); in turn,
A B A B. The script prints the medians of the frames per second, and of the ratios of the rounds. No other program
should run at the same time.
"""

import argparse
import contextlib
import io
import re
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
from benchmarks.ratios import summarize
from generation.trained import choose_generator, load_trained_by
from generation.translation import translate_pixels
from images.files import read_image
from images.video import Frame, Video, write_video
from options.command_line import parse_subcommand
from options.commands import TranslateOptions
from options.fields import expand_home
from sources.domains import toy_cats
from sources.folders import list_images
from system.device import tune_malloc
from system.program import run_main, set_up_log

RATE = 30  # frames per second


def make_frames(seconds: float) -> Iterator[Frame]:
    """Yield frames of (256, 256, 3): another cat every second, which moves to the left by two pixels per frame."""
    files = list_images(toy_cats(256) / "trainA", flag="")
    for i in range(round(seconds * RATE)):
        cat = read_image(files[i // RATE % len(files)])
        yield Frame(i, 1, np.ascontiguousarray(np.roll(cat, -2 * i, axis=1)))


def read_options(run: str, direction: str, video: Path) -> TranslateOptions:
    """Return the options of the command that translates the video."""
    target = video.with_name("translated.mp4")
    arguments = ["translate", run, str(video), "--direction", direction, "-o", str(target), "--overwrite"]
    options = parse_subcommand(generate.OPTIONS_OF, "", arguments)
    assert isinstance(options, TranslateOptions)
    return options


def time_network(run: str, direction: str, video: Path) -> float:
    """Return the frames per second of the network alone, on the device that `translate` uses."""
    G = choose_generator(load_trained_by("cycle_gan.py", read_options(run, direction, video)), direction)
    frames = list(Video(video))
    translations = (translate_pixels(G, frame.pixels[None]).cpu() for frame in frames)
    next(translations)
    started = time.monotonic()
    for _ in translations:
        pass
    return (len(frames) - 1) / (time.monotonic() - started)


def time_translate(run: str, direction: str, video: Path) -> float:
    """Return the frames per second that `generate.py translate` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        generate.main(read_options(run, direction, video))
    return float(re.search(r"([\d.]+) frames/s", printed.getvalue())[1])  # type: ignore[index]


def main(arguments: list[str]) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", type=expand_home, metavar="RUN", help="run folder of cycle_gan.py, or one of its checkpoints"
    )
    parser.add_argument("--direction", default="X2Y", choices=("X2Y", "Y2X"))
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the video (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, help="number of A B pairs (default: 3)")
    options = parser.parse_args(arguments)
    if options.seconds < 0.1 or options.rounds < 1:
        parser.error("--seconds and --rounds: use at least 0.1 and 1")

    set_up_log()
    tune_malloc()  # as the command does
    rates = []
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "cats.mp4"
        write_video(video, make_frames(options.seconds), Fraction(RATE), Fraction(1, RATE))
        for _ in tqdm(range(options.rounds), "video", unit=" rounds", disable=None):
            what = options.run, options.direction, video
            rates.append((time_network(*what), time_translate(*what)))
    alone, whole, ratio = summarize(rates)
    print(f"the network {alone:.1f} frames/s, translate {whole:.1f}: {ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(lambda: main(sys.argv[1:]), "video.py"))
