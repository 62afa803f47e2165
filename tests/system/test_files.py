"""Files: written whole or not at all, flushed to disk, and checks of the paths before writing."""

import contextlib
import errno
import fnmatch
import json
import os
import stat

import pytest

from system.files import (
    append,
    atomic_write,
    check_new_file,
    check_new_folder,
    fsync_path,
    make_durable_folder,
    read_json,
    require_writable,
    temporary_path,
    write_json,
)
from utils import UserError

unless_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")


# ---- Writing


def test_the_old_file_stays_when_writing_fails(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def fail(file):
        file.write(b"half")
        raise OSError("the disk is broken")

    with pytest.raises(OSError, match="the disk is broken"):
        atomic_write(path, fail)
    assert json.loads(path.read_text()) == {"a": 1} and os.listdir(tmp_path) == ["x.json"]
    before = path.stat().st_ino
    write_json(path, {"a": 2})
    assert path.stat().st_ino != before, "a new file replaces the old one, which is never written to"


@pytest.mark.faults
@pytest.mark.skipif(os.name != "posix", reason="folders are not flushed")
@pytest.mark.parametrize("number, is_fine", [(errno.EINVAL, True), (errno.EIO, False)])
def test_folders_that_cannot_be_flushed(number, is_fine, tmp_path, monkeypatch):
    """Some file systems cannot flush folders, which is fine; a failing disk is an error, and so is a file."""
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with contextlib.nullcontext() if is_fine else pytest.raises(OSError, match="Input/output"):
        write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").read_text() == "{}\n"
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.EINVAL, "Invalid")))
    with pytest.raises(OSError, match="Invalid"):
        write_json(tmp_path / "b.json", {})
    assert not (tmp_path / "b.json").exists()
    with pytest.raises(OSError, match="Invalid"):
        fsync_path(tmp_path / "a.json")


@pytest.mark.faults
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_an_error_that_names_the_space(tmp_path, number):
    def fail(file):
        file.write(bytes(2_000_000))
        raise OSError(number, os.strerror(number))

    words = rf"x\.bin: {os.strerror(number)}: it needs 2 MB, and .* MB are free; free some space .*--resume"
    with pytest.raises(UserError, match=words):
        atomic_write(tmp_path / "x.bin", fail)
    assert os.listdir(tmp_path) == []


@pytest.mark.faults
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
def test_a_full_disk_while_appending(tmp_path):
    append(tmp_path / "log.txt", "one\n")
    append(tmp_path / "log.txt", "two \udcff\n")
    assert (tmp_path / "log.txt").read_text() == "one\ntwo \\udcff\n"
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(UserError, match="full: No space left on device: it needs"):
        append(tmp_path / "full", "text")


def test_new_folders_are_flushed_with_their_parents(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("system.files.fsync_path", flushed.append)
    make_durable_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir() and set(flushed) == {tmp_path, tmp_path / "a"}
    flushed.clear()
    make_durable_folder(tmp_path / "a" / "b")
    assert flushed == []


LONG_NAMES = {
    "ASCII": "a" * 246 + ".png",
    "at the limit": "a" * 251 + ".png",
    "two bytes a character": "ä" * 123 + ".png",
    "four bytes a character": "x" + "😺" * 62 + ".png",
    "bytes that are not text": os.fsdecode(b"\xe4" * 250 + b".png"),
    "hidden": "." + "b" * 245 + ".png",
}


@pytest.mark.faults
@pytest.mark.parametrize("kind", LONG_NAMES)
def test_any_name_that_a_file_can_have_can_be_written(tmp_path, kind):
    """The control is the temporary name of earlier versions, which is longer than a name may be."""
    name = LONG_NAMES[kind]
    seen = []
    write = lambda file: seen.append(os.listdir(tmp_path))  # noqa: E731
    atomic_write(tmp_path / name, lambda file: (write(file), file.write(b"content")))
    assert (tmp_path / name).read_bytes() == b"content" and os.listdir(tmp_path) == [name]
    [[temporary]] = seen
    assert temporary.startswith(f".{name[:20]}") and temporary.endswith(f".{os.getpid()}.tmp")
    assert len(os.fsencode(temporary)) <= 143 and fnmatch.fnmatch(temporary, ".*.tmp")
    if kind != "bytes that are not text":
        assert temporary.encode(), "the name is not cut in the middle of a character"
    with pytest.raises(OSError, match="too long"):
        open(tmp_path / f".{name}.{os.getpid()}.tmp", "wb")


def test_temporary_names_of_different_files_differ(tmp_path):
    names = ["options.json", "a" * 240 + "1", "a" * 240 + "2", "a" * 150, "a" * 151]
    temporary = [temporary_path(tmp_path / name).name for name in names]
    assert len({*temporary}) == len(names) and temporary[0] == f".options.json.{os.getpid()}.tmp"


# ---- JSON


def test_json_keeps_text_and_escapes_bytes_that_are_not_text(tmp_path):
    write_json(tmp_path / "x.json", {"Käse": "\udcff"})
    assert read_json(tmp_path / "x.json") == {"Käse": "\udcff"} and "Käse" in (tmp_path / "x.json").read_text()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}"])
def test_damaged_json_is_an_error_of_one_line(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json is damaged \(.*\); restore it, or start a new run") as error:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(error.value)


# ---- Checks before writing


def test_a_folder_whose_parent_is_a_file_is_not_writable(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "new" / "deep"):
        require_writable(folder, "--out")
    assert os.listdir(tmp_path) == ["file"], "it only checks"
    for folder in (tmp_path / "file", tmp_path / "file" / "new"):
        with pytest.raises(UserError, match=r"--out: .*file is not a writable folder; choose another folder"):
            require_writable(folder, "--out")
    (tmp_path / "broken").symlink_to("nothing")
    with pytest.raises(UserError, match=r"broken is not a writable folder"):
        require_writable(tmp_path / "broken", "--out")


@unless_root
def test_a_folder_without_permission_is_not_writable(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="is not a writable folder"):
        require_writable(tmp_path / "new", "--out")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    "name, words",
    [
        ("a", r"a needs one of the endings \.png, \.gif$"),
        ("a.txt", r"a\.txt has an extension that cannot be written; use one of \.png, \.gif"),
        ("folder.png", r"folder\.png is a folder; give a file, such as .*name\.png"),
        ("old.png", r"old\.png exists; give another name, or add --overwrite"),
        ("old.png/a.png", r"old\.png is not a writable folder"),
    ],
)
def test_files_that_cannot_be_written(tmp_path, name, words):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "old.png").touch()
    with pytest.raises(UserError, match=f"--grid: .*{words}"):
        check_new_file(tmp_path / name, (".png", ".gif"), overwrite=False, flag="--grid")


def test_files_that_can_be_written(tmp_path):
    (tmp_path / "old.png").touch()
    check_new_file(tmp_path / "new" / "a.PNG", (".png",), overwrite=False)
    check_new_file(tmp_path / "old.png", (".png",), overwrite=True)
    assert os.listdir(tmp_path) == ["old.png"], "it only checks"


def test_folders_for_new_files(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.png").touch()
    for name, overwrite in (("empty", False), ("new", False), ("full", True)):
        check_new_folder(tmp_path / name, overwrite)
    with pytest.raises(UserError, match=r"--out: .*full contains files; give another folder, or add --overwrite"):
        check_new_folder(tmp_path / "full", overwrite=False)
