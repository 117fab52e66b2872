"""Runs for the eye: genai-perf's table, below it what is one number per run, and across loads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, TextIO

from rich.console import Console
from rich.table import Table

from client.metrics import ADJUSTED, DEFINITIONS, Definition, Metric
from client.run import Run
from client.scrape import headline

_COLUMNS: Final = ("avg", "min", "max", "std", "p99", "p90", "p75", "p50", "p25")
_ROWS: Final = (
    "time_to_first_token",
    "time_to_first_token_from_schedule",
    "inter_token_latency",
    "request_latency",
    "request_latency_from_schedule",
    "server_queue_time",
    "server_prefill_time",
    "ensemble_network_overhead",
    "output_sequence_length",
    "input_sequence_length",
)
_ACROSS: Final = (
    ("tokens/s", "output_token_throughput", "avg"),
    ("requests/s", "request_throughput", "avg"),
    ("goodput/s", "request_goodput", "avg"),
    ("tokens/s/user", "output_token_throughput_per_user", "avg"),
    ("TTFT p50 ms", "time_to_first_token", "p50"),
    ("TTFT p99 ms", "time_to_first_token", "p99"),
    ("from schedule p99", "time_to_first_token_from_schedule", "p99"),
    ("ITL avg ms", "inter_token_latency", "avg"),
    ("latency p99 ms", "request_latency", "p99"),
)
_PLAIN_WIDTH: Final = 160  # a file or a pipe has no width of its own
_LEAST_WIDTH: Final = 120  # narrower, the figures of a row would fold


def print_run(run: Run, file: TextIO | None = None, *, explain: bool = False) -> None:
    """Print the table and its foot, to stdout unless ``file`` is given.

    ``explain`` adds the formula, source and n of every figure.
    """
    console = console_for(file)
    console.print(_table(run))
    for line in _foot(run):
        console.print(line, markup=False, soft_wrap=True)
    if explain:
        for line in explanations(run):
            console.print(line, markup=False, soft_wrap=True)


def print_summary(runs: Sequence[Run], file: TextIO | None = None) -> None:
    """Print one line per load: throughput against latency."""
    shown = [
        (head, key, stat) for head, key, stat in _ACROSS if any(key in r.metrics for r in runs)
    ]
    table = Table(title="llm_perf | all loads")
    table.add_column("load", no_wrap=True)
    for head in (*(head for head, _, _ in shown), "ok / failed"):
        table.add_column(head, justify="right", no_wrap=True)
    for run in runs:
        figures = (_figure(run.metrics.get(key, {}), stat) for _, key, stat in shown)
        done = f"{run.requests_ok} / {run.requests_failed}"
        table.add_row(run.load.title, *figures, done)
    console_for(file).print(table)


def explanations(run: Run) -> Iterator[str]:
    """Say of each figure of a run how it was computed, after whom, and over how many values."""
    yield "How each figure is computed:"
    for each in DEFINITIONS:
        if each.key in run.metrics:
            n = run.metrics[each.key].get("count", run.requests_ok)
            yield f"  {each.key} ({each.unit}; n = {n}): {each.formula} [{each.source}]"
    yield (
        f"  all: answered requests only ({run.requests_ok} of {len(run.records)}); percentiles "
        "interpolate linearly; std is the population's; clock: time.perf_counter_ns"
    )


def console_for(file: TextIO | None) -> Console:
    """Give a console that tables fit: a terminal's own width, if it is enough."""
    console = Console(file=file, highlight=False)
    console.width = max(console.width, _LEAST_WIDTH) if console.is_terminal else _PLAIN_WIDTH
    return console


def _table(run: Run) -> Table:
    where = f"{run.endpoint.model} at {run.endpoint.url}"
    table = Table(title=f"llm_perf | {where} | {run.load.title}")
    table.add_column("Statistic")
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("n / failed", justify="right", no_wrap=True)
    for each in _definitions():
        metric = run.metrics.get(each.key)
        if metric is not None:
            odd = each.key == "output_sequence_length" and run.token_counts.flagged
            figures = (_figure(metric, column) for column in _COLUMNS)
            n = f"{metric['count']} / {run.requests_failed}"
            table.add_row(each.label + (" (!)" if odd else ""), *figures, n)
    return table


def _definitions() -> list[Definition]:
    return sorted((d for d in DEFINITIONS if d.key in _ROWS), key=lambda d: _ROWS.index(d.key))


def _foot(run: Run) -> list[str]:
    lines = [
        f"Output token throughput (tokens/s): {_avg(run, 'output_token_throughput')}",
        f"Request throughput (requests/s): {_avg(run, 'request_throughput')}",
        f"Requests ok / failed: {run.requests_ok} / {run.requests_failed}",
        *_adjusted(run),
        *_goodput(run),
        *_scores(run),
    ]
    if run.health:
        lines.append(f"Client health: {run.health.summary}")
    if server := headline(run.server_metrics):
        lines.append(f"Server: {server}")
    return lines + [f"Note: {note}" for note in run.notes]


def _adjusted(run: Run) -> Iterator[str]:
    """Percentiles over all requests, failed ones taken as infinitely late."""
    for each in _definitions():
        metric = run.metrics.get(each.key, {})
        if metric.get("count") and "adjusted_p99" in metric:
            figures = ", ".join(f"p{p} {_figure(metric, f'adjusted_p{p}')}" for p in ADJUSTED)
            yield f"{each.label}, failures as infinity: {figures}"


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


def _avg(run: Run, key: str) -> str:
    return _figure(run.metrics[key], "avg")


def _figure(metric: Metric, column: str) -> str:
    value = metric.get(column)
    return "-" if value is None else value if isinstance(value, str) else f"{value:,.2f}"
