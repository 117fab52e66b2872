"""One run over several workers: a job in, the outcomes of its shares out.

Each worker has its own event loop and every so-manieth request. Here are those that are processes
of this machine: all start at one time of the monotonic clock, which they share, so their stamps
need no conversion. ``llm_perf.load.ray_workers`` has those of other machines.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from time import perf_counter_ns

from llm_perf.background import child
from llm_perf.ending import hearing_first
from llm_perf.errors import UserError
from llm_perf.load.arrivals import share
from llm_perf.load.load import Concurrency, Load, Rate
from llm_perf.load.progress import Progress, add_up
from llm_perf.load.runner import Job, Outcome, carry_out
from llm_perf.loop import run_loop
from llm_perf.workload.workload import Prompt

RESPONSES_PER_WORKER = 15_000  # a second: a core half used, so that queues stay short
_STREAM_SPEED = 50  # responses/s: a stream at the 20 ms a token that people call fast
_START_AFTER_NS = 50_000_000


def workers_for(load: Load, prompts: Sequence[Prompt]) -> int:
    """Choose a number of workers: one per 15,000 responses/s to expect, and never above the CPUs.

    A rate is expected to bring each prompt's ``max_tokens`` in responses, a closed loop 50 a second
    for each stream. A trace gets one.
    """
    expected = 0.0
    if isinstance(load, Concurrency):
        expected = float(load.n * _STREAM_SPEED)
    elif isinstance(load, Rate):
        expected = load.per_s * sum(prompt.max_tokens for prompt in prompts) / len(prompts)
    cpus = len(os.sched_getaffinity(0))
    return max(1, min(cpus, int(min(expected, 1e9) / RESPONSES_PER_WORKER)))


def shares(job: Job, workers: int) -> list[Job]:
    """Split a job, at most into as many as it has streams."""
    count = max(1, min(workers, job.order.streams))
    conditions = replace(
        job.conditions,
        max_in_flight=-(-job.conditions.max_in_flight // count),
        stop_after_failures=None,  # who hears of all failures decides
        watch=None,
    )
    return [
        replace(job, order=share(job.order, worker, count), conditions=conditions)
        for worker in range(count)
    ]


@dataclass(frozen=True, slots=True)
class Enough:
    """The word to send no more, and to wait for what is in flight."""

    why: str


class Foreman:
    """Starts the workers at the other ends of pipes together, hears and stops them.

    A worker says that it is ready, its ``Progress``, and in the end its ``Outcome`` or the error
    that kept it; it is told the start (``perf_counter_ns``), ``start_after_ns`` later so that the
    word has come to all, why to stop, or why to send no more. One whose pipe closes stops too.
    """

    def __init__(self, pipes: Sequence[Connection], job: Job, start_after_ns: int) -> None:
        self._open = list(pipes)
        self._conditions = job.conditions
        self._total = job.order.total
        self._start_after_ns = start_after_ns
        self._ready = 0
        self._glimpses: dict[Connection, Progress] = {}
        self._outcomes: list[Outcome] = []
        self._stopped: str | None = None

    def see_through(self) -> list[Outcome]:
        """Listen until every worker has handed in its outcome.

        A worker that dies ends the run; what the others finished is kept. Raises what a worker
        raised, and ``UserError`` when all died.
        """
        with _ending(heard=self._conditions.interruptible) as ending:
            while self._open:
                for pipe in wait([*self._open, *ending]):
                    assert isinstance(pipe, Connection)
                    if pipe in ending:
                        ending.clear()
                        self._stop("interrupted")
                    else:
                        self._hear(pipe)
        if not self._outcomes:
            raise UserError("all workers died", fix="see the system's log; memory may be short")
        return [replace(outcome, stopped=self._stopped) for outcome in self._outcomes]

    def _hear(self, pipe: Connection) -> None:
        try:
            said = pipe.recv()
        except (EOFError, ConnectionResetError):
            self._open.remove(pipe)
            self._stop("a worker died; what it had not written yet is lost")
            return
        if isinstance(said, BaseException):
            raise said
        if isinstance(said, Progress):
            self._glimpses[pipe] = said
            self._look()
        elif isinstance(said, Outcome):
            self._open.remove(pipe)
            self._outcomes.append(said)
            if said.stopped:  # of its own accord: the server is gone for all
                self._stop(said.stopped)
        else:
            self._ready += 1
            if self._ready == len(self._open):
                self._tell(perf_counter_ns() + self._start_after_ns)

    def _look(self) -> None:
        seen = add_up(list(self._glimpses.values()), self._total)
        if self._conditions.watch and (why := self._conditions.watch(seen)) and not self._stopped:
            self._stopped = why
            self._tell(Enough(why))
        limit = self._conditions.stop_after_failures
        if limit is not None and seen.broken >= limit:
            self._stop(f"{seen.broken} requests failed")

    def _stop(self, why: str) -> None:
        if self._stopped is None:
            self._stopped = why
            self._tell(why)

    def _tell(self, word: int | str | Enough) -> None:
        for pipe in self._open:
            say(pipe, word)


@contextmanager
def _ending(*, heard: bool) -> Iterator[list[Connection]]:
    """Give the pipes on which the first of ``ENDING`` is heard; the next is what it was before.

    A signal that raised might do so in the middle of a message, and the rest would be unreadable.
    """
    if not heard:
        yield []
        return
    ours, theirs = Pipe(duplex=False)
    with ours, theirs, hearing_first(lambda: theirs.send(None)):
        yield [ours]


def say(pipe: Connection, what: object) -> None:
    """Send what may not be waited for any more; a closed end is heard of next."""
    with suppress(BrokenPipeError):
        pipe.send(what)


def run_workers(job: Job, workers: int) -> list[Outcome]:
    """Do a job with several processes; raises as ``Foreman.see_through``."""
    with ExitStack() as stack:
        pipes = [stack.enter_context(child(work, part)) for part in shares(job, workers)]
        return Foreman(pipes, job, _START_AFTER_NS).see_through()


def work(job: Job, pipe: Connection) -> None:
    """Be a worker on this thread: ready, the start, glimpses, the outcome, all over ``pipe``."""
    try:
        said: object = run_loop(_carry_out(job, pipe))
    except Exception as error:
        said = error
    say(pipe, said)


async def _carry_out(job: Job, pipe: Connection) -> Outcome:
    loop = asyncio.get_running_loop()
    start: asyncio.Future[int] = loop.create_future()
    stop: asyncio.Future[str] = loop.create_future()
    one_at_a_time = threading.Lock()  # glimpses are sent from threads

    enough: str | None = None

    def tell(what: object) -> str | None:
        with one_at_a_time:
            say(pipe, what)
        return enough

    def told(said: int | str | Enough) -> None:
        nonlocal enough
        if isinstance(said, Enough):
            enough = said.why
        elif isinstance(said, int):
            start.set_result(said)
        elif not stop.done():
            stop.set_result(said)

    def listen() -> None:
        """In a thread, for a loop that watched the pipe would make its writes not block."""
        said: int | str | Enough = 0
        while not isinstance(said, str):
            try:
                said = pipe.recv()
            except (EOFError, OSError):
                said = "nobody waits for the outcome"
            with suppress(RuntimeError):  # the loop is closed: all is said
                loop.call_soon_threadsafe(told, said)

    async def begin() -> int:
        tell("ready")
        await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
        return start.result() if start.done() else perf_counter_ns()

    threading.Thread(target=listen, daemon=True).start()
    watched = replace(job, conditions=replace(job.conditions, watch=tell))
    return await carry_out(watched, stop, begin)
