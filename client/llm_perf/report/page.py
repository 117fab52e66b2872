"""The page: points and limits in, one HTML text out that loads nothing, and its charts.

Everything that comes from a file or a server is escaped; a policy in the page forbids the network,
and any script or style but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from llm_perf.figures.limits import Limit
from llm_perf.files import write_text
from llm_perf.report.charts import PERCENTILES, against_load, throughput
from llm_perf.report.configuration import bare, load_words, told
from llm_perf.report.decision import Decision, decide
from llm_perf.report.distributions import accuracy, distribution, iterations
from llm_perf.report.draw import standalone
from llm_perf.report.points import Line, Point, points_of, targets
from llm_perf.report.requests import LATENCIES
from llm_perf.report.searches import answers, limits_of
from llm_perf.report.timeline import in_flight, packed, server_panels
from llm_perf.report.view import Chart, View, short_names, view_of
from llm_perf.report.words import bounded
from llm_perf.results.run import installed_version
from llm_perf.screen import plain
from llm_perf.search.drawn import sentence

_CURVES: Final = 6  # distributions in one chart
_ASSETS: Final = files(__package__) / "assets"
_TEXT: Final = frozenset({"Target", "Load", "Precision", "Why", "Failure", "Status"})

_STANDS_IN: Final = (
    "The reference backend served here, in place of TensorRT-LLM: its answers count, its speed "
    "says nothing about a GPU."
)


def build(
    lines: Sequence[Line],
    limits: Sequence[Limit],
    *,
    baseline: str | None = None,
    gpus: int | None = None,
    title: str = "llm_perf report",
) -> tuple[str, list[Chart], Decision]:
    """Make the page, its charts and the decision; raises ``UserError`` for an unknown baseline."""
    short = short_names(list(dict.fromkeys(_name(line) for line in lines)))
    named = [replace(line, called=short[_name(line)]) for line in lines]
    points, limits = points_of(named), limits or limits_of(lines)
    decision = decide(points, limits, short.get(baseline or "", baseline))
    if found := answers(named):  # fresh runs that agree: surer than the points by themselves
        best, *others = (f"{target}: {sentence(answer)}." for target, answer in found)
        decision = replace(decision, sentence=best, notes=tuple(others))
    if any(
        (line.record["target"].get("cell") or {}).get("backend") == "reference" for line in lines
    ):
        decision = replace(decision, notes=(*decision.notes, _STANDS_IN))
    first = [each.target for each in (decision.best, decision.baseline) if each is not None]
    view = view_of(points, limits, first, gpus)
    charts = list(_charts(view, decision))
    return _page(title, lines, view, decision, charts), charts, decision


def _name(line: Line) -> str:
    return str(line.record["target"]["name"])


def _charts(view: View, decision: Decision) -> Iterator[Chart]:
    """All charts that the points have figures for."""
    found: list[Chart | None] = [throughput(view)]
    for kind in dict.fromkeys(each.kind for each in view.points):
        shown = ("time_to_first_token", "inter_token_latency")
        found += [against_load(view, metric, kind) for metric in shown]
    chosen = _chosen(view, decision)
    found += [distribution(view, metric, chosen) for metric in LATENCIES]
    found.append(accuracy(view))
    if decision.best is not None and (columns := decision.best.lines[0].columns) is not None:
        found.append(in_flight(decision.best, columns))
    found.append(iterations(view))
    return (each for each in found if each is not None)


def _chosen(view: View, decision: Decision) -> list[Point]:
    """Whose distributions are drawn: the best and the baseline, or the loads of a single target."""
    groups = targets(view.points)
    if len(groups) == 1:
        loads = next(iter(groups.values()))
        step = max(1, -(-len(loads) // _CURVES))
        return loads[::-1][::step][::-1]
    at = decision.best and decision.best.load
    chosen = {p.target: p for p in (decision.best, decision.baseline) if p is not None}
    for target, mine in groups.items():
        if view.styles[target].shown and target not in chosen:
            chosen[target] = max(
                mine, key=lambda p: (view.kept(p), p.load == at, view.rate(p) or 0)
            )
    return list(chosen.values())[:_CURVES]


def _page(
    title: str,
    lines: Sequence[Line],
    view: View,
    decision: Decision,
    charts: Sequence[Chart],
) -> str:
    style = _asset("chart.css") + _asset("report.css")
    script, timeline = "", _timeline(decision.best)
    if timeline:
        style += _asset("uPlot.min.css")
        script = _asset("uPlot.iife.min.js") + _asset("report.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["plain"] = plain
    failed = [
        (line.record["target"]["name"], load_words(line), line.record.get("error") or "")
        for line in lines
        if line.record["status"] == "failed"
    ]
    return environment.from_string(_asset("report.html.j2")).render(
        title=title,
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        decision=decision,
        charts=charts,
        texts=_TEXT,
        timeline=timeline,
        points=_points_table(view),
        explained=_EXPLAINED,
        failed=failed,
        targets=[told(name, mine) for name, mine in targets(view.points).items()],
        version=installed_version(),
        sources=dict.fromkeys(bare(line.source) for line in lines),
    )


_EXPLAINED: Final = (
    "Of three runs or more they are over runs (Student's t), else over 20 blocks in time of one; "
    "near saturation and below some thousands of requests the latter are too narrow. Times in ms."
)


def _policy(style: str, script: str) -> str:
    """Allow this page's own style and script, by their hashes, and nothing else."""
    rules = ["default-src 'none'", f"style-src {_hash(style)}", "base-uri 'none'"]
    rules += ["form-action 'none'"] + ([f"script-src {_hash(script)}"] if script else [])
    return "; ".join(rules)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text("utf-8")


