"""Changes for the eye: one line each, with the interval and a star where it excludes no change."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from llm_perf.figures.limits import SHORT
from llm_perf.results.change import Change
from llm_perf.results.screen_table import print_table
from llm_perf.results.table import ENOUGH_FOR_P99, FEW, few_note

_HEADS: Final = ("Figure", "A", "B", "B − A", "%", "95 % interval of B − A", "n")
_LEAST: Final = ("n", "B − A", "B", "A")  # where there is no room
_SMALL: Final = 0.0005  # would round to zero
_SHORT: Final = {
    "output_token_throughput_per_user_e2e": "tokens_per_user_e2e",
    "time_to_second_token": "second_token",
    "time_to_first_text": "first_text",
    "ensemble_network_overhead": "network",
    "_token_throughput": "_tokens_per_s",
    "_from_schedule": "_from_sched",
}
_SPELT: Final = {key: short for short, key in reversed(SHORT.items())}


def print_changes(title: str, changes: Iterable[Change], foot: Iterable[str]) -> None:
    """Print what changed between two runs, in the figures' own units."""
    rows = list(map(_row, changes))
    marked = few_note(name for name, *_ in rows)
    print_table(title, _HEADS, rows, (*marked, *foot), least=_LEAST)


def print_percent(
    title: str, names: Sequence[str], changes: Iterable[Change], foot: Iterable[str]
) -> None:
    """Print what changed between the two of ``names``, in per cent of the first."""
    rows = [
        (
            f"{_SPELT.get(each.metric, each.metric)}.{each.statistic}",
            *map(_brief, (each.a, each.b)),
            "-" if each.percent is None else _percent(each.percent),
            percent_interval(each),
        )
        for each in changes
        if each.a or each.b
    ]
    heads = ("Figure", *names, "%", "95 % interval, %")
    print_table(title, heads, rows, foot, least=names, short=_SHORT)


def percent_interval(change: Change) -> str:
    """The interval in per cent of A, starred where it excludes no change."""
    if change.low is None or change.high is None or not change.a:
        return "-"
    low, high = (_percent(100 * each / abs(change.a)) for each in (change.low, change.high))
    return f"{low} to {high}{' *' if change.sure else '  '}"


def _percent(value: float) -> str:
    return f"{value:+,.0f}" if abs(value) >= 100 else f"{value:+.1f}"


def _brief(value: float) -> str:
    """Four digits, or as many as stand before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _row(change: Change) -> tuple[str, ...]:
    percent = "-" if change.percent is None else f"{change.percent:+.1f}"
    apart = "-" if math.isnan(change.difference) else _signed(change.difference)
    figures = (f"{change.a:,.3f}", f"{change.b:,.3f}", apart)
    few = change.statistic == "p99" and 0 < change.n < ENOUGH_FOR_P99
    name = f"{change.metric}.{change.statistic}{FEW if few else ''}"
    return (name, *figures, percent, _interval(change), str(change.n) if change.n else "-")


def _interval(change: Change) -> str:
    """The interval, starred where it excludes no change; how sure nothing is has no figure."""
    if change.low is None or change.high is None:
        return "-"
    if change.low == change.high == 0:
        return "no change  "
    return f"{_signed(change.low)} to {_signed(change.high)}{' *' if change.sure else '  '}"


def _signed(value: float) -> str:
    """Three decimals, more where they would hide that it isn't zero."""
    return f"{value:+,.3f}" if value == 0 or abs(value) >= _SMALL else f"{value:+.2g}"
