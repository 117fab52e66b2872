"""Limits as people write them, ``ttft.p95<1s``, ``score>=0.98``: a text in, values out. Pure.

One language for goodput, search, tune and ``--fail-if``. A limit is on the value of each request
(``itl<20ms``), on a statistic of a run (``itl.avg<20ms``), or on the change of one between two runs
(``itl.avg>+5%``); who asks says which kind it takes.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, Literal, TypeAlias

from llm_perf.duration import UNITS
from llm_perf.errors import UserError
from llm_perf.figures.metrics import DEFINITIONS, PERCENTILES

Kind: TypeAlias = Literal["request", "run", "change"]

SHORT: Final = {
    "ttft": "time_to_first_token",
    "ttft_from_schedule": "time_to_first_token_from_schedule",
    "itl": "inter_token_latency",
    "tpot": "inter_token_latency",
    "latency": "request_latency",
    "e2el": "request_latency",
    "latency_from_schedule": "request_latency_from_schedule",
    "tokens_per_user": "output_token_throughput_per_user",
    "osl": "output_sequence_length",
    "isl": "input_sequence_length",
    "tokens_per_s": "output_token_throughput",
    "requests_per_s": "request_throughput",
    "goodput": "request_goodput",
}
"""Short names of metrics; every key of the results' JSON is one too."""
_SPELT: Final = {key: short for short, key in reversed(SHORT.items())}
_OF_A_RUN: Final = {"score": "", "requests_failed": "requests"}  # figures that no request has
_SPREAD: Final = ("avg", "min", "max", "std", *(f"p{p}" for p in PERCENTILES))
_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_WITHIN: Final = ("=", ":")  # the way that the metric is good: at most for times, else at least
_LIMIT: Final = re.compile(
    r"\s*([a-z][a-z0-9_]*)(?:\.([a-z0-9]+))?\s*(<=|>=|<|>|=|:)\s*"
    r"([+-]?)([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*(%|/s|[a-z]*)\s*",
    re.ASCII,
)
_SMALLEST, _LARGEST = 1e-9, 1e18  # of what a limit can be, beside 0
_MS: Final = {unit: Decimal(repr(seconds)) * 1000 for unit, seconds in UNITS.items()}
_MANNER: Final = {
    "request": "METRIC<X, like ttft<1s or tokens_per_user>=50",
    "run": "METRIC.STATISTIC<X, like ttft.p95<1s, itl.avg<20ms, score>=0.98",
    "change": "METRIC.STATISTIC > ±X, ±X% or ±Xms, like 'ttft.p99 > +5%'",
}


@dataclass(frozen=True, slots=True)
class Limit:
    """``metric`` is a key of the results' JSON, ``value`` in its unit, or per cent if ``relative``.

    ``statistic`` is ``None`` for a limit on each request. Two are equal that mean the same,
    whatever their ``text``.
    """

    metric: str
    statistic: str | None
    comparison: str
    value: float
    relative: bool = False
    text: str = field(default="", compare=False)

    @property
    def unit(self) -> str:
        """The unit of ``value``: ``ms``, ``tokens/sec``, …, ``%``, or nothing."""
        return "%" if self.relative else _unit(self.metric)

    @property
    def upper(self) -> bool:
        """Whether what is kept lies below."""
        return self.comparison.startswith("<")

    @property
    def name(self) -> str:
        """What is limited, short: ``ttft.p95``, ``score``."""
        short = _SPELT.get(self.metric, self.metric)
        plain = self.statistic == "avg" and _statistics(self.metric) is not _SPREAD
        return short if self.statistic is None or plain else f"{short}.{self.statistic}"

    def holds(self, value: float) -> bool:
        """Whether a value, in the metric's unit, is within."""
        return _COMPARE[self.comparison](value, self.value)

    def __str__(self) -> str:
        """Spell it so that it reads the same again: ``ttft.p95<1s``."""
        return f"{self.name}{self.comparison}{self.amount}"

    @property
    def amount(self) -> str:
        """The value for the eye, with its unit where that is one of time: ``1s``, ``20ms``."""
        if self.unit != "ms":
            return f"{_number(self.value)}{'%' if self.relative else ''}"
        seconds = Decimal(repr(self.value)) / 1000
        short = self.value >= 1000 and float(seconds * 1000) == self.value
        return f"{_number(float(seconds))}s" if short else f"{_number(self.value)}ms"