_FIGURES: Final = {
    **{("time_to_first_token", each): f"TTFT {each}" for each in PERCENTILES},
    ("inter_token_latency", "avg"): "ITL mean",
    ("inter_token_latency", "p95"): "ITL p95",
    ("request_latency", "p95"): "latency p95",
    ("requests_in_flight", "avg"): "in flight",
}


def _points_table(view: View) -> dict[str, Any]:
    """Every point with the figures that people ask for."""
    heads = (
        *("Target", "Load", "requests/s", view.rate_name, f"tokens/s per user ({view.form.name})"),
        *_FIGURES.values(),
        *("score", "ok / failed", "runs"),
    )
    rows = [
        (
            *(p.target, p.load),
            bounded(p.figure("request_throughput"), _known(view, p, "request_throughput")),
            *(bounded(each) for each in (view.rate(p), p.per_user(view.form))),
            *(bounded(p.figure(*each)) for each in _FIGURES),
            "-" if (score := p.figure("score")) is None else f"{score:.4f}",
            f"{_sum(p, 'requests_ok')} / {_sum(p, 'requests_failed')}",
            str(len(p.lines)),
        )
        for p in view.points
    ]
    return {"heads": heads, "rows": rows}


def _known(view: View, point: Point, metric: str) -> tuple[float, float] | None:
    """The interval of what is named in charts: for the rest its requests needn't be read."""
    return point.interval(metric) if view.styles[point.target].shown else None


def _sum(point: Point, key: str) -> int:
    return sum(line.record.get(key) or 0 for line in point.lines)


def _timeline(best: Point | None) -> dict[str, Any] | None:
    """The data of the chart that zooms; none without requests."""
    if best is None or (columns := best.lines[0].columns) is None:
        return None
    panels = server_panels(best.lines[0].over_time, columns.origin_ns)
    return {"name": best.name, "data": {**packed(columns), "server": panels}}


def write_report(
    path: Path,
    lines: Sequence[Line],
    limits: Sequence[Limit] = (),
    *,
    svg_folder: Path | None = None,
    **asked: Any,
) -> tuple[Decision, int]:
    """Write the page, and its charts into ``svg_folder``; gives the decision and their number.

    Raises ``UserError`` where it can't be written; files are there whole or not at all.
    """
    page, charts, decision = build(lines, limits, **asked)
    texts = {path: page}
    if svg_folder is not None:
        texts |= {svg_folder / f"{each.name}.svg": standalone(each.svg) for each in charts}
    for file, text in texts.items():
        write_text(file, text)
    return decision, len(charts)
