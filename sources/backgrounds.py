"""The background of a portrait: white, or blurred."""

from pathlib import Path

import numpy as np
import torch

from system.downloads import fetch

# MediaPipe's model that separates a person from the background: Apache-2.0, 249 KB. OpenCV runs it in 10 ms.
# MediaPipe has replaced files at an address before; the generation names one version of the file.
MODEL_ADDRESS = (
    "https://storage.googleapis.com/mediapipe-assets/modules/selfie_segmentation/selfie_segmentation.tflite"
    "?generation=1782183681393267"
)
MODEL_SHA256 = "8d13b7fae74af625c641226813616a2117bd6bca19eb3b75574621fc08557f27"
MODEL_SIZE = 256  # height and width of the images that it takes
CERTAIN = (0.4, 0.9)  # probabilities of a person that become 0 and 1; between them are hair and soft edges


def model_path() -> Path:
    """Return where the model is kept: beside the weights that PyTorch downloads."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "selfie_segmentation.tflite"


class Segmenter:
    """Finds the person in a portrait. The model is downloaded once; nothing is uploaded.

    Raises:
        UserError: the model is not there and cannot be downloaded.
    """

    def __init__(self) -> None:
        import cv2

        path = model_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        remedy = f"download it elsewhere and save it as {path}, or use --background keep"
        fetch(MODEL_ADDRESS, path, remedy, sha256=MODEL_SHA256)
        self.network = cv2.dnn.readNetFromTFLite(str(path))

    def __call__(self, portrait: np.ndarray) -> np.ndarray:
        """Return how far each pixel of a portrait, uint8 (S, S, 3), belongs to the person: float32 (S, S) in [0, 1]."""
        import cv2

        self.network.setInput(cv2.dnn.blobFromImage(portrait, 1 / 255, (MODEL_SIZE, MODEL_SIZE)))  # (1, 3, 256, 256)
        found = self.network.forward().reshape(MODEL_SIZE, MODEL_SIZE)
        return clean_mask(cv2.resize(found, portrait.shape[1::-1], interpolation=cv2.INTER_LINEAR))


def clean_mask(mask: np.ndarray) -> np.ndarray:
    """Return a mask (H, W) in [0, 1] with more contrast, and only its largest connected part."""
    import cv2

    low, high = CERTAIN
    mask = np.clip((mask - low) / (high - low), 0, 1).astype(np.float32)
    _, parts, statistics, _ = cv2.connectedComponentsWithStats((mask > 0).astype(np.uint8))
    areas = statistics[1:, cv2.CC_STAT_AREA]  # part 0 is the background
    return mask * (parts == 1 + np.argmax(areas)) if len(areas) else mask


def replace_background(portrait: np.ndarray, mask: np.ndarray, background: str) -> np.ndarray:
    """Return a portrait, uint8 (S, S, 3), before a "white" or "blur" background; `mask` is 1 where the person is."""
    import cv2

    person = mask[:, :, None]  # (S, S, 1)
    behind = np.float32(255)
    if background == "blur":
        # The blurred background divided by the blurred mask of the background: without colors of the person.
        sigma = portrait.shape[0] / 16
        outside = np.concatenate([portrait * (1 - person), 1 - person], axis=2).astype(np.float32)  # (S, S, 4)
        blurred = cv2.GaussianBlur(outside, (0, 0), sigma)
        behind = blurred[:, :, :3] / np.maximum(blurred[:, :, 3:], 1e-3)
    return np.clip(portrait * person + behind * (1 - person), 0, 255).round().astype(np.uint8)
