"""Offering one load to the end: a job in, all that was seen out, whoever did it and however often.

Here or in workers, in one go or resumed after a cut; what a reader of the figures must know of it
comes along as remarks.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from llm_perf.ending import hearing_first
from llm_perf.errors import UserError
from llm_perf.load.arrivals import Open, without
from llm_perf.load.health import LoopSample
from llm_perf.load.journal import Kept, Numbers, resume_journal, start_journal
from llm_perf.load.ray_workers import run_on_ray
from llm_perf.load.runner import Job, Outcome, carry_out
from llm_perf.load.workers import run_workers
from llm_perf.loop import run_loop
from llm_perf.transports import Dialect

_OTHER_FILES = 64  # of a process, beside its connections


@dataclass(frozen=True, slots=True)
class Offered:
    """What came of a job: the exchanges that are measured, by number.

    ``send_lags_ns`` = sent − due, of those that were sent now and not held back on purpose.
    """

    kept: Kept
    dialect: Dialect
    samples: tuple[LoopSample, ...]
    send_lags_ns: Numbers
    stopped: str | None
    remarks: tuple[str, ...]


def offer(job: Job, head: Mapping[str, Any]) -> Offered:
    """Do a job with its workers, here or on the Ray cluster; blocks.

    To resume, only what the job's journal lacks is asked; ``head`` says of which run it must be.
    A job without a journal has a temporary one.
    Raises ``UserError`` as the transports and the journal do.
    """
    if job.conditions.journal is not None:
        return _offer(job, head)
    with TemporaryDirectory(prefix="llm_perf-") as folder:
        conditions = replace(job.conditions, journal=Path(folder, "journal.jsonl"), resume=False)
        return _offer(replace(job, conditions=conditions), head)


def _offer(job: Job, head: Mapping[str, Any]) -> Offered:
    job, room = _with_room(job)
    conditions = job.conditions
    assert conditions.journal is not None
    done: set[int] = set()
    elsewhere: list[str] = []
    if conditions.resume:
        anyway = conditions.resume_anyway
        before, elsewhere = resume_journal(conditions.journal, head, anyway=anyway)
        done = {number for number, _ in before}
        job = replace(job, order=without(job.order, done, before.passed_ns))
    else:
        start_journal(conditions.journal, head)
    outcomes = _outcomes(job)
    rest = {number: seen for part in outcomes for number, seen in part.exchanges.items()}
    kept = Kept(conditions.journal, rest)
    held = [number for part in outcomes for number in part.held]
    lags = (kept.sent_ns - kept.scheduled_ns)[~np.isin(kept.numbers, [*held, *done])]
    return Offered(
        kept=kept,
        dialect=outcomes[0].dialect,
        samples=tuple(part.sample for part in outcomes),
        send_lags_ns=lags,
        stopped=outcomes[0].stopped,
        remarks=(*room, *_remarks(job, outcomes, len(done), len(kept), elsewhere)),
    )


def _with_room(job: Job) -> tuple[Job, list[str]]:
    """See that a process may open as many connections as it needs: over HTTP one per stream.

    The soft limit of open files is raised to the hard one. An open loop, whose streams nobody
    knows, has fewer in flight where that doesn't reach; raises ``UserError`` for a closed one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    workers = job.conditions.workers or 1
    if job.endpoint.protocol == "grpc" or hard == resource.RLIM_INFINITY:
        return job, []
    most = (hard - _OTHER_FILES) * workers
    if isinstance(job.order, Open):
        if min(job.order.streams, job.conditions.max_in_flight) <= most:
            return job, []
        conditions = replace(job.conditions, max_in_flight=most)
        said = (
            f"at most {most} requests were in flight: a process may open {hard} files (ulimit -n)"
        )
        return replace(job, conditions=conditions), [said]
    if job.order.streams > most:
        raise UserError(
            f"{job.order.streams} connections need more files than a process may open here "
            f"({hard}, with {workers} worker{'s' if workers > 1 else ''})",
            fix="raise the hard limit (ulimit -Hn), or share the load among more --workers",
        )
    return job, []


def _outcomes(job: Job) -> list[Outcome]:
    conditions = job.conditions
    if conditions.ray is not None:
        return run_on_ray(conditions.ray, job)
    if conditions.workers is not None and conditions.workers > 1:
        return run_workers(job, conditions.workers)
    return [run_loop(_carry_out(job))]


async def _carry_out(job: Job) -> Outcome:
    """Do a job on this thread's event loop."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[str] = loop.create_future()

    def interrupt() -> None:
        if not stop.done():
            stop.set_result("interrupted")

    hearing = hearing_first(lambda: loop.call_soon_threadsafe(interrupt))
    with hearing if job.conditions.interruptible else nullcontext():
        return await carry_out(job, stop)


def _remarks(
    job: Job, outcomes: Sequence[Outcome], before: int, measured: int, elsewhere: Sequence[str]
) -> tuple[str, ...]:
    """Say how the figures were taken, where it was not the plain way; a sentence each."""
    warmup = sum(part.warmups for part in outcomes)
    stopped = outcomes[0].stopped
    of = "" if job.order.total is None else f" of {before + job.order.total}"
    held = sum(len(part.held) for part in outcomes)
    facts = (
        (stopped, f"stopped early ({stopped}): {measured}{of} requests are in the figures"),
        (
            before,
            f"resumed: {before} of {measured} requests are from before the cut, the pause is "
            "taken out of the clock",
        ),
        (
            elsewhere,
            f"resumed anyway at another server ({', '.join(elsewhere)} differs): the figures mix "
            "both, and only the last one is named",
        ),
        (warmup, f"{warmup} warm-up requests are left out"),
        (held, f"{held} requests waited for room: more were due than may be in flight"),
        *((part.remark, part.remark) for part in outcomes),
    )
    return tuple(str(said) for true, said in facts if true)
