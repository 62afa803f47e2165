"""Videos: read and written frame by frame, so that their length costs no memory. FFmpeg, inside PyAV, does the work.

Pixels are uint8 arrays (H, W, 3).
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
import torch
from PIL import Image

from images.decoding import to_rgb
from system.files import atomic_write
from utils import UserError

# Extension of a video -> FFmpeg's format, its codec, pixel format and options.
# x264's AVX-512 code reads uninitialized memory, so the same small frames would give a different file each time.
_NO_AVX512 = {"x264-params": "asm=AVX2"} if torch.backends.cpu.get_cpu_capability() == "AVX512" else {}
_H264 = ("libx264", "yuv420p", {"crf": "18", "preset": "veryfast", **_NO_AVX512})
VIDEO_FORMATS = {
    ".mp4": ("mp4", *_H264),
    ".mov": ("mov", *_H264),
    ".mkv": ("matroska", *_H264),
    ".webm": ("webm", "libvpx-vp9", "yuv420p", {"crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "5"}),
    ".gif": ("gif", "gif", "pal8", {}),
}
# Extension -> FFmpeg's demuxer. Without it FFmpeg guesses, and would also open playlists of other files.
VIDEOS_READ = {
    ".mp4": "mov", ".mov": "mov", ".m4v": "mov", ".mkv": "matroska", ".webm": "matroska", ".gif": "gif", ".avi": "avi",
}  # fmt: skip


class Frame(NamedTuple):
    """A frame of a video: its time and duration, in units of the video's time base, and its pixels."""

    time: int
    duration: int
    pixels: np.ndarray


class Video:
    """The frames of a video file, decoded one by one while iterating.

    Attributes:
        rate: frames per second, on average.
        time_base: unit of the frames' times, in seconds.
        count: number of frames, None if the file does not state it.
        seconds: length in seconds, 0 if the file does not state it.
        ended: after iterating, the time in seconds at which the last frame ended.

    Raises:
        UserError: not a video, or an empty or broken one; also raised while iterating.
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
                if stream.frames and stream.duration:  # for a GIF the other values are guesses
                    rate = stream.frames / (stream.duration * stream.time_base)
                self.rate = rate.limit_denominator(1001)
                self.count = stream.frames or round(seconds * rate) or None
                self.seconds = stream.duration * stream.time_base if stream.duration else seconds
                self.ended = Fraction(0)
        except (av.FFmpegError, IndexError, StopIteration) as error:
            raise UserError(f"{path} is not a readable video ({_message(error)}); give another") from None

    def _open(self) -> Any:
        return av.open(str(self.path), format=VIDEOS_READ[self.path.suffix.lower()])

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames, rotated as the file states, from time 0 on; transparent pixels on white."""
        step = max(1, round(1 / (self.rate * self.time_base)))
        start, size, last = None, None, -step
        try:
            with self._open() as container:
                for frame in container.decode(container.streams.video[0]):
                    time = frame.pts if frame.pts is not None else (start or 0) + last + step
                    start = time if start is None else start
                    size = size or {"width": frame.width, "height": frame.height}  # it changes in some videos
                    has_alpha = frame.format.name in ("bgra", "rgba", "pal8", "yuva420p")
                    pixels = frame.to_ndarray(format="rgba" if has_alpha else "rgb24", **size)  # (H, W, 3 or 4)
                    pixels = np.array(to_rgb(Image.fromarray(pixels))) if has_alpha else pixels
                    pixels = np.rot90(pixels, frame.rotation // 90)  # phones record sideways and store the rotation
                    last = max(time - start, last + 1)
                    self.ended = (last + (frame.duration or step)) * self.time_base
                    yield Frame(last, frame.duration or step, np.ascontiguousarray(pixels))
        except av.FFmpegError as error:
            ended = float(self.ended)
            raise UserError(f"{self.path} is broken after {ended:.1f} s ({_message(error)}); give another") from None


def write_video(path: Path, frames: Iterable[Frame], rate: Fraction, time_base: Fraction, loop: bool = False) -> int:
    """Write frames one after another, in the format of the extension, without sound.

    H.264 and VP9 halve the resolution of colors, so they need even sizes: an odd row or column is repeated.

    Args:
        rate: frames per second that the file states.
        time_base: unit of the frames' times, in seconds.
        loop: whether a GIF repeats forever.

    Returns:
        The number of frames.

    Raises:
        UserError: there are no frames, or FFmpeg cannot encode them.
    """
    kind, codec, pixel_format, how = VIDEO_FORMATS[path.suffix.lower()]
    count = 0
    for_muxer = {"loop": "0" if loop else "-1"} if kind == "gif" else {}

    def write(file: BinaryIO) -> None:
        nonlocal count
        with av.open(file, "w", format=kind, options={**for_muxer, "fflags": "+bitexact"}) as container:
            stream: Any = None
            graph: Any = None
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
                for ready in _filtered(graph, frame):
                    container.mux(stream.encode(ready))
            if count == 0:
                raise UserError(f"{path}: there are no frames to write")
            for ready in _filtered(graph, None):
                container.mux(stream.encode(ready))
            container.mux(stream.encode())

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, write)
    except av.FFmpegError as error:
        raise UserError(f"{path} cannot be written ({_message(error)}); use another extension or size") from None
    return count


def _palette_graph(pixels: np.ndarray, time_base: Fraction) -> Any:
    """Return a filter graph of FFmpeg that gives every frame of a GIF its own palette."""
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


def _filtered(graph: Any, frame: Any) -> Iterator[Any]:
    """Yield the output of a filter graph for `frame` (None: the end); without a graph the frame itself."""
    if graph is None:
        yield from [frame] if frame is not None else []
        return
    graph.push(frame)
    while True:
        try:
            yield graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return


def _message(error: Exception) -> str:
    """Return FFmpeg's message, without the path that it repeats."""
    return getattr(error, "strerror", None) or "it has no frames"
