"""Diffusion models in a folder or on the Hugging Face Hub: found, checked, loaded. No code of a model is ever run."""

import hashlib
import importlib.util
import inspect
import json
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from packaging.version import Version

from options.dataset import DiffuseOptions
from system.progress import ProgressBar
from utils import LOG, UserError, one_line

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

INDEX = "model_index.json"  # names the class of a pipeline and of its parts
OLDEST = "0.38"  # version of diffusers: those before run Python files in the folder of a model
REQUIREMENTS = "pip install -r requirements-diffusion.txt"
# Options that a pipeline may not have -> the name of the argument that takes their value.
ARGUMENTS = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "size": "height",
    "negative_prompt": "negative_prompt",
}
OTHER_MEDIA = {"num_frames", "audio_length_in_s"}  # arguments of pipelines that make videos or sounds


class Model(NamedTuple):
    """A model that was found.

    Attributes:
        name: the absolute path of its folder, or its name on the hub.
        revision: a hash of the files of a folder, or the commit on the hub.
        is_folder: whether it is a folder.
        parts: the content of its model_index.json.
    """

    name: str
    revision: str
    is_folder: bool
    parts: dict[str, Any]


def require_packages() -> None:
    """Raise UserError if a package of requirements-diffusion.txt is missing, or diffusers is too old."""
    missing = [name for name in ("diffusers", "transformers", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"diffuse needs {', '.join(missing)}; {REQUIREMENTS}")
    version = metadata.version("diffusers")
    if Version(version) < Version(OLDEST):
        raise UserError(f"diffuse needs diffusers {OLDEST}, because {version} may run code of a model; {REQUIREMENTS}")


def silence_libraries() -> None:
    """Switch off log messages and progress bars of the libraries; only downloads show a bar, on a terminal."""
    import diffusers
    import huggingface_hub
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()


# ----------------------------------------------------------------------------------------------------------------------
# Where a model is


def find_model(name: str, revision: str | None) -> Model:
    """Return the model in a folder, or that of a name on the hub.

    Args:
        revision: the commit on the hub to use; None: the newest.

    Raises:
        UserError: not a folder of a pipeline, no such model on the hub, or the hub cannot be reached.
    """
    folder = Path(name).absolute()
    if folder.is_dir():
        index = folder / INDEX
        if not index.is_file():
            raise UserError(
                f"--model: {folder} is not a model of diffusers, because it has no {INDEX}; give a folder that "
                "save_pretrained wrote, or a name on the Hugging Face Hub"
            )
        return Model(str(folder), _hash_folder(folder), True, _read_index(index))
    if folder.exists():
        raise UserError(f"--model: {folder} is a file; give the folder of a model of diffusers, with a {INDEX}")
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name, re.ASCII):
        raise UserError(
            f"--model: the folder {folder} does not exist, and {name!r} cannot be a name on the Hugging Face Hub"
        )
    index = _fetch_index(name, revision)
    return Model(name, index.parent.name, False, _read_index(index))  # the hub's cache has a folder for each commit


