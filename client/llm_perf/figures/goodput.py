"""Goodput: the rate of requests that keep limits, and how sure their share is. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llm_perf.figures.confidence import share_interval
from llm_perf.figures.delivery import came_in_one_piece
from llm_perf.figures.limits import Limit, parse_limits
from llm_perf.figures.metrics import DEFINITIONS, Metric, rate, window_ns
from llm_perf.record import Record

_TTFT: Final = ("time_to_first_token", "time_to_first_token_from_schedule")


@dataclass(frozen=True, slots=True)
class Goodput:
    """Limits on the values of one request; it is good when it keeps each of them."""

    limits: tuple[Limit, ...]

    def keeps(self, record: Record) -> bool:
        """Whether an answered request keeps all limits.

        One token has no ITL and keeps its limit; what brought no token keeps none. An answer in one
        piece, or without a text, as a tool call is, has no TTFT, and keeps no limit of it.
        """
        if not (record.ok and record.chunk_ns):
            return False
        begins = record.first_text_ns is not None and not came_in_one_piece(record)
        return all(
            (begins or limit.metric not in _TTFT)
            and all(limit.holds(value) for value in DEFINITIONS[limit.metric].of(record))
            for limit in self.limits
        )

    def metric(self, records: Sequence[Record]) -> Metric:
        """Compute ``request_goodput``: the rate of good requests, and their share of all.

        ``share_low`` and ``share_high`` are its 95 % interval, by prompts.
        """
        kept = [(self.keeps(record), record.prompt.index) for record in records]
        good = sum(keeps for keeps, _ in kept)
        low, high = share_interval([keeps for keeps, _ in kept], [index for _, index in kept])
        return {
            "unit": "requests/sec",
            "avg": rate(good, window_ns(records)),
            "good": good,
            "count": len(records),
            "share": good / len(records) if records else None,
            "share_low": low,
            "share_high": high,
            "limits": ", ".join(map(str, self.limits)),
        }


def parse_goodput(text: str) -> Goodput:
    """Read ``ttft<1s,itl<50ms`` (or ``ttft:1s``); raises ``UserError`` for anything else."""
    return Goodput(parse_limits(text, "--goodput", "request"))
