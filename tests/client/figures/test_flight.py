from __future__ import annotations

import heapq
import io
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_perf.api import Concurrency, Extent, Run
from llm_perf.figures.flight import flights, served
from llm_perf.figures.metrics import compute_metrics
from llm_perf.record import Record, Status
from llm_perf.results.table import print_run, print_summary
from tests.client.runs import MS, asked, make_run
from tests.client.scripted import FINAL, Say, ScriptedTriton


def streamed(sent_ms: int, length_ms: int = 100, **more) -> Record:
    """Ten tokens, one every tenth of the length."""
    times = [sent_ms + length_ms * (i + 1) // 10 for i in range(10)]
    return asked(sent_ms, chunks_ms=times, tokens=10, sent_ms=sent_ms, **more)


def loop(slots: int, requests: int, offset_ms: int = 0) -> list[Record]:
    """A closed loop whose slots start one after the other; who is free takes the next request."""
    free = [1000 + slot * offset_ms for slot in range(slots)]
    records = []
    for _ in range(requests):
        at = heapq.heappop(free)
        records.append(streamed(at))
        heapq.heappush(free, at + 100)
    return records


def batched(slots: int, lengths: list[int], prompt_ms: int, step_ms: int) -> list[Record]:
    """A server that reads prompts one at a time, as they come, before each step of all that run.

    ``prompt_ms`` 0 has everything in step.
    """
    left, running, records, at = deque(lengths), list[tuple[int, list[int], int]](), [], 1000
    waiting = [(at, left.popleft()) for _ in range(min(slots, len(left)))]
    while waiting or running:
        if waiting:
            sent, length = waiting.pop(0)
            running.append((sent, [], length))
            at += prompt_ms
            if waiting and not prompt_ms:
                continue
        at += step_ms
        for each in list(running):
            sent, chunks, length = each
            chunks.append(at)
            if len(chunks) == length:
                running.remove(each)
                records.append(asked(sent, chunks_ms=chunks, tokens=length, sent_ms=sent))
                if left:
                    waiting.append((at, left.popleft()))
    return records


@settings(max_examples=25, deadline=None)
@given(
    slots=st.integers(2, 12),
    rounds=st.integers(3, 6),
    rest=st.integers(0, 11),
    prompt_ms=st.integers(0, 30),
    length=st.integers(5, 25),
)
def test_the_steady_rate_of_a_short_run_is_that_of_a_long_one(
    slots: int, rounds: int, rest: int, prompt_ms: int, length: int
) -> None:
    def figures(requests: int) -> Mapping[str, Any]:
        records = batched(slots, [length] * requests, prompt_ms, 10)
        return compute_metrics(records, concurrency=slots)["output_token_throughput"]

    # a long run's own ends don't weigh: its mean between the fifth and the fifteenth round
    ends = sorted(each.end_ns for each in batched(slots, [length] * slots * 20, prompt_ms, 10))
    truth = 10 * slots * length / (ends[15 * slots] - ends[5 * slots]) * 1e9
    assert figures(slots * rounds + rest % slots)["steady"] == pytest.approx(truth, rel=0.05)


def test_the_steady_part_has_the_rate_of_the_full_load() -> None:
    # four slots, 50 ms apart: full from 150 ms on, the first end then is at 200 ms
    metrics = compute_metrics(loop(4, 20, offset_ms=50), concurrency=4)
    tokens = metrics["output_token_throughput"]
    assert tokens["avg"] == pytest.approx(200 / 0.6)
    assert tokens["steady"] == pytest.approx(4 * 10 / 0.1)
    assert tokens["steady_share"] == pytest.approx(300 / 600)
    assert metrics["request_throughput"]["steady"] == pytest.approx(4 / 0.1)
    assert metrics["input_token_throughput"]["steady"] == pytest.approx(3 * 4 / 0.1)
    assert metrics["total_token_throughput"]["steady"] == pytest.approx(13 * 4 / 0.1)


def test_a_load_that_is_full_all_the_time_is_steady_from_its_first_end() -> None:
    tokens = compute_metrics(loop(4, 20), concurrency=4)["output_token_throughput"]
    assert tokens["steady"] == pytest.approx(tokens["avg"])
    assert tokens["steady_share"] == pytest.approx(0.8)


def test_an_answer_in_one_piece_counts_by_its_time() -> None:
    whole = asked(chunks_ms=(200,), sent_ms=100, tokens=8)
    seen = served([whole], 150 * MS, 200 * MS)
    assert (seen.requests, seen.output_tokens, seen.input_tokens) == (0.5, 4, 1.5)


def test_a_slot_that_pauses_ends_the_steady_part() -> None:
    refused = asked(9, status=Status.THROTTLED, chunks_ms=(), sent_ms=1200)
    assert flights(loop(2, 8)).steady(2) == (1100 * MS, 1400 * MS)
    assert flights([*loop(2, 8), refused]).steady(2) == (1100 * MS, 1200 * MS)


def test_a_worker_that_has_no_more_to_send_ends_the_steady_part() -> None:
    quick, slow = loop(2, 8), loop(2, 16)  # two workers share the load; one is through first
    assert flights([*quick, *slow]).steady(4) == (1100 * MS, 1400 * MS)


def test_a_slot_on_its_way_to_the_next_send_leaves_the_load_full() -> None:
    many = [
        streamed(1000 + i % 100 + 101 * (i // 100)) for i in range(1000)
    ]  # 1 ms from end to send
    part = flights(many).steady(100)
    assert part is not None and part[1] - part[0] > 800 * MS


def test_an_open_loop_and_a_run_without_answers_have_no_steady_part() -> None:
    assert "steady" not in compute_metrics(loop(2, 8), open_loop=True)["request_throughput"]
    failed = [asked(status=Status.REFUSED, chunks_ms=())]
    assert "steady" not in compute_metrics(failed, concurrency=4)["request_throughput"]


def test_mean_in_flight_is_littles() -> None:
    # two of 100 ms and one of 50 ms in a window of 200 ms
    records = [streamed(0), streamed(100), streamed(20, 50)]
    assert compute_metrics(records)["requests_in_flight"]["avg"] == pytest.approx(250 / 200)


def test_what_is_waited_for_in_vain_counts_within_the_window_only() -> None:
    lost = asked(1, status=Status.TIMEOUT, chunks_ms=(), sent_ms=0)
    hung = replace(lost, sent_ns=1, end_ns=10_000 * MS)
    assert flights([streamed(0), hung]).mean == pytest.approx(2)


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(10, 3000)), min_size=1, max_size=30))
def test_the_steady_part_lies_within_and_has_no_more_than_the_whole(
    spans: list[tuple[int, int]],
) -> None:
    records = [streamed(sent, length) for sent, length in spans]
    flown = flights(records)
    assert flown.window_ns is not None and flown.mean is not None
    assert 0 < flown.mean <= len(records)
    if part := flown.steady(4):
        assert flown.first_ns <= part[0] < part[1]
        assert served(records, *part).output_tokens <= 10 * len(records)


