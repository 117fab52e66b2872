"""The rules of ``compare --fail-if``: a text and two sides in, a verdict with its reason out. Pure.

A rule is broken when the near end of the interval breaks it, so when the change is surely that
large; a figure without an interval is judged as it is.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from llm_perf.duration import UNITS
from llm_perf.errors import UserError
from llm_perf.results.change import Pairs, changes_of
from llm_perf.results.written import Side

_OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_RULE: Final = re.compile(
    r"\s*(\w+)\.(\w+)\s*(>=|<=|>|<)\s*([+-]?[0-9]+(?:\.[0-9]+)?)\s*"
    rf"(%|{'|'.join(UNITS)}|)\s*",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Rule:
    """``METRIC.STATISTIC OPERATOR ±X[%]``, on the change from A to B.

    With a ``unit`` of time, X is that of a metric in ms.
    """

    text: str
    metric: str
    statistic: str
    comparison: str
    limit: float
    relative: bool
    unit: str = ""


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
    "unsure": "not sure: {}: more prompts would tell",
    "kept": "passed: {}",
}


def parse_rule(text: str) -> Rule:
    """Read ``time_to_first_token.p99 > +5%``; raises ``UserError``."""
    match = _RULE.fullmatch(text)
    if match is None:
        raise UserError(
            f"{text!r} is no rule",
            where="--fail-if",
            fix="write METRIC.STATISTIC > ±X, ±X% or ±Xms, like 'time_to_first_token.p99 > +5%'",
        )
    metric, statistic, comparison, limit, unit = match.groups()
    relative = unit == "%"
    scaled = float(limit) * (UNITS[unit] * 1000 if unit in UNITS else 1)
    unit = "" if relative else unit
    return Rule(text.strip(), metric, statistic, comparison, scaled, relative, unit)


def judge(rule: Rule, a: Side, b: Side, both: Pairs) -> Verdict:
    """Say what became of a rule, with the pairs that both runs answered.

    Raises ``UserError`` when a run lacks the figure, or a share of nothing is asked for.
    """
    change = next(changes_of(a, b, both, rule.metric, [rule.statistic]), None)
    if change is None or (rule.relative and not change.a):
        raise UserError(
            f"there is no {rule.metric}.{rule.statistic} to compare in both runs",
            where="--fail-if",
            fix="use a metric and statistic of the JSON, like time_to_first_token.p99",
        )
    known = (a.document.get(rule.metric) or {}).get("unit") if rule.unit else None
    if rule.unit and known != "ms":
        raise UserError(
            f"{rule.metric} is no time", where="--fail-if", fix=f"leave the {rule.unit} out"
        )
    scale = 100 / abs(change.a) if rule.relative else 1.0
    seen = scale * change.difference
    low, high = (None if each is None else scale * each for each in (change.low, change.high))
    near = low if rule.comparison.startswith(">") else high
    breaks = _OPERATORS[rule.comparison]
    outcome: Literal["broken", "unsure", "kept"] = "kept"
    if breaks(seen if near is None else near, rule.limit):
        outcome = "broken"
    elif breaks(seen, rule.limit):
        outcome = "unsure"
    return Verdict(rule.text, outcome, seen, low, high, " %" if rule.relative else "")
