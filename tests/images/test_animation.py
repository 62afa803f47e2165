"""Images with several frames: animated WebP, PNG and GIF, and the pages of a TIFF, read and written."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, ImageSequence

from images.animation import Animation, is_animation, write_animation
from images.video import Frame, Video, write_video
from utils import UserError

DELAYS = [50, 200, 700]
COLORS = [(255, 0, 0, 255), (0, 255, 0, 128), (0, 0, 255, 255)]


def make_animation(path, size=(24, 20), **how) -> None:
    """Write three frames with a transparent corner; the second one is half transparent."""
    frames = []
    for color in COLORS:
        frame = Image.new("RGBA", size, color)
        frame.paste((0, 0, 0, 0), (0, 0, 6, 6))
        frames.append(frame)
    frames[0].save(path, save_all=True, append_images=frames[1:], **{"duration": DELAYS, "loop": 3, **how})


@pytest.mark.parametrize("name, how", [("a.webp", {"lossless": True}), ("a.png", {}), ("a.gif", {"disposal": 2})])
def test_frames_are_read_with_delays_alpha_and_plays(tmp_path, name, how):
    make_animation(tmp_path / name, **how)
    animation = Animation(tmp_path / name)
    assert is_animation(tmp_path / name) and animation.count == 3 and animation.rate == 20
    assert animation.plays == (4 if name == "a.gif" else 3)  # a GIF states how many times it is repeated
    frames = list(animation)
    assert [(frame.time, frame.duration) for frame in frames] == [(0, 50), (50, 200), (250, 700)]
    for frame, (*color, alpha) in zip(frames, COLORS, strict=True):
        alpha = 255 if name == "a.gif" else alpha  # a GIF has no half transparent pixels
        on_white = np.array(color) * alpha / 255 + 255 - alpha if name != "a.gif" else np.array(color)
        assert frame.pixels.shape == (20, 24, 4) and frame.pixels[15, 15, 3] == alpha
        assert np.abs(frame.pixels[15, 15, :3] - on_white).max() <= 1
        assert (frame.pixels[2, 2] == [255, 255, 255, 0]).all()


def test_the_first_picture_of_a_png_may_not_be_a_frame(tmp_path):
    """It is for programs that show no animations."""
    make_animation(tmp_path / "a.png", default_image=True, duration=DELAYS[:2])
    frames = list(Animation(tmp_path / "a.png"))
    assert Animation(tmp_path / "a.png").count == 2 and [frame.duration for frame in frames] == DELAYS[:2]
    assert frames[0].pixels[15, 15, 3] == 128 and (frames[1].pixels[15, 15] == COLORS[2]).all()


@pytest.mark.parametrize("ending", [".webp", ".png"])
@pytest.mark.parametrize("plays", [0, 1, 5])
def test_an_animation_is_written_as_it_was_read(tmp_path, ending, plays):
    make_animation(tmp_path / "a.webp", lossless=True)
    before = list(Animation(tmp_path / "a.webp"))
    assert write_animation(tmp_path / f"b{ending}", iter(before), Fraction(1, 1000), plays) == 3
    written = Animation(tmp_path / f"b{ending}")
    assert written.plays == plays
    for old, new in zip(before, written, strict=True):
        assert (old.time, old.duration) == (new.time, new.duration)
        assert np.array_equal(old.pixels[:, :, 3], new.pixels[:, :, 3])
        with Image.open(tmp_path / f"b{ending}") as image:
            image.seek([0, 50, 250].index(new.time))
            assert np.abs(np.array(image)[15, 15].astype(int) - old.pixels[15, 15]).max() <= 3
    assert list(tmp_path.glob("*.tmp")) == []


def test_times_do_not_drift(tmp_path):
    """A thirtieth of a second is not a whole number of milliseconds; 60 of them are two seconds."""
    frames = [Image.new("L", (8, 8), 4 * i) for i in range(60)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=100 / 3)
    read = list(Animation(tmp_path / "a.png"))
    assert {frame.duration for frame in read} == {33, 34} and read[-1].time + read[-1].duration == 2000
    write_animation(
        tmp_path / "b.webp", (Frame(i, 1, frame.pixels) for i, frame in enumerate(read)), Fraction(1, 30), 0
    )
    assert [frame.time for frame in Animation(tmp_path / "b.webp")] == [frame.time for frame in read]


@pytest.mark.parametrize("ending, plays", [(".gif", 3), (".mp4", 0), (".webm", 0)])
def test_an_animation_becomes_a_video(tmp_path, ending, plays):
    make_animation(tmp_path / "a.png", size=(32, 24))
    animation = Animation(tmp_path / "a.png")
    path = tmp_path / f"b{ending}"
    write_video(path, animation, animation.rate, animation.time_base, animation.plays)
    video = Video(path)
    frames = list(video)
    assert video.plays == plays and [round(1000 * frame.duration * video.time_base) for frame in frames] == DELAYS
    for frame, color in zip(frames, [(255, 0, 0), (127, 255, 127), (0, 0, 255)], strict=True):
        assert np.abs(frame.pixels[18, 24].astype(int) - color).max() <= 6 and frame.pixels[1, 1].min() > 230


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize("milliseconds, expected", [(100 / 3, 1 / 30), (1001 / 30, 1001 / 30000), (0.25, 0.001)])
def test_frames_of_any_delay_become_a_video(tmp_path, ending, milliseconds, expected):
    """A PNG states any fraction of a second, such as a thirtieth; a video states times in whole milliseconds."""
    frames = [Image.new("L", (16, 16), 8 * i) for i in range(30)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], duration=milliseconds)
    animation = Animation(tmp_path / "a.png")
    assert animation.rate == pytest.approx(1 / expected)
    path = tmp_path / f"b{ending}"
    assert write_video(path, animation, animation.rate, animation.time_base) == 30
    video = Video(path)
    assert len(list(video)) == 30 and float(video.ended) == pytest.approx(30 * expected, abs=0.002)


def test_pages_may_differ_in_size_and_kind(tmp_path):
    pages = [
        Image.new("I;16", (24, 20), 30000),
        Image.new("RGB", (10, 12), (9, 8, 7)),
        Image.new("LA", (24, 20), (0, 100)),
    ]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    animation = Animation(tmp_path / "a.tiff", (0.0, 60000.0))
    assert write_animation(tmp_path / "b.tif", animation, animation.time_base, 0) == 3
    with Image.open(tmp_path / "b.tif") as image:
        written = [np.array(page) for page in ImageSequence.Iterator(image)]
    assert [page.shape for page in written] == [(20, 24, 3), (12, 10, 3), (20, 24, 4)]
    assert [page[5, 5].tolist() for page in written] == [[128] * 3, [9, 8, 7], [155, 155, 155, 100]]
    for ending in (".webp", ".png", ".mp4"):
        with pytest.raises(UserError, match=r"differ in size \(.*10x12.*; write a \.tiff"):
            if ending == ".mp4":
                write_video(tmp_path / f"c{ending}", animation, Fraction(10), animation.time_base)
            else:
                write_animation(tmp_path / f"c{ending}", animation, animation.time_base, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tiff", "b.tif"]


def test_single_images_and_other_files_are_not_animations(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.mpo", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")  # some cameras append a second image
    (tmp_path / "b.png").write_text("not an image")
    for path in (*tmp_path.iterdir(), tmp_path, tmp_path / "missing.png"):
        assert not is_animation(path)


@pytest.mark.faults
@pytest.mark.parametrize("ending", [".webp", ".png", ".tiff"])
def test_a_broken_animation_is_an_error(tmp_path, ending):
    """The frames before the damage are not enough: the user must know that the others are missing."""
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(4)]
    path = tmp_path / f"a{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 5 // 8])
    with pytest.raises(UserError, match=r"a\.\w+ is broken.*; give another"):
        list(Animation(path))
