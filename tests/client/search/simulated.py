"""A server whose limits are known: a queue before ``slots`` servers, in virtual time.

Service times are lognormal; TTFT is the wait in the queue and ``first_s``. A search's asks go in,
what they would have shown comes out.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llm_perf.load.arrivals import arrivals
from llm_perf.load.load import Rate
from llm_perf.search.hunt import hunt
from llm_perf.search.question import Answer, Ask, Question
from llm_perf.search.seen import Criterion, Requests, Seen, look

Numbers: TypeAlias = npt.NDArray[np.float64]
TOKENS = 100  # of each answer


@dataclass(frozen=True)
class Server:
    slots: int = 16
    mean_s: float = 2.0
    spread: float = 0.5  # standard deviation of service times by their mean
    first_s: float = 0.1
    faster: float = 1.0

    @property
    def capacity(self) -> float:
        return self.slots / self.mean_s * self.faster

    def services(self, n: int, seed: int) -> Numbers:
        sigma = math.sqrt(math.log(1 + self.spread**2))
        drawn = np.random.default_rng((1, seed)).lognormal(
            math.log(self.mean_s) - sigma**2 / 2, sigma, n
        )
        return drawn / self.faster

    def open(self, per_s: float, n: int, seed: int) -> tuple[Numbers, Numbers, Numbers]:
        """Arrivals, TTFT, services of the product's own arrivals at a rate."""
        at = arrivals(Rate(per_s, seed=seed), n) * 1e-9
        services = self.services(n, seed)
        free = [0.0] * self.slots
        waits = []
        for due, service in zip(at.tolist(), services.tolist(), strict=True):
            begin = max(due, free[0])
            heapq.heapreplace(free, begin + service)
            waits.append(begin - due)
        return at, np.array(waits) + self.first_s, services

    def closed(self, streams: int, n: int, seed: int) -> tuple[Numbers, Numbers, Numbers]:
        services = self.services(n, seed)
        free, idle = [0.0] * self.slots, [0.0] * streams
        at, waits = [], []
        for service in services.tolist():
            begin = max(idle[0], free[0])
            at.append(idle[0])
            waits.append(begin - idle[0])
            heapq.heapreplace(free, begin + service)
            heapq.heapreplace(idle, begin + service)
        return np.array(at), np.array(waits) + self.first_s, services

    def show(self, criteria: Sequence[Criterion], ask: Ask) -> Seen:
        closed = ask.vary == "concurrency"
        if closed:
            at, ttft, services = self.closed(int(ask.value), ask.requests, ask.seed)
        else:
            at, ttft, services = self.open(ask.value, ask.requests, ask.seed)
        latencies = ttft - self.first_s + services
        duration = float((at + latencies).max())
        values = {
            "time_to_first_token": ttft * 1e3,
            "inter_token_latency": services / TOKENS * 1e3,
        }
        return look(
            criteria,
            Requests(
                at,
                [values[each.limit.metric] for each in criteria],
                np.ones(len(at), dtype=np.bool_),
                ttft * 1e3,
            ),
            drained=int(ask.value) if closed else 0,
            throughput=len(at) / duration,
            in_flight=float(latencies.sum()) / duration,
            duration_s=duration,
        )

    def true_concurrency(self, criterion: Criterion, n: int = 200_000) -> int:
        """The most requests in flight within a limit, by long runs of its own."""
        low, high = 1, 16 * self.slots
        while high - low > 1:
            middle = (low + high) // 2
            _, ttft, _ = self.closed(middle, n, 4)
            kept = criterion.scores(ttft[n // 20 :] * 1e3).mean() >= criterion.least
            low, high = (middle, high) if kept else (low, middle)
        return low

    def true_rate(self, criterion: Criterion, n: int = 300_000) -> float:
        """The highest rate within a limit, by long runs of its own."""
        low, high = 0.1 * self.capacity, self.capacity
        for _ in range(11):
            middle = (low + high) / 2
            _, ttft, _ = self.open(middle, n, 4)
            kept = criterion.scores(ttft[n // 20 :] * 1e3).mean() >= criterion.least
            low, high = (middle, high) if kept else (low, middle)
        return (low + high) / 2


def solve(server: Server, question: Question) -> Answer:
    hunting = hunt(question)
    ask = next(hunting)
    try:
        while True:
            ask = hunting.send(server.show(question.criteria, ask))
    except StopIteration as found:
        answer: Answer = found.value
        return answer
