"""What decoding asks of a source of images, whether a folder or another kind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image


class ImageSource(Protocol):
    """Images that can be opened by number, in any thread.

    Attributes:
        location: the folder or file of the images, for messages.
        names: a name for each image, all different.
        left_out: what else lies there and was not looked at, in words for the user; "" if nothing does.
    """

    location: Path
    names: Sequence[str]
    left_out: str

    def open(self, index: int) -> Image.Image:
        """Return an image before its pixels are decoded; a failure raises any exception that Pillow may raise."""

    def may_be_wide(self, index: int) -> bool:
        """Return False if it is known, before the image is opened, that its values have at most 8 bits."""

    def sizes(self) -> list[int]:
        """Return the size of each image, in bytes."""

    def fingerprint(self) -> str:
        """Return a text that changes when the images do."""

    def select(self, indices: Sequence[int]) -> "ImageSource":
        """Return the source of some of the images."""
