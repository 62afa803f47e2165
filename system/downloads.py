"""Files from the web: fetched whole or not at all, with their checksums compared."""

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from system.files import write_bytes
from system.progress import ProgressBar
from utils import LOG, UserError, one_line

if TYPE_CHECKING:
    from requests import RequestException

RETRIES = 3  # after the first attempt, with pauses of 1, 2 and 3 seconds
TIMEOUT = 30  # seconds without a byte
PASSING = (408, 429)  # answers of a server, among those that blame the client, that may be others a moment later


def require_space(folder: Path, size: float) -> None:
    """Raise UserError unless the disk of a folder has room for `size` bytes."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{folder}: {size / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free; free some space, or write "
            "to another disk"
        )


def fetch(
    address: str,
    target: Path,
    remedy: str,
    size: int | None = None,
    sha256: str | None = None,
    record: Path | None = None,
) -> None:
    """Download a file to `target`, if it is not there with the right checksum; retry if the network fails.

    Args:
        remedy: what the user can do without the network, for messages.
        size: in bytes, if it is known; a file of another size is refused before it is downloaded.
        sha256: the published checksum; None: none is published.
        record: a file in which `record_checksum` may have recorded the checksum of an earlier download.

    Raises:
        UserError: no network, no such file, another file than expected, or too little space. `target` is as before.
        OSError: the file cannot be written.
    """
    import pooch  # slow to import
    import requests

    known = sha256 or read_checksum(record)
    pooch.get_logger().setLevel("WARNING")
    files = pooch.create(
        target.parent, "", registry={target.name: known}, urls={target.name: address}, retry_if_failed=RETRIES
    )
    try:
        files.fetch(target.name, downloader=partial(_transfer, title=target.name, remedy=remedy, size=size))
    except requests.RequestException as error:
        raise UserError(f"{address} cannot be downloaded ({_describe(error)}); {remedy}") from None
    except ValueError:  # pooch: the checksum is another one
        if sha256 is not None or record is None:
            raise UserError(f"{address}: its SHA-256 is not {known}; the file is not kept; {remedy}") from None
        raise UserError(
            f"{address}: its SHA-256 is not that of the first download in {record}; the file is not kept. To accept a "
            f"new version, delete {record.name}"
        ) from None


def record_checksum(file: Path, record: Path) -> None:
    """Record the SHA-256 of a file, so that `fetch` compares later downloads with it; an older record stays."""
    import pooch

    if not record.exists():
        write_bytes(record, f"{pooch.file_hash(str(file))}  {file.name}\n".encode())
        LOG.info("no checksum of %s is published; its SHA-256 is recorded in %s", file.name, record)


def _transfer(address: str, output: str, _: Any, title: str, remedy: str, size: int | None) -> None:
    """Write the file at an address to the file `output`. pooch calls this function, again after RequestException."""
    import requests

    try:
        with requests.get(address, stream=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"}) as response:
            if 400 <= response.status_code < 500 and response.status_code not in PASSING:
                raise UserError(f"{address}: {response.status_code} {response.reason}; {remedy}")
            response.raise_for_status()
            length = int(response.headers.get("Content-Length", size or 0))
            if size is not None and length != size:
                raise UserError(f"{address} has {length:,} bytes, but the published file {size:,}; {remedy}")
            require_space(Path(output).parent, length)
            with ProgressBar(None, f"download {title}", "B", length or None) as bar, open(output, "wb") as file:
                bar.unit_scale = True  # 39.2M instead of 39200000
                for chunk in response.iter_content(2**16):
                    bar.update(file.write(chunk))
                if length and file.tell() != length:  # versions of urllib3 before 2 do not notice
                    raise requests.exceptions.ChunkedEncodingError("cut off")
    except requests.RequestException as error:
        LOG.info("download %s: %s", title, _describe(error))
        raise


def read_checksum(record: Path | None) -> str | None:
    """Return the SHA-256 in a file that `record_checksum` or sha256sum wrote; None if there is no such file."""
    if record is None or not record.exists():
        return None
    words = record.read_text(encoding="utf-8", errors="replace").split()
    if not words or len(words[0]) != 64:
        raise UserError(f"{record} does not contain a SHA-256; delete it")
    return words[0].lower()


def _describe(error: "RequestException") -> str:
    """Return in a few words why a request failed; the messages of requests are long."""
    from requests import exceptions

    if error.response is not None:
        return f"{error.response.status_code} {error.response.reason}"
    if isinstance(error, exceptions.Timeout) or "timed out" in str(error):
        return f"no answer for {TIMEOUT} seconds"
    if isinstance(error, exceptions.ChunkedEncodingError):
        return "the connection broke off"
    if isinstance(error, exceptions.SSLError):
        return "the server's certificate is not accepted"
    if isinstance(error, exceptions.ConnectionError):
        return "no connection to the server"
    return one_line(error)
