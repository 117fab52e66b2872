"""When which request is due: a load, its extent and the trace's times in, an order out.

Pure functions of their arguments; a seed gives the same times everywhere. An order numbers its
requests: 0, 1, … are measured and ask prompt ``number % len(prompts)``; −1, −2, … warm up. It can
be split among event loops and relieved of what was done before. Knows no clock and no server.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llm_perf.errors import UserError
from llm_perf.load.load import Concurrency, Extent, Load, Rate

_ENDLESS = sys.maxsize  # as many as a range can have
_MANY = 2**40  # more than anybody asks for, less than a share of endless
_NS = 10**9


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed loop: at ``slots[i]`` ns after the start slot i asks for the first time.

    Slots take ``numbers`` for at most ``duration_ns`` from the start on; before that, in a part of
    its own, the ``warmup`` numbers for at most ``warmup_ns``.
    """

    slots: tuple[int, ...]
    warmup: range
    numbers: Sequence[int]
    warmup_ns: int | None = None
    duration_ns: int | None = None

    @property
    def total(self) -> int | None:
        """How many requests are measured, unless time decides."""
        n = len(self.numbers)
        return n if n < _MANY else None

    @property
    def streams(self) -> int:
        """How many requests are in flight at most."""
        return len(self.slots)

    @property
    def warming(self) -> Closed:
        """The warm-up, as an order."""
        return Closed(self.slots, range(0), self.warmup, duration_ns=self.warmup_ns)


@dataclass(frozen=True, slots=True)
class Open:
    """An open loop: each (number, ns after the start) in order of time; the warm-up by itself."""

    dues: tuple[tuple[int, int], ...]
    warmup: tuple[tuple[int, int], ...] = ()

    @property
    def total(self) -> int:
        """How many requests are measured."""
        return len(self.dues)

    @property
    def streams(self) -> int:
        """How many requests may be in flight: all."""
        return len(self.dues)

    @property
    def warming(self) -> Open:
        """The warm-up, as an order."""
        return Open(self.warmup)


Order: TypeAlias = Closed | Open


def plan(load: Load, extent: Extent, prompts: int, trace_s: Sequence[float | None] = ()) -> Order:
    """Number and time the requests of a run over so many ``prompts``.

    ``trace_s`` are the prompts' own times. Raises ``UserError`` for what can't be scheduled.
    """
    if isinstance(load, Concurrency):
        return _plan_closed(load, extent, prompts)
    if isinstance(load, Rate):
        return _plan_rate(load, extent, prompts)
    return _plan_trace(extent, trace_s)


def _plan_closed(load: Concurrency, extent: Extent, prompts: int) -> Closed:
    endless = extent.duration_s is not None and extent.requests is None
    total = _ENDLESS if endless else extent.requests or prompts
    warmup = _ENDLESS - 1 if extent.warmup_s else extent.warmup_requests
    n = min(load.n, total)
    return Closed(
        slots=tuple(round(load.ramp_s * _NS * slot / load.n) for slot in range(n)),
        warmup=range(-1, -1 - warmup, -1),
        numbers=range(total),
        warmup_ns=round(extent.warmup_s * _NS) if extent.warmup_s else None,
        duration_ns=None if extent.duration_s is None else round(extent.duration_s * _NS),
    )


def _plan_rate(load: Rate, extent: Extent, prompts: int) -> Open:
    if math.isinf(load.per_s) and (extent.duration_s is not None or extent.warmup_s):
        raise UserError(
            "an infinite rate sends all requests at once, so no duration ends it",
            fix="use --num-requests and --warmup-requests",
        )
    warm_ns = round(extent.warmup_s * _NS)
    warmup = _count_before(load, warm_ns) if warm_ns else extent.warmup_requests
    times = arrivals(load, warmup + (extent.requests or prompts))
    if extent.duration_s is not None:
        begin = warm_ns or (int(times[warmup]) if warmup else 0)
        end = begin + round(extent.duration_s * _NS)
        if extent.requests is None:
            times = arrivals(load, _count_before(load, end))
        times = times[times < end]
    if len(times) <= warmup:
        raise UserError("no request is due in that time", fix="measure longer, or at a higher rate")
    begin_ns = warm_ns or (int(times[warmup]) if warmup else 0)
    warm = zip(range(-1, -1 - warmup, -1), times[:warmup].tolist(), strict=True)
    return Open(tuple(enumerate((times[warmup:] - begin_ns).tolist())), tuple(warm))


