"""The clock: an order of requests in, exchanges out, on one event loop.

Requests are connected for and serialized before the start; between start and end no answer is read
and no garbage collected. Whether other loops do the rest of the order is no concern of this one.
"""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter_ns, process_time_ns
from typing import TypeAlias

from llm_perf.load.arrivals import Closed, Open, Order
from llm_perf.load.health import LoopSample
from llm_perf.load.journal import Journal
from llm_perf.load.load import Conditions
from llm_perf.load.progress import Watch
from llm_perf.load.requests import Requests
from llm_perf.loop import Pacer
from llm_perf.record import Exchange, Status
from llm_perf.transports import Dialect, Endpoint, connect
from llm_perf.workload.workload import Prompt

_WATCH_EVERY_S = 0.5
_NS = 10**9
_PROBE_EVERY_NS = 20_000_000
_AHEAD = 200_000  # requests serialized before the start: a bound for the memory
_STREAMS_AHEAD = 1024  # connections are made before the start at most
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 1.0  # of a slot whose requests are refused


@dataclass(frozen=True, slots=True)
class Job:
    """What one event loop is to do; it can be sent to another process."""

    endpoint: Endpoint
    prompts: tuple[Prompt, ...]
    order: Order
    conditions: Conditions


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job: exchanges by number, how the loop fared, how to read the messages.

    Of a job with a journal ``exchanges`` are those that could not be written to it.
    ``stopped`` says why the job ended before its time; what was in flight then is left out, unless
    it was the watch that had seen enough.
    ``held`` are the numbers that ``max_in_flight`` kept from being sent when they were due.
    """

    exchanges: dict[int, Exchange]
    sample: LoopSample
    dialect: Dialect
    stopped: str | None = None
    remark: str | None = None
    held: tuple[int, ...] = ()
    warmups: int = 0


Begin: TypeAlias = Callable[[], Awaitable[int]]
"""Called when all is ready; gives the ``perf_counter_ns`` of the start."""


async def carry_out(
    job: Job, stop: asyncio.Future[str] | None = None, begin: Begin | None = None
) -> Outcome:
    """Do a job, or what can be done of it before ``stop`` has a result.

    It starts at once unless ``begin`` says when.
    Raises ``UserError`` when nothing answers at the endpoint, or the model is unknown or unfit.
    """
    stop = stop or asyncio.get_running_loop().create_future()
    conditions = job.conditions
    trial = next((each for each in job.prompts if each.min_tokens is not None), job.prompts[0])
    transport = await connect(job.endpoint, _streams_ahead(job), conditions.defaults, trial)
    try:
        with Journal(conditions.journal) if conditions.journal else nullcontext() as journal:
            requests = Requests(transport, job.prompts, conditions, stop, journal)
            requests.prepare(_first(job.order, len(job.prompts)))
            sample = await _run(requests, job, begin)
    finally:
        await transport.close()
    return Outcome(
        exchanges=journal.kept if journal else requests.finished,
        sample=sample,
        dialect=transport.dialect,
        stopped=stop.result() if stop.done() else requests.enough,
        remark=journal.failure if journal else None,
        held=tuple(requests.held),
        warmups=requests.warmups,
    )


async def _run(requests: Requests, job: Job, begin: Begin | None) -> LoopSample:
    lags: list[int] = []
    watch, most = job.conditions.watch, job.conditions.max_in_flight
    aside: list[asyncio.Task[None]] = []
    with _no_collector():
        if watch:
            aside.append(asyncio.create_task(_report(requests, job.order.total, watch)))
        if job.order.warmup:  # over before the first that is measured
            await _until_stopped(
                _offer(job.order.warming, most, requests, perf_counter_ns()), requests
            )
        start_ns = await begin() if begin else perf_counter_ns()
        aside.append(asyncio.create_task(_probe(start_ns, lags)))
        cpu, wall = process_time_ns(), perf_counter_ns()
        await _until_stopped(_offer(job.order, most, requests, start_ns), requests)
        cpu, wall = process_time_ns() - cpu, perf_counter_ns() - wall
        for task in aside:
            task.cancel()
        ended = await asyncio.gather(*aside, return_exceptions=True)
    for error in ended:
        if isinstance(error, Exception):  # a cancellation is none
            raise error
    if watch:
        await asyncio.to_thread(watch, requests.look(job.order.total))
    return LoopSample(tuple(lags), cpu, wall)


async def _until_stopped(offer: Coroutine[object, object, None], requests: Requests) -> None:
    """Offer to the end, or until the requests' ``stop`` has a result."""
    offering = asyncio.create_task(offer)
    await asyncio.wait((offering, requests.stop), return_when=asyncio.FIRST_COMPLETED)
    offering.cancel()
    (error,) = await asyncio.gather(offering, return_exceptions=True)
    requests.catch_up()
    if isinstance(error, Exception):  # a cancellation is none
        raise error


