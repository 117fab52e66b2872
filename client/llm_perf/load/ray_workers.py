"""One run over several machines of a Ray cluster: the same shares as ``workers``, as actors.

Each machine has this project installed. Their monotonic clocks have nothing to do with each other,
so each one's offset to ours is measured before and after the run, and stamps are moved by it. What
lies between two stamps of one request is of one clock and stays exact.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from time import perf_counter_ns
from typing import Any

from llm_perf.errors import UserError
from llm_perf.load.journal import shifted
from llm_perf.load.runner import Job, Outcome
from llm_perf.load.workers import Foreman, shares, work

_LISTEN_S = 0.05
_START_AFTER_NS = 200_000_000
_PATIENCE_S = 120.0  # for machines to start a worker each
_ROUNDS = 30  # of asking for the time; the quickest counts


@dataclass(frozen=True, slots=True)
class Offset:
    """A clock is ``ns`` ahead of ours, give or take ``error_ns``."""

    ns: int
    error_ns: int


def run_on_ray(address: str, job: Job) -> list[Outcome]:
    """Do a job with actors on a cluster, one per machine unless its conditions give ``workers``.

    Raises ``UserError`` when there is no such cluster, else as ``Foreman.see_through``.
    """
    ray = _connect(address)
    kind = ray.remote(_Worker).options(scheduling_strategy="SPREAD", num_cpus=1, max_concurrency=8)
    try:
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        own = replace(job, conditions=replace(job.conditions, journal=None))
        parts = shares(own, job.conditions.workers or nodes)
        actors = [kind.remote() for _ in parts]
        _wait_for(ray, actors)
        with ExitStack() as stack:
            pairs = zip(actors, parts, strict=True)
            pipes = [stack.enter_context(_line_to(ray, actor, part)) for actor, part in pairs]
            return Foreman(pipes, job, _START_AFTER_NS).see_through()
    finally:
        ray.shutdown()


def _wait_for(ray: Any, actors: list[Any]) -> None:
    try:
        ray.get([actor.clock.remote() for actor in actors], timeout=_PATIENCE_S)
    except ray.exceptions.GetTimeoutError:
        raise UserError(
            f"the Ray cluster has not begun {len(actors)} workers within {_PATIENCE_S:g} s",
            fix="give fewer --workers, or free a CPU for each",
        ) from None


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


def _offset(ray: Any, actor: Any) -> Offset:
    """Ask an actor for the time: as in NTP, it was read half way between asking and hearing."""
    rounds = []
    for _ in range(_ROUNDS):
        asked = perf_counter_ns()
        theirs: int = ray.get(actor.clock.remote())
        heard = perf_counter_ns()
        rounds.append((heard - asked, theirs - (asked + heard) // 2))
    trip, offset = min(rounds)
    return Offset(offset, trip // 2)


@contextmanager
def _line_to(ray: Any, actor: Any, part: Job) -> Iterator[Connection]:
    """Let an actor begin; gives a pipe that leads to it, on which all times are of our clock."""
    ours, theirs = Pipe()
    before = _offset(ray, actor)
    thread = threading.Thread(target=_relay, args=(ray, actor, before, theirs), daemon=True)
    actor.begin.remote(part)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join()


def _relay(ray: Any, actor: Any, before: Offset, pipe: Connection) -> None:
    """Pass on what is said, until the outcome or an end: of the actor, or of who listens."""
    said: object = None
    answer = actor.hear.remote()
    with closing(pipe), suppress(EOFError, OSError, ray.exceptions.RayError):
        while not isinstance(said, Outcome):
            if ray.wait([answer], timeout=_LISTEN_S)[0]:
                said = ray.get(answer)
                answer = actor.hear.remote()
                if isinstance(said, Outcome):
                    said = _on_our_clock(said, before, _offset(ray, actor))
                pipe.send(said)
            elif pipe.poll():
                word = pipe.recv()
                actor.tell.remote(word + before.ns if isinstance(word, int) else word)


def _on_our_clock(outcome: Outcome, before: Offset, after: Offset) -> Outcome:
    """Move stamps by the mean of both offsets; what they differ by is drift."""
    by_ns = -(before.ns + after.ns) // 2
    error_ns = max(before.error_ns, after.error_ns) + abs(after.ns - before.ns) // 2
    moved = {number: shifted(seen, by_ns) for number, seen in outcome.exchanges.items()}
    remark = f"a Ray worker's clock was {by_ns / -1e6:+.3f} ms off, ± {error_ns / 1e6:.3f} ms"
    return replace(outcome, exchanges=moved, remark=remark)


class _Worker:
    """An actor: works on a thread of its own, while its methods pass on what is said.

    None of them is a coroutine: Ray would run all on one loop then, and none beside another.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = Pipe()

    def clock(self) -> int:
        return perf_counter_ns()

    def begin(self, job: Job) -> None:
        threading.Thread(target=work, args=(job, self._theirs), daemon=True).start()

    def hear(self) -> object:
        return self._ours.recv()

    def tell(self, word: int | str) -> None:
        self._ours.send(word)
