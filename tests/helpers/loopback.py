"""A web server on this machine, which can be told to fail."""

import http.server
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Loopback(http.server.ThreadingHTTPServer):
    """Serves `files` by path.

    Attributes:
        files: path, such as "/a.zip", -> content.
        answers: what comes instead of the file, for one request each: a status; "cut": half the file; "interrupt": half
            the file, then Ctrl-C for this process; "stall": half the file, then nothing; "no length": the file without
            its length.
        requests: the paths that were asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.answers: list[int | str] = []
        self.requests: list[str] = []
        self.stopped = threading.Event()

    def add(self, path: str, content: bytes) -> str:
        """Serve a file; return its address."""
        self.files[path] = content
        return self.address + path


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Loopback

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        answer = self.server.answers.pop(0) if self.server.answers else "file"
        content = self.server.files.get(self.path)
        if isinstance(answer, int) or content is None:
            self.send_error(answer if isinstance(answer, int) else 404)
            return
        self.send_response(200)
        if answer != "no length":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if answer in ("cut", "interrupt", "stall") else content)
        if answer == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if answer == "stall":
            self.server.stopped.wait(10)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve() -> Iterator[Loopback]:
    """Run a server in a thread."""
    with Loopback() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join()
