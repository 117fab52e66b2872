"""Whether a run is lost: glimpses of it while it goes on in, a reason to end it out. Pure.

An open loop above what a server gets through has ever more in flight, and its TTFT grows with them;
nothing that comes later makes that good.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import Final

from llm_perf.figures.limits import Limit
from llm_perf.load.progress import Progress

_LOOKS: Final = 20  # before anything is said
_SENT: Final = 0.2  # of the requests, likewise
_LATEST: Final = 50  # requests whose TTFT counts
_MORE: Final = 1.5  # times as much in flight and as late in the last third as in the first
_MUCH_MORE: Final = 4.0  # where no limit is on TTFT
_BEYOND: Final = 3.0  # times the limit: no mean comes back from there; of high percentiles once
_HIGH: Final = ("p90", "p95", "p99")
_TTFT: Final = ("time_to_first_token", "time_to_first_token_from_schedule")


class Hopeless:
    """Told of each glimpse, says why the run is lost once it is."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        bounds = [
            each.value * (1.0 if each.statistic in _HIGH else _BEYOND)
            for each in limits
            if each.metric in _TTFT and each.upper
        ]
        self._most_ms = min(bounds, default=None)
        self._in_flight: list[float] = []
        self._late_ms: list[float] = []

    def look(self, seen: Progress) -> str | None:
        """Look once more; twice a second, say."""
        if not seen.ttfts_ns or seen.total is None:
            return None
        self._in_flight.append(seen.in_flight)
        self._late_ms.append(median(seen.ttfts_ns[-_LATEST:]) / 1e6)
        sent = seen.done + seen.in_flight
        if len(self._late_ms) < _LOOKS or sent < _SENT * seen.total or sent >= seen.total:
            return None
        flights, lates = _thirds(self._in_flight), _thirds(self._late_ms)
        more = _MUCH_MORE if self._most_ms is None else _MORE
        late = self._most_ms is None or lates[-1] > self._most_ms
        if not (late and _rises(flights, more) and _rises(lates, more)):
            return None
        return (
            f"hopeless: {flights[0]:.0f}, {flights[1]:.0f}, {flights[2]:.0f} in flight, "
            f"TTFT {lates[0]:,.0f}, {lates[1]:,.0f}, {lates[2]:,.0f} ms"
        )


def _thirds(values: Sequence[float]) -> tuple[float, float, float]:
    third = len(values) // 3
    return fmean(values[:third]), fmean(values[third : 2 * third]), fmean(values[2 * third :])


def _rises(thirds: tuple[float, float, float], more: float) -> bool:
    return thirds[0] < thirds[1] < thirds[2] and thirds[2] > more * thirds[0]
