"""The images of a run: the two domains of a CycleGAN, the toy cats, and the images held out for testing."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from images.source import ImageSource
from images.toy_cats import default_root, ensure_toy_cats
from sources.folders import describe_left_out, find_folder, has_images, read_folder
from sources.tfrecords import list_record_files, read_tfrecords
from utils import UserError

if TYPE_CHECKING:
    from options.training import CycleOptions, VanillaOptions


class Domain(NamedTuple):
    """The images of one domain, to train on and to test on, and the flag that named them, for messages.

    `num_new` images were added to the folders after the run began, and are neither in `train` nor in `test`.
    """

    train: ImageSource
    test: ImageSource | None
    flag: str
    num_new: int = 0


def read_images(location: Path, ext: str | None = None, flag: str = "--data") -> ImageSource:
    """Return the images of a folder: of its image files, or else of its TFRecord files; or of one TFRecord file.

    Args, Raises: as `list_images`.
    """
    files = list_record_files(location)
    if not files or (location.is_dir() and has_images(location)):
        return read_folder(location, ext, flag)
    if ext is not None:
        raise UserError(f"--ext: does nothing for the TFRecord files in {location}; leave it out")
    return read_tfrecords(files, location, describe_left_out(location, files) if location.is_dir() else "")


def hold_out(count: int, share: float) -> tuple[list[int], list[int]]:
    """Split `count` images into (train, test), with about `share` of them in test: the same ones at every call.

    A share above 0 holds out at least one image.

    Raises:
        UserError: no image would be left to train on.
    """
    held_out = max(round(count * share), 1) if share > 0 else 0
    if held_out >= count:
        raise UserError(f"--test_split: {share} of {count} images leaves none to train on; use a smaller share")
    test = sorted(np.random.default_rng(0).permutation(count)[:held_out].tolist())
    return sorted(set(range(count)) - set(test)), test


def toy_cats(image_size: int) -> Path:
    """Return the root of the embedded data set, drawn at `image_size` on first use. Raises UserError if it fails."""
    try:
        return ensure_toy_cats(default_root(image_size), image_size)
    except (OSError, UserError) as error:
        if default_root(image_size).exists():
            raise UserError(f"--data: {error}, or use a folder of images") from None
        raise UserError(
            f"--image_size, --data: the toy cats cannot be drawn ({error}); use another size, or a folder of images"
        ) from None


def find_domains(
    options: "VanillaOptions | CycleOptions", recorded: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, Domain]:
    """Return the domains that a run trains and tests on, by name. A DCGAN has one domain, "images".

    Args:
        recorded: what data.json says about each domain. The run then has these images, as far as they exist, whatever
            was added to the folders; images that cannot be found are left out. None: the run is new.

    Raises:
        UserError: no such folder, no image in it, none of the recorded ones, or for a CycleGAN no trainA and trainB.
    """
    recorded = recorded or {}
    if "X" not in options.DATA_FLAGS:
        folder = toy_cats(options.image_size) / "trainB" if options.data is None else options.data
        return {"images": _domain(folder, None, "data", options, recorded.get("images"))}
    if options.X is not None:  # type: ignore[union-attr]
        names = ("X", "Y")
        return {name: _domain(getattr(options, name), None, name, options, recorded.get(name)) for name in names}
    flag = options.describe_flag("data")
    root = toy_cats(options.image_size) if options.data is None else find_folder(options.data, flag)
    domains = {}
    for name, letter in (("X", "A"), ("Y", "B")):
        train, test = root / f"train{letter}", root / f"test{letter}"
        if not train.is_dir():
            raise UserError(f"{flag}: {root} contains no folder {train.name}; a CycleGAN needs trainA and trainB "
                            "there, or the two folders as --X and --Y")  # fmt: skip
        domains[name] = _domain(train, test if test.is_dir() else None, "data", options, recorded.get(name))
    return domains


def _domain(
    train: Path | str,
    test: Path | None,
    option: str,
    options: "VanillaOptions | CycleOptions",
    recorded: dict[str, Any] | None,
) -> Domain:
    """Return a domain: with --test_split some of the images of `train` are held out, and `test` is ignored."""
    flag = options.describe_flag(option)
    folder = find_folder(train, flag) if isinstance(train, str) else train
    source = read_images(folder, options.ext, flag)
    tested: ImageSource | None = source
    if not options.test_split:
        tested = read_images(test, options.ext, flag) if test is not None else None
    if recorded is not None:
        return _recorded_domain(source, tested, flag, recorded)
    if options.test_split:
        train_indices, test_indices = hold_out(len(source.names), options.test_split)
        return Domain(source.select(train_indices), source.select(test_indices), flag)
    return Domain(source, tested, flag)


def _recorded_domain(source: ImageSource, tested: ImageSource | None, flag: str, recorded: dict[str, Any]) -> Domain:
    """Return the images of `source` and `tested` that data.json lists; they are one source with --test_split."""
    train = _select(source, recorded["train"])
    if not train.names:
        first, count = next(iter(recorded["train"]), ""), len(recorded["train"])
        raise UserError(
            f"{flag}: none of the {count} images that the run trained on is in {source.location} (first: "
            f"{first}); give the folder that holds them now"
        )
    test = _select(tested, recorded["test"]) if tested is not None else None
    skipped = {name.partition("/")[2] for name in recorded["skipped"]}  # they are listed with their folder
    if tested is source:
        num_new = len({*source.names} - {*recorded["train"], *recorded["test"]} - skipped)
    else:
        num_new = len({*source.names} - {*recorded["train"]} - skipped)
        num_new += len({*tested.names} - {*recorded["test"]} - skipped) if tested is not None else 0
    return Domain(train, test if test is not None and test.names else None, flag, num_new)


def _select(source: ImageSource, names: Iterable[str]) -> ImageSource:
    """Return the images of a source with these names, in the order of the names, as far as it has them."""
    positions = {name: index for index, name in enumerate(source.names)}
    return source.select([positions[name] for name in names if name in positions])
