"""An answer for the eye: its sentence, the table of its probes, and their curve."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, TextIO

from llm_perf.duration import spell_duration
from llm_perf.results.screen_table import print_table
from llm_perf.screen import plain
from llm_perf.search.probe import Probe
from llm_perf.search.question import Answer, Question
from llm_perf.search.seen import Criterion

_UNIT: Final = {"request_rate": "requests/s", "concurrency": "requests in flight"}
_NAME: Final = {"request_rate": "rate", "concurrency": "concurrency"}
_MARK: Final = {"pass": "●", "fail": "✗", "undecided": "?"}
_ACROSS, _DOWN = 62, 9  # cells of the curve, inside 80 columns
_SHARES: Final = 0.02  # of a share, shown at least around the one that is asked for


def sentence(answer: Answer) -> str:
    """What was found, in a line."""
    asked, unit = answer.question, _UNIT[answer.question.vary]
    kept = " and ".join(str(each.limit) for each in asked.criteria)
    high = answer.high
    if answer.interval and answer.about is not None and answer.width is not None:
        ends = " to ".join(_load(each, asked) for each in answer.interval)
        return (
            f"{kept}: up to about {_load(answer.about, asked)} {unit} (±{answer.width:.0%}: {ends})"
        )
    kept_once, broke_once = (each and _load(each, asked) for each in answer.single)
    known: list[str] = []
    if answer.least:
        known.append(f"at least {_load(answer.least, asked)} {unit}")
    if high:
        known.append(f"less than {_load(high.value, asked)} {unit}")
    guess = [f"{kept_once} {unit}"] if kept_once else []
    guess += [f"less than {broke_once}"] if broke_once else []
    if guess:
        known.append(f"perhaps {' and '.join(guess)}, by single runs, which prove nothing")
    return f"{kept}: {'; '.join([*(known or ['nothing was shown']), answer.ended])}"


def cost(question: Question, per_s: float | None = None, in_flight: float = 0.0) -> str:
    """What a search takes as a rule; in time too where it is known how much a server gets through.

    ``per_s`` are the requests a second of a closed loop, ``in_flight`` those that it takes.
    """
    mode, least = question.mode, question.requests(in_flight)
    text = (
        f"{mode.name}: {mode.runs} runs that agree at each end, ±{mode.promise:.0%}; as a rule "
        f"{least:,} to {3 * least:,} requests"
    )
    if per_s:
        ends = [spell_duration(each * least / per_s) for each in (1, 3)]
        text += f", {ends[0]} to {ends[1]} at {per_s:.3g} requests/s"
    if math.isfinite(question.budget_s):
        text += f"; the budget ends it after {spell_duration(question.budget_s)} of load"
    return text


def to_json(answer: Answer) -> dict[str, Any]:
    """The answer and its curve, as ``--json`` prints them."""
    asked, low = answer.question, answer.low
    return {
        "limits": [str(each.limit) for each in asked.criteria],
        "vary": asked.vary,
        "mode": asked.mode.name,
        "about": answer.about,
        "interval": answer.interval,
        "width": answer.width,
        "held": low and low.value,
        "broken": answer.high and answer.high.value,
        "attainment": low and low.attainment,
        "goodput": low and low.goodput,
        "closed_loop_throughput": answer.capacity,
        "requests": answer.requests,
        "load_s": answer.spent_s,
        "ended": answer.ended,
        "held_above_broken": answer.changing,
        "probes": [_probe_json(each) for each in answer.probes],
        "single_runs": [
            {"value": each.value, "attainment": each.attainment, "goodput": each.goodput}
            for each in answer.rough
        ],
    }


def _probe_json(probe: Probe) -> dict[str, Any]:
    return {
        "value": probe.value,
        "verdict": probe.verdict,
        "why": probe.why,
        "runs": len(probe.seen),
        "attainment": probe.attainment,
        "goodput": probe.goodput,
        "limits": [
            {
                "limit": str(each.limit),
                "share" if each.share is not None else "mean": each.told(found.mean),
                "interval": sorted(each.told(end) for end in (found.low, found.high)),
                "lag1": found.lag1,
                "blocks": found.blocks,
            }
            for each, found in zip(probe.criteria, probe.estimates, strict=True)
        ],
    }


def print_answer(
    answer: Answer, title: str = "llm_perf search", file: TextIO | None = None
) -> None:
    """Print probes, curve and answer, within 80 columns."""
    asked = answer.question
    heads = (_UNIT[asked.vary], "runs", *map(_head, asked.criteria), "all", "verdict")
    rows = [
        (
            _load(probe.value, asked),
            str(len(probe.seen)),
            *(_told(*each) for each in zip(asked.criteria, probe.estimates, strict=True)),
            f"{probe.attainment:.1%}",
            f"{_MARK[probe.verdict]} {probe.verdict}",
        )
        for probe in answer.probes
    ]
    title += f" | {asked.mode.name} | up to which {_NAME[asked.vary]}"
    foot = (*_reasons(answer), *_curve(answer), *_foot(answer))
    if rows:
        print_table(title, heads, rows, foot, file, least=("runs", "all"))
    else:
        print("\n".join(map(plain, (title, *foot))), file=file)


def _head(criterion: Criterion) -> str:
    return f"{criterion.limit.name}" if criterion.share is None else f"in {criterion.limit}"


def _told(criterion: Criterion, found: Any) -> str:
    """A mean with its interval, as far as it has one."""
    ends = sorted(criterion.told(end) for end in (found.low, found.high))
    mean = criterion.told(found.mean)
    percent = criterion.share is not None
    if percent and math.isfinite(ends[0]):
        ends = [min(max(each, 0.0), 1.0) for each in ends]
    text = [f"{each:.1%}" if percent else f"{each:,.1f}" for each in (mean, *ends)]
    return f"{text[0]} ({text[1]}…{text[2]})" if math.isfinite(ends[0]) else text[0]


def _load(value: float, asked: Question) -> str:
    return f"{value:.0f}" if asked.vary == "concurrency" else f"{value:.3g}"


def _reasons(answer: Answer) -> Iterator[str]:
    for probe in answer.probes:
        if probe.why:
            yield f"? {_load(probe.value, answer.question)}: {probe.why}"


def _foot(answer: Answer) -> Iterator[str]:
    asked, low = answer.question, answer.low
    yield sentence(answer)
    if low:
        yield (
            f"At {_load(low.value, asked)}, which {len(low.seen)} runs of {len(low.seen)} held: "
            f"{low.attainment:.1%} of the requests within, goodput {low.goodput:.3g}/s"
        )
    elif answer.rough:
        yield "Single runs: " + ", ".join(
            f"{_load(each.value, asked)} ({each.attainment:.0%} within)" for each in answer.rough
        )
    if answer.changing and answer.high:
        yield (
            f"Warning: {_load(answer.changing, asked)} held, and {_load(answer.high.value, asked)} "
            "did not: the server isn't the same all the time, so the interval can be wrong"
        )
    if bound := sum(seen.client_bound for seen in answer.runs):
        yield (
            f"Warning: {bound} of {len(answer.runs)} runs are CLIENT-BOUND: this machine was too "
            "busy to take times exactly, so the answer is not the server's alone"
        )
    yield (
        f"{answer.requests:,} requests, {spell_duration(answer.spent_s)} of load; it ended because "
        f"{answer.ended}"
    )


def _curve(answer: Answer) -> Iterator[str]:
    """The first limit's figure over the load; a line of dashes where the limit is."""
    criterion = answer.question.criteria[0]
    points = [
        (each.value, criterion.told(each.seen[0].means[0]), "·")
        for each in answer.rough
        if each.seen[0].blocks[0]
    ]
    points += [
        (probe.value, criterion.told(probe.estimates[0].mean), _MARK[probe.verdict])
        for probe in answer.probes
    ]
    if len(points) < 2:
        return
    asked = criterion.told(criterion.least)
    bounds = [y for _, y, _ in points] + [asked]
    if criterion.share is not None:
        bounds += [asked - _SHARES, min(asked + _SHARES, 1.0)]
    yield f"{criterion.limit.name if criterion.share is None else 'share within'} over the load"
    yield from _plot(points, asked, (min(bounds), max(bounds)), percent=criterion.share is not None)
    yield "● held  ✗ broken  ? undecided  · a single run  ╌ the limit"


def _plot(
    points: Sequence[tuple[float, float, str]],
    limit: float,
    bounds: tuple[float, float],
    *,
    percent: bool,
) -> Iterator[str]:
    low, high = bounds
    left, right = (pick(x for x, _, _ in points) for pick in (min, max))
    rows = [[" "] * _ACROSS for _ in range(_DOWN)]

    def row(y: float) -> int:
        return round((high - y) / ((high - low) or 1.0) * (_DOWN - 1))

    rows[row(limit)] = ["╌"] * _ACROSS
    for x, y, mark in points:
        column = round((x - left) / ((right - left) or 1.0) * (_ACROSS - 1))
        rows[row(y)][column] = mark
    for number, cells in enumerate(rows):
        y = high - number * (high - low) / (_DOWN - 1)
        label = f"{y:.1%}" if percent else f"{y:,.4g}"
        yield f"{label:>9} │{''.join(cells).rstrip()}"
    yield f"{'':>9} └{'─' * _ACROSS}"
    yield f"{'':>9}  {left:<.3g}{right:>{_ACROSS - len(f'{left:.3g}')}.3g}"
