"""Requests over HTTP/1.1: a request's bytes out, the events of its answer and their times in.

Pieces are kept as they come from the socket, and cut into events when the answer is in; what an
event says is the dialect's business.
"""

from __future__ import annotations

import json
import re
from time import perf_counter_ns
from typing import Any, Protocol
from urllib.parse import urlsplit

from llm_perf.errors import UserError
from llm_perf.record import Exchange, Status
from llm_perf.transports import Dialect, Endpoint, extra_headers
from llm_perf.transports.events import (
    UNREADABLE,
    are_events,
    as_it_came,
    cut_events,
    join,
    said_in,
)
from llm_perf.transports.http1 import GARBAGE, Answer
from llm_perf.transports.http_pool import Pool, request_head
from llm_perf.transports.masked import Mask

_PATIENCE_S = 10.0
_ROOM = 2**24  # bytes of an answer before the clock starts
_OURS = ("content-length", "transfer-encoding", "connection")


class HttpDialect(Dialect, Protocol):
    """A dialect that knows an answer's end, since the end of an HTTP body says little."""

    def ended(self, message: bytes) -> bool:
        """Whether this message ends the answer; never raises."""
        ...


class HttpTransport:
    """A connection per stream, opened ahead and used again."""

    def __init__(self, server: Server, target: str, dialect: HttpDialect) -> None:
        self.dialect: HttpDialect = dialect
        self._pool = server.pool
        self._head = server.head("POST", target)
        self._mask = server.mask

    async def stream(self, request: bytes, seen: Exchange, timeout_s: float) -> None:
        """See ``Transport.stream``."""
        answer = Answer(seen)
        whole = b"%bcontent-length: %d\r\n\r\n%b" % (self._head, len(request), request)
        seen.sent_ns = perf_counter_ns()
        await self._pool.exchange(whole, answer, timeout_s)
        if seen.failure and seen.failure[0] is Status.TIMEOUT:
            seen.failure = Status.TIMEOUT, f"not answered within {timeout_s:g} s"
        if answer.status not in (0, 200):
            pieces, seen.messages = seen.messages, []
            told_s = retry_after(answer)
            # nobody waits longer for leave to ask than for an answer
            seen.retry_after_s = None if told_s is None else min(told_s, timeout_s)
            status = Status.ERROR if seen.retry_after_s is None else Status.THROTTLED
            seen.failure = status, f"HTTP {answer.status}: {said_in(self._mask.hide(join(pieces)))}"

    def read(self, seen: Exchange) -> None:
        """See ``Transport.read``: makes messages of the pieces of a body."""
        pieces, seen.messages = seen.messages, []
        hide, came = self._mask.hide, seen.failure is None
        streamed = are_events(pieces)
        if streamed:
            seen.messages = cut_events(pieces, came)
            if self._mask.secrets:
                seen.messages = [(at, hide(said)) for at, said in seen.messages]
        elif came and pieces:
            seen.messages = [(pieces[-1][0], hide(join(pieces)))]
        if came and not any(self.dialect.ended(each) for _, each in reversed(seen.messages)):
            last = as_it_came(seen.messages[-1][1]) if seen.messages else "nothing"
            seen.failure = Status.ERROR, f"the answer has no end; last came: {last}"
        if streamed and seen.failure and seen.failure[0] is Status.ERROR and seen.messages:
            seen.failure = Status.CUT, seen.failure[1]

    def so_far(self, seen: Exchange) -> list[bytes]:
        """See ``Transport.so_far``; of an answer that is no event stream nothing."""
        pieces = seen.messages if are_events(seen.messages) else []
        return [self._mask.hide(data) for _, data in cut_events(pieces, whole=False)]

    async def close(self) -> None:
        """See ``Transport.close``."""
        self._pool.close()


async def ask_once(endpoint: Endpoint, target: str, method: str = "GET") -> tuple[int, Any]:
    """Ask as ``Server.ask`` does, on a connection of its own."""
    server = Server(endpoint)
    try:
        return await server.ask(target, method)
    finally:
        server.pool.close()


def retry_after(answer: Answer) -> float | None:
    """Seconds that a 429 or 503 asks to wait (RFC 9110 §10.2.3); a date is none: clocks differ."""
    if answer.status not in (429, 503):
        return None
    told = answer.fields.get("retry-after", "").strip()
    return float(told) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", told, re.ASCII) else None


def _place(answer: Answer) -> str:
    """Where a redirect leads, without what may be secret of it."""
    try:
        to = urlsplit(answer.fields.get("location", ""))
        return f"{to.scheme}://{to.hostname}{(to.port and f':{to.port}') or ''}{to.path}"
    except ValueError:
        return "no URL"


class Server:
    """The server of an endpoint: its connections, and what every request to it begins with.

    Raises ``UserError`` as ``Pool`` and ``extra_headers`` do.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.pool = Pool(endpoint)
        self.endpoint = endpoint
        given = extra_headers(endpoint)
        if ours := sorted({name for name, _ in given}.intersection(_OURS)):
            raise UserError(f"the header {ours[0]} is set by llm_perf", fix="leave it out")
        self.mask = Mask(given)
        common = {"host": self.pool.authority, "user-agent": "llm_perf", "accept": "*/*"}
        common |= {"content-type": "application/json"}
        for name, _ in given:
            common.pop(name, None)
        self._fields = (*common.items(), *self.pool.fields, *given)

    def head(self, method: str, target: str) -> bytes:
        """The head of a request, but for the length of its body and the empty line."""
        return request_head(method, self.pool.origin + target, self._fields)

    async def ask(self, target: str, method: str = "GET") -> tuple[int, Any]:
        """Ask before the clock starts: status and JSON, or the text where it is none.

        Raises ``UserError`` when nobody answers.
        """
        answer = Answer(Exchange("", room=_ROOM))
        request = self.head(method, target) + b"content-length: 0\r\n\r\n"
        await self.pool.exchange(request, answer, _PATIENCE_S)
        if (failure := answer.seen.failure) is not None:
            why = "what listens there speaks no HTTP" if GARBAGE in failure[1] else failure[1]
            raise UserError(
                f"no HTTP server answers at {self.endpoint.base} ({why})",
                fix="start it, or give its host and HTTP port",
            )
        if 300 <= answer.status < 400:
            raise UserError(
                f"the server at {self.endpoint.base} redirects to {_place(answer)}",
                fix="give that with -u, if it is who you mean: neither prompts nor a key follow",
            )
        body = self.mask.hide(join(answer.seen.messages))
        try:
            return answer.status, json.loads(body)
        except UNREADABLE:
            return answer.status, said_in(body)
