"""What a body of server-sent events or JSON says, once it is in: pieces and times in, events out.

Pure; what an event means is the dialect's business.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, TypeAlias

Stamped: TypeAlias = list[tuple[int, bytes]]
_TEXT_SHOWN = 200  # characters
_EVENTS = re.compile(rb"(\xef\xbb\xbf)?[\r\n]*(data|event|id|retry)?:")
_MARK_BYTES = 16  # enough to tell, in pieces of a byte too
_DATA, _END = b"data: ", b"\n\n"
UNREADABLE: Final = (
    *(ValueError, TypeError, AttributeError, LookupError, RecursionError),
    OverflowError,  # a count of 1e999
)


def join(pieces: Stamped) -> bytes:
    """All bytes of a body."""
    return b"".join([piece for _, piece in pieces])


def are_events(pieces: Stamped) -> bool:
    """Whether a body begins like server-sent events."""
    return _EVENTS.match(join(pieces[:_MARK_BYTES])) is not None


def cut_events(pieces: Stamped, whole: bool) -> Stamped:
    """The data of server-sent events (WHATWG HTML §9.2), each at the time of its last byte.

    The end of a ``whole`` stream ends its last event too.
    """
    if whole and pieces:
        pieces = [*pieces, (pieces[-1][0], _END)]
    events: Stamped = []
    reader = _Reader(events)
    for at, piece in pieces:
        size = len(piece)
        plain = reader.between and piece.startswith(_DATA) and piece.find(b"\n") == size - 2
        if plain and piece.endswith(_END) and b"\r" not in piece:  # as a rule a piece is an event
            events.append((at, piece[len(_DATA) : -len(_END)]))
        else:
            reader.read(at, piece)
    return events


class _Reader:
    """Lines that come in any pieces, made into ``events``."""

    def __init__(self, events: Stamped) -> None:
        self.between = True
        """whether nothing is left over from the pieces before"""
        self._events = events
        self._rest = b""
        self._data: list[bytes] = []
        self._failed = self._returned = False

    def read(self, at: int, piece: bytes) -> None:
        if self._returned:  # the LF of a CR that has ended its line already
            piece = piece.removeprefix(b"\n")
        self._returned = piece.endswith(b"\r")
        lines = (self._rest + piece).splitlines(keepends=True)
        self._rest = lines.pop() if lines and not lines[-1].endswith((b"\n", b"\r")) else b""
        for line in lines:
            self._line(at, line.rstrip(b"\r\n"))
        self.between = not (self._rest or self._data or self._failed or self._returned)

    def _line(self, at: int, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif name == b"event":
            self._failed = value.strip() == b"error"
        elif not line:
            if self._data:
                said = b"\n".join(self._data)
                self._events.append((at, _as_error(said) if self._failed else said))
            self._data, self._failed = [], False


def _as_error(data: bytes) -> bytes:
    """What an ``event: error`` says, as an answer that says it."""
    return json.dumps({"error": said_in(data)}).encode()


def as_it_came(message: bytes) -> str:
    """The beginning of what a server sent, for a person."""
    return repr(message.decode(errors="replace")[:_TEXT_SHOWN])


def whole(value: Any) -> int | None:
    """A count or a time of a server's JSON; what isn't one (NaN, a text, 1e999) is left out."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


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


def said_in(body: bytes) -> str:
    """The error in an answer, or its beginning."""
    try:
        text = error_text(json.loads(body))
    except UNREADABLE:
        text = None
    return text or body.decode(errors="replace")[:_TEXT_SHOWN] or "no text"
