"""One run over several processes: nothing is lost, doubled or waited for in vain."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from multiprocessing import active_children

import pytest

from llm_perf.api import (
    Concurrency,
    Conditions,
    Extent,
    Load,
    Progress,
    Rate,
    Run,
    Trace,
)
from llm_perf.errors import UserError
from llm_perf.load.arrivals import plan
from llm_perf.load.runner import Job
from llm_perf.load.workers import RESPONSES_PER_WORKER, shares, workers_for
from llm_perf.transports import Endpoint as Place
from llm_perf.workload.workload import Prompt
from tests.client.scripted import Abort, Hang, Say, ScriptedTriton, Step, answer


@pytest.fixture
def ask(ask: Callable[..., Run]) -> Callable[..., Run]:
    return partial(ask, workers=2)


PROMPTS = [f"p{i}" for i in range(12)]


@pytest.mark.parametrize("load", [Concurrency(4), Rate(300.0)])
def test_workers_together_ask_every_prompt_once(load: Load, ask: Callable[..., Run]) -> None:
    with ScriptedTriton(answer) as server:
        run = ask(server, *PROMPTS, load=load, extent=Extent(warmup_requests=2))
    assert run.answers == tuple(f"re {prompt}." for prompt in PROMPTS)
    assert len(server.asked) == 14
    assert run.health is not None and run.health.workers == 2
    assert "2 warm-up requests are left out" in run.notes


def test_workers_share_the_concurrency(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(answer, hold=5) as server:
        run = ask(server, *PROMPTS, *PROMPTS, load=Concurrency(5), workers=3)
    assert server.peak == 5
    assert run.requests_ok == 24


def test_workers_keep_one_schedule_on_one_clock(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(answer) as server:
        run = ask(server, *PROMPTS, load=Rate(200.0, "constant"))
    due = [record.scheduled_ns for record in run.records]
    assert {later - earlier for earlier, later in pairwise(due)} == {5_000_000}
    assert all(record.sent_ns >= record.scheduled_ns for record in run.records)


def test_more_workers_than_streams_are_not_started(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(answer) as server:
        run = ask(server, *PROMPTS, load=Concurrency(1), workers=4)
    assert run.health is not None and run.health.workers == 1


def test_failures_of_all_workers_count_together(ask: Callable[..., Run]) -> None:
    def script(prompt: str) -> list[Step]:
        return [Hang()] if prompt in ("p0", "p1") else [Abort()]

    with ScriptedTriton(script) as server:
        run = ask(server, *PROMPTS, load=Concurrency(4), stop_after_failures=4)
    assert run.stopped is not None and run.stopped.endswith("requests failed")
    assert run.requests_ok == 0 and run.requests_failed >= 4


def test_progress_adds_up(ask: Callable[..., Run]) -> None:
    seen: list[Progress] = []
    with ScriptedTriton(answer) as server:
        ask(server, *PROMPTS, load=Concurrency(4), watch=seen.append)
    assert (seen[-1].done, seen[-1].total, seen[-1].in_flight) == (12, 12, 0)
    assert seen[-1].responses == 12 * 3


def test_what_is_wrong_in_a_worker_is_said_once(ask: Callable[..., Run]) -> None:
    with ScriptedTriton(answer) as server:
        server.configs.clear()
        with pytest.raises(UserError, match="has no model 'ensemble'"):
            ask(server, *PROMPTS, load=Concurrency(4))
    assert active_children() == []


def test_a_worker_that_dies_ends_the_run_with_what_the_others_have(ask: Callable[..., Run]) -> None:
    team = []

    def watch(seen: Progress) -> None:
        if seen.done == 2 and not team:  # one request each; both are stuck in their second
            team.extend(active_children())
            os.kill(team[0].pid, signal.SIGKILL)

    def script(prompt: str) -> list[Step]:
        return [Say("one", 1), Hang()] if prompt in ("p2", "p3") else answer(prompt)

    with ScriptedTriton(script) as server:
        run = ask(server, *PROMPTS, load=Concurrency(2), watch=watch)
    assert run.stopped == "a worker died; what it had not written yet is lost"
    assert run.requests_ok in (1, 2)  # the other's, and its own if that was on disk
    assert active_children() == []


def test_a_job_is_split_without_a_rest() -> None:
    prompts = tuple(Prompt(i, "p", 1, 1) for i in range(10))
    order = plan(Concurrency(8), Extent(), 10)
    job = Job(Place("h:1", "grpc", "m"), prompts, order, Conditions(max_in_flight=10))
    parts = shares(job, 3)
    assert [part.order.streams for part in parts] == [3, 3, 2]
    assert sum(part.conditions.max_in_flight for part in parts) >= 10


def test_auto_takes_more_than_one_worker_only_for_more_than_one_can_carry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    prompts = [Prompt(0, "p", 1, max_tokens=100)]
    assert workers_for(Concurrency(1), prompts) == 1
    assert workers_for(Concurrency(2000), prompts) == 2000 * 50 // RESPONSES_PER_WORKER
    assert workers_for(Rate(10), prompts) == 1
    assert workers_for(Rate(400), prompts) == 400 * 100 // RESPONSES_PER_WORKER
    assert workers_for(Rate(float("inf")), prompts) == 8
    assert workers_for(Trace(), prompts) == 1
