"""sources/tfrecords.py: images in TFRecord files equal the same images in a folder; damages are named."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from tfrecord import TFRecordWriter

from images.decoding import ImageError, decode
from images.values import find_scale
from options.training import VanillaOptions
from sources.domains import read_images
from sources.folders import find_folder
from sources.tfrecords import find_records
from system.program import set_up_log
from tests.conftest import FinishedRun, train
from utils import UserError

set_up_log()


def jpeg(seed: int, size: int = 40) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def write_records(path, images: dict[str, bytes]) -> list[int]:
    """Write a file like Kaggle's; return where each record begins."""
    writer, offsets = TFRecordWriter(str(path)), []
    for name, data in images.items():
        offsets.append(writer.file.tell())
        writer.write({"image": (data, "byte"), "image_name": (name.encode(), "byte"), "target": (b"monet", "byte")})
    writer.close()
    return offsets


@pytest.fixture
def images():
    return {f"{seed:03d}{'abc'[seed % 3]}": jpeg(seed) for seed in range(7)}


@pytest.mark.golden
def test_records_hold_the_pixels_names_and_sizes_of_the_files(tmp_path, images):
    names = list(images)
    write_records(tmp_path / "monet01-3.tfrec", {name: images[name] for name in names[4:]})
    write_records(tmp_path / "monet00-4.tfrec", {name: images[name] for name in reversed(names[:4])})
    source = read_images(tmp_path)
    assert list(source.names) == [f"{name}.jpg" for name in sorted(names)]
    assert source.sizes() == [len(images[name]) for name in sorted(names)]
    for index, name in enumerate(sorted(names)):
        expected = np.asarray(Image.open(io.BytesIO(images[name])))
        assert (decode(source.open(index)).pixels.permute(1, 2, 0).numpy() == expected).all()


def test_a_single_file_is_a_source(tmp_path, images):
    write_records(tmp_path / "photos.tfrecord", images)
    assert len(read_images(tmp_path / "photos.tfrecord").names) == 7


def test_a_selection_opens_the_selected_images(tmp_path, images):
    write_records(tmp_path / "a.tfrec", images)
    source = read_images(tmp_path)
    part = source.select([5, 2])
    assert part.names == [source.names[5], source.names[2]]
    assert (decode(part.open(1)).pixels == decode(source.open(2)).pixels).all()


def test_the_fingerprint_changes_with_the_files(tmp_path, images):
    write_records(tmp_path / "a.tfrec", images)
    before = read_images(tmp_path).fingerprint()
    assert read_images(tmp_path).fingerprint() == before
    write_records(tmp_path / "a.tfrec", {**images, "008": jpeg(8)})
    assert read_images(tmp_path).fingerprint() != before


@pytest.mark.faults
def test_a_flipped_bit_is_named_and_the_other_records_are_read(tmp_path, images):
    path = tmp_path / "a.tfrec"
    offsets = write_records(path, images)
    data = bytearray(path.read_bytes())
    data[offsets[3] + 500] ^= 1
    path.write_bytes(data)
    source = read_images(tmp_path)
    assert len(source.names) == 7
    bad = list(source.names).index(f"a.tfrec at byte {offsets[3]}")
    with pytest.raises(ImageError, match="checksum of the record is wrong"):
        source.open(bad)
    assert sum(name.endswith(".jpg") for name in source.names) == 6


@pytest.mark.faults
@pytest.mark.parametrize("kept", [5, 12, 700, -1])
def test_a_cut_file_names_where_it_ends(tmp_path, images, kept):
    path = tmp_path / "a.tfrec"
    offsets = write_records(path, images)
    end = path.stat().st_size if kept < 0 else offsets[4]
    path.write_bytes(path.read_bytes()[: end + kept])
    source = read_images(tmp_path)
    start = offsets[6] if kept < 0 else offsets[4]
    bad = list(source.names).index(f"a.tfrec at byte {start}")
    with pytest.raises(ImageError, match="cut off here, so the rest of the file cannot be read"):
        source.open(bad)
    assert len(source.names) == (7 if kept < 0 else 5)