def _hash_folder(folder: Path) -> str:
    """Return a hash of the names and contents of all files of a model that are read."""
    import pooch

    patterns = ("*.json", "*.safetensors", "*.txt", "*.model")
    files = sorted(path for pattern in patterns for place in ("", "*/") for path in folder.glob(place + pattern))
    lines = [
        f"{pooch.file_hash(str(path))} {path.relative_to(folder).as_posix()}"
        for path in ProgressBar(files, "hash the model", "files")
    ]
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _read_index(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--model: {path} is damaged ({one_line(error)}); download the model again") from None
    return content if isinstance(content, dict) else {}


def _fetch_index(name: str, revision: str | None) -> Path:
    """Return the path, in the hub's cache, of the index of a model; download the file if it is not there."""
    from huggingface_hub import constants, errors, hf_hub_download

    page = f"{constants.ENDPOINT}/{name}"
    try:
        return Path(hf_hub_download(name, INDEX, revision=revision))
    except errors.GatedRepoError:
        reason = f"needs your consent; accept its terms at {page}, then log in with `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = f"is neither a folder here nor a model at {page}; correct the name, or log in with `hf auth login`"
    except errors.RevisionNotFoundError:
        reason = f"does not have the version {revision} any more at {page}; use a new folder"
    except errors.LocalEntryNotFoundError:
        way = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        reason = f"is neither a folder here nor in the cache of the hub, and {way}; download the model first"
    except errors.EntryNotFoundError:
        reason = f"is not a model of diffusers, because {page} has no {INDEX}; give another model"
    except (OSError, ValueError) as error:  # of the server, and names that the hub does not allow
        reason = f"cannot be downloaded ({one_line(error)}); try again later, or give a folder"
    raise UserError(f"--model: {name} {reason}")


# ----------------------------------------------------------------------------------------------------------------------
# What a model can do


def find_class(model: Model) -> type["DiffusionPipeline"]:
    """Return the class of a model's pipeline. Raises UserError if diffusers has no such class."""
    import diffusers

    name = model.parts.get("_class_name")
    found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise UserError(
            f"--model: {model.name} needs the pipeline {name}, which diffusers {diffusers.__version__} does not have "
            f"or only with other packages; give another model, or try {REQUIREMENTS} --upgrade. Code of a model is "
            "never run"
        )
    return found


def make_arguments(cls: type, options: DiffuseOptions) -> dict[str, Any]:
    """Return the arguments of a pipeline that are the same for all images.

    Raises:
        UserError: the pipeline does not make images of a text or of nothing, or does not have an option that was given.
    """
    parameters = inspect.signature(cls.__call__).parameters
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [one.name for one in parameters.values() if one.default is one.empty and one.kind not in fixed]
    needed = [name for name in needed if name not in ("self", "prompt")]
    takes_text = "prompt" in parameters
    makes_others = not OTHER_MEDIA.isdisjoint(parameters)
    if needed or makes_others or "generator" not in parameters or not (takes_text or "batch_size" in parameters):
        more = f": it also needs {', '.join(needed)}" if needed else ""
        raise UserError(f"--model: {cls.__name__} does not make images of a text or without one{more}; give another")
    if takes_text and options.prompt is None:
        raise UserError(f'PROMPT: missing; {cls.__name__} makes images of a text, such as "a grumpy cat"')
    if not takes_text and options.prompt is not None:
        raise UserError(f"PROMPT: {options.prompt!r}: {cls.__name__} makes images without a text; leave it out")
    arguments = {}
    for option, name in ARGUMENTS.items():
        value = getattr(options, option)
        if value is None:
            continue
        if name not in parameters:
            raise UserError(f"--{option}: {cls.__name__} does not have this option; leave it out")
        arguments[name] = value
    if options.size is not None:
        arguments["width"] = options.size
    return arguments


def load(model: Model, cls: type["DiffusionPipeline"], device: torch.device) -> "DiffusionPipeline":
    """Load a pipeline, from safetensors only; download what is not in the hub's cache.

    Models that read a text have half precision on CUDA: bfloat16 where the GPU has it, else float16.

    Raises:
        UserError: the model is incomplete or damaged, or cannot be downloaded.
    """
    from huggingface_hub import constants

    dtype = torch.float32
    if device.type == "cuda" and "prompt" in inspect.signature(cls.__call__).parameters:
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    where = {"local_files_only": True} if model.is_folder else {"revision": model.revision}
    may_download = not (model.is_folder or constants.HF_HUB_OFFLINE)
    more = "; files that are not in the cache of the hub are downloaded" if may_download else ""
    LOG.info("load %s (%s)%s", model.name, cls.__name__, more)
    try:
        pipeline = cls.from_pretrained(model.name, torch_dtype=dtype, use_safetensors=True, **where)
    except MemoryError:
        raise
    except Exception as error:  # diffusers, transformers and safetensors raise any exception for a broken model
        remedy = "give a complete model" if model.is_folder else "try again later, or give another model"
        raise UserError(
            f"--model: {model.name} cannot be loaded ({one_line(error)}); only weights in safetensors are read, and no "
            f"code; {remedy}"
        ) from None
    return pipeline.to(device)
