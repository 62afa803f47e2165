"""Image and video files: read, checked before they are written, and written whole or not at all.

Pixels are uint8 NumPy arrays: (H, W, 3) for RGB, (H, W, 4) with alpha. Videos are read and written one frame after
another, so that their length costs no memory; FFmpeg, inside PyAV, decodes and encodes them.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import av
import numpy as np
import torch
from PIL import Image

from data.decoding import open_image, to_rgb, upright
from utils import UserError, write_whole

# Ending of an image file -> Pillow's format, and how it is written: to look the same, not to be small.
IMAGE_FORMATS = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 95}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
}
_WITH_ALPHA = ("PNG", "WEBP", "TIFF")

# Ending of a video -> FFmpeg's format, its codec, the codec's pixels and options.
# x264's code for AVX-512 reads memory that nobody wrote: the same small frames would be another file each time.
_NO_AVX512 = {"x264-params": "asm=AVX2"} if torch.backends.cpu.get_cpu_capability() == "AVX512" else {}
_H264 = ("libx264", "yuv420p", {"crf": "18", "preset": "veryfast", **_NO_AVX512})
VIDEO_FORMATS = {
    ".mp4": ("mp4", *_H264),
    ".mov": ("mov", *_H264),
    ".mkv": ("matroska", *_H264),
    ".webm": ("webm", "libvpx-vp9", "yuv420p", {"crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "5"}),
    ".gif": ("gif", "gif", "pal8", {}),
}

# Ending -> FFmpeg's name of what reads it. Left to itself FFmpeg looks inside, and plays a list of other files as well.
VIDEOS_READ = {
    ".mp4": "mov", ".mov": "mov", ".m4v": "mov", ".mkv": "matroska", ".webm": "matroska", ".gif": "gif", ".avi": "avi",
}  # fmt: skip

Item = TypeVar("Item")
Result = TypeVar("Result")
_END = object()


# ----------------------------------------------------------------------------------------------------------------------
# Checks of what is to be written


def check_new_file(path: Path, endings: Iterable[str], overwrite: bool, flag: str = "--out") -> None:
    """Raise UserError unless a file can be written there: its ending, its folder, and nothing that would be lost."""
    if path.suffix.lower() not in endings:
        raise UserError(f"{flag}: {path} has no ending that can be written here; use one of {', '.join(endings)}")
    if path.is_dir():
        raise UserError(f"{flag}: {path} is a folder; give a file, such as {path / ('name' + next(iter(endings)))}")
    if path.exists() and not overwrite:
        raise UserError(f"{flag}: {path} exists; give another name, or add --overwrite")
    _check_folder_can_be(path.parent, flag)


def check_new_folder(path: Path, overwrite: bool, flag: str = "--out") -> None:
    """Raise UserError unless files can be put there: a new folder, an empty one, or any with `overwrite`."""
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UserError(f"{flag}: {path} holds files; give another folder, or add --overwrite")
    _check_folder_can_be(path, flag)


def _check_folder_can_be(path: Path, flag: str) -> None:
    """Raise UserError unless the folder is there, or can be made, and can be written to."""
    parent = path
    while not os.path.lexists(parent) and parent != parent.parent:
        parent = parent.parent
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"{flag}: {parent} is no folder that you can write to; give another")


# ----------------------------------------------------------------------------------------------------------------------
# Images


def read_image(path: Path) -> np.ndarray:
    """Return an image, upright by its EXIF tag: (H, W, 3), or (H, W, 4) if it has alpha.

    Where it is transparent its RGB is that of the image on white, as it was in training.

    Raises:
        ImageError: no regular file, or one with too many pixels.
        OSError, ValueError, SyntaxError: whatever Pillow says of a broken file.
    """
    with open_image(path) as image:
        image = upright(image)
        rgb = to_rgb(image)
        has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
        if has_alpha or ("transparency" in image.info and image.mode in ("1", "L", "P", "RGB")):
            rgb.putalpha(image.convert("RGBA").getchannel("A"))
        return np.array(rgb)


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write an image (H, W, 3 or 4) in the format of its ending, with nothing but its pixels; alpha where there can be.

    Raises:
        OSError, ValueError: whatever Pillow says of a size that the format can't hold.
    """
    kind, how = IMAGE_FORMATS[path.suffix.lower()]
    image = Image.fromarray(pixels if kind in _WITH_ALPHA else pixels[:, :, :3])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: image.save(file, format=kind, **how))


# ----------------------------------------------------------------------------------------------------------------------
# Videos


class Frame(NamedTuple):
    """A frame of a video: when it appears and for how long, in units of the video's time base, and its pixels."""

    time: int
    duration: int
    pixels: np.ndarray


