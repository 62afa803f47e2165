"""Reading of files that torch.save wrote, without running code from them; other files are named for what they are."""

import codecs
import contextlib
import io
import pickle
import re
import warnings
import zipfile
from typing import Any

# First bytes of a file -> what it is.
_SIGNATURES = {
    b"version https://git-lfs": "a Git LFS pointer, and `git lfs pull` downloads the file that it stands for",
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"%PDF": "a PDF document",
}
_IMAGE_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")


def name_kind(data: bytes) -> str | None:
    """Return what the bytes of a file are, such as "a PNG image"; None if torch.save may have written them."""
    if not data:
        return "an empty file"
    for start, kind in _SIGNATURES.items():
        if data.startswith(start):
            return kind
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        return "a safetensors file"
    if data[257:262] == b"ustar":
        return "a tar archive"
    if data[:1] == b"\x08" and data[2:3] in (b"\x12", b":"):  # the fields ir_version, then producer_name or graph
        return "an ONNX model"
    from PIL import Image

    with contextlib.suppress(Exception):  # Pillow raises any exception for bytes that are not an image
        with Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS) as image:
            return f"a {image.format} image"
    if data.startswith(b"PK"):
        return _name_kind_of_zip(data)
    with contextlib.suppress(UnicodeDecodeError):
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:1000])
        if "\0" not in text:
            return "a web page" if re.match(r"\s*<(!doctype )?html", text, re.IGNORECASE) else "a text file"
    return None


def _name_kind_of_zip(data: bytes) -> str | None:
    """Return what a zip archive is; None if torch.save may have written it, or if it is cut off or damaged."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except Exception:  # zipfile has no single exception for a damaged archive
        return None
    if any(name.endswith("constants.pkl") for name in names):
        return "a TorchScript module, as `generate.py export` writes"
    if any(name.endswith("data.pkl") for name in names):
        return None
    return "a NumPy archive" if names and all(name.endswith(".npy") for name in names) else "a zip archive"


def unpack(data: bytes) -> Any:
    """Return what torch.save wrote, on the CPU, without running code.

    Raises:
        ValueError: the bytes are something else, contain Python objects, or are damaged; the message says which.
        Exception: the bytes are damaged; torch.load and zipfile have no single exception for that.
    """
    import torch  # here, because report.py imports this module and does not need torch

    kind = name_kind(data)
    if kind is not None:
        raise ValueError(f"it is {kind}")
    if not data.startswith(b"\x80"):  # else torch.save of before PyTorch 1.6 wrote it: a pickle, without checksums
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:  # torch.load does not verify checksums
                damaged = archive.testzip()
        except zipfile.BadZipFile:
            is_cut = data.startswith(b"PK")
            raise ValueError("it is cut off or damaged" if is_cut else "torch.save did not write it") from None
        if damaged is not None:
            raise ValueError(f"{damaged} is damaged")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the version of the pickle format
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its message advises to load the file unsafely
        found = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        what = f"it contains Python objects such as {found[1]}," if found else "it is a Python pickle of another kind,"
        raise ValueError(f"{what} which cannot be read without running code from the file") from None
    except RuntimeError as error:
        if "magic number" in str(error) or "tar format" in str(error):
            raise ValueError("it is a Python pickle that torch.save did not write") from None
        raise
