"""An OpenAI-style server of as many tokens an answer as it is told; keeps what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class TokenServer(ThreadingHTTPServer):
    """``log`` is shared by servers, so that it shows who was asked when."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, name: str, tokens: int, log: list[tuple[str, str]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.name, self.tokens, self.log = name, tokens, log
        self.wrong: set[str] = set()
        """prompts that it answers with an error"""
        self.pause_s = 0.0
        """before each answer, so that its time is spent here and not on the way"""

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client hangs up where its time is over."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TokenServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        known = self.path == "/v1/models"
        self._send(200 if known else 404, json.dumps({"data": [{"id": "m"}]}))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.log.append((self.server.name, asked["prompt"]))
        if asked["prompt"] in self.server.wrong:
            self._send(500, json.dumps({"error": "no"}))
            return
        time.sleep(self.server.pause_s)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        tokens = self.server.tokens
        for number in range(tokens):
            end = "length" if number == tokens - 1 else None
            self._event({"choices": [{"text": "one ", "finish_reason": end}]})
        counts = {"prompt_tokens": 2, "completion_tokens": tokens}
        self._event({"choices": [], "usage": counts})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, data: object) -> None:
        self.wfile.write(b"data: %b\n\n" % json.dumps(data).encode())

    def _send(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())


@contextmanager
def token_servers(*tokens: int) -> Iterator[list[TokenServer]]:
    """One server for each number, named A, B, …; they share a log."""
    log: list[tuple[str, str]] = []
    servers = [TokenServer("ABC"[at], each, log) for at, each in enumerate(tokens)]
    threads = [threading.Thread(target=each.serve_forever, args=(0.01,)) for each in servers]
    for thread in threads:
        thread.start()
    try:
        yield servers
    finally:
        for each in servers:
            each.shutdown()
            each.server_close()
        for thread in threads:
            thread.join()
