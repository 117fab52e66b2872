"""How far one point is from another: throughput and score, with intervals. Pure.

Blocks that were measured in turns are paired, prompts that both were asked too; else two intervals
make one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from llm_perf.figures.blocks import Difference, paired
from llm_perf.report.points import Line, Point
from llm_perf.report.words import hundredths, percent
from llm_perf.results.change import changes_of, pairs
from llm_perf.results.written import Side

RATE: Final = "request_throughput"
TOKENS: Final = "output_token_throughput"
_MANY: Final = 3  # times as much: more isn't told in per cent
_COMPARED: Final = (
    ("tokens/s", TOKENS, "avg"),
    ("mean TTFT", "time_to_first_token", "avg"),
    ("TTFT p95", "time_to_first_token", "p95"),
    ("mean ITL", "inter_token_latency", "avg"),
)


def above(best: Point, base: Point, metric: str = RATE) -> str:
    """How far above the baseline, with the interval of the quotient (delta method)."""
    more, less = best.figure(metric), base.figure(metric)
    if not more or not less:
        return ""
    if blocks := _paired_blocks(best, base, metric):
        return f", {_told(blocks)} against {base.target} over {blocks.blocks} paired blocks"
    ratio, half = more / less, None
    bounds = [(p.interval(metric), p.figure(metric) or 1) for p in (best, base)]
    parts = [(high - low) / 2 / at for found, at in bounds if found for low, high in [found]]
    if len(parts) == 2:
        half = ratio * math.hypot(*parts)
    where = f"{base.target} (the baseline, {base.load})"
    if ratio > _MANY:
        known = f" [{ratio - half:.1f}, {ratio + half:.1f}]" if half else ""
        return f", {ratio:.1f} times{known} that of {where}"
    change, side = ratio - 1, "above" if ratio >= 1 else "below"
    text = f", {100 * abs(change):.0f} % {side} {where}"
    if half is None:
        return text
    text += f" [{percent(change - half)}, {percent(change + half)}]"
    return text if abs(change) > half else f"{text}: not told apart"


def compared(points: Sequence[Point]) -> tuple[str, ...]:
    """Say what the others differ in from the first, where all were measured in turns."""
    first, told = points[0] if points else None, []
    for point in points[1:]:
        figures = [
            f"{name} {_told(found)}"
            for name, metric, statistic in _COMPARED
            if first and (found := _paired_blocks(point, first, metric, statistic))
        ]
        if not first or not figures:
            return ()
        blocks = len(point.lines)
        score = f"; score {apart}" if (apart := score_change(point, first)) else ""
        told.append(
            f"{point.target} against {first.target} at {point.load}, {blocks} paired blocks: "
            f"{', '.join(figures)}{score}."
        )
    return tuple(told)


def _told(found: Difference) -> str:
    """A difference with its interval, and whether it is one."""
    low, high = (f"{each:+.1f}" for each in (found.low, found.high))
    text = f"{found.percent:+.1f} % [{low}, {high}]".replace("-", "−")
    return text if found.sure else f"{text} (not told apart)"


def _paired_blocks(
    best: Point, base: Point, metric: str, statistic: str = "avg"
) -> Difference | None:
    """The difference of blocks that were measured in turns, if they were."""
    sides = []
    for point in (base, best):
        blocks = {
            line.record.get("repetition"): (line.record["metrics"].get(metric) or {}).get(statistic)
            for line in point.lines
            if line.record.get("kind") == "block"
        }
        sides.append({at: value for at, value in blocks.items() if value is not None})
    if base.load != best.load or not sides[0] or sides[0].keys() != sides[1].keys():
        return None
    first, second = ([each[at] for at in sides[0]] for each in sides)
    return paired(first, second)


def score_change(best: Point, base: Point) -> str | None:
    """The change of the score from the baseline, paired by prompts, in points of a hundred."""
    if best.target == base.target:
        return None
    was, became = base.figure("score"), best.figure("score")
    if was is None or became is None:
        return None
    asked = [
        {line.record["workload"].get("sha256") for line in each.lines} for each in (base, best)
    ]
    if asked[0] != asked[1]:
        return None  # scores of other prompts say nothing of each other
    text = f"{hundredths(became - was)} points"
    before, after = (_scored(each.lines) for each in (base, best))
    (change,) = changes_of(before, after, pairs(before, after), "score", ["avg"])
    if change.low is None or change.high is None:
        return text
    return f"{text} [{hundredths(change.low)}, {hundredths(change.high)}]"


def _scored(lines: Sequence[Line]) -> Side:
    """The scores of a point's runs, as they are compared."""
    scores = tuple(
        {"index": int(index), "status": "ok", "score": float(score)}
        for line in lines
        if line.columns is not None
        for index, score in zip(line.columns.index, line.columns.score, strict=True)
        if not math.isnan(score)
    )
    return Side(Path(lines[0].source), {"score": lines[0].record["score"]}, scores)
