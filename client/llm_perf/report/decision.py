"""The decision: points and limits in, a sentence with its interval out, and what it leaves open.

It says no more than the points do: what lies on both sides of a limit is undecided, and where no
limit is given nothing is decided.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from llm_perf.errors import UserError
from llm_perf.figures.confidence import bootstrap, paired_shares
from llm_perf.figures.limits import Limit
from llm_perf.report.draw import number
from llm_perf.report.points import PER_USER, Form, Interval, Point, targets
from llm_perf.report.requests import Requests

FAST: Final = 50.0  # tokens/s per user: 20 ms a token, what readers of a screen call fluent
_RATE: Final = "request_throughput"
_WORDS: Final = {"time_to_first_token": "TTFT", "inter_token_latency": "ITL"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A figure against its limit: ``kept``, ``broken``, ``undecided`` or ``unknown``."""

    limit: Limit
    value: float | None
    interval: Interval | None
    outcome: str

    def __str__(self) -> str:
        """The figure, with its interval."""
        return f"{named(self.limit)} {shown(self.limit.metric, self.value, self.interval)}"


@dataclass(frozen=True, slots=True)
class Decision:
    """The sentence, what it leaves open, and the points that it rests on."""

    sentence: str
    notes: tuple[str, ...]
    best: Point | None
    baseline: Point | None


def judge(point: Point, limits: Sequence[Limit]) -> list[Verdict]:
    """Hold a point's figures against the limits: where the interval meets one, it's undecided."""
    verdicts = []
    for limit in limits:
        value = point.figure(limit.metric, limit.statistic or "avg")
        interval = point.interval(limit.metric, limit.statistic or "avg")
        if value is None:
            outcome = "unknown"
        elif interval and limit.holds(interval[0]) != limit.holds(interval[1]):
            outcome = "undecided"
        else:
            outcome = "kept" if limit.holds(value) else "broken"
        verdicts.append(Verdict(limit, value, interval, outcome))
    return verdicts


def outcome(verdicts: Iterable[Verdict]) -> str:
    """All limits together: the worst of them."""
    found = {each.outcome for each in verdicts}
    return next((each for each in ("broken", "unknown", "undecided") if each in found), "kept")


def decide(points: Sequence[Point], limits: Sequence[Limit], baseline: str | None) -> Decision:
    """Say what the points decide; raises ``UserError`` where no target has the baseline's name."""
    groups = targets(points)
    if baseline is not None and baseline not in groups:
        known = ", ".join(groups)
        raise UserError(
            f"no target is {baseline!r}", where="--baseline", fix=f"name one of {known}"
        )
    against = baseline or (next(iter(groups)) if len(groups) > 1 else None)
    if not limits:
        return _without_limits(points, groups.get(against or "", ()))
    judged = [(each, judge(each, limits)) for each in points]
    kept = [each for each, verdicts in judged if outcome(verdicts) == "kept"]
    wanted = " and ".join(map(limit_words, limits))
    best = _most(kept, _RATE)
    if best is None:
        return Decision(*_none_keeps(judged, wanted), None, None)
    base = _most([each for each in kept if each.target == against], _RATE)
    sentence = f"{_rate_of(best)} with {wanted}"
    notes = list(_open_ends(best, judged))
    if base is not None and base.target != best.target:
        sentence += _above(best, base)
    elif base is None and against is not None:
        notes.append(f"{against} (the baseline) surely keeps the limits at no load measured.")
    elif against is not None:
        notes.append(f"{against} is the baseline, and no other target does better.")
    if base is not None and (apart := score_change(best, base)):
        sentence += f"; score {apart}"
    return Decision(f"{sentence}.", (*notes, *_doubts(best)), best, base)


def _without_limits(points: Sequence[Point], baseline: Sequence[Point]) -> Decision:
    """The most throughput, and the most at a pace that one reads: nothing is decided by them."""
    best = _most(points, "output_token_throughput")
    if best is None:
        return Decision("Nothing was answered: there is nothing to decide.", (), None, None)
    figure = shown(
        "output_token_throughput",
        best.figure("output_token_throughput"),
        best.interval("output_token_throughput"),
    )
    sentence = f"Most throughput: {best.name}, {figure}"
    base = _most(baseline, "output_token_throughput")
    if base is not None and base.target != best.target:
        sentence += _above(best, base, "output_token_throughput")
        if apart := score_change(best, base):
            sentence += f"; score {apart}"
    notes = ["No limits were given, so no point is better than another: --limit says what counts."]
    form = Form(PER_USER)
    paced = [each for each in points if (each.per_user(form) or 0) >= FAST]
    if (fluent := _most(paced, "output_token_throughput")) is not None:
        rate = fluent.figure("output_token_throughput")
        notes.insert(
            0,
            f"With {FAST:g} tokens/s per user or more ({form.name}): {fluent.name}, "
            f"{shown('output_token_throughput', rate, None)} in all.",
        )
    return Decision(f"{sentence}.", (*notes, *_doubts(best)), best, base)


def _none_keeps(
    judged: Sequence[tuple[Point, list[Verdict]]], wanted: str
) -> tuple[str, tuple[str, ...]]:
    """What is said where no point surely keeps the limits."""
    unclear = [(p, v) for p, v in judged if outcome(v) == "undecided"]
    told = tuple(f"{p.name}: {'; '.join(map(str, v))}." for p, v in (unclear or judged)[:4])
    if unclear:
        return f"Undecided: no measured point surely keeps {wanted}, some may.", told
    return f"No measured point keeps {wanted}.", told


