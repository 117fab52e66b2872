"""Figures and limits as they are said: numbers with units and intervals. Pure."""

from __future__ import annotations

import re
from typing import Final

from llm_perf.figures.limits import Limit
from llm_perf.report.axes import number
from llm_perf.report.points import Interval

_WORDS: Final = {"time_to_first_token": "TTFT", "inter_token_latency": "ITL"}
_UNITS: Final = {
    "request_throughput": " requests/s",
    "output_token_throughput": " tokens/s",
    "time_to_first_token": " ms",
    "inter_token_latency": " ms",
    "request_latency": " ms",
}


def named(limit: Limit) -> str:
    """A limit's figure for the eye: TTFT p95."""
    short = limit.name.partition(".")[0]
    word = _WORDS.get(limit.metric, short.replace("_", " "))
    if "." not in limit.name:
        return word
    return f"mean {word}" if limit.statistic == "avg" else f"{word} {limit.statistic}"


def limit_words(limit: Limit, *, name: bool = True) -> str:
    """A limit for the eye: TTFT p95 < 1 s."""
    sign = limit.comparison.replace("<=", "≤").replace(">=", "≥")
    amount = re.sub(r"(?<=\d)(?=[a-z])", " ", limit.amount)
    return f"{named(limit)} {sign} {amount}" if name else f"{sign} {amount}"


def bounded(value: float | None, interval: Interval | None = None, unit: str = "") -> str:
    """A figure with its interval, or a dash."""
    if value is None:
        return "-"
    bounds = f" [{number(interval[0])}, {number(interval[1])}]" if interval else ""
    return f"{number(value)}{unit}{bounds}"


def shown(metric: str, value: float | None, interval: Interval | None = None) -> str:
    """The same in the unit of its metric."""
    return "unknown" if value is None else bounded(value, interval, _UNITS.get(metric, ""))


def hundredths(share: float) -> str:
    """A share in points of a hundred, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def percent(share: float) -> str:
    """A change in per cent, with its sign."""
    return f"{100 * share:+.0f} %".replace("-", "−")
