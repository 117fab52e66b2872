"""Our HTTP/1.1 reader against h11: what it sends, however cut, comes out."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_perf.record import Exchange, Status
from llm_perf.transports.events import join
from llm_perf.transports.http1 import Answer, Connection

from .test_http2 import Wire


class Tcp(Wire):
    """A wire that says how much of it isn't written, and tells of its end."""

    def __init__(self, ours: Connection) -> None:
        super().__init__()
        self.ours = ours
        ours.connection_made(self)

    def write(self, data: bytes) -> None:  # type: ignore[override]
        """All of it goes out."""

    def abort(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self.ours.connection_lost, None)


async def hear(stream: bytes, cuts: Sequence[int], room: int = 2**20) -> tuple[Answer, Connection]:
    """Feed a connection with an answer's bytes, in reads of these sizes, then hang up."""
    ours = Connection()
    wire = Tcp(ours)
    answer = Answer(Exchange("id", room=room))
    asking = asyncio.create_task(ours.exchange(b"GET / HTTP/1.1\r\n\r\n", answer, 10))
    await asyncio.sleep(0)
    for size in [*cuts, len(stream)]:
        if stream and not wire.closed:
            ours.data_received(stream[:size])
        stream = stream[size:]
    free = ours.free
    if not wire.closed:
        ours.connection_lost(None)
    await asking
    ours._spent = not free
    return answer, ours


def written(parts: list[bytes], framing: str, interim: int, trailer: bool) -> tuple[bytes, bytes]:
    """An answer of these parts in h11's words, and the body that h11 reads back from it."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    while server.next_event() is not h11.PAUSED:
        if server.their_state is h11.DONE:
            break
    headers = [("content-type", "text/event-stream")]
    if framing == "length":
        headers.append(("content-length", str(len(b"".join(parts)))))
    elif framing == "chunked":
        headers.append(("transfer-encoding", "chunked"))
    else:
        headers.append(("connection", "close"))
    events: list[Any] = [
        h11.InformationalResponse(status_code=103, headers=[("link", "</a>")])
        for _ in range(interim)
    ]
    events += [h11.Response(status_code=200, headers=headers), *(h11.Data(data=p) for p in parts)]
    events.append(h11.EndOfMessage(headers=[("x-end", "1")] if trailer else []))
    sent = b"".join(server.send(event) or b"" for event in events)
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(sent)
    client.receive_data(b"")
    body = b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        body += event.data if isinstance(event, h11.Data) else b""
    return sent, bytes(body)


@settings(max_examples=200, deadline=None)
@given(
    parts=st.lists(st.binary(min_size=1, max_size=300), max_size=12),
    framing=st.sampled_from(["length", "chunked", "close"]),
    interim=st.integers(0, 2),
    trailer=st.booleans(),
    cuts=st.lists(st.integers(1, 80), max_size=120),
)
def test_a_body_is_what_h11_says_however_the_bytes_are_cut(
    parts: list[bytes], framing: str, interim: int, trailer: bool, cuts: list[int]
) -> None:
    # over HTTP/1.1 h11 chunks what has no length; its close framing needs an HTTP/1.0 request
    sent, body = written(parts, framing, interim, trailer and framing == "chunked")
    began = perf_counter_ns()
    answer, ours = asyncio.run(hear(sent, cuts))
    seen = answer.seen
    assert seen.failure is None
    assert (answer.status, answer.fields["content-type"]) == (200, "text/event-stream")
    assert join(seen.messages) == body == b"".join(parts)
    stamps = [at for at, _ in seen.messages]
    assert stamps == sorted(stamps) and all(began < at <= seen.end_ns for at in stamps)
    assert ours.free == (framing != "close")


@settings(max_examples=150, deadline=None)
@given(
    junk=st.binary(max_size=300),
    head=st.sampled_from([b"", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"]),
    cuts=st.lists(st.integers(1, 60), max_size=60),
)
def test_junk_ends_an_answer_and_never_raises(junk: bytes, head: bytes, cuts: list[int]) -> None:
    answer, _ = asyncio.run(hear(head + junk, cuts))
    assert answer.done.done() and answer.seen.end_ns > 0


@pytest.mark.parametrize(
    ("stream", "failure"),
    [
        (b"", "connection lost"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", "connection lost"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf", "connection lost"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "garbage"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "garbage"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            "garbage",
        ),
        (b"HTTP/1.1 200 OK\r\n" + b"x-endless: 1\r\n" * 40_000, "a head without an end"),
        (b"HTTP/1.1 103 Hints\r\n\r\n" * 40_000, "a head without an end"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
            "garbage",
        ),
    ],
)
def test_half_an_answer_and_none_fail(stream: bytes, failure: str) -> None:
    answer, ours = asyncio.run(hear(stream, [1000] * (len(stream) // 1000)))
    assert answer.seen.failure is not None and answer.seen.failure[0] is Status.ERROR
    assert failure in answer.seen.failure[1]
    assert answer.unheard == (stream == b"")
    assert not ours.free


def test_what_comes_behind_an_answer_is_nobodys_and_ends_the_connection() -> None:
    one = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n"
    answer, ours = asyncio.run(hear(one + b"a" + one + b"b", []))
    assert join(answer.seen.messages) == b"a" and answer.seen.failure is None
    assert not ours.free


@pytest.mark.parametrize("chunk", [5, 4000])
def test_no_more_is_kept_of_a_body_than_there_is_room_for(chunk: int) -> None:
    body = b"%x\r\n%b\r\n" % (chunk, b"x" * chunk)
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    answer, ours = asyncio.run(hear(head + body * 3000, [], room=10_000))
    assert answer.seen.failure is not None and answer.seen.failure[0] is Status.OVERLONG
    assert join(answer.seen.messages) == b"x" * 10_000
    assert not ours.free


def test_a_connection_that_is_lost_is_gone_without_a_collector() -> None:
    """None runs under load, and some servers close after every answer."""
    one = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na"

    async def run() -> list[weakref.ref[Connection]]:
        return [weakref.ref((await hear(one, []))[1]) for _ in range(3)]

    gc.disable()
    try:
        assert [each() for each in asyncio.run(run())] == [None] * 3
    finally:
        gc.enable()