def printed(run: Run) -> str:
    file = io.StringIO()
    print_run(run, file)
    return file.getvalue()


def test_the_table_says_what_differs_and_over_how_much() -> None:
    text = printed(make_run(loop(4, 20, offset_ms=50)))
    assert (
        "Output token throughput (tokens/s): 333.33; 400.00 while the load was full, "
        "50% of the window" in text
    )
    assert "Requests in flight: mean 3.33" in text
    assert "while the load was full" not in printed(make_run(loop(4, 20)))


def test_a_sweeps_summary_has_the_steady_part_where_it_differs() -> None:
    def summary(*runs: Run) -> str:
        file = io.StringIO()
        print_summary([run.to_json() for run in runs], file)
        return file.getvalue()

    ramped, full = make_run(loop(4, 16, offset_ms=50)), make_run(loop(4, 20))
    assert "400.00" in summary(ramped, full) and " steady tokens/s " in summary(ramped, full)
    assert " steady tokens/s " not in summary(full, full)


def test_the_label_is_the_load(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(lambda prompt: (Say("one", 1), FINAL), hold=3) as server:
        few = ask(server, *"abc", load=Concurrency(8))
        enough = ask(server, *"ab", load=Concurrency(2), extent=Extent(requests=9))
    text = printed(few)
    assert "| concurrency 8 (at most 3 in flight)" in text
    assert "Requests in flight: mean " in text and ", at most 3\n" in text
    assert few.to_json()["max_in_flight_seen"] == 3
    assert 0 < few.to_json()["requests_in_flight"]["avg"] <= 3
    assert enough.title == "concurrency 2"
