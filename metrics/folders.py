"""Folders of images as one tensor, to be measured."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from images.decoding import decode, describe_error, open_image
from images.sources import list_images
from system.progress import ProgressBar
from utils import LOG, UserError, shorten


def _try_decode(path: Path, size: int | None) -> Tensor | str:
    """Return the pixels of an image file, or in one line why it cannot be read."""
    try:
        return decode(open_image(path), size).pixels
    except MemoryError:  # not the file's fault
        raise
    except Exception as error:  # Pillow's decoders raise any exception for broken bytes
        return describe_error(error)


def read_folder(folder: str, size: int | None, argument: str = "REFERENCE") -> Tensor:
    """Return the images of a folder, uint8 (N, 3, H, W): squares of `size`, or unchanged if all have one size.

    Args:
        argument: the argument that gave the folder, for messages.

    Raises:
        UserError: the folder does not exist, or has fewer than 2 readable images, or images of different sizes.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{folder} is neither a run folder, nor a checkpoint, nor a folder of images; give one of them")
    files = list_images(path, flag=argument)
    with ThreadPoolExecutor() as pool:
        results = pool.map(partial(_try_decode, size=size), files)
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