class Video:
    """The frames of a video file, decoded one by one while they are iterated over.

    Attributes:
        rate: frames a second, on average.
        time_base: unit of the frames' times, in seconds.
        count: of the frames, as far as the file says.
        seconds: its length, as the file says; 0 if it doesn't.
        ended: when its frames ended, in seconds, once they were iterated over.

    Raises:
        UserError: no video, an empty or a broken one; while iterating also where it breaks.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with self._open() as container:
                stream = container.streams.video[0]
                next(container.decode(stream))
                self.time_base = stream.time_base
                seconds = Fraction(container.duration or 0, av.time_base)
                rate = stream.average_rate or stream.guessed_rate or Fraction(25)
                if stream.frames and stream.duration:  # of a GIF the others are guesses
                    rate = stream.frames / (stream.duration * stream.time_base)
                self.rate = rate.limit_denominator(1001)
                self.count = stream.frames or round(seconds * rate) or None
                self.seconds = stream.duration * stream.time_base if stream.duration else seconds
                self.ended = Fraction(0)
        except (av.FFmpegError, IndexError, StopIteration) as error:
            raise UserError(f"{path} is no video that can be read ({_reason(error)}); give another") from None

    def _open(self) -> Any:
        return av.open(str(self.path), format=VIDEOS_READ[self.path.suffix.lower()])

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames, upright, from time 0 on; transparent ones on white."""
        step = max(1, round(1 / (self.rate * self.time_base)))
        start, size, last = None, None, -step
        try:
            with self._open() as container:
                for frame in container.decode(container.streams.video[0]):
                    time = frame.pts if frame.pts is not None else (start or 0) + last + step
                    start = time if start is None else start
                    size = size or {"width": frame.width, "height": frame.height}  # some change it on the way
                    has_alpha = frame.format.name in ("bgra", "rgba", "pal8", "yuva420p")
                    pixels = frame.to_ndarray(format="rgba" if has_alpha else "rgb24", **size)  # (H, W, 3 or 4)
                    pixels = np.array(to_rgb(Image.fromarray(pixels))) if has_alpha else pixels
                    pixels = np.rot90(pixels, frame.rotation // 90)  # phones film sideways and note how to turn it
                    last = max(time - start, last + 1)
                    self.ended = (last + (frame.duration or step)) * self.time_base
                    yield Frame(last, frame.duration or step, np.ascontiguousarray(pixels))
        except av.FFmpegError as error:
            ended = float(self.ended)
            raise UserError(f"{self.path} is broken after {ended:.1f} s ({_reason(error)}); give another") from None


def write_video(path: Path, frames: Iterable[Frame], rate: Fraction, time_base: Fraction, loop: bool = False) -> int:
    """Write frames as they come, in the format of the ending, without sound.

    H.264 and VP9 halve the resolution of colors, so they need even sizes: an odd row or column is repeated.

    Args:
        rate: frames a second, as the file is to say.
        time_base: unit of the frames' times, in seconds.
        loop: have a GIF start again, for ever.

    Returns:
        The number of frames.

    Raises:
        UserError: there are no frames, or FFmpeg can't encode them.
    """
    kind, codec, pixel_format, how = VIDEO_FORMATS[path.suffix.lower()]
    count = 0
    for_muxer = {"loop": "0" if loop else "-1"} if kind == "gif" else {}

    def write(file: BinaryIO) -> None:
        nonlocal count
        with av.open(file, "w", format=kind, options={**for_muxer, "fflags": "+bitexact"}) as container:
            stream, graph = None, None
            for time, duration, pixels in frames:
                count += 1
                if kind != "gif":
                    pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
                if stream is None:
                    stream = container.add_stream(codec, rate=rate, options=how)
                    stream.height, stream.width = pixels.shape[:2]
                    stream.pix_fmt = pixel_format
                    stream.codec_context.time_base = time_base
                    graph = _palette_graph(pixels, time_base) if kind == "gif" else None
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.duration, frame.time_base = time, duration, time_base
                for ready in _through(graph, frame):
                    container.mux(stream.encode(ready))
            if count == 0:
                raise UserError(f"{path}: there are no frames to write")
            for ready in _through(graph, None):
                container.mux(stream.encode(ready))
            container.mux(stream.encode())

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write)
    except av.FFmpegError as error:
        raise UserError(f"{path} can't be written ({_reason(error)}); use another ending or size") from None
    return count


def _palette_graph(pixels: np.ndarray, time_base: Fraction) -> Any:
    """Return FFmpeg's filters that give every frame of a GIF 256 colors of its own."""
    graph = av.filter.Graph()
    height, width = pixels.shape[:2]
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=time_base)
    split, choose = graph.add("split"), graph.add("palettegen", "stats_mode=single")
    use, sink = graph.add("paletteuse", "new=1:dither=sierra2_4a"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(choose, 1, 0)
    choose.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


def _through(graph: Any, frame: Any) -> Iterator[Any]:
    """Yield what comes out of a filter graph after `frame` went in (None: the end); without a graph the frame."""
    if graph is None:
        yield from [frame] if frame is not None else []
        return
    graph.push(frame)
    while True:
        try:
            yield graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return


def _reason(error: Exception) -> str:
    """Return what FFmpeg says, without the path that it repeats."""
    return getattr(error, "strerror", None) or "it has no frames"


def ahead(items: Iterable[Item], depth: int = 4) -> Iterator[Item]:
    """Yield the items, computed in a thread of their own, at most `depth` ahead. Errors come where they happened."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, iterator, _END) for _ in range(depth))
        try:
            while (item := pending.popleft().result()) is not _END:
                pending.append(pool.submit(next, iterator, _END))
                yield item
        finally:
            pool.shutdown(cancel_futures=True)


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, prepare: Callable[[], object]
) -> Iterator[Result]:
    """Yield function(item) in the order of the items, computed in several threads, one item a thread.

    An error of the function comes where it happened; one of the items at once.

    Args:
        workers: threads; so many items and one more are under way.
        prepare: called once in each thread.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(workers, initializer=prepare) as pool:
        pending = deque(pool.submit(function, item) for item in itertools.islice(iterator, workers + 1))
        try:
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in itertools.islice(iterator, 1))
        finally:
            pool.shutdown(cancel_futures=True)
