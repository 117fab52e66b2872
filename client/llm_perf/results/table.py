"""Runs for the eye: genai-perf's table, below it what is one number per run, and across loads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TextIO

from llm_perf.figures.metrics import ADJUSTED, DEFINITIONS, Metric
from llm_perf.results.run import Run, load_title
from llm_perf.results.screen_table import print_table
from llm_perf.server.scrape import headline

_COLUMNS: Final = ("avg", "min", "max", "std", "p99", "p90", "p75", "p50", "p25")
_ROWS: Final = {
    "time_to_first_token": "Time to first token (ms)",
    "time_to_first_text": "Time to first text (ms)",
    "time_to_first_token_from_schedule": "Time to first token from schedule (ms)",
    "inter_token_latency": "Inter token latency (ms)",
    "request_latency": "Request latency (ms)",
    "request_latency_from_schedule": "Request latency from schedule (ms)",
    "server_queue_time": "Server: queue (ms)",
    "server_prefill_time": "Server: prefill (ms)",
    "ensemble_network_overhead": "Ensemble and network (ms)",
    "output_sequence_length": "Output sequence length (tokens)",
    "input_sequence_length": "Input sequence length (tokens)",
}
_ACROSS: Final = (
    ("tokens/s", "output_token_throughput", "avg"),
    ("steady tokens/s", "output_token_throughput", "steady"),
    ("requests/s", "request_throughput", "avg"),
    ("goodput/s", "request_goodput", "avg"),
    ("OSL/latency", "output_token_throughput_per_user_e2e", "avg"),
    ("TTFT p50 ms", "time_to_first_token", "p50"),
    ("TTFT p99 ms", "time_to_first_token", "p99"),
    ("from schedule p99", "time_to_first_token_from_schedule", "p99"),
    ("ITL avg ms", "inter_token_latency", "avg"),
    ("latency p99 ms", "request_latency", "p99"),
)
_STEADY_SHOWN: Final = 0.02  # of the whole window's figure: what differs by more is shown
ENOUGH_FOR_P99: Final = 100
FEW: Final = "~"
_SHORT: Final = {
    "Time to first": "T. to first",
    "T. to first token": "TTFT",
    "Inter token latency": "ITL",
    "Request latency": "Latency",
    "Output sequence length": "OSL",
    "Input sequence length": "ISL",
}
_LEAST: Final = ("p25", "p75", "std", "min", "max", "p90")
_LEAST_ACROSS: Final = (
    *("OSL/latency", "requests/s", "ITL avg ms", "TTFT p50 ms", "latency p99 ms"),
    *("goodput/s", "from schedule p99", "TTFT p99 ms"),
)


def print_run(run: Run, file: TextIO | None = None, *, explain: bool = False) -> None:
    """Print the table and its foot, to stdout unless ``file`` is given.

    ``explain`` adds the formula, source and n of every figure.
    """
    where = f"{run.endpoint.model} at {run.endpoint.url}"
    rows = list(_rows(run))
    marked = few_note(cell for row in rows for cell in row)
    print_table(
        f"llm_perf | {where} | {run.title}",
        ("Statistic", *_COLUMNS, "n / failed"),
        rows,
        (*marked, *_foot(run), *(explanations(run) if explain else ())),
        file,
        least=_LEAST,
        short=_SHORT,
    )


def print_summary(documents: Sequence[Mapping[str, Any]], file: TextIO | None = None) -> None:
    """Print one line per load, of runs as they are written: throughput against latency.

    ``steady tokens/s`` is of the time in which the load was full, where that says something else.
    """
    shown = [
        (head, key, statistic)
        for head, key, statistic in _ACROSS
        if any(_steady(each[key]) if statistic == "steady" else key in each for each in documents)
    ]
    heads = ("load", *(head for head, _, _ in shown), "ok / failed")
    rows = [
        (
            load_title(each["load"], each["max_in_flight_seen"]),
            *(_figure(each.get(key, {}), statistic) for _, key, statistic in shown),
            f"{each['requests_ok']} / {each['requests_failed']}",
        )
        for each in documents
    ]
    marked = few_note(cell for row in rows for cell in row)
    print_table("llm_perf | all loads", heads, rows, marked, file, least=_LEAST_ACROSS)


def explanations(run: Run) -> Iterator[str]:
    """Say of each figure of a run how it was computed, after whom, and over how many values."""
    yield "How each figure is computed:"
    for key, each in DEFINITIONS.items():
        if key in run.metrics:
            n = run.metrics[key].get("count", run.requests_ok)
            yield f"  {key} ({each.unit}; n = {n}): {each.formula} [{each.source}]"
    yield (
        f"  all: answered requests only ({run.requests_ok} of {len(run.records)}); percentiles "
        "interpolate linearly; std is the population's; clock: time.perf_counter_ns"
    )


def _rows(run: Run) -> Iterator[tuple[str, ...]]:
    for key, label in _ROWS.items():
        if (metric := run.metrics.get(key)) is not None:
            odd = key == "output_sequence_length" and run.token_counts.flagged
            figures = (_figure(metric, column) for column in _COLUMNS)
            n = f"{metric['count']} / {run.requests_failed}"
            yield (label + (" (!)" if odd else ""), *figures, n)


def _foot(run: Run) -> Iterator[str]:
    for key, label in (
        ("output_token_throughput", "Output token throughput (tokens/s)"),
        ("input_token_throughput", "Input token throughput (tokens/s)"),
        ("total_token_throughput", "Total token throughput (tokens/s)"),
        ("request_throughput", "Request throughput (requests/s)"),
    ):
        yield f"{label}: {_figure(run.metrics[key], 'avg')}{_steady(run.metrics[key])}"
    most = "" if run.max_in_flight_seen is None else f", at most {run.max_in_flight_seen}"
    yield f"Requests in flight: mean {_figure(run.metrics['requests_in_flight'], 'avg')}{most}"
    yield f"Requests ok / failed: {run.requests_ok} / {run.requests_failed}"
    yield from _adjusted(run)
    yield from _goodput(run)
    yield from _scores(run)
    if run.health:
        yield f"Client health: {run.health.summary}"
    if server := headline(run.server_metrics):
        yield f"Server: {server}"
    for note in run.notes:
        yield f"Note: {note}"


def _steady(metric: Metric) -> str:
    """What it was while the load was full, where that says something else."""
    whole, steady, share = (metric.get(key) for key in ("avg", "steady", "steady_share"))
    if not all(isinstance(each, float) for each in (whole, steady, share)):
        return ""
    assert isinstance(whole, float) and isinstance(steady, float)
    if abs(steady - whole) <= _STEADY_SHOWN * whole:
        return ""
    return f"; {steady:,.2f} while the load was full, {share:.0%} of the window"


def _adjusted(run: Run) -> Iterator[str]:
    """Percentiles over all requests, failed ones taken as infinitely late."""
    for key, label in _ROWS.items():
        metric = run.metrics.get(key, {})
        if metric.get("count") and "adjusted_p99" in metric:
            figures = ", ".join(f"p{p} {_figure(metric, f'adjusted_p{p}')}" for p in ADJUSTED)
            yield f"{label}, failures as infinity: {figures}"


def _goodput(run: Run) -> Iterator[str]:
    metric = run.metrics.get("request_goodput")
    if metric is not None and metric["share"] is not None:
        share = f"{metric['share']:.1%} of {metric['count']} requests"
        interval = f"95 % interval {metric['share_low']:.1%} to {metric['share_high']:.1%}"
        yield f"Goodput (requests/s): {_figure(metric, 'avg')}; {share} ({interval})"
        yield f"  kept: {metric['limits']}"


def _scores(run: Run) -> Iterator[str]:
    if run.accuracy is None:
        return
    name = "exact match" if run.accuracy.scorer == "exact" else run.accuracy.scorer
    parts = {f"Score ({name})": run.accuracy}
    parts |= {f"  {category}": score for category, score in run.accuracy.by_category.items()}
    for label, score in parts.items():
        interval = f"95 % interval {score.low:.4f} to {score.high:.4f}"
        yield f"{label}: {score.value:.4f} (n = {score.n}), {interval}"


def _figure(metric: Metric, column: str) -> str:
    value, n = metric.get(column), metric.get("count")
    if value is None or isinstance(value, str):
        return value or "-"
    few = column == "p99" and isinstance(n, int) and n < ENOUGH_FOR_P99
    return f"{value:,.2f}{FEW if few else ''}"


def few_note(cells: Iterable[str]) -> Iterator[str]:
    """Explain the mark where it is."""
    if any(cell.endswith(FEW) for cell in cells):
        yield f"{FEW} p99 of fewer than {ENOUGH_FOR_P99} values: as good as their maximum"
