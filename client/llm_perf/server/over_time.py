"""What a server's metrics did over time: pages with their times in, some lines out. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from math import isfinite
from typing import Any, Final

from llm_perf.server.exposition import KEPT, named, parse_metrics
from llm_perf.server.occupancy import Series

_LOOKS: Final = 120  # of a run
_LINES: Final = 24


def over_time(pages: Iterable[tuple[int, str]], n: int) -> dict[str, Any]:
    """Give what moved, over time: gauges as they were, counters by their increase per second.

    ``pages`` are ``n`` times (ns, the requests' clock) and texts; ``_LOOKS`` of them are kept, and
    of the series ``_LINES``: gauges first, then counters and what only ever rises, which say
    little; of each what moved most against its own size.
    """
    step = -(-n // _LOOKS)
    at_ns: list[int] = []
    rows: list[dict[Series, float]] = []
    types: dict[str, str] = {}
    for number, (at, page) in enumerate(pages):
        if number % step == 0 or number == n - 1:
            values, known = parse_metrics(page)
            types |= known
            at_ns.append(at)
            rows.append({k: v for k, v in values.items() if KEPT.fullmatch(k[0]) and isfinite(v)})
    found = []
    for series in dict.fromkeys(each for row in rows for each in row):
        values_of = [row.get(series) for row in rows]
        if rate := types.get(series[0]) == "counter":
            values_of = _per_second(at_ns, values_of)
        seen = [each for each in values_of if each is not None]
        if len(seen) > 1 and (moved := max(seen) - min(seen)):
            rises = all(was <= now for was, now in pairwise(seen))
            found.append((rate or rises, -moved / max(map(abs, seen)), rate, series, values_of))
    found.sort(key=lambda each: each[:2])
    lines = [
        {**named(series), "kind": "counter" if rate else "gauge", "values": values}
        for *_, rate, series, values in found[:_LINES]
    ]
    return {"at_ns": at_ns, "series": lines}


def _per_second(at_ns: list[int], values: list[float | None]) -> list[float | None]:
    """Increases per second since the look before; none at the first."""
    found: list[float | None] = [None]
    for (was_at, was), (at, now) in pairwise(zip(at_ns, values, strict=True)):
        known = was is not None and now is not None and at > was_at
        found.append((now - was) / (at - was_at) * 1e9 if known else None)  # type: ignore[operator]
    return found
