"""Loads offered to a scripted server: who is asked, in what order, what stays out of figures."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from llm_perf.api import (
    Concurrency,
    Extent,
    Load,
    Progress,
    Rate,
    Run,
    Status,
    Trace,
)
from llm_perf.load.health import LoopSample, judge
from tests.client.scripted import FINAL, Abort, Hang, Say, ScriptedTriton, Step, Wait

GOOD: list[Step] = [Say("one", 1), Say(" two", 1), FINAL]
AT_ONCE = Rate(float("inf"))


SECOND = 10**9


def texts(server: ScriptedTriton) -> list[str]:
    return [str(asked.tensors["text_input"]) for asked in server.asked]


def test_an_open_loop_does_not_wait_for_answers(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(lambda prompt: GOOD, hold=8) as server:  # none is answered before all ask
        run = ask(server, *"abcdefgh", load=Rate(1000.0, "constant"))
    assert server.peak == 8
    assert run.requests_ok == 8
    due = [record.scheduled_ns for record in run.records]
    assert [later - earlier for earlier, later in pairwise(due)] == [10**6] * 7


def test_nothing_is_sent_before_it_is_due(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(lambda prompt: GOOD) as server:
        run = ask(server, *"abcdefgh", load=Rate(100.0))
    assert all(record.sent_ns >= record.scheduled_ns for record in run.records)


def test_an_open_loop_is_bounded_and_says_so(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(lambda prompt: GOOD, hold=3) as server:
        run = ask(server, *"abcdefgh", load=AT_ONCE, max_in_flight=3)
    assert server.peak == 3
    assert run.requests_ok == 8
    assert "5 requests waited for room: more were due than may be in flight" in run.notes


def test_waiting_for_the_server_is_in_the_time_from_the_schedule(ask: Callable[..., Run]) -> None:
    def script(prompt: str) -> list[Step]:
        return [Wait(0.1), *GOOD]

    with ScriptedTriton(script) as server:
        run = ask(server, *"abcd", load=AT_ONCE, max_in_flight=1)
    *_, last = run.records
    assert last.chunk_ns[0] - last.scheduled_ns >= 400_000_000  # four waits, one after the other
    assert last.sent_ns - last.scheduled_ns >= 300_000_000  # what TTFT from sending hides


def test_the_data_set_is_repeated_and_cut(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(lambda prompt: GOOD) as server:
        run = ask(server, *"abc", load=Concurrency(2), extent=Extent(requests=7))
        assert [record.prompt.text for record in run.records] == list("abcabca")
        assert len({record.request_id for record in run.records}) == 7
        run = ask(server, *"abc", load=AT_ONCE, extent=Extent(requests=2))
        assert [record.prompt.text for record in run.records] == list("ab")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("load", [Concurrency(2), Rate(500.0)])
def test_the_warm_up_is_answered_before_the_first_measured_request_is_sent(
    load: Load, workers: int, ask: Callable[..., Run]
) -> None:
    events: list[str] = []

    def script(prompt: str) -> Iterator[Step]:
        events.append(f"ask {prompt}")
        yield Say("one", 1)
        yield Wait(0.2 if prompt.startswith("w3") else 0.01)  # one that is late
        events.append(f"answer {prompt}")
        yield FINAL

    prompts = [f"{name} is a letter" for name in "abcde"]
    with ScriptedTriton(script) as server:
        run = ask(server, *prompts, load=load, extent=Extent(warmup_requests=3), workers=workers)
    assert [record.prompt.text for record in run.records] == prompts
    warm = [f"w{turn} is a letter" for turn in (1, 2, 3)]  # none begins as a measured one
    assert Counter(texts(server)) == Counter([*prompts, *warm])
    assert {event.split()[1] for event in events[:6]} == {"w1", "w2", "w3"}
    assert run.metrics["request_count"]["avg"] == 5
    assert "3 warm-up requests are left out" in run.notes


def test_a_load_that_was_never_reached_is_said(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(lambda prompt: GOOD, hold=3) as server:
        run = ask(server, *"abc", load=Concurrency(8))
        assert run.max_in_flight_seen == 3
        assert run.to_json()["max_in_flight_seen"] == 3
        assert run.notes[0].startswith("concurrency 8 was not reached: at most 3 requests were in")
        run = ask(server, *"abc", load=Concurrency(2), extent=Extent(requests=9))
        assert run.max_in_flight_seen == 2
        assert "not reached" not in " ".join(run.notes)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_went_away_ends_the_run(
    workers: int, ask: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    answered = threading.Semaphore(0)
    with ScriptedTriton(lambda prompt: GOOD) as server:

        def watch(seen: Progress) -> None:
            if seen.done >= 5:
                answered.release()

        def leave() -> None:
            answered.acquire(timeout=60)
            server.stop()

        thread = threading.Thread(target=leave)
        thread.start()
        prompts = [f"p{i}" for i in range(20_000)]
        run = ask(
            *(server, *prompts),
            **{"load": Concurrency(4), "watch": watch, "give_up_after_s": 1.0, "workers": workers},
        )
        thread.join()
    assert run.stopped is not None and run.stopped.startswith("for 1 s nothing but refusals: ")
    refused = [record for record in run.records if record.status is Status.REFUSED]
    # 10 ms, 20, 40 … 1 s: a slot asks seven or eight times before the second is over
    assert run.requests_ok >= 5 and 4 * 5 <= len(refused) <= 4 * 9
    assert run.notes[0].startswith("stopped early (for 1 s nothing but refusals")
    assert not caplog.records  # of asyncio, on tasks that nobody waits for any more


def test_time_ends_a_closed_loop_and_what_is_in_flight_is_waited_for(
    ask: Callable[..., Run],
) -> None:
    def script(prompt: str) -> list[Step]:
        return [Wait(0.02), *GOOD]

    with ScriptedTriton(script) as server:
        run = ask(server, *"ab", load=Concurrency(2), extent=Extent(duration_s=0.3, warmup_s=0.1))
    assert len(run.records) == run.requests_ok > 2
    assert len(server.asked) > len(run.records)  # the warm-up
    sent = [record.sent_ns for record in run.records]
    assert max(record.scheduled_ns for record in run.records) - min(sent) <= 300_000_000


def test_a_trace_is_replayed_in_its_order(ask: Callable[..., Run]) -> None:
    prompts = [{"text_input": text, "timestamp": at} for text, at in (("a", 0), ("b", 40))]
    with ScriptedTriton(lambda prompt: GOOD) as server:
        run = ask(server, *prompts, load=Trace())
    first, second = run.records
    assert second.scheduled_ns - first.scheduled_ns == 40_000_000  # a trace's stamps are in ms
    assert texts(server) == ["a", "b"]


def test_too_many_failures_end_the_run_with_what_was_done(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(lambda prompt: [Abort()] if prompt == "bad" else GOOD) as server:
        prompts = ["good", "bad", "bad", *["good"] * 50]
        run = ask(server, *prompts, load=Concurrency(1), stop_after_failures=2)
    assert [record.status for record in run.records][:3].count(Status.OK) == 1
    assert len(run.records) == 3
    assert run.stopped == "2 requests failed"
    assert run.notes[0].startswith("stopped early (2 requests failed): 3 of 53 requests")


def test_an_error_inside_a_stream_counts_as_a_failure(ask: Callable[..., Run]) -> None:
    from tests.client.scripted import Fail

    with ScriptedTriton(lambda prompt: [Fail("too long"), FINAL]) as server:
        run = ask(server, *"abcdef", load=Concurrency(1), stop_after_failures=3)
    assert len(run.records) == 3


def test_progress_tells_what_is_in_flight_and_how_fast(ask: Callable[..., Run]) -> None:
    seen: list[Progress] = []
    release = threading.Event()

    def script(prompt: str) -> list[Step]:
        if prompt == "b":
            release.wait(10)
        return GOOD

    def watch(progress: Progress) -> None:
        seen.append(progress)
        if progress.done == 1:
            release.set()

    with ScriptedTriton(script) as server:
        ask(server, "a", "b", load=Concurrency(2), watch=watch)
    waiting = next(progress for progress in seen if progress.done == 1)
    assert (waiting.total, waiting.in_flight, waiting.broken) == (2, 1, 0)
    assert (waiting.responses, waiting.tokens_per_response) == (3, pytest.approx(2 / 3))
    assert len(waiting.ttfts_ns) == 1
    assert (seen[-1].done, seen[-1].in_flight) == (2, 0)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("load", [Concurrency(4), Rate(40.0, "constant")])
def test_a_watch_that_has_seen_enough_ends_a_load_without_breaking_a_request_off(
    ask: Callable[..., Run], load: Load, workers: int
) -> None:
    prompts = [f"p{n}" for n in range(400)]
    with ScriptedTriton(lambda prompt: [Wait(0.1), *GOOD]) as server:
        run = ask(
            server,
            *prompts,
            load=load,
            workers=workers,
            watch=lambda seen: "that will do" if seen.done >= 4 else None,
        )
    assert run.stopped == "that will do"
    assert 4 <= len(run.records) == len(server.asked) < 400 and run.requests_failed == 0
    assert any("stopped early (that will do)" in note for note in run.notes)


def test_every_run_says_how_the_client_fared(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(lambda prompt: [Wait(0.1), *GOOD]) as server:
        health = ask(server, "a", "b", load=Concurrency(1)).health
    assert health is not None and health.workers == 1
    assert health.send_lag_p99_ms is not None and health.send_lag_p99_ms >= 0
    assert health.loop_lag_p99_ms is not None and health.loop_lag_p99_ms >= 0
    assert health.cpu_share > 0


def test_too_few_samples_are_not_called_client_bound() -> None:
    short = LoopSample((90_000_000,) * 20, cpu_ns=SECOND, wall_ns=SECOND)
    health = judge([short], [90_000_000] * 99)
    assert not health.client_bound
    assert health.summary.startswith("too short a run to judge; event-loop lag p99 90.00 ms")
    assert health.to_json()["too_few"] == ("loop_lag_p99_ms", "send_lag_p99_ms", "cpu_share")
    assert judge([short], [90_000_000] * 100).problems == ("send lag p99 90 ms > 10 ms",)
    # a loop that stalls for seconds is looked at a few times only
    assert len(judge([LoopSample((SECOND,) * 4, SECOND, 4 * SECOND)], []).problems) == 1


def test_a_client_over_a_limit_is_client_bound() -> None:
    fine = LoopSample((10_000,) * 100, cpu_ns=SECOND // 2, wall_ns=5 * SECOND)
    late = LoopSample(
        (10_000,) * 98 + (9_000_000,) * 2, cpu_ns=19 * SECOND // 4, wall_ns=5 * SECOND
    )
    assert not judge([fine], [1_000] * 100).client_bound
    health = judge([fine, late], [20_000_000] * 100)
    assert health.problems == (
        "event-loop lag p99 9 ms > 5 ms",
        "send lag p99 20 ms > 10 ms",
        "CPU share 0.95 of a core > 0.9 of a core",
    )
    assert health.summary.startswith("CLIENT-BOUND (event-loop lag p99 9 ms > 5 ms; ")
    assert health.to_json()["client_bound"] is True


def test_one_late_tick_in_a_hundred_is_no_verdict() -> None:
    once = LoopSample((10_000,) * 99 + (90_000_000,), cpu_ns=10, wall_ns=100)
    assert judge([once], []).loop_lag_p99_ms == pytest.approx(0.01)


def test_a_stuck_request_does_not_keep_the_others(ask: Callable[..., Run]) -> None:
    def script(prompt: str) -> list[Step]:
        return [Say("one", 1), Hang()] if prompt == "stuck" else GOOD

    with ScriptedTriton(script) as server:
        run = ask(server, "stuck", *"abc", load=AT_ONCE, request_timeout_s=0.5)
    assert [record.status.value for record in run.records] == ["timeout", "ok", "ok", "ok"]
