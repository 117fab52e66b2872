"""The rules of ``compare --fail-if``: a text and two sides in, a verdict with its reason out. Pure.

A rule is broken when the near end of the interval breaks it, so when the change is surely that
large; a figure without an interval is judged as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from llm_perf.errors import UserError
from llm_perf.figures.limits import Limit
from llm_perf.results.change import Change, Pairs, changes_of
from llm_perf.results.written import Side


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a rule: ``broken``, ``unsure`` (the change is so, its interval is not), kept.

    ``change`` and the interval, if there is one, are in the rule's own unit: per cent or the
    metric's.
    """

    rule: str
    outcome: Literal["broken", "unsure", "kept"]
    change: float
    low: float | None = None
    high: float | None = None
    unit: str = ""

    def __str__(self) -> str:
        """One line for the eye."""
        said = f"{self.rule}: the change is {self.change:+.4g}{self.unit}"
        if self.low is None or self.high is None:
            said += ", of the whole runs; it has no interval"
        else:
            said += f", 95 % interval {self.low:+.4g} to {self.high:+.4g}{self.unit}"
        return _SAID[self.outcome].format(said)


_SAID: Final = {
    "broken": "FAILED: {}",
    "unsure": "not sure: {}: more measurements would tell",
    "kept": "passed: {}",
}


def judge(rule: Limit, a: Side, b: Side, both: Pairs) -> Verdict:
    """Say what became of a rule, with the pairs that both runs answered.

    Raises ``UserError`` when a run lacks the figure, or a share of nothing is asked for.
    """
    asked = [rule.statistic or "avg"]
    return verdict(rule, next(changes_of(a, b, both, rule.metric, asked), None))


def verdict(rule: Limit, change: Change | None) -> Verdict:
    """Say what became of a rule, given the change of its figure; see ``judge``."""
    if change is None or (rule.relative and not change.a):
        raise UserError(
            f"there is no {rule.name} to compare in both runs",
            where="--fail-if",
            fix="use a metric and statistic of the JSON, like time_to_first_token.p99",
        )
    scale = 100 / abs(change.a) if rule.relative else 1.0
    seen = scale * change.difference
    low, high = (None if each is None else scale * each for each in (change.low, change.high))
    near = low if not rule.upper else high
    outcome: Literal["broken", "unsure", "kept"] = "kept"
    if rule.holds(seen if near is None else near):
        outcome = "broken"
    elif rule.holds(seen):
        outcome = "unsure"
    return Verdict(rule.text, outcome, seen, low, high, " %" if rule.relative else "")
