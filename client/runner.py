"""The clock: serialized requests, a load and a transport in, exchanges out.

Between its start and its end nothing is parsed, counted or collected.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns

from client.load import Load
from client.record import Exchange
from client.transports import Transport

_WATCH_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load is; ``broken`` streams failed (errors within are read later)."""

    done: int
    total: int
    broken: int


Watch = Callable[[Progress], None]


async def run_load(
    transport: Transport,
    requests: Sequence[tuple[str, bytes]],
    load: Load,
    timeout_s: float,
    watch: Watch | None = None,
) -> list[Exchange]:
    """Send all requests (id, bytes) in order under ``load``; exchange i is of request i."""
    exchanges = [Exchange(request_id) for request_id, _ in requests]
    waiting = iter(range(len(requests)))
    count = _Count(len(requests))

    async def slot() -> None:
        for index in waiting:
            seen = exchanges[index]
            seen.scheduled_ns = perf_counter_ns()  # closed loop: due as soon as a slot is free
            await transport.stream(requests[index][1], seen, timeout_s)
            count.note(seen)

    watcher = asyncio.create_task(count.report(watch)) if watch else None
    try:
        with _no_collector():
            await asyncio.gather(*(slot() for _ in range(min(load.n, len(requests)))))
    finally:
        if watcher:
            watcher.cancel()
    if watch:
        watch(count.progress)
    return exchanges


class _Count:
    """Counts what has ended, and tells about it now and then."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._broken = 0

    def note(self, seen: Exchange) -> None:
        self._done += 1
        self._broken += seen.failure is not None

    @property
    def progress(self) -> Progress:
        return Progress(self._done, self._total, self._broken)

    async def report(self, watch: Watch) -> None:
        while True:
            watch(self.progress)
            await asyncio.sleep(_WATCH_EVERY_S)


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
