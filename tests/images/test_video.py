"""Video files: written, read again, rotated, transparent, broken."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

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


@pytest.mark.parametrize("loop", [True, False])
def test_a_gif_loops_only_if_asked(tmp_path, loop):
    write_video(tmp_path / "a.gif", make_frames(3), Fraction(10), Fraction(1, 10), loop=loop)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info.get("loop") == (0 if loop else None) and image.n_frames == 3


def test_rotated_video(tmp_path):
    """A phone that is held upright records sideways: the file states that its frames must be rotated clockwise."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32] = 255  # the left half is white
    write_video(tmp_path / "a.mp4", [Frame(i, 1, pixels) for i in range(3)], Fraction(10), Fraction(1, 10))
    content = (tmp_path / "a.mp4").read_bytes()
    plain, turned = (
        b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
        for matrix in (
            (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30),
            (0, 1 << 16, 0, -(1 << 16), 0, 0, 32 << 16, 0, 1 << 30),  # x' = 32 - y, y' = x
        )
    )
    track = content.index(b"tkhd")
    (tmp_path / "a.mp4").write_bytes(content[:track] + content[track:].replace(plain, turned, 1))
    for frame in Video(tmp_path / "a.mp4"):
        assert frame.pixels.shape == (64, 32, 3)
        assert frame.pixels[:28].min() > 200 and frame.pixels[36:].max() < 50  # the left half is now the upper half


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
