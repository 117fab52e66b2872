"""Offering one load to the end: a job in, all that was seen out, whoever did it and however often.

Here or in workers, in one go or resumed after a cut; what a reader of the figures must know of it
comes along as remarks.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llm_perf.load.arrivals import without
from llm_perf.load.health import LoopSample
from llm_perf.load.journal import read_journal, start_journal
from llm_perf.load.loop import run_loop
from llm_perf.load.ray_workers import run_on_ray
from llm_perf.load.runner import Job, Outcome, carry_out
from llm_perf.load.workers import ENDING, run_workers
from llm_perf.record import Exchange, shifted
from llm_perf.transports import Dialect


@dataclass(frozen=True, slots=True)
class Offered:
    """What came of a job: exchanges by number, below 0 those of the warm-up.

    ``send_lags_ns`` = sent − due, of those that were sent now and not held back on purpose.
    """

    exchanges: dict[int, Exchange]
    dialect: Dialect
    samples: tuple[LoopSample, ...]
    send_lags_ns: tuple[int, ...]
    stopped: str | None
    remarks: tuple[str, ...]


def offer(job: Job, head: Mapping[str, Any]) -> Offered:
    """Do a job with its workers, here or on the Ray cluster; blocks.

    To resume, only what the job's journal lacks is asked; ``head`` says of which run it must be.
    Raises ``UserError`` as the transports and the journal do.
    """
    conditions = job.conditions
    before: dict[int, Exchange] = {}
    if conditions.journal is not None and conditions.resume:
        before = read_journal(conditions.journal, head)
    elif conditions.journal is not None:
        start_journal(conditions.journal, head)
    first_ns = min((seen.sent_ns for seen in before.values()), default=0)
    passed_ns = max((seen.end_ns for seen in before.values()), default=0) - first_ns
    left = replace(job, order=without(job.order, before, passed_ns)) if before else job
    if conditions.ray is not None:
        outcomes = run_on_ray(conditions.ray, left)
    elif conditions.workers is not None and conditions.workers > 1:
        outcomes = run_workers(left, conditions.workers)
    else:
        outcomes = [run_loop(_carry_out(left))]
    now = {number: seen for part in outcomes for number, seen in part.exchanges.items()}
    held = {number for part in outcomes for number in part.held}
    exchanges = {**_moved_before(before, now), **now}
    return Offered(
        exchanges=exchanges,
        dialect=outcomes[0].dialect,
        samples=tuple(part.sample for part in outcomes),
        send_lags_ns=tuple(
            seen.sent_ns - seen.scheduled_ns for number, seen in now.items() if number not in held
        ),
        stopped=outcomes[0].stopped,
        remarks=_remarks(job, outcomes, len(before), exchanges),
    )


def _moved_before(before: dict[int, Exchange], now: Mapping[int, Exchange]) -> dict[int, Exchange]:
    """Take the pause between two parts of a run out of the clock: one ends as the other begins."""
    last_ns = max((seen.end_ns for seen in before.values()), default=0)
    first_ns = min((seen.sent_ns for seen in now.values()), default=last_ns)
    return {number: shifted(seen, first_ns - last_ns) for number, seen in before.items()}


async def _carry_out(job: Job) -> Outcome:
    """Do a job on this thread's event loop."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[str] = loop.create_future()

    def interrupt() -> None:
        for each in ENDING:  # the next one is what it was before
            loop.remove_signal_handler(each)
        if not stop.done():
            stop.set_result("interrupted")

    heard = job.conditions.interruptible and threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in ENDING} if heard else {}
    for each in before:
        loop.add_signal_handler(each, interrupt)
    try:
        return await carry_out(job, stop)
    finally:
        for each, handler in before.items():
            loop.remove_signal_handler(each)
            signal.signal(each, handler)


def _remarks(
    job: Job, outcomes: Sequence[Outcome], before: int, exchanges: Mapping[int, Exchange]
) -> tuple[str, ...]:
    """Say how the figures were taken, where it was not the plain way; a sentence each."""
    measured = sum(number >= 0 for number in exchanges)
    warmup = len(exchanges) - measured
    stopped = outcomes[0].stopped
    of = "" if job.order.total is None else f" of {job.order.total}"
    held = sum(len(part.held) for part in outcomes)
    facts = (
        (stopped, f"stopped early ({stopped}): {measured}{of} requests are in the figures"),
        (
            before,
            f"resumed: {before} of {measured} requests are from before the cut, the pause is "
            "taken out of the clock",
        ),
        (warmup, f"{warmup} warm-up requests are left out"),
        (held, f"{held} requests waited for room: more were due than may be in flight"),
        *((part.remark, part.remark) for part in outcomes),
    )
    return tuple(str(said) for true, said in facts if true)
