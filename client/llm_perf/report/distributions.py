"""Charts of what lies behind a figure: single requests, answers against speed, the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from llm_perf.report.axes import Axis, number
from llm_perf.report.charts import PERCENTILES
from llm_perf.report.draw import SERIES, Plot, room
from llm_perf.report.points import Point, ecdf, targets
from llm_perf.report.requests import LATENCIES, Numbers
from llm_perf.report.view import Chart, Row, View
from llm_perf.report.words import bounded, limit_words

_BARS: Final = 16
_COUNTS: Final = "nv_trt_llm_iteration_metrics"
_BY: Final = "iteration_specific_metric"
_LIMITS: Final = {
    "max_batch_size": "at_max_batch_size",
    "max_num_tokens": "at_max_num_tokens",
    "KV cache": "at_kv_cache",
}


def distribution(view: View, metric: str, chosen: Sequence[Point]) -> Chart | None:
    """The distribution of a latency over requests, as the share that is at most so long."""
    curves = [
        (point, values, line)
        for point in chosen
        if (columns := point.lines[0].columns)
        and len(values := columns.of(metric)) > 1
        and len(line := ecdf(values)) > 1
    ]
    if not curves:
        return None
    short = LATENCIES[metric].replace("request latency", "Request latency")
    limits = [each for each in view.limits if each.metric == metric]
    xs = [x for _, _, line in curves for x in (line[0][0], line[-1][0])]
    one = len({point.target for point, *_ in curves}) == 1
    names = [p.load if one else view.styles[p.target].name for p, *_ in curves]
    plot = Plot(
        f"ecdf-{metric}".replace("_", "-"),
        Axis(f"{short} (ms)", [*xs, *(each.value for each in limits)], log=True),
        Axis("Share of answered requests", [0, 1], top=1.0),
        right=room(names),
    )
    colours = [f"s{at}" if one else view.styles[p.target].css for at, (p, *_) in enumerate(curves)]
    for (_, values, curve), css in zip(curves, colours, strict=True):
        start = float((values <= 0).mean())
        plot.line([(curve[0][0], start), *curve], css)
    for limit in limits:
        plot.limit(f"{limit.statistic} {limit_words(limit, name=False)}", x=limit.value)
    medians = [float(np.median(values)) for _, values, _ in curves]
    ranked = sorted(range(len(curves)), key=medians.__getitem__)  # in the order of the curves
    plot.ends((0.9 - 0.1 * at, names[each], colours[each]) for at, each in enumerate(ranked))
    return Chart(
        plot.name,
        f"Distribution of {LATENCIES[metric]}",
        plot.svg(
            f"Share of requests with a {LATENCIES[metric]} of at most so much",
            "; ".join(f"{p.name}: median {number(float(v[len(v) // 2]))} ms" for p, v, _ in curves),
        ),
        ("Of each load" if one else "; ".join(p.name for p, *_ in curves))
        + ": first run; logarithmic.",
        ("Target", "Load", "n", "min", *PERCENTILES, "max"),
        tuple(_spread(point, values) for point, values, _ in curves),
    )


def _spread(point: Point, values: Numbers) -> Row:
    percentiles = np.percentile(values, [int(each[1:]) for each in PERCENTILES])
    figures = (values[0], *percentiles, values[-1])
    return point.target, point.load, str(len(values)), *(number(float(each)) for each in figures)


def accuracy(view: View) -> Chart | None:
    """The score against throughput, of each target where it does most within the limits."""
    best: dict[str, Point] = {}
    for target, points in targets(view.points).items():
        scored = [p for p in points if p.figure("score") is not None and view.rate(p)]
        if scored:
            best[target] = max(scored, key=lambda p: (view.kept(p), view.rate(p) or 0))
    if len(best) < 2:  # a single one's score stands in the table
        return None
    kinds = {target: str(p.cell.get("precision") or target) for target, p in best.items()}
    shapes = {kind: at for at, kind in enumerate(dict.fromkeys(kinds.values()))}
    limits = [each for each in view.limits if each.metric == "score"]
    scores = [y for p in best.values() for y in (p.figure("score"), *(p.interval("score") or ()))]
    known = [*(y or 0 for y in scores), *(x.value for x in limits)]
    plot = Plot(
        "accuracy",
        Axis(view.rate_name, [view.rate(p) or 0 for p in best.values()]),
        Axis("Score", known, zero=False, top=1.0 if 0.9 < max(known) <= 1 else None),
    )
    ranked = sorted(best, key=lambda target: (view.kept(best[target]), view.rate(best[target])))
    most = {kinds[target]: target for target in ranked}  # of each precision what does most
    rows: list[Row] = []
    names: list[tuple[float, float, str, str]] = []
    for target, point in sorted(best.items(), key=lambda each: view.kept(each[1])):
        at, kind = shapes[kinds[target]], kinds[target]
        css = f"s{at}" if at < SERIES else "other"
        x, y = view.rate(point) or 0, point.figure("score") or 0
        across, up = view.rate_interval(point), point.interval("score")
        first = target == most[kind]
        if first and up:
            plot.whisker((x, up[0]), (x, up[1]), css)
        if first and across:
            plot.whisker((across[0], y), (across[1], y), css)
        opened = "" if view.kept(point) else " open"
        plot.mark(x, y, css + opened, at, f"{point.name}: score {y:.4f}, {number(x)} tokens/s")
        if first:
            names.append((x, y, view.styles[target].name if kind == target else kind, css))
        rows.append((kind, target, point.load, bounded(x, across), bounded(y, up)))
    for limit in limits:
        plot.limit(limit_words(limit), y=limit.value)
    for name in names:
        plot.label(*name)
    return Chart(
        "accuracy",
        "Accuracy against throughput",
        plot.svg("Score against throughput", "; ".join(f"{r[1]}: {r[4]} at {r[3]}" for r in rows)),
        "Each target where it does most"
        + (" within the limits; open marks don't surely keep them" if view.limits else "")
        + "; whiskers, at the first of each kind, are 95 % intervals. The change between two "
        "targets, paired by prompts, is surer than these.",
        ("Precision", "Target", "Load", view.rate_name, "Score"),
        tuple(rows),
    )


def iterations(view: View) -> Chart | None:
    """The share of the scheduler's iterations in which a request waited for each limit."""
    shown = [p for p in view.points if view.styles[p.target].shown]
    known = [(p, found) for p in shown if (found := _at_limits(p))]
    known = known[:: -(-len(known) // _BARS) or 1]
    if not known:
        return None
    ys = list(range(len(known), 0, -1))
    plot = Plot(
        "iterations",
        Axis("Share of iterations in which a request waited", [0.0, 1.0], top=1.0),
        Axis("", [0.5, len(known) + 0.9], blank=True),
        height=84 + 38 * len(known),
    )
    for y, (point, shares) in zip(ys, known, strict=True):
        left = 0.0
        for at, (limit, share) in enumerate(shares.items()):
            plot.bar(left, left + share, y, f"s{at}", f"{point.name}: {limit} {share:.0%}")
            left += share
        name = f"{view.styles[point.target].name}, {point.load}"
        plot.over(y, name)
    names = list(known[0][1])
    plot.legend((name, f"s{at}") for at, name in enumerate(names))
    told = "; ".join(
        f"{p.name}: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        for p, shares in known
    )
    return Chart(
        "iterations",
        "Which limit binds",
        plot.svg("Share of iterations at each limit", told),
        "In the rest nothing waited. Counted by the server while the load ran.",
        ("Target", "Load", *names),
        tuple((p.target, p.load, *(f"{s:.1%}" for s in shares.values())) for p, shares in known),
    )


def _at_limits(point: Point) -> dict[str, float] | None:
    """Shares by limit, of the server's own counts of iterations; none where it has none."""
    seen = point.first.get("server_metrics") or {}
    counts = {
        each["labels"].get(_BY): each.get("increase", each.get("max", 0) - each.get("min", 0))
        for each in (*(seen.get("counters") or ()), *(seen.get("gauges") or ()))
        if each["name"] == _COUNTS  # counts since the start, of whatever type they are said to be
    }
    total = counts.get("total")
    return {name: counts.get(key, 0) / total for name, key in _LIMITS.items()} if total else None
