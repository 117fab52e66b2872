"""What is searched for, what is asked on the way, what is known in the end: values of a search.

Loads are requests a second, or requests in flight.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from llm_perf.search.probe import Probe, keeps
from llm_perf.search.seen import Criterion, Seen

Vary: TypeAlias = Literal["request_rate", "concurrency"]
Stage: TypeAlias = Literal["capacity", "rough", "ends"]

TURNS: Final = {"request_rate": 60, "concurrency": 20}  # of a run: requests for each in flight
_FAR: Final = 1.2  # times a load that broke the limits
_HALVED, _PROBED = 5, 5  # loads by a single run, by several


@dataclass(frozen=True, slots=True)
class Mode:
    """How much evidence: ``runs`` that agree, each of ``requests`` at least.

    ``opened``: by how much of itself the lower end is taken down when the answer is told, for short
    runs look better than the steady state; benchmarks/search.py measures how often the interval
    then holds the truth. Ends are moved together to a ratio of ``narrow``; where undecided loads
    between them leave more than ``promise``, so much to either side, runs get longer.
    """

    name: str
    runs: int
    requests: int
    opened: float
    promise: float
    narrow: float = 1.15


INDICATIVE: Final = Mode("indicative", 3, 500, opened=0.10, promise=0.20)
CONFIRMED: Final = Mode("confirmed", 5, 1000, opened=0.03, promise=0.15)


@dataclass(frozen=True, slots=True)
class Question:
    """What is searched for: the highest load of a kind within all limits.

    ``budget_s`` is load time, as runs report it. A hunt with the same question that is told the
    same asks the same.
    """

    criteria: tuple[Criterion, ...]
    vary: Vary = "request_rate"
    mode: Mode = INDICATIVE
    seed: int = 0
    budget_s: float = math.inf

    @property
    def first_seed(self) -> int:
        """The seed of the first arrivals: other questions have others."""
        limits = (str(each.limit) for each in self.criteria)
        return self.seed + zlib.crc32(" ".join((self.mode.name, self.vary, *limits)).encode())

    def requests(self, in_flight: float = 0.0) -> int:
        """How many requests it takes as a rule, where so many are in flight at the limit."""
        length = max(self.mode.requests, TURNS[self.vary] * in_flight)
        return round(_HALVED * length / 2 + _PROBED * self.mode.runs * length)


@dataclass(frozen=True, slots=True)
class Ask:
    """A run to make: ``number`` counts them, ``seed`` is that of its arrivals, ``repetition`` that
    of its load."""

    vary: Vary
    value: float
    requests: int
    seed: int
    repetition: int
    stage: Stage
    number: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known in the end: the limits hold at ``low`` and don't at ``high``, as probes showed.

    Either is ``None`` where no load was shown so. ``spent_s`` and ``requests`` are what it took;
    ``ended`` says why there is no narrower one.
    """

    question: Question
    low: Probe | None
    high: Probe | None
    probes: tuple[Probe, ...]
    rough: tuple[tuple[float, Seen], ...]
    capacity: float | None
    requests: int
    spent_s: float
    ended: str

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the highest load within the limits lies, as it is told; ``None`` without both ends.

        Of a concurrency the upper end is the largest that may still hold.
        """
        if self.low is None or self.high is None:
            return None
        low, high = self.low.value / (1 + self.question.mode.opened), self.high.value
        if self.question.vary == "concurrency":
            return max(math.floor(low), 1), max(high - 1, 1)
        return low, high

    @property
    def changing(self) -> float | None:
        """A load that held above one that broke the limits: the server wasn't the same throughout.

        Of single runs only what is far above tells anything.
        """
        if self.high is None:
            return None
        held = [each.value for each in self.probes if each.verdict == "pass"]
        held = [value for value in held if value > self.high.value]
        single = [value for value, seen in self.rough if keeps(seen, self.question.criteria)]
        held += [value for value in single if value > _FAR * self.high.value]
        return max(held, default=None)

    @property
    def about(self) -> float | None:
        """The middle of the interval, by ratio."""
        if self.interval is None:
            return None
        middle = math.sqrt(self.interval[0] * self.interval[1])
        return middle if self.question.vary == "request_rate" else float(round(middle))

    @property
    def width(self) -> float | None:
        """How far the ends are from the middle, as a part of it."""
        if self.interval is None:
            return None
        return math.sqrt(self.interval[1] / self.interval[0]) - 1
