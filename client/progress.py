"""Live progress of a load on stderr: one line that is rewritten on a terminal, a line now and
then elsewhere.

A glimpse costs the event loop one pass over the requests in flight; the rest is done in a thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TextIO, TypeAlias

_PLAIN_EVERY_S = 10.0
_CLEAR_LINE = "\r\x1b[K"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load is; ``broken`` streams failed (errors within are read later).

    ``total`` is ``None`` where time ends the load. ``responses`` counts all messages so far,
    ``tokens_per_response`` is of one answer, ``ttfts_ns`` (to the first message) of the latest.
    """

    done: int
    total: int | None
    broken: int
    in_flight: int = 0
    responses: int = 0
    tokens_per_response: float | None = None
    ttfts_ns: tuple[int, ...] = ()


Watch: TypeAlias = Callable[[Progress], None]


def add_up(parts: Sequence[Progress], total: int | None) -> Progress:
    """Sum up what several event loops see."""
    densities = [part.tokens_per_response for part in parts if part.tokens_per_response is not None]
    return Progress(
        done=sum(part.done for part in parts),
        total=total,
        broken=sum(part.broken for part in parts),
        in_flight=sum(part.in_flight for part in parts),
        responses=sum(part.responses for part in parts),
        tokens_per_response=sum(densities) / len(densities) if densities else None,
        ttfts_ns=tuple(ttft for part in parts for ttft in part.ttfts_ns),
    )


@contextmanager
def show_progress(label: str, stream: TextIO | None = None) -> Iterator[Watch]:
    """Give a function that shows each ``Progress`` it is told, on stderr unless told otherwise."""
    out = stream or sys.stderr
    rate = _Rate()
    live = out.isatty()
    last = monotonic()

    def watch(seen: Progress) -> None:
        nonlocal last
        speed = rate(seen)
        if live:
            out.write(f"{_CLEAR_LINE}{label}: {_tell(seen, speed)}")
            out.flush()
        elif seen.done == seen.total or monotonic() - last >= _PLAIN_EVERY_S:
            last = monotonic()
            print(f"{label}: {_tell(seen, speed)}", file=out, flush=True)

    try:
        yield watch
    finally:
        if live:
            out.write("\n")


class _Rate:
    """Responses a second since the last glimpse that saw some."""

    def __init__(self) -> None:
        self._at, self._responses = monotonic(), 0

    def __call__(self, seen: Progress) -> float | None:
        now = monotonic()
        more, passed = seen.responses - self._responses, now - self._at
        if more <= 0 or passed <= 0:
            return None
        self._at, self._responses = now, seen.responses
        return more / passed


def _tell(seen: Progress, rate: float | None) -> str:
    of = "" if seen.total is None else f"/{seen.total}"
    parts = [f"{seen.done}{of} done"]
    if seen.in_flight:
        parts.append(f"{seen.in_flight} in flight")
    if seen.broken:
        parts.append(f"{seen.broken} failed")
    if rate is not None and seen.tokens_per_response is not None:
        parts.append(f"{rate * seen.tokens_per_response:,.0f} tok/s")
    if seen.ttfts_ns:
        spread = sorted(seen.ttfts_ns)
        p50, p99 = spread[len(spread) // 2], spread[-(-99 * len(spread) // 100) - 1]
        parts.append(f"TTFT p50 {p50 / 1e6:,.1f} ms, p99 {p99 / 1e6:,.1f} ms")
    return ", ".join(parts)
