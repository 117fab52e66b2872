"""Streams over HTTP/1.1: a request's bytes out, the events of its answer and their times in.

Pieces are kept as they come from the socket, and cut into events when the stream has ended; what
an event says is the dialect's business.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from time import perf_counter_ns
from typing import Any, Final, Protocol, TypeAlias

import aiohttp

from llm_perf.errors import UserError
from llm_perf.record import Exchange, Status
from llm_perf.transports import Dialect, Endpoint, extra_headers

Stamped: TypeAlias = list[tuple[int, bytes]]
_PATIENCE = aiohttp.ClientTimeout(total=10)
_IDLE_S = 3  # servers hang up after 5 s or more; a request must not meet that
_BUFFER = 2**20  # bytes; a smaller one stops reading while long answers come
_TEXT_SHOWN = 200  # characters
_LINE_END = re.compile(rb"\r\n|\n|\r")
_EVENTS = re.compile(rb"(\xef\xbb\xbf)?[\r\n]*(data|event|id|retry)?:")
_MARK_BYTES = 16  # enough to tell, in pieces of a byte too
_MARKS = 4  # messages at an answer's end, among which its mark is: finish_reason, usage, [DONE]
UNREADABLE: Final = (
    *(ValueError, TypeError, AttributeError, LookupError, RecursionError),
    OverflowError,  # a count of 1e999
)


class HttpDialect(Dialect, Protocol):
    """A dialect that knows an answer's end, since the end of an HTTP body says little."""

    def ended(self, message: bytes) -> bool:
        """Whether this message ends the answer; never raises."""
        ...


class HttpTransport:
    """A connection per stream, opened ahead and used again."""

    def __init__(self, session: aiohttp.ClientSession, url: str, dialect: HttpDialect) -> None:
        self.dialect: HttpDialect = dialect
        self._session = session
        self._url = url

    async def stream(self, request: bytes, seen: Exchange, timeout_s: float) -> None:
        """See ``Transport.stream``."""
        pieces = seen.messages  # until the stream has ended
        seen.sent_ns = perf_counter_ns()
        try:
            while not await self._try(request, pieces, seen, timeout_s):
                pass
        except asyncio.TimeoutError:
            seen.failure = Status.TIMEOUT, f"not answered within {timeout_s:g} s"
        except aiohttp.ClientConnectorError as error:
            seen.failure = Status.REFUSED, f"no connection: {error}"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            seen.failure = Status.ERROR, f"connection lost: {error or type(error).__name__}"
        seen.end_ns = seen.end_ns or perf_counter_ns()
        came, seen.messages = seen.failure is None, []
        if pieces and _EVENTS.match(_all(pieces[:_MARK_BYTES])):
            seen.messages = cut_events(pieces, came)
        elif came and pieces:
            seen.messages = [(pieces[-1][0], _all(pieces))]
        if came and not any(
            self.dialect.ended(each) for _, each in seen.messages[: -_MARKS - 1 : -1]
        ):
            last = as_it_came(seen.messages[-1][1]) if seen.messages else "nothing"
            seen.failure = Status.ERROR, f"the answer has no end; last came: {last}"
        if seen.failure and seen.failure[0] is Status.ERROR and seen.messages:
            seen.failure = Status.CUT, seen.failure[1]

    def so_far(self, seen: Exchange) -> list[bytes]:
        """See ``Transport.so_far``; of an answer that is no event stream nothing."""
        begun = _EVENTS.match(_all(seen.messages[:_MARK_BYTES]))
        return [data for _, data in cut_events(seen.messages, whole=False)] if begun else []

    async def _try(self, request: bytes, pieces: Stamped, seen: Exchange, timeout_s: float) -> bool:
        """Send once; ``False`` when it met a connection that the server had closed while it idled.

        Then nothing has come back, and the connection is gone from the pool: each new try meets
        another one, at last a fresh one.
        """
        left_s = timeout_s - (perf_counter_ns() - seen.sent_ns) / 1e9
        used: list[bool] = []
        answered = False
        try:
            async with self._session.post(
                self._url,
                data=request,
                timeout=aiohttp.ClientTimeout(total=max(left_s, 1e-3)),
                trace_request_ctx=used,
                allow_redirects=False,  # what is asked, and the key, are for this server alone
            ) as answer:
                answered = True
                _end_with_connection(answer)
                await _take(answer, pieces, seen)
                if answer.status != 200:
                    seen.retry_after_s = retry_after(answer)
                    status = Status.ERROR if seen.retry_after_s is None else Status.THROTTLED
                    seen.failure = status, f"HTTP {answer.status}: {_said(_all(pieces))}"
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if answered or not used or isinstance(error, aiohttp.ClientConnectorError):
                raise
            return False
        return True

    async def close(self) -> None:
        """See ``Transport.close``."""
        await self._session.close()


async def _take(answer: aiohttp.ClientResponse, pieces: Stamped, seen: Exchange) -> None:
    """Keep what comes, as long as there is room."""
    async for piece in answer.content.iter_any():
        at = perf_counter_ns()
        seen.room -= len(piece)
        if seen.room < 0:
            seen.overflow(at)
            answer.close()
            return
        pieces.append((at, piece))


