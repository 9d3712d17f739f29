"""A file server on this machine for the tests of downloads: ranges, connections cut on purpose, and a record of what was asked."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """Serves `files` (path -> bytes) with ranges; `cut` closes a path's first answers after so many bytes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, list[int]] = {}
        self.ranges: list[tuple[str, str | None]] = []
        self.url = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        data, wanted = self.files.get(request.path), request.headers.get("Range")
        if data is None:
            request.send_error(404)
            return
        if request.command == "GET":
            self.ranges.append((request.path, wanted))
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0  # type: ignore[index]
        if wanted and start >= len(data):
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(data)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if wanted else 200)
        request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        if request.command == "GET":
            cuts = self.cut.get(request.path)
            request.wfile.write(data[start : start + cuts.pop(0) if cuts else None])


def address(http: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{http.server_port}"


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[ThreadingHTTPServer]:
    """A server of this machine that answers as the handler does, while the block runs."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield http
    finally:
        http.shutdown()
        http.server_close()
        thread.join(5)


@contextmanager
def serving() -> Iterator[Server]:
    stub = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            stub.answer(self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    with listening(Handler) as http:
        stub.url = address(http)
        yield stub
