"""Video files: written, read again, colors, rotated, stretched, transparent, broken."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from PIL import Image, ImageSequence

from images.video import Frame, Video, write_video
from system.threads import prefetch
from utils import UserError


def make_frames(count: int, width: int = 32, height: int = 32, times=None) -> list[Frame]:
    """Return frames; frame i has brightness 4 i."""
    times = list(range(count)) if times is None else times
    ends = [*times[1:], times[-1] + 1]
    return [
        Frame(time, end - time, np.full((height, width, 3), 4 * i % 256, np.uint8))
        for i, (time, end) in enumerate(zip(times, ends, strict=True))
    ]


def times_in_seconds(video: Video) -> list[float]:
    return [float(frame.time * video.time_base) for frame in video]


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv", ".webm", ".gif"])
@pytest.mark.parametrize("rate", [Fraction(10), Fraction(30000, 1001)])
def test_video_round_trip(tmp_path, ending, rate):
    path = tmp_path / f"a{ending}"
    assert write_video(path, iter(make_frames(24)), rate, 1 / rate) == 24
    video = Video(path)
    frames = list(video)
    assert len(frames) == 24 and abs(video.count - 24) <= 1
    assert video.rate == pytest.approx(float(rate), rel=0.003 if ending == ".gif" else 1e-6)
    last = frames[-1]
    assert float((last.time + last.duration) * video.time_base) == pytest.approx(24 / rate, abs=0.011)
    for i, frame in enumerate(frames):
        assert frame.pixels.shape == (32, 32, 3) and np.abs(frame.pixels.astype(int) - 4 * i).max() <= 4


@pytest.mark.parametrize("ending", [".mp4", ".webm", ".gif"])
def test_uneven_times_are_kept(tmp_path, ending):
    times = [0, 10, 15, 40, 41, 60]
    write_video(tmp_path / f"a{ending}", make_frames(6, times=times), Fraction(10), Fraction(1, 50))
    assert times_in_seconds(Video(tmp_path / f"a{ending}")) == pytest.approx([time / 50 for time in times], abs=0.006)


@pytest.mark.parametrize("ending, size", [(".mp4", (34, 36)), (".gif", (33, 35))])
def test_odd_sizes(tmp_path, ending, size):
    """H.264 gets the last row and column twice; a GIF keeps its size."""
    write_video(tmp_path / f"a{ending}", make_frames(3, width=35, height=33), Fraction(10), Fraction(1, 10))
    assert [frame.pixels.shape[:2] for frame in Video(tmp_path / f"a{ending}")] == [size] * 3


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (100, 64)])
def test_equal_frames_give_equal_files(tmp_path, size):
    """On CPUs with AVX-512, x264 would read uninitialized memory beside small frames."""
    y, x = np.mgrid[: size[1], : size[0]]
    frames = [Frame(i, 1, np.stack([x * 3 + i * 5, y * 3 + i * 2, x + y], -1).astype(np.uint8)) for i in range(6)]
    files = set()
    for _ in range(12):
        for rate in (20, 25):  # the second leaves other values in the memory
            write_video(tmp_path / "a.mp4", frames, Fraction(rate), Fraction(1, rate))
            list(Video(tmp_path / "a.mp4"))
        files.add((tmp_path / "a.mp4").read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("plays, repeats", [(0, 0), (1, None), (4, 3)])
def test_a_gif_plays_as_often_as_asked(tmp_path, plays, repeats):
    write_video(tmp_path / "a.gif", make_frames(3), Fraction(10), Fraction(1, 10), plays=plays)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info.get("loop") == repeats and image.n_frames == 3
    assert Video(tmp_path / "a.gif").plays == plays


def test_the_duration_of_every_frame_is_kept(tmp_path):
    """Also of the last one, which has no next frame: from GIF to each format, and from there to GIF."""
    images = [Image.new("RGB", (16, 16), color) for color in ("red", "lime", "blue")]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=[50, 200, 700])
    for ending in (".gif", ".mp4", ".mov", ".mkv", ".webm"):
        for source, target in (("a.gif", f"b{ending}"), (f"b{ending}", "c.gif")):
            video = Video(tmp_path / source)
            write_video(tmp_path / target, video, video.rate, video.time_base)
        with Image.open(tmp_path / "c.gif") as image:
            assert [frame.info["duration"] for frame in ImageSequence.Iterator(image)] == [50, 200, 700], ending


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
def test_the_last_duration_is_kept_beside_b_frames(tmp_path, ending):
    """B-frames are stored after later frames, and make files much smaller."""
    pixels = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    for count in (1, 2, 3, 4, 5, 6, 30):
        times = [5 * i for i in range(count)]
        frames = [Frame(time, 5, np.roll(pixels, 3 * i, axis=1)) for i, time in enumerate(times)]
        frames[-1] = frames[-1]._replace(duration=70)
        path = tmp_path / f"a{ending}"
        assert write_video(path, frames, Fraction(20), Fraction(1, 100)) == count
        video = Video(path)
        last = list(video)[-1]
        seconds = [float(units * video.time_base) for units in (last.time, last.duration)]
        assert seconds == pytest.approx([times[-1] / 100, 0.7], abs=0.001) and video.ended == video.seconds
    with av.open(str(path)) as container:
        assert any(frame.pict_type == PictureType.B for frame in container.decode(video=0))


@pytest.mark.parametrize("name", ["12:30.mp4", "http:a.gif", "a%20b:.webm"])
def test_a_relative_name_with_a_colon_is_not_a_protocol(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_video(Path(name), make_frames(3), Fraction(10), Fraction(1, 10))
    assert len(list(Video(Path(name)))) == 3


# ---- Colors

COLORS = [(0, 255, 0), (200, 30, 60), (40, 90, 220), (250, 240, 20)]  # one in each quarter
WEIGHTS = {"bt709": (0.2126, 0.0722), "smpte170m": (0.299, 0.114), "bt2020nc": (0.2627, 0.0593)}  # of red and of blue
RANGES = {"tv": (16, 219, 224), "pc": (0, 255, 255)}  # black, width of brightness, width of color


def to_yuv(rgb, matrix: str, range_name: str = "tv") -> tuple[int, ...]:
    """Return (Y, Cb, Cr) of a color in [0, 255], by the definition of ITU-R BT.601, BT.709 and BT.2020."""
    (red, blue), (black, high, wide) = WEIGHTS[matrix], RANGES[range_name]
    r, g, b = (value / 255 for value in rgb)
    y = red * r + (1 - red - blue) * g + blue * b
    cb, cr = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    return round(black + high * y), round(128 + wide * cb), round(128 + wide * cr)


def quarters(colors, width: int, height: int) -> np.ndarray:
    """Return an image (H, W, 3) with one color in each quarter."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for i, color in enumerate(colors):
        pixels[i // 2 * height // 2 :][: height // 2, i % 2 * width // 2 :][:, : width // 2] = color
    return pixels


def centers(image: np.ndarray) -> np.ndarray:
    """Return the colors (4, 3) in the middle of each quarter."""
    height, width = image.shape[:2]
    return np.stack([image[(1 + 2 * i) * height // 4, (1 + 2 * j) * width // 4] for i in (0, 1) for j in (0, 1)])


@pytest.mark.golden
@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv", ".webm"])
@pytest.mark.parametrize("size, matrix", [((64, 48), "smpte170m"), ((1280, 64), "bt709"), ((64, 720), "bt709")])
def test_colors_are_written_by_the_matrix_that_the_file_states(tmp_path, ending, size, matrix):
    """The stored brightness and color are those of the definition; the other matrix gives different ones."""
    path = tmp_path / f"a{ending}"
    frames = [Frame(i, 1, quarters(COLORS, *size)) for i in range(2)]
    write_video(path, frames, Fraction(10), Fraction(1, 10))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        context = stream.codec_context
        assert (context.colorspace, context.color_range) == ({"bt709": 1, "smpte170m": 6}[matrix], 1)
        if ending != ".webm":  # VP9 itself states neither; both are the default of players
            assert (context.color_primaries, context.color_trc) == (1, 1)
        stored = frame.to_ndarray(format="yuv420p")  # (1.5 H, W)
    width, height = size
    y = centers(np.repeat(stored[:height, :, None], 3, -1))[:, 0]
    cb, cr = (
        centers(np.repeat(part.reshape(height // 2, width // 2, 1), 3, -1))[:, 0]
        for part in np.split(stored[height:].reshape(-1), 2)
    )
    found = np.stack([y, cb, cr], axis=1).astype(int)
    errors = {name: np.abs(found - [to_yuv(color, name) for color in COLORS]).max() for name in ("bt709", "smpte170m")}
    assert errors.pop(matrix) <= 3 and min(errors.values()) > 10
    assert np.abs(centers(next(iter(Video(path))).pixels).astype(int) - COLORS).max() <= 6


def write_yuv(path: Path, colors, size: tuple[int, int], pixel_format: str = "yuv420p", **how: str) -> None:
    """Write quarters of stored colors (Y, Cb, Cr) without any conversion, with FFmpeg's options for the encoder."""
    width, height = size
    image = quarters(colors, width, height)
    planes = [image[:, :, 0], image[::2, ::2, 1], image[::2, ::2, 2]]
    stored = np.concatenate([plane.reshape(-1) for plane in planes]).reshape(height * 3 // 2, width)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"qp": "4", "preset": "ultrafast", **how})
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        for i in range(2):
            frame = av.VideoFrame.from_ndarray(stored, format=pixel_format)
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.golden
@pytest.mark.parametrize(
    "size, matrix, range_name, how",
    [
        ((64, 48), "smpte170m", "tv", {}),
        ((1280, 64), "bt709", "tv", {}),
        ((64, 720), "bt709", "tv", {}),
        ((64, 48), "bt709", "tv", {"colorspace": "bt709"}),
        ((1280, 64), "smpte170m", "tv", {"colorspace": "smpte170m"}),
        ((1280, 64), "smpte170m", "tv", {"colorspace": "bt470bg"}),
        ((64, 48), "bt2020nc", "tv", {"colorspace": "bt2020nc"}),
        ((64, 48), "smpte170m", "pc", {"pixel_format": "yuvj420p"}),
        ((1280, 64), "bt709", "pc", {"color_range": "pc"}),
        ((1280, 64), "bt709", "tv", {"colorspace": "ycgco"}),  # FFmpeg has no such matrix; a guess is better than none
    ],
)
@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_colors_are_read_as_the_file_states(tmp_path, ending, size, matrix, range_name, how):
    """Without a statement by the size, as players do; every other matrix and range gives different colors."""
    path = tmp_path / f"a{ending}"
    write_yuv(path, [to_yuv(color, matrix, range_name) for color in COLORS], size, **how)
    found = centers(next(iter(Video(path))).pixels).astype(int)
    assert np.abs(found - COLORS).max() <= 5
    for other in WEIGHTS:
        for other_range in RANGES:
            if (other, other_range) != (matrix, range_name):
                write_yuv(path, [to_yuv(color, other, other_range) for color in COLORS], size, **how)
                assert np.abs(centers(next(iter(Video(path))).pixels).astype(int) - COLORS).max() > 7


# ---- Shape and transparency


@pytest.mark.parametrize(
    "ratio, shape",
    [
        ("2:1", (32, 80)),
        ("1:2", (64, 40)),
        ("16:15", (32, 43)),
        ("1:1", (32, 40)),
        ("0:1", (32, 40)),
        ("9:1", (32, 40)),
    ],
)
def test_pixels_that_are_not_square_are_stretched(tmp_path, ratio, shape):
    """A film that stores half of its columns is as wide as players show it; a damaged ratio is ignored."""
    write_yuv(tmp_path / "a.mkv", [to_yuv(color, "smpte170m") for color in COLORS], (40, 32), aspect=ratio)
    for frame in Video(tmp_path / "a.mkv"):
        assert frame.pixels.shape[:2] == shape and np.abs(centers(frame.pixels).astype(int) - COLORS).max() <= 5


@pytest.mark.parametrize("a, b, c, d", [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)] + [
    (0, b, c, 0) for b in (1, -1) for c in (1, -1)])  # fmt: skip
def test_all_eight_orientations(tmp_path, a, b, c, d):
    """A phone that is held upright records sideways, a front camera mirrored: the file states how to show its frames.

    The pixel at (x, y) is shown at (a x + c y, b x + d y), up to a shift that keeps the image at (0, 0).
    """
    width, height = 64, 32
    pixels = quarters([(0, 0, 0), (90, 90, 90), (170, 170, 170), (255, 255, 255)], width, height)
    write_video(tmp_path / "a.mp4", [Frame(i, 1, pixels) for i in range(3)], Fraction(10), Fraction(1, 10))
    shift = width * (min(a, 0)) + height * min(c, 0), width * min(b, 0) + height * min(d, 0)
    unit = 1 << 16
    plain, turned = (
        b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
        for matrix in (
            (unit, 0, 0, 0, unit, 0, 0, 0, 1 << 30),
            (a * unit, b * unit, 0, c * unit, d * unit, 0, -shift[0] * unit, -shift[1] * unit, 1 << 30),
        )
    )
    content = (tmp_path / "a.mp4").read_bytes()
    track = content.index(b"tkhd")
    (tmp_path / "a.mp4").write_bytes(content[:track] + content[track:].replace(plain, turned, 1))
    expected = np.zeros((width, height, 3) if c else (height, width, 3), int)
    for y in range(height):
        for x in range(width):
            right, down = a * (x + 0.5) + c * (y + 0.5) - shift[0], b * (x + 0.5) + d * (y + 0.5) - shift[1]
            expected[int(down), int(right)] = pixels[y, x]
    for frame in Video(tmp_path / "a.mp4"):
        assert frame.pixels.shape == expected.shape and np.abs(frame.pixels - expected).mean() < 6


@pytest.mark.parametrize(
    "ending, codec, pixel_format",
    [
        (".mov", "prores_ks", "yuva444p10le"),
        (".mov", "qtrle", "argb"),  # QuickTime Animation
        (".mov", "png", "rgba"),
        (".mkv", "ffv1", "yuva420p"),
        (".avi", "rawvideo", "bgra"),
        (".webm", "libvpx-vp9", "yuva420p"),
        (".webm", "libvpx", "yuva420p"),
    ],
)
def test_transparent_pixels_of_a_video_are_white(tmp_path, ending, codec, pixel_format):
    """As in images; the hidden color of a transparent pixel is never shown."""
    path = tmp_path / f"a{ending}"
    pixels = np.zeros((32, 48, 4), np.uint8)
    pixels[:, :16], pixels[:, 16:32], pixels[:, 32:] = (255, 0, 0, 255), (0, 0, 255, 0), (0, 0, 0, 128)
    with av.open(str(path), "w") as container:
        how = {"prores_ks": {"profile": "4444"}, "libvpx": {"auto-alt-ref": "0", "b": "2M"}}.get(codec, {})
        stream = container.add_stream(codec, rate=10, options=how)
        stream.width, stream.height, stream.pix_fmt = 48, 32, pixel_format
        for i in range(3):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = list(Video(path))
    assert [frame.duration * Video(path).time_base for frame in frames] == [Fraction(1, 10)] * 3
    for frame in frames:
        expected = [[255, 0, 0], [255, 255, 255], [127, 127, 127]]
        assert np.abs(frame.pixels[16, [6, 24, 42]].astype(int) - expected).max() <= 8


def test_transparent_pixels_of_a_gif_are_white(tmp_path):
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 8, 16))
    image.save(tmp_path / "a.gif")
    (frame,) = Video(tmp_path / "a.gif")
    assert (frame.pixels[:, :8] == [255, 0, 0]).all() and (frame.pixels[:, 8:] == 255).all()


@pytest.mark.parametrize("content", [b"", b"not a video", b"GIF89a"])
def test_broken_video(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.mp4 is not a readable video .*; give another"):
        Video(tmp_path / "a.mp4")


def test_the_error_of_a_broken_video_names_the_time(tmp_path, monkeypatch):
    """FFmpeg raises an error after 10 frames of a tenth of a second each."""
    write_video(tmp_path / "a.mp4", make_frames(20), Fraction(10), Fraction(1, 10))
    video = Video(tmp_path / "a.mp4")

    class Breaks:
        def __init__(self, container):
            self.container, self.streams = container, container.streams

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.container.close()

        def decode(self, stream):
            for i, frame in enumerate(self.container.decode(stream)):
                if i == 10:
                    raise av.error.InvalidDataError(1, "Invalid data found")
                yield frame

    whole = Video._open
    monkeypatch.setattr(Video, "_open", lambda self: Breaks(whole(self)))
    seen = []
    with pytest.raises(UserError, match=r"a\.mp4 is broken after 1\.0 s \(Invalid data found\)"):
        seen.extend(video)
    assert len(seen) == 10


def test_a_playlist_is_not_a_video(tmp_path):
    """FFmpeg would play the files of the list."""
    other = tmp_path / "other.mp4"
    write_video(other, make_frames(3), Fraction(10), Fraction(1, 10))
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(UserError, match=r"list\.mp4 is not a readable video"):
        Video(tmp_path / "list.mp4")


def test_a_failure_while_writing_leaves_no_file(tmp_path):
    def frames():
        yield from make_frames(3)
        raise UserError("broken")

    with pytest.raises(UserError, match="broken"):
        write_video(tmp_path / "a.mp4", prefetch(frames()), Fraction(10), Fraction(1, 10))
    with pytest.raises(UserError, match="no frames"):
        write_video(tmp_path / "a.mp4", [], Fraction(10), Fraction(1, 10))
    assert not list(tmp_path.iterdir())