def _count_before(load: Rate, end_ns: int) -> int:
    """How many requests arrive in the first ``end_ns``."""
    n = 64
    while (times := arrivals(load, n))[-1] < end_ns:
        n *= 2
    return int(np.searchsorted(times, end_ns))


def arrivals(load: Rate, n: int) -> npt.NDArray[np.int64]:
    """Draw the first ``n`` arrival times, in ns from the start, in order.

    Arrivals of a process with rate 1 are drawn first and then mapped through the inverse of the
    expected count up to a time (time rescaling), so that a ramp keeps each kind of arrival what
    it is. The times of a smaller ``n`` are the first of those of a larger one.
    """
    if math.isinf(load.per_s):
        return np.zeros(n, dtype=np.int64)
    if load.arrival == "constant":
        counts = np.arange(n, dtype=np.float64)
    else:
        shape = load.burstiness  # 1 but for gamma: that is the exponential distribution, poisson's
        gaps = np.random.default_rng(load.seed).standard_gamma(shape, n) / shape
        counts = np.cumsum(gaps)
    # in a ramp the rate at t is per_s · t / ramp_s, so half as many come as in that time later
    in_ramp = np.sqrt(2 * load.ramp_s * counts / load.per_s)
    after = counts / load.per_s + load.ramp_s / 2
    times: npt.NDArray[np.float64] = np.where(in_ramp < load.ramp_s, in_ramp, after)
    rounded: npt.NDArray[np.int64] = np.rint(times * _NS).astype(np.int64)
    return rounded


def _plan_trace(extent: Extent, trace_s: Sequence[float | None]) -> Open:
    if extent.warmup_requests or extent.warmup_s:
        raise UserError("a trace has no warm-up", fix="put the warm-up in the trace")
    times = [(at, number) for number, at in enumerate(trace_s) if at is not None]
    if len(times) < len(trace_s) or not times:
        raise UserError(
            f"{len(trace_s) - len(times)} of {len(trace_s)} prompts have no time to replay",
            fix="give each line a timestamp, or leave --trace-replay out",
        )
    if extent.requests is not None and extent.requests > len(times):
        raise UserError(
            f"the trace has {len(times)} requests, not {extent.requests}",
            fix="a trace can be cut, not repeated",
        )
    times.sort()
    times = times[: extent.requests]
    end = math.inf if extent.duration_s is None else times[0][0] + extent.duration_s
    first = times[0][0]
    return Open(tuple((number, round((at - first) * _NS)) for at, number in times if at < end))


def share(order: Order, worker: int, workers: int) -> Order:
    """What one of ``workers`` does of an order: every so-manieth request and slot."""
    if isinstance(order, Open):
        return Open(order.dues[worker::workers], order.warmup[worker::workers])
    return replace(
        order,
        slots=order.slots[worker::workers],
        warmup=order.warmup[worker::workers],
        numbers=order.numbers[worker::workers],
    )


def without(order: Order, done: Collection[int], passed_ns: int = 0) -> Order:
    """What is left of an order when the requests ``done`` took ``passed_ns`` before.

    An open loop goes on with the first that is left, without waiting for those before it. A closed
    one that only time ends goes on behind the last that was done: those in flight at the cut are
    no more missed than any other.
    """
    if isinstance(order, Open):
        left = [(number, at) for number, at in order.dues if number not in done]
        skipped = left[0][1] - order.dues[0][1] if left else 0
        return Open(tuple((number, at - skipped) for number, at in left), order.warmup)
    numbers: Sequence[int] = range(max(done, default=-1) + 1, _ENDLESS)
    if order.total is not None:
        numbers = tuple(number for number in order.numbers if number not in done)
    duration_ns = order.duration_ns and max(order.duration_ns - passed_ns, 0)
    if duration_ns == 0:
        numbers = ()
    slots = order.slots[: min(len(numbers), len(order.slots))]
    return replace(order, numbers=numbers, slots=slots, duration_ns=duration_ns)
