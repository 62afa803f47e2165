"""Zip files: unpacked whole, kept inside their folder, and refused if they are bombs or damaged."""

import io
import os
import stat
import zipfile

import pytest

from sources import archives
from sources.archives import find_root, unpack
from utils import UserError


def write_zip(path, files: dict[str, bytes], **kwargs) -> None:
    with zipfile.ZipFile(path, "w", **kwargs) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.fixture
def zipped(tmp_path):
    return tmp_path / "x.zip"


def test_unpack(zipped, tmp_path):
    noise = os.urandom(10_000)
    write_zip(zipped, {"a/b/1.png": noise, "a/": b"", "2.jpg": b"", "__MACOSX/a/._1.png": b"mac"})
    unpack(zipped, tmp_path / "out", "x")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    assert found == {"a", "a/b", "a/b/1.png", "2.jpg"}
    assert (tmp_path / "out/a/b/1.png").read_bytes() == noise


@pytest.mark.faults
@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/evil.png", "..\\evil.png", "\\evil.png", "C:\\evil.png", "c:evil.png"]
)
def test_an_entry_that_leaves_the_folder(zipped, tmp_path, name):
    write_zip(zipped, {"a/1.png": b"1", name: b"evil"})
    with pytest.raises(UserError, match=r"x\.zip contains '.*evil\.png', which leads out of its folder"):
        unpack(zipped, tmp_path / "out", "x.zip")
    assert [*tmp_path.iterdir()] == [zipped]


@pytest.mark.faults
def test_a_symbolic_link(zipped, tmp_path):
    link = zipfile.ZipInfo("a/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr(link, "/etc")
        archive.writestr("a/link.png/passwd", "evil")
    with pytest.raises(UserError, match=r"contains 'a/link\.png', which leads out"):
        unpack(zipped, tmp_path / "out", "x.zip")
    assert [*tmp_path.iterdir()] == [zipped]


@pytest.mark.parametrize("name", ["a..b/1.png", "a/12:30.png", "ä/ö.png", "a/...png", "c/d:e.png"])
def test_harmless_names(zipped, tmp_path, name):
    write_zip(zipped, {name: b"1"})
    unpack(zipped, tmp_path / "out", "x.zip")
    assert (tmp_path / "out" / name).read_bytes() == b"1"


@pytest.mark.faults
def test_a_bomb(zipped, tmp_path, monkeypatch):
    zeros = bytes(3_000_000)
    write_zip(zipped, {f"{i}.png": zeros for i in range(20)}, compression=zipfile.ZIP_DEFLATED)
    assert zipped.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"x\.zip would become 20 files of 60 MB, out of 0 MB: too much for images"):
        unpack(zipped, tmp_path / "out", "x.zip")
    write_zip(zipped, {f"{i}.png": b"" for i in range(20)})
    unpack(zipped, tmp_path / "few", "x.zip")
    monkeypatch.setattr(archives, "MAX_FILES", 19)
    with pytest.raises(UserError, match="would become 20 files"):
        unpack(zipped, tmp_path / "out", "x.zip")
    assert not (tmp_path / "out").exists()


@pytest.mark.faults
def test_a_bomb_that_lies_about_its_size(zipped, tmp_path):
    """The size in the table of contents is what is written at most: the control writes all."""
    write_zip(zipped, {"1.png": bytes(50_000_000)}, compression=zipfile.ZIP_DEFLATED)
    true, lie = (50_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    zipped.write_bytes(zipped.read_bytes().replace(true, lie))
    with pytest.raises(UserError, match="is not a readable zip file"):
        unpack(zipped, tmp_path / "out", "x.zip")
    written = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*"))
    assert written <= 1000
    control = io.BytesIO()
    write_zip(control, {"1.png": bytes(50_000_000)}, compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(control) as archive:
        assert len(archive.read("1.png")) == 50_000_000


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["not a zip", "empty", "cut", "flipped", "locked", "flipped method"])
def test_a_damaged_file(zipped, tmp_path, damage):
    write_zip(zipped, {"1.png": os.urandom(5000), "2.png": os.urandom(5000)}, compression=zipfile.ZIP_DEFLATED)
    content = bytearray(zipped.read_bytes())
    if damage == "not a zip":
        content = bytearray(b"<html>log in</html>")
    elif damage == "empty":
        content.clear()
    elif damage == "cut":
        del content[-500:]
    elif damage == "flipped":
        content[2000] ^= 1
    else:
        with zipfile.ZipFile(zipped) as archive:
            at = archive.start_dir + (8 if damage == "locked" else 10)
        content[at] = 1 if damage == "locked" else 99
    zipped.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.zip is not a readable zip file \(.+\); nothing of it is kept"):
        unpack(zipped, tmp_path / "out", "x.zip")


@pytest.mark.parametrize(
    "files, root",
    [
        (["name/trainA/1.png", "name/trainB/1.png"], "name"),
        (["1.png", "2.png"], "."),
        (["name/1.png", "name/2.png"], "name"),
        (["name/img/1.png"], "name/img"),
        (["name/1.png", ".DS_Store"], "name"),
        (["name/1.png", "readme.txt"], "."),
    ],
)
def test_find_root(tmp_path, files, root):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_root(tmp_path) == tmp_path / root
