"""The decision: points and limits in, a sentence with its interval out, and what it leaves open.

It says no more than the points do: what lies on both sides of a limit is undecided, and where no
limit is given nothing is decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from llm_perf.errors import UserError
from llm_perf.figures.limits import Limit
from llm_perf.report.against import RATE, TOKENS, above, compared, score_change
from llm_perf.report.points import PER_USER, Form, Interval, Point, targets
from llm_perf.report.words import limit_words, named, shown

_TOLD: Final = 4  # points
FAST: Final = 50.0  # tokens/s per user: 20 ms a token, what readers of a screen call fluent


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
    best = _most(kept, RATE)
    if best is None:
        return Decision(*_none_keeps(judged, wanted), None, None)
    base = _most([each for each in kept if each.target == against], RATE)
    sentence = f"{best.name}: {_told(best, RATE)} with {wanted}"
    notes = list(_open_ends(best, judged))
    if base is not None and base.target != best.target:
        sentence += above(best, base)
    elif base is None and against is not None:
        notes.append(f"{against} (the baseline) surely keeps the limits at no load measured.")
    elif against is not None:
        notes.append(f"{against} is the baseline, and no other target does better.")
    if base is not None and (apart := score_change(best, base)):
        sentence += f"; score {apart}"
    return Decision(f"{sentence}.", (*notes, *_doubts(best)), best, base)


def _without_limits(points: Sequence[Point], baseline: Sequence[Point]) -> Decision:
    """The most throughput, and the most at a pace that one reads: nothing is decided by them."""
    if told := compared(points):
        return Decision(told[0], told[1:], points[-1], points[0])
    best = _most(points, TOKENS)
    if best is None:
        return Decision("Nothing was answered: there is nothing to decide.", (), None, None)
    sentence = f"Most throughput: {best.name}, {_told(best, TOKENS)}"
    base = _most(baseline, TOKENS)
    if base is not None and base.target != best.target:
        sentence += above(best, base, TOKENS)
        if apart := score_change(best, base):
            sentence += f"; score {apart}"
    notes = ["No limits were given, so no point is better than another: --limit says what counts."]
    form = Form(PER_USER)
    paced = [each for each in points if (each.per_user(form) or 0) >= FAST]
    if (fluent := _most(paced, TOKENS)) is not None:
        notes.insert(
            0,
            f"With {FAST:g} tokens/s per user or more ({form.name}): {fluent.name}, "
            f"{shown(TOKENS, fluent.figure(TOKENS))} in all.",
        )
    return Decision(f"{sentence}.", (*notes, *_doubts(best)), best, base)


def _none_keeps(
    judged: Sequence[tuple[Point, list[Verdict]]], wanted: str
) -> tuple[str, tuple[str, ...]]:
    """What is said where no point surely keeps the limits."""
    unclear = [(p, v) for p, v in judged if outcome(v) == "undecided"]
    told = tuple(f"{p.name}: {'; '.join(map(str, v))}." for p, v in (unclear or judged)[:_TOLD])
    if unclear:
        return f"Undecided: no measured point surely keeps {wanted}, some may.", told
    return f"No measured point keeps {wanted}.", told


def _open_ends(best: Point, judged: Sequence[tuple[Point, list[Verdict]]]) -> Iterator[str]:
    """What may be better than the best: undecided points, and loads that nobody measured."""
    yield "There: " + "; ".join(str(v) for p, vs in judged if p is best for v in vs) + "."
    unclear = [
        (p, v)
        for p, v in judged
        if outcome(v) == "undecided" and (p.figure(RATE) or 0) > (best.figure(RATE) or 0)
    ]
    for point, verdicts in unclear[:_TOLD]:
        why = "; ".join(str(each) for each in verdicts if each.outcome == "undecided")
        yield f"Undecided: {point.name} does more, {_told(point, RATE)}, but {why}."
    if (left := len(unclear) - _TOLD) > 0:
        yield f"So are {left} other points that do more."
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
    if best.interval(RATE) is None:
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


def _told(point: Point, metric: str) -> str:
    return shown(metric, point.figure(metric), point.interval(metric))
