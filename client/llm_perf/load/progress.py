"""Live progress of a load on stderr: one line that is rewritten on a terminal, a line now and
then elsewhere.

A glimpse costs the event loop one pass over the requests in flight; the rest is done in a thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import TextIO, TypeAlias

from llm_perf.screen import plain

_PLAIN_EVERY_S = 10.0
_CLEAR_LINE = "\r\x1b[K"
_PACE_AFTER_S = 30.0
_COLUMNS = 80  # of a terminal that doesn't say


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load is."""

    done: int
    total: int | None  # None where time ends the load
    broken: int  # streams that failed; errors within are read later
    in_flight: int = 0
    responses: int = 0  # all messages so far
    tokens_per_response: float | None = None  # of one answer
    ttfts_ns: tuple[int, ...] = ()  # to the first message, of the latest


Watch: TypeAlias = Callable[[Progress], str | None]
"""Told of a load, it may say why to end it: no more is sent, what is in flight is waited for."""


def add_up(parts: Sequence[Progress], total: int | None) -> Progress:
    """Sum up what several event loops see."""
    names = ("done", "broken", "in_flight", "responses")
    sums = {name: sum(getattr(part, name) for part in parts) for name in names}
    densities = [part.tokens_per_response for part in parts if part.tokens_per_response is not None]
    return Progress(
        **sums,
        total=total,
        tokens_per_response=sum(densities) / len(densities) if densities else None,
        ttfts_ns=tuple(ttft for part in parts for ttft in part.ttfts_ns),
    )


@contextmanager
def show_progress(
    label: str, warn: Callable[[int, int | None, float], str | None] | None = None
) -> Iterator[Watch]:
    """Give a function that shows each ``Progress`` it is told, on stderr.

    ``warn`` is asked once, half a minute after the start, whether there is something to say of
    (done, total, seconds since the start).
    """
    out = sys.stderr
    live = out.isatty()
    began = printed = at = monotonic()
    responses = 0

    def watch(seen: Progress) -> None:
        nonlocal printed, at, responses, warn
        now = monotonic()
        if warn and seen.done and now - began >= _PACE_AFTER_S:
            if said := warn(seen.done, seen.total, now - began):
                print(f"{_CLEAR_LINE if live else ''}{plain(label)}: {said}", file=out, flush=True)
            warn = None
        more, passed = seen.responses - responses, now - at
        rate = more / passed if more > 0 and passed > 0 else None  # since the last that saw some
        if rate is not None:
            at, responses = now, seen.responses
        if live:
            out.write(f"{_CLEAR_LINE}{_fitted(label, _tell(seen, rate), _columns(out))}")
            out.flush()
        elif seen.done == seen.total or now - printed >= _PLAIN_EVERY_S:
            printed = now
            print(f"{label}: {', '.join(_tell(seen, rate))}", file=out, flush=True)

    def watch_if_seen(seen: Progress) -> None:
        with suppress(OSError):  # a closed terminal ends no run
            watch(seen)

    try:
        yield watch_if_seen
    finally:
        with suppress(OSError):
            if live:
                out.write("\n")


def _columns(out: TextIO) -> int:
    """How wide the terminal is; some say 0."""
    try:
        return os.get_terminal_size(out.fileno()).columns or _COLUMNS
    except (OSError, ValueError):
        return _COLUMNS


def _fitted(label: str, parts: Sequence[str], columns: int) -> str:
    """As many of the parts as a line has room for: one that wraps can't be rewritten."""
    line, *others = parts
    line = f"{plain(label)}: {line}"
    for part in others:
        if len(line) + len(part) + 2 >= columns:
            break
        line += f", {part}"
    return line[: columns - 1]


def _tell(seen: Progress, rate: float | None) -> list[str]:
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
    return parts
