"""Our HTTP/2 reader against the ``h2`` library: what h2 sends, however cut, is what comes out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_perf.transports.frames import Fields, encode_fields, frame
from llm_perf.transports.http2 import Connection

BLOCK = encode_fields(
    ((":method", "POST"), (":scheme", "http"), (":path", "/p"), (":authority", "a:1"))
)
HEAD = [(":status", "200"), ("content-type", "application/grpc")]
TRAILER = [("grpc-status", "0")]


@dataclass
class Heard:
    """A stream as its user hears it."""

    data: list[bytes] = field(default_factory=list)
    fields: Fields = field(default_factory=dict)
    ends: list[tuple[str | None, bool]] = field(default_factory=list)

    def on_data(self, at: int, payload: bytes) -> None:
        assert not self.ends
        self.data.append(payload)

    def on_fields(self, fields: Fields) -> None:
        self.fields.update(fields)

    def on_end(self, at: int, error: str | None, refused: bool) -> None:
        self.ends.append((error, refused))

    @property
    def whole(self) -> bytes:
        return b"".join(self.data)


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def abort(self) -> None:
        self.close()

    def take(self) -> bytes:
        written, self.written = bytes(self.written), bytearray()
        return written


class Pair:
    """A connection of ours and h2's server, joined by hand."""

    def __init__(self, **wishes: int) -> None:
        self.ours = Connection()
        self.wire = Wire()
        self.ours.connection_made(self.wire)
        self.server = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        codes = h2.settings.SettingCodes
        self.server.local_settings = h2.settings.Settings(
            client=False, initial_values={getattr(codes, name): wishes[name] for name in wishes}
        )
        self.server.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.exchange()

    def to_server(self) -> None:
        if data := self.wire.take():
            self.events += self.server.receive_data(data)

    def exchange(self, cuts: tuple[int, ...] = ()) -> None:
        """Pass bytes both ways until neither side has more; ``cuts`` are sizes of our reads."""
        sizes = iter(cuts)
        while True:
            self.to_server()
            data = self.server.data_to_send()
            if not data and not self.wire.written:
                return
            while data:
                size = next(sizes, len(data))
                self.ours.data_received(data[:size])
                data = data[size:]

    def ask(self, body: bytes = b"ask") -> tuple[Heard, int]:
        heard = Heard()
        return heard, self.ours.send(BLOCK, body, heard)

    def received(self, number: int) -> bytes:
        return b"".join(
            event.data
            for event in self.events
            if isinstance(event, h2.events.DataReceived) and event.stream_id == number
        )


