"""What the notes say of how a server delivers, on records and on a server's own words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llm_perf.api import Concurrency, Endpoint, load_workload, measure
from llm_perf.figures.delivery import delivery_notes
from llm_perf.figures.goodput import parse_goodput
from llm_perf.figures.metrics import compute_metrics
from llm_perf.record import Chunk, Exchange, Record, read_records
from llm_perf.transports.openai import OpenAI
from llm_perf.workload.workload import Prompt
from tests.client.runs import MS, asked
from tests.client.talking import TalkingServer


def came(gaps_us: Sequence[int], ttft_ms: int = 100) -> Record:
    """An answer of one token a response."""
    times = [ttft_ms * MS]
    for gap in gaps_us:
        times.append(times[-1] + gap * 1000)
    return replace(asked(sent_ms=0, tokens=len(times)), chunk_ns=tuple(times), sent_ns=0)


@pytest.mark.parametrize(
    "gaps_us",
    [
        [10_000] * 40,  # as it should be
        [20] * 40,  # a null server at once: evenly near, as its TTFT of 0.1 ms is
        [500] * 100,  # 2,000 tokens a second
        [10_000, 10_500] * 20,
        [5],  # two tokens: too few to see
    ],
)
def test_a_stream_is_not_taken_for_bursts(gaps_us: list[int]) -> None:
    ttft_ms = 0 if gaps_us[0] == 20 else 100
    assert delivery_notes([came(gaps_us, ttft_ms)] * 5) == []


@pytest.mark.parametrize(
    ("gaps_us", "share"),
    [
        ([20, 20, 20, 40_000] * 10, "75%"),
        ([20, 40_000] * 20, "50%"),
        ([15] * 40, "100%"),  # a proxy that held all of it back until the end
    ],
)
def test_bursts_are_said(gaps_us: list[int], share: str) -> None:
    (note,) = delivery_notes([came(gaps_us)] * 5)
    assert note.startswith(f"answers came in bursts: {share} of the responses together")


def test_a_server_that_does_not_stream_is_said() -> None:
    whole = asked(chunks_ms=(500,), tokens=40)
    (note,) = delivery_notes([whole, whole, asked()])
    assert note.startswith("the server did not stream: 2 of 3 answers of several tokens came in")
    short = asked(chunks_ms=(500,), tokens=1)  # one token is one piece
    assert delivery_notes([short, asked()]) == []


def test_no_ttft_keeps_no_limit_of_it() -> None:
    whole = asked(chunks_ms=(150,), tokens=40, sent_ms=100)
    tool = replace(asked(chunks_ms=(150, 160), sent_ms=100), first_text_ns=None)
    plain = asked(chunks_ms=(150, 160), sent_ms=100)
    for limits, kept in (
        ("ttft:1s", [plain]),
        ("ttft_from_schedule:1s", [plain]),
        ("ttft:1s,latency:1s", [plain]),
        ("latency:1s", [whole, tool, plain]),
    ):
        goodput = parse_goodput(limits)
        assert [each for each in (whole, tool, plain) if goodput.keeps(each)] == kept


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ([3, 3, 3], None),
        ([4, 4, 4], "3 of 3 prompts differently, each by +1, as special tokens or a template"),
        ([2, 2, 2], "3 of 3 prompts differently, each by -1,"),
        ([3, 5, 9], "2 of 3 prompts differently, by +0 to +6: another tokenizer, a template,"),
    ],
)
def test_the_servers_count_of_the_prompts_is_reconciled(
    theirs: list[int], said: str | None
) -> None:
    notes = delivery_notes([replace(asked(), server_input_tokens=n) for n in theirs])
    assert len(notes) == (said is not None)
    assert said is None or said in notes[0]


@pytest.mark.parametrize("name", ["cached_tokens", "kv_cache_reused_blocks"])
def test_a_prompt_that_was_cached_is_said(name: str) -> None:
    fresh, warm = replace(asked(), **{name: 0}), replace(asked(), **{name: 16})
    assert delivery_notes([fresh, fresh]) == []
    (note,) = delivery_notes([fresh, warm, warm])
    assert note.startswith("the server had 2 of 3 prompts in its cache")
    assert "--unique-prefix" in note


def test_vllms_usage_says_what_was_cached() -> None:
    usage = (
        b'{"choices": [], "usage": {"prompt_tokens": 40, "completion_tokens": 1, '
        b'"prompt_tokens_details": {"cached_tokens": 32}}}'
    )
    said = [(5, b'{"choices": [{"text": "a", "finish_reason": "stop"}]}'), (6, usage)]
    parse: Callable[[bytes], Chunk] = OpenAI("m", False).parse
    asked = [(Prompt(0, "p", None, 4), Exchange("r", 1, 1, 6, messages=said))]
    (record,) = read_records(asked, parse, None)
    assert (record.cached_tokens, record.server_input_tokens) == (32, 40)
    assert compute_metrics([record])["cached_tokens"]["avg"] == 32
    assert "cached_tokens" not in compute_metrics([replace(record, cached_tokens=None)])
    assert parse(usage.replace(b'{"cached_tokens": 32}', b"null")).error is None


def test_a_real_run_reconciles_what_usage_says(
    write_prompts: Callable[..., Path], tokenizer_folder: Path
) -> None:
    workload = load_workload(write_prompts("ab", "abcdefg"), tokenizer_folder)
    with TalkingServer() as server:  # counts seven tokens for every prompt
        run = measure(Endpoint(server.url, "openai", "m"), workload, Concurrency(1))
    assert (
        "server and tokenizer count 1 of 2 prompts differently, by +0 to +5: another tokenizer, "
        "a template, or a prompt cut short; ISL is ours"
    ) in run.notes
