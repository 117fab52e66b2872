"""What of an OpenAI-style server's words is an answer, an end, a failure, or nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llm_perf.errors import UserError
from llm_perf.record import Exchange, Status, read_records
from llm_perf.transports import Endpoint
from llm_perf.transports.events import cut_events
from llm_perf.transports.openai import OpenAI, _check
from llm_perf.workload.tokens import load_tokenizer
from llm_perf.workload.workload import Prompt

CHAT = OpenAI("m", chat=True)


def said(**delta: object) -> bytes:
    return json.dumps({"choices": [{"delta": delta}]}).encode()


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b" ",
        b'{"choices": null}',
        b'{"choices": [], "error": ""}',
        b'{"choices":[{"delta":{}}]}',
    ],
)
def test_an_odd_frame_says_nothing_and_fails_nothing(frame: bytes) -> None:
    chunk = CHAT.parse(frame)
    assert (chunk.text, chunk.error, chunk.final) == (b"", None, False)


@pytest.mark.parametrize("mark", [b"[DONE]", b"[DONE] ", b"[DONE]\r"])
def test_a_done_is_an_end_with_space_around_it(mark: bytes) -> None:
    assert CHAT.parse(mark).final


@pytest.mark.parametrize("reason", ["abort", "error", "content_filter", 7, ["stop"]])
def test_an_end_that_is_no_answers_end_fails_with_its_reason(reason: object) -> None:
    frame = json.dumps({"choices": [{"delta": {}, "finish_reason": reason}]}).encode()
    assert CHAT.parse(frame).error == f"finish_reason: {reason}"


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls"])
def test_a_finish_reason_ends_an_answer(reason: str) -> None:
    frame = json.dumps({"choices": [{"delta": {}, "finish_reason": reason}]}).encode()
    assert CHAT.parse(frame).final and CHAT.ended(frame)


@pytest.mark.parametrize("frame", [b"{}", said(content="a"), b'{"choices": []}'])
def test_what_only_speaks_is_no_end(frame: bytes) -> None:
    assert not CHAT.ended(frame)


def test_content_may_be_a_list_of_parts_and_a_thought_told_twice_is_one() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert CHAT.parse(said(content=parts)).text == b"ab"
    assert CHAT.parse(said(reasoning="x", reasoning_content="x")).text == b"x"


@pytest.mark.parametrize("count", ["1e999", "NaN", "-Infinity", '"9"', "true", "9" * 5000, "[1]"])
def test_a_count_that_is_none_is_left_out_or_fails_its_request(count: str) -> None:
    chunk = CHAT.parse(b'{"choices": [], "usage": {"completion_tokens": %s}}' % count.encode())
    assert chunk.error is not None or "total_tokens" not in chunk.facts


def test_what_cant_be_read_is_shown_as_it_came_and_cut() -> None:
    error = CHAT.parse(b"<html>" + b"x" * 5000).error
    assert error is not None and "<html>xxx" in error and len(error) < 300
    assert CHAT.parse(b'{"detail": "no such route"}').error == "no such route"


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_events_end_at_any_line_end_in_any_pieces(end: bytes, size: int) -> None:
    stream = end.join([b"data: a", b"data: b", b"", b"data: c", b"", b""])
    pieces = [(at, stream[at : at + size]) for at in range(0, len(stream), size)]
    assert [data for _, data in cut_events(pieces, whole=True)] == [b"a\nb", b"c"]


def test_an_error_event_is_an_error() -> None:
    (event,) = cut_events([(1, b"event: error\ndata: out of blocks\n\n")], whole=True)
    assert CHAT.parse(event[1]).error == "out of blocks"


@pytest.mark.parametrize(
    ("status", "models"),
    [
        (404, "not found"),
        (405, {}),
        (500, "dying"),
        (200, [{"id": "m"}]),
        (200, {"data": [{"id": "m:latest"}]}),
    ],
)
def test_a_list_of_models_may_be_absent_bare_or_with_tags(status: int, models: object) -> None:
    _check(Endpoint("h:1", "openai", "m"), status, models)


def test_another_model_is_refused_and_so_are_credentials_in_a_url() -> None:
    with pytest.raises(UserError, match="no model"):
        _check(Endpoint("h:1", "openai", "m"), 200, [{"id": "n"}])
    with pytest.raises(UserError) as caught:
        Endpoint("http://me:secret@h:1", "openai", "m")
    assert "secret" not in str(caught.value)


ROLE = b'{"choices": [{"delta": {"role": "assistant", "content": ""}}]}'
STOP = b'{"choices": [{"delta": {}, "finish_reason": "stop"}]}'
NONE = b'{"choices": [], "usage": {"completion_tokens": 0}}'
CALL = b'{"choices": [{"message": {"tool_calls": [{"id": "1"}]}, "finish_reason": "tool_calls"}]}'


@pytest.mark.parametrize(
    ("frames", "status"),
    [
        ([b"[DONE]"], Status.EMPTY),
        ([ROLE, STOP, NONE, b"[DONE]"], Status.EMPTY),
        ([CALL], Status.OK),
        ([ROLE, said(content="a"), STOP], Status.OK),
    ],
)
def test_an_end_without_an_answer_is_an_empty_answer(
    frames: list[bytes], status: Status, tokenizer_folder: Path
) -> None:
    seen = Exchange("id", sent_ns=1, end_ns=9, messages=[(5, frame) for frame in frames])
    (record,) = read_records(
        [(Prompt(0, "p", 1, 9), seen)], CHAT.parse, load_tokenizer(tokenizer_folder)
    )
    assert record.status is status
    assert (record.error is None) is record.ok


def test_a_default_is_sent_where_a_prompt_says_nothing() -> None:
    dialect = OpenAI("m", chat=False, defaults={"temperature": 0})
    prompt = Prompt(0, "p", 1, 4)
    assert json.loads(dialect.request(prompt, "r"))["temperature"] == 0
    own = replace(prompt, sampling={"temperature": 0.7})
    assert json.loads(dialect.request(own, "r"))["temperature"] == 0.7
