"""What is searched for, what is asked on the way, what is known in the end: values of a search.

Loads are requests a second, or requests in flight.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from llm_perf.search.probe import Probe, ends
from llm_perf.search.seen import Criterion, Seen

Vary: TypeAlias = Literal["request_rate", "concurrency"]
Stage: TypeAlias = Literal["capacity", "rough", "ends"]

_TURNS: Final = 20  # of a closed loop's run: requests for each in flight
_LEAST_TURNS: Final = 0.4  # of the turns, below which no run tells of a steady state
_FAR: Final = 1.2  # times a load that broke the limits
_HALVED, _PROBED = 5, 5  # loads by a single run, by several


@dataclass(frozen=True, slots=True)
class Mode:
    """How much evidence: ``runs`` that agree, each of ``requests`` at least, and of an open loop of
    ``turns`` for each in flight.

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
    turns: int = 30


INDICATIVE: Final = Mode("indicative", 3, 500, opened=0.10, promise=0.20)
CONFIRMED: Final = Mode("confirmed", 5, 1000, opened=0.03, promise=0.15, turns=60)


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

    @property
    def turns(self) -> int:
        """Requests of a run for each in flight."""
        return self.mode.turns if self.vary == "request_rate" else _TURNS

    @property
    def least_turns(self) -> float:
        """Requests of a run for each in flight, below which it proves nothing."""
        return _LEAST_TURNS * self.turns

    def probe(self, value: float, *seen: Seen) -> Probe:
        """A load with the runs that were made there."""
        open_loop = self.vary == "request_rate"
        return Probe(value, self.criteria, self.mode.runs, open_loop, list(seen), self.least_turns)

    def requests(self, in_flight: float = 0.0) -> int:
        """How many requests it takes as a rule, where so many are in flight at the limit."""
        length = max(self.mode.requests, self.turns * in_flight)
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
    """What is known in the end, ``probes`` by their load.

    ``rough`` are single runs, ``loops`` the closed ones that told the capacity; ``ended`` says why
    there is no narrower answer.
    """

    question: Question
    probes: tuple[Probe, ...]
    rough: tuple[Probe, ...]
    loops: tuple[Probe, ...]
    ended: str

    @property
    def runs(self) -> list[Seen]:
        """All that were made."""
        return [seen for each in (*self.loops, *self.rough, *self.probes) for seen in each.seen]

    @property
    def capacity(self) -> float | None:
        """Requests a second of the closed loop that got through most."""
        return max((each.seen[0].throughput for each in self.loops), default=None)

    @property
    def requests(self) -> int:
        """How many it took."""
        return sum(each.requests for each in self.runs)

    @property
    def spent_s(self) -> float:
        """Load time that it took."""
        return sum(each.duration_s for each in self.runs)

    @property
    def low(self) -> Probe | None:
        """Where the limits were shown to hold, as far up as they were."""
        return ends(self.probes)[0]

    @property
    def high(self) -> Probe | None:
        """Where they were shown to break."""
        return ends(self.probes)[1]

    @property
    def least(self) -> float | None:
        """The lower end as it is told: of a short run's good luck something is taken off."""
        if self.low is None:
            return None
        low = self.low.value / (1 + self.question.mode.opened)
        return max(math.floor(low), 1) if self.question.vary == "concurrency" else low

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the highest load within the limits lies, as it is told; ``None`` without both ends.

        Of a concurrency the upper end is the largest that may still hold.
        """
        if self.least is None or self.high is None:
            return None
        whole = self.question.vary == "concurrency"
        return self.least, max(self.high.value - 1, 1) if whole else self.high.value

    @property
    def single(self) -> tuple[float | None, float | None]:
        """The highest load that a single run kept and the lowest that one broke, of those that
        tell more than the ends; a closed loop's throughput bounds the first.
        """
        low, high = self.low.value if self.low else 0.0, self.high.value if self.high else math.inf
        broke = min((each.value for each in self.rough if not each.kept), default=math.inf)
        kept = [each.value for each in self.rough if each.kept and each.value < min(broke, high)]
        if self.question.vary == "request_rate":
            kept += [each.seen[0].throughput for each in self.loops if each.kept]
            kept = [min(each, self.capacity or math.inf) for each in kept]
        most = max((each for each in kept if low < each < min(broke, high)), default=None)
        return most, broke if low < broke < high else None

    @property
    def changing(self) -> float | None:
        """A load that held above one that broke the limits: the server wasn't the same throughout.

        Of single runs only what is far above tells anything.
        """
        if self.high is None:
            return None
        held = [each.value for each in self.probes if each.verdict == "pass"]
        held = [value for value in held if value > self.high.value]
        single = [each.value for each in self.rough if each.kept]
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
