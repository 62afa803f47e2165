"""What a run records about its sessions and its images: environment.json and data.json."""

import dataclasses
import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from system.files import read_json
from system.processes import count_processes
from utils import UserError, shorten

if TYPE_CHECKING:
    import torch

    from options.common import Options

# What a resumed run must share with the session before to equal an uninterrupted run to the last bit.
EXACTNESS_KEYS = ("torch", "device", "precision", "cpu", "threads", "processes")


def describe_environment(device: "torch.device", precision: str, reason: str = "", threads: int = 0) -> dict[str, Any]:
    """Return the command line, versions, device, precision and git commit of this process, as plain types.

    Args:
        threads: of --threads; 0: as many as PyTorch has.
    """
    import numpy as np
    import torch  # here, because report.py reads these records and does not need torch
    from PIL import Image

    root = Path(__file__).parent.parent
    commit = None
    try:
        git = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
        top, head = subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.split("\n")[:2]
        commit = head if Path(top).resolve() == root.resolve() else None
    except (OSError, subprocess.SubprocessError, ValueError):
        pass  # no git, or no repository: the code came as an archive
    return {
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.argv],
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "pillow": Image.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": precision,
        "precision_reason": reason,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": threads or torch.get_num_threads(),
        "processes": count_processes(),
        "process": os.getpid(),
        "host": platform.node(),
        "git_commit": commit,
    }


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """Return the sessions of a run that environment.json lists; none if there is no such file."""
    path = folder / "environment.json"
    sessions = read_json(path) if path.exists() else []
    if not (isinstance(sessions, list) and all(isinstance(session, dict) for session in sessions)):
        raise UserError(f"{path} is not a list of sessions; restore it, or start a new run")
    return sessions


def why_inexact(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return why a resumed run may differ from an uninterrupted one, by its sessions; "" if it does not."""
    changes = [key for key in EXACTNESS_KEYS if before.get(key, now[key]) != now[key]]
    if not changes and now["device"] != "cpu" and not now["deterministic"]:
        return "the run is not --deterministic"
    return ", ".join(f"{key} changed from {before[key]} to {now[key]}" for key in changes)


def read_images(folder: Path, options: "Options") -> dict[str, dict[str, Any]] | None:
    """Return the images of a run by domain, as data.json lists them; None if there is no such file.

    Args:
        options: of the run.

    Raises:
        UserError: the file does not list these domains.
    """
    path = folder / "data.json"
    if not path.exists():
        return None
    domains, recorded = {*options.DATA_FLAGS} - {"data"} or {"images"}, read_json(path)
    kinds = {"train": dict, "test": list, "skipped": dict}
    try:
        is_whole = all(isinstance(recorded[name][key], kind) for name in domains for key, kind in kinds.items())
    except (LookupError, TypeError):
        is_whole = False
    if not is_whole:
        names = ", ".join(sorted(domains))
        raise UserError(f"{path} does not list the images of {names}; restore it, or start a new run")
    return recorded


def with_recorded_folders(options: "Options", folder: Path) -> "Options":
    """Return the options of a checkpoint with the folders of images that options.json names: these may be newer.

    Args:
        folder: the run folder. The options stay as they are if it has no readable options.json of the same script.
    """
    try:
        saved = read_json(folder / "options.json")
        script, folders = saved["script"], {name: saved["options"][name] for name in options.DATA_FLAGS}
    except (OSError, UserError, LookupError, TypeError):
        return options
    return dataclasses.replace(options, **folders) if script == options.SCRIPT else options


def describe_changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return how the images of a domain differ from those in data.json that the run began with, "" if they do not."""
    old, new = before["train"], now["train"]
    changes = {
        "missing": old.keys() - new.keys(),
        "of another size": {name for name in old.keys() & new.keys() if old[name] != new[name]},
        "missing from the test images": {*before["test"]} - {*now["test"]},
    }
    return ", ".join(f"{len(names)} {how} ({shorten(sorted(names), 3)})" for how, names in changes.items() if names)
