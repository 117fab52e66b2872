"""Charts of points: throughput against speed for each user, and latency against load. Pure.

What has a name has a colour, the rest is grey; an open mark doesn't surely keep the limits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from typing import Final, TypeAlias

from llm_perf.figures.limits import Limit
from llm_perf.report.axes import Axis, number
from llm_perf.report.draw import SERIES, XY, Plot, room
from llm_perf.report.points import Point, targets
from llm_perf.report.requests import LATENCIES
from llm_perf.report.view import Chart, View, wide
from llm_perf.report.words import bounded, limit_words

PERCENTILES: Final = ("p50", "p90", "p95", "p99")
_CROSSINGS: Final = 3  # of a chart that are told: those of the best and the baseline are among them
_CROSS: Final = SERIES  # of the shapes of marks, the one behind those of targets
_Known: TypeAlias = list[tuple[Point, float, float]]


def throughput(view: View) -> Chart | None:
    """Tokens/s per GPU against tokens/s per user."""
    known = [
        (point, x, y)
        for point in view.points
        if (x := point.per_user(view.form)) and (y := view.rate(point))
    ]
    if not known:
        return None
    label = f"Tokens/s per user ({view.form.name})"
    edges = {limit: x for limit in view.limits if (x := _on_the_axis(view, limit))}
    expected = [xy for each in known for xy in _predicted(view, [each])]
    xs = [*(x for _, x, _ in known), *edges.values(), *(x for x, _ in expected)]
    shown = [p for p, *_ in known if view.styles[p.target].shown]
    ys = [
        *(y for *_, y in known),
        *(y for _, y in expected),
        *(y for p in shown for y in view.rate_interval(p) or ()),
    ]
    plot = Plot("throughput", Axis(label, xs, log=wide(xs)), Axis(view.rate_name, ys))
    for limit, x in edges.items():
        right = not limit.upper or view.form.inverse
        plot.region(x if right else None, None if right else x, "feasible")
    _trails(plot, view, known)
    for limit, x in edges.items():
        plot.limit(limit_words(limit), x=x)
    passed = [
        each for each in view.limits if each not in edges and _passed(plot, view, known, each)
    ]
    for target, style in view.styles.items():
        mine = [(x, y) for point, x, y in known if point.target == target]
        if mine and style.shown:
            plot.label(*max(mine, key=lambda each: each[1]), style.name, style.css)
    return Chart(
        "throughput",
        "Throughput against speed for each user",
        plot.svg(
            f"{view.rate_name} against tokens/s per user",
            f"{len(known)} points of {len(view.styles)} targets. "
            + "; ".join(f"{p.name}: {number(y)} against {number(x)}" for p, x, y in known[:12]),
        ),
        " ".join(_how_to_read(view, known, bool(edges), bool(expected), passed)),
        (
            "Target",
            "Load",
            label,
            view.rate_name,
            *(("predicted per user", "predicted tokens/s") if expected else ()),
        ),
        tuple(_row(view, *each, expected=bool(expected)) for each in known),
    )


def _row(view: View, point: Point, x: float, y: float, *, expected: bool) -> tuple[str, ...]:
    """A point's figures, with what was predicted of it and by how much that was off."""
    known = (bounded(x, point.per_user_interval(view.form)), bounded(y, view.rate_interval(point)))
    if not expected:
        return (point.target, point.load, *known)
    found = _predicted(view, [(point, x, y)])
    pairs = zip(found[0], (x, y), strict=True) if found else ()
    off = [f"{number(a)} ({100 * (a / b - 1):+.0f} %)" for a, b in pairs] or ["-", "-"]
    return (point.target, point.load, *known, *off)


def _how_to_read(
    view: View, known: _Known, shaded: bool, expected: bool, passed: Sequence[Limit]
) -> Iterator[str]:
    yield "Up is more throughput, right is faster for each user. The axis is"
    yield f"{view.form.name}; other forms differ from it by the spread of users."
    if shaded:
        yield "The shaded side keeps the limit."
    if passed:
        told = " or ".join(map(limit_words, passed))
        yield f"A cross is where a line leaves {told}, interpolated between the loads measured."
    if view.limits:
        yield "Open marks don't surely keep all limits."
    if expected:
        yield "Dashed is what was predicted."
    if left := len(view.points) - len(known):
        yield f"{left} points have no such figure."
    if not view.per_gpu:
        yield "How many GPUs serve isn't known; --gpus says it."


