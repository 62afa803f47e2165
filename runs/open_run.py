"""The run that a command starts or resumes, and the options of this run."""

import dataclasses
import difflib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runs.folder import Run
from runs.new_run import refuse_taken_name
from runs.records import read_sessions
from system.files import read_json
from system.processes import restarts
from system.program import set_up_log
from utils import UserError

if TYPE_CHECKING:
    from options.common import Options

LOCATION_OPTIONS = {"name", "checkpoint_dir", "resume"}  # options that say where a run is


def open_run(request: "Options") -> "tuple[Run, Options]":
    """Return the run that a command starts or resumes, and its options. Nothing is written before the run is entered.

    A resumed run has its own options, changed by the flags of the command.

    Raises:
        UserError: a name that is in use, no such run, a run of another script, or a flag that may not differ.
    """
    set_up_log()  # also for a `main` that is called from a notebook
    if request.resume is None and restarts():
        request = _resume_after_restart(request)
    if request.resume is None:
        refuse_taken_name(request)
        options = request.with_absolute_paths()
        return Run(options), options
    folder = Path(request.resume or Path(request.checkpoint_dir) / (request.name or ""))
    if not os.path.exists(folder) and os.path.exists(Path(request.checkpoint_dir) / folder):
        folder = Path(request.checkpoint_dir) / folder  # the run was given without its parent
    try:
        saved = json.loads((folder / "options.json").read_text(encoding="utf-8"))
        script, values, samples = saved["script"], saved["options"], saved["samples"]
    except (OSError, ValueError, KeyError, TypeError):
        if not os.path.exists(folder):
            raise UserError(f"--resume: {folder} does not exist{_similar_runs(folder)}") from None
        is_file = os.path.isfile(folder)
        reason = "it is a file; --init_from starts a new run from a file" if is_file else "no readable options.json"
        has_run = (folder.parent / "options.json").is_file()
        run = folder.parent if is_file and has_run else Path(request.checkpoint_dir) / "NAME"
        raise UserError(f"--resume: {folder} is not a run folder ({reason}); use a run such as {run}") from None
    if script != request.SCRIPT:
        raise UserError(f"--resume: {folder} is a run of {script}; use that script")
    folder = folder.resolve() if folder.name in ("", "..") else folder  # "." and ".." are not names
    if "name" in request.explicit and request.name != folder.name:
        raise UserError(f"--name: the run to resume is called {folder.name}, not {request.name}; leave --name out")
    try:
        options = type(request).from_dict(values).merge_resume_request(request.with_absolute_paths())
        # The folder may have been moved or renamed since.
        location: dict[str, Any] = {"name": folder.name, "checkpoint_dir": str(folder.parent), "resume": str(folder)}
        options = dataclasses.replace(options, **location).with_absolute_paths()
        options.check()
        options.check_combinations()
    except (ValueError, TypeError) as error:
        raise UserError(f"--resume {folder}: {error}") from None
    # A run for which `auto` chose float32 keeps it: it must not lose digits on its way to a newer CPU.
    sessions = read_sessions(folder)
    if "amp" not in request.explicit and options.amp == "auto" and sessions:
        if sessions[-1].get("precision") == "float32":
            options = dataclasses.replace(options, amp="off")
    return Run(options, folder, folder / samples), options


def _similar_runs(folder: Path) -> str:
    """Return the runs beside a folder that does not exist, with similar names first, as the end of a message."""
    try:
        runs = [path.name for path in folder.parent.iterdir() if (path / "options.json").is_file()]
    except OSError:
        runs = []
    similar = difflib.get_close_matches(folder.name, runs, 3) or sorted(runs)[:3]
    return f"; did you mean {' or '.join(str(folder.parent / name) for name in similar)}?" if similar else ""


def _resume_after_restart(request: "Options") -> "Options":
    """Return the request to resume the run of --name, if this is a restart by torchrun and the run has these options.

    Raises UserError without --name: nothing else tells which run the processes began.
    """
    if request.name is None:
        raise UserError("--name: missing, so torchrun cannot resume the run after a restart; use --resume RUN_FOLDER")
    folder = Path(request.checkpoint_dir) / request.name
    if not (folder / "options.json").is_file():
        return request
    saved, asked = read_json(folder / "options.json")["options"], request.with_absolute_paths().to_dict()
    is_same = all(
        saved.get(name) == asked[name] for name in asked.keys() - LOCATION_OPTIONS - {"amp", "value_range"}
    )  # these two are recorded as the run found them
    return dataclasses.replace(request, resume=str(folder)) if is_same else request
