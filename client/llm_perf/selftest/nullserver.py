"""A Triton that does nothing but send: known messages at known times, to measure the client with.

Runs in a process of its own. A prompt ``"64 20000"`` asks for 64 messages, one each 20,000 µs (0:
as fast as they go), a word that is no number for 1. A message's text is the ``perf_counter_ns`` at
which it was written, which processes of one machine share. Speaks as much HTTP/2 and gRPC as our
client and grpc's need.
"""

from __future__ import annotations

import asyncio
from multiprocessing.connection import Connection as Pipe
from time import perf_counter_ns
from typing import Any, Final

from google.protobuf import text_format
from hpack import Decoder
from tritonclient.grpc import model_config_pb2, service_pb2

from llm_perf.transports import frames as h2

MODEL: Final = "null"
_CONFIG: Final = """
name: "null" max_batch_size: 1
input { name: "text_input" data_type: TYPE_STRING dims: [1] }
input { name: "max_tokens" data_type: TYPE_INT32 dims: [1] optional: true }
output { name: "text_output" data_type: TYPE_STRING dims: [1] }
output { name: "num_output_tokens" data_type: TYPE_INT32 dims: [1] }
model_transaction_policy { decoupled: true }
"""
_GOLDEN: Final = 0.618  # spreads the streams over the pause, so that they don't send as one
_DIGITS: Final = 20  # enough for any 64-bit number of nanoseconds
_HEAD: Final = h2.encode_fields(((":status", "200"), ("content-type", "application/grpc")))
_OK: Final = h2.encode_fields((("grpc-status", "0"),))
_UNKNOWN: Final = h2.encode_fields(
    (("grpc-status", "12"), ("grpc-message", "not in a null server"))
)


_UNARY: Final = {  # answers to the calls that a client makes before it streams
    "ServerLive": service_pb2.ServerLiveResponse(live=True),
    "ModelConfig": service_pb2.ModelConfigResponse(
        config=text_format.Parse(_CONFIG, model_config_pb2.ModelConfig())
    ),
}


def _message(body: Any) -> bytes:
    data: bytes = body.SerializeToString()
    return len(data).to_bytes(5, "big") + data


def _template() -> tuple[bytes, bytes]:
    """A gRPC message like an ensemble's, around the place of its time."""
    response: Any = service_pb2.ModelStreamInferResponse()
    answer = response.infer_response
    answer.model_name, answer.model_version = MODEL, "1"
    answer.parameters["triton_final_response"].bool_param = False
    answer.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    mark = b"#" * _DIGITS
    answer.raw_output_contents.append(_DIGITS.to_bytes(4, "little") + mark)
    answer.outputs.add(name="num_output_tokens", datatype="INT32", shape=[1, 1])
    answer.raw_output_contents.append((1).to_bytes(4, "little"))
    before, _, after = _message(response).partition(mark)
    return before, after


_BEFORE, _AFTER = _template()
_SIZE: Final = len(_BEFORE) + _DIGITS + len(_AFTER)


class _Session(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._buffer = b""
        self._greeted = False
        self._bodies: dict[int, bytes] = {}
        self._paths: dict[int, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        grow = h2.frame(h2.WINDOW_UPDATE, 0, 0, h2.numbers(2**30))
        transport.write(h2.settings([(h2.INITIAL_WINDOW, 2**30)]) + grow)

    def connection_lost(self, _exc: Exception | None) -> None:
        for task in self._tasks:
            task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        if not self._greeted:
            if len(data) < len(h2.PREFACE):
                self._buffer = data
                return
            data, self._greeted = data[len(h2.PREFACE) :], True
        while len(data) >= 9 and len(data) >= (end := 9 + int.from_bytes(data[:3], "big")):
            number = int.from_bytes(data[5:9], "big")
            self._on_frame(data[3], data[4], number, data[9:end])
            data = data[end:]
        self._buffer = data

    def _on_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == h2.SETTINGS and not flags & h2.ACK:
            self._transport.write(h2.frame(h2.SETTINGS, h2.ACK, 0, b""))
        elif kind == h2.PING and not flags & h2.ACK:
            self._transport.write(h2.frame(h2.PING, h2.ACK, 0, payload))
        elif kind == h2.HEADERS:
            block = payload[5:] if flags & h2.PRIORITY else payload
            fields = {str(name): str(value) for name, value in self._decoder.decode(block)}
            self._paths[number], self._bodies[number] = fields[":path"], b""
        elif kind == h2.DATA:
            self._bodies[number] += payload
        if kind in (h2.HEADERS, h2.DATA) and flags & h2.END_STREAM:
            self._answer(number, self._paths.pop(number), self._bodies.pop(number))

    def _answer(self, number: int, path: str, body: bytes) -> None:
        self._transport.write(h2.frame(h2.HEADERS, h2.END_HEADERS, number, _HEAD))
        method = path.rpartition("/")[2]
        if method == "ModelStreamInfer":
            task = asyncio.create_task(self._stream(number, body))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        if method in _UNARY:
            self._transport.write(h2.frame(h2.DATA, 0, number, _message(_UNARY[method])))
        self._end(number, _OK if method in _UNARY else _UNKNOWN)

    async def _stream(self, number: int, body: bytes) -> None:
        request: Any = service_pb2.ModelInferRequest.FromString(body[5:])
        words = request.raw_input_contents[0][4:].split()
        count, gap_us = (int(word) if word.isdigit() else 1 for word in words)
        loop = asyncio.get_running_loop()
        due = loop.time() + gap_us * 1e-6 * (number * _GOLDEN % 1 - 1)
        head = h2.frame(h2.DATA, 0, number, b"\0" * _SIZE)[:9] + _BEFORE
        for _ in range(count):
            due += gap_us * 1e-6
            await asyncio.sleep(max(0, due - loop.time()) if gap_us else 0)
            await self._writable.wait()
            self._transport.write(b"%b%020d%b" % (head, perf_counter_ns(), _AFTER))
        self._end(number, _OK)

    def _end(self, number: int, fields: bytes) -> None:
        flags = h2.END_HEADERS | h2.END_STREAM
        self._transport.write(h2.frame(h2.HEADERS, flags, number, fields))


def serve(pipe: Pipe) -> None:
    """Listen on a free port of this machine, say which, and serve until the pipe closes."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        server = await loop.create_server(_Session, "127.0.0.1", 0, backlog=1024)
        loop.add_reader(pipe.fileno(), over.set)  # nobody writes: readable means closed
        pipe.send(server.sockets[0].getsockname()[1])
        await over.wait()
        server.close()

    asyncio.run(main())