def _open_ends(best: Point, judged: Sequence[tuple[Point, list[Verdict]]]) -> Iterator[str]:
    """What may be better than the best: undecided points, and loads that nobody measured."""
    yield "There: " + "; ".join(str(v) for p, vs in judged if p is best for v in vs) + "."
    for point, verdicts in judged:
        more = (point.figure(_RATE) or 0) > (best.figure(_RATE) or 0)
        if more and outcome(verdicts) == "undecided":
            why = "; ".join(str(each) for each in verdicts if each.outcome == "undecided")
            yield f"Undecided: {point.name} does more, {_rate(point)}, but {why}."
    higher = [
        (p, v)
        for p, v in judged
        if p.target == best.target and p.kind == best.kind and (p.value or 0) > (best.value or 0)
    ]
    if not higher and best.value is not None:
        yield f"No higher load of {best.target} was measured: it may do more."
    elif higher and outcome(higher[0][1]) == "broken":
        why = "; ".join(str(each) for each in higher[0][1] if each.outcome == "broken")
        yield f"The next load measured, {higher[0][0].load}, breaks it: {why}."


def _doubts(best: Point) -> Iterator[str]:
    """What makes the best point's figures doubtful."""
    if best.interval(_RATE) is None:
        yield "The figures have no interval: that takes 200 answered requests, or three runs."
    for line in best.lines:
        health = line.record.get("client") or {}
        if health.get("client_bound"):
            yield f"{best.name} was CLIENT-BOUND: its figures are not the server's."
        if failed := line.record.get("requests_failed"):
            asked = failed + line.record.get("requests_ok", 0)
            yield f"{failed} of {asked} requests failed; figures are of the others."
        if line.record["status"] == "stopped":
            yield f"{best.name} ended early: {line.record.get('error')}."


def _most(points: Iterable[Point], metric: str) -> Point | None:
    known = [each for each in points if each.figure(metric) is not None]
    return max(known, key=lambda each: each.figure(metric) or 0, default=None)


def _rate(point: Point) -> str:
    return shown(_RATE, point.figure(_RATE), point.interval(_RATE))


def _rate_of(point: Point) -> str:
    return f"{point.name}: {_rate(point)}"


def _above(best: Point, base: Point, metric: str = _RATE) -> str:
    """How far above the baseline, with the interval of the quotient (delta method)."""
    more, less = best.figure(metric), base.figure(metric)
    if not more or not less:
        return ""
    change = more / less - 1
    side = "above" if change >= 0 else "below"
    text = f", {100 * abs(change):.0f} % {side} {base.target} (the baseline, {base.load})"
    bounds = [(p.interval(metric), p.figure(metric) or 1) for p in (best, base)]
    parts = [(high - low) / 2 / at for found, at in bounds if found for low, high in [found]]
    if len(parts) < 2:
        return text
    half = (change + 1) * math.hypot(*parts)
    text += f" [{_percent(change - half)}, {_percent(change + half)}]"
    return text if abs(change) > half else f"{text}: not told apart"


def score_change(best: Point, base: Point) -> str | None:
    """The change of the score from the baseline, paired by prompts, in points of a hundred."""
    if best.target == base.target:
        return None
    was, became = base.figure("score"), best.figure("score")
    if was is None or became is None:
        return None
    text = f"{_points(became - was)} points"
    pair = [each.lines[0] for each in (base, best)]
    if len({line.record["workload"].get("sha256") for line in pair}) > 1:
        return f"{text} (of other prompts: not comparable)"
    columns = [line.columns for line in pair]
    if columns[0] is None or columns[1] is None:
        return text
    found = _paired(columns[0], columns[1])
    return text if found is None else f"{text} [{_points(found[0])}, {_points(found[1])}]"


def _paired(first: Requests, second: Requests) -> Interval | None:
    """95 % interval of the score's change over prompts that both answered."""
    waiting: defaultdict[float, list[float]] = defaultdict(list)
    for index, score in zip(second.index, second.score, strict=True):
        if not math.isnan(score):
            waiting[index].append(score)
    rows = [
        (score, waiting[index].pop(0), index)
        for index, score in zip(first.index, first.score, strict=True)
        if not math.isnan(score) and waiting[index]
    ]
    if len({row[2] for row in rows}) < 2:
        return None
    was, became, index = (list(each) for each in zip(*rows, strict=True))
    if {*was, *became} <= {0.0, 1.0}:
        return paired_shares(was, became, [int(each) for each in index])
    low, high = bootstrap(
        [was, became],
        lambda drawn: np.mean(drawn[:, 1] - drawn[:, 0], axis=-1),
        [int(each) for each in index],
    )
    return low, high


def named(limit: Limit) -> str:
    """A limit's figure for the eye: TTFT p95."""
    short = limit.name.partition(".")[0]
    word = _WORDS.get(limit.metric, short.replace("_", " "))
    if "." not in limit.name:
        return word
    return f"mean {word}" if limit.statistic == "avg" else f"{word} {limit.statistic}"


def limit_words(limit: Limit, *, name: bool = True) -> str:
    """A limit for the eye: TTFT p95 < 1 s."""
    sign = limit.comparison.replace("<=", "≤").replace(">=", "≥")
    amount = re.sub(r"(?<=\d)(?=[a-z])", " ", limit.amount)
    return f"{named(limit)} {sign} {amount}" if name else f"{sign} {amount}"


def shown(metric: str, value: float | None, interval: Interval | None) -> str:
    """A figure with its unit and interval."""
    if value is None:
        return "unknown"
    unit = _UNITS.get(metric, "")
    bounds = f" [{number(interval[0])}, {number(interval[1])}]" if interval else ""
    return f"{number(value)}{unit}{bounds}"


_UNITS: Final = {
    "request_throughput": " requests/s",
    "output_token_throughput": " tokens/s",
    "time_to_first_token": " ms",
    "inter_token_latency": " ms",
    "request_latency": " ms",
}


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:+.0f} %".replace("-", "−")
