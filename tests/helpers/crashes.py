"""File operations of a training, one by one: the process ends in the middle of each, or the power fails after it.

`Operations` counts and carries out the operations by which the project writes: open, write, truncate, fsync, replace,
unlink, mkdir. It can end the process during or after a chosen operation, as `kill -9` does, or let the operation fail
because the disk is full. It also records what a loss of power would leave: the content of each file, and the names in
each folder, at the last fsync. TensorBoard's own files are left out, because nothing is read from them.
"""

import builtins
import errno
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.conftest import temporary_files
from tests.helpers.trainings import Training, run_in_fork


class Durable(NamedTuple):
    """The disk after an operation.

    Attributes:
        operation: its name.
        names: path of a file -> a number of the file, which stays when the file is renamed.
        safe_names: the same, of the names that were flushed to disk with their folder.
        contents: number -> the file's content at its last fsync.
    """

    operation: str
    names: dict[Path, int]
    safe_names: dict[Path, int]
    contents: dict[int, bytes]


class _File:
    """A file open for writing whose writes are operations."""

    def __init__(self, operations: "Operations", path: Path, raw: Any, is_text: bool):
        self._operations, self._path, self._raw, self._is_text = operations, path, raw, is_text

    def write(self, data: Any) -> int:
        content = data.encode(errors="backslashreplace") if self._is_text else bytes(data)
        half = content[: len(content) // 2]
        self._operations.do(f"write {self._path.name}", lambda: self._raw.write(content), lambda: self._raw.write(half))
        return len(data)

    def truncate(self, size: int) -> int:
        return self._operations.do(f"truncate {self._path.name}", lambda: self._raw.truncate(size))

    def read(self) -> str:
        return self._raw.read().decode()

    def __getattr__(self, name: str) -> Any:  # tell, seek, flush, fileno, close
        return getattr(self._raw, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *error: object) -> None:
        self._raw.close()


class Operations:
    """Within this context the operations on files below `root` are counted and recorded; one may end the process.

    Args:
        end_at, moment: end the process "in" the operation of this number, or right "after" it; with "full" it and all
            later writes fail.
        syncs: False to ignore fsync.
    """

    def __init__(self, root: Path, end_at: int | None = None, moment: str = "in", syncs: bool = True):
        self.root, self.end_at, self.moment, self.syncs = root, end_at, moment, syncs
        self.log: list[Durable] = []
        self._names = {path: i for i, path in enumerate(sorted(root.rglob("*"))) if path.is_file()}
        self._safe_names = dict(self._names)
        self._contents = {number: path.read_bytes() for path, number in self._names.items()}
        self._count = len(self._names)

    def do(self, name: str, work: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Carry out one operation; end the process if it is the chosen one."""
        is_last = len(self.log) == self.end_at
        if self.moment == "full" and self.end_at is not None and len(self.log) >= self.end_at and half is not None:
            half()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if is_last and self.moment == "in":
            if half is not None:  # other operations happen either completely or not at all
                half()
            os._exit(9)
        result = work()
        if is_last and self.moment == "after":
            os._exit(9)
        name = re.sub(r"\.\d+\.tmp$", ".tmp", name)
        self.log.append(Durable(name, dict(self._names), dict(self._safe_names), dict(self._contents)))
        return result

    def _is_ours(self, path: Any) -> bool:
        return isinstance(path, str | Path) and Path(path).is_relative_to(self.root)

    def _open(self, path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not self._is_ours(path) or not set(mode) & set("wa+x"):
            return self._real["open"](path, mode, *args, **kwargs)
        path = Path(path)

        def work() -> Any:
            raw = self._real["open"](path, mode.replace("b", "").replace("t", "") + "b", buffering=0)
            if path not in self._names or "w" in mode:
                self._count += 1
                self._names[path] = self._count
                self._contents[self._count] = b""
            return raw

        return _File(self, path, self.do(f"open {path.name}", work), "b" not in mode)

    def _fsync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not self._is_ours(path):
            return self._real["fsync"](descriptor)

        def work() -> None:
            if not self.syncs:
                return
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                elsewhere = {name: number for name, number in self._safe_names.items() if name.parent != path}
                self._safe_names = {**elsewhere, **{n: i for n, i in self._names.items() if n.parent == path}}
            else:
                self._contents[self._names[path]] = path.read_bytes()

        return self.do(f"fsync {path.name}", work)

    def _replace(self, source: Any, target: Any) -> None:
        if not self._is_ours(target):
            return self._real["replace"](source, target)

        def work() -> None:
            self._real["replace"](source, target)
            self._names[Path(target)] = self._names.pop(Path(source))

        return self.do(f"replace {Path(target).name}", work)

    def _unlink(self, path: Any, **kwargs: Any) -> None:
        if not self._is_ours(path) or not os.path.exists(path):
            return self._real["unlink"](path, **kwargs)

        def work() -> None:
            self._real["unlink"](path, **kwargs)
            self._names.pop(Path(path), None)

        return self.do(f"unlink {Path(path).name}", work)

    def _mkdir(self, path: Any, *args: Any, **kwargs: Any) -> None:
        if not self._is_ours(path) or os.path.exists(path):
            return self._real["mkdir"](path, *args, **kwargs)
        return self.do(f"mkdir {Path(path).name}", lambda: self._real["mkdir"](path, *args, **kwargs))

    def __enter__(self) -> "Operations":
        self._real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink", "mkdir")}
        self._real["open"] = builtins.open
        builtins.open = self._open
        for name in ("fsync", "replace", "unlink", "mkdir"):
            setattr(os, name, getattr(self, f"_{name}"))
        return self

    def __exit__(self, *error: object) -> None:
        builtins.open = self._real.pop("open")
        for name, function in self._real.items():
            setattr(os, name, function)


def after_power_loss(disk: Durable, root: Path, target: Path, names_survive: bool) -> None:
    """Write to `target` what a loss of power leaves of `root`: only what was flushed to disk.

    Args:
        names_survive: whether the new names in folders happened to reach the disk before their fsync.
    """
    for path, number in (disk.names if names_survive else disk.safe_names).items():
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(disk.contents[number])


# ----------------------------------------------------------------------------------------------------------------------
# A training


def operations_of(training: Training, folder: Path, syncs: bool = True) -> list[Durable]:
    """Return the file operations of a resumed training.

    Args:
        syncs: False for the control: a training without fsync.
    """
    run = shutil.copytree(training.stopped, folder / "recorded")
    with Operations(run, syncs=syncs) as operations:
        assert training.finish(run) == 0
    assert training.is_same(run)
    shutil.rmtree(run)
    return operations.log


def crash(training: Training, folder: Path, number: int, moment: str) -> bool:
    """End a resumed training at one operation; return whether it equals the uninterrupted run after it was resumed."""
    run = shutil.copytree(training.stopped, folder / f"{training.script}-crashed-{number}-{moment}")

    def work() -> int:
        with Operations(run, number, moment):
            return training.finish(run)

    held = run_in_fork(work) == 9 and run_in_fork(lambda: training.finish(run)) == 0 and training.is_same(run)
    if held:
        shutil.rmtree(run)
    return held


def lose_power(training: Training, folder: Path, disk: Durable, names_survive: bool) -> bool:
    """Cut the power after one operation; return whether the run equals the uninterrupted one after it was resumed."""
    run = folder / f"{training.script}-powerless"
    after_power_loss(disk, folder / "recorded", run, names_survive)
    held = run_in_fork(lambda: training.finish(run)) == 0 and training.is_same(run)
    shutil.rmtree(run)
    return held


def fill_disk(training: Training, folder: Path, number: int) -> bool:
    """Let the disk be full from one operation on; return whether one line reports it, and nothing is lost."""
    run, errors = shutil.copytree(training.stopped, folder / f"{training.script}-full-{number}"), folder / "errors.txt"

    def work() -> int:
        with Operations(run, number, "full"):
            return training.finish(run)

    code = run_in_fork(work, errors)
    message = errors.read_text()
    is_reported = message.count("\n") == 1 and all(
        words in message for words in (str(run), "No space left", "it needs", "--resume")
    )
    left = temporary_files(run)
    held = code == 2 and is_reported and not left
    if not held:
        print(f"exit code {code}, left {left}, message: {message}", file=sys.stderr)
    held = held and run_in_fork(lambda: training.finish(run)) == 0 and training.is_same(run)
    if held:
        shutil.rmtree(run)
    return held


# ----------------------------------------------------------------------------------------------------------------------
# The control: one file that is overwritten in place, as most code does


def naive_points(folder: Path, moment: str, every: int = 1) -> Iterator[bool]:
    """Disturb a plain torch.save at every operation, or at one in `every`; yield whether a state survives.

    Args:
        moment: of Operations.
    """
    path = folder / f"naive-{moment}" / "checkpoint.pt"
    path.parent.mkdir()

    def save(step: int) -> int:
        content = {"step": step, **{f"layer{i}": torch.full((100, 10), float(step)) for i in range(6)}}
        with open(path, "wb") as file:
            torch.save(content, file)
        return 0

    with Operations(path.parent) as operations:
        save(1)
    for number in range(0, len(operations.log), every):
        save(1)

        def work(number: int = number) -> int:
            with Operations(path.parent, number, moment):
                return save(2)

        run_in_fork(work)
        try:
            yield torch.load(path, weights_only=True)["step"] in (1, 2)
        except Exception:  # torch.load has no single exception for a torn file
            yield False