@pytest.mark.faults
def test_a_damaged_length_ends_the_file(tmp_path, images):
    path = tmp_path / "a.tfrec"
    offsets = write_records(path, images)
    data = bytearray(path.read_bytes())
    data[offsets[2]] ^= 4
    path.write_bytes(data)
    assert [record.size > 0 for record in find_records(path)] == [True, True, False]


@pytest.mark.faults
def test_a_record_without_an_image_says_what_it_has(tmp_path):
    writer = TFRecordWriter(str(tmp_path / "a.tfrec"))
    writer.write({"label": (3, "int"), "text": (b"cat", "byte")})
    writer.close()
    with pytest.raises(ImageError, match="its features are label, text"):
        read_images(tmp_path).open(0)


@pytest.mark.faults
def test_a_record_that_is_not_an_image_is_refused_when_it_is_opened(tmp_path):
    write_records(tmp_path / "a.tfrec", {"text": b"this is not a picture"})
    with pytest.raises(OSError):
        read_images(tmp_path).open(0)


@pytest.mark.faults
def test_a_gzip_file_is_named(tmp_path):
    (tmp_path / "a.tfrec").write_bytes(b"\x1f\x8b\x08" + bytes(50))
    with pytest.raises(UserError, match=r"a\.tfrec is compressed with gzip"):
        read_images(tmp_path)


@pytest.mark.parametrize(
    "name, count, words", [("monet00-9.tfrec", 7, "7 records, but its name says 9"), ("monet00-7.tfrec", 7, "")]
)
def test_a_file_with_fewer_images_than_its_name_says(tmp_path, images, capsys, name, count, words):
    write_records(tmp_path / name, images)
    assert len(read_images(tmp_path).names) == count
    said = capsys.readouterr().out
    assert words in said if words else "records" not in said


def test_missing_shards_are_named(tmp_path, images, capsys):
    write_records(tmp_path / "train-00000-of-00003.tfrecord", images)
    write_records(tmp_path / "train-00002-of-00003.tfrecord", {"x": jpeg(9)})
    read_images(tmp_path)
    assert "2 of 3 shards train-" in capsys.readouterr().out


def test_shards_as_tensorflow_datasets_names_them(tmp_path, images, capsys):
    """The number comes after the extension; such a file alone is a source, too."""
    for number in (0, 2):
        file = tmp_path / f"cats-train.tfrecord-{number:05d}-of-00003"
        write_records(file, {"": jpeg(number)})
    assert find_folder(str(file)) == file and read_images(file).names == ["cats-train-00002-of-00003-00000.jpg"]
    assert read_images(tmp_path).names == [f"cats-train-0000{number}-of-00003-00000.jpg" for number in (0, 2)]
    assert "2 of 3 shards cats-train.tfrecord-" in capsys.readouterr().out


@pytest.mark.faults
def test_names_are_names_of_files(tmp_path):
    """`dataset.py check --fix` writes files of these names, and training looks at their extensions."""
    tiff = io.BytesIO()
    Image.new("RGB", (40, 40)).save(tiff, "TIFF")
    write_records(tmp_path / "a.tfrec", {"../x": jpeg(0), "..": jpeg(1), "n\0l": jpeg(2), "scan": tiff.getvalue()})
    assert read_images(tmp_path).names == ["a-00001.jpg", "n_l.jpg", "scan.tif", "x.jpg"]


def test_images_of_the_same_name_get_different_names(tmp_path, images):
    write_records(tmp_path / "a.tfrec", images)
    write_records(tmp_path / "b.tfrec", {"000a": jpeg(99)})
    names = read_images(tmp_path).names
    assert len(set(names)) == 8


def test_images_without_a_name_are_numbered(tmp_path):
    writer = TFRecordWriter(str(tmp_path / "part.tfrecord"))
    for seed in range(2):
        writer.write({"image/encoded": (jpeg(seed), "byte")})
    writer.close()
    assert read_images(tmp_path).names == ["part-00000.jpg", "part-00001.jpg"]


