"""The search itself: asks for one run after the other and is told what it showed. Pure.

First a rough bracket: from what a closed loop gets through, 0.5 and 1.05 times as much, halved by
single runs, which prove nothing. Then its two ends, each by fresh runs that all agree, moved
outwards until they hold and inwards while a gap is left. A load whose runs disagree is undecided,
and the search goes round it: somewhere there the limit lies. Where that leaves too wide a gap, runs
get longer.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from llm_perf.search.probe import Probe, keeps
from llm_perf.search.question import TURNS, Answer, Ask, Question, Stage, Vary
from llm_perf.search.seen import Seen

_TAIL: Final = 10  # requests beyond a percentile that a run should have
_ALONE: Final = 16  # requests one at a time
_LEAST: Final = 100  # requests of a single run
_FIRST_LOOP: Final = 8  # requests in flight, doubled while throughput grows
_MOST_LOOP: Final = 1024
_GROWS: Final = 1.1
_ROUGH: Final = 1.12  # ratio of a bracket by single runs
_BELOW, _ABOVE = 1.08, 1.06  # from its middle, where the ends are tried first
_STEP: Final = 1.06  # outwards, each time further
_RARE: Final = 0.25  # of the rate of requests one at a time: hardly two meet
_FURTHEST: Final = 4.0  # times the capacity
_CLOSE: Final = 1.1  # a gap beside an undecided load that isn't halved any more
_LONGEST: Final = 4  # times as long as at first, where the gap stays too wide

Hunt: TypeAlias = Generator[Ask, Seen, Answer]


def hunt(question: Question) -> Hunt:
    """Ask for runs; to be sent what each showed. Its value is the answer."""
    return _Hunter(question).go()


class SpentError(Exception):
    """The next run would go beyond the budget; thrown into a hunt that this is true of now."""


@dataclass
class _Hunter:
    question: Question
    probes: list[Probe] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)  # of each probe, as ``longer`` was
    rough: list[tuple[float, Seen]] = field(default_factory=list)
    capacity: float | None = None
    alone: float = 0.0  # requests a second, one at a time
    asked: int = 0
    requests: int = 0
    spent_s: float = 0.0
    in_flight: float = 0.0
    loop: int = _MOST_LOOP  # requests in flight, beyond which throughput doesn't grow
    longer: int = 1
    slowest: float = 0.0
    least: float = 1.0
    most: float = float(_MOST_LOOP)
    ended: str = "the ends are close enough"

    def go(self) -> Hunt:
        try:
            alone = yield from self._ask(1, _ALONE, "capacity", vary="concurrency")
            if alone.attainment < 0.5:
                self.ended = "one request at a time doesn't keep the limits either"
            else:
                self.capacity = self.alone = alone.throughput
                kept = keeps(alone, self.question.criteria)
                self.slowest = alone.throughput * (_RARE if kept else 1.0)
                middle = yield from self._bracket()
                yield from self._ends(middle)
                yield from self._narrow()
        except SpentError:
            self.ended = "the budget is spent"
        low, high = self._low(), self._high()
        return Answer(
            self.question,
            low,
            high,
            tuple(sorted(self.probes, key=lambda each: each.value)),
            tuple(self.rough),
            self.capacity,
            self.requests,
            self.spent_s,
            self.ended,
        )

    # what is known

    def _low(self) -> Probe | None:
        """The highest load that held below every one that didn't."""
        high = self._high()
        held = [
            each
            for each in self.probes
            if each.verdict == "pass" and (high is None or each.value < high.value)
        ]
        return max(held, key=lambda each: each.value, default=None)

    def _high(self) -> Probe | None:
        failed = (each for each in self.probes if each.verdict == "fail")
        return min(failed, key=lambda each: each.value, default=None)

    def _between(self) -> list[float]:
        """Undecided loads between the ends."""
        low, high = self._low(), self._high()
        below = low.value if low else 0.0
        above = high.value if high else math.inf
        return sorted(
            probe.value
            for probe, longer in zip(self.probes, self.lengths, strict=True)
            if below < probe.value < above and longer == self.longer
        )

    # asking

    def _ask(
        self,
        value: float,
        requests: int,
        stage: Stage,
        repetition: int = 0,
        vary: Vary | None = None,
    ) -> Generator[Ask, Seen, Seen]:
        kind = vary or self.question.vary
        if self.spent_s + self._expected_s(kind, value, requests) > self.question.budget_s:
            raise SpentError
        seed = self.question.first_seed + self.asked  # fresh arrivals for each run
        seen = yield Ask(kind, value, requests, seed, repetition, stage, self.asked)
        self.asked += 1
        self.requests += seen.requests
        self.spent_s += seen.duration_s
        return seen

    def _expected_s(self, vary: Vary, value: float, requests: int) -> float:
        """How long a run takes at least, as far as anybody knows."""
        return requests / self._speed(vary, value)

    def _speed(self, vary: Vary, value: float) -> float:
        """Requests a second that are answered at a load at most."""
        if vary == "request_rate":
            return min(value, self.capacity or math.inf)
        return self.alone * value or math.inf

    def _length(self) -> int:
        """Requests of a run: enough beyond the percentile, and turns of what is in flight."""
        tails = (
            _TAIL / min(each.share, 1 - each.share)
            for each in self.question.criteria
            if each.share is not None
        )
        turns = TURNS[self.question.vary] * self.in_flight
        return math.ceil(self.longer * max(self.question.mode.requests, turns, *tails))

    def _probe(self, value: float) -> Generator[Ask, Seen, Probe]:
        open_loop = self.question.vary == "request_rate"
        probe = Probe(value, self.question.criteria, self.question.mode.runs, open_loop)
        while not probe.finished:
            number = len(probe.seen)
            seen = yield from self._ask(value, self._length(), "ends", number)
            probe.seen.append(seen)
            if number == 0:
                self.probes.append(probe)
                self.lengths.append(self.longer)
        return probe

    def _try(self, value: float) -> Generator[Ask, Seen, None]:
        """One run, half as long, and of a budget the tenth part at most."""
        vary, budget_s = self.question.vary, self.question.budget_s
        length = max(min(self._length() / 2, budget_s * self._speed(vary, value) / 10), _LEAST)
        seen = yield from self._ask(value, math.ceil(length), "rough")
        self.rough.append((value, seen))
        if keeps(seen, self.question.criteria):
            self.in_flight = min(max(self.in_flight, seen.in_flight), self.loop)

    # the three parts

    def _bracket(self) -> Generator[Ask, Seen, float]:
        """The middle of a rough bracket."""
        low, high = 1.0, 2.0 * _FIRST_LOOP
        if self.question.vary == "request_rate":
            capacity = yield from self._measure_capacity()
            low, high = 0.5 * capacity, 1.05 * capacity
            self.least, self.most = min(self.slowest, low), high * _FURTHEST
        while True:
            broke = min((v for v, kept in self._tried() if not kept), default=None)
            kept = [v for v, kept in self._tried() if kept and (broke is None or v < broke)]
            if kept:
                low = max(kept)
            elif broke is not None and broke <= low:
                low = max(self._lower(broke), self._whole)
            if broke is not None:
                high = broke
            elif kept and low >= high:
                high = 2 * low
            value = self._next(low, high, kept=bool(kept), broke=broke is not None)
            if value is None:
                return math.sqrt(low * high)
            if not self.least <= value <= self.most or (value, False) in self._tried():
                return min(value, self.most)
            yield from self._try(value)

    def _next(self, low: float, high: float, *, kept: bool, broke: bool) -> float | None:
        """The next load for a single run between two; None where they are close, and both tried."""
        if self._whole and kept and not broke:
            return 2 * low  # nothing says how far up it goes
        if high / low > _ROUGH and not self._neighbours(low, high):
            return self._rounded(math.sqrt(low * high))
        if kept and broke:
            return None
        return low if broke else high

    def _tried(self) -> list[tuple[float, bool]]:
        return [(value, keeps(seen, self.question.criteria)) for value, seen in self.rough]

    def _measure_capacity(self) -> Generator[Ask, Seen, float]:
        """Requests a second of a closed loop that more in flight don't raise."""
        most, n = 0.0, _FIRST_LOOP
        while n <= _MOST_LOOP:
            seen = yield from self._ask(n, max(64, 4 * n), "capacity", vary="concurrency")
            grows = seen.throughput > _GROWS * most
            most = self.capacity = max(most, seen.throughput)
            if not grows:
                self.loop = n
                break
            n *= 2
        return max(most, 1e-6)

    def _ends(self, middle: float) -> Generator[Ask, Seen, None]:
        """Move the ends outwards until fresh runs hold them."""
        value, step = self._rounded(middle / _BELOW), _STEP
        while self._low() is None and value >= self.least:
            yield from self._probe(value)
            value, step = self._lower(value, step), step**2
        if self._low() is None:
            self.ended = "no load was shown to keep the limits"
            return
        value, step = self._rounded(middle * _ABOVE), _STEP
        while self._high() is None and value <= self.most:
            if value > max(each.value for each in self.probes):
                yield from self._probe(value)
            value, step = max(self._rounded(value * step), value + self._whole), step**2
        if self._high() is None:
            self.ended = "no load was shown to break the limits"

    def _narrow(self) -> Generator[Ask, Seen, None]:
        mode = self.question.mode
        while (low := self._low()) and (high := self._high()):
            ratio = high.value / low.value
            if ratio <= mode.narrow or self._neighbours(low.value, high.value):
                return
            stops = [low.value, *self._between(), high.value]
            gap = max((stops[:2], stops[-2:]), key=lambda each: each[1] / each[0])
            if len(stops) == 2 or (gap[1] / gap[0] > _CLOSE and not self._neighbours(*gap)):
                yield from self._probe(self._rounded(math.sqrt(gap[0] * gap[1])))
                continue
            wide = ratio * (1 + mode.opened) > (1 + mode.promise) ** 2
            if not wide or self.longer >= _LONGEST:
                self.ended = "what lies between the ends stays undecided"
                return
            self.longer *= 2  # and those between count as not tried

    # whole numbers, where a concurrency is varied

    @property
    def _whole(self) -> float:
        return 1.0 if self.question.vary == "concurrency" else 0.0

    def _rounded(self, value: float) -> float:
        return float(round(value)) if self._whole else value

    def _lower(self, value: float, step: float = 2.0) -> float:
        return min(self._rounded(value / step), value - self._whole)

    def _neighbours(self, low: float, high: float) -> bool:
        return self.question.vary == "concurrency" and high - low <= 1
