"""A Hugging Face hub on 127.0.0.1: a real HTTP server that is told what it holds and counts."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40


@dataclass
class Hub:
    """What the server holds of the model acme/tiny and answers, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 200
    error_code: str = ""
    cut_after: int | None = None
    tokens: set[str | None] = field(default_factory=set)
    asked: Counter[str] = field(default_factory=Counter)
    """GET and HEAD by file name; the API's as ``api``"""

    def environment(self, root: Path, **changed: str) -> dict[str, str]:
        """Of a child that uses this hub, with a cache of its own."""
        return {
            **os.environ,
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(root / "hf"),
            "HF_TOKEN": "hf_secretsecretsecret",
            "HF_HUB_ETAG_TIMEOUT": "2",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "HF_HUB_DISABLE_XET": "1",
            "HF_DEBUG": "0",
            **changed,
        }


class Handler(BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub = self.server.hub
        hub.tokens.add(self.headers.get("Authorization"))
        prefix, _, name = self.path.partition("/resolve/")
        name = name.partition("/")[2]
        hub.asked[name or "api"] += 1
        if hub.status != 200:
            self.send(hub.status, {"X-Error-Code": hub.error_code}, b"")
        elif prefix == "/acme/tiny" and name in hub.files:
            self.send_file(hub.files[name])
        elif "/api/models/acme/tiny" in self.path:
            names = [{"rfilename": each, "size": len(data)} for each, data in hub.files.items()]
            tree = [
                {"type": "file", "path": each, "size": len(data), "oid": each}
                for each, data in hub.files.items()
            ]
            info = {"id": "acme/tiny", "sha": COMMIT, "siblings": names}
            self.send(200, {}, json.dumps(tree if "/tree/" in self.path else info).encode())
        else:
            self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b"")

    def send_file(self, data: bytes) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {"ETag": f'"{len(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.send(206 if start else 200, headers, data[start:])

    def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: self.server.hub.cut_after])
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class HubServer(ThreadingHTTPServer):
    hub: Hub


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Hub]:
    """A hub with the one model acme/tiny."""
    server = HubServer(("127.0.0.1", 0), Handler)
    server.hub = Hub(url=f"http://127.0.0.1:{server.server_port}", files=dict(files))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