def _streams_ahead(job: Job) -> int:
    """For how many streams there is a connection before the start.

    A closed loop needs one each; an open one as many as are due in its first second.
    """
    order = job.order
    if isinstance(order, Closed):
        return max(order.streams, 1)
    soon = sum(at < _NS for _, at in order.dues[:_STREAMS_AHEAD])
    return max(1, min(soon, job.conditions.max_in_flight))


def _offer(
    order: Order, max_in_flight: int, requests: Requests, start_ns: int
) -> Coroutine[object, object, None]:
    if isinstance(order, Closed):
        return _offer_closed(order, requests, start_ns)
    return _offer_open(order, max_in_flight, requests, start_ns)


async def _offer_closed(order: Closed, requests: Requests, start_ns: int) -> None:
    end_ns = math.inf if order.duration_ns is None else start_ns + order.duration_ns
    numbers = iter(order.numbers)

    async def slot(offset_ns: int) -> None:
        await asyncio.sleep((start_ns + offset_ns - perf_counter_ns()) / 1e9)
        pause_s, due_ns = 0.0, start_ns + offset_ns
        while not (requests.stop.done() or requests.enough) and perf_counter_ns() < end_ns:
            if (number := next(numbers, None)) is None:
                return
            seen = await requests.ask(number, due_ns)
            pause_s, due_ns = _pause_s(seen, pause_s), seen.end_ns  # an end frees the slot
            if pause_s:
                due_ns += int(pause_s * _NS)
                await asyncio.sleep((min(due_ns, end_ns) - perf_counter_ns()) / _NS)

    await asyncio.gather(*(slot(offset_ns) for offset_ns in order.slots))


def _pause_s(seen: Exchange, before_s: float) -> float:
    """How long a slot waits after an exchange: what the server said, or longer each time."""
    if seen.retry_after_s is not None:
        return seen.retry_after_s
    if seen.failure is None or seen.failure[0] is not Status.REFUSED:
        return 0.0
    return min(max(2 * before_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)


async def _offer_open(order: Open, max_in_flight: int, requests: Requests, start_ns: int) -> None:
    room = asyncio.Semaphore(max_in_flight)
    tasks: set[asyncio.Task[Exchange]] = set()

    def over(task: asyncio.Task[Exchange]) -> None:
        tasks.discard(task)
        room.release()
        if not task.cancelled() and (error := task.exception()) and not requests.stop.done():
            requests.stop.set_exception(error)

    free_ns = 0  # when there was room again after there had been none
    try:
        with closing(Pacer()) as pacer:
            for number, offset_ns in order.dues:
                await pacer.until(start_ns + offset_ns)
                if requests.enough:
                    break
                full = room.locked()
                await room.acquire()
                free_ns = perf_counter_ns() if full else free_ns
                if start_ns + offset_ns < free_ns:  # it, or one before it, waited for room
                    requests.held.append(number)
                task = asyncio.create_task(requests.ask(number, start_ns + offset_ns))
                tasks.add(task)
                task.add_done_callback(over)
                await asyncio.sleep(0)  # it is sent now, and answers are read between sends
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _first(order: Order, prompts: int) -> Iterable[int]:
    """Number those that are serialized ahead: of an endless order, the data set once."""
    if isinstance(order, Open):
        return (number for number, _ in (*order.warmup, *order.dues)[:_AHEAD])
    many = prompts if order.total is None else _AHEAD
    return (*order.warmup[:prompts], *order.numbers[:many])


async def _report(requests: Requests, total: int | None, watch: Watch) -> None:
    while True:
        requests.enough = await asyncio.to_thread(watch, requests.look(total)) or requests.enough
        await asyncio.sleep(_WATCH_EVERY_S)


async def _probe(start_ns: int, lags: list[int]) -> None:
    """Note how late the loop comes back from a sleep, fifty times a second."""
    due = max(start_ns, perf_counter_ns())
    with closing(Pacer()) as pacer:
        while True:
            due += _PROBE_EVERY_NS
            await pacer.until(due)
            now = perf_counter_ns()
            lags.append(now - due)
            due = max(due, now)  # what a stall has made late counts once


@contextmanager
def _no_collector() -> Iterator[None]:
    """Keep the garbage collector from stopping the loop while the clock runs."""
    was_on = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()
