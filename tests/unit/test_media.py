"""Latents, walks, pads and video files, against independent computations."""

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

import generate
from data.media import Frame, Video, ahead, map_ahead, read_image, write_image, write_video
from models import CycleGenerator
from tests.conftest import make_photo
from utils import UserError


@pytest.fixture(scope="module")
def G():
    """A translator whose images need multiples of 4."""
    torch.manual_seed(0)
    return CycleGenerator(conv_dim=2).eval().requires_grad_(False)


def pixels_of(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.array(make_photo((width, height), seed))


# ---- Command line


@pytest.mark.parametrize(
    "text, seeds",
    [("3", [3]), ("3,7,10-12", [3, 7, 10, 11, 12]), ("0-2, 5", [0, 1, 2, 5]), ("4-4", [4]), ("2,1", [2, 1])],
)
def test_read_seeds(text, seeds):
    assert generate.read_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "3,", "a", "-1", "1-", "5-3", "1.5", "1-2-3", "0-999999999999", "9" * 30])
def test_read_seeds_refuses(text):
    with pytest.raises(generate.argparse.ArgumentTypeError):
        generate.read_seeds(text)


# ---- Latents


def test_latents_are_uniform_and_of_their_seed():
    z = generate.latent_of(3, 10_000)
    assert z.shape == (1, 10_000, 1, 1) and z.abs().max() <= 1
    assert abs(z.mean()) < 0.03 and abs(z.std() - 3**-0.5) < 0.02  # of a uniform distribution in [-1, 1]
    assert torch.equal(z, generate.latent_of(3, 10_000)) and not torch.equal(z, generate.latent_of(4, 10_000))


def test_slerp():
    """In the plane of a and b the angle grows evenly and the length is blended; at the ends they are a and b."""
    a, b = torch.tensor([0.6, 0.0, 0.0]), torch.tensor([0.0, 0.3, 0.0])
    for t in (0.0, 0.25, 0.5, 1.0):
        length, angle = 0.6 * (1 - t) + 0.3 * t, t * np.pi / 2
        expected = torch.tensor([length * np.cos(angle), length * np.sin(angle), 0.0], dtype=torch.float32)
        assert torch.allclose(generate.slerp(a, b, t), expected, atol=1e-6)
    assert not torch.allclose(generate.blend(a, b, 0.5), generate.slerp(a, b, 0.5), atol=0.01)  # a straight line is not


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_slerp_without_an_arc(sign):
    a = torch.tensor([0.5, 0.25])
    assert torch.allclose(generate.slerp(a, sign * a, 0.25), 0.75 * a + 0.25 * sign * a)


def test_slerp_stays_in_range():
    a, b = torch.tensor([1.0, 1.0, -1.0]), torch.tensor([1.0, -1.0, -1.0])
    middle = generate.slerp(a, b, 0.5)
    assert middle.abs().max() == 1


def walked(points, frames, loop):
    points = torch.tensor(points, dtype=torch.float32).view(-1, 1, 1, 1)
    return [z.item() for z in generate.walk(points, frames, loop, generate.blend)]


def test_walk():
    assert walked([0, 1, 0.5], 5, False) == [0, 0.5, 1, 0.75, 0.5]
    assert walked([0, 1, 0.5], 6, True) == [0, 0.5, 1, 0.75, 0.5, 0.25]  # the next would be the first again
    assert len(walked([0, 1, 0.5], 7, True)) == len(walked([0, 1, 0.5], 7, False)) == 7


def test_a_walk_is_at_each_point_whatever_the_number_of_frames():
    points = [0.0, 1.0, -1.0, 0.5]
    for frames in range(4, 40):
        for loop in (False, True):
            seen = walked(points, frames, loop)
            assert len(seen) == frames and not {0.0, 1.0, -1.0, 0.5} - set(seen)