def looped(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test inside an event loop."""

    def run(*args: Any, **named: Any) -> None:
        asyncio.run(test(*args, **named))

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


def in_loop(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(body())


pieces = st.lists(
    st.tuples(st.integers(0, 2), st.binary(max_size=40), st.one_of(st.none(), st.integers(0, 30))),
    max_size=25,
)
cuts = st.lists(st.integers(1, 60), max_size=200).map(tuple)


@settings(max_examples=150, deadline=None)
@given(pieces=pieces, cuts=cuts)
def test_interleaved_streams_come_out_whole_however_the_bytes_are_cut(
    pieces: list[tuple[int, bytes, int | None]], cuts: tuple[int, ...]
) -> None:
    async def body() -> None:
        pair = Pair()
        asked = [pair.ask() for _ in range(3)]
        pair.to_server()
        for _, number in asked:
            pair.server.send_headers(number, HEAD)
        for which, data, padding in pieces:
            pair.server.send_data(asked[which][1], data, pad_length=padding)
        for _, number in asked:
            pair.server.send_headers(number, TRAILER, end_stream=True)
        pair.exchange(cuts)
        for which, (heard, _) in enumerate(asked):
            assert heard.data == [data for to, data, _ in pieces if to == which]
            assert heard.fields == {
                ":status": "200",
                "content-type": "application/grpc",
                "grpc-status": "0",
            }
            assert heard.ends == [(None, False)]

    in_loop(body)


@settings(max_examples=100, deadline=None)
@given(junk=st.binary(min_size=1, max_size=200), cuts=cuts)
def test_junk_ends_streams_with_an_error_and_never_raises(
    junk: bytes, cuts: tuple[int, ...]
) -> None:
    async def body() -> None:
        pair = Pair()
        heard, _ = pair.ask()
        data = junk
        for size in (*cuts, len(junk)):
            pair.ours.data_received(data[:size])
            data = data[size:]
        pair.ours.connection_lost(None)
        assert len(heard.ends) == 1

    in_loop(body)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 200_000), min_size=1, max_size=4),
    window=st.integers(500, 70_000),
    changed=st.integers(500, 70_000),
)
def test_bodies_wait_for_the_servers_windows_and_arrive_whole(
    sizes: list[int], window: int, changed: int
) -> None:
    """h2 raises FlowControlError if we ever send more than it allowed."""

    async def body() -> None:
        pair = Pair(INITIAL_WINDOW_SIZE=window)
        bodies = [bytes([number]) * size for number, size in enumerate(sizes)]
        asked = [pair.ask(each) for each in bodies]
        pair.to_server()
        pair.server.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: changed})
        pair.exchange()
        seen = 0
        for _ in range(2000):
            events, seen = pair.events[seen:], len(pair.events)
            if not events:
                break
            for event in events:
                if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                    pair.server.increment_flow_control_window(event.flow_controlled_length)
                    if pair.server.streams[event.stream_id].open:
                        pair.server.increment_flow_control_window(
                            window + changed, stream_id=event.stream_id
                        )
            pair.exchange()
        for (_, number), sent in zip(asked, bodies, strict=True):
            assert pair.received(number) == sent
        ended = [e.stream_id for e in pair.events if isinstance(e, h2.events.StreamEnded)]
        assert sorted(ended) == [number for _, number in asked]

    in_loop(body)


@looped
async def test_a_header_block_in_pieces_is_read_when_its_end_comes() -> None:
    pair = Pair()
    heard, number = pair.ask()
    pair.to_server()
    pair.server.send_headers(number, [*HEAD, ("x-long", "v" * 40_000)])  # h2 continues it
    pair.server.end_stream(number)
    pair.exchange((11,) * 500)
    assert heard.fields["x-long"] == "v" * 40_000
    assert heard.ends == [(None, False)]


@looped
async def test_a_server_that_uses_the_header_table_anyway_is_understood() -> None:
    pair = Pair()
    encoder = pair.server.encoder
    first, one = pair.ask()
    second, two = pair.ask()
    encoder.header_table_size = 4096  # not what we asked for
    blocks = [encoder.encode([*HEAD, ("x-name", name)]) for name in ("a", "b", "a")]
    for number, block in ((one, blocks[0]), (two, blocks[1]), (one, blocks[2])):
        pair.ours.data_received(frame(0x1, 0x4, number, block))
    assert (first.fields["x-name"], second.fields["x-name"]) == ("a", "b")


@looped
async def test_pings_and_settings_are_answered() -> None:
    pair = Pair()
    pair.server.ping(b"12345678")
    pair.exchange()
    kinds = [type(event) for event in pair.events]
    assert h2.events.PingAckReceived in kinds
    assert h2.events.SettingsAcknowledged in kinds
    assert pair.ours.ready.done()


@looped
async def test_a_server_that_reads_no_reply_to_its_pings_is_left() -> None:
    pair = Pair()
    heard, _ = pair.ask()
    ping, asked = frame(0x6, 0, 0, b"12345678"), frame(0x4, 0, 0, b"")
    for _ in range(100):  # it reads: any number of them is answered
        pair.ours.data_received(ping * 1000)
        pair.wire.take()
    assert not heard.ends
    for _ in range(300):
        pair.ours.data_received((ping + asked) * 1000)
    assert heard.ends == [("the server sent garbage: PINGs whose answers it doesn't read", False)]
    assert pair.wire.closed and len(pair.wire.written) < 2**21


@looped
async def test_a_reset_stream_ends_alone() -> None:
    pair = Pair()
    (cut, one), (refused, two), (whole, three) = (pair.ask() for _ in range(3))
    pair.to_server()
    pair.server.reset_stream(one, error_code=2)
    pair.server.reset_stream(two, error_code=7)
    pair.server.send_headers(three, HEAD, end_stream=True)
    pair.exchange()
    assert cut.ends == [("the server reset the stream (HTTP/2 code 2)", False)]
    assert refused.ends[0][1]
    assert whole.ends == [(None, False)]


@looped
async def test_after_goaway_begun_streams_finish_and_later_ones_were_refused() -> None:
    pair = Pair()
    (first, one), (second, _) = (pair.ask() for _ in range(2))
    pair.to_server()
    pair.server.close_connection(last_stream_id=one, additional_data=b"bye")
    pair.ours.data_received(pair.server.data_to_send())
    assert second.ends == [("the server is going away (HTTP/2 code 0, bye)", True)]
    with pytest.raises(ConnectionError, match="going away"):
        pair.ask()
    assert not first.ends and not pair.wire.closed
    pair.ours.data_received(frame(0x0, 0x1, one, b"late"))
    assert (first.data, first.ends) == ([b"late"], [(None, False)])
    assert pair.wire.closed


@looped
async def test_a_full_connection_lets_the_next_in_when_a_stream_ends() -> None:
    pair = Pair(MAX_CONCURRENT_STREAMS=1)
    _, number = pair.ask()
    waiting = [asyncio.create_task(pair.ours.slot()) for _ in range(2)]
    await asyncio.sleep(0)
    assert pair.ours.full and not any(task.done() for task in waiting)
    waiting[0].cancel()
    pair.ours.cancel(number)
    await asyncio.wait_for(waiting[1], 5)


@looped
async def test_a_cancelled_stream_is_reset_and_told_nothing_more() -> None:
    pair = Pair()
    heard, number = pair.ask()
    pair.to_server()
    pair.server.send_headers(number, HEAD)
    pair.ours.cancel(number)
    pair.exchange()
    assert any(isinstance(event, h2.events.StreamReset) for event in pair.events)
    assert not heard.ends and not heard.fields


@looped
async def test_an_answer_before_the_whole_question_stops_the_question() -> None:
    pair = Pair()
    heard, number = pair.ask(b"x" * 100_000)  # over the default window
    pair.to_server()
    pair.server.send_headers(number, HEAD, end_stream=True)
    pair.exchange()
    assert heard.ends == [(None, False)]
    assert any(isinstance(event, h2.events.StreamReset) for event in pair.events)


@looped
async def test_the_connections_window_is_opened_again() -> None:
    pair = Pair()
    heard, number = pair.ask()
    pair.to_server()
    assert pair.server.outbound_flow_control_window == 2**31 - 1
    pair.ours._taken = 2**30  # as after 1 GiB, and so for the server
    pair.server.outbound_flow_control_window -= 2**30
    pair.server.send_headers(number, HEAD)
    pair.server.send_data(number, b"more")
    pair.exchange()
    assert heard.whole == b"more"
    assert any(isinstance(event, h2.events.WindowUpdated) for event in pair.events)
    assert pair.server.outbound_flow_control_window == 2**31 - 1


@pytest.mark.parametrize(
    "bad",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        frame(0x5, 0x4, 1, b"\0\0\0\2"),  # a push
        frame(0x9, 0x4, 1, b""),  # continues nothing
        frame(0x1, 0, 1, b"") + frame(0x6, 0, 0, b"12345678"),  # not continued
        frame(0x1, 0x4, 1, b"\xff\xff\xff\xff\xff\xff"),  # no header block
        frame(0x0, 0x8, 1, b"\x09abc"),  # more padding than frame
        frame(0x3, 0, 1, b"\0"),  # a short reset
        frame(0x4, 0, 0, b"\0\4\xff\xff\xff\xff"),  # a window over the limit
    ],
)
def test_what_the_rfc_forbids_ends_the_connection_with_words(bad: bytes) -> None:
    async def body() -> None:
        pair = Pair()
        heard, _ = pair.ask()
        pair.ours.data_received(bad)
        assert "garbage" in str(heard.ends[0][0])
        assert pair.wire.closed

    in_loop(body)
