"""What changed from one run to another, and how surely: two sides in, changes out. Pure.

Requests are paired; the answers to one prompt are one piece of evidence, however often it was
asked, so intervals draw prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from llm_perf.errors import UserError
from llm_perf.figures.confidence import (
    Numbers,
    bootstrap,
    discordant,
    mcnemar,
    paired_shares,
)
from llm_perf.results.written import Line, Side

STATISTICS: Final = ("avg", "p50", "p90", "p99")
_NOISE: Final = 1e-9  # of a figure: what floating point makes of no difference
_FAILED_APART: Final = 0.1  # of the requests: survivors of so many more failures are others
_NO_LOAD: Final = ("requests", "duration_s", "warmup_requests", "warmup_s", "seed")
Pairs: TypeAlias = Sequence[tuple[Line, Line]]


@dataclass(frozen=True, slots=True)
class Change:
    """A figure in both runs; ``low`` and ``high`` bound B − A at 95 %, over ``n`` pairs.

    Figures are of each whole run, the interval is of the pairs that both runs answered; there is
    none for figures that have no value per request, for those of a single prompt, and where it has
    no end.
    """

    metric: str
    statistic: str
    a: float
    b: float
    low: float | None = None
    high: float | None = None
    n: int = 0

    @property
    def difference(self) -> float:
        """B − A."""
        return self.b - self.a

    @property
    def percent(self) -> float | None:
        """B − A in per cent of A."""
        known = self.a and math.isfinite(self.difference)
        return 100 * self.difference / abs(self.a) if known else None

    @property
    def sure(self) -> bool:
        """Whether the interval excludes no change."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What changed from A to B.

    ``changed`` are indices of pairs whose answers differ. ``only_a`` and ``only_b`` count
    prompts that one run got right (more often, where they were repeated), ``p`` is McNemar's exact;
    all absent without 0/1 scores. ``warnings`` say what else differed, a sentence each.
    """

    pairs: int
    changes: tuple[Change, ...]
    changed: tuple[int, ...]
    only_a: int | None = None
    only_b: int | None = None
    p: float | None = None
    warnings: tuple[str, ...] = ()


def compare(a: Side, b: Side, *, force: bool = False) -> Comparison:
    """Pair the requests and compare.

    Raises ``UserError`` for runs that can't be compared: other workloads, other loads, or far more
    failures in one. With ``force`` they are all the same, by the place of their requests.
    """
    if not force:
        _refuse(a, b)
    both = pairs(a, b)
    changed = tuple(x["index"] for x, y in both if x["answer"] != y["answer"])
    metrics = [key for key, value in a.document.items() if isinstance(value, dict)]
    changes = tuple(
        each for metric in [*metrics, "requests_failed"] for each in changes_of(a, b, both, metric)
    )
    warnings = tuple(_warnings(a, b))
    scores = [(x.get("score"), y.get("score")) for x, y in both]
    if not scores or not all({x, y} <= {0, 1} for x, y in scores):
        return Comparison(len(both), changes, changed, warnings=warnings)
    only_a, only_b = discordant((x["index"], x["score"] - y["score"]) for x, y in both)
    p = mcnemar(only_a, only_b)
    return Comparison(len(both), changes, changed, only_a, only_b, p, warnings)


def pairs(a: Side, b: Side) -> list[tuple[Line, Line]]:
    """Pair what both answered by index; the k-th time a prompt was asked with the k-th time."""
    waiting: dict[int, list[Line]] = {}
    for line in b.lines:
        waiting.setdefault(line["index"], []).append(line)
    met = [(x, waiting[x["index"]].pop(0)) for x in a.lines if waiting.get(x["index"])]
    return [(x, y) for x, y in met if x["status"] == y["status"] == "ok"]


def changes_of(
    a: Side, b: Side, both: Pairs, metric: str, statistics: Sequence[str] = STATISTICS
) -> Iterator[Change]:
    """Give the statistics of a metric that both runs have."""
    rows: list[tuple[float, float]] = []
    prompts: list[int] = []
    for x, y in both:
        was, became = _value(x, metric), _value(y, metric)
        if was is not None and became is not None:
            rows.append((was, became))
            prompts.append(x["index"])
    bounds = _intervals(rows, prompts, metric, statistics)
    for statistic in statistics:
        before, after = a.figure(metric, statistic), b.figure(metric, statistic)
        if before is not None and after is not None:
            low, high = bounds.get(statistic, (None, None))
            yield Change(metric, statistic, before, after, low, high, len(rows))


def _value(line: Line, metric: str) -> float | None:
    value = line.get("score") if metric == "score" else line["metrics"].get(metric)
    return None if value is None else float(value)


def _intervals(
    rows: Sequence[tuple[float, float]],
    prompts: Sequence[int],
    metric: str,
    statistics: Sequence[str],
) -> dict[str, tuple[float, float]]:
    """Bound B − A of the statistics that have an interval, all of them over the same draws.

    A single prompt has none, and resamples can't tell those of extremes (min, max, std).
    """
    if len(set(prompts)) < 2:
        return {}
    columns = list(zip(*rows, strict=True))
    if metric == "score" and {0.0, 1.0}.issuperset(columns[0] + columns[1]):
        return {"avg": paired_shares(columns[0], columns[1], prompts)}
    percents = [name for name in statistics if name[:1] == "p" and name[1:].isdigit()]

    def of(drawn: Numbers) -> Numbers:
        quantiles = np.percentile(drawn, [int(name[1:]) for name in percents], axis=-1)
        return np.vstack([drawn.mean(axis=-1), quantiles]).T

    with np.errstate(invalid="ignore"):  # of a pace that is infinite
        bounds = bootstrap(columns, lambda drawn: of(drawn[:, 1]) - of(drawn[:, 0]), prompts)
    noise = _NOISE * max(filter(math.isfinite, map(abs, columns[0] + columns[1])), default=0.0)
    low, high = ([0.0 if abs(each) <= noise else each for each in side] for side in bounds)
    known = zip(["avg", *percents], zip(low, high, strict=True), strict=True)
    return {name: each for name, each in known if all(map(math.isfinite, each))}


def load_of(side: Side) -> dict[str, object]:
    """What two runs have to have in common to be under one load."""
    known = side.document.get("load") or {}
    return {key: value for key, value in known.items() if key not in _NO_LOAD}


def _failed(side: Side) -> float:
    return 1 - side.answered / len(side.lines) if side.lines else 0.0


def _refuse(a: Side, b: Side) -> None:
    """Raise ``UserError`` where a difference of the figures would be one of the question."""
    hashes = [side.document["workload"]["sha256"] for side in (a, b)]
    if hashes[0] != hashes[1]:
        raise UserError(
            f"{a.path} and {b.path} are runs of different workloads "
            f"({hashes[0][:12]} and {hashes[1][:12]})",
            fix="compare runs of the same prompts and limits, or insist with --force",
        )
    if load_of(a) != load_of(b):
        raise UserError(
            f"{a.path} and {b.path} are runs under different loads "
            f"({told_load(load_of(a))} and {told_load(load_of(b))})",
            fix="compare runs under the same load, or insist with --force",
        )
    if a.answered and b.answered and abs(_failed(a) - _failed(b)) > _FAILED_APART:
        raise UserError(
            f"{_failed(a):.0%} of the requests failed in {a.path}, {_failed(b):.0%} in {b.path}: "
            "those that were answered aren't the same",
            fix="mend what failed, or insist with --force",
        )


def told_load(load: dict[str, object]) -> str:
    """A load in a line."""
    rest = {key: value for key, value in load.items() if value and key not in ("kind", "value")}
    told = (f"{load.get('kind')} {load.get('value')}", *(f"{k} {v}" for k, v in rest.items()))
    return " ".join(told)


def _warnings(a: Side, b: Side) -> Iterator[str]:
    """Say what a reader must know of how the runs differ, or of what ails one."""
    if load_of(a) != load_of(b):
        yield f"the loads differ: {told_load(load_of(a))} in A, {told_load(load_of(b))} in B"
    for key, what in (
        ("requests", "requests asked for"),
        ("duration_s", "seconds"),
        ("warmup_requests", "warm-up requests"),
        ("warmup_s", "seconds of warm-up"),
    ):
        was, became = ((side.document.get("load") or {}).get(key) for side in (a, b))
        if was != became:
            yield f"{what}: {was} in A, {became} in B"
    tagged = [side.document["workload"].get("unique_prefix", False) for side in (a, b)]
    if tagged[0] != tagged[1]:
        yield f"--unique-prefix: {tagged[0]} in A, {tagged[1]} in B"
    most = [side.document.get("max_in_flight_seen") for side in (a, b)]
    if most[0] != most[1]:
        yield f"requests in flight, at most: {most[0]} in A, {most[1]} in B"
    failed = [f"{len(side.lines) - side.answered} of {len(side.lines)}" for side in (a, b)]
    if _failed(a) != _failed(b):
        yield f"requests failed: {failed[0]} in A, {failed[1]} in B; figures are of the others"
    for name, side in (("A", a), ("B", b)):
        if (side.document.get("health") or {}).get("client_bound"):
            yield f"{name} was CLIENT-BOUND: its figures are not the server's"
        if stopped := side.document.get("stopped"):
            yield f"{name} ended early: {stopped}"
