from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from client.identity import identify
from client.transports import Endpoint

from .scripted import FINAL, ScriptedTriton

ANSWERS = {
    "/v2": {"name": "triton", "version": "2.51.0", "extensions": ["classification"]},
    "/version": {"version": "0.11.2"},
}


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(ANSWERS[self.path]).encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("protocol", "known"),
    [("http", {"name": "triton", "version": "2.51.0"}), ("openai", {"version": "0.11.2"})],
)
def test_a_server_says_name_and_version(url: str, protocol: str, known: dict[str, str]) -> None:
    assert asyncio.run(identify(Endpoint(url, protocol, "m"))) == known


def test_a_server_may_keep_them_to_itself() -> None:
    with ScriptedTriton(lambda _: [FINAL]) as server:
        assert asyncio.run(identify(Endpoint(server.url, "grpc", "ensemble"))) == {}
    assert asyncio.run(identify(Endpoint("127.0.0.1:9", "http", "m"))) == {}
