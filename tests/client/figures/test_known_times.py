"""A server whose times are known: 300 ms to the first token, 100 ms for each, its end counted.

The first token is half a character, so it has no text; the answer ends with the end token.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from llm_perf.figures.metrics import compute_metrics
from llm_perf.figures.notes import answer_notes
from llm_perf.record import Chunk, Exchange, Record, read_records
from llm_perf.transports.openai import OpenAI
from llm_perf.transports.triton import TritonModel
from llm_perf.transports.triton_http import GenerateModel
from llm_perf.workload.tokens import load_tokenizer
from llm_perf.workload.workload import Prompt
from tests.client.runs import TOKENIZER

MS = 10**6
PIECES = ["", "é", *"abcdefghijkl"]  # 14 tokens, then the end
TIMES = [300 + 100 * number for number in range(len(PIECES) + 1)]


def events(
    chat: bool, end_counted: bool = True, silent_end: bool = True
) -> list[tuple[int, bytes]]:
    """(ms, event data) as an OpenAI-style server sends them."""

    def event(text: str | None, finish: str | None = None, **more: Any) -> bytes:
        said: Any = {"delta": {**more, "content": text}} if chat else {"text": text}
        return json.dumps({"choices": [{"index": 0, **said, "finish_reason": finish}]}).encode()

    found = [(5, event("", role="assistant"))] if chat else []
    found += [(at, event(text)) for at, text in zip(TIMES, PIECES, strict=False)]
    found += [(TIMES[-1], event("" if silent_end else None, "stop"))]
    usage = {"prompt_tokens": 3, "completion_tokens": len(PIECES) + end_counted}
    return [
        *found,
        (TIMES[-1] + 1, json.dumps({"choices": [], "usage": usage}).encode()),
        (TIMES[-1] + 1, b"[DONE]"),
    ]


def record(messages: list[tuple[int, bytes]], parse: Callable[[bytes], Chunk]) -> Record:
    seen = Exchange("r", sent_ns=0, messages=[(at * MS, data) for at, data in messages])
    prompt = Prompt(index=0, text="p", input_tokens=3, max_tokens=100)
    [only] = read_records([(prompt, seen)], parse, load_tokenizer(TOKENIZER))
    return only


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("silent_end", [True, False])
def test_ttft_itl_and_latency_are_of_the_tokens_that_are_counted(
    chat: bool, silent_end: bool
) -> None:
    parse = OpenAI("m", chat).parse
    only = record(events(chat, silent_end=silent_end), parse)
    figures = compute_metrics([only])
    assert figures["time_to_first_token"]["avg"] == 300
    assert figures["time_to_first_text"]["avg"] == 400
    assert figures["inter_token_latency"]["avg"] == 100
    assert figures["request_latency"]["avg"] == TIMES[-1]
    assert figures["output_sequence_length"]["avg"] == len(PIECES) + 1
    assert any("counts the end token too, in 1 of 1" in note for note in answer_notes([only]))


@pytest.mark.parametrize("chat", [True, False])
def test_an_end_that_is_not_counted_is_no_token(chat: bool) -> None:
    figures = compute_metrics([record(events(chat, end_counted=False), OpenAI("m", chat).parse)])
    assert figures["inter_token_latency"]["avg"] == 100
    assert figures["request_latency"]["avg"] == TIMES[-2]
    assert figures["output_sequence_length"]["avg"] == len(PIECES)


def test_silent_responses_that_the_server_counts_no_token_for_are_none() -> None:
    """Some send an empty delta first, or to keep the connection open."""
    empty = json.dumps({"choices": [{"index": 0, "delta": {"content": ""}}]}).encode()
    said = [(5 + at, empty) for at in range(20)] + events(chat=True)
    figures = compute_metrics([record(said, OpenAI("m", True).parse)])
    assert figures["time_to_first_token"]["avg"] == 400  # the first with text


def test_several_tokens_in_a_response_leave_the_end_its_time() -> None:
    def event(at: int, text: str, finish: str | None = None) -> tuple[int, bytes]:
        choice = {"index": 0, "text": text, "finish_reason": finish}
        return at, json.dumps({"choices": [choice]}).encode()

    [tokens] = load_tokenizer(TOKENIZER).count(["abcdefgh"], special=False)
    usage = json.dumps({"choices": [], "usage": {"completion_tokens": tokens + 1}}).encode()
    said = [event(100, "abcd"), event(500, "efgh"), event(900, "", "stop"), (901, usage)]
    only = record(said, OpenAI("m", False).parse)
    assert tokens > 2
    assert only.end_counted
    assert compute_metrics([only])["inter_token_latency"]["avg"] == pytest.approx(
        (900 - 100) / tokens
    )


def test_tokens_that_all_came_at_once_are_infinitely_fast_and_not_left_out() -> None:
    def event(text: str) -> tuple[int, bytes]:
        return 100, json.dumps({"choices": [{"index": 0, "text": text}]}).encode()

    usage = json.dumps({"choices": [], "usage": {"completion_tokens": 2}}).encode()
    only = record(
        [event("a"), event("b"), (100, usage), (100, b"[DONE]")], OpenAI("m", False).parse
    )
    figures = compute_metrics([only])
    assert figures["output_token_throughput_per_user"]["avg"] == "inf"
    assert figures["output_token_throughput_per_user_e2e"]["avg"] == 20
    assert figures["input_token_throughput"]["avg"] == 30
    assert figures["total_token_throughput"]["avg"] == 50
    json.dumps(figures, allow_nan=False)


@pytest.mark.parametrize("count", ["1e999", "-Infinity", "NaN", "1" + 400 * "0", "9" * 5000, "-3"])
@pytest.mark.parametrize("protocol", ["openai", "triton"])
def test_a_count_that_is_none_fails_its_request_or_is_left_out(count: str, protocol: str) -> None:
    if protocol == "openai":
        said = [(400, b'{"choices": [], "usage": {"completion_tokens": %b}}' % count.encode())]
        only = record([*events(chat=True)[:-2], *said, (401, b"[DONE]")], OpenAI("m", True).parse)
    else:
        name = "kv_cache_reused_blocks"
        model = TritonModel("m", (), True, None, False, (name,))
        said = [(400, b'{"text_output": "a", "%b": %b}' % (name.encode(), count.encode()))]
        only = record(said, GenerateModel(model).parse)
    assert only.server_tokens is None
    assert only.ok or "unreadable response" in str(only.error)
    json.dumps(compute_metrics([only]), allow_nan=False)
