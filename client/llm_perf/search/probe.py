"""One load and the runs at it: what they showed in, a verdict out. Pure.

Fresh runs that agree are the evidence. Near a limit a run of some hundred requests looks too good
as often as not, and so do bounds from its own requests; several runs, each with arrivals of its
own, that all fall on one side do not (measured in benchmarks/search.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from llm_perf.figures.blocks import Estimate, Verdict, drift, estimate
from llm_perf.search.seen import Criterion, Seen

MOST_FAILED: Final = 0.01  # of a run's requests: with more it keeps no limit
_OFFERED: Final = 0.9  # of the rate, at which requests leave at least
_RISING: Final = 30.0  # per cent of TTFT over a run: a queue that grows, where it is surely so


@dataclass(slots=True)
class Probe:
    """A load with its runs; at least ``runs`` that agree make a verdict, at most twice as many."""

    value: float
    criteria: Sequence[Criterion]
    runs: int
    open_loop: bool
    seen: list[Seen] = field(default_factory=list)
    turns: float = 0.0  # requests for each in flight that a run needs to tell of a steady state

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """Of each limit the mean over all blocks, with its interval."""
        return tuple(
            estimate([each.blocks[i] for each in self.seen]) for i in range(len(self.criteria))
        )

    @property
    def verdict(self) -> Verdict:
        """``pass`` or ``fail`` where all runs agree and the blocks' interval says so too."""
        sides = {self._keeps(each) for each in self.seen}
        if len(sides) != 1 or len(self.seen) < self.runs:
            return "undecided"
        if not sides.pop():
            return "fail" if self._surely_fails() else "undecided"
        sure = all(
            found.verdict(each.least) == "pass"
            for found, each in zip(self.estimates, self.criteria, strict=True)
        )
        return "pass" if sure and not (self.unfit or self.unsteady) else "undecided"

    @property
    def kept(self) -> bool:
        """Whether what was seen so far, taken as it is, kept all limits in a steady state."""
        late = any(each.offered < _OFFERED for each in self.seen)
        return all(map(self._keeps, self.seen)) and not (late or self.unsteady)

    @property
    def finished(self) -> bool:
        """Whether another run could change nothing: decided, at odds, or enough of them."""
        sides = {self._keeps(each) for each in self.seen}
        over = len(sides) > 1 or len(self.seen) >= 2 * self.runs or bool(self.unfit)
        return over or self.verdict != "undecided"

    @property
    def unfit(self) -> str | None:
        """Why runs that kept the limits tell nothing of this load, if they don't."""
        for each in filter(self._keeps, self.seen):
            if each.requests < self.turns * each.in_flight:
                return f"{each.requests} requests tell nothing with {each.in_flight:.0f} in flight"
            if each.offered < _OFFERED:
                return f"requests left late, at {each.offered:.0%} of the rate"
        return None

    @property
    def unsteady(self) -> str | None:
        """Why it is no steady state, if it isn't: TTFT rises from the first block to the last.

        Runs are laid over each other, so that what only one of them shows is no rise.
        """
        rows = [each.ttft_ms for each in self.seen]
        least = min(map(len, rows), default=0)
        if not self.open_loop or least < 3:
            return None
        moved = drift(np.mean([row[:least] for row in rows], axis=0).tolist())
        if moved is None or moved.low <= 0 or moved.percent < _RISING:
            return None
        return f"not steady: TTFT rises by {moved.percent:.0f} % of its mean over a run"

    @property
    def why(self) -> str:
        """Why it is undecided, for the eye; empty where it isn't."""
        if self.verdict != "undecided":
            return ""
        kept = sum(map(self._keeps, self.seen))
        if 0 < kept < len(self.seen):
            return f"{kept} of {len(self.seen)} runs kept the limits"
        if len(self.seen) < self.runs and not self.unfit:
            return f"{len(self.seen)} of {self.runs} runs were made"
        return self.unfit or self.unsteady or "the interval over its blocks holds the limit"

    @property
    def attainment(self) -> float:
        """Share of requests within all limits, over all runs."""
        return float(np.mean([each.attainment for each in self.seen]))

    @property
    def goodput(self) -> float:
        """Requests within all limits a second, over all runs."""
        return float(np.mean([each.goodput for each in self.seen]))

    @property
    def in_flight(self) -> float:
        """Requests in flight, over all runs."""
        return float(np.mean([each.in_flight for each in self.seen]))

    def _keeps(self, seen: Seen) -> bool:
        return keeps(seen, self.criteria)

    def _surely_fails(self) -> bool:
        """Of runs that all broke the limits; where the queue still grows it gets only worse."""
        if self.unsteady or any(each.hopeless or _failed(each) for each in self.seen):
            return True
        return any(
            found.verdict(each.least) == "fail"
            for found, each in zip(self.estimates, self.criteria, strict=True)
        )


def ends(probes: Iterable[Probe]) -> tuple[Probe | None, Probe | None]:
    """The highest load that held below every one that didn't, and the lowest of those."""
    known = sorted(probes, key=lambda each: each.value)
    high = next((each for each in known if each.verdict == "fail"), None)
    held = [each for each in known if each.verdict == "pass"]
    held = [each for each in held if high is None or each.value < high.value]
    return held[-1] if held else None, high


def keeps(seen: Seen, criteria: Sequence[Criterion]) -> bool:
    """Whether a run, taken as it is, kept all limits."""
    if seen.hopeless or _failed(seen):
        return False
    return all(mean >= each.least for mean, each in zip(seen.means, criteria, strict=True))


def _failed(seen: Seen) -> bool:
    return seen.failed > MOST_FAILED * seen.requests
