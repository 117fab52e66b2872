"""Two servers measured in alternation: blocks of both in, changes with their intervals out. Pure.

The i-th block of either had the same prompts at the same times, one soon after the other. What
requests of one block have in common makes them poor evidence of each other's (of a queue near
saturation an interval over requests holds the truth in a third of the cases), so an interval is of
the differences of blocks; but for scores, which the load doesn't move.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from llm_perf.figures.blocks import Difference, drift, paired
from llm_perf.ledger.measurement import Measurement
from llm_perf.results.change import STATISTICS, Change, changes_of, pairs
from llm_perf.results.written import Side, read_side

_DRIFTS: Final = ("request_latency", "output_token_throughput")


def block_changes(
    a: Sequence[Measurement], b: Sequence[Measurement], folder: Path | None = None
) -> Iterator[Change]:
    """What changed from A to B; ``n`` is the number of blocks, ``low`` and ``high`` bound B − A.

    Figures are means over the blocks. A single block has no interval. The score's is of the
    requests, whose files are found from ``folder``.
    """
    for metric in a[0]["metrics"]:
        for statistic in STATISTICS:
            change = block_change(a, b, metric, statistic)
            if change is not None:
                yield change
    if folder is not None and (change := score_change(a, b, folder)):
        yield change
    before, after = (float(sum(each["requests_failed"] for each in side)) for side in (a, b))
    yield Change("requests_failed", "avg", before, after)


def block_change(
    a: Sequence[Measurement], b: Sequence[Measurement], metric: str, statistic: str
) -> Change | None:
    """The change of one figure; ``None`` where no block of both has it."""
    met = [
        (was, became)
        for x, y in zip(a, b, strict=True)
        if (was := _figure(x, metric, statistic)) is not None
        and (became := _figure(y, metric, statistic)) is not None
    ]
    if not met:
        return None
    before, after = zip(*met, strict=True)
    moved, mean = paired(before, after), sum(before) / len(met)
    low, high = (x * abs(mean) / 100 for x in (moved.low, moved.high)) if moved else (None, None)
    return Change(metric, statistic, mean, sum(after) / len(met), low, high, len(met))


def _figure(block: Measurement, metric: str, statistic: str) -> float | None:
    value = block["metrics"].get(metric, {}).get(statistic)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def score_change(a: Sequence[Measurement], b: Sequence[Measurement], folder: Path) -> Change | None:
    """The change of the mean score over all requests; ``None`` without scores."""
    before, after = (_whole(side, folder) for side in (a, b))
    if before is None or after is None:
        return None
    return next(changes_of(before, after, pairs(before, after), "score", ["avg"]), None)


def _whole(blocks: Sequence[Measurement], folder: Path) -> Side | None:
    """All blocks of one server as one run; ``None`` where one has no score or no file."""
    scores = [each["score"] for each in blocks if each["score"]]
    files = [each["files"]["requests"] for each in blocks if "requests" in each["files"]]
    if not len(scores) == len(files) == len(blocks):
        return None
    lines = tuple(
        line for file in files for line in read_side((folder / file).with_suffix(".json")).lines
    )
    n = sum(each["n"] for each in scores)
    mean = sum(each["value"] * each["n"] for each in scores) / n if n else None
    return Side(folder, {"score": {"value": mean}}, lines)


def drifts(blocks: Sequence[Measurement]) -> Iterator[tuple[str, Difference]]:
    """How far the main figures moved from the first block to the last, in per cent, by metric."""
    for metric in _DRIFTS:
        known = [x for each in blocks if (x := _figure(each, metric, "avg")) is not None]
        if (moved := drift(known)) is not None:
            yield metric, moved
