"""dataset.py download: data sets by name, from a server on this machine, whole or not at all."""

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import types
import zipfile
from collections import namedtuple
from pathlib import Path

import filelock
import pytest

import dataset
from options.command_line import parse_subcommand
from sources import archives, downloads, folders
from sources.catalogue import CYCLEGAN, DATA_SETS, FEW_SHOT
from sources.domains import find_domains
from system.program import run_main
from tests.conftest import ROOT, make_photo, resume
from tests.helpers.loopback import serve

NAME, SHOT = "apple2orange", "100-shot-obama"


def zip_of(names: list[str]) -> bytes:
    """Return a zip file of PNG images."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for seed, name in enumerate(names):
            png = io.BytesIO()
            make_photo((40, 40), seed).save(png, "PNG")
            archive.writestr(name, png.getvalue())
    return content.getvalue()


APPLES = zip_of([f"{NAME}/{folder}/{i}.png" for folder in ("trainA", "trainB", "testA", "testB") for i in range(3)])
OBAMA = zip_of([f"{SHOT}/{i}.png" for i in range(5)])


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """The folder data/."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for module in (downloads, folders):
        monkeypatch.setattr(module, "DATA_ROOT", tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def server(data, monkeypatch):
    """A server with a data set whose checksum is published, and one without."""
    with serve() as server:
        for name, content in {NAME: APPLES, SHOT: OBAMA}.items():
            one = DATA_SETS[name]._replace(address=server.add(f"/{name}.zip", content))
            if one.sha256 is not None:
                one = one._replace(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
            monkeypatch.setitem(DATA_SETS, name, one)
        yield server


def run(*arguments: object) -> int:
    """Run `dataset.py download` in this process; return its exit code."""
    try:
        options = parse_subcommand(dataset.OPTIONS_OF, "", ["download", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code
    return run_main(lambda: dataset.main(options), "dataset.py")


def fails(capsys, *arguments: object) -> str:
    """Run a command that fails with one line and code 2; return the line."""
    capsys.readouterr()
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("dataset.py") and "error: " in err, err
    return err


def files_below(folder: Path) -> set[str]:
    """Return the files in a folder and below it; empty if the folder does not exist."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_data_set_of_two_domains(server, data, capsys, tmp_path):
    assert run(NAME) == 0
    assert f"{NAME}: 12 images in {data / NAME} (license: ImageNet terms: research only)" in capsys.readouterr().out
    assert sorted(path.name for path in (data / NAME).iterdir()) == [
        ".source.json",
        "testA",
        "testB",
        "trainA",
        "trainB",
    ]
    assert [path.name for path in data.iterdir()] == [NAME], "neither the zip file nor a temporary folder stays"
    about = json.loads((data / NAME / ".source.json").read_text())
    assert about == {"name": NAME, "source": f"{server.address}/{NAME}.zip", "license": "ImageNet terms: research only"}
    options = find_domains(parse_training(f"--data={NAME}"))
    assert {name: len(domain.train.names) for name, domain in options.items()} == {"X": 3, "Y": 3}
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    assert run(NAME) == 0
    assert f"{NAME} is in {data / NAME}: nothing to do" in capsys.readouterr().out
    assert server.requests == [f"/{NAME}.zip"] and before == {path: path.stat().st_mtime_ns for path in data.rglob("*")}


def parse_training(*arguments: str):
    from options import CycleOptions, parse_command_line

    return parse_command_line(CycleOptions, "", arguments)


def test_a_folder_by_hand_is_left_alone(server, data, capsys):
    (data / NAME / "trainA").mkdir(parents=True)
    assert run(NAME) == 0
    assert "nothing to do" in capsys.readouterr().out and not server.requests


def test_an_empty_folder_is_filled(server, data):
    (data / NAME).mkdir(parents=True)
    assert run(NAME) == 0 and (data / NAME / "trainA").is_dir()


@pytest.mark.parametrize("names", [["{}/0.png", "{}/1.png"], ["0.png", "1.png"], ["{}/img/0.png", "{}/img/1.png"]])
def test_the_images_of_a_small_set_are_in_one_folder(server, data, names):
    server.add(f"/{SHOT}.zip", zip_of([name.format(SHOT) for name in names]))
    assert run(SHOT) == 0
    assert files_below(data / SHOT) == {"0.png", "1.png", ".source.json"}


def test_the_first_checksum_is_recorded_and_compared(server, data, capsys):
    assert run(SHOT) == 0
    record = data / f"{SHOT}.zip.sha256"
    assert record.read_text() == f"{hashlib.sha256(OBAMA).hexdigest()}  {SHOT}.zip\n"
    assert f"no checksum of {SHOT}.zip is published; its SHA-256 is recorded in {record}" in capsys.readouterr().out
    shutil.rmtree(data / SHOT)
    server.add(f"/{SHOT}.zip", zip_of(["0.png"]))
    assert f"is not that of the first download in {record}" in fails(capsys, SHOT)
    assert files_below(data) == {record.name}
    server.add(f"/{SHOT}.zip", OBAMA)
    assert run(SHOT) == 0 and len(files_below(data / SHOT)) == 6


def test_another_folder(server, data, tmp_path, capsys):
    target = tmp_path / "new" / "fruit"
    assert run(NAME, "-o", target) == 0 and (target / "trainA/0.png").exists() and not data.exists()
    assert run(NAME, "-o", target) == 0 and "nothing to do" in capsys.readouterr().out
    assert "contains other files" in fails(capsys, SHOT, "-o", target)
    (tmp_path / "file").touch()
    assert "is a file; give a folder" in fails(capsys, NAME, "-o", tmp_path / "file")
    assert "is not a writable folder" in fails(capsys, NAME, "-o", tmp_path / "file" / "x")


def test_a_zip_file_that_the_user_has(server, data, tmp_path, capsys):
    (tmp_path / "mine.zip").write_bytes(APPLES)
    assert run(NAME, "--from", tmp_path / "mine.zip") == 0
    assert (data / NAME / "testB/2.png").exists() and not server.requests and (tmp_path / "mine.zip").exists()
    shutil.rmtree(data)
    (tmp_path / "mine.zip").write_bytes(OBAMA)
    assert f"so it is not the published {NAME}.zip" in fails(capsys, NAME, "--from", tmp_path / "mine.zip")
    assert f"--from: {tmp_path} is not a file; give the zip file" in fails(capsys, NAME, "--from", tmp_path)
    assert run(SHOT, "--from", tmp_path / "mine.zip") == 0, "no checksum is published"
    shutil.rmtree(data)
    (tmp_path / "mine.zip").write_bytes(zip_of([]))
    assert "mine.zip contains no image" in fails(capsys, SHOT, "--from", tmp_path / "mine.zip")
    (tmp_path / "mine.zip").write_bytes(b"x")
    assert "mine.zip is not a readable zip file" in fails(capsys, SHOT, "--from", tmp_path / "mine.zip")
    assert not files_below(data)


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["checksum", "size", "cut", "network", "missing", "slip", "bomb", "not a zip"])
def test_a_failed_download_leaves_nothing(server, data, capsys, monkeypatch, fault):
    name, words = NAME, ["cannot be downloaded", f"python dataset.py download {NAME} --from FILE"]
    if fault == "checksum":
        monkeypatch.setitem(DATA_SETS, NAME, DATA_SETS[NAME]._replace(sha256="0" * 64))
        words = ["its SHA-256 is not 0000", "--from FILE"]
    elif fault == "size":
        server.add(f"/{NAME}.zip", APPLES[:-1])
        words = ["but the published file", "--from FILE"]
    elif fault == "cut":
        server.answers += ["cut"] * 9
    elif fault == "network":
        server.server_close()
    elif fault == "missing":
        server.answers.append(404)
        words = ["404 Not Found", "--from FILE"]
    else:
        name = SHOT
        content = {"slip": zip_of(["../evil.png"]), "bomb": OBAMA, "not a zip": b"<html>"}[fault]
        server.add(f"/{SHOT}.zip", content)
        words = [{"slip": "leads out", "bomb": "too much for images", "not a zip": "not a readable zip"}[fault]]
        monkeypatch.setattr(archives, "MAX_FILES", 2 if fault == "bomb" else 100)
    data.mkdir()
    capsys.readouterr()
    assert run(name) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in words), err
    assert not [*data.iterdir()], "not even the checksum of a file that cannot be used"


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["before", "download", "unpack"])
def test_a_full_disk(server, data, capsys, monkeypatch, moment):
    usage = namedtuple("usage", "total used free")
    if moment == "before":
        free = int(2 * len(APPLES))  # room for the zip file, and not quite for its content
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - free, free))
        assert "are needed and" in fails(capsys, NAME) and not server.requests
    else:

        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        where = (zipfile.ZipFile, "extract") if moment == "unpack" else ("requests.Response.iter_content",)
        monkeypatch.setattr(*where, full)
        assert f"{data / NAME}: No space left on device; fix this" in fails(capsys, NAME)
    assert not [*data.iterdir()]
    monkeypatch.undo()


@pytest.mark.faults
@pytest.mark.parametrize("moment", ["download", "unpack"])
def test_ctrl_c_leaves_nothing(server, data, capsys, monkeypatch, moment):
    if moment == "download":
        server.answers.append("interrupt")
    else:
        extract = zipfile.ZipFile.extract

        def interrupted(archive, entry, folder):
            if entry.filename.endswith("trainB/1.png"):
                raise KeyboardInterrupt
            return extract(archive, entry, folder)

        monkeypatch.setattr(zipfile.ZipFile, "extract", interrupted)
    assert run(NAME) == 130
    assert capsys.readouterr().err == "dataset.py: interrupted\n" and not [*data.iterdir()]
    if moment == "download":
        assert run(NAME) == 0, "the same command again makes the folder"


@pytest.mark.faults
def test_what_a_killed_process_left_is_deleted(server, data):
    (data / f".{NAME}.partial" / "unpacked").mkdir(parents=True)
    (data / f".{NAME}.partial" / "unpacked" / "old.png").touch()
    assert run(NAME) == 0
    assert [path.name for path in data.iterdir()] == [NAME] and not (data / NAME / "old.png").exists()


@pytest.mark.faults
def test_two_processes(server, data, capsys):
    data.mkdir()
    with filelock.FileLock(data / f".{NAME}.partial.lock"):
        (data / f".{NAME}.partial").mkdir()
        assert "another process downloads it" in fails(capsys, NAME)
        assert (data / f".{NAME}.partial").exists() and not server.requests


def test_an_unknown_name(capsys):
    assert "'aple2orange' is unknown; did you mean apple2orange?" in fails(capsys, "aple2orange")
    assert "did you mean 100-shot-grumpy_cat?" in fails(capsys, "grumpy_cat")
    assert "did you mean 100-shot-obama? " in fails(capsys, "obama")
    assert "did you mean 100-shot-grumpy_cat or AnimalFace-cat? " in fails(capsys, "Cat")
    assert "did you mean maps? " in fails(capsys, "MAPS")
    assert "did you mean" not in fails(capsys, "mnist")
    assert "--list` shows all names" in fails(capsys, "../x")


def test_options_that_do_not_fit(capsys):
    assert "NAME: missing; give the name of a data set, or --list" in fails(capsys)
    for words in ([NAME], ["--from", "x.zip"], ["-o", "x"]):
        assert "does nothing with --list; leave one out" in fails(capsys, "--list", *words)


def test_the_list(capsys):
    assert run("--list") == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in DATA_SETS)
    assert "apple2orange                 78 MB   2,528 images   ImageNet" in out
    assert max(map(len, out.splitlines())) <= 120


def test_the_list_needs_no_torch():
    """It takes a tenth of a second, as --help does; the import of torch takes three seconds."""
    code = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path('dataset.py', run_name='__main__')"
    words = [sys.executable, "-c", code, "download"]
    done = subprocess.run([*words, "--list"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and f"  {NAME} " in done.stdout, done.stderr
    other = subprocess.run([*words, NAME], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert other.returncode == 1 and "import of torch halted" in other.stderr, "the control: downloads need it"


def test_the_catalogue():
    """All eleven sets of the CycleGAN paper, the nine small ones, and Kaggle's, with their published addresses."""
    groups = [one.group for one in DATA_SETS.values()]
    assert groups.count(CYCLEGAN) == 11 and groups.count(FEW_SHOT) == 9 and len(groups) == 21
    for name, one in DATA_SETS.items():
        if one.group == CYCLEGAN:
            assert one.address == f"https://efrosgans.eecs.berkeley.edu/cyclegan/datasets/{name}.zip"
            assert len(bytes.fromhex(one.sha256)) == 32 and 35e6 < one.size < 1.5e9
        elif one.group == FEW_SHOT:
            assert one.address == f"https://data-efficient-gans.mit.edu/datasets/{name}.zip" and one.sha256 is None
    assert len({one.sha256 for one in DATA_SETS.values()}) == 12


@pytest.mark.parametrize("arguments", [["--data=apple2orange"], ["--X=apple2orange/trainA", "--Y=maps/trainB"]])
def test_a_training_says_the_command_to_type(data, capsys, arguments):
    assert resume(*arguments, script="cycle_gan.py") == 2
    assert "; to download it: python dataset.py download apple2orange\n" in capsys.readouterr().err
    assert resume("--data=my-apples", script="cycle_gan.py") == 2
    assert "give the folder of the images\n" in capsys.readouterr().err


# ---- Kaggle


def test_kaggle_without_its_package(data, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    err = fails(capsys, "gan-getting-started")
    assert all(word in err for word in ("accept the rules", "pip install kagglehub", "kaggle.json", "--from FILE"))
    assert not [*data.iterdir()]
    (tmp_path / "gan.zip").write_bytes(zip_of(["monet_jpg/0.png", "photo_jpg/0.png"]))
    assert run("gan-getting-started", "--from", tmp_path / "gan.zip") == 0
    assert folders.find_folder("gan-getting-started/monet_jpg") == data / "gan-getting-started/monet_jpg"


@pytest.mark.parametrize("problem", [None, "User is not authenticated", "403 Client Error:\nForbidden"])
def test_kaggle_with_its_package(data, capsys, monkeypatch, problem):
    def competition_download(name: str, output_dir: str) -> str:
        if problem is not None:
            raise RuntimeError(problem)
        for folder in ("monet_jpg", "photo_jpg", ".complete"):
            (Path(output_dir) / folder).mkdir(parents=True)
            make_photo((40, 40), 0).save(Path(output_dir) / folder / "0.png")
        return output_dir

    package = types.SimpleNamespace(competition_download=competition_download)
    monkeypatch.setitem(sys.modules, "kagglehub", package)
    if problem is None:
        assert run("gan-getting-started") == 0
        assert (data / "gan-getting-started/monet_jpg/0.png").exists()
    else:
        err = fails(capsys, "gan-getting-started")
        assert " ".join(problem.split()) in err and "accept the rules" in err and not [*data.iterdir()]


def test_help_answers_before_slow_packages_are_imported():
    """The modules that the command line needs import neither torch nor pooch."""
    import subprocess

    code = "import sys, options.dataset, options.command_line; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "pooch", "requests", "numpy"} & set(found.stdout.split())
