"""A server that breaks: Triton's gRPC and HTTP and an OpenAI-style API on one port, over real TCP.

It answers what is asked before the clock starts as a server should; the text of a prompt then says
how its stream goes wrong. HTTP/2 is the ``h2`` library's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from google.protobuf import text_format
from google.protobuf.json_format import MessageToJson
from tritonclient.grpc import model_config_pb2, service_pb2

from tests.client.ports import own_port
from tests.client.scripted import ENSEMBLE, FINAL, Say, response

WORDS = ("one", " two", " three")
CONFIG = text_format.Parse(ENSEMBLE, model_config_pb2.ModelConfig())
Send = Callable[[bytes], Awaitable[None]]
Step = bytes | float | tuple[bytes, int]
"""What to send, how many seconds to wait (below zero: the end), or what to send how often."""


class Voice:
    """One open stream, in its protocol: messages, and the ways in which it can break."""

    def __init__(self, server: FaultyServer, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.writer = writer
        self.bytewise = False

    def message(self, word: str) -> bytes:
        raise NotImplementedError

    def error(self, text: str) -> bytes:
        raise NotImplementedError

    async def start(self) -> None:
        raise NotImplementedError

    async def end(self) -> None:
        raise NotImplementedError

    async def put(self, data: bytes) -> None:
        raise NotImplementedError

    async def reset(self) -> None:
        """Break this stream off."""
        raise NotImplementedError

    async def refuse(self) -> None:
        """Say that nothing was begun."""
        raise NotImplementedError

    async def leave(self) -> None:
        """Say that no stream will be served here any more."""
        raise NotImplementedError

    async def write(self, data: bytes) -> None:
        for piece in [data[i : i + 1] for i in range(len(data))] if self.bytewise else [data]:
            self.writer.write(piece)  # goes out at once
        await self.writer.drain()

    async def follow(self, script: Sequence[Step]) -> float | None:
        """Do what a script says; which end it names, if it does."""
        for step in script:
            if isinstance(step, float):
                if step < 0:
                    return step
                await asyncio.sleep(step)
                continue
            said, times = (step, 1) if isinstance(step, bytes) else step
            for _ in range(times):
                await self.write(said)
                await asyncio.sleep(0)
        return None

    def abort(self) -> None:
        """Lose the connection: the peer gets a TCP reset."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def play(self, fault: str) -> None:
        if (own := self.server.modes.get(fault)) is not None:
            await own(self)
            return
        if fault in _BEFORE:
            await _BEFORE[fault](self)
            return
        self.bytewise = fault == "drip"
        await self.start()
        for number, word in enumerate(WORDS):
            if number == 1 and fault in _BETWEEN:
                await asyncio.sleep(0.05)  # what was sent has arrived
                await _BETWEEN[fault](self)
                return
            await self.put(self.message(word))
        await self.end()


async def _hang(voice: Voice) -> None:
    await asyncio.sleep(30)


async def _half(voice: Voice) -> None:
    await voice.put(voice.message(" two")[:-3])
    await asyncio.sleep(0.05)
    voice.abort()


async def _junk(voice: Voice) -> None:
    voice.writer.write(b"\x00\xff\xee garbage \r\n" * 100)
    await voice.writer.drain()
    voice.writer.close()


async def _complain(voice: Voice) -> None:
    await voice.put(voice.error("out of blocks"))
    await voice.end()


async def _restart(voice: Voice) -> None:
    await voice.server.listen_anew()
    voice.server.drop_all()


async def _vanish(voice: Voice) -> None:
    await asyncio.sleep(0.05)
    voice.server.stop_listening()
    voice.server.drop_all()


_BEFORE: dict[str, Callable[[Voice], Awaitable[None]]] = {
    "silent": _hang,
    "refused stream": lambda voice: voice.refuse(),
    "goaway": lambda voice: voice.leave(),
}
_BETWEEN: dict[str, Callable[[Voice], Awaitable[None]]] = {
    "stuck": _hang,
    "reset": lambda voice: voice.reset(),
    "lost": _half,
    "garbage": _junk,
    "error": _complain,
    "restart": _restart,
    "vanish": _vanish,
}


Mode = Callable[[Voice], Awaitable[None]]


class FaultyServer:
    """Serves on ``url`` from a thread of its own while entered.

    ``modes`` are further ways to go wrong: by the prompt's text, what is done instead of an answer.
    """

    def __init__(self, modes: Mapping[str, Mode] | None = None) -> None:
        self.modes = modes or {}

    def __enter__(self) -> FaultyServer:
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = own_port(self)
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,))
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self.url = f"127.0.0.1:{self.port}"
        self._loop.run_until_complete(self.listen())
        started.set()
        self._loop.run_forever()
        self.stop_listening()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self.drop_all()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def listen(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, reuse_port=True
        )

    async def listen_anew(self) -> None:
        self.stop_listening()
        await self.listen()

    def stop_listening(self) -> None:
        self._server.close()

    def drop_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(
            ConnectionError,
            asyncio.IncompleteReadError,
            asyncio.CancelledError,
            h2.exceptions.ProtocolError,
        ):
            start = await reader.readexactly(3)
            if start == b"PRI":
                await _Http2(self, reader, writer).run(start)
            else:
                while start:
                    await _serve_http1(self, start, reader, writer)
                    start = await reader.read(1)
        self._writers.discard(writer)
        writer.close()


