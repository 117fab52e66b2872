"""What a run showed of limits: times and values of its requests in, means over blocks out. Pure.

A limit becomes a mean that must be large enough: of a percentile the share of requests within it,
of an average the value itself, its sign turned where less is better. Requests of the beginning,
while the queue fills, and of the end of a closed loop, while it drains, count for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llm_perf.errors import UserError
from llm_perf.figures.blocks import block_means
from llm_perf.figures.limits import Limit
from llm_perf.figures.metrics import DEFINITIONS

BLOCKS: Final = 8  # of a run: some for a correlation, each with some requests
FILLING: Final = 0.2  # of a run's requests
_MANY: Final = "inter_chunk_latency"  # a request has one for each of its chunks
_ONE_EACH: Final = {key for key, each in DEFINITIONS.items() if each.values} - {_MANY} | {"score"}
Numbers = npt.NDArray[np.float64]
_NOTHING: Final = -1e300  # a mean of nothing keeps no limit; JSON has no infinity


@dataclass(frozen=True, slots=True)
class Criterion:
    """One limit, as a mean that has to be at least ``least``.

    Raises ``UserError`` for a statistic that isn't one of many requests.
    """

    limit: Limit

    def __post_init__(self) -> None:
        """Take what a mean over requests can tell."""
        statistic = self.limit.statistic or ""
        if self.limit.metric not in _ONE_EACH:
            raise UserError(
                f"{self.limit} can't be searched for: no request has one {self.limit.metric}",
                where="--limit",
                fix=f"limit one of {', '.join(sorted(_ONE_EACH))}",
            )
        if statistic != "avg" and not (statistic[:1] == "p" and statistic[1:].isdigit()):
            raise UserError(
                f"{self.limit} can't be searched for: no number of requests tells a {statistic}",
                where="--limit",
                fix="limit avg or a percentile",
            )

    @property
    def share(self) -> float | None:
        """The share of requests that has to be within; ``None`` of an average."""
        if self.limit.statistic == "avg":
            return None
        below = int(str(self.limit.statistic)[1:]) / 100
        return below if self.limit.upper else 1 - below

    @property
    def least(self) -> float:
        """What the mean of ``scores`` has to reach."""
        return self.limit.value * self._sign if self.share is None else self.share

    @property
    def _sign(self) -> float:
        return -1.0 if self.limit.upper else 1.0

    def within(self, values: Numbers) -> npt.NDArray[np.bool_]:
        """Which values keep the limit; one that isn't there (NaN) keeps it."""
        kept = [self.limit.holds(each) for each in values.tolist()]
        return np.logical_or(np.array(kept, dtype=np.bool_), np.isnan(values))

    def scores(self, values: Numbers) -> Numbers:
        """What is averaged: 1 and 0, or the values so that more is better."""
        return self._sign * values if self.share is None else self.within(values).astype(float)

    def told(self, score: float) -> float:
        """A mean of scores as people know it: a share, or a value in the metric's unit."""
        return score if self.share is not None else score * self._sign


@dataclass(frozen=True, slots=True)
class Requests:
    """A run's requests in order of their times: ``at`` in s; of each criterion its values.

    A value that a request has not is NaN; one that failed has ``ok`` false. ``ttft`` is in ms.
    """

    at: Numbers
    values: Sequence[Numbers]
    ok: npt.NDArray[np.bool_]
    ttft: Numbers


@dataclass(frozen=True, slots=True)
class Seen:
    """One run, as far as a search looks at it.

    ``blocks`` has for each limit the block means of its scores, ``means`` those of the run;
    ``ttft_ms`` is a mean per block. ``attainment`` is the share of requests within all limits,
    ``goodput`` how many of them came a second, ``throughput`` how many were answered. ``hopeless``
    says why the run was ended early, ``client_bound`` that its times aren't the server's alone;
    ``offered`` is the rate at which requests left as a share of that at which they were due.
    """

    blocks: tuple[tuple[float, ...], ...]
    means: tuple[float, ...]
    ttft_ms: tuple[float, ...]
    attainment: float
    goodput: float
    throughput: float
    requests: int
    failed: int
    in_flight: float
    duration_s: float
    hopeless: str | None = None
    client_bound: bool = False
    offered: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """As it stands in a ledger."""
        return asdict(self)

    @classmethod
    def from_json(cls, read: Mapping[str, Any]) -> Seen:
        """Read what ``to_json`` gave."""
        known = dict(read)
        known["blocks"] = tuple(tuple(each) for each in known["blocks"])
        return cls(**known | {name: tuple(known[name]) for name in ("means", "ttft_ms")})


def look(
    criteria: Sequence[Criterion],
    requests: Requests,
    *,
    drained: int = 0,
    throughput: float,
    in_flight: float,
    duration_s: float,
    **more: Any,
) -> Seen:
    """Look at a run; of a closed loop the last ``drained`` requests are left out too.

    ``in_flight`` is the mean of the run, ``throughput`` a second; ``more`` are its other facts.
    """
    n = len(requests.at)
    first = min(int(n * FILLING), n - 1)
    part = slice(first, max(n - drained, first + 1))
    ok, at = requests.ok[part], requests.at[part]
    blocks, means = [], []
    within = ok.copy()
    for criterion, values in zip(criteria, requests.values, strict=True):
        known = values[part]
        within &= criterion.within(known)
        scores = criterion.scores(known)
        if criterion.share is None:  # who failed has no value; too many failures fail the run
            there = ok & ~np.isnan(known)
        else:
            scores, there = np.where(ok, scores, 0.0), ~(ok & np.isnan(known))
        blocks.append(tuple(block_means(at[there].tolist(), scores[there].tolist(), BLOCKS)))
        means.append(float(scores[there].mean()) if there.any() else _NOTHING)
    begun = ok & ~np.isnan(requests.ttft[part])
    attainment = float(within.mean())
    return Seen(
        blocks=tuple(blocks),
        means=tuple(means),
        ttft_ms=tuple(block_means(at[begun].tolist(), requests.ttft[part][begun].tolist(), BLOCKS)),
        attainment=attainment,
        goodput=attainment * throughput * n / max(int(requests.ok.sum()), 1),
        throughput=throughput,
        in_flight=in_flight,
        requests=n,
        failed=int((~requests.ok).sum()),
        duration_s=duration_s,
        **more,
    )
