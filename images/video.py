"""Videos: read and written frame by frame, so that their length costs no memory. FFmpeg, inside PyAV, does the work.

Pixels are uint8 arrays (H, W, 3).
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
import torch
from av.video.frame import PictureType
from av.video.reformatter import ColorRange
from PIL import Image

from images.decoding import FORMATS, to_rgb
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
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}  # matrix that a video states -> its number in swscale
BT709, BT601 = 1, 5  # of MATRICES
MAX_PIXEL_RATIO = 8  # width to height of a pixel, or height to width; larger ratios are damage
# FFmpeg's own decoders of VP8 and VP9 ignore alpha.
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


class Frame(NamedTuple):
    """A frame of a video: its time and duration, in units of the video's time base, and its pixels.

    Pixels are (H, W, 3), or (H, W, 4) with alpha if an image file has alpha.
    """

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
        plays: how many times a GIF plays, 0 for endless; 0 for other videos, which do not state it.
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
                self.plays = read_plays(path) if path.suffix.lower() == ".gif" else 0
                self.ended = Fraction(0)
        except (av.FFmpegError, IndexError, StopIteration) as error:
            raise UserError(f"{path} is not a readable video ({_message(error)}); give another") from None

    def _open(self) -> Any:
        # With "file:", FFmpeg does not take the 12 of 12:30.mp4 for a protocol.
        return av.open(f"file:{self.path}", format=VIDEOS_READ[self.path.suffix.lower()])

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames as players show them: in square pixels, rotated and mirrored as the file states, on white.

        The first frame is at time 0.
        """
        step = max(1, round(1 / (self.rate * self.time_base)))
        start, size, last = None, None, -step
        try:
            with self._open() as container:
                ratio = container.streams.video[0].sample_aspect_ratio
                for frame in _decode(container):
                    time = frame.pts if frame.pts is not None else (start or 0) + last + step
                    start = time if start is None else start
                    size = size or _shown_size(frame.width, frame.height, ratio)  # it changes in some videos
                    last = max(time - start, last + 1)
                    self.ended = (last + (frame.duration or step)) * self.time_base
                    yield Frame(last, frame.duration or step, _orient(_to_pixels(frame, *size), frame))
        except av.FFmpegError as error:
            ended = float(self.ended)
            raise UserError(f"{self.path} is broken after {ended:.1f} s ({_message(error)}); give another") from None


def read_plays(path: Path) -> int:
    """Return how many times an animated image plays, 0 for endless."""
    with contextlib.suppress(Exception), Image.open(path, formats=FORMATS) as image:  # errors: of a broken file
        loop = image.info.get("loop")
        if image.format == "GIF":  # a GIF states how many times the animation is repeated
            return 1 if loop is None else loop and loop + 1
        return loop or 0
    return 0


def _decode(container: Any) -> Iterator[Any]:
    """Yield the decoded frames of an opened video."""
    stream = container.streams.video[0]
    has_alpha = any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items())
    decoder = ALPHA_DECODERS.get(stream.codec_context.name) if has_alpha else None
    if decoder is None:
        yield from container.decode(stream)
        return
    context: Any = av.CodecContext.create(decoder, "r")
    for packet in container.demux(stream):
        yield from context.decode(packet if packet.size else None)  # None: the end


def _shown_size(width: int, height: int, ratio: Fraction | None) -> tuple[int, int]:
    """Return the size in square pixels. The shorter side of the pixels is stretched, so that no detail is lost.

    Args:
        ratio: width to height of a pixel; None or 0 if it is not known.
    """
    if not ratio or not 1 / MAX_PIXEL_RATIO <= ratio <= MAX_PIXEL_RATIO:
        return width, height
    return (round(width * ratio), height) if ratio > 1 else (width, round(height / ratio))


def guess_matrix(width: int, height: int) -> int:
    """Return the matrix of colors that players use for a video that states none: by its size."""
    return BT709 if width >= 1280 or height >= 720 else BT601


def _to_pixels(frame: Any, width: int, height: int) -> np.ndarray:
    """Return a decoded frame as RGB (height, width, 3), by the matrix and range that it states, on white."""
    has_alpha = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
    pixels = frame.to_ndarray(
        width=width,
        height=height,
        format="rgba" if has_alpha else "rgb24",
        src_colorspace=MATRICES.get(frame.colorspace, guess_matrix(frame.width, frame.height)),
        src_color_range=frame.color_range,
        dst_colorspace=BT601,  # RGB has no matrix, but PyAV 16 would ignore src_colorspace if it were the same
    )  # (H, W, 3 or 4)
    return np.array(to_rgb(Image.fromarray(pixels))) if has_alpha else pixels