class _Http2:
    """gRPC on one connection."""

    def __init__(
        self, server: FaultyServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.server, self.reader, self.writer = server, reader, writer
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self.paths: dict[int, str] = {}
        self.bodies: dict[int, bytes] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    async def run(self, start: bytes) -> None:
        self.h2.initiate_connection()
        data = start
        try:
            while data:
                for event in self.h2.receive_data(data):
                    self._on(event)
                self.writer.write(self.h2.data_to_send())
                data = await self.reader.read(65536)
        finally:
            for task in self.tasks:
                task.cancel()

    def _on(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self.paths[event.stream_id] = dict(event.headers)[":path"].rpartition("/")[2]
            self.bodies[event.stream_id] = b""
        elif isinstance(event, h2.events.DataReceived):
            self.bodies[event.stream_id] += event.data
        elif isinstance(event, h2.events.StreamEnded):
            task = asyncio.ensure_future(self._answer(event.stream_id))
            self.tasks.add(task)
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _answer(self, number: int) -> None:
        body = self.bodies.pop(number)[5:]
        voice = _GrpcVoice(self, number)
        if self.paths[number] == "ModelStreamInfer":
            request = service_pb2.ModelInferRequest.FromString(body)
            await voice.play(request.raw_input_contents[0][4:].decode())
            return
        answers = {
            "ServerLive": service_pb2.ServerLiveResponse(live=True),
            "ModelConfig": service_pb2.ModelConfigResponse(config=CONFIG),
        }
        await voice.start()
        if (answer := answers.get(self.paths[number])) is None:
            await voice.end(final=False, status="12")
            return
        await voice.put(_prefixed(answer.SerializeToString()))
        await voice.end(final=False)


class _GrpcVoice(Voice):
    def __init__(self, connection: _Http2, number: int) -> None:
        super().__init__(connection.server, connection.writer)
        self._h2, self.number = connection.h2, number

    def message(self, word: str) -> bytes:
        return _prefixed(response(Say(word, 1)).SerializeToString())

    def error(self, text: str) -> bytes:
        message = service_pb2.ModelStreamInferResponse(error_message=text)
        return _prefixed(message.SerializeToString())

    async def _flush(self) -> None:
        await self.write(self._h2.data_to_send())

    async def start(self) -> None:
        head = [(":status", "200"), ("content-type", "application/grpc")]
        self._h2.send_headers(self.number, head)
        await self._flush()

    async def put(self, data: bytes) -> None:
        self._h2.send_data(self.number, data)
        await self._flush()

    async def end(self, final: bool = True, status: str = "0") -> None:
        if final:
            await self.put(_prefixed(response(FINAL).SerializeToString()))
        self._h2.send_headers(self.number, [("grpc-status", status)], end_stream=True)
        await self._flush()

    async def reset(self) -> None:
        self._h2.reset_stream(self.number, error_code=2)
        await self._flush()

    async def refuse(self) -> None:
        self._h2.reset_stream(self.number, error_code=7)
        await self._flush()

    async def leave(self) -> None:
        self._h2.close_connection(last_stream_id=0)
        await self._flush()


def _prefixed(message: bytes) -> bytes:
    return len(message).to_bytes(5, "big") + message


async def _serve_http1(
    server: FaultyServer, start: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    head = (start + await reader.readuntil(b"\r\n\r\n")).decode().lower()
    path = head.split(" ")[1]
    length = next(
        (
            int(line.split(":")[1])
            for line in head.splitlines()
            if line.startswith("content-length")
        ),
        0,
    )
    body = await reader.readexactly(length)
    if head.startswith("post"):
        asked = json.loads(body)
        voice = _HttpVoice(server, writer, openai="prompt" in asked)
        await voice.play(asked.get("prompt") or asked["text_input"])
        return
    answer = b"{}"
    if path.endswith("/config"):
        answer = MessageToJson(CONFIG, preserving_proto_field_name=True).encode()
    elif path == "/v1/models":
        answer = json.dumps({"object": "list", "data": [{"id": "ensemble"}]}).encode()
    writer.write(_whole(200, "OK", answer))


def _whole(status: int, text: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status} {text}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


class _HttpVoice(Voice):
    def __init__(self, server: FaultyServer, writer: asyncio.StreamWriter, openai: bool) -> None:
        super().__init__(server, writer)
        self._openai = openai

    def message(self, word: str) -> bytes:
        openai = {"choices": [{"index": 0, "text": word, "finish_reason": None}]}
        triton = {"model_name": "ensemble", "text_output": word, "sequence_length": 1}
        return _event(openai if self._openai else triton)

    def error(self, text: str) -> bytes:
        return _event({"error": {"message": text} if self._openai else text})

    async def start(self) -> None:
        await self.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )

    async def put(self, data: bytes) -> None:
        await self.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def end(self) -> None:
        if self._openai:
            usage = {"prompt_tokens": 2, "completion_tokens": 3}
            await self.put(_event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
        await self.write(b"0\r\n\r\n")

    async def reset(self) -> None:
        self.abort()

    async def refuse(self) -> None:
        await self.write(_whole(429, "Too Many Requests", b'{"error": "queue is full"}'))

    async def leave(self) -> None:
        await self.write(_whole(500, "Internal Server Error", b'{"error": {"message": "dying"}}'))


def _event(data: object) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"
