"""Folders of images as one tensor each, to be measured."""

from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from images.decoding import decode, describe_error, open_image
from images.values import ValueRange, find_scale
from sources import folders as image_folders
from sources.folders import FolderSource
from system.progress import ProgressBar
from utils import LOG, UserError, shorten


def _try_decode(path: Path, size: int | None, value_range: ValueRange | None) -> Tensor | str:
    """Return the pixels of an image file, or in one line why it cannot be read."""
    try:
        return decode(open_image(path), size, value_range).pixels
    except MemoryError:  # not the file's fault
        raise
    except Exception as error:  # Pillow's decoders raise any exception for broken bytes
        return describe_error(error)


def read_folder(
    folder: str, size: int | None, argument: str = "REFERENCE", value_range: ValueRange | None = None
) -> Tensor:
    """Return the images of one folder. Args, Raises: as `read_folders`."""
    return read_folders({argument: folder}, size, value_range)[0]


def read_folders(folders: Mapping[str, str], size: int | None, value_range: ValueRange | None = None) -> list[Tensor]:
    """Return the images of folders, uint8 (N, 3, H, W) each: squares of `size`, or unchanged if all have one size.

    Args:
        folders: the argument that gave a folder, for messages -> the folder.
        value_range: the values of images with more than 8 bits that become 0 and 255. None: chosen from the values of
            all these images, the same for all folders, because the brightness of the folders is compared, too.

    Raises:
        UserError: a folder does not exist, or has fewer than 2 readable images, or images of different sizes.
    """
    found = [_list_folder(folder, argument) for argument, folder in folders.items()]
    with ThreadPoolExecutor() as pool:
        scale = find_scale(FolderSource([file for source in found for file in source.files]), pool, value_range)
        if scale is not None:
            LOG.info("%s", scale.describe())
        elif value_range is not None and len(found) > 1:  # for one folder it is the range of a run
            LOG.info("--value_range does nothing: no gray image has more than 8 bits per value")
        images = [_decode_folder(source, size, scale.range if scale else None, pool) for source in found]
    return images


def _list_folder(folder: str, argument: str) -> FolderSource:
    """Return the image files of a folder; the log says what else is there."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{folder} is neither a run folder, nor a checkpoint, nor a folder of images; give one of them")
    source = image_folders.read_folder(path, flag=argument)
    if source.left_out:
        LOG.info("Left out in %s: %s", folder, source.left_out)
    return source


def _decode_folder(source: FolderSource, size: int | None, value_range: ValueRange | None, pool: Executor) -> Tensor:
    """Decode the images of a folder; warn of those that are not readable."""
    files, folder = source.files, source.location
    results = pool.map(partial(_try_decode, size=size, value_range=value_range), files)
    decoded = list(ProgressBar(results, "decode", "images", len(files)))
    bad = [f"{file.name} ({image})" for file, image in zip(files, decoded, strict=True) if isinstance(image, str)]
    images = [image for image in decoded if not isinstance(image, str)]
    if bad:
        LOG.warning("%d of %d images in %s are not readable: %s", len(bad), len(files), folder, shorten(bad))
    if len(images) < 2:
        raise UserError(f"{folder}: at least 2 readable images are needed, it has {len(images)}; give another folder")
    if len({image.shape for image in images}) > 1:
        raise UserError(f"--image_size: missing; the images in {folder} differ in size, so give a common one")
    return torch.stack(images)
