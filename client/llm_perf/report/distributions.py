"""Charts of what lies behind a figure: latencies of single requests, answers against speed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm_perf.report.charts import PERCENTILES
from llm_perf.report.decision import limit_words
from llm_perf.report.draw import SERIES, Axis, Plot, number
from llm_perf.report.points import Point, ecdf, targets
from llm_perf.report.requests import LATENCIES, Numbers
from llm_perf.report.view import Chart, Row, View, bounded


def distribution(view: View, metric: str, chosen: Sequence[Point]) -> Chart | None:
    """The distribution of a latency over requests, as the share that is at most so long."""
    curves = [
        (point, values)
        for point in chosen
        if (columns := point.lines[0].columns) and len(values := columns.of(metric)) > 1
    ]
    curves = [(p, v[v < float("inf")]) for p, v in curves if v[0] > 0 and v[1] < float("inf")]
    if not curves:
        return None
    short = LATENCIES[metric].replace("request latency", "Request latency")
    limits = [each for each in view.limits if each.metric == metric]
    xs = [float(each) for _, v in curves for each in (v[0], v[-1])]
    plot = Plot(
        f"ecdf-{metric}".replace("_", "-"),
        Axis(f"{short} (ms)", [*xs, *(each.value for each in limits)], log=True),
        Axis("Share of answered requests", [0, 1], top=1.0),
    )
    one = len({point.target for point, _ in curves}) == 1
    for at, (_, values) in enumerate(curves):
        curve = ecdf(values)
        plot.line([(curve[0][0], 0.0), *curve], f"s{at}")
    for limit in limits:
        plot.limit(limit_words(limit), x=limit.value)
    for at, (point, values) in enumerate(curves):
        curve = ecdf(values)
        middle = len(curve) * (2 + at % 3) // 6  # names at different heights
        name = point.load if one else f"{view.styles[point.target].name}, {point.load}"
        spots = [*curve[middle:], *curve[:middle][::-1]]
        plot.label_along(spots, name.replace("concurrency ", "conc. "), f"s{at}")
    return Chart(
        plot.name,
        f"Distribution of {LATENCIES[metric]}",
        plot.svg(
            f"Share of requests with a {LATENCIES[metric]} of at most so much",
            "; ".join(f"{p.name}: median {number(float(v[len(v) // 2]))} ms" for p, v in curves),
        ),
        f"Of {'each load' if one else 'the points named'}, first run; logarithmic.",
        ("Target", "Load", "n", "min", *PERCENTILES, "max"),
        tuple(_spread(point, values) for point, values in curves),
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
    if not best:
        return None
    kinds = {target: str(p.cell.get("precision") or target) for target, p in best.items()}
    shapes = {kind: at for at, kind in enumerate(dict.fromkeys(kinds.values()))}
    limits = [each for each in view.limits if each.metric == "score"]
    scores = [y for p in best.values() for y in (p.figure("score"), *(p.interval("score") or ()))]
    plot = Plot(
        "accuracy",
        Axis(view.rate_name, [view.rate(p) or 0 for p in best.values()]),
        Axis("Score", [*(y or 0 for y in scores), *(x.value for x in limits)], zero=False),
    )
    rows = []
    for target, point in best.items():
        at = shapes[kinds[target]]
        css = f"s{at}" if at < SERIES else "other"
        x, y = view.rate(point) or 0, point.figure("score") or 0
        across, up = view.rate_interval(point), point.interval("score")
        if up:
            plot.whisker((x, up[0]), (x, up[1]), css)
        if across:
            plot.whisker((across[0], y), (across[1], y), css)
        opened = "" if view.kept(point) else " open"
        plot.mark(x, y, css + opened, at, f"{point.name}: score {y:.4f}, {number(x)} tokens/s")
        plot.label(
            x, y, kinds[target] if target != kinds[target] else view.styles[target].name, css
        )
        rows.append((kinds[target], target, point.load, bounded(x, across), bounded(y, up)))
    for limit in limits:
        plot.limit(limit_words(limit), y=limit.value)
    return Chart(
        "accuracy",
        "Accuracy against throughput",
        plot.svg("Score against throughput", "; ".join(f"{r[1]}: {r[4]} at {r[3]}" for r in rows)),
        "Each target where it does most"
        + (" within the limits; open marks don't surely keep them" if view.limits else "")
        + "; whiskers are 95 % intervals. Scores of the same prompts are compared surer by pairs.",
        ("Precision", "Target", "Load", view.rate_name, "Score"),
        tuple(rows),
    )
