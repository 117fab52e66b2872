"""An OpenAI-style server that streams like in-flight batching: a chunk per request in each step.

Speaks as much HTTP/1.1 as clients need. A chunk's text is the time at which it was handed to the
socket, on both clocks: ``perf_counter_ns`` (one for all processes of a host) and ``time_ns``;
sockets are written to at once, one after the other, as servers with a loop do.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any

from llm_perf.background import child

STEP_S = 0.01
MODEL = "stamps"
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%b\r\n\r\n"
_CHUNKED = _HEAD % (b"text/event-stream; charset=utf-8", b"transfer-encoding: chunked")
_DIGITS = 19


@dataclass(slots=True)
class Window:
    """What a client took: chunks, and ``perf_counter_ns`` of its first request and last chunk."""

    chunks: int = 0
    first_ns: int = 0
    last_ns: int = 0


@dataclass(slots=True)
class Stream:
    """A request that is being answered."""

    to: socket.socket
    left: int
    made: int
    before: bytes
    after: bytes


class Server:
    """All of it, on one thread."""

    def __init__(self, pipe: Pipe, most_per_s: int) -> None:
        self._pipe = pipe
        self._most_per_s = most_per_s
        self._window = Window()
        self._streams: list[Stream] = []
        self._rests: dict[socket.socket, bytes] = {}
        self._selector = selectors.DefaultSelector()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._selector.register(pipe, selectors.EVENT_READ)
        pipe.send(self._listening.getsockname()[1])

    def run(self) -> None:
        """Serve until the pipe closes."""
        due = time.perf_counter()
        while True:
            for key, _ in self._selector.select(max(0.0, due - time.perf_counter())):
                if key.fileobj is self._pipe:
                    if not self._report():
                        return
                elif key.fileobj is self._listening:
                    self._accept()
                else:
                    self._read(key.fileobj)  # type: ignore[arg-type]
            if time.perf_counter() >= due:
                self._streams = [each for each in self._streams if self._speak(each)]
                step = max(STEP_S, len(self._streams) / self._most_per_s)
                due = max(due + step, time.perf_counter())

    def _report(self) -> bool:
        try:
            self._pipe.recv()
        except EOFError:
            return False
        self._pipe.send(self._window)
        self._window = Window()
        return True

    def _accept(self) -> None:
        client, _ = self._listening.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(client, selectors.EVENT_READ)

    def _read(self, client: socket.socket) -> None:
        try:
            data = self._rests.pop(client, b"") + client.recv(2**20)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(client)
            client.close()
            return
        head, end, body = data.partition(b"\r\n\r\n")
        _, _, told = head.lower().partition(b"content-length:")
        if not end or len(body) < int(told.split(b"\r\n")[0] or 0):
            self._rests[client] = data
        elif head.startswith(b"POST"):
            self._begin(client, json.loads(body), chat=b"/chat/" in head.split(b"\r\n")[0])
        else:
            models = json.dumps({"object": "list", "data": [{"id": MODEL}]}).encode()
            length = b"content-length: %d" % len(models)
            client.sendall(_HEAD % (b"application/json", length) + models)

    def _begin(self, client: socket.socket, asked: dict[str, Any], chat: bool) -> None:
        tokens = asked.get("max_completion_tokens") or asked.get("max_tokens") or 16
        mark = "#" * (2 * _DIGITS + 2)
        said = {"delta": {"content": mark}} if chat else {"text": mark}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": None}
        before, after = _event([choice]).split(mark.encode())
        self._window.first_ns = self._window.first_ns or time.perf_counter_ns()
        self._streams.append(Stream(client, tokens, tokens, before, after))

    def _speak(self, stream: Stream) -> bool:
        """Send the next chunk; whether another one is to come."""
        started = stream.left < stream.made
        stream.left -= 1
        end = b""
        if stream.left == 0:
            usage = {"prompt_tokens": 1, "completion_tokens": stream.made}
            usage["total_tokens"] = 1 + stream.made
            last = {"index": 0, "text": "", "delta": {}, "finish_reason": "length"}
            done = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
            end = _event([last]) + _event([], usage=usage) + done
        head = b"" if started else _CHUNKED
        now = time.perf_counter_ns()
        text = b"%019d %019d " % (now, time.time_ns())
        try:
            stream.to.sendall(b"".join((head, stream.before, text, stream.after, end)))
        except OSError:
            return False
        self._window.chunks += 1
        self._window.last_ns = now
        return stream.left > 0


def _event(choices: list[dict[str, Any]], **more: object) -> bytes:
    fields = {"id": "cmpl-0f6ab1f2d3c94c5e8a7b", "object": "text_completion", "model": MODEL}
    said = json.dumps({**fields, "created": 1700000000, "choices": choices, **more})
    return _chunk(b"data: %b\n\n" % said.encode())


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _serve(most_per_s: int, pipe: Pipe) -> None:
    Server(pipe, most_per_s).run()


@contextmanager
def sse_server(most_per_s: int) -> Iterator[tuple[str, Pipe]]:
    """Run it in a process of its own; gives HOST:PORT, and a pipe that tells a ``Window``."""
    with child(_serve, most_per_s) as pipe:
        yield f"127.0.0.1:{pipe.recv()}", pipe
