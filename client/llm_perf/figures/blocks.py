"""How sure a mean is whose values lean on each other: block means in, bounds out. Pure.

Requests of one run share its queue, so an interval over requests is far too narrow. Means over
blocks of time that are long against that memory are nearly independent (batch means: Law,
Simulation Modeling and Analysis, 9.5.3); what is left of it is told by the correlation of
neighbours, which takes blocks away. Even so a run of some hundred requests near a limit can't be
honest: fresh runs beside each other can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from llm_perf.figures.confidence import Z95

Verdict: TypeAlias = Literal["pass", "fail", "undecided"]
Numbers = npt.NDArray[np.float64]
_LEAST: Final = 4  # blocks of one run, for neighbours to say something
_MOST_LAG: Final = 0.9  # a correlation nearer to 1 would leave no block at all


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % bounds, infinite where one block says nothing.

    ``lag1`` is the correlation of neighbouring blocks, ``None`` where no run has enough of them;
    ``blocks`` their number.
    """

    mean: float
    low: float
    high: float
    lag1: float | None
    blocks: int

    def verdict(self, least: float) -> Verdict:
        """Whether the mean is surely at least so much, surely less, or neither."""
        return "pass" if self.low >= least else "fail" if self.high < least else "undecided"


@dataclass(frozen=True, slots=True)
class Difference:
    """B − A in per cent of A, with its 95 % bounds, over ``blocks`` pairs."""

    percent: float
    low: float
    high: float
    blocks: int

    @property
    def sure(self) -> bool:
        """Whether the interval excludes no difference."""
        return self.low > 0 or self.high < 0


def block_means(at: Sequence[float], values: Sequence[float], blocks: int) -> list[float]:
    """Means of ``values`` over so many equal spans of the times ``at``; an empty span has none."""
    times, figures = np.asarray(at, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if not len(times):
        return []
    begin, length = times.min(), float(np.ptp(times)) or 1.0
    of = np.minimum(((times - begin) / length * blocks).astype(np.int64), blocks - 1)
    counts = np.bincount(of, minlength=blocks)
    sums = np.bincount(of, weights=figures, minlength=blocks)
    means: list[float] = (sums[counts > 0] / counts[counts > 0]).tolist()
    return means


def lag1(runs: Sequence[Sequence[float]]) -> float | None:
    """Correlation of neighbouring blocks within runs, about the mean of all.

    ``None`` where no run has four blocks, or all are equal.
    """
    arrays = [np.asarray(run, dtype=np.float64) for run in runs if len(run) >= _LEAST]
    if not arrays:
        return None
    mean = float(np.concatenate(arrays).mean())
    off = [each - mean for each in arrays]
    spread = sum(float(each @ each) for each in off)
    return sum(float(each[1:] @ each[:-1]) for each in off) / spread if spread > 0 else None


def estimate(runs: Sequence[Sequence[float]]) -> Estimate:
    """Mean and 95 % interval (Student's t) over the blocks of independent ``runs``, at least one.

    Of n blocks whose neighbours correlate by r > 0, n·(1 − r)/(1 + r) count (Bayley and Hammersley
    1946, for a process of first order), where r is what was seen and the (1 + 3r)/n that a short
    row shows too little (Marriott and Pope 1954, doi:10.1093/biomet/41.3-4.390).
    """
    data = np.concatenate([np.asarray(run, dtype=np.float64) for run in runs])
    n, mean, r = len(data), float(data.mean()), lag1(runs)
    leaning = 0.0 if r is None else min(max(r + (1 + 3 * r) / n, 0.0), _MOST_LAG)
    worth = n * (1 - leaning) / (1 + leaning)
    if n < 2 or worth < 2:
        return Estimate(mean, -math.inf, math.inf, r, n)
    half = t975(worth - 1) * float(data.std(ddof=1)) / math.sqrt(worth)
    return Estimate(mean, mean - half, mean + half, r, n)


def paired(a: Sequence[float], b: Sequence[float]) -> Difference | None:
    """How far the mean of B is from that of A, over blocks that were measured side by side.

    The ratio of means with its linearized variance (Cochran, Sampling Techniques, 6.4) and t over
    blocks, so that one block's zero is no trouble. ``None`` with less than two pairs, or where A's
    mean is zero.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    n = len(first)
    if n != len(second):
        raise ValueError(f"{n} blocks of A and {len(second)} of B are no pairs")
    if n < 2 or not (base := float(first.mean())):
        return None
    ratio = float(second.mean()) / base
    off = (second - ratio * first) / abs(base)
    half = t975(n - 1) * float(np.sqrt(off @ off / (n - 1) / n))
    change = math.copysign(1.0, base) * (ratio - 1)
    return Difference(100 * change, 100 * (change - half), 100 * (change + half), n)


def drift(means: Sequence[float]) -> Difference | None:
    """How far blocks moved from the first to the last, in per cent of their mean.

    The slope of a straight line (least squares) with its 95 % interval. ``None`` for less than
    three blocks, or a mean of zero.
    """
    data = np.asarray(means, dtype=np.float64)
    n = len(data)
    if n < 3 or not (mean := float(data.mean())):
        return None
    x = np.arange(n) - (n - 1) / 2
    spread = float(x @ x)
    slope = float(x @ data) / spread
    left = data - mean - slope * x
    half = t975(n - 2) * math.sqrt(float(left @ left) / (n - 2) / spread)
    moved, bound = (100 * (n - 1) * each / abs(mean) for each in (slope, half))
    return Difference(moved, moved - bound, moved + bound, n)


def t975(freedom: float) -> float:
    """97.5 % quantile of Student's t; of a broken degree of freedom the whole one below counts.

    Exact for 1 and 2, else Fisher's expansion (Abramowitz and Stegun 26.7.5), within 0.2 %.
    """
    v = max(math.floor(freedom + 1e-9), 1)
    if v == 1:
        return math.tan(0.475 * math.pi)
    if v == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z = Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / v**power for power, term in enumerate(terms, start=1)))