def _on_the_axis(view: View, limit: Limit) -> float | None:
    """Where a limit stands on the axis of tokens/s per user, if it is one of it."""
    if (limit.metric, limit.statistic) != (view.form.metric, view.form.statistic):
        return None
    return (1000 / limit.value if limit.value else None) if view.form.inverse else limit.value


def _trails(plot: Plot, view: View, known: _Known) -> None:
    """Each target's points, joined in the order of their loads; what has a name on top."""
    for target, style in sorted(view.styles.items(), key=lambda each: each[1].depth):
        mine = [each for each in known if each[0].target == target]
        for kind in dict.fromkeys(point.kind for point, *_ in mine):
            of_kind = [each for each in mine if each[0].kind == kind]
            plot.line([(x, y) for _, x, y in of_kind], style.css)
            if style.shown:
                plot.line(_predicted(view, of_kind), f"{style.css} predicted")
        for point, x, y in mine:
            if style.shown and (across := point.per_user_interval(view.form)):
                plot.whisker((across[0], y), (across[1], y), style.css)
            if style.shown and (up := view.rate_interval(point)):
                plot.whisker((x, up[0]), (x, up[1]), style.css)
            tip = f"{point.name}: {number(y)} tokens/s, {number(x)} tokens/s per user"
            opened = "" if view.kept(point) else " open"
            plot.mark(x, y, style.css + opened, style.shape, tip)


def _passed(plot: Plot, view: View, known: _Known, limit: Limit) -> bool:
    """Cross each named line where it leaves a limit that is none of the axes', as of TTFT."""
    at = []
    for (one, x, y), (other, to_x, to_y) in pairwise(known):
        if (one.target, one.kind) == (other.target, other.kind) and view.styles[one.target].shown:
            was, now = (p.figure(limit.metric, limit.statistic or "avg") for p in (one, other))
            if was and now and (share := _share(was, now, limit.value)) is not None:
                at.append((x + share * (to_x - x), y + share * (to_y - y)))
                tip = (
                    f"{one.target} leaves {limit_words(limit)} between {one.load} and {other.load}"
                )
                plot.mark(*at[-1], "limit-text", _CROSS, tip)
    if at:
        plot.note(f"× {limit_words(limit)}", "limit-text")
    return bool(at)


def _predicted(view: View, known: _Known) -> list[tuple[float, float]]:
    """Where a target's points were expected."""
    metric, found = view.form.metric, []
    for point, *_ in known:
        x, y = point.predicted(metric), point.predicted("output_token_throughput")
        if x and y:
            found.append((1000 / x if view.form.inverse else x, y / view.divisor(point)))
    return found


@dataclass(frozen=True, slots=True)
class _Line:
    """A statistic of a target over its loads; the ``main`` one has intervals and crosses limits."""

    statistic: str
    css: str
    shape: int
    name: str | None
    main: bool
    points: Sequence[Point]
    at: Sequence[XY]  # load, ms


