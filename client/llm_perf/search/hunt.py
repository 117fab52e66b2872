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

import numpy as np

from llm_perf.search.probe import Probe, ends
from llm_perf.search.question import Answer, Ask, Question, Stage, Vary
from llm_perf.search.seen import Seen

_TAIL: Final = 10  # requests beyond a percentile that a run should have
_SPARE: Final = 2  # runs that a budget leaves room for beside those that two ends take at least
_ROUGHLY: Final = 0.4  # of a budget, after which no rough bracket is halved any more
_ALONE: Final = 8  # requests one at a time
_LEAST, _TURNS = 100, 5  # requests of a single run, and for each in flight
_MARGIN: Final = 1.2  # for more in flight than was thought
_FIRST_LOOP: Final = 8  # requests in flight, doubled while throughput grows
_MOST_LOOP: Final = 1024
_GROWS: Final = 1.1
_ROUGH: Final = 1.12  # ratio of a bracket by single runs
_BELOW, _ABOVE = 1.08, 1.06  # from its middle, where the ends are tried first
_SAFE: Final = 1.15  # in place of _BELOW, where a budget pays for few tries
_STEP: Final = 1.06  # outwards, each time further
_RARE: Final = 0.25  # of the rate of requests one at a time: hardly two meet
_FURTHER: Final = 1.25  # times a load by a single run that held, though it was the highest
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
    rough: list[Probe] = field(default_factory=list)  # of a single run each
    asked: int = 0
    spent_s: float = 0.0
    loops: list[Probe] = field(default_factory=list)  # closed ones, until throughput stops to grow
    longer: int = 1
    least: float = 1.0
    most: float = float(_MOST_LOOP)
    ended: str = "the ends are close enough"

    def go(self) -> Hunt:
        try:
            alone = yield from self._loop(1, _ALONE)
            few = 0.5 * min(each.share or 1.0 for each in self.question.criteria)
            if alone.attainment < few and not self.loops[0].kept:
                self.ended = "one request at a time doesn't keep the limits either"
            else:
                low, high = yield from self._bracket()
                yield from self._ends(low, high)
                yield from self._narrow()
        except SpentError:
            self.ended = "the budget is spent"
        return Answer(
            self.question,
            tuple(sorted(self.probes, key=lambda each: each.value)),
            tuple(self.rough),
            tuple(self.loops),
            self.ended,
        )

    # what is known

    def _between(self) -> list[float]:
        """Undecided loads between the ends."""
        low, high = ends(self.probes)
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
        least_s = requests / self._speed(kind, value)  # as far as anybody knows
        if self.spent_s + least_s > self.question.budget_s:
            raise SpentError
        seed = self.question.first_seed + self.asked  # fresh arrivals for each run
        seen = yield Ask(kind, value, requests, seed, repetition, stage, self.asked)
        self.asked += 1
        self.spent_s += seen.duration_s
        return seen

    @property
    def _capacity(self) -> float:
        """Requests a second of the closed loop that got through most."""
        return max((each.seen[0].throughput for each in self.loops), default=math.inf)

    def _speed(self, vary: Vary | None, value: float) -> float:
        """Requests a second that are answered at a load, as far as is known, and at most."""
        if (vary or self.question.vary) == "request_rate":
            return min(value, self._capacity)
        runs = (*self.loops, *(self.rough if self._whole else ()))
        known = sorted((each.value, each.seen[0].throughput) for each in runs)
        points = [each for each in known if each[1]]  # of others all requests failed
        if not points:
            return math.inf
        most, speed = points[-1]
        return (
            speed * value / most if value > most else float(np.interp(value, *np.transpose(points)))
        )

    def _length(self, value: float) -> int:
        """Requests of a run: enough beyond the percentile, and turns of what is in flight.

        Of a budget no more than leaves time for the ends that aren't known, but enough for a
        verdict.
        """
        mode, tails = self.question.mode, [0.0]
        for each in self.question.criteria:
            if each.share is not None:
                tails.append(_TAIL / min(each.share, 1 - each.share))
        in_flight = self._in_flight(value)
        least = max(mode.requests, _MARGIN * self.question.least_turns * in_flight, *tails)
        length = self.longer * max(least, self.question.turns * in_flight)
        lacking = mode.runs * max(ends(self.probes).count(None), 1) + _SPARE
        left_s = self.question.budget_s - self.spent_s
        return math.ceil(max(least, min(length, left_s * self._speed(None, value) / lacking)))

    def _in_flight(self, value: float) -> float:
        """As many as at the highest load up to this one that kept the limits; where there is none,
        as a closed loop has that gets through as much (Little's law).
        """
        if self.question.vary == "concurrency":
            return value
        runs = [each for each in (*self.rough, *self.probes) if each.kept and each.value <= value]
        if runs:
            nearest = max(runs, key=lambda each: each.value)
            return min(nearest.in_flight, self.loops[-1].value)
        points = sorted((each.seen[0].throughput, each.value) for each in self.loops)
        return float(np.interp(value, *np.transpose(points)))

    def _probe(self, value: float) -> Generator[Ask, Seen, Probe]:
        probe, length = self.question.probe(value), self._length(value)
        while not probe.finished:
            number = len(probe.seen)
            seen = yield from self._ask(value, length, "ends", number)
            probe.seen.append(seen)
            if number == 0:
                self.probes.append(probe)
                self.lengths.append(self.longer)
        return probe

    def _try(self, value: float) -> Generator[Ask, Seen, None]:
        """One run, half as long, and of a budget the twelfth part at most."""
        affordable = self.question.budget_s * self._speed(None, value) / 12
        least = max(_LEAST, _TURNS * self._in_flight(value))
        length = max(min(self._length(value) / 2, affordable), least)
        seen = yield from self._ask(value, math.ceil(length), "rough")
        self.rough.append(self.question.probe(value, seen))

    # the three parts

    def _bracket(self) -> Generator[Ask, Seen, tuple[float, float]]:
        """A rough bracket, by single runs."""
        low, high = 1.0, 2.0 * _FIRST_LOOP
        if self.question.vary == "request_rate":
            yield from self._measure_capacity()
            low, high = 0.5 * self._capacity, 1.05 * self._capacity
            alone = self.loops[0]
            slowest = alone.seen[0].throughput * (_RARE if alone.kept else 1.0)
            self.least, self.most = min(slowest, low), high * _FURTHEST
        while True:
            broke = min((each.value for each in self.rough if not each.kept), default=None)
            kept = [each.value for each in self.rough if each.kept]
            kept = [each for each in kept if broke is None or each < broke]
            if kept:
                low = max(kept)
            elif broke is not None and broke <= low:
                low = max(self._lower(broke), self._whole)
            if broke is not None:
                high = broke
            elif kept and low >= high:
                high = _FURTHER * low
            value = self._next(low, high, kept=bool(kept), broke=broke is not None)
            enough = kept and broke and self.spent_s > _ROUGHLY * self.question.budget_s
            if value is None or enough:
                return low, high
            if not self.least <= value <= self.most or value == broke:
                return (min(value, self.most),) * 2
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

    def _measure_capacity(self) -> Generator[Ask, Seen, None]:
        """Closed loops, until more in flight don't raise the throughput."""
        n, grows = _FIRST_LOOP, True
        while grows and n <= _MOST_LOOP:
            before = self._capacity
            seen = yield from self._loop(n, max(64, 3 * n))
            grows = seen.throughput > _GROWS * before
            n *= 2

    def _loop(self, n: int, requests: int) -> Generator[Ask, Seen, Seen]:
        seen = yield from self._ask(n, requests, "capacity", vary="concurrency")
        self.loops.append(self.question.probe(n, seen))
        return seen

    def _ends(self, low: float, high: float) -> Generator[Ask, Seen, None]:
        """Move the ends of a rough bracket outwards until fresh runs hold them."""
        middle = math.sqrt(low * high)
        below = _BELOW if math.isinf(self.question.budget_s) else _SAFE
        value, step = self._rounded(min(middle / below, low)), _STEP
        while ends(self.probes)[0] is None and value >= self.least:
            yield from self._probe(value)
            value, step = self._lower(value, step), step**2
        if ends(self.probes)[0] is None:
            self.ended = "no load was shown to keep the limits"
            return
        value, step = self._rounded(max(middle * _ABOVE, high)), _STEP
        while ends(self.probes)[1] is None and value <= self.most:
            if value > max(each.value for each in self.probes):
                yield from self._probe(value)
            value, step = max(self._rounded(value * step), value + self._whole), step**2
        if ends(self.probes)[1] is None:
            self.ended = "no load was shown to break the limits"

    def _narrow(self) -> Generator[Ask, Seen, None]:
        mode = self.question.mode
        while True:
            low, high = ends(self.probes)
            if low is None or high is None:
                return
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
