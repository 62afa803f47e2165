"""Single image files of any size, with alpha: read and written. Pixels are uint8 arrays (H, W, 3), or 4 with alpha."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from images.decoding import apply_exif_orientation, open_image, to_rgb
from images.values import ValueRange, to_8_bits
from system.files import atomic_write

# Extension of an image file -> Pillow's format and its settings: for quality, not for size.
IMAGE_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 95}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {"compression": "tiff_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_deflate"}),
}
_WITH_ALPHA = ("PNG", "WEBP", "TIFF")


def read_image(path: Path, value_range: ValueRange | None = None) -> np.ndarray:
    """Return an image, rotated by its EXIF tag: (H, W, 3), or (H, W, 4) if it has alpha.

    The RGB of transparent pixels is blended with white, as in training. `value_range` is as in `to_8_bits`.

    Raises:
        ImageError: not a regular file, or too many pixels.
        OSError, ValueError, SyntaxError: whatever Pillow raises for a broken file.
    """
    with open_image(path) as image:
        return image_to_pixels(image, value_range)


def image_to_pixels(image: Image.Image, value_range: ValueRange | None = None) -> np.ndarray:
    """Return the current frame of an opened image as `read_image` does; its errors are those of Pillow."""
    image = to_8_bits(apply_exif_orientation(image), value_range)
    rgb = to_rgb(image)
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    if has_alpha or ("transparency" in image.info and image.mode in ("1", "L", "P", "RGB")):
        rgb.putalpha(image.convert("RGBA").getchannel("A"))
    return np.array(rgb)


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write an image (H, W, 3 or 4) in the format of the extension, without metadata; with alpha if the format has it.

    Raises:
        OSError, ValueError: whatever Pillow raises for a size that the format does not allow.
    """
    kind, how = IMAGE_FORMATS[path.suffix.lower()]
    image = Image.fromarray(pixels if kind in _WITH_ALPHA else pixels[:, :, :3])
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda file: image.save(file, format=kind, **how))