def test_other_files_beside_the_records_are_left_out(tmp_path, images):
    write_records(tmp_path / "a.tfrec", images)
    (tmp_path / "film.heic").write_bytes(b"x")
    assert read_images(tmp_path).left_out == "1 .heic"


def test_images_beside_records_come_first(tmp_path, images):
    write_records(tmp_path / "a.tfrec", images)
    (tmp_path / "one.jpg").write_bytes(images["000a"])
    source = read_images(tmp_path)
    assert (list(source.names), source.left_out) == (["one.jpg"], "1 .tfrec")


@pytest.mark.faults
def test_ext_and_empty_files_are_refused(tmp_path, images):
    (tmp_path / "a.tfrec").write_bytes(b"")
    with pytest.raises(UserError, match="the TFRecord files are empty"):
        read_images(tmp_path)
    with pytest.raises(UserError, match="--ext: does nothing for the TFRecord files"):
        read_images(tmp_path, ext="jpg")


@pytest.mark.golden
def test_a_run_of_records_equals_the_run_of_the_same_files(tmp_path, images):
    """The same JPEG bytes, in another order and in two files: the same losses, split and data.json."""
    folder, records = tmp_path / "monet_jpg", tmp_path / "monet_tfrec"
    folder.mkdir()
    records.mkdir()
    for name, data in images.items():
        (folder / f"{name}.jpg").write_bytes(data)
    names = sorted(images, reverse=True)
    write_records(records / "monet00-4.tfrec", {name: images[name] for name in names[:4]})
    write_records(records / "monet01-3.tfrec", {name: images[name] for name in names[4:]})
    single = tmp_path / "monet.tfrecord"
    write_records(single, images)
    outcomes = []
    for number, place in enumerate((folder, records, single)):
        arguments = [
            f"--data={place}",
            "--test_split=0.3",
            "--train_iters=3",
            "--log_step=1",
            f"--cache_gb={number % 2}",
        ]
        assert train(*arguments, f"--name=run{number}", f"--checkpoint_dir={tmp_path / 'runs'}") == 0
        run = FinishedRun(tmp_path / f"runs/run{number}")
        data = run.data["images"]
        outcomes.append((run.rows(), data["train"], data["test"]))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert len(outcomes[0][0]) == 3 and len(outcomes[0][2]) == 2


def test_16_bit_images_in_records_are_measured_and_jpegs_are_not_opened_for_it(tmp_path, images, monkeypatch):
    wide = io.BytesIO()
    Image.fromarray(np.full((40, 40), 3000, dtype=np.uint16)).save(wide, "PNG")
    write_records(tmp_path / "a.tfrec", {**images, "x": wide.getvalue()})
    source, opened = read_images(tmp_path), []
    real = type(source).open
    monkeypatch.setattr(type(source), "open", lambda self, index: opened.append(index) or real(self, index))
    with ThreadPoolExecutor(1) as pool:
        scale = find_scale(source, pool)
    assert [source.names[index] for index in opened] == ["x.png"] and scale.range == (0, 4095)


def test_a_relative_name_of_a_file_is_recorded_as_absolute(tmp_path, images, monkeypatch):
    write_records(tmp_path / "a.tfrec", images)
    monkeypatch.chdir(tmp_path)
    assert VanillaOptions(data="a.tfrec").with_absolute_paths().data == str(tmp_path / "a.tfrec")


@pytest.mark.faults
def test_records_without_a_readable_image_end_the_training_without_a_word_of_extensions(tmp_path, capsys):
    write_records(tmp_path / "a.tfrec", {"text": b"this is not a picture"})
    assert train(f"--data={tmp_path}", f"--checkpoint_dir={tmp_path / 'runs'}") == 2
    error = capsys.readouterr().err
    assert "none of the 1 images in" in error and "extensions" not in error