def test_random_walk():
    """It begins at z of the seed, no step is longer than half, and it stays in range and uniform."""
    points = generate.random_walk(5, 2000, 20)
    assert torch.equal(points[:1], generate.latent_of(5, 20)) and torch.equal(points, generate.random_walk(5, 2000, 20))
    assert points.abs().max() <= 1 and points.diff(dim=0).abs().max() <= 0.5 + 1e-6
    assert abs(points.mean()) < 0.03 and abs(points.std() - 3**-0.5) < 0.02


# ---- Sizes


@pytest.mark.parametrize(
    "size, padded, modes",
    [
        ((36, 40), (36, 40), ("reflect", "reflect")),
        ((34, 37), (36, 40), ("reflect", "reflect")),
        ((5, 33), (8, 36), ("reflect", "reflect")),
        ((3, 5), (8, 8), ("edge", "reflect")),
        ((1, 1), (8, 8), ("edge", "edge")),
    ],
)
def test_pad_and_crop(G, size, padded, modes):
    """Translating an image of any size is translating NumPy's padding of it, and cutting that back."""
    (height, width), full = size, pixels_of(size[1], size[0])
    full = np.pad(full, ((0, padded[0] - height), (0, 0), (0, 0)), mode=modes[0])
    full = np.pad(full, ((0, 0), (0, padded[1] - width), (0, 0)), mode=modes[1])
    x = torch.from_numpy(full).permute(2, 0, 1)[None].float() / 127.5 - 1
    expected = ((G(x)[0, :, :height, :width] + 1) * 127.5).round().permute(1, 2, 0).numpy()
    translation = generate.translate_image(G, pixels_of(size[1], size[0]))
    assert translation.shape == (height, width, 3)
    assert np.abs(translation.astype(int) - expected).max() <= 1


def test_resize_shorter():
    assert generate.resize_shorter(pixels_of(40, 20), 10).shape == (10, 20, 3)
    assert generate.resize_shorter(pixels_of(20, 50), 30).shape == (75, 30, 3)
    assert generate.resize_shorter(pixels_of(40, 20), None).shape == (20, 40, 3)
    with_alpha = np.dstack([pixels_of(40, 20), np.zeros((20, 40), np.uint8)])
    small = generate.resize_shorter(with_alpha, 10)  # what is transparent has a color all the same
    assert small.shape == (10, 20, 4) and np.array_equal(
        small[:, :, :3], generate.resize_shorter(pixels_of(40, 20), 10)
    )


@pytest.mark.parametrize("ending", [".png", ".webp", ".tiff"])
def test_alpha_is_kept(tmp_path, ending):
    pixels = np.dstack([pixels_of(20, 10), np.tile(np.arange(0, 200, 10, dtype=np.uint8), (10, 1))])
    write_image(tmp_path / f"a{ending}", pixels)
    assert np.array_equal(read_image(tmp_path / f"a{ending}")[:, :, 3], pixels[:, :, 3])


def test_transparency_is_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == [255, 255, 255, 0]).all()


