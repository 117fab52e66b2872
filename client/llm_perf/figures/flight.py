"""How many requests were in flight, and what was served while a closed loop kept its number up.

A closed loop fills up at its start and runs empty at its end; figures over the whole window hold
both. Pure; records in, numbers out.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llm_perf.record import Record, Status

_PAUSING = (Status.REFUSED, Status.THROTTLED)  # the slot waits before it asks again
_NEVER = 2**63 - 1
_FULL = 0.98  # of the number: a slot takes a moment from an end to its next send
Numbers: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Flights:
    """When requests were in flight: each one's send and end, in ns, and the run's window.

    The window is from the first send to the last response, failed requests too; one that found no
    connection was never sent. ``paused_ns`` is when a slot first paused, because it was refused.
    """

    sent: Numbers
    ended: Numbers
    first_ns: int
    last_ns: int
    paused_ns: int = _NEVER

    @property
    def window_ns(self) -> int | None:
        """Length of the window; ``None`` where nothing came."""
        return self.last_ns - self.first_ns if self.last_ns else None

    @property
    def mean(self) -> float | None:
        """Little's law: Σ (end − sent) / window, of every request what lies within the window."""
        if not self.window_ns:
            return None
        spent = np.minimum(self.ended, self.last_ns) - np.minimum(self.sent, self.last_ns)
        return float(spent.sum() / self.window_ns)

    def steady(self, concurrency: int) -> tuple[int, int] | None:
        """Whole rounds of a load that is kept full, from an end of a request to another, in ns.

        Full are ``concurrency`` requests in flight, or as many as there ever were, but for those
        whose slot is about to send again. It can't be kept full when a request ends and none is
        left to send, be it to one of several workers, or a slot pauses. A round is as many ends
        as requests are in flight: after it a server that works in step, or in a queue, is where
        it was. Before the first end it isn't yet: prompts are read and little is written.
        ``None`` where there is no whole round.
        """
        if not len(self.sent):
            return None
        sends, ends = np.sort(self.sent), np.sort(self.ended)
        in_flight = np.arange(1, len(sends) + 1) - np.searchsorted(ends, sends, "right")
        most = min(concurrency, int(in_flight.max()))
        full = sends[in_flight >= math.ceil(_FULL * most)]
        after = int(np.searchsorted(ends, full[-1], "right"))
        short = min(int(ends[min(after, len(ends) - 1)]), self.paused_ns)
        kept = ends[np.searchsorted(ends, full[0], "right") : np.searchsorted(ends, short, "right")]
        if len(kept) <= most:
            return None
        begin, end = int(kept[0]), int(kept[(len(kept) - 1) // most * most])
        return (begin, end) if begin < end else None


def flights(records: Iterable[Record]) -> Flights:
    """Read the times of requests, once: they may be on disk."""
    sent, ended = array("q"), array("q")
    first, last, paused = _NEVER, 0, _NEVER
    for each in records:
        if each.sent_ns or each.chunk_ns:
            sent.append(each.sent_ns)
            ended.append(each.end_ns)
            first = min(first, each.sent_ns)
        if each.chunk_ns:
            last = max(last, each.chunk_ns[-1])
        if each.status in _PAUSING:
            paused = min(paused, each.end_ns)
    return Flights(_numbers(sent), _numbers(ended), first, last, paused)


@dataclass(frozen=True, slots=True)
class Served:
    """What came of the answered requests in some time: tokens and requests.

    Output tokens count where their response came, each response of an answer having as many.
    Requests and their input tokens count by the share of their time, sent to last response, that
    lies within; so do the tokens of an answer in one piece.
    """

    requests: float
    output_tokens: float
    input_tokens: float


def served(records: Iterable[Record], start_ns: int, end_ns: int) -> Served:
    """Count what came between two times."""
    requests = output = read = 0.0
    for each in records:
        if not (each.ok and each.chunk_ns):
            continue
        share = _overlap(each, start_ns, end_ns)
        requests += share
        read += share * (each.input_tokens or 0)
        if len(each.chunk_ns) > 1:
            within = sum(start_ns < at <= end_ns for at in each.chunk_ns)
            share = within / len(each.chunk_ns)
        output += share * each.output_tokens
    return Served(requests, output, read)


def _numbers(times: array[int]) -> Numbers:
    return np.array(times, dtype=np.int64)


def _overlap(record: Record, start_ns: int, end_ns: int) -> float:
    """Which share of the request's time lies between two times."""
    first, last = record.sent_ns, record.chunk_ns[-1]
    if first == last:
        return float(start_ns < last <= end_ns)
    return max(min(last, end_ns) - max(first, start_ns), 0) / (last - first)
