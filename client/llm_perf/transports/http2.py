"""A client's side of HTTP/2 over plain TCP, for one job: many small streamed answers, timed.

Bytes of requests go in; for each stream come out the time and payload of every DATA frame, header
fields, and how it ended. One clock reading per socket read, nothing parsed beyond frames. Speaks
RFC 9113 with prior knowledge. Knows nothing of gRPC.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from time import perf_counter_ns
from typing import Protocol, cast

from llm_perf.transports import frames as h2
from llm_perf.transports.frames import DATA, END_STREAM, LARGEST, PADDED, Fields, frame, numbers
from llm_perf.transports.sending import Outbox

_HEAD = struct.Struct(">IBI")  # before each payload: its length and kind, flags, stream
_MOST_OWED = 2**20  # bytes of replies that a server asks for and doesn't read
_TOP_UP = 2**30  # bytes after which the connection's window is opened again


class Stream(Protocol):
    """Who is told of one stream. Nothing here may raise."""

    def on_data(self, at: int, payload: bytes) -> None:
        """A DATA frame came, at ``perf_counter_ns`` time ``at``."""

    def on_fields(self, fields: Fields) -> None:
        """Header fields or trailers came."""

    def on_end(self, at: int, error: str | None, refused: bool) -> None:
        """The stream is over; ``error`` unless the server ended it in order.

        ``refused``: the server says that it did not begin to work on it.
        """


class Connection(asyncio.Protocol):
    """One TCP connection. Use :func:`open_connection`."""

    def __init__(self) -> None:
        self.failure: str | None = None
        """why no new stream can be opened, once that is so"""
        self.max_streams = LARGEST
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """done when the server's settings have come"""
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._streams: dict[int, Stream] = {}
        self._next = 1
        self._reader = h2.FieldReader()
        self._outbox = Outbox()
        self._owed = 0
        self._taken = 0  # bytes received since the connection's window was opened
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._handlers = {
            DATA: self._on_padded_data,
            h2.HEADERS: self._on_headers,
            h2.CONTINUATION: self._on_headers,
            h2.RST_STREAM: self._on_reset,
            h2.SETTINGS: self._on_settings,
            h2.PING: self._on_ping,
            h2.GOAWAY: self._on_goaway,
            h2.WINDOW_UPDATE: self._on_window,
        }

    @property
    def full(self) -> bool:
        """Whether the server's limit of concurrent streams is reached."""
        return len(self._streams) >= self.max_streams

    async def slot(self) -> None:
        """Wait while the connection is full."""
        while self.failure is None and self.full:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                self._wake()  # the turn may have been ours
                raise

    def send(self, block: bytes, body: bytes, stream: Stream) -> int:
        """Open a stream with a whole request and half-close it; returns its number.

        ``block`` is from ``encode_fields``. Raises ``ConnectionError`` when the connection takes
        no more streams.
        """
        number = self._next
        if number > LARGEST:
            self.failure = self.failure or "out of stream numbers"
        if self.failure is not None:
            raise ConnectionError(self.failure)
        self._next += 2
        self._streams[number] = stream
        self._write(
            frame(h2.HEADERS, h2.END_HEADERS, number, block) + self._outbox.put(number, body)
        )
        return number

    def cancel(self, number: int) -> None:
        """Reset a stream; it is told nothing more."""
        if self._streams.pop(number, None) is not None:
            self._outbox.forget(number)
            self._write(frame(h2.RST_STREAM, 0, number, numbers(h2.CANCEL)))
            self._wake()

    def close(self) -> None:
        """Hang up; streams that are still open end with an error."""
        if self._transport is not None:
            self._transport.close()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet: the largest windows, since one that closes would slow the server."""
        self._transport = transport = cast("asyncio.Transport", transport)
        wishes = ((h2.HEADER_TABLE_SIZE, 0), (h2.ENABLE_PUSH, 0), (h2.INITIAL_WINDOW, LARGEST))
        grow = frame(h2.WINDOW_UPDATE, 0, 0, numbers(LARGEST - h2.DEFAULT_WINDOW))
        transport.write(h2.PREFACE + h2.settings(wishes) + grow)

    def data_received(self, data: bytes) -> None:
        """Cut a socket read into frames, all with one time."""
        at = perf_counter_ns()
        if self._buffer:
            data = self._buffer + data
        start, size, taken, streams = 0, len(data), 0, self._streams
        while size - start >= _HEAD.size:  # the hot path: all of it is here and in on_data
            word, flags, number = _HEAD.unpack_from(data, start)
            begin = start + _HEAD.size
            end = begin + (word >> 8)
            if end > size:
                if word >> 8 > h2.DEFAULT_FRAME:
                    self._fail(at, "the server sent garbage: a frame over the size limit")
                    return
                break
            if word & 0xFF == DATA and not flags & PADDED:
                taken += word >> 8
                if (stream := streams.get(number & LARGEST)) is not None:
                    stream.on_data(at, data[begin:end])
                    if flags & END_STREAM:
                        self._end(number & LARGEST, at, None)
            elif not self._on_frame(at, word & 0xFF, flags, number & LARGEST, data[begin:end]):
                return
            start = end
        self._buffer = data[start:] if start < size else b""
        self._taken += taken
        if self._taken > _TOP_UP:
            self._write(frame(h2.WINDOW_UPDATE, 0, 0, numbers(self._taken)))
            self._taken = 0

    def connection_lost(self, exc: Exception | None) -> None:
        """End every stream that is still open."""
        self._fail(perf_counter_ns(), f"connection lost{f': {exc}' if exc else ''}")

    # Frames other than plain DATA. Handlers raise one of ``h2.UNREADABLE`` for garbage.

    def _on_frame(self, at: int, kind: int, flags: int, number: int, payload: bytes) -> bool:
        try:
            if self._reader.unfinished and kind != h2.CONTINUATION:
                raise ValueError("a header block that is not continued")
            if kind == h2.PUSH_PROMISE:
                raise ValueError("PUSH_PROMISE, which our settings forbid")
            if (handle := self._handlers.get(kind)) is not None:  # §5.5: others are ignored
                handle(at, kind, flags, number, payload)
        except h2.UNREADABLE as error:
            self._fail(at, f"the server sent garbage: {error}")
            return False
        return True

    def _on_padded_data(self, at: int, _kind: int, flags: int, number: int, payload: bytes) -> None:
        self._taken += len(payload)
        if (stream := self._streams.get(number)) is not None:
            stream.on_data(at, h2.unpad(payload) if flags & PADDED else payload)
            if flags & END_STREAM:
                self._end(number, at, None)

    def _on_headers(self, at: int, kind: int, flags: int, number: int, payload: bytes) -> None:
        read = self._reader.headers if kind == h2.HEADERS else self._reader.continuation
        if (block := read(flags, number, payload)) is not None:
            fields, flags = block
            if (stream := self._streams.get(number)) is not None:
                stream.on_fields(fields)
                if flags & END_STREAM:
                    self._end(number, at, None)

    def _on_settings(self, _at: int, _kind: int, flags: int, _number: int, payload: bytes) -> None:
        if flags & h2.ACK:
            return
        for key, value in struct.iter_unpack(">HI", payload):
            if key == h2.MAX_STREAMS:
                self.max_streams = value
            else:
                self._outbox.set(key, value)
        self._reply(frame(h2.SETTINGS, h2.ACK, 0, b""))
        self._write(self._outbox.more())
        self._wake()
        if not self.ready.done():
            self.ready.set_result(None)

    def _on_ping(self, _at: int, _kind: int, flags: int, _number: int, payload: bytes) -> None:
        if not flags & h2.ACK:
            self._reply(frame(h2.PING, h2.ACK, 0, payload))

    def _on_window(self, _at: int, _kind: int, _flags: int, number: int, payload: bytes) -> None:
        self._outbox.widen(number, struct.unpack(">I", payload)[0] & LARGEST)
        self._write(self._outbox.more())

    def _on_reset(self, at: int, _kind: int, _flags: int, number: int, payload: bytes) -> None:
        (code,) = struct.unpack(">I", payload)
        refused = code == h2.REFUSED_STREAM
        self._end(number, at, f"the server reset the stream (HTTP/2 code {code})", refused)

    def _on_goaway(self, at: int, _kind: int, _flags: int, _number: int, payload: bytes) -> None:
        last, code = struct.unpack_from(">II", payload)
        why = payload[8:].decode(errors="replace")
        self.failure = f"the server is going away (HTTP/2 code {code}{f', {why}' if why else ''})"
        for number in [each for each in self._streams if each > last & LARGEST]:
            self._end(number, at, self.failure, refused=True)
        self._wake()
        if not self._streams:
            self.close()

    # Ends.

    def _end(self, number: int, at: int, error: str | None, refused: bool = False) -> None:
        stream = self._streams.pop(number, None)
        if stream is None:
            return
        if self._outbox.forget(number) and error is None:  # answered before it was all asked
            self._write(frame(h2.RST_STREAM, 0, number, numbers(h2.CANCEL)))
        stream.on_end(at, error, refused)
        if self._waiting:
            self._wake()
        if self.failure is not None and not self._streams:
            self.close()

    def _fail(self, at: int, error: str) -> None:
        """Give the connection up."""
        self.failure = self.failure or error
        for number in list(self._streams):
            self._end(number, at, error)
        self._wake()
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(error))
        if self._transport is not None:
            self._transport.abort()  # who doesn't read would keep it from closing

    def _wake(self) -> None:
        room = len(self._waiting) if self.failure else self.max_streams - len(self._streams)
        while self._waiting and room > 0:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                room -= 1

    def _reply(self, data: bytes) -> None:
        """Write what the server has asked for, as long as it reads.

        Raises ``ValueError`` when it doesn't.
        """
        if self._transport is not None and not self._transport.get_write_buffer_size():
            self._owed = 0
        self._owed += len(data)
        if self._owed > _MOST_OWED:
            raise ValueError("PINGs whose answers it doesn't read")
        self._write(data)

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


async def open_connection(host: str, port: int, timeout_s: float) -> Connection:
    """Connect and exchange settings.

    Raises ``OSError`` when nobody listens, and ``ConnectionError`` or ``TimeoutError`` when who
    listens doesn't speak HTTP/2.
    """

    async def connect() -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, host, port)
        try:
            await connection.ready
        except BaseException:
            connection.close()
            raise
        return connection

    return await asyncio.wait_for(connect(), timeout_s)
