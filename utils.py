"""Shared helpers: errors, the log, text for users, pixel ranges, grids of images."""

import difflib
import functools
import importlib.util
import io
import logging
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import, and report.py needs only the helpers for text
    import numpy as np
    from torch import Tensor, nn

LOG = logging.getLogger("gan")  # what the terminal and log.txt show; see system/program.py and runs/logs.py
LOG.setLevel(logging.DEBUG)
# Control characters, line separators, marks that change the direction of writing, and surrogates.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """An error the user can fix. Its message is one line: what is wrong, the value found, the remedy."""


class UnavailableError(UserError):
    """The weights of Inception, or the packages with EfficientNet-Lite0, are not on this machine."""


class NonFiniteError(Exception):
    """A loss or weight became NaN or infinite. The message names it and the iteration."""


def printable(text: str) -> str:
    """Escape characters that break a line or control a terminal: file names may contain them.

    Bytes of a name that are not valid text become escapes such as \\udcff.
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return the message of an error in one line of at most `limit` characters; its type if it has no message."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def shorten(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """Join the first `most` names, and say how many more there are."""
    more = f"{separator}and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def suggest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return "did you mean A or B? " with the known names, after `prefix`, that a wrong name resembles; "" if none."""
    lower = {one.lower(): one for one in known}
    text = name.lower()
    near = difflib.get_close_matches(text, lower) + [one for one in lower if len(text) > 2 and text in one]
    names = [prefix + lower[one] for one in dict.fromkeys(near)]
    return f"did you mean {' or '.join(names[:3])}? " if names else ""


def count_parameters(network: "nn.Module") -> int:
    """Return the number of trained weights."""
    return sum(parameter.numel() for parameter in network.parameters())


def all_finite(tensors: Iterable[Any]) -> bool:
    """Whether no floating-point tensor has NaN or infinity; other values are ignored. Waits for the device."""
    from torch import Tensor, nn

    floats = [one for one in tensors if isinstance(one, Tensor) and one.is_floating_point() and one.numel()]
    return not floats or bool(nn.utils.get_total_norm(floats, norm_type=math.inf).isfinite())


def uniform_to_index(u: "Tensor", count: "Tensor | int") -> "Tensor":
    """Turn numbers in [0, 1) into whole numbers in [0, count). A draw that a device has rounded to 1 stays inside."""
    return (u * count).long().clamp(max=count - 1)


@functools.cache
def import_matplotlib() -> None:
    """Import matplotlib, without the user's settings if they prevent that, such as a backend that is not installed.

    The program draws to files only, so it needs none of these settings. Settings that work stay as they are: a notebook
    may draw with them. To be called before an import of matplotlib, or of a package that imports matplotlib.
    """
    try:
        import matplotlib
    except (ValueError, OSError):  # the backend in MPLBACKEND; a settings file that is unreadable
        package = importlib.util.find_spec("matplotlib")
        assert package is not None and package.origin is not None
        own = Path(package.origin).with_name("mpl-data") / "matplotlibrc"
        os.environ.update(MPLBACKEND="agg", MATPLOTLIBRC=str(own))
        for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
            del sys.modules[name]  # parts of the failed import
        import matplotlib  # noqa: F401


def from_uint8(pixels: "Tensor") -> "Tensor":
    """[0, 255] -> [-1, 1], float32."""
    return pixels.float() / 127.5 - 1


def to_uint8(images: "Tensor") -> "Tensor":
    """[-1, 1], clipped -> [0, 255], rounded."""
    return (images.detach().float().clamp(-1, 1) + 1).mul(127.5).round().byte()


def grid_columns(image_size: int) -> int:
    """Return how many columns, and rows, make a grid of about 500 to 1,000 pixels: 8, or 4 at 256x256."""
    return 8 if image_size <= 128 else 4


def image_grid(images: "Tensor", columns: int, padding: int = 2) -> "Tensor":
    """Lay out images (N, 3, H, W) in [-1, 1] in rows of `columns`, as one uint8 image (3, H', W') on the CPU.

    Args:
        padding: white pixels between the images and around them; a single image gets none.
    """
    from torch.nn.functional import pad

    tiles = to_uint8(images).cpu()  # (N, 3, H, W)
    if len(tiles) == 1:
        return tiles[0]
    columns = min(columns, len(tiles))
    # Each tile gets its margin on the left and above; white tiles fill the last row.
    tiles = pad(tiles, (padding, 0, padding, 0, 0, 0, 0, -len(tiles) % columns), value=255)
    rows = tiles.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4)  # (3, rows, H + padding, columns, W + padding)
    return pad(rows.flatten(3).flatten(1, 2), (0, padding, 0, padding), value=255)  # (3, H', W')


def to_pixels(image: "Tensor") -> "np.ndarray":
    """Image (3, H, W) in [-1, 1] or of uint8 -> uint8 (H, W, 3), for Pillow and FFmpeg."""
    image = to_uint8(image) if image.is_floating_point() else image
    return image.permute(1, 2, 0).cpu().numpy()


def to_png(picture: "Tensor") -> bytes:
    """Encode a uint8 image (3, H, W) as a PNG file.

    The fastest compression makes the files a seventh larger, in a third of the time: training waits for its grids.
    """
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(to_pixels(picture)).save(file, format="PNG", compress_level=1)
    return file.getvalue()
