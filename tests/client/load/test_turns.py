"""In what order requests are sent and answers read, when many streams end at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import accumulate
from time import perf_counter_ns
from typing import Any

import pytest

from llm_perf.load.arrivals import plan
from llm_perf.load.load import ONCE, Concurrency, Conditions
from llm_perf.load.requests import Requests
from llm_perf.load.runner import _offer
from llm_perf.load.turns import AT_ONCE, Turns
from llm_perf.record import Chunk, Exchange, Status
from llm_perf.workload.workload import Prompt
from tests.client.listening import LOOPS

STREAMS, ROUNDS = 64, 3


class Plain:
    remarks = ()

    def request(self, prompt: Prompt, _request_id: str) -> bytes:
        return prompt.text.encode()

    def parse(self, _message: bytes) -> Chunk:
        return Chunk(b"x", final=True)


class Lockstep:
    """A transport whose requests all end when the last slot has asked; it notes what happens."""

    dialect = Plain()

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.seen: list[Exchange] = []
        self._open: list[asyncio.Future[None]] = []

    async def stream(self, _request: bytes, seen: Exchange, _timeout_s: float) -> None:
        self.happened.append("send")
        self.seen.append(seen)
        seen.sent_ns = perf_counter_ns()
        ended = asyncio.get_running_loop().create_future()
        self._open.append(ended)
        if len(self._open) == STREAMS:
            for each in self._open:
                each.set_result(None)
            self._open.clear()
        await ended
        seen.end_ns = perf_counter_ns()

    def read(self, seen: Exchange) -> None:
        self.happened.append("read")
        seen.messages.append((seen.end_ns, b"x"))

    def so_far(self, _seen: Exchange) -> list[bytes]:
        return []

    async def close(self) -> None:
        pass


async def offered(transport: Lockstep) -> Requests:
    prompts = [Prompt(0, "p", 1, 1)]
    stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    requests = Requests(transport, prompts, Conditions(), stop)
    order = plan(Concurrency(STREAMS), ONCE, STREAMS * ROUNDS)
    await _offer(order, STREAMS, requests, perf_counter_ns())
    requests.catch_up()
    return requests


@pytest.mark.parametrize("loop", LOOPS)
def test_slots_that_end_together_all_send_again_before_an_answer_is_read(loop: str) -> None:
    transport = Lockstep()
    requests: Requests = LOOPS[loop](offered(transport))
    assert len(requests.finished) == STREAMS * ROUNDS
    assert all(each.messages for each in requests.finished.values())
    sends = list(accumulate(each == "send" for each in transport.happened))
    sent_before_reads = {
        sent for sent, what in zip(sends, transport.happened, strict=True) if what == "read"
    }
    assert sent_before_reads <= {STREAMS * each for each in range(1, ROUNDS + 1)}


def test_a_closed_loops_request_is_due_when_its_slot_became_free() -> None:
    transport = Lockstep()
    asyncio.run(offered(transport))
    ends = sorted(each.end_ns for each in transport.seen[:-STREAMS])
    assert sorted(each.scheduled_ns for each in transport.seen[STREAMS:]) == ends
    assert all(each.sent_ns >= each.scheduled_ns for each in transport.seen)


def test_a_fault_in_reading_ends_the_run_with_its_cause() -> None:
    class Broken(Lockstep):
        def read(self, seen: Exchange) -> None:
            raise ArithmeticError("odd")

    async def run() -> str:
        stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        requests = Requests(Broken(), [Prompt(0, "p", 1, 1)], Conditions(), stop)
        offering = [asyncio.create_task(requests.ask(number, 0)) for number in range(STREAMS)]
        await asyncio.gather(*offering)
        return await stop

    with pytest.raises(ArithmeticError, match="odd"):
        asyncio.run(run())


class Told(Lockstep):
    """A transport whose requests end when and as they are told to, in turn."""

    def __init__(self, *ends: tuple[float, Status | None]) -> None:
        super().__init__()
        self.ends = iter(ends)

    async def stream(self, _request: bytes, seen: Exchange, _timeout_s: float) -> None:
        end_s, status = next(self.ends)
        seen.end_ns = int(end_s * 1e9)
        seen.failure = status and (status, "nobody there")


@pytest.mark.parametrize(
    ("first", "second", "stopped"),
    [
        ((1.0, None), (2.0, Status.REFUSED), True),  # the answer is read after the refusal
        ((2.0, Status.REFUSED), (2.5, None), False),
        ((2.0, Status.REFUSED), (2.5, Status.ERROR), False),
        ((2.0, Status.REFUSED), (2.5, Status.TIMEOUT), True),
    ],
)
def test_an_answer_that_ended_before_a_refusal_does_not_count_as_life_after_it(
    first: tuple[float, Status | None], second: tuple[float, Status | None], stopped: bool
) -> None:
    transport = Told(first, second, (3.0, Status.REFUSED))

    async def run() -> str | None:
        stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        requests = Requests(transport, [Prompt(0, "p", 1, 1)], Conditions(give_up_after_s=1), stop)
        await requests.ask(0, 0)
        await requests.ask(1, 0)
        await asyncio.sleep(0)  # answers are read
        await requests.ask(2, 0)
        return stop.result() if stop.done() else None

    why = asyncio.run(run())
    assert why == ("for 1 s nothing but refusals: nobody there" if stopped else None)


def rounds(turns: Turns, steps: int, taken: list[int]) -> Coroutine[Any, Any, list[int]]:
    """How many of ``steps`` were taken by each look at the sockets."""

    async def look() -> list[int]:
        for number in range(steps):
            turns.later(_noting(taken, number))
        seen = []
        while len(taken) < steps:
            await asyncio.sleep(0)
            seen.append(len(taken))
        return seen

    return look()


def _noting(taken: list[int], number: int) -> Callable[[], None]:
    return lambda: taken.append(number)


def test_between_two_looks_at_the_sockets_only_a_few_answers_are_read() -> None:
    taken: list[int] = []
    seen = asyncio.run(rounds(Turns(), 100, taken))
    assert taken == list(range(100))
    steps = [later - earlier for earlier, later in zip([0, *seen], seen, strict=False)]
    assert max(steps) <= AT_ONCE


def test_between_two_looks_at_the_sockets_only_a_few_requests_go_out() -> None:
    async def run() -> list[int]:
        turns, sent, looks = Turns(), 0, []

        async def send() -> None:
            nonlocal sent
            await turns.turn()
            sent += 1

        tasks = [asyncio.create_task(send()) for _ in range(100)]
        tasks[50].cancel()
        while not all(task.done() for task in tasks):
            before = sent
            await asyncio.sleep(0)
            looks.append(sent - before)
        assert sent == 99
        return looks

    assert max(asyncio.run(run())) <= 2 * AT_ONCE
