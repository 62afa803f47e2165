"""Pictures of anti-aliased shapes, from which the toy cats are drawn."""

import copy
import math
from types import SimpleNamespace

import numpy as np

BLUR = 0.8  # pixels


def blur(image: np.ndarray) -> np.ndarray:
    """Blur a picture (3, H, W) by a Gaussian whose standard deviation is BLUR pixels, cut after three pixels."""
    weights = np.exp(-(np.arange(-3, 4, dtype=np.float32) ** 2) / (2 * BLUR**2))
    weights /= weights.sum()
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (3, 3), (3, 3)), mode="edge")
    rows = sum(weight * padded[:, i : i + height] for i, weight in enumerate(weights))  # (3, H, W + 6)
    return sum(weight * rows[:, :, i : i + width] for i, weight in enumerate(weights))


class Canvas:
    """A picture of (3, size, size) floats, 0 to 1, and the shapes that can be painted on it.

    The pixel grid `x` (right), `y` (down) spans [-1, 1]; `u`, `v` is the same grid in the coordinates of the face:
    moved, turned and scaled. Shapes return their coverage of each pixel, (size, size), 0 to 1.
    """

    def __init__(self, cat: SimpleNamespace, size: int):
        axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
        self.x, self.y = axis[None, :], axis[:, None]
        scale, angle = 0.96 + 0.2 * cat.scale, 0.24 * cat.roll
        dx, dy = self.x - 0.09 * cat.x, self.y - 0.17 - 0.07 * cat.y
        self.u = (dx * math.cos(angle) + dy * math.sin(angle)) / scale
        self.v = (dy * math.cos(angle) - dx * math.sin(angle)) / scale
        self.pixel = 2 / size / scale
        self.image = np.zeros((3, size, size), np.float32)

    def between(self, top: float, bottom: float) -> "Canvas":
        """Return the rows with v between top and bottom, as a view that paints into this canvas: it saves time."""
        rows = np.flatnonzero(((self.v > top) & (self.v < bottom)).any(axis=1))
        part, view = slice(rows[0], rows[-1] + 1) if len(rows) else slice(0), copy.copy(self)
        view.image, view.u, view.v = self.image[:, part], self.u[part], self.v[part]
        return view

    def paint(self, coverage, color) -> None:
        """Paint a color (three numbers, or a picture) over the image, as opaque as `coverage` (0 to 1)."""
        color = np.asarray(color, np.float32)
        self.image += coverage * ((color if color.ndim == 3 else color[:, None, None]) - self.image)

    def inside(self, depth, soft: float = 0.0):
        """Coverage of a field that is positive inside, with an edge of one pixel, or of `soft` face units."""
        t = np.clip(depth / max(self.pixel, soft) + 0.5, 0, 1)
        return t * t * (3 - 2 * t) if soft > self.pixel else t

    def ellipse(self, u, v, ru: float, rv: float, soft: float = 0.0):
        """Ellipse around u = v = 0 with radii ru and rv."""
        return self.inside((1 - np.sqrt((u / ru) ** 2 + (v / rv) ** 2)) * min(ru, rv), soft)

    def leaf(self, u, v, length: float, half_width: float, soft: float = 0.0):
        """Half a leaf, from its wide end at u = v = 0 up to its point at v = -length: an ear, a tuft of fur."""
        along = -v / length
        depth = half_width * (1 - along) * (1 + 0.4 * along) - np.abs(u)
        return self.inside(np.minimum(depth * 0.9, -v), soft)

    def stroke(self, u, v, curve, start: float, end: float, width: float, taper: float = 0.0):
        """Line along v = c0 + c1 u + c2 u^2 for u from start to end; `taper` makes it thinner towards the end."""
        c0, c1, c2 = curve
        distance = np.abs(v - (c0 + u * (c1 + c2 * u))) / np.sqrt(1 + (c1 + 2 * c2 * u) ** 2)
        half = 0.5 * width * (1 - taper * np.clip((u - start) / (end - start), 0, 1))
        faint = np.minimum(1, 2 * half / self.pixel)  # a line thinner than a pixel is a pixel wide, but fainter
        depth = np.maximum(half, 0.5 * self.pixel) - distance
        return faint * self.inside(depth) * self.inside(np.minimum(u - start, end - u))
