"""Ways for an OpenAI-style server to be hostile or broken: raw bytes, and what comes of it.

A mode is the statuses that are right, and a script: bytes to send, seconds to wait, or a pair of
bytes and how often they are sent. After the script the connection is closed, unless it ends in
``KEEP``. The text of a prompt names its mode.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from tests.client.faulty import Mode, Step, Voice

KEEP: Final = -1.0
_ESCAPES: Final = "\x1b[2J\x1b]0;owned\x07\x9b31m\b\b\x7f\r\n"


def head(*fields: str, status: str = "200 OK", version: str = "1.1") -> bytes:
    lines = (f"HTTP/{version} {status}", *fields, "", "")
    return "\r\n".join(lines).encode("latin-1")


def sized(body: bytes, status: str = "200 OK", *fields: str) -> bytes:
    return head(f"content-length: {len(body)}", *fields, status=status) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(**said: Any) -> bytes:
    return b"data: " + json.dumps(said).encode() + b"\n\n"


def says(text: Any, reason: object = None) -> bytes:
    return event(choices=[{"index": 0, "text": text, "finish_reason": reason}])


def counts(value: str) -> bytes:
    return b'data: {"choices": [], "usage": {"completion_tokens": %b}}\n\n' % value.encode()


CHUNKED: Final = head("content-type: text/event-stream", "transfer-encoding: chunked")
CLOSING: Final = head("content-type: text/event-stream", "connection: close")
ONE: Final = says("one")
END: Final = says(" two", "stop") + b"data: [DONE]\n\n"
LAST: Final = b"0\r\n\r\n"


def streamed(*data: bytes) -> list[Step]:
    return [CHUNKED, *(chunk(each) for each in data), LAST, KEEP]


MODES: Final[dict[str, tuple[str, Sequence[Step]]]] = {
    # no HTTP, or no more of it than that
    "closes at once": ("error", []),
    "half a head": ("error", [b"HTTP/1.1 200 OK\r\ncontent-le"]),
    "half a head, then nothing": ("timeout", [b"HTTP/1.1 200 OK\r\ncontent-le", KEEP]),
    "another protocol": ("error", [b"SSH-2.0-OpenSSH_9.2\r\n"]),
    "HTTP/2": ("error", [b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x80" * 4]),
    "no status": ("error", [b"HTTP/1.1 \r\n\r\n"]),
    "an endless head": ("error", [b"HTTP/1.1 200 OK\r\n", (b"x-a: b\r\n" * 1000, 100), KEEP]),
    "an endless field": ("error", [b"HTTP/1.1 200 OK\r\nx: ", (b"a" * 9000, 100), KEEP]),
    "endless hints": ("error", [(head(status="103 Hints") * 1000, 100), KEEP]),
    "switching protocols": ("error", [head("upgrade: x", "connection: upgrade", status="101 S")]),
    "nothing": ("timeout", [KEEP]),
    # bodies that don't end as they say
    "two lengths": ("error", [head("content-length: 1", "content-length: 2"), b"ab"]),
    "a length below nothing": ("error", [head("content-length: -5"), b"abcde"]),
    "a length beyond all": ("timeout", [head(f"content-length: {2**62}"), b"a", KEEP]),
    "a length and chunks": ("error", [head("content-length: 9", "transfer-encoding: chunked")]),
    "less than its length": ("error", [head("content-length: 900"), b"{}"]),
    "a chunk of no size": ("cut", [CHUNKED, chunk(ONE), b"zz\r\n"]),
    "a chunk beyond all": ("cut", [CHUNKED, chunk(ONE), b"f" * 40 + b"\r\n"]),
    "an endless chunk size": ("error cut", [CHUNKED, chunk(ONE), b"5;", (b"a" * 9000, 100), KEEP]),
    "an endless trailer": (
        "ok error cut",
        [CHUNKED, chunk(ONE + END), b"0\r\n", (b"x-a: b\r\n" * 1000, 100), KEEP],
    ),
    "chunks without an end": ("timeout", [CHUNKED, chunk(ONE), KEEP]),
    "closed in mid-stream": ("cut", [CHUNKED, chunk(ONE)]),
    "closed in an event": ("cut", [CHUNKED, chunk(ONE + b'data: {"choi')]),
    "closed before the last chunk": ("ok", [CHUNKED, chunk(ONE + END)]),
    "until it closes": ("ok", [CLOSING, ONE, 0.05, END]),
    "of HTTP/1.0": ("ok", [head(version="1.0"), ONE + END]),
    # in one write: what comes later meets the next request, and no client can tell
    "a second answer": ("ok", [*streamed(ONE, END)[:-2], LAST + sized(b"{}"), KEEP]),
    "noise behind the end": ("ok", [*streamed(ONE, END)[:-2], LAST + b"\0\xff\r\n" * 99, KEEP]),
    # answers that are none
    "done alone": ("empty", streamed(b"data: [DONE]\n\n")),
    "an end alone": ("empty", streamed(says("", "stop"), counts("0"), b"data: [DONE]\n\n")),
    "no end": ("cut", streamed(ONE)),
    "nothing in it": ("error", [sized(b""), KEEP]),
    "no content": ("error", [head(status="204 No Content"), KEEP]),
    "an empty object": ("error", [sized(b"{}"), KEEP]),
    "a detail": ("error", [sized(b'{"detail": "not here"}'), KEEP]),
    "a page": ("error", [sized(b"<html>welcome</html>"), KEEP]),
    "packed": (
        "error",
        [sized(gzip.compress(ONE + END), "200 OK", "content-encoding: gzip"), KEEP],
    ),
    "zeros": ("error", [sized(b"\0" * 5000), KEEP]),
    "a deep list": ("error", streamed(b"data: " + b"[" * 100_000 + b"\n\n")),
    "a deep refusal": ("error", [sized(b"[" * 100_000, "400 Bad"), KEEP]),
    "an error event": ("error", streamed(ONE, b"event: error\ndata: out of blocks\n\n", LAST)),
    "an aborted end": ("error", streamed(ONE, says("", "abort"))),
    "a redirect": ("error", [sized(b"", "307 T", "location: file:///etc/passwd"), KEEP]),
    "busy for years": ("throttled", [sized(b"busy", "429 T", "retry-after: 999999999"), KEEP]),
    # what must not reach a terminal
    "escapes in a refusal": ("error", [sized(_ESCAPES.encode(), "500 E"), KEEP]),
    "escapes in an error": ("error", streamed(event(error={"message": _ESCAPES}))),
    "escapes in an end": ("error", streamed(says("", _ESCAPES))),
    "escapes in noise": ("error", [sized(b"{" + _ESCAPES.encode()), KEEP]),
    "escapes in a text": ("ok", streamed(says(_ESCAPES), END)),
    # too much, too little, too odd
    "a long answer": ("overlong", [CHUNKED, (chunk(ONE * 500), 200), KEEP]),
    "an endless answer": ("overlong", [CHUNKED, (chunk(b": on\n\n" * 9000), 300), KEEP]),
    "sighs": ("timeout", [CHUNKED, *[chunk(b": on\n\n"), 0.05] * 60, KEEP]),
    "odd frames": ("ok", streamed(event(choices=None), b"data:\n\n", event(error=""), ONE, END)),
    "lines that end in CR": ("ok", streamed(*(each.replace(b"\n", b"\r") for each in (ONE, END)))),
    "half a pair": ("ok", streamed(b'data: {"choices": [{"text": "\\ud800"}]}\n\n', END)),
    "a list of texts": ("ok", streamed(says([{"type": "text", "text": "one"}]), END)),
    "a number for a text": ("error", streamed(says(7), END)),
    "not a number": ("ok error", streamed(ONE, END, counts("NaN"))),
    "beyond a float": ("ok error", streamed(ONE, END, counts("1e999"))),
    "400 digits": ("ok error", streamed(ONE, END, counts("9" * 400))),
    "5,000 digits": ("ok error", streamed(ONE, END, counts("9" * 5000))),
    "fewer than none": ("ok", streamed(ONE, END, counts("-7"))),
}


async def _play(script: Sequence[Step], voice: Voice) -> None:
    if await voice.follow(script) != KEEP:
        voice.writer.close()


def modes() -> dict[str, Mode]:
    """For a ``FaultyServer``."""
    return {name: partial(_play, script) for name, (_, script) in MODES.items()}
