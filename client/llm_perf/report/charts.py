"""Charts of points: throughput against speed for each user, and latency against load. Pure.

What has a name has a colour, the rest is grey; an open mark doesn't surely keep the limits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import exp, log
from typing import Final, TypeAlias

from llm_perf.figures.limits import Limit
from llm_perf.report.axes import Axis, number
from llm_perf.report.draw import SERIES, Plot
from llm_perf.report.points import Point, targets
from llm_perf.report.requests import LATENCIES
from llm_perf.report.view import Chart, View, wide
from llm_perf.report.words import bounded, limit_words

PERCENTILES: Final = ("p50", "p90", "p95", "p99")
_CROSSINGS: Final = 3  # of a chart that are told: those of the best and the baseline are among them
_ROOM, _LETTER = 16, 8.3  # for names at the ends of lines
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
        " ".join(_how_to_read(view, known, bool(edges), bool(expected))),
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


def _how_to_read(view: View, known: _Known, shaded: bool, expected: bool) -> Iterator[str]:
    yield "Up is more throughput, right is faster for each user. The axis is"
    yield f"{view.form.name}; other forms differ from it by the spread of users."
    if shaded:
        yield "The shaded side keeps the limit."
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


def _predicted(view: View, known: _Known) -> list[tuple[float, float]]:
    """Where a target's points were expected."""
    metric, found = view.form.metric, []
    for point, *_ in known:
        x, y = point.predicted(metric), point.predicted("output_token_throughput")
        if x and y:
            found.append((1000 / x if view.form.inverse else x, y / view.divisor(point)))
    return found


def against_load(view: View, metric: str, kind: str) -> Chart | None:
    """A latency against the load: percentiles of one target, or one statistic of each."""
    points = [p for p in view.points if p.kind == kind and p.value is not None]
    groups = {t: ps for t, ps in targets(points).items() if len(ps) > 1}
    limits = [each for each in view.limits if each.metric == metric]
    main = (limits[0].statistic if limits else None) or "p95"
    alone = len(groups) == 1
    statistics = tuple(dict.fromkeys(["p50", "p90", main, "p99"])) if alone else (main,)
    figures = [p.figure(metric, each) for ps in groups.values() for p in ps for each in statistics]
    values = [each for each in figures if each is not None]
    shown = [p for t, ps in groups.items() if view.styles[t].shown for p in ps]
    values += [each for p in shown for each in p.interval(metric, main) or ()]
    if not values:
        return None
    names = [view.styles[t].name for t in groups if view.styles[t].shown]
    short = LATENCIES[metric]
    label = f"{short} (ms)" if alone else f"{short} {main} (ms)"
    load = "Requests in flight (concurrency)" if kind == "concurrency" else "Requests/s offered"
    xs, ys = [p.value or 0 for p in points], [*values, *(each.value for each in limits)]
    plot = Plot(
        f"{metric}-{kind}".replace("_", "-"),
        Axis(load, xs, log=wide(xs), zero=min(xs) < max(xs) / 2),
        Axis(label, ys, log=wide(ys)),
        right=_ROOM + _LETTER * max(map(len, statistics if alone else names)),
    )
    crossings = _lines(plot, view, groups, metric, statistics, main, limits)
    told = "; ".join(
        f"{t} crosses {limit_words(limits[0], name=False)[2:]} at about {number(x)}"
        for t, x in crossings
    )
    return Chart(
        plot.name,
        f"{short} against {'load' if kind == 'concurrency' else 'the rate'}",
        plot.svg(f"{short} against load", told or f"{main} of {len(groups)} targets"),
        (f"{told}: interpolated between the loads measured. " if told else "")
        + (f"{next(iter(groups))}. " if alone and not told else "")
        + "Whiskers are 95 % intervals.",
        ("Target", "Load", "mean", *PERCENTILES),
        tuple(
            (p.target, p.load, *(bounded(p.figure(metric, s)) for s in ("avg", *PERCENTILES)))
            for ps in groups.values()
            for p in ps
        ),
    )


def _lines(
    plot: Plot,
    view: View,
    groups: dict[str, list[Point]],
    metric: str,
    statistics: Sequence[str],
    main: str,
    limits: Sequence[Limit],
) -> list[tuple[str, float]]:
    """Draw the lines, limits and names; gives (target, load) where the main one crosses."""
    ends: list[tuple[float, str, str]] = []
    crossings: list[tuple[str, float, str]] = []
    alone = len(groups) == 1
    for target, points in sorted(groups.items(), key=lambda each: view.styles[each[0]].depth):
        style = view.styles[target]
        for at, statistic in enumerate(statistics):
            css, shape = (f"s{at % SERIES}", at) if alone else (style.css, style.shape)
            intervals = style.shown and statistic == main
            line = _line(plot, points, metric, statistic, css, shape, intervals)
            if line and style.shown:
                ends.append((line[-1][1], statistic if alone else style.name, css))
            if style.shown and statistic == main:
                told = [(p.value or 0.0, p.predicted(metric)) for p in points]
                plot.line([(x, y) for x, y in told if y], f"{css} predicted")
            if limits and statistic == main and style.shown:
                crossings += [(target, x, css) for x in _crossings(line, limits[0].value)]
    for limit in limits:
        plot.limit(limit_words(limit, name=False), y=limit.value)
    plot.ends(ends)
    for _, x, css in crossings[-_CROSSINGS:]:
        plot.label(x, limits[0].value, f"≈ {number(x)}", css)
    return [(target, x) for target, x, _ in crossings[-_CROSSINGS:]]


def _line(
    plot: Plot,
    points: Sequence[Point],
    metric: str,
    statistic: str,
    css: str,
    shape: int,
    intervals: bool,
) -> list[tuple[float, float]]:
    """One line with its marks; gives its points."""
    line = []
    for point in points:
        x, y = point.value or 0.0, point.figure(metric, statistic)
        if y is None:
            continue
        line.append((x, y))
        if intervals and (bounds := point.interval(metric, statistic)):
            plot.whisker((x, bounds[0]), (x, bounds[1]), css)
        plot.mark(x, y, css, shape, f"{point.name}: {statistic} {number(y)} ms")
    plot.line(line, css)
    return line


def _crossings(line: Sequence[tuple[float, float]], limit: float) -> Iterator[float]:
    """Where a line crosses a limit, between points on a straight line of logarithms."""
    for (x, y), (to_x, to_y) in pairwise(line):
        if (y <= limit) != (to_y <= limit) and min(x, y, to_x, to_y) > 0:
            share = log(limit / y) / log(to_y / y)
            yield exp(log(x) + share * log(to_x / x))
