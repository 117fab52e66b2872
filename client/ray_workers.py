"""One run over several machines of a Ray cluster: the same shares as ``workers``, as actors.

Each machine has this project installed. Their monotonic clocks have nothing to do with each other,
so each one's offset to ours is measured before and after the run, and stamps are moved by it. What
lies between two stamps of one request is of one clock and stays exact.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter_ns
from typing import Any

from client.errors import UserError
from client.progress import Progress, Watch, add_up
from client.record import shifted
from client.runner import Job, Outcome, carry_out
from client.workers import shares

_LOOK_EVERY_S = 0.5
_START_AFTER_NS = 200_000_000  # until the word has come to all machines
_PATIENCE_S = 120.0  # for machines to start a worker each and connect
_ROUNDS = 30  # of asking for the time; the quickest counts


@dataclass(frozen=True, slots=True)
class Offset:
    """A clock is ``ns`` ahead of ours, give or take ``error_ns``."""

    ns: int
    error_ns: int


def run_on_ray(
    address: str, job: Job, workers: int | None, watch: Watch | None, interruptible: bool
) -> list[Outcome]:
    """Do a job with actors on a cluster, one per machine unless ``workers`` says otherwise.

    Raises ``UserError`` when there is no such cluster, and what a worker raised.
    """
    ray = _connect(address)
    try:
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        worker = ray.remote(_Worker).options(
            scheduling_strategy="SPREAD", num_cpus=1, max_concurrency=8
        )
        parts = shares(replace(job, journal=None), workers or nodes)
        return _Crew(ray, [worker.remote() for _ in parts], job, watch).do(parts, interruptible)
    finally:
        ray.shutdown()


def _connect(address: str) -> Any:
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise UserError(
            "Ray isn't installed", where="--ray", fix="pip install 'trtllm-deploy[ray]'"
        ) from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster at {address!r} ({error})",
            where="--ray",
            fix="start one with ray start --head, or give its address",
        ) from error
    return ray


class _Crew:
    """The actors of one run."""

    def __init__(self, ray: Any, actors: Sequence[Any], job: Job, watch: Watch | None) -> None:
        self._ray = ray
        self._actors = actors
        self._job = job
        self._watch = watch
        self._stopped: str | None = None

    def do(self, parts: Sequence[Job], interruptible: bool) -> list[Outcome]:
        """Start all together, follow them, and bring what they saw onto our clock."""
        pairs = list(zip(self._actors, parts, strict=True))
        running = [actor.carry_out.remote(part) for actor, part in pairs]
        self._wait_until_ready(running)
        before = [self._offset(actor) for actor in self._actors]
        start_ns = perf_counter_ns() + _START_AFTER_NS
        for actor, offset in zip(self._actors, before, strict=True):
            actor.start.remote(start_ns + offset.ns)
        outcomes = self._follow(running, interruptible)
        after = [self._offset(actor) for actor in self._actors]
        return [
            self._on_our_clock(outcome, *offsets)
            for outcome, *offsets in zip(outcomes, before, after, strict=True)
        ]

    def _wait_until_ready(self, running: list[Any]) -> None:
        ready = [actor.until_ready.remote() for actor in self._actors]
        try:
            self._ray.get(ready, timeout=_PATIENCE_S)
        except self._ray.exceptions.GetTimeoutError:
            raise UserError(
                f"the Ray cluster has not begun {len(ready)} workers within {_PATIENCE_S:g} s",
                fix="give fewer --workers, or free a CPU for each",
            ) from None
        if failed := self._ray.wait(running, timeout=0)[0]:  # before the others start
            self._collect(failed)

    def _follow(self, running: list[Any], interruptible: bool) -> list[Outcome]:
        left = running
        while left:
            try:
                _, left = self._ray.wait(left, num_returns=len(left), timeout=_LOOK_EVERY_S)
                self._look()
            except KeyboardInterrupt:
                if not interruptible or self._stopped:
                    raise
                self._stop("interrupted")
        return self._collect(running)

    def _collect(self, ended: list[Any]) -> list[Outcome]:
        try:
            outcomes: list[Outcome] = self._ray.get(ended)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        return outcomes

    def _look(self) -> None:
        parts: list[Progress] = self._ray.get([actor.look.remote() for actor in self._actors])
        seen = add_up(parts, self._job.order.total)
        if self._watch:
            self._watch(seen)
        limit = self._job.stop_after_failures
        if limit is not None and seen.broken >= limit:
            self._stop(f"{seen.broken} requests failed")

    def _stop(self, why: str) -> None:
        if self._stopped is None:
            self._stopped = why
            self._ray.get([actor.stop.remote(why) for actor in self._actors])

    def _offset(self, actor: Any) -> Offset:
        """Ask an actor for the time: as in NTP, it was read half way between asking and hearing."""
        rounds = []
        for _ in range(_ROUNDS):
            asked = perf_counter_ns()
            theirs: int = self._ray.get(actor.clock.remote())
            heard = perf_counter_ns()
            rounds.append((heard - asked, theirs - (asked + heard) // 2))
        trip, offset = min(rounds)
        return Offset(offset, trip // 2)

    def _on_our_clock(self, outcome: Outcome, before: Offset, after: Offset) -> Outcome:
        """Move stamps by the mean of both offsets; what they differ by is drift."""
        by_ns = -(before.ns + after.ns) // 2
        error_ns = max(before.error_ns, after.error_ns) + abs(after.ns - before.ns) // 2
        moved = {number: shifted(seen, by_ns) for number, seen in outcome.exchanges.items()}
        remark = f"a Ray worker's clock was {by_ns / -1e6:+.3f} ms off, ± {error_ns / 1e6:.3f} ms"
        return replace(outcome, exchanges=moved, stopped=self._stopped, remark=remark)


class _Worker:
    """An actor: does one share on an event loop of its own while its other methods are called.

    None of them is a coroutine: Ray would run all on one loop then, and none beside another.
    """

    def __init__(self) -> None:
        self.ready = threading.Event()
        self.begin = threading.Event()
        self.start_ns = 0
        self.seen = Progress(0, None, 0)
        self.stopping: tuple[asyncio.AbstractEventLoop, asyncio.Future[str]] | None = None

    def clock(self) -> int:
        return perf_counter_ns()

    def until_ready(self) -> None:
        self.ready.wait()

    def start(self, start_ns: int) -> None:
        self.start_ns = start_ns
        self.begin.set()

    def look(self) -> Progress:
        return self.seen

    def stop(self, why: str) -> None:
        if self.stopping is not None:
            loop, stop = self.stopping
            loop.call_soon_threadsafe(_settle, stop, why)

    def carry_out(self, job: Job) -> Outcome:
        try:
            return asyncio.run(_carry_out(self, job))
        finally:
            self.stopping = None
            self.ready.set()  # also when it failed: nobody waits for ever


async def _carry_out(worker: _Worker, job: Job) -> Outcome:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[str] = loop.create_future()
    worker.stopping = loop, stop

    def watch(seen: Progress) -> None:
        worker.seen = seen

    async def begin() -> int:
        worker.ready.set()
        await asyncio.to_thread(worker.begin.wait)
        return worker.start_ns

    return await carry_out(job, begin, stop, watch)


def _settle(stop: asyncio.Future[str], why: str) -> None:
    if not stop.done():
        stop.set_result(why)
