"""Goodput: the rate of requests that keep limits, and how sure their share is. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llm_perf.duration import UNITS
from llm_perf.errors import UserError
from llm_perf.figures.confidence import share_interval
from llm_perf.figures.delivery import came_in_one_piece
from llm_perf.figures.metrics import DEFINITIONS, Metric, rate, window_ns
from llm_perf.record import Record

_SHORT: Final = {
    "ttft": "time_to_first_token",
    "ttft_from_schedule": "time_to_first_token_from_schedule",
    "itl": "inter_token_latency",
    "tpot": "inter_token_latency",
    "latency": "request_latency",
    "e2el": "request_latency",
    "latency_from_schedule": "request_latency_from_schedule",
}
_TTFT: Final = (_SHORT["ttft"], _SHORT["ttft_from_schedule"])
_LIMIT: Final = re.compile(rf"([a-z0-9_]+):([0-9]+(?:\.[0-9]+)?)({'|'.join(UNITS)})")


@dataclass(frozen=True, slots=True)
class Goodput:
    """Limits in ms by metric key; a request is good when it keeps each of them."""

    limits: tuple[tuple[str, float], ...]

    def keeps(self, record: Record) -> bool:
        """Whether an answered request keeps all limits.

        One token has no ITL and keeps its limit; what brought no token keeps none. An answer in one
        piece, or without a text, as a tool call is, has no TTFT, and keeps no limit of it.
        """
        if not (record.ok and record.chunk_ns):
            return False
        begins = record.first_text_ns is not None and not came_in_one_piece(record)
        return all(
            (begins or key not in _TTFT) and all(v <= limit for v in DEFINITIONS[key].of(record))
            for key, limit in self.limits
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
            "limits": ", ".join(f"{key} <= {limit:g} ms" for key, limit in self.limits),
        }


def parse_goodput(text: str) -> Goodput:
    """Read ``ttft:1s,itl:50ms``; raises ``UserError`` for anything else."""
    limits = []
    for word in text.split(","):
        match = _LIMIT.fullmatch(word.strip())
        key = match and _SHORT.get(match[1], match[1])
        if match is None or key not in _SHORT.values():
            raise UserError(
                f"{word.strip()!r} is no limit",
                where="--goodput",
                fix=f"write ttft:1s,itl:50ms with any of {', '.join(_SHORT)} and us, ms, s or m",
            )
        limits.append((str(key), float(match[2]) * UNITS[match[3]] * 1000))
    return Goodput(tuple(limits))
