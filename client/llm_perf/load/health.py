"""Whether the client kept up, so that the figures are the server's: samples in, a verdict out.

Event-loop lag is how late a timer fires (a response that is there waits as long to be stamped),
send lag how late a request leaves after it was due, CPU share how much of one core the loop used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

LIMITS: Final = {
    "loop_lag_p99_ms": 5.0,  # a quarter of the ITL that people call fast (20 ms)
    "send_lag_p99_ms": 10.0,  # 1 % of a TTFT limit of one second
    "cpu_share": 0.9,  # of one core: what is nearer to full queues
}
ENOUGH_SENT: Final = 100  # sends: a p99 of fewer is their maximum
ENOUGH_S: Final = 2.0  # of watching a loop: as many looks at its timer, and past the start
_NAMES: Final = {
    "loop_lag_p99_ms": ("event-loop lag p99", " ms"),
    "send_lag_p99_ms": ("send lag p99", " ms"),
    "cpu_share": ("CPU share", " of a core"),
}


@dataclass(frozen=True, slots=True)
class Health:
    """How the client fared, the worst of its ``workers``; lags are p99 in ms, ``None`` if unseen.

    ``cpu_share`` is of one core: CPU time of the process / wall time, while the clock ran.
    ``too_few`` are the figures that were seen for too short to judge by.
    """

    loop_lag_p99_ms: float | None
    send_lag_p99_ms: float | None
    cpu_share: float
    workers: int = 1
    too_few: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """What is over its limit, a phrase each; none means that the client kept up."""
        judged = {key: limit for key, limit in LIMITS.items() if key not in self.too_few}
        seen = ((*_NAMES[key], getattr(self, key), limit) for key, limit in judged.items())
        return tuple(
            f"{what} {value:.3g}{unit} > {limit:g}{unit}"
            for what, unit, value, limit in seen
            if value is not None and value > limit
        )

    @property
    def client_bound(self) -> bool:
        """Whether the figures say more about this machine than about the server."""
        return bool(self.problems)

    @property
    def summary(self) -> str:
        """One line for under the table."""
        bound = "too short a run to judge" if "cpu_share" in self.too_few else "ok"
        if self.client_bound:
            bound = f"CLIENT-BOUND ({'; '.join(self.problems)})"
        return (
            f"{bound}; event-loop lag p99 {_ms(self.loop_lag_p99_ms)}, "
            f"send lag p99 {_ms(self.send_lag_p99_ms)}, CPU {self.cpu_share:.0%} of a core, "
            f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        )

    def to_json(self) -> dict[str, Any]:
        """Give the figures, the limits and the verdict."""
        return {**asdict(self), "limits": LIMITS, "client_bound": self.client_bound}


@dataclass(frozen=True, slots=True)
class LoopSample:
    """What one event loop noted of itself: lateness of its timer in ns, CPU and wall time in ns."""

    lags_ns: tuple[int, ...]
    cpu_ns: int
    wall_ns: int


def judge(samples: Sequence[LoopSample], send_lags_ns: npt.ArrayLike) -> Health:
    """Sum up all event loops of a run and the send lags (sent − due) of its requests."""
    enough = {
        "loop_lag_p99_ms": (longest := max(each.wall_ns for each in samples)) >= ENOUGH_S * 1e9,
        "send_lag_p99_ms": np.size(send_lags_ns) >= ENOUGH_SENT,
        "cpu_share": longest >= ENOUGH_S * 1e9,
    }
    lags = [lag for each in samples if (lag := _p99_ms(each.lags_ns)) is not None]
    return Health(
        loop_lag_p99_ms=max(lags, default=None),
        send_lag_p99_ms=_p99_ms(send_lags_ns),
        cpu_share=max(sample.cpu_ns / max(sample.wall_ns, 1) for sample in samples),
        workers=len(samples),
        too_few=tuple(key for key, judged in enough.items() if not judged),
    )


def _p99_ms(values_ns: npt.ArrayLike) -> float | None:
    """The smallest value that 99 % don't exceed, in ms."""
    values = np.asarray(values_ns)
    return float(np.percentile(values, 99, method="inverted_cdf")) / 1e6 if len(values) else None


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms"
