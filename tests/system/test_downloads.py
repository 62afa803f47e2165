"""Files from the web, from a server on this machine: whole or not at all, with checksums and retries."""

import hashlib
import shutil
import time
from collections import namedtuple

import pytest

from system import downloads
from system.downloads import fetch, read_checksum, record_checksum, require_space
from tests.helpers.loopback import serve
from utils import UserError

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
REMEDY = "use another way"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Retry at once, and reach the server on this machine without a proxy."""
    monkeypatch.setenv("no_proxy", "*")
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def server():
    with serve() as server:
        server.add("/a.bin", CONTENT)
        yield server


def test_a_file(server, tmp_path):
    target = tmp_path / "a.bin"
    fetch(f"{server.address}/a.bin", target, REMEDY, len(CONTENT), SHA256)
    assert target.read_bytes() == CONTENT and [*tmp_path.iterdir()] == [target]
    fetch(f"{server.address}/a.bin", target, REMEDY, len(CONTENT), SHA256)
    assert server.requests == ["/a.bin"], "a file with the right checksum is not downloaded again"
    target.write_bytes(b"damaged")
    fetch(f"{server.address}/a.bin", target, REMEDY, len(CONTENT), SHA256)
    assert target.read_bytes() == CONTENT


@pytest.mark.faults
@pytest.mark.parametrize("answers", [[503], [500, 502, 503], ["cut"], ["cut", 429, "cut"], [408, "no length"]])
def test_a_passing_failure_is_retried(server, tmp_path, answers, no_pauses):
    count = sum(answer != "no length" for answer in answers)
    server.answers += answers
    fetch(f"{server.address}/a.bin", tmp_path / "a.bin", REMEDY, len(CONTENT), SHA256)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert len(server.requests) == 1 + count and no_pauses == [1, 2, 3][:count]


@pytest.mark.faults
@pytest.mark.parametrize(
    "answers, reason, count",
    [
        ([503] * 9, "503 Service Unavailable", 4),
        (["cut"] * 9, "the connection broke off", 4),
        ([404], "404 Not Found; use another way", 1),
        ([403], "403 Forbidden; use another way", 1),
    ],
)
def test_a_lasting_failure(server, tmp_path, answers, reason, count):
    server.answers += answers
    with pytest.raises(UserError, match=reason) as error:
        fetch(f"{server.address}/a.bin", tmp_path / "a.bin", REMEDY)
    assert f"{server.address}/a.bin" in str(error.value) and REMEDY in str(error.value)
    assert len(server.requests) == count and not [*tmp_path.iterdir()]


@pytest.mark.faults
def test_a_cut_file_without_a_published_checksum(server, tmp_path, monkeypatch):
    """Also where the version of urllib3 does not compare the length itself."""
    import requests

    monkeypatch.setattr(requests.Response, "iter_content", lambda response, size: iter([CONTENT[:1000]]))
    with pytest.raises(UserError, match="the connection broke off"):
        fetch(f"{server.address}/a.bin", tmp_path / "a.bin", REMEDY)
    assert not [*tmp_path.iterdir()]


@pytest.mark.faults
def test_a_server_that_stops_to_answer(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.1)
    server.answers += ["stall"] * 2
    fetch(f"{server.address}/a.bin", tmp_path / "a.bin", REMEDY)
    server.answers += ["stall"] * 4
    with pytest.raises(UserError, match=r"no answer for 0\.1 seconds"):
        fetch(f"{server.address}/a.bin", tmp_path / "b.bin", REMEDY)
    assert not (tmp_path / "b.bin").exists()


@pytest.mark.faults
def test_no_network(server, tmp_path):
    server.server_close()
    with pytest.raises(
        UserError, match=r"a\.bin cannot be downloaded \(no connection to the server\); use another way"
    ):
        fetch(f"{server.address}/a.bin", tmp_path / "a.bin", REMEDY)
    assert not [*tmp_path.iterdir()]


@pytest.mark.faults
def test_another_file_than_the_published_one(server, tmp_path):
    with pytest.raises(UserError, match=f"its SHA-256 is not {'0' * 64}; the file is not kept; use another way"):
        fetch(f"{server.address}/a.bin", tmp_path / "a.bin", REMEDY, len(CONTENT), "0" * 64)
    server.requests.clear()
    with pytest.raises(UserError, match="has 256,000 bytes, but the published file 256,001; use another way"):
        fetch(f"{server.address}/a.bin", tmp_path / "a.bin", REMEDY, len(CONTENT) + 1, SHA256)
    assert len(server.requests) == 1 and not [*tmp_path.iterdir()], "refused before it is downloaded"


def test_a_recorded_checksum(server, tmp_path):
    address, target, record = f"{server.address}/a.bin", tmp_path / "a.bin", tmp_path / "a.sha256"
    fetch(address, target, REMEDY, record=record)
    record_checksum(target, record)
    assert record.read_text() == f"{SHA256}  a.bin\n" and read_checksum(record) == SHA256
    target.unlink()
    fetch(address, target, REMEDY, record=record)
    target.unlink()
    server.add("/a.bin", CONTENT[::-1])
    with pytest.raises(UserError, match=r"its SHA-256 is not that of the first download in .*a\.sha256"):
        fetch(address, target, REMEDY, record=record)
    assert [*tmp_path.iterdir()] == [record]
    fetch(address, target, REMEDY)
    record_checksum(target, record)
    assert target.read_bytes() == CONTENT[::-1] and read_checksum(record) == SHA256, "an older record stays"
    record.write_text("nonsense")
    with pytest.raises(UserError, match="does not contain a SHA-256; delete it"):
        fetch(address, target, REMEDY, record=record)


@pytest.mark.faults
def test_too_little_space(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    require_space(tmp_path, 1000)
    with pytest.raises(UserError, match=r"2 MB are needed and 0 MB are free; free some space"):
        require_space(tmp_path, 2_000_000)
    with pytest.raises(UserError, match="are free; free some space"):
        fetch(f"{server.address}/a.bin", tmp_path / "a.bin", REMEDY)
    assert len(server.requests) == 1 and not [*tmp_path.iterdir()]


def test_the_progress_counts_bytes(server, tmp_path, monkeypatch):
    bars = []

    class Bar(downloads.ProgressBar):
        def close(self):
            bars.append((self.n, self.total, self.as_line()))
            super().close()

    monkeypatch.setattr(downloads, "ProgressBar", Bar)
    fetch(f"{server.address}/a.bin", tmp_path / "a.bin", REMEDY)
    done, total, line = bars[0]
    assert done == total == len(CONTENT) and line.startswith("download a.bin: 256k/256k, ")