def test_no_metadata_survives_and_exif_turns(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"  # turn by 90 degrees; the maker
    make_photo((40, 20), 0).save(tmp_path / "a.jpg", exif=exif)
    pixels = read_image(tmp_path / "a.jpg")
    assert pixels.shape == (40, 20, 3)
    write_image(tmp_path / "b.jpg", pixels)
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.size == (20, 40) and not image.getexif() and "icc_profile" not in image.info


# ---- Videos


def film(count: int, width: int = 32, height: int = 32, times=None) -> list[Frame]:
    """A film whose frame i has brightness 4 i."""
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
    assert write_video(path, iter(film(24)), rate, 1 / rate) == 24
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
    write_video(tmp_path / f"a{ending}", film(6, times=times), Fraction(10), Fraction(1, 50))
    assert times_in_seconds(Video(tmp_path / f"a{ending}")) == pytest.approx([time / 50 for time in times], abs=0.006)


@pytest.mark.parametrize("ending, size", [(".mp4", (34, 36)), (".gif", (33, 35))])
def test_odd_sizes(tmp_path, ending, size):
    """H.264 gets the last row and column twice, a GIF what it is."""
    write_video(tmp_path / f"a{ending}", film(3, width=35, height=33), Fraction(10), Fraction(1, 10))
    assert [frame.pixels.shape[:2] for frame in Video(tmp_path / f"a{ending}")] == [size] * 3


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (100, 64)])
def test_the_same_frames_are_the_same_file(tmp_path, size):
    """On CPUs with AVX-512 x264 took what lay in memory for the neighbors of small frames."""
    y, x = np.mgrid[: size[1], : size[0]]
    frames = [Frame(i, 1, np.stack([x * 3 + i * 5, y * 3 + i * 2, x + y], -1).astype(np.uint8)) for i in range(6)]
    files = set()
    for _ in range(12):
        for rate in (20, 25):  # the other one leaves other memory behind
            write_video(tmp_path / "a.mp4", frames, Fraction(rate), Fraction(1, rate))
            list(Video(tmp_path / "a.mp4"))
        files.add((tmp_path / "a.mp4").read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("loop", [True, False])
def test_gif_loops_if_asked(tmp_path, loop):
    write_video(tmp_path / "a.gif", film(3), Fraction(10), Fraction(1, 10), loop=loop)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.info.get("loop") == (0 if loop else None) and image.n_frames == 3


def test_rotated_video(tmp_path):
    """A phone that was held upright: the file says that its frames are to be turned clockwise by 90 degrees."""
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
        assert frame.pixels[:28].min() > 200 and frame.pixels[36:].max() < 50  # left has become top


def test_transparent_gif_is_on_white(tmp_path):
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 8, 16))
    image.save(tmp_path / "a.gif")
    (frame,) = Video(tmp_path / "a.gif")
    assert (frame.pixels[:, :8] == [255, 0, 0]).all() and (frame.pixels[:, 8:] == 255).all()


