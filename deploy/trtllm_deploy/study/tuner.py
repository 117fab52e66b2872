"""The search of ``tune``: which points to measure next, from what was seen of those before. Pure.

A generator that asks for measurements and is sent what came of them, so that it runs against
servers as against figures that a test made up. It moves the setting whose limit binds until another
binds; then all listed combinations compete in paired blocks, the better half staying each time
(successive halving, Jamieson and Talwalkar 2016); the finalists are searched for their highest
rate, where the load wasn't given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from trtllm_deploy.study.evidence import Evidence
from trtllm_deploy.study.space import Lessons, Point, Space

FINALISTS: Final = 2
_SAME: Final = 0.02  # of the figure: a step that loses less loses nothing
_CHANCE: Final = 0.05  # that blocks of servers which are alike come to lie so


@dataclass(frozen=True, slots=True)
class Blocks:
    """Measure these points in alternation, in the blocks of these numbers."""

    points: tuple[Point, ...]
    numbers: range


@dataclass(frozen=True, slots=True)
class Search:
    """Look for the highest rate within the limits."""

    point: Point


@dataclass(frozen=True, slots=True)
class Found:
    """The highest rate of a point, in requests/s, and the ends between which it was shown to be.

    0 and infinity are ends that nothing showed.
    """

    about: float
    low: float = 0.0
    high: float = math.inf


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of a point: ``cost`` by block (the less the better, on a log scale), evidence.

    ``failed`` says why it couldn't be measured, ``unfit`` which limit it breaks at any load.
    """

    cost: dict[int, float] = field(default_factory=dict)
    evidence: Evidence | None = None
    failed: str | None = None
    unfit: str | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """What tuning came to: the best point, and all that was learnt on the way."""

    best: Point
    seen: dict[Point, Seen]
    rates: dict[Point, Found | None]
    excluded: dict[Point, str]
    path: tuple[str, ...]


Ask: TypeAlias = Blocks | Search
Answer: TypeAlias = "dict[Point, Seen] | Found | None"
Steps: TypeAlias = Generator[Ask, Answer, Ending]


