"""Points: one target under one load, its repetitions together, with figures and their intervals.

Measurements come in the form of a ledger's lines (docs/ledger.md). Pure but for the requests, which
are read when an interval or a distribution first asks for them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from llm_perf.figures.blocks import estimate, t975
from llm_perf.figures.confidence import bootstrap
from llm_perf.report.axes import number
from llm_perf.report.requests import Numbers, Requests, read_requests

Interval: TypeAlias = tuple[float, float]
BLOCKS: Final = 20
_MOST: Final = 1e15
_ENOUGH: Final = 10 * BLOCKS  # requests: fewer have no interval
_ROUNDS: Final = 4  # of a closed loop: fewer say little
_REPEATED: Final = 3  # runs: from so many on they tell the spread, not the blocks of one
_RATES: Final = {"request_throughput": None, "output_token_throughput": "tokens"}


@dataclass(frozen=True, slots=True)
class Form:
    """A form of tokens/s per user: they differ by the spread of users, so an axis names its own."""

    metric: str
    statistic: str = "avg"

    @property
    def inverse(self) -> bool:
        """Whether it is 1 / a time per token."""
        return self.metric == "inter_token_latency"

    @property
    def name(self) -> str:
        """How it is made."""
        mean = self.statistic.replace("avg", "mean")
        if self.inverse:
            return f"1/{mean} TPOT"
        return f"{mean} of {'1/TPOT' if self.metric == PER_USER else 'OSL/latency'}"


PER_USER: Final = "output_token_throughput_per_user"
E2E: Final = "output_token_throughput_per_user_e2e"


@dataclass(frozen=True)
class Line:
    """A measurement, and where its requests are, if they are kept."""

    record: Mapping[str, Any]
    requests: Path | None = None
    source: str = ""
    called: str | None = None  # what the target is called here

    @property
    def target(self) -> str:
        """Who was measured."""
        return self.called or str(self.record["target"]["name"])

    @cached_property
    def over_time(self) -> Mapping[str, Any] | None:
        """Server metrics over time: they stand in the run's JSON, beside its requests."""
        path = self.requests and self.requests.with_suffix(".json")
        if path is None or not path.is_file():
            return None
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            found: Mapping[str, Any] = document["server_metrics"]["over_time"]
            lengths = {
                len(each["values"]) for each in found["series"] if each["labels"] is not None
            }
            return found if lengths <= {len(found["at_ns"])} else None
        except (ValueError, KeyError, TypeError):
            return None

    @cached_property
    def columns(self) -> Requests | None:
        """Its requests."""
        return read_requests(self.requests) if self.requests else None


@dataclass(frozen=True)
class Point:
    """A target under a load; ``lines`` are its repetitions that came to figures."""

    target: str
    kind: str
    value: float | None
    lines: tuple[Line, ...]
    _known: dict[tuple[str, str], Interval | None] = field(default_factory=dict, compare=False)

    @property
    def load(self) -> str:
        """The load for the eye."""
        if self.kind == "trace":
            return "the trace"
        if self.value is None:
            return "all at once"
        if self.kind == "request_rate":
            return f"{number(self.value)} requests/s"
        return f"concurrency {number(self.value)}"

    @property
    def name(self) -> str:
        """Target and load."""
        return f"{self.target} at {self.load}"

    @property
    def first(self) -> Mapping[str, Any]:
        """The first repetition: what they share can be read of it."""
        return self.lines[0].record

    @property
    def cell(self) -> Mapping[str, Any]:
        """Build and serving settings, where they are known."""
        return self.first["target"].get("cell") or {}

    @property
    def gpus(self) -> int | None:
        """How many GPUs it takes, where that is known."""
        known: int | None = self.first["target"].get("gpus")
        return known

    def figure(self, metric: str, statistic: str = "avg") -> float | None:
        """A figure, the mean over repetitions; infinite ones are none that can be drawn."""
        known = [_figure(line.record, metric, statistic) for line in self.lines]
        values = [each for each in known if each is not None]
        return sum(values) / len(values) if values and len(values) == len(known) else None

    def interval(self, metric: str, statistic: str = "avg") -> Interval | None:
        """95 %: of the mean of three runs or more (Student), else over ``BLOCKS`` blocks in time.

        Requests near saturation hang together: below some thousands even blocks are too sure.
        """
        if (metric, statistic) not in self._known:
            self._known[metric, statistic] = self._interval(metric, statistic)
        return self._known[metric, statistic]

    def _interval(self, metric: str, statistic: str) -> Interval | None:
        known = [_figure(line.record, metric, statistic) for line in self.lines]
        values = [each for each in known if each is not None]
        n = len(values)
        if n >= _REPEATED:
            mean = sum(values) / n
            variance = sum((each - mean) ** 2 for each in values) / (n - 1)
            half = t975(n - 1) * math.sqrt(variance / n)
            return max(mean - half, 0.0), mean + half  # no figure is below nothing
        if metric == "score":
            bounds = (self.first.get("score") or {}).get("ci95")
            return (bounds[0], bounds[1]) if bounds else None
        runs = [line.columns for line in self.lines]
        columns = [each for each in runs if each is not None]
        if len(columns) < len(self.lines) or not n:
            return None
        if metric not in _RATES:
            return block_interval(columns, metric, statistic)
        loop = int(self.value or 0) if self.kind == "concurrency" else 0
        spread, rate = rate_spread(columns, metric, loop), sum(values) / n
        return spread and (spread[0] * rate, spread[1] * rate)

    def per_user(self, form: Form) -> float | None:
        """Tokens/s per user."""
        value = self.figure(form.metric, form.statistic)
        return _per_second(value) if form.inverse else value

    def per_user_interval(self, form: Form) -> Interval | None:
        """Its interval."""
        found = self.interval(form.metric, form.statistic)
        if found is None or not form.inverse:
            return found
        low, high = (_per_second(each) for each in reversed(found))
        return (low, high) if low is not None and high is not None else None

    def predicted(self, metric: str) -> float | None:
        """What was expected of a metric before it was measured, in its unit."""
        known = ((self.first.get("prediction") or {}).get("metrics") or {}).get(metric)
        return _drawable(float(known)) if isinstance(known, (int, float)) else None