def parse_limits(text: str, where: str, kind: Kind = "run") -> tuple[Limit, ...]:
    """Read limits with commas between them, ``ttft<1s,itl<50ms``; raises ``UserError``."""
    return tuple(parse_limit(word, where, kind) for word in text.split(","))


def parse_limit(text: str, where: str, kind: Kind = "run") -> Limit:
    """Read one limit of this kind; ``where`` it stood is for the error.

    Raises ``UserError`` for what is no limit, a metric or statistic that isn't, a missing unit.
    """
    match = _LIMIT.fullmatch(text)
    if match is None or (match[4] and kind != "change"):
        raise UserError(f"{text.strip()!r} is no limit", where=where, fix=f"write {_MANNER[kind]}")
    name, statistic, comparison, sign, number, unit = match.groups()
    metric = SHORT.get(name, name)
    statistic = _check_name(name, metric, statistic, where, kind)
    if comparison in _WITHIN:
        comparison = "<=" if _unit(metric) == "ms" or metric == "requests_failed" else ">="
    value = float(Decimal(sign + number) * _scale(text.strip(), metric, unit, where, kind))
    if value and not _SMALLEST <= abs(value) <= _LARGEST:
        raise UserError(f"{text.strip()!r} is out of all bounds", where=where)
    relative = kind == "change" and unit == "%"
    return Limit(metric, statistic, comparison, value, relative, text.strip())


def _check_name(
    name: str, metric: str, statistic: str | None, where: str, kind: Kind
) -> str | None:
    """Give the statistic that is meant; raises ``UserError`` where there is none such."""
    per_request = metric in DEFINITIONS and DEFINITIONS[metric].values is not None
    if kind == "request":
        if not per_request:
            known = ", ".join([*_requests_have(), "and the other metrics of one request"])
            raise UserError(f"no request has a {name!r}", where=where, fix=f"limit {known}")
        if statistic is not None:
            raise UserError(
                f"{name}.{statistic} is of a run, and this limit is on each request",
                where=where,
                fix=f"leave .{statistic} out",
            )
        return None
    if not (metric in _OF_A_RUN or metric in DEFINITIONS):
        known = ", ".join([*SHORT, *_OF_A_RUN])
        raise UserError(
            f"there is no metric {name!r}",
            where=where,
            fix=f"use {known}, or a key of the results' JSON",
        )
    has = _statistics(metric)
    if statistic is None and has is not _SPREAD:
        return "avg"
    if statistic not in has:
        said = f"{name} has no statistic {statistic!r}" if statistic else f"{name} of a run is many"
        raise UserError(said, where=where, fix=f"{name} has {', '.join(has)}")
    return statistic


def _scale(text: str, metric: str, unit: str, where: str, kind: Kind) -> Decimal:
    """Give by what a number with this unit is multiplied; raises ``UserError`` for a wrong unit."""
    own = _unit(metric)
    if own == "ms" and unit in _MS:
        return _MS[unit]
    if unit == "" and (own != "ms" or kind == "change"):
        return Decimal(1)
    if unit == "%" and (kind == "change" or metric == "score"):
        return Decimal(1) if kind == "change" else Decimal("0.01")
    if unit == "/s" and own.endswith("/sec"):
        return Decimal(1)
    if own == "ms":
        fix = f"give it one of {', '.join(_MS)}"
    elif unit in _MS:
        raise UserError(f"{text!r}: {metric} is no time", where=where, fix=f"leave the {unit} out")
    else:
        fix = f"{metric} is in {own}" if own else f"{metric} has no unit"
    raise UserError(f"{text!r} has no unit that fits", where=where, fix=fix)


def _unit(metric: str) -> str:
    return DEFINITIONS[metric].unit if metric in DEFINITIONS else _OF_A_RUN[metric]


def _statistics(metric: str) -> tuple[str, ...]:
    if metric == "request_goodput":
        return ("avg", "share")
    spread = metric in DEFINITIONS and DEFINITIONS[metric].values is not None
    return _SPREAD if spread else ("avg",)


def _requests_have() -> list[str]:
    return [short for short, key in SHORT.items() if DEFINITIONS[key].values is not None]


def _number(value: float) -> str:
    """Without exponent, as limits are written, and no shorter than it is."""
    return f"{Decimal(repr(value)):f}".removesuffix(".0")
