"""`dataset.py download`: published data sets by name."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock

from options.dataset import DownloadOptions
from sources.archives import find_root, unpack
from sources.catalogue import DATA_SETS, KAGGLE, DataSet
from sources.folders import DATA_ROOT, EXTENSIONS
from system.downloads import fetch, read_checksum, record_checksum, require_space
from system.files import fsync_path, make_durable_folder, require_writable, write_json
from utils import LOG, UserError, one_line, suggest

ABOUT = ".source.json"  # in the folder of a data set: where its images come from
SPACE = 2.1  # times the bytes of the zip file: the file and, a little larger, its content


def download(options: DownloadOptions) -> int:
    """Put the images of a data set into a folder, whole or not at all; return the exit code.

    Raises:
        UserError: unknown name, no network, a wrong or damaged file, no space, or a folder that contains other files.
    """
    name = str(options.name)
    if name not in DATA_SETS:
        hint = suggest(name, DATA_SETS)
        raise UserError(f"NAME: {name!r} is unknown; {hint}`python dataset.py download --list` shows all names")
    folder = Path(options.out).expanduser().absolute() if options.out else DATA_ROOT / name
    if _is_there(folder, name, is_default=not options.out):
        LOG.info("%s is in %s: nothing to do. To fetch it again, delete that folder first", name, folder)
        return 0
    try:
        _make(name, DATA_SETS[name], folder, options.from_file)
    except OSError as error:  # a full disk or a missing permission
        where = error.filename or folder
        raise UserError(f"{where}: {error.strerror or error}; fix this, or give another folder with -o") from None
    count = sum(path.suffix.lower() in EXTENSIONS for path in folder.rglob("*"))
    LOG.info("%s: %d images in %s (license: %s)", name, count, folder, DATA_SETS[name].license)
    return 0


def _is_there(folder: Path, name: str, is_default: bool) -> bool:
    """Whether a folder holds the data set; in the default folder the user may have put it there by hand.

    Raises:
        UserError: the folder holds something else, or cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: {folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        about = folder / ABOUT
        if is_default or (about.exists() and f'"name": "{name}"' in about.read_text(errors="replace")):
            return True
        raise UserError(f"--out: {folder} contains other files; give a new folder")
    require_writable(folder, "--out")
    return False


def _make(name: str, data_set: DataSet, folder: Path, from_file: str | None) -> None:
    """Make the folder of a data set: all the work is done in a hidden folder beside it, which is then renamed."""
    with _work_folder(folder) as work:
        unpacked = work / "unpacked"
        if from_file is not None:
            source = str(_check_file(Path(from_file).expanduser(), name, data_set, folder))
            unpack(Path(source), unpacked, source)
        elif data_set.group == KAGGLE:
            source = data_set.address
            _fetch_from_kaggle(name, source, unpacked)
        else:
            source = data_set.address
            remedy = f"get the file in another way and use: python dataset.py download {name} --from FILE"
            require_space(folder.parent, SPACE * (data_set.size or 0))
            archive = work / f"{name}.zip"
            fetch(source, archive, remedy, data_set.size, data_set.sha256, _record(folder, name))
            unpack(archive, unpacked, source)
        root = find_root(unpacked)
        if not any(path.suffix.lower() in EXTENSIONS for path in root.rglob("*")):
            raise UserError(f"{source} contains no image; nothing of it is kept")
        write_json(root / ABOUT, {"name": name, "source": source, "license": data_set.license})
        if from_file is None and data_set.group != KAGGLE and data_set.sha256 is None:
            record_checksum(work / f"{name}.zip", _record(folder, name))
        if folder.is_dir():  # empty; Windows does not rename onto it
            folder.rmdir()
        os.rename(root, folder)
        fsync_path(folder.parent)


def _record(folder: Path, name: str) -> Path:
    """Return the file, beside the data, for the checksum of a zip file if none is published."""
    return folder.with_name(f"{name}.zip.sha256")


@contextlib.contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """Make a hidden folder beside `folder`, and delete it at the end, also after an error or Ctrl-C.

    What a process left that was killed is deleted first.

    Raises:
        UserError: another process works there.
    """
    work = folder.with_name(f".{folder.name}.partial")
    make_durable_folder(work.parent)
    lock = filelock.FileLock(f"{work}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"{folder}: another process downloads it at the moment; wait for that one") from None
    except (OSError, NotImplementedError):  # a file system without locks
        pass
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        lock.release()
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)


def _check_file(file: Path, name: str, data_set: DataSet, folder: Path) -> Path:
    """Return a zip file that the user has. Raises UserError if it does not exist or is not the published one."""
    if not file.is_file():
        raise UserError(f"--from: {file} is not a file; give the zip file of {name}")
    known = data_set.sha256 or read_checksum(_record(folder, name))
    if known is not None:
        import pooch

        if pooch.file_hash(str(file)) != known:
            raise UserError(
                f"--from: the SHA-256 of {file} is not {known}, so it is not the published {name}.zip; unpack it "
                f"yourself and give the folder with --data"
            )
    return file


def _fetch_from_kaggle(name: str, page: str, folder: Path) -> None:
    """Download the data of a Kaggle competition into a folder. Raises UserError with the steps if that fails."""
    steps = (
        f"accept the rules at {page}, then either download the zip file there and use `python dataset.py download "
        f"{name} --from FILE`, or `pip install kagglehub`, save an API token from https://www.kaggle.com/settings as "
        "~/.kaggle/kaggle.json, and repeat this command"
    )
    try:
        import kagglehub

        kagglehub.competition_download(name, output_dir=str(folder))
    except ImportError:
        raise UserError(f"{name} needs an account at Kaggle: {steps}") from None
    except Exception as error:  # of kagglehub, requests, or its parts: not logged in, rules not accepted, no network
        raise UserError(f"{name}: kagglehub cannot download it ({one_line(error)}); {steps}") from None