@dataclass(slots=True)
class Tuner:
    """One search. ``unfit`` says of a point why the memory plan excludes it, else None.

    ``blocks`` are those of the first round; ``searches``: the load is the baseline's highest rate
    within the limits, not a given one. ``expected`` orders the points of a round, the most first.
    """

    space: Space
    unfit: Callable[[Point], str | None]
    blocks: int = 2
    searches: bool = True
    expected: Callable[[Point], float] = lambda _: 0.0
    lessons: Lessons = field(default_factory=Lessons)
    seen: dict[Point, Seen] = field(default_factory=dict)
    rates: dict[Point, Found | None] = field(default_factory=dict)
    excluded: dict[Point, str] = field(default_factory=dict)
    path: list[str] = field(default_factory=list)
    begun: int = 0

    def steps(self) -> Steps:
        """Ask for measurements; return what it came to.

        The baseline must be measurable: where it fails, that is the ending.
        """
        baseline = self.space.baseline
        if why := self.unfit(baseline):
            self.excluded[baseline] = why
            return self._ending(baseline)
        if self.searches:
            yield from self._search(baseline)
            if self.rates[baseline] is None:
                self._note("no rate was shown at which the baseline keeps the limits")
            if not self._may(baseline):
                return self._ending(baseline)
        yield from self._measure([baseline], self.blocks)
        if baseline not in self._able():
            return self._ending(baseline)
        best = yield from self._climb(baseline)
        listed = sorted(self.space.listed(best), key=self.expected, reverse=True)
        pool = [each for each in listed if self._may(each)]
        finalists = yield from self._halve(list(dict.fromkeys([*pool, best])))
        best = yield from self._climb(finalists[0])
        if self.searches:
            last = list(dict.fromkeys([best, *finalists]))[:FINALISTS]
            for point in last:
                yield from self._search(point)
            best = self._faster([each for each in last if self._may(each)] or [baseline])
        return self._ending(best)

    def _faster(self, ranked: Sequence[Point]) -> Point:
        """The one whose rate is surely above the first's; else the first, as paired blocks say."""
        best = ranked[0]
        for point in ranked[1:]:
            mine, theirs = self.rates[point], self.rates[best]
            if mine and theirs and mine.low > theirs.high:
                best = point
            elif not (mine and theirs and theirs.low > mine.high):
                self._note(f"the rates of {best} and {point} aren't told apart: the blocks decide")
        return best

    def _ending(self, best: Point) -> Ending:
        return Ending(best, self.seen, self.rates, self.excluded, tuple(self.path))

    def _note(self, step: str) -> None:
        if step not in self.path:
            self.path.append(step)

    def _search(self, point: Point) -> Generator[Ask, Answer, None]:
        if point not in self.rates:
            answer = yield Search(point)
            self.rates[point] = answer if isinstance(answer, Found) else None

    def _may(self, point: Point) -> bool:
        """Whether a point is worth a try; what isn't is noted."""
        unfit = self.seen[point].unfit if point in self.seen else None
        if point == self.space.baseline:
            unfit = None
        why = self.unfit(point) or self.lessons.against(point) or unfit
        if why:
            self.excluded[point] = why
        return why is None

    def _measure(self, points: Iterable[Point], blocks: int) -> Generator[Ask, Answer, None]:
        """Measure points in new blocks, the baseline in each of them beside them."""
        todo = [each for each in dict.fromkeys([self.space.baseline, *points]) if self._may(each)]
        numbers = range(self.begun, self.begun + blocks)
        self.begun = numbers.stop
        answer = yield Blocks(tuple(todo), numbers)
        assert isinstance(answer, dict)
        for point, seen in answer.items():
            before = self.seen.get(point, Seen())
            cost = {**before.cost, **seen.cost}
            evidence = seen.evidence or before.evidence
            self.seen[point] = Seen(cost, evidence, seen.failed, seen.unfit)
            if seen.failed:
                self.lessons.learn(point, seen.failed)
            if seen.failed or seen.unfit:
                self.excluded[point] = str(seen.failed or seen.unfit)

    def _able(self) -> list[Point]:
        """Points that can be the best; the baseline is what others are told against anyway."""
        return [
            point
            for point, seen in self.seen.items()
            if seen.cost and not seen.failed and (not seen.unfit or point == self.space.baseline)
        ]

    def gains(self, point: Point) -> list[float]:
        """How much less a point costs than the baseline, in each block of both."""
        mine, theirs = self.seen[point].cost, self.seen[self.space.baseline].cost
        return [theirs[each] - mine[each] for each in sorted(mine.keys() & theirs.keys())]

    def gain(self, point: Point) -> float:
        """The mean of ``gains``."""
        gains = self.gains(point)
        return sum(gains) / len(gains) if gains else -math.inf

    def _climb(self, start: Point) -> Generator[Ask, Answer, Point]:
        """Move what binds until nothing does, or a step is worse; the best point on the way."""
        at = best = start
        while True:
            evidence = self.seen[at].evidence
            limits = evidence.blamed if evidence else ()
            steps = [each for each in self.space.moved(at, limits) if self._may(each)]
            if not steps:
                self._note(f"{at}: {evidence.verdict if evidence else 'not seen'}")
                return best
            (name, value) = next(iter(steps[0].changes(at).items()))
            self._note(f"{at}: {evidence.verdict if evidence else ''}: {name} to {value}")
            yield from self._measure(steps[:1], self.blocks)
            if steps[0] not in self._able():
                continue  # it failed, and so is excluded from now on
            if _surely_less(self.gains(steps[0]), self.gains(at)):
                self._note(f"{steps[0]}: worse in every block")
                return best
            at = steps[0]
            best = max(best, at, key=self.gain)

    def _halve(self, pool: Sequence[Point]) -> Generator[Ask, Answer, list[Point]]:
        """Keep the better half, with twice the blocks each time; the finalists, best first."""
        blocks = self.blocks
        while True:
            if len(pool) > FINALISTS or not all(each in self.seen for each in pool):
                yield from self._measure(pool, blocks)
            able = set(self._able())
            ranked = sorted(
                (each for each in pool if each in able),
                key=self.gain,
                reverse=True,
            )
            if len(ranked) <= FINALISTS or len(pool) <= FINALISTS:
                return ranked or [self.space.baseline]
            pool = ranked[: math.ceil(len(ranked) / 2)]
            blocks *= 2


def _surely_less(mine: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether all of mine lie below all of theirs, and are enough for that to be no chance.

    Of two blocks each, one order in six is that one; of three each, one in twenty (Wilcoxon 1945,
    doi:10.2307/3001968).
    """
    by_chance = 1 / math.comb(len(mine) + len(theirs), len(mine))
    return max(mine) < min(theirs) - _SAME and by_chance <= _CHANCE
