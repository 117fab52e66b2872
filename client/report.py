"""A run for the eye: genai-perf's table, and below it what is one number per run."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.table import Table

from client.metrics import Metric
from client.run import Run

_COLUMNS = ("avg", "min", "max", "p99", "p90", "p75", "p50")
_ROWS = {
    "Time to first token (ms)": "time_to_first_token",
    "Inter token latency (ms)": "inter_token_latency",
    "Request latency (ms)": "request_latency",
    "Output sequence length (tokens)": "output_sequence_length",
    "Input sequence length (tokens)": "input_sequence_length",
}
_PLAIN_WIDTH = 120  # a file or a pipe has no width of its own


def print_run(run: Run, file: TextIO | None = None) -> None:
    """Print the table and its foot, to stdout unless ``file`` is given."""
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    console.print(_table(run))
    for line in _foot(run):
        console.print(line, markup=False)


def _table(run: Run) -> Table:
    where = f"{run.endpoint.model} at {run.endpoint.url}"
    table = Table(title=f"llm_perf | {where} | concurrency {run.load.n}")
    table.add_column("Statistic")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for label, key in _ROWS.items():
        metric = run.metrics[key]
        table.add_row(label, *(_figure(metric, column) for column in _COLUMNS))
    return table


def _foot(run: Run) -> list[str]:
    lines = [
        f"Output token throughput (tokens/s): {_avg(run, 'output_token_throughput')}",
        f"Request throughput (requests/s): {_avg(run, 'request_throughput')}",
        f"Requests ok / failed: {run.requests_ok} / {run.requests_failed}",
    ]
    if run.accuracy:
        score = run.accuracy
        lines.append(f"Score (exact match): {score.value:.4f} (n = {score.n})")
    return lines + [f"Note: {note}" for note in run.notes]


def _avg(run: Run, key: str) -> str:
    return _figure(run.metrics[key], "avg")


def _figure(metric: Metric, column: str) -> str:
    value = metric[column]
    return "-" if value is None else f"{value:,.2f}"
