"""Ways for a Triton to be hostile or broken over gRPC: raw HTTP/2 frames, and what comes of it.

A mode is the statuses that are right, and a script of what is sent: whole frames, seconds to wait,
or a pair of frames and how often they are sent. ``at`` is the stream's number. After the script the
connection stays. The text of a prompt names its mode.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from tritonclient.grpc import service_pb2

from llm_perf.transports import frames as h2
from llm_perf.transports.frames import encode_fields, frame
from tests.client.faulty import Mode, Step, Voice
from tests.client.scripted import FINAL, Say, response

Script = Callable[[int], Sequence[Step]]
CLOSE: Final = -1.0
_ESCAPES: Final = "\x1b[2J\x1b]0;owned\x07\b\b\x7f\r\n"
_PERCENT: Final = "%1b[2J%1b]0;owned%07%08%9b31m"
_HEAD: Final = encode_fields(((":status", "200"), ("content-type", "application/grpc")))
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7


def start(at: int) -> bytes:
    return frame(HEADERS, h2.END_HEADERS, at, _HEAD)


def fields(at: int, *pairs: tuple[str, str], flags: int = h2.END_STREAM) -> bytes:
    return frame(HEADERS, h2.END_HEADERS | flags, at, encode_fields(pairs))


def message(body: bytes, packed: int = 0) -> bytes:
    return bytes([packed]) + len(body).to_bytes(4, "big") + body


def data(at: int, payload: bytes, flags: int = 0) -> bytes:
    return b"".join(
        frame(DATA, flags, at, payload[i : i + 16_000]) for i in range(0, len(payload), 16_000)
    )


def says(at: int, text: str = "one", count: int = 1, final: bool = False) -> bytes:
    return data(at, message(response(Say(text, count, final)).SerializeToString()))


def trouble(at: int, text: str) -> bytes:
    said = service_pb2.ModelStreamInferResponse(error_message=text)
    return data(at, message(said.SerializeToString()))


def altered(at: int, change: Callable[[Any], object]) -> bytes:
    said = response(Say("one", 1))
    change(said.infer_response)
    return data(at, message(said.SerializeToString()))


def end(at: int) -> bytes:
    last = data(at, message(response(FINAL).SerializeToString()))
    return last + fields(at, ("grpc-status", "0"))


def good(*between: Callable[[int], bytes]) -> Script:
    """A whole answer with something odd in it."""
    return lambda at: [
        start(at),
        says(at),
        *(odd(at) for odd in between),
        says(at, " two"),
        end(at),
    ]


def refused(*pairs: tuple[str, str]) -> Script:
    return lambda at: [fields(at, (":status", "200"), *pairs)]


def broken(*odd: Callable[[int], bytes]) -> Script:
    """One message, then something that no peer may send."""
    return lambda at: [start(at), says(at), 0.05, *(each(at) for each in odd), 0.1, CLOSE]


def reset(code: int) -> Script:
    return lambda at: [start(at), frame(RST, 0, at, struct.pack(">I", code))]


def goaway(last: int, words: bytes) -> bytes:
    return frame(GOAWAY, 0, 0, struct.pack(">II", last, 0) + words)


MODES: Final[dict[str, tuple[str, Script]]] = {
    # calls that end without an answer
    "no status": ("error", lambda at: [start(at), frame(DATA, h2.END_STREAM, at, b"")]),
    "a status that is none": ("error", refused(("grpc-status", "abc"))),
    "unavailable": ("error", refused(("grpc-status", "14"), ("grpc-message", "busy"))),
    "deadline": ("timeout", refused(("grpc-status", "4"), ("grpc-message", "late"))),
    "escapes in a status": ("error", refused(("grpc-status", "2"), ("grpc-message", _PERCENT))),
    "a page": (
        "error cut",
        lambda at: [
            fields(at, (":status", "502"), ("content-type", "text/html"), flags=0),
            frame(DATA, h2.END_STREAM, at, b"<html>bad gateway</html>"),
        ],
    ),
    "refused": ("refused", reset(7)),
    "reset": ("error", reset(2)),
    "reset with no code": ("error", reset(0xFFFFFFFF)),
    "too calm": ("error", reset(11)),
    "nothing": ("timeout", lambda at: []),
    "a head alone": ("timeout", lambda at: [start(at)]),
    "one, then nothing": ("timeout", lambda at: [start(at), says(at)]),
    "half a frame": ("cut", lambda at: [start(at), says(at), says(at)[:-3], 0.05, CLOSE]),
    "reset in mid-stream": ("cut", lambda at: [start(at), says(at), 0.05, *reset(2)(at)[1:]]),
    "closed in mid-stream": ("cut", lambda at: [start(at), says(at), 0.05, CLOSE]),
    "closed at once": ("error cut refused", lambda at: [CLOSE]),
    # messages that are none
    "an empty answer": ("empty", lambda at: [start(at), end(at)]),
    "an end without the final one": (
        "ok",
        lambda at: [start(at), says(at), fields(at, ("grpc-status", "0"))],
    ),
    "half a message": (
        "cut error",
        lambda at: [start(at), data(at, message(b"x" * 99)[:50]), end(at)],
    ),
    "a message beyond all": (
        "cut error",
        lambda at: [start(at), data(at, b"\0\xff\xff\xff\xff" + b"x" * 99), end(at)],
    ),
    "packed": (
        "error",
        lambda at: [start(at), data(at, message(b"\x1f\x8b" * 20, packed=1)), end(at)],
    ),
    "no protobuf": ("error", lambda at: [start(at), data(at, message(b"\xff" * 40)), end(at)]),
    "an error": ("error", lambda at: [start(at), trouble(at, "out of blocks"), end(at)]),
    "escapes in an error": ("error", lambda at: [start(at), trouble(at, _ESCAPES), end(at)]),
    "escapes in a text": ("ok", good(lambda at: says(at, _ESCAPES))),
    "a tensor cut short": (
        "error",
        lambda at: [
            start(at),
            altered(at, lambda said: said.raw_output_contents.__setitem__(0, b"\x09\0")),
            end(at),
        ],
    ),
    "a tensor of another kind": (
        "ok error",
        lambda at: [
            start(at),
            altered(at, lambda said: setattr(said.outputs[1], "datatype", "WORDS")),
            end(at),
        ],
    ),
    "tensors without values": (
        "ok empty",
        lambda at: [
            start(at),
            altered(at, lambda said: said.raw_output_contents.__delitem__(slice(None))),
            end(at),
        ],
    ),
    "text that is none": (
        "ok",
        lambda at: [
            start(at),
            altered(
                at, lambda said: said.raw_output_contents.__setitem__(0, b"\x02\0\0\0\xff\xfe")
            ),
            end(at),
        ],
    ),
    "fewer than none": ("ok", good(lambda at: says(at, "x", -5))),
    "more than any": ("ok", good(lambda at: says(at, "x", 2**31 - 1))),
    # too much
    "a long answer": ("overlong", lambda at: [start(at), (says(at, "x" * 9000), 500)]),
    "empty frames": (
        "timeout",
        lambda at: [start(at), says(at), (frame(DATA, 0, at, b"") * 1000, 200)],
    ),
    "many heads": ("ok", good(lambda at: start(at) * 500)),
    "many settings": ("ok", good(lambda at: frame(SETTINGS, 0, 0, b"") * 500)),
    "many pings": ("ok", good(lambda at: frame(PING, 0, 0, b"12345678") * 500)),
    # odd, but allowed
    "in single bytes": ("ok", lambda at: [bytes([each]) for part in good()(at) for each in part]),  # type: ignore[union-attr]
    "a word before the head": (
        "ok",
        lambda at: [fields(at, (":status", "103"), flags=0), *good()(at)],
    ),
    "a frame of no known kind": ("ok", good(lambda at: frame(0xB7, 0xFF, at, b"x" * 50))),
    "data of no known stream": ("ok", good(lambda at: frame(DATA, 0, at + 1000, b"x" * 50))),
    "a window of nothing": ("ok error cut", good(lambda at: frame(8, 0, at, struct.pack(">I", 0)))),
    "padding": ("ok", good(lambda at: frame(DATA, h2.PADDED, at, b"\x04\0\0\0\0"))),
    "two ends": ("ok", lambda at: [*good()(at), fields(at, ("grpc-status", "13"))]),
    # what no peer may send
    "a frame beyond its limit": (
        "cut",
        broken(
            lambda at: frame(DATA, 0, at, b"")[:0] + b"\xff\xff\xff\0\0" + struct.pack(">I", at)
        ),
    ),
    "padding beyond its frame": ("cut", broken(lambda at: frame(DATA, h2.PADDED, at, b"\xff\0"))),
    "a window beyond all": (
        "cut",
        broken(lambda at: frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**32 - 1))),
    ),
    "settings of half a size": ("cut", broken(lambda at: frame(SETTINGS, 0, 0, b"\0\4\0"))),
    "a promise": (
        "cut",
        broken(lambda at: frame(5, h2.END_HEADERS, at, struct.pack(">I", 2) + _HEAD)),
    ),
    "what continues nothing": ("cut", broken(lambda at: frame(9, h2.END_HEADERS, at, _HEAD))),
    "an endless head": (
        "cut",
        lambda at: [
            start(at),
            says(at),
            0.05,
            frame(HEADERS, 0, at, b"x"),
            (frame(9, 0, at, b"x" * 16_000), 100),
        ],
    ),
    "a head of noise": ("cut", broken(lambda at: frame(HEADERS, h2.END_HEADERS, at, b"\xff" * 60))),
    "noise": ("cut", broken(lambda at: b"\0\xff\xee garbage \r\n" * 100)),
    "going away at once": ("refused", lambda at: [goaway(0, b"bye"), 0.1, CLOSE]),
    "going away with escapes": ("refused", lambda at: [goaway(0, _ESCAPES.encode()), 0.1, CLOSE]),
    "going away, and gone": (
        "cut",
        lambda at: [start(at), says(at), goaway(at, b"bye"), 0.1, CLOSE],
    ),
    "going away, and done": ("ok", lambda at: [start(at), says(at), goaway(at, b"bye"), end(at)]),
}


async def _play(script: Script, voice: Voice) -> None:
    if await voice.follow(script(voice.number)) == CLOSE:  # type: ignore[attr-defined]
        voice.writer.close()


def modes() -> dict[str, Mode]:
    """For a ``FaultyServer``."""
    return {name: partial(_play, script) for name, (_, script) in MODES.items()}
