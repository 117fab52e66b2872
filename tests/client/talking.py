"""An OpenAI-style server that answers over a real socket and keeps what it was asked.

``refuses`` names keys of the body that it answers with HTTP 400, ``counts`` whether it tells usage.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class TalkingServer:
    words: tuple[str, ...] = ("one", " two", " three")
    refuses: frozenset[str] = frozenset()
    counts: bool = True
    silent_for: str | None = None  # the prompt whose tokens aren't counted
    broken: bool = False  # answers what it doesn't refuse with HTTP 500
    models: tuple[str, ...] = ("m",)
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    gate: threading.Event | None = None  # waited for after the first word

    def __enter__(self) -> TalkingServer:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"127.0.0.1:{self._server.server_port}"
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def events(self, body: dict[str, Any], chat: bool) -> Iterator[dict[str, Any]]:
        words = self.words[: body.get("max_tokens")]
        for number, word in enumerate(words):
            said = {"delta": {"content": word}} if chat else {"text": word}
            end = "stop" if number == len(words) - 1 else None
            yield {"choices": [{**said, "finish_reason": end}]}
        silent = self.silent_for is not None and body.get("prompt") == self.silent_for
        if self.counts and body.get("stream_options") and not silent:
            count = {"prompt_tokens": 7, "completion_tokens": len(words)}
            yield {"choices": [], "usage": count}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        talking = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self._answer(200, {"data": [{"id": name} for name in talking.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                talking.asked.append(body)
                if refused := sorted(talking.refuses & body.keys()):
                    said = f"Unrecognized request argument supplied: {', '.join(refused)}"
                    self._answer(400, {"error": {"message": said}})
                    return
                if talking.broken:
                    self._answer(500, {"error": {"message": "broken"}})
                    return
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for number, event in enumerate(talking.events(body, "chat" in self.path)):
                    self._chunk(f"data: {json.dumps(event)}\n\n".encode())
                    if number == 0 and talking.gate:
                        talking.gate.wait(10)
                self._chunk(b"data: [DONE]\n\n")
                self._chunk(b"")

            def _answer(self, status: int, value: object) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _chunk(self, data: bytes) -> None:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
                self.wfile.flush()

            def log_message(self, *args: object) -> None:
                pass

        return Handler
