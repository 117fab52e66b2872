"""One run over time: how many requests were in which phase, as a chart and as data that zooms.

Requests as columns in; a drawing, and packed numbers for ``assets/report.js``, out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from llm_perf.report.axes import Axis, number
from llm_perf.report.draw import Plot
from llm_perf.report.points import Point
from llm_perf.report.requests import Numbers, Requests
from llm_perf.report.view import Chart

_STEPS: Final = 144
_PHASES: Final = {"queue": "s1", "prefill": "s0", "decode": "s2"}
_FINEST_S: Final = 1e-4
_PANELS: Final = 5  # of server metrics
_LINES: Final = 6  # of a panel


def in_flight(point: Point, columns: Requests) -> Chart:
    """How many requests were in the queue, before their first token, and after it."""
    at = np.linspace(0.0, float(columns.end_s.max()) or 1.0, _STEPS)
    sent, queued, first, end = phases(columns)
    edges = [(sent, queued), (queued, first), (first, end)]
    counts = [
        np.searchsorted(np.sort(start), at, "right") - np.searchsorted(np.sort(stop), at, "right")
        for start, stop in edges
    ]
    stacked = np.cumsum(counts[::-1], axis=0)[::-1]  # tokens at the bottom, the queue on top
    plot = Plot(
        "in-flight",
        Axis("Seconds since the first send", [0.0, float(at[-1])]),
        Axis("Requests in flight", [0.0, float(stacked.max())]),
        right=70,
    )
    names = []
    for number_of, (name, css) in enumerate(_PHASES.items()):
        if not counts[number_of].any():
            continue
        upper = stacked[number_of]
        lower = stacked[number_of + 1] if number_of + 1 < len(stacked) else np.zeros_like(at)
        plot.area(_pairs(at, upper), _pairs(at, lower), css)
        middle = float((upper + lower)[len(at) // 4 : -len(at) // 4].mean() / 2)
        names.append((middle, name, css))
    plot.ends(names)
    share = [float(each.mean()) for each in counts]
    told = ", ".join(f"{n}: {number(v)}" for n, v in zip(_PHASES, share, strict=True) if v)
    rows = [
        (number(float(at[i])), *(str(int(each[i])) for each in counts))
        for i in range(0, _STEPS, _STEPS // 24)
    ]
    return Chart(
        "in-flight",
        "Requests in flight over time",
        plot.svg(f"Requests in flight, {point.name}", f"On average {told}."),
        f"{point.name}; on average {told}. Prefill is all else before the first token; the queue "
        "is known where the server tells of it.",
        ("Second", *_PHASES),
        tuple(rows),
    )


def _pairs(x: Numbers, y: Numbers) -> list[tuple[float, float]]:
    return list(zip(x.tolist(), y.tolist(), strict=True))


def phases(columns: Requests) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Sent, out of the queue, first token, end, in s; a request that failed has no tokens."""
    first = np.where(columns.ok & ~np.isnan(columns.first_s), columns.first_s, columns.end_s)
    queue = np.nan_to_num(columns.values["server_queue_time"]) * 1e-3
    queued = np.minimum(columns.sent_s + queue, first)
    return columns.sent_s, queued, first, columns.end_s


def packed(columns: Requests) -> dict[str, Any]:
    """The requests for the script: whole numbers, four each, in ``unit_s``.

    Time since the one before was sent, queue, time to the first token (doubled, odd where it
    failed), time from there to the end: some fifteen bytes a request.
    """
    length = float(columns.end_s.max())
    unit = max(_FINEST_S, 10 ** math.floor(math.log10(max(length, 1e-9) / 2**20)))
    sent, queued, first, end = (np.round(each / unit).astype(np.int64) for each in phases(columns))
    rows = np.stack(
        [
            np.diff(sent, prepend=0),
            queued - sent,
            2 * (first - sent) + ~columns.ok,
            np.maximum(end - first, 0),
        ],
        axis=1,
    )
    return {"unit_s": unit, "length_s": length, "requests": rows.ravel().tolist()}


def server_panels(series: Mapping[str, Any] | None, origin_ns: int) -> list[dict[str, Any]]:
    """Server metrics over time for the script, a panel for each name, in the order they came."""
    if not series:
        return []
    at = [round((each - origin_ns) * 1e-9, 3) for each in series["at_ns"]]
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for each in series["series"]:
        rate = " per second" if each.get("kind") == "counter" else ""
        panels.setdefault(each["name"] + rate, []).append(each)
    return [
        {
            "name": name,
            "at_s": at,
            "lines": [
                {
                    "label": label,
                    "values": [None if v is None else float(f"{v:.4g}") for v in each["values"]],
                }
                for label, each in zip(_labels(lines), lines[:_LINES], strict=False)
            ],
        }
        for name, lines in list(panels.items())[:_PANELS]
    ]


def _labels(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells a metric's lines apart: the values of labels that aren't the same in all."""
    pairs = [each["labels"].items() for each in lines]
    common = set(pairs[0]).intersection(*pairs) if len(lines) > 1 else set()
    return [
        " ".join(str(value) for key, value in each if (key, value) not in common) or "value"
        for each in pairs
    ]