@pytest.mark.parametrize("content", [b"", b"no video", b"GIF89a"])
def test_broken_video(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.mp4 is no video"):
        Video(tmp_path / "a.mp4")


def test_a_video_that_breaks_says_where(tmp_path, monkeypatch):
    """With an error of FFmpeg after 10 of its frames, a tenth of a second each."""
    write_video(tmp_path / "a.mp4", film(20), Fraction(10), Fraction(1, 10))
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


def test_a_list_of_other_files_is_no_video(tmp_path):
    """FFmpeg would play what the list names."""
    film_to = tmp_path / "other.mp4"
    write_video(film_to, film(3), Fraction(10), Fraction(1, 10))
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(UserError, match="is no video"):
        Video(tmp_path / "list.mp4")


def test_a_video_that_breaks_leaves_nothing(tmp_path):
    def frames():
        yield from film(3)
        raise UserError("broken")

    with pytest.raises(UserError, match="broken"):
        write_video(tmp_path / "a.mp4", ahead(frames()), Fraction(10), Fraction(1, 10))
    with pytest.raises(UserError, match="no frames"):
        write_video(tmp_path / "a.mp4", [], Fraction(10), Fraction(1, 10))
    assert not list(tmp_path.iterdir())


def test_smooth(G):
    """What is shown is smooth x what was shown before + (1 - smooth) x the translation: by hand, in float64."""
    rng = np.random.default_rng(0)
    frames = [Frame(i, 1, rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for i in range(6)]
    alone = [generate.translate_pixels(G, frame.pixels[None])[0].double() for frame in frames]
    for smooth in (0.0, 0.6):
        shown = list(generate.translate_frames(G, frames, smooth))
        assert [frame.time for frame in shown] == [frame.time for frame in frames]
        for i, frame in enumerate(shown):
            weights = [(1 - smooth) * smooth ** (i - j) if j > 0 else smooth**i for j in range(i + 1)]
            image = sum(weight * image for weight, image in zip(weights, alone, strict=False))
            expected = ((image + 1) * 127.5).permute(1, 2, 0).numpy()
            assert np.abs(frame.pixels - expected).max() < 0.51 + 1e-3
    assert not np.array_equal(shown[5].pixels, generate.translate_image(G, frames[5].pixels))


def test_memory_does_not_grow_with_the_length(G, tmp_path):
    """Of 150 frames only those between the threads are alive at once."""
    alive, most = 0, 0

    def gone():
        nonlocal alive
        alive -= 1

    def source():
        nonlocal alive, most
        for i in range(150):
            pixels = np.full((8, 8, 3), i, np.uint8)
            weakref.finalize(pixels, gone)
            alive += 1
            most = max(most, alive)
            yield Frame(i, 1, pixels)
            del pixels

    results = ahead(generate.translate_frames(G, ahead(source()), 0.5))
    assert write_video(tmp_path / "a.gif", results, Fraction(10), Fraction(1, 10)) == 150
    assert most < 40 and alive == 0
    kept = list(source())
    assert alive == most == len(kept) == 150  # the count sees frames that are kept


def test_ahead():
    """The same items in order, only so many ahead, errors at their place, and an end when nobody asks for more."""
    computed = []

    def items():
        for i in range(100):
            computed.append(i)
            yield i
        raise ValueError("at the end")

    some = ahead(items(), depth=3)
    assert [next(some) for _ in range(10)] == list(range(10)) and len(computed) <= 14
    some.close()
    assert len(computed) <= 14
    seen = []
    with pytest.raises(ValueError, match="at the end"):
        for item in ahead(items()):
            seen.append(item)
    assert seen == list(range(100))


@pytest.mark.parametrize("workers", [1, 3])
def test_map_ahead(workers):
    """Results in order though later items are done first, so many under way at once and no more, errors at their
    place."""
    taken, prepared, together = [], [], threading.Barrier(workers, timeout=30)

    def items():
        for i in range(30):
            taken.append(i)
            yield i

    def work(i: int) -> int:
        if i < workers:
            together.wait()  # as many at once as there are workers, or this ends in an error
        time.sleep(0.01 * (i % 3 == 0))
        if i == 20:
            raise ValueError("at 20")
        return -i

    results = map_ahead(work, items(), workers, lambda: prepared.append(threading.get_ident()))
    for i in range(20):
        assert next(results) == -i and len(taken) == min(30, i + workers + 1)
    with pytest.raises(ValueError, match="at 20"):
        next(results)
    assert len(set(prepared)) == len(prepared) == workers
    assert list(map_ahead(str, [], workers, list)) == [] and list(map_ahead(str, [1], workers, list)) == ["1"]


def test_each_core_has_frames_of_its_own(G, monkeypatch):
    """Of small frames, so that memory allows it; in order, and the number of threads is what it was."""
    frames = [Frame(i, 1, np.full((16, 16, 3), 8 * i, np.uint8)) for i in range(20)]
    alone = list(generate.translate_frames(G, frames, 0.5))
    translate_pixels, seen = generate.translate_pixels, []

    def note(G, pixels):
        seen.append((threading.get_ident(), torch.get_num_threads(), len(pixels)))
        return translate_pixels(G, pixels)

    monkeypatch.setattr(generate, "translate_pixels", note)
    monkeypatch.setattr(generate, "_BATCH_PIXELS", 2 * 16 * 16)
    torch.set_num_threads(4)
    try:
        for budget, workers, share in ((16 * 2**10, 4, 1), (4 * 16 * 16, 2, 2), (1, 1, 4)):
            seen.clear()
            monkeypatch.setattr(generate, "_PIXELS_AT_ONCE", budget)
            for one, many in zip(alone, generate.translate_frames(G, frames, 0.5), strict=True):
                assert one.time == many.time and np.array_equal(one.pixels, many.pixels)
            threads, shares, sizes = zip(*seen, strict=True)
            assert len(set(threads)) <= workers and set(shares) == {share} and set(sizes) == {2}
            assert torch.get_num_threads() == 4
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(torch.get_num_threads).result() == 4
    finally:
        torch.set_num_threads(1)
