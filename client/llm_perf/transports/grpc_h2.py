"""Triton's ``ModelStreamInfer`` over our own HTTP/2 reader: a stream a request, few connections.

Requests are whole before the clock starts and answers stay bytes until it has stopped; in between
a message costs its share of a socket read and two headers, 9 bytes of HTTP/2 and 5 of gRPC.
Plaintext only: TLS is the stock library's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter_ns
from urllib.parse import unquote

import grpc

from llm_perf.errors import UserError
from llm_perf.record import Exchange, Status
from llm_perf.transports import Endpoint, Headers, extra_headers
from llm_perf.transports.frames import Fields, encode_fields
from llm_perf.transports.http2 import Connection, open_connection
from llm_perf.transports.triton import TritonModel
from llm_perf.transports.triton_rpc import SERVICE, MessageStream, describe
from llm_perf.workload.workload import Prompt

_STREAMS_PER_CONNECTION = 64  # a socket read then carries several answers, at one time of reading
_PATIENCE_S = 10.0
_PREFIX = 5  # bytes before each message: compressed or not, and its length
_STATUSES = {str(status.value[0]): status.name for status in grpc.StatusCode}


class GrpcTransport(MessageStream):
    """Streams over a few warm connections, in turn; a lost one is opened again when needed."""

    def __init__(
        self, dialect: TritonModel, url: str, connections: list[Connection], headers: Headers
    ) -> None:
        super().__init__(dialect, headers)
        self._url = url
        self._connections = connections
        self._turn = 0
        self._opening = [asyncio.Lock() for _ in connections]
        fields = {
            **{":method": "POST", ":scheme": "http", ":path": SERVICE + "ModelStreamInfer"},
            **{":authority": url, "te": "trailers"},
            **{"content-type": "application/grpc", "user-agent": "llm_perf"},
        }
        self._block = encode_fields((*fields.items(), *headers))

    async def stream(self, request: bytes, seen: Exchange, timeout_s: float) -> None:
        """See ``Transport.stream``."""
        loop = asyncio.get_running_loop()
        call = _Call(seen, loop.create_future())
        body = len(request).to_bytes(_PREFIX, "big") + request
        seen.sent_ns = perf_counter_ns()
        timer = loop.call_later(timeout_s, call.give_up, timeout_s)
        try:
            connection = await self._connection(timeout_s)
            if not call.done.done():
                seen.sent_ns = perf_counter_ns()
                call.cancel = partial(connection.cancel, connection.send(self._block, body, call))
            await call.done
        except (OSError, asyncio.TimeoutError) as error:
            if not call.done.done():
                seen.end_ns = perf_counter_ns()
                seen.failure = Status.REFUSED, f"no connection: {error or 'no answer'}"
        finally:
            timer.cancel()
            call.hang_up()

    async def close(self) -> None:
        """See ``Transport.close``."""
        for connection in self._connections:
            connection.close()

    async def _connection(self, timeout_s: float) -> Connection:
        """The next connection with room for a stream; raises ``OSError`` or ``TimeoutError``."""
        turn = self._turn = (self._turn + 1) % len(self._connections)
        connection = self._connections[turn]
        if connection.failure is None and not connection.full:
            return connection
        opening = asyncio.ensure_future(self._wait(turn))
        # looked at, so that asyncio doesn't print it where the run has ended meanwhile
        opening.add_done_callback(lambda over: over.cancelled() or over.exception())
        return await asyncio.wait_for(opening, timeout_s)

    async def _wait(self, turn: int) -> Connection:
        while True:
            async with self._opening[turn]:
                if self._connections[turn].failure is not None:
                    self._connections[turn] = await _open(self._url)
            connection = self._connections[turn]
            await connection.slot()
            if connection.failure is None:
                return connection


class _Call:
    """One answer as it comes; a ``http2.Stream``."""

    __slots__ = ("_http", "_note", "_rest", "_room", "_seen", "_status", "_text", "cancel", "done")

    def __init__(self, seen: Exchange, done: asyncio.Future[None]) -> None:
        self.done = done
        self.cancel: Callable[[], None] | None = None
        self._seen = seen
        self._note = seen.messages.append
        self._room = seen.room
        self._rest = b""
        self._http = self._status = self._text = ""

    def on_data(self, at: int, payload: bytes) -> None:
        """Note each message that this frame completes."""
        size = len(payload)
        self._room = room = self._room - size
        if room < 0:
            payload = payload[:room]
        elif not self._rest and int.from_bytes(payload[1:_PREFIX], "big") == size - _PREFIX:
            self._note((at, payload[_PREFIX:]))  # as a rule a frame is a message
            return
        payload = self._rest + payload
        while len(payload) >= _PREFIX:
            end = _PREFIX + int.from_bytes(payload[1:_PREFIX], "big")
            if end > len(payload):
                break
            self._note((at, payload[_PREFIX:end]))
            payload = payload[end:]
        self._rest = payload
        if room < 0:
            self._leave(at)

    def on_fields(self, fields: Fields) -> None:
        """Keep what says how the call went."""
        self._http = fields.get(":status", self._http)
        if (status := fields.get("grpc-status")) is not None:
            self._status = _STATUSES.get(status, status)
        self._text = unquote(fields.get("grpc-message", self._text))

    def on_end(self, at: int, error: str | None, refused: bool) -> None:
        """Say how it ended."""
        seen = self._seen
        seen.end_ns = at
        if error is not None or self._status != "OK" or self._rest:
            seen.failure = self._why(error, refused)
        self.cancel = None
        if not self.done.done():
            self.done.set_result(None)

    def _why(self, error: str | None, refused: bool) -> tuple[Status, str]:
        if refused:
            return Status.REFUSED, error or "refused"
        if self._status == "DEADLINE_EXCEEDED":
            return Status.TIMEOUT, self._said()
        return Status.CUT if self._seen.messages else Status.ERROR, error or self._said()

    def _said(self) -> str:
        if self._status not in ("", "OK"):
            return f"{self._status}: {self._text}"
        if self._http not in ("", "200"):
            return f"HTTP status {self._http}"
        return "the stream ended inside a message" if self._rest else "the stream ended early"

    def give_up(self, timeout_s: float) -> None:
        """Stop waiting."""
        if not self.done.done():
            self._seen.end_ns = perf_counter_ns()
            self._seen.failure = Status.TIMEOUT, f"not answered within {timeout_s:g} s"
            self.done.set_result(None)

    def _leave(self, at: int) -> None:
        """Take no more of an answer that is too long."""
        if not self.done.done():
            self._rest = b""
            self._seen.overflow(at)
            self.done.set_result(None)

    def hang_up(self) -> None:
        """Reset the stream if it is still open."""
        if self.cancel is not None:
            self.cancel()


async def _open(url: str) -> Connection:
    host, _, port = url.rpartition(":")
    return await open_connection(host.strip("[]"), int(port), _PATIENCE_S)


async def connect(
    endpoint: Endpoint, streams: int, defaults: Mapping[str, int], trial: Prompt | None
) -> GrpcTransport:
    """See ``transports.connect``; a Triton declares what it takes."""
    del trial
    dialect = await describe(endpoint, defaults)
    try:
        first = await _open(endpoint.url)
        per_connection = max(1, min(_STREAMS_PER_CONNECTION, first.max_streams))
        others = range(1, -(-streams // per_connection))
        connections = [first, *await asyncio.gather(*(_open(endpoint.url) for _ in others))]
    except (OSError, asyncio.TimeoutError) as error:
        raise UserError(
            f"no HTTP/2 connection to {endpoint.url} ({error})",
            fix="start Triton there, or use --transport tritonclient",
        ) from error
    return GrpcTransport(dialect, endpoint.url, connections, extra_headers(endpoint))