def retry_after(answer: aiohttp.ClientResponse) -> float | None:
    """Seconds that a 429 or 503 asks to wait (RFC 9110 §10.2.3); a date is none: clocks differ."""
    if answer.status not in (429, 503):
        return None
    told = answer.headers.get("retry-after", "").strip()
    return float(told) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", told, re.ASCII) else None


def _end_with_connection(answer: aiohttp.ClientResponse) -> None:
    """Make garbage in mid-stream an error: aiohttp closes the connection and tells no reader."""
    content = answer.content

    def lost(closed: asyncio.Future[None]) -> None:
        if not closed.cancelled():
            closed.exception()  # looked at, so that asyncio doesn't print it
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the server sent garbage"))

    protocol = answer.connection.protocol if answer.connection else None
    if protocol is not None and protocol.closed is not None:
        protocol.closed.add_done_callback(lost)


async def _note_reuse(session: object, context: Any, params: object) -> None:
    """Tell a request that its connection isn't new."""
    del session, params
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.append(True)


def open_session(endpoint: Endpoint) -> aiohttp.ClientSession:
    """A session with the endpoint's headers and TLS; raises ``UserError``."""
    tls: ssl.SSLContext | bool = True
    if endpoint.tls is not None:
        try:
            tls = ssl.create_default_context(cafile=endpoint.tls.ca)
            if endpoint.tls.cert is not None:
                tls.load_cert_chain(endpoint.tls.cert, endpoint.tls.key)
        except (OSError, ssl.SSLError) as error:
            raise UserError(
                f"a TLS file can't be read: {error}", fix="give PEM files with --ssl-*"
            ) from error
    traces = aiohttp.TraceConfig()
    traces.on_connection_reuseconn.append(_note_reuse)
    return aiohttp.ClientSession(
        trace_configs=[traces],
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S, ssl=tls),
        headers={"content-type": "application/json", **dict(extra_headers(endpoint))},
        read_bufsize=_BUFFER,
        auto_decompress=False,
        skip_auto_headers=("accept-encoding",),
    )


async def ask(
    session: aiohttp.ClientSession, endpoint: Endpoint, path: str, method: str = "GET"
) -> tuple[int, Any]:
    """A call before the clock starts: status and JSON, or the text where it is none.

    Raises ``UserError`` when nobody answers.
    """
    try:
        async with session.request(
            method, endpoint.base + path, timeout=_PATIENCE, allow_redirects=False
        ) as answer:
            body = await answer.read()
            status = answer.status
    except (aiohttp.ClientError, OSError, ValueError, asyncio.TimeoutError) as error:
        foreign = isinstance(error, aiohttp.ClientResponseError)
        why = "what listens there speaks no HTTP" if foreign else str(error) or "no answer in time"
        raise UserError(
            f"no HTTP server answers at {endpoint.base} ({why})",
            fix="start it, or give its host and HTTP port with -u",
        ) from error
    try:
        return status, json.loads(body)
    except ValueError:
        return status, _said(body)


async def warm(session: aiohttp.ClientSession, endpoint: Endpoint, path: str, streams: int) -> None:
    """Open a connection per stream, so that no request waits for one; any answer will do."""
    asked = [ask(session, endpoint, path) for _ in range(streams)]
    await asyncio.gather(*asked, return_exceptions=True)


def cut_events(pieces: Stamped, whole: bool) -> Stamped:
    """The data of server-sent events (WHATWG HTML §9.2), each at the time of its last byte.

    The end of a ``whole`` stream ends its last event too.
    """
    if whole and pieces:
        pieces = [*pieces, (pieces[-1][0], b"\n\n")]
    events: Stamped = []
    rest, data, failed, returned = b"", [], False, False
    for at, piece in pieces:
        if returned:  # the LF of a CR that has ended its line already
            piece = piece.removeprefix(b"\n")
        returned = piece.endswith(b"\r")
        *lines, rest = _LINE_END.split(rest + piece)
        for line in lines:
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
            elif name == b"event":
                failed = value.strip() == b"error"
            elif not line:
                if data:
                    said = b"\n".join(data)
                    events.append((at, _as_error(said) if failed else said))
                data, failed = [], False
    return events


def _as_error(data: bytes) -> bytes:
    """What an ``event: error`` says, as an answer that says it."""
    return json.dumps({"error": _said(data)}).encode()


def as_it_came(message: bytes) -> str:
    """The beginning of what a server sent, for a person."""
    return repr(message.decode(errors="replace")[:_TEXT_SHOWN])


def whole(value: Any) -> int | None:
    """A count or a time of a server's JSON; what isn't one (NaN, a text, 1e999) is left out."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _all(pieces: Stamped) -> bytes:
    return b"".join(piece for _, piece in pieces)


def error_text(answer: Any) -> str | None:
    """What a JSON answer says is wrong, if it does: OpenAI's shape, vLLM's, or Triton's."""
    if not isinstance(answer, dict):
        return None
    error = answer.get("error")
    if isinstance(error, dict):
        error = error.get("message", error)
    elif answer.get("object") == "error":
        error = answer.get("message", answer)
    elif "choices" not in answer:
        error = error or answer.get("detail")  # FastAPI's shape
    return str(error) if error else None


def _said(body: bytes) -> str:
    """The error in an answer, or its beginning."""
    try:
        text = error_text(json.loads(body))
    except ValueError:
        text = None
    return text or body.decode(errors="replace")[:_TEXT_SHOWN] or "no text"
