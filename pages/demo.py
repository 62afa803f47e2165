"""The page that runs a trained network in a browser: networks and runtime as text inside one HTML file."""

import base64
import gzip
import re
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from pages.rendering import make_environment
from utils import printable


@dataclass(frozen=True)
class Runtime:
    """ONNX Runtime Web: its version, its JavaScript module, and its WebAssembly binary."""

    version: str
    script: str
    binary: bytes


@dataclass(frozen=True)
class Demo:
    """The texts and numbers of a page.

    Attributes:
        name: the heading.
        step: iterations trained.
        image_size: side of the images in training.
        directions: direction -> its name for people, such as "X2Y" -> "apples to oranges".
        stride: sides of a translator's images must be multiples of this.
        credit: who trained the network; "" for the user.
    """

    name: str
    step: int
    image_size: int
    directions: dict[str, str]
    stride: int
    credit: str


def to_base64(content: bytes) -> str:
    """Return bytes as text that HTML and JSON may contain."""
    return base64.b64encode(content).decode()


def as_global(module: str) -> str:
    """Return a JavaScript module with its exports in the global variable `ort` instead.

    An inline module cannot be imported by another one, and a page that was opened from a file cannot import a file.

    Raises:
        ValueError: the module has no list of exports at its end.
    """
    code, found, exports = module.rpartition("export{")
    names, closed, _ = exports.partition("}")
    if not (found and closed):
        raise ValueError("the JavaScript module has no list of exports at its end")
    pairs = re.findall(r"(\w+) as (\w+)", names)
    return f"{code}globalThis.ort={{{','.join(f'{public}:{local}' for local, public in pairs)}}};"


def make_page(demo: Demo, networks: dict[str, bytes], runtime: Runtime, latents: np.ndarray | None) -> str:
    """Return the page as HTML.

    Args:
        networks: ONNX files by direction.
        latents: of a DCGAN: z (seeds, noise_size), float32, of the seeds from 0; None for a CycleGAN.
    """
    about = {"name": printable(demo.name), "size": demo.image_size, "stride": demo.stride}
    if latents is not None:
        about |= {"latents": to_base64(latents.astype("<f4").tobytes()), "seeds": len(latents)}
    return (
        make_environment()
        .get_template("demo.html")
        .render(
            demo=demo,
            name=about["name"],
            about=about,
            is_translator=latents is None,
            directions={direction: printable(text) for direction, text in demo.directions.items()},
            networks={direction: to_base64(content) for direction, content in networks.items()},
            runtime=Markup(as_global(runtime.script)),
            binary=to_base64(gzip.compress(runtime.binary, 6, mtime=0)),
            version=runtime.version,
        )
    )
