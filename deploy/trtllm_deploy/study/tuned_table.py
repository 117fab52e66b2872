"""What ``tune`` came to, for the eye: a row for each point, what the evidence says. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final, TypeAlias

from llm_perf import api
from trtllm_deploy.study.evidence import NAMES
from trtllm_deploy.study.space import Point, Space
from trtllm_deploy.study.tune import Tuned
from trtllm_deploy.study.tuner import Found, Seen

HEADS: Final = ("Settings", "tokens/s", "TTFT p95", "ITL avg", "score", "rate/s", "binds")
LEAST: Final = ("rate/s", "ITL avg")  # where there is no room
_SHOWN: Final = (
    ("output_token_throughput", "avg"),
    ("time_to_first_token", "p95"),
    ("inter_token_latency", "avg"),
)
_Blocks: TypeAlias = Sequence[api.Measurement]


def rows(tuned: Tuned) -> Iterator[tuple[str, ...]]:
    """Each measured point: figures of the baseline, of the others changes in per cent of these."""
    base = tuned.came[tuned.baseline]
    for point, blocks in tuned.came.items():
        evidence = tuned.ending.seen[point].evidence
        is_base = point == tuned.baseline
        figures = (
            _figure(base, *each) if is_base else _change(_paired(base, blocks), *each)
            for each in _SHOWN
        )
        rate = tuned.ending.rates.get(point)
        yield (
            f"{'* ' if point == tuned.ending.best else ''}{_name(point, tuned.baseline)}",
            *figures,
            _score(blocks),
            "-" if rate is None else _rate(rate),
            (evidence.binds or "none") if evidence else "?",
        )


def remarks(tuned: Tuned, space: Space) -> Iterator[str]:
    """The evidence of each point, what no limit explains, what wasn't tried and why."""
    seen, baseline = tuned.ending.seen, tuned.baseline
    yield "changes in per cent of the baseline, ± half their 95 % interval; * is the best"
    for point in tuned.came:
        if (evidence := seen[point].evidence) is not None:
            yield f"{_name(point, baseline)}: {evidence.verdict}: {evidence}"
            yield from _unexplained(tuned, space, point)
    best = tuned.ending.best
    if best != baseline and best in tuned.came and not _surely_apart(tuned, best):
        yield f"{_name(best, baseline)} isn't told apart from the baseline: more blocks would tell"
    yield from (f"step: {each}" for each in tuned.ending.path)
    for point, why in tuned.ending.excluded.items():
        measured = "left out" if seen.get(point, Seen()).cost else "not tried"
        yield f"{measured}: {_name(point, baseline)}: {why}"


def _unexplained(tuned: Tuned, space: Space, point: Point) -> Iterator[str]:
    """Where a setting moved a limit that neither point was at, and the figures changed surely."""
    evidences = [tuned.ending.seen[each].evidence for each in (tuned.baseline, point)]
    blamed = {limit for each in evidences if each for limit in each.blamed}
    changed = point.changes(tuned.baseline)
    moved = [each for each in space.settings if each.name in changed and each.limit]
    if not moved or any(each.limit in blamed for each in moved):
        return
    if _surely_apart(tuned, point):
        limits = ", ".join(dict.fromkeys(NAMES[each.limit] for each in moved if each.limit))
        yield f"  no limit was reached ({limits}): this change can't be explained by it"


def _surely_apart(tuned: Tuned, point: Point) -> bool:
    pairs = _paired(tuned.came[tuned.baseline], tuned.came[point])
    changes = (api.block_change(*pairs, *each) for each in _SHOWN)
    return any(each is not None and each.sure for each in changes)


def _name(point: Point, baseline: Point) -> str:
    changed = point.changes(baseline)
    return " ".join(f"{key}={value}" for key, value in changed.items()) or "baseline"


def _paired(base: _Blocks, blocks: _Blocks) -> tuple[_Blocks, _Blocks]:
    """The blocks that both have."""
    known = {each["repetition"]: each for each in base}
    mine = [each for each in blocks if each["repetition"] in known]
    return [known[each["repetition"]] for each in mine], mine


def _change(pairs: tuple[_Blocks, _Blocks], metric: str, statistic: str) -> str:
    change = api.block_change(*pairs, metric, statistic)
    if change is None or change.percent is None:
        return "-"
    if change.low is None or change.high is None:
        return f"{change.percent:+.0f} %"
    half = 50 * (change.high - change.low) / abs(change.a)
    return f"{change.percent:+.0f} ±{half:.0f} %"


def _figure(blocks: _Blocks, metric: str, statistic: str) -> str:
    change = api.block_change(blocks, blocks, metric, statistic)
    return "-" if change is None else f"{change.a:,.4g}"


def _rate(found: Found) -> str:
    if math.isinf(found.high):
        return f">= {found.low:.3g}"
    return f"{found.about:.3g} ({found.low:.3g}…{found.high:.3g})"


def _score(blocks: _Blocks) -> str:
    values = [each["score"]["value"] for each in blocks if each["score"]]
    return f"{sum(values) / len(values):.3f}" if values else "-"
