"""All transports on scripted servers: the same answers by every way, and what is sent with them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_perf.errors import UserError
from llm_perf.record import Chunk, Exchange
from llm_perf.transports import Endpoint, Tls, connect, extra_headers
from llm_perf.transports.events import cut_events
from llm_perf.transports.grpc_h2 import _Call
from llm_perf.transports.openai import OpenAI
from llm_perf.transports.triton_http import GenerateModel
from llm_perf.workload.workload import Prompt
from tests.client.faulty import FaultyServer
from tests.client.scripted import FINAL, Say, ScriptedTriton, Wait

from .test_triton import LATE, model

PROMPT = Prompt(index=0, text="p", input_tokens=1, max_tokens=9)


def ask(endpoint: Endpoint, *texts: str, **fields: Any) -> list[list[Chunk]]:
    """Send prompts all at once; the chunks of each."""

    async def run() -> list[list[Chunk]]:
        transport = await connect(endpoint, len(texts))
        try:
            seen = [Exchange(str(number)) for number in range(len(texts))]
            prompts = [Prompt(0, text, 1, 9, **fields) for text in texts]
            await asyncio.gather(
                *(
                    transport.stream(transport.dialect.request(prompt, "id"), each, 10)
                    for prompt, each in zip(prompts, seen, strict=True)
                )
            )
            for each in seen:
                transport.read(each)
        finally:
            await transport.close()
        assert [each.failure for each in seen] == [None] * len(seen)
        return [[transport.dialect.parse(raw) for _, raw in each.messages] for each in seen]

    return asyncio.run(run())


def test_our_reader_and_the_stock_library_read_the_same_stream() -> None:
    long = "x" * 100_000  # over several frames
    scripts = {
        "a": [Say("", 0), Say("one", 1), Say(" two", 3), FINAL],
        "b": [Say(long, 7), Wait(0.01), Say(long, 7, final=True)],
        "c": [Say(str(number), 1) for number in range(300)],
    }
    with ScriptedTriton(scripts.__getitem__) as server:
        ours, aio, stock = (
            ask(Endpoint(server.url, "grpc", "ensemble", name), *scripts)
            for name in ("grpc", "grpc.aio", "tritonclient")
        )
    assert ours == aio
    # the library can't ask for the empty final response, but the end of the stream comes
    assert [[each for each in chunks if each.speaks] for chunks in ours] == [
        [each for each in chunks if each.speaks] for chunks in stock
    ]
    assert [len(chunks) for chunks in ours] == [4, 2, 300]
    assert ours[1][0].text == long.encode()


def test_a_question_over_the_flow_control_window_arrives() -> None:
    question = "q" * 500_000
    with ScriptedTriton(lambda prompt: [Say(str(len(prompt)), 1), FINAL]) as server:
        (chunks,) = ask(Endpoint(server.url, "grpc", "ensemble"), question)
    assert chunks[0].text == b"500000"


def test_more_streams_than_a_connection_takes_wait_their_turn() -> None:
    with ScriptedTriton(lambda prompt: [Say(prompt, 1), FINAL]) as server:
        texts = [str(number) for number in range(130)]
        answers = ask(Endpoint(server.url, "grpc", "ensemble"), *texts)
    assert [chunks[0].text.decode() for chunks in answers] == texts


@settings(max_examples=200, deadline=None)
@given(
    messages=st.lists(st.binary(max_size=300), max_size=10),
    cuts=st.lists(st.integers(1, 50), max_size=80),
)
def test_messages_are_whole_however_frames_divide_them(
    messages: list[bytes], cuts: list[int]
) -> None:
    async def run() -> list[tuple[int, bytes]]:
        seen = Exchange("id")
        call = _Call(seen, asyncio.get_running_loop().create_future())
        data = b"".join(len(each).to_bytes(5, "big") + each for each in messages)
        for at, size in enumerate([*cuts, len(data)]):
            call.on_data(at, data[:size])
            data = data[size:]
        call.on_fields({"grpc-status": "0"})
        call.on_end(0, None, False)
        assert seen.failure is None
        return seen.messages

    assert [message for _, message in asyncio.run(run())] == messages


@settings(max_examples=100, deadline=None)
@given(
    messages=st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=10),
    cuts=st.lists(st.integers(1, 500), max_size=20),
    room=st.integers(0, 3000),
)
def test_of_an_answer_that_is_too_long_all_is_kept_that_fits_however_it_comes(
    messages: list[bytes], cuts: list[int], room: int
) -> None:
    async def run() -> Exchange:
        seen, rest = Exchange("id", room=room), framed
        call = _Call(seen, asyncio.get_running_loop().create_future())
        for at, size in enumerate([*cuts, len(framed)]):
            if rest and seen.failure is None:
                call.on_data(at, rest[:size])
            rest = rest[size:]
        return seen

    framed = b"".join(len(each).to_bytes(5, "big") + each for each in messages)
    ends = list(accumulate(5 + len(each) for each in messages))
    fitting = [each for each, end in zip(messages, ends, strict=True) if end <= room]
    seen = asyncio.run(run())
    assert [message for _, message in seen.messages] == fitting
    assert (seen.failure is None) == (len(framed) <= room)


@settings(max_examples=200, deadline=None)
@given(
    events=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1)),
    cuts=st.lists(st.integers(1, 20), max_size=80),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_events_are_whole_however_the_bytes_are_cut(
    events: list[str], cuts: list[int], ending: str
) -> None:
    data = b": hello\n\n"
    data += "".join(f"event: x{ending}data: {each}{ending}{ending}" for each in events).encode()
    pieces = []
    for at, size in enumerate([*cuts, len(data)]):
        pieces.append((at, data[:size]))
        data = data[size:]
    assert [event.decode() for _, event in cut_events(pieces, whole=True)] == events


def test_an_event_is_as_late_as_its_last_byte_and_a_cut_one_is_none() -> None:
    pieces = [(1, b"data: a\n\nda"), (2, b"ta: b\n"), (3, b"\ndata: c")]
    assert cut_events(pieces, whole=True) == [(1, b"a"), (3, b"b"), (3, b"c")]
    assert cut_events(pieces, whole=False) == [(1, b"a"), (3, b"b")]


def test_triton_over_http_gives_what_grpc_gives() -> None:
    with FaultyServer() as server:
        (by_grpc,) = ask(Endpoint(server.url, "grpc", "ensemble"), "good")
        (by_http,) = ask(Endpoint(server.url, "http", "ensemble"), "good")
    assert [(each.text, each.tokens) for each in by_http] == [
        (each.text, each.tokens) for each in by_grpc if each.speaks
    ]


def test_usage_is_the_openai_servers_count() -> None:
    with FaultyServer() as server:
        base = f"http://{server.url}/v1"
        (chunks,) = ask(Endpoint(base, "openai", "ensemble"), "good")
    assert b"".join(each.text for each in chunks) == b"one two three"
    assert chunks[-2].facts == {"total_tokens": 3, "num_input_tokens": 2}
    assert not chunks[-2].speaks and chunks[-1].final


@pytest.mark.parametrize("protocol", ["http", "openai"])
def test_an_unknown_model_or_no_server_is_told_before_the_clock_starts(protocol: str) -> None:
    with FaultyServer() as server:
        url = server.url
        if protocol == "openai":
            with pytest.raises(UserError, match=r"no model 'other'; it has: ensemble"):
                ask(Endpoint(url, protocol, "other"), "p")
    with pytest.raises(UserError, match=f"no HTTP server answers at http://{url}"):
        ask(Endpoint(url, protocol, "ensemble"), "p")


def test_headers_and_the_key_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "s3cret")
    seen: list[dict[str, str]] = []

    class Watching(ScriptedTriton):
        def _stream(self, requests, context):  # type: ignore[no-untyped-def]
            seen.append(dict(context.invocation_metadata()))
            yield from super()._stream(requests, context)

    headers = (("X-Team", "a"),)
    with Watching(lambda prompt: [Say("one", 1), FINAL]) as server:
        for transport in ("grpc", "grpc.aio", "tritonclient"):
            ask(Endpoint(server.url, "grpc", "ensemble", transport, headers, None, "SOME_KEY"), "p")
    assert len(seen) == 3
    assert all(each["x-team"] == "a" for each in seen)
    assert all(each["authorization"] == "Bearer s3cret" for each in seen)
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(UserError, match="SOME_KEY is not set"):
        extra_headers(Endpoint("a:1", "grpc", "m", api_key_env="SOME_KEY"))


@pytest.mark.parametrize("transport", [None, "grpc.aio"])
def test_tls_is_the_stock_librarys_and_needs_the_right_authority(
    certificate: tuple[Path, Path], transport: str | None
) -> None:
    cert, key = certificate
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    with ScriptedTriton(lambda prompt: [Say("one", 1), FINAL], credentials=credentials) as server:
        endpoint = Endpoint(server.url, "grpc", "ensemble", transport, tls=Tls(ca=cert))
        (chunks,) = ask(endpoint, "p")
        assert chunks[0].text == b"one"
        with pytest.raises(UserError, match="no Triton server answers"):
            ask(Endpoint(server.url, "grpc", "ensemble", transport, tls=Tls()), "p")
    assert endpoint.chosen == (transport or "tritonclient")


def test_tls_flags_that_cant_hold_are_refused_in_words() -> None:
    with pytest.raises(UserError, match="gRPC always looks who answers; give --ssl-ca"):
        Endpoint("a:1", "grpc", "m", tls=Tls(insecure=True))
    with pytest.raises(UserError, match="http://a:1 is without TLS; write https://"):
        Endpoint("http://a:1", "openai", "m", tls=Tls(insecure=True))


def test_our_reader_refuses_tls_in_words() -> None:
    with pytest.raises(UserError, match="plaintext; use --transport tritonclient"):
        Endpoint("a:1", "grpc", "m", "grpc", tls=Tls())


@pytest.mark.parametrize(
    ("url", "protocol", "right"),
    [
        ("localhost:8001", "grpc", True),
        ("[::1]:8001", "grpc", True),
        ("::1:8001", "grpc", False),
        ("localhost", "grpc", False),
        ("http://localhost:8001", "grpc", False),
        ("localhost:0", "http", False),
        ("localhost:65536", "openai", False),
        ("https://api.example.com/v1", "openai", True),
        ("http://h/v1beta/openai?api-version=2", "openai", True),
        ("http://h:0/v1", "openai", False),
        ("http://h:99999/v1", "openai", False),
        ("http://h:x/v1", "openai", False),
        ("http://[::1/v1", "openai", False),
        ("http:///v1", "openai", False),
        ("http://h/v1#part", "openai", False),
        ("localhost:8000", "openai", True),
    ],
)
def test_a_place_is_checked(url: str, protocol: str, right: bool) -> None:
    if right:
        assert Endpoint(url, protocol, "m").url == url
    else:
        with pytest.raises(UserError, match="HOST:PORT"):
            Endpoint(url, protocol, "m")


@pytest.mark.parametrize(
    ("url", "target", "root"),
    [
        ("h:1", "/x", "/x"),
        ("http://h/v1/", "/v1/x", "/x"),
        ("http://h/v1beta/openai?api-version=2", *["/v1beta/openai/x?api-version=2"] * 2),
    ],
)
def test_a_path_goes_under_the_base_and_its_query_along(url: str, target: str, root: str) -> None:
    endpoint = Endpoint(url, "openai", "m")
    assert (endpoint.target("/x"), endpoint.target("/x", root=True)) == (target, root)


@pytest.mark.parametrize("query", ["key=s3cret", "a=b&api_key=s3cret", "Access-Token=s3cret"])
def test_a_key_in_a_url_is_refused_and_not_repeated(query: str) -> None:
    with pytest.raises(UserError, match="holds a user name, a password or a key") as caught:
        Endpoint(f"http://h/v1?{query}", "openai", "m")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "header", [("x", "a\r\ny: b"), ("x y", "a"), ("x\n", "a"), ("", "a"), ("x", "a\x00")]
)
def test_a_header_that_would_be_two_is_refused(header: tuple[str, str]) -> None:
    with pytest.raises(UserError, match="is no header"):
        extra_headers(Endpoint("h:1", "openai", "m", headers=(header,)))


def test_a_key_with_a_line_end_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "s3cret\n")
    with pytest.raises(UserError, match="the key in SOME_KEY holds a line end") as caught:
        extra_headers(Endpoint("h:1", "openai", "m", api_key_env="SOME_KEY"))
    assert "s3cret" not in str(caught.value)


def test_openai_requests_say_what_the_prompt_says() -> None:
    prompt = Prompt(
        *(0, "p", 1, 9),
        min_tokens=9,
        sampling={"temperature": 0.5, "stop_words": ["x"], "end_id": 2, "seed": 1},
    )
    body = json.loads(OpenAI("m", chat=False).request(prompt, "id-1"))
    assert body == {
        "model": "m",
        "prompt": "p",
        "max_tokens": 9,
        "min_tokens": 9,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "stop": ["x"],
        "stop_token_ids": [2],
        "seed": 1,
    }
    chat = json.loads(OpenAI("m", chat=True).request(PROMPT, "id-1"))
    assert chat["messages"] == [{"role": "user", "content": "p"}]
    with pytest.raises(UserError, match="have no pad_id"):
        OpenAI("m", chat=True).request(Prompt(0, "p", 1, 9, sampling={"pad_id": 1}), "id")


@pytest.mark.parametrize(
    ("message", "chunk"),
    [
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, Chunk()),
        ({"choices": [{"delta": {"content": "é"}}]}, Chunk("é".encode())),
        ({"choices": [{"delta": {"reasoning_content": "hm"}}]}, Chunk(b"hm")),
        ({"choices": [{"text": "a", "finish_reason": "stop"}]}, Chunk(b"a", final=True)),
        ({"error": {"message": "no"}}, Chunk(error="no")),
        ({"object": "error", "message": "no"}, Chunk(error="no")),
        ({"usage": {"completion_tokens": 4}}, Chunk(facts={"total_tokens": 4})),
    ],
)
def test_openai_events_are_read(message: dict[str, Any], chunk: Chunk) -> None:
    assert OpenAI("m", chat=True).parse(json.dumps(message).encode()) == chunk


@pytest.mark.parametrize("raw", [b"\xff", b"[1]", b"7", b'{"choices": [3]}', b"[" * 9000])
@pytest.mark.parametrize("parse", [OpenAI("m", chat=False).parse, GenerateModel(model(LATE)).parse])
def test_unreadable_json_is_an_error_not_a_crash(
    parse: Callable[[bytes], Chunk], raw: bytes
) -> None:
    chunk = parse(raw)
    assert chunk.error is not None or chunk == Chunk()


def test_generate_requests_and_responses_are_json_by_tensor_name() -> None:
    dialect = GenerateModel(model(LATE))
    body = json.loads(dialect.request(PROMPT, "id-1"))
    assert body == {
        "id": "id-1",
        "text_input": "p",
        "max_tokens": 9,
        "exclude_input_in_output": True,
        "return_num_output_tokens": True,
    }
    chunk = dialect.parse(b'{"text_output": "one", "num_output_tokens": 2, "output_ids": [[5, 6]]}')
    assert (chunk.text, chunk.tokens) == (b"one", 2)
    assert dialect.parse(b'{"error": "too long"}').error == "too long"
