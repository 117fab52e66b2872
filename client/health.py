"""Whether the client kept up, so that the figures are the server's: samples in, a verdict out.

Event-loop lag is how late a timer fires (a response that is there waits as long to be stamped),
send lag how late a request leaves after it was due, CPU share how much of one core the loop used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LOOP_LAG_LIMIT_MS = 5.0  # a quarter of the ITL that people call fast (20 ms)
SEND_LAG_LIMIT_MS = 10.0  # 1 % of a TTFT limit of one second
CPU_LIMIT = 0.9  # of one core: what is nearer to full queues


@dataclass(frozen=True, slots=True)
class Health:
    """How the client fared, the worst of its ``workers``; lags are p99 in ms, ``None`` if unseen.

    ``cpu_share`` is of one core: CPU time of the process / wall time, while the clock ran.
    """

    loop_lag_p99_ms: float | None
    send_lag_p99_ms: float | None
    cpu_share: float
    workers: int = 1

    @property
    def problems(self) -> tuple[str, ...]:
        """What is over its limit, a phrase each; none means that the client kept up."""
        seen = (
            ("event-loop lag p99", self.loop_lag_p99_ms, LOOP_LAG_LIMIT_MS, " ms"),
            ("send lag p99", self.send_lag_p99_ms, SEND_LAG_LIMIT_MS, " ms"),
            ("CPU share", self.cpu_share, CPU_LIMIT, " of a core"),
        )
        return tuple(
            f"{what} {value:.3g}{unit} > {limit:g}{unit}"
            for what, value, limit, unit in seen
            if value is not None and value > limit
        )

    @property
    def client_bound(self) -> bool:
        """Whether the figures say more about this machine than about the server."""
        return bool(self.problems)

    @property
    def summary(self) -> str:
        """One line for under the table."""
        bound = f"CLIENT-BOUND ({'; '.join(self.problems)})" if self.client_bound else "ok"
        return (
            f"{bound}; event-loop lag p99 {_ms(self.loop_lag_p99_ms)}, "
            f"send lag p99 {_ms(self.send_lag_p99_ms)}, CPU {self.cpu_share:.0%} of a core, "
            f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        )

    def to_json(self) -> dict[str, Any]:
        """Give the figures, the limits and the verdict."""
        return {
            "loop_lag_p99_ms": self.loop_lag_p99_ms,
            "send_lag_p99_ms": self.send_lag_p99_ms,
            "cpu_share": self.cpu_share,
            "workers": self.workers,
            "limits": {
                "loop_lag_p99_ms": LOOP_LAG_LIMIT_MS,
                "send_lag_p99_ms": SEND_LAG_LIMIT_MS,
                "cpu_share": CPU_LIMIT,
            },
            "client_bound": self.client_bound,
        }


@dataclass(frozen=True, slots=True)
class LoopSample:
    """What one event loop noted of itself: lateness of its timer in ns, CPU and wall time in ns."""

    lags_ns: tuple[int, ...]
    cpu_ns: int
    wall_ns: int


def judge(samples: Sequence[LoopSample], send_lags_ns: Sequence[int]) -> Health:
    """Sum up all event loops of a run and the send lags (sent − due) of its requests."""
    return Health(
        loop_lag_p99_ms=max(
            (lag for sample in samples if (lag := _p99_ms(sample.lags_ns)) is not None),
            default=None,
        ),
        send_lag_p99_ms=_p99_ms(send_lags_ns),
        cpu_share=max(sample.cpu_ns / max(sample.wall_ns, 1) for sample in samples),
        workers=len(samples),
    )


def _p99_ms(values_ns: Sequence[int]) -> float | None:
    """The smallest value that 99 % don't exceed, in ms."""
    if not values_ns:
        return None
    return sorted(values_ns)[-(-99 * len(values_ns) // 100) - 1] / 1e6


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms"