def _orient(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """Rotate and mirror pixels (H, W, 3) as the display matrix of their frame states. Phones record sideways.

    The matrix (a, b, c, d) moves a pixel from (x, y) to (a x + c y, b x + d y), up to a shift.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
        if abs(a) + abs(d) < abs(b) + abs(c):  # x and y change places
            pixels, a, d = pixels.swapaxes(0, 1), c, b
        pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(pixels)


def write_video(path: Path, frames: Iterable[Frame], rate: Fraction, time_base: Fraction, plays: int = 1) -> int:
    """Write frames one after another, in the format of the extension, without sound.

    Colors are converted by the matrix that players assume for videos of this size, and the file states the matrix.
    H.264 and VP9 halve the resolution of colors, so they need even sizes: an odd row or column is repeated.

    Args:
        rate: frames per second that the file states.
        time_base: unit of the frames' times, in seconds.
        plays: how many times a GIF plays, 0 for endless. Other formats do not state it.

    Returns:
        The number of frames.

    Raises:
        UserError: there are no frames, or FFmpeg cannot encode them.
    """
    kind = VIDEO_FORMATS[path.suffix.lower()][0]
    # A GIF states how many times the animation is repeated, at most 65,535 times.
    how = {"loop": str(min(plays - 1, 65535) if plays > 1 else -plays)} if kind == "gif" else {}
    count = 0

    def write(file: BinaryIO) -> None:
        nonlocal count
        remaining = iter(frames)
        first = next(remaining, None)
        if first is None:
            raise UserError(f"{path}: there are no frames to write")
        with av.open(file, "w", format=kind, options={**how, "fflags": "+bitexact"}) as container:
            stream = _add_stream(container, path, rate, time_base, first.pixels)
            durations: dict[int, int] = {}  # time of each frame that the encoder holds -> its duration
            for frame in _encodable(itertools.chain([first], remaining), stream, durations):
                count += frame is not None
                for packet in stream.encode(frame):
                    packet.duration = durations.pop(packet.pts)  # encoders do not keep it; the last frame needs it
                    container.mux(packet)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, write)
    except av.FFmpegError as error:
        raise UserError(f"{path} cannot be written ({_message(error)}); use another extension or size") from None
    return count


def _add_stream(container: Any, path: Path, rate: Fraction, time_base: Fraction, pixels: np.ndarray) -> Any:
    """Return a new stream for frames of this size, which states their colors."""
    _, codec, pixel_format, how = VIDEO_FORMATS[path.suffix.lower()]
    height, width = pixels.shape[:2]
    if pixel_format != "pal8":
        height, width = height + height % 2, width + width % 2
        matrix = "bt709" if guess_matrix(width, height) == BT709 else "smpte170m"  # the latter is BT.601
        how = {**how, "colorspace": matrix, "color_range": "tv", "color_primaries": "bt709", "color_trc": "bt709"}
    stream = container.add_stream(codec, rate=rate, options=how)
    stream.height, stream.width = height, width
    stream.pix_fmt = pixel_format
    stream.codec_context.time_base = time_base
    return stream


def _encodable(frames: Iterable[Frame], stream: Any, durations: dict[int, int]) -> Iterator[Any]:
    """Yield frames in the format of a stream, then None; note the duration of each by its time."""
    is_gif, time_base = stream.pix_fmt == "pal8", stream.codec_context.time_base
    graph: Any = None
    frames, ahead = itertools.tee(frames)
    second_next = itertools.islice(itertools.chain(ahead, [None, None]), 2, None)
    for (time, duration, pixels), later in zip(frames, second_next, strict=True):
        durations[time] = duration
        pixels = pixels[:, :, :3]  # transparent pixels are already on white
        if not is_gif:
            pixels = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
        if pixels.shape[:2] != (stream.height, stream.width):
            sizes = f"{stream.width}x{stream.height} and {pixels.shape[1]}x{pixels.shape[0]}"
            raise UserError(f"the frames differ in size ({sizes}), but a video has one size; write a .tiff instead")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = time, time_base
        if is_gif:
            graph = graph or _palette_graph(pixels, time_base)
            yield from _filtered(graph, frame)
        else:
            matrix = guess_matrix(stream.width, stream.height)
            frame = frame.reformat(format=stream.pix_fmt, dst_colorspace=matrix, dst_color_range=ColorRange.MPEG)
            if later is None:  # a B-frame stored after the last frame would take its place, and its duration be lost
                frame.pict_type = PictureType.P
            yield frame
    if graph is not None:
        yield from _filtered(graph, None)
    yield None


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
    """Yield the output of a filter graph for `frame` (None: the end)."""
    graph.push(frame)
    while True:
        try:
            yield graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return


def _message(error: Exception) -> str:
    """Return FFmpeg's message, without the path that it repeats."""
    return getattr(error, "strerror", None) or "it has no frames"