def points_of(lines: Iterable[Line]) -> list[Point]:
    """Put repetitions together; targets in their order, loads in theirs."""
    found: dict[tuple[str, str, float | None], list[Line]] = {}
    for line in lines:
        if line.record["status"] != "failed" and line.record["metrics"]:
            load = line.record["load"]
            key = (line.target, load["kind"], load["value"])
            found.setdefault(key, []).append(line)
    points = [Point(*key, tuple(each)) for key, each in found.items()]
    order = {name: at for at, name in enumerate(dict.fromkeys(each.target for each in points))}
    points.sort(key=lambda p: (order[p.target], p.kind, math.inf if p.value is None else p.value))
    return points


def rate_spread(runs: Sequence[Requests], metric: str, loop: int = 0) -> Interval | None:
    """95 % interval of a rate, as shares of it: Student's t over blocks in time.

    Blocks lie between the first end and the last send, while the load is full: how it fills up and
    runs empty is no chance. Of a closed ``loop`` they are whole rounds, of as many ends as requests
    are in flight, where there are some: answers that end in step make a rate of any other span.
    """
    blocks = []
    for columns in runs:
        ok, end, last = columns.ok, columns.end_s, float(columns.sent_s.max())
        if ok.sum() < _ENOUGH:
            return None
        first = float(end[ok].min())
        within = ok & (end > first) & (end <= last)
        if within.sum() < _ENOUGH / 2:
            return None
        weights = columns.tokens if _RATES[metric] else np.ones_like(end)
        rounds = int(within.sum()) // loop if loop else 0
        if rounds >= _ROUNDS:
            blocks.append(_round_rates(end[within], weights[within], loop * -(-rounds // BLOCKS)))
        else:
            done, _ = np.histogram(end[within], BLOCKS, (first, last), weights=weights[within])
            blocks.append((done * BLOCKS / (last - first)).tolist())
    found = estimate(blocks)
    if not math.isfinite(found.low):
        return None
    return max(found.low / found.mean, 0.0), found.high / found.mean


def _round_rates(end: Numbers, weights: Numbers, each: int) -> list[float]:
    """What was done a second in each ``each`` ends, from the middle of those before to theirs.

    From a last end to another it would hang on where a few stragglers fall.
    """
    order = np.argsort(end, kind="stable")[: len(end) // each * each]
    middles = end[order].reshape(-1, each).mean(axis=1)
    done = weights[order].reshape(-1, each).sum(axis=1)
    rates: list[float] = (done[1:] / np.maximum(np.diff(middles), 1e-9)).tolist()
    return rates


def block_interval(runs: Sequence[Requests], metric: str, statistic: str) -> Interval | None:
    """95 % interval of a statistic of requests: their blocks in time are drawn (bootstrap)."""
    if (of := _statistic(statistic)) is None:
        return None
    values: list[float] = []
    blocks: list[int] = []
    for columns in runs:
        own = columns.values.get(metric, np.empty(0))[columns.ok]
        own = own[np.isfinite(own)]
        size = len(own) // BLOCKS
        if len(own) < _ENOUGH:
            return None
        blocks += np.repeat(np.arange(BLOCKS) + len(values), size).tolist()
        values += own[: size * BLOCKS].tolist()
    low, high = bootstrap([values], lambda drawn: of(drawn[:, 0]), blocks)
    return low, high


def _statistic(name: str) -> Any:
    if name == "avg":
        return lambda drawn: drawn.mean(axis=-1)
    if name[:1] == "p" and name[1:].isdigit():
        return lambda drawn: np.percentile(drawn, int(name[1:]), axis=-1)
    return None


def ecdf(values: Numbers, most: int = 160) -> list[tuple[float, float]]:
    """The share of sorted values up to each, thinned to ``most`` points, denser at both ends.

    What a logarithmic axis can't hold, zero and infinity, counts and has no point.
    """
    n = len(values)
    ends = (1 - np.cos(np.linspace(0, math.pi, most))) / 2
    at = np.arange(n) if n <= most else np.unique(np.round(ends * (n - 1)).astype(int))
    return [(float(values[i]), (int(i) + 1) / n) for i in at if 0 < values[i] < math.inf]


def targets(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Points by target."""
    found: dict[str, list[Point]] = {}
    for each in points:
        found.setdefault(each.target, []).append(each)
    return found


def _figure(record: Mapping[str, Any], metric: str, statistic: str) -> float | None:
    if metric == "score":
        value = (record.get("score") or {}).get("value")
    elif metric == "requests_failed":
        value = record.get("requests_failed")
    else:
        value = (record["metrics"].get(metric) or {}).get(statistic)
    return None if value is None else _drawable(float(value))


def _drawable(value: float) -> float | None:
    """The value, if an axis can hold it: infinity can't be drawn, nor what nobody measures."""
    if not abs(value) < _MOST:
        return None
    return value if abs(value) > 1 / _MOST else 0.0


def _per_second(ms: float | None) -> float | None:
    return 1000 / ms if ms else None
