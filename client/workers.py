"""One run over several processes of this machine: a job in, the outcomes of its shares out.

Each worker has its own event loop and every so-manieth request. All start at one time of the
monotonic clock, which they share, so their stamps need no conversion.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from time import perf_counter_ns
from typing import Any

from client.errors import UserError
from client.load import Concurrency, Load, Rate
from client.loop import run_loop
from client.progress import Progress, Watch, add_up
from client.runner import Job, Outcome, carry_out
from client.schedule import share
from client.workload import Prompt

START_AFTER_NS = 50_000_000  # so that the word has come to all before the time has
RESPONSES_PER_WORKER = 15_000  # a second: a core half used, so that queues stay short
_STREAM_SPEED = 50  # responses/s: a stream at the 20 ms a token that people call fast


def workers_for(load: Load, prompts: Sequence[Prompt]) -> int:
    """Choose a number of workers: one per 15,000 responses/s to expect, and never above the CPUs.

    A rate is expected to bring each prompt's ``max_tokens`` in responses, a closed loop 50 a second
    for each stream. A trace gets one.
    """
    if isinstance(load, Concurrency):
        expected = float(load.n * _STREAM_SPEED)
    elif isinstance(load, Rate):
        expected = load.per_s * sum(prompt.max_tokens for prompt in prompts) / len(prompts)
    else:
        expected = 0.0
    cpus = len(os.sched_getaffinity(0))
    return max(1, min(cpus, int(min(expected, 1e9) / RESPONSES_PER_WORKER)))


def shares(job: Job, workers: int) -> list[Job]:
    """Split a job, at most into as many as it has streams."""
    count = max(1, min(workers, job.order.streams))
    return [
        replace(
            job,
            order=share(job.order, worker, count),
            max_in_flight=-(-job.max_in_flight // count),
            stop_after_failures=None,  # who hears of all failures decides
        )
        for worker in range(count)
    ]


def run_workers(job: Job, workers: int, watch: Watch | None, interruptible: bool) -> list[Outcome]:
    """Do a job with several processes.

    A worker that dies ends the run; what the others finished is kept. Raises what a worker raised.
    """
    context = get_context("spawn")
    team: list[tuple[Any, Connection]] = []
    try:
        for part in shares(job, workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(part, theirs), daemon=True)
            process.start()
            theirs.close()
            team.append((process, ours))
        return _Foreman(job, [pipe for _, pipe in team], watch, interruptible).see_through()
    finally:
        for process, pipe in team:
            pipe.close()  # a worker whose pipe closes stops
            process.join(5)
            if process.is_alive():
                process.kill()


class _Foreman:
    """Starts the workers together, hears their progress and tells them when to stop."""

    def __init__(
        self, job: Job, pipes: Sequence[Connection], watch: Watch | None, interruptible: bool
    ) -> None:
        self._job = job
        self._open = list(pipes)
        self._watch = watch
        self._interruptible = interruptible
        self._glimpses: dict[Connection, Progress] = {}
        self._ready = 0
        self._outcomes: list[Outcome] = []
        self._stopped: str | None = None

    def see_through(self) -> list[Outcome]:
        """Serve the pipes until every worker has handed in its outcome."""
        while self._open:
            try:
                for pipe in wait(self._open):
                    assert isinstance(pipe, Connection)
                    self._hear(pipe)
            except KeyboardInterrupt:
                if not self._interruptible or self._stopped:
                    raise
                self._stop("interrupted")
        if not self._outcomes:
            raise UserError("all workers died", fix="see the system's log; memory may be short")
        return [replace(outcome, stopped=self._stopped) for outcome in self._outcomes]

    def _hear(self, pipe: Connection) -> None:
        try:
            said = pipe.recv()
        except (EOFError, ConnectionResetError):
            self._open.remove(pipe)
            self._stop("a worker died; what it had in memory is lost")
            return
        if isinstance(said, Progress):
            self._glimpses[pipe] = said
            self._look()
        elif isinstance(said, Outcome):
            self._open.remove(pipe)
            self._outcomes.append(said)
        elif isinstance(said, BaseException):
            raise said
        else:
            self._ready += 1
            if self._ready == len(self._open):
                self._tell(perf_counter_ns() + START_AFTER_NS)

    def _look(self) -> None:
        seen = add_up(list(self._glimpses.values()), self._job.order.total)
        if self._watch:
            self._watch(seen)
        limit = self._job.stop_after_failures
        if limit is not None and seen.broken >= limit:
            self._stop(f"{seen.broken} requests failed")

    def _stop(self, why: str) -> None:
        if self._stopped is None:
            self._stopped = why
            self._tell(why)

    def _tell(self, word: int | str) -> None:
        for pipe in self._open:
            with suppress(BrokenPipeError):  # its end is heard of next
                pipe.send(word)


def _work(job: Job, pipe: Connection) -> None:
    """Be a worker process: ready, the start, glimpses, the outcome."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the foreman's to hear
    try:
        said: object = run_loop(_carry_out(job, pipe))
    except Exception as error:
        said = error
    with suppress(BrokenPipeError):  # nobody may wait for it any more
        pipe.send(said)


async def _carry_out(job: Job, pipe: Connection) -> Outcome:
    loop = asyncio.get_running_loop()
    start: asyncio.Future[int] = loop.create_future()
    stop: asyncio.Future[str] = loop.create_future()

    def hear() -> None:
        try:
            said = pipe.recv()
        except (EOFError, OSError):
            loop.remove_reader(pipe.fileno())
            said = "nobody waits for the outcome"
        if isinstance(said, int):
            start.set_result(said)
        elif not stop.done():
            stop.set_result(said)

    async def begin() -> int:
        pipe.send("ready")
        await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
        return start.result() if start.done() else perf_counter_ns()

    loop.add_reader(pipe.fileno(), hear)
    try:
        return await carry_out(job, begin, stop, _sender(pipe))
    finally:
        loop.remove_reader(pipe.fileno())


def _sender(pipe: Connection) -> Callable[[Progress], None]:
    def send(seen: Progress) -> None:
        with suppress(BrokenPipeError):
            pipe.send(seen)

    return send
