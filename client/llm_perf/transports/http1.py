"""A client's side of one HTTP/1.1 connection: a request's bytes out, its answer and times in.

Bytes are stamped where the socket is read; httptools (llhttp) takes the framing off, and what a
body says is nobody's business here. Bodies end as RFC 9112 §6.3 says: by length, by chunk, by
close.
"""

from __future__ import annotations

import asyncio
from time import perf_counter_ns
from typing import cast

import httptools

from llm_perf.record import Exchange, Status

_MOST_BARE = 2**18  # bytes without one of a body: heads, trailers, chunk extensions
GARBAGE = "the server sent garbage"


class Answer:
    """One answer as it comes.

    ``seen`` gets the pieces of its body, each with its time, its end, and why it failed.
    ``status`` is 0 until the head is here; ``fields`` are the head's, names in lower case.
    ``unheard``: the connection was lost before a byte of it came.
    """

    __slots__ = ("done", "fields", "seen", "status", "tunnel", "unheard")

    def __init__(self, seen: Exchange, *, tunnel: bool = False) -> None:
        self.seen = seen
        self.tunnel = tunnel
        """whether it answers a CONNECT, so that it has no body (RFC 9110 §9.3.6)"""
        self.begin()

    def begin(self) -> None:
        """Be new: nothing of it has come."""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.fields: dict[str, str] = {}
        self.status = 0
        self.unheard = False
        self.seen.failure = None


class Connection(asyncio.Protocol):
    """One connection, for one request at a time; kept for the next where the server keeps it."""

    def __init__(self) -> None:
        self.used_ns = 0
        """when its last answer was whole; 0 before the first"""
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._spent = False  # fit for no further request
        self._at = self._bare = self._room = 0
        self._interim = self._until_close = False
        self._fields: list[tuple[bytes, bytes]] = []

    @property
    def free(self) -> bool:
        """Whether it takes a request."""
        return self._answer is None and not self._spent

    @property
    def transport(self) -> asyncio.Transport:
        """What asyncio has given us."""
        assert self._transport is not None
        return self._transport

    async def exchange(self, request: bytes, answer: Answer, timeout_s: float) -> None:
        """Send a request and wait until ``answer`` is over, one way or the other."""
        seen = answer.seen
        self._answer = answer
        self._note, self._room, self._bare = seen.messages.append, seen.room, 0
        if self._transport is None:  # hung up before it was asked, as on what speaks first
            self._at = perf_counter_ns()
            self._fail("connection lost before anything was asked")
            return
        timer = asyncio.get_running_loop().call_later(timeout_s, self._expire)
        try:
            self.transport.write(request)
            await answer.done
        finally:
            timer.cancel()
            if self._answer is not None:  # cancelled
                self._answer = None
                self.hang_up()

    def hang_up(self) -> None:
        """Close the connection now."""
        self._spent = True
        if self._transport is not None:
            self._transport.abort()

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what bytes go out by."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Stamp a socket read, and hand its bytes to the parser."""
        self._at = perf_counter_ns()
        if self._answer is None:  # nothing was asked
            self.hang_up()
            return
        self._bare += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"{GARBAGE}: {error}")
            return
        except httptools.HttpParserUpgrade:
            self._fail(f"{GARBAGE}: another protocol, which nobody asked for")
            return
        if self._bare > _MOST_BARE:
            self._fail(f"{GARBAGE}: a head without an end")

    def connection_lost(self, exc: Exception | None) -> None:
        """Say whether that was an answer's end."""
        self._at = perf_counter_ns()
        self._spent = True
        self._transport = None
        del self._parser  # these know us: without a collector none would go
        answer = self._answer
        if answer is None:
            return
        if self._until_close and exc is None:
            self._end()
            return
        answer.unheard = not (answer.status or self._bare)
        self._fail(f"connection lost{f': {exc}' if exc else ''}")

    # What the parser calls.

    def on_message_begin(self) -> None:
        """Be wary of an answer to nothing, right behind one that was asked for."""
        if self._answer is None:
            self._spent, self._room = True, -1
        self._fields = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field of the head; trailers fall away with the list."""
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Read the head, unless it is one before the answer's (1xx)."""
        status = self._parser.get_status_code()
        self._interim = status < 200
        answer = self._answer
        if self._interim or answer is None:
            return
        answer.status = status
        answer.fields = {name.decode("latin-1"): v.decode("latin-1") for name, v in self._fields}
        framed = answer.fields.get("transfer-encoding", "").lower().endswith("chunked")
        self._until_close = not framed and "content-length" not in answer.fields
        if answer.tunnel and 200 <= status < 300:
            self._end()

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body, as long as there is room."""
        self._bare = 0
        self._room -= len(body)
        if self._room >= 0:
            self._note((self._at, body))
        elif self._answer is not None:
            self._note((self._at, body[: self._room]))
            answer, self._answer = self._answer, None
            answer.seen.overflow(self._at)
            self._tell(answer)
            self.hang_up()

    def on_message_complete(self) -> None:
        """End the answer; the connection is kept if both sides have nothing more to say."""
        if self._interim:
            return
        unsent = self.transport.get_write_buffer_size() > 0  # answered before it was all asked
        self._spent = self._spent or unsent or not self._parser.should_keep_alive()
        self._end()

    # Ends.

    def _end(self) -> None:
        answer, self._answer = self._answer, None
        self._until_close = False
        if answer is not None:
            self.used_ns = answer.seen.end_ns = self._at
            self._tell(answer)

    def _fail(self, text: str, status: Status = Status.ERROR) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.seen.end_ns = self._at
            answer.seen.failure = status, text
            self._tell(answer)
        self.hang_up()

    def _expire(self) -> None:
        self._at = perf_counter_ns()
        self._fail("not answered in time", Status.TIMEOUT)

    @staticmethod
    def _tell(answer: Answer) -> None:
        if not answer.done.done():
            answer.done.set_result(None)