def against_load(view: View, metric: str, kind: str) -> Chart | None:
    """A latency against the load: percentiles of one target, or one statistic of each."""
    points = [p for p in view.points if p.kind == kind and p.value is not None]
    groups = [each for each in targets(points).values() if len(each) > 1]
    groups.sort(key=lambda each: view.styles[each[0].target].depth)
    limits = [each for each in view.limits if each.metric == metric]
    main = (limits[0].statistic if limits else None) or "p95"
    alone = len(groups) == 1
    lines = [line for each in groups for line in _lines(view, each, metric, main, alone)]
    ys = [y for line in lines for _, y in line.at]
    mine = [p for line in lines if line.main for p in line.points]
    ys += [y for p in mine for y in p.interval(metric, main) or ()]
    if not ys:
        return None
    xs, ys = [p.value or 0 for p in points], [*ys, *(each.value for each in limits)]
    short = LATENCIES[metric]
    load = "Requests in flight (concurrency)" if kind == "concurrency" else "Requests/s offered"
    plot = Plot(
        f"{metric}-{kind}".replace("_", "-"),
        Axis(load, xs, log=wide(xs), zero=min(xs) < max(xs) / 2),
        Axis(f"{short} (ms)" if alone else f"{short} {main} (ms)", ys, log=wide(ys)),
        right=room([line.name or "" for line in lines]),
    )
    for line in lines:
        _draw(plot, line, metric)
    for limit in limits:
        plot.limit(limit_words(limit, name=False), y=limit.value)
    plot.ends((line.at[-1][1], line.name, line.css) for line in lines if line.name and line.at)
    crossings = [
        (line, x)
        for line in lines
        if limits and line.main
        for x in _crossings(line.at, limits[0].value)
    ][-_CROSSINGS:]
    for line, x in crossings:
        plot.label(x, limits[0].value, f"≈ {number(x)}", line.css)
    told = "; ".join(
        f"{line.points[0].target} crosses {limit_words(limits[0], name=False)[2:]} "
        f"at about {number(x)}"
        for line, x in crossings
    )
    return Chart(
        plot.name,
        f"{short} against {'load' if kind == 'concurrency' else 'the rate'}",
        plot.svg(f"{short} against load", told or f"{main} of {len(groups)} targets"),
        (f"{told}: interpolated between the loads measured. " if told else "")
        + (f"{groups[0][0].target}. " if alone and not told else "")
        + "Whiskers are 95 % intervals.",
        ("Target", "Load", "mean", *PERCENTILES),
        tuple(
            (p.target, p.load, *(bounded(p.figure(metric, s)) for s in ("avg", *PERCENTILES)))
            for p in points
            if any(p in each for each in groups)
        ),
    )


def _lines(
    view: View, points: Sequence[Point], metric: str, main: str, alone: bool
) -> Iterator[_Line]:
    """A target's lines: alone it has percentiles, each in a colour of its own."""
    style = view.styles[points[0].target]
    for at, statistic in enumerate(dict.fromkeys(["p50", "p90", main, "p99"] if alone else [main])):
        known = [(p, y) for p in points if (y := p.figure(metric, statistic)) is not None]
        yield _Line(
            statistic,
            f"s{at % SERIES}" if alone else style.css,
            at if alone else style.shape,
            (statistic if alone else style.name) if style.shown else None,
            style.shown and statistic == main,
            [p for p, _ in known],
            [(p.value or 0.0, y) for p, y in known],
        )


def _draw(plot: Plot, line: _Line, metric: str) -> None:
    """Draw a line with its marks, intervals and what was predicted."""
    for point, (x, y) in zip(line.points, line.at, strict=True):
        if line.main and (bounds := point.interval(metric, line.statistic)):
            plot.whisker((x, bounds[0]), (x, bounds[1]), line.css)
        tip = f"{point.name}: {line.statistic} {number(y)} ms"
        plot.mark(x, y, line.css, line.shape, tip)
    plot.line(line.at, line.css)
    if line.main:
        told = [(p.value or 0.0, p.predicted(metric)) for p in line.points]
        plot.line([(x, y) for x, y in told if y], f"{line.css} predicted")


def _crossings(line: Sequence[tuple[float, float]], limit: float) -> Iterator[float]:
    """Where a line crosses a limit, between points on a straight line of logarithms."""
    for (x, y), (to_x, to_y) in pairwise(line):
        if min(x, to_x) > 0 and (share := _share(y, to_y, limit)) is not None:
            yield exp(log(x) + share * log(to_x / x))


def _share(was: float, now: float, limit: float) -> float | None:
    """Which share of the way, in logarithms, lies before the limit; ``None`` if both are beside."""
    if (was <= limit) == (now <= limit) or min(was, now) <= 0:
        return None
    return log(limit / was) / log(now / was)
