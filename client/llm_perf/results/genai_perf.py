"""A run in the files of genai-perf and perf_analyzer 24.09 to 25.05, so that their tools read it.

``perf_analyzer`` is the schema of src/profile_data_exporter.cc, ``genai_perf`` and ``csv_text``
are those of genai-perf 0.0.16's exporters. A run in, values and text out; no files.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

from llm_perf.figures.metrics import DEFINITIONS
from llm_perf.record import Record
from llm_perf.results.run import Run

_STATISTICS: Final = (
    *("avg", "min", "max", "p99", "p95", "p90", "p75", "p50", "p25", "p10", "p5", "p1"),
)


def perf_analyzer(run: Run, requests: Sequence[object]) -> dict[str, Any]:
    """Give perf_analyzer's profile_export.json with these in the place of its requests."""
    mode, value = _level(run)
    ends = ((record.sent_ns, record.chunk_ns[-1]) for record in _answered(run))
    first, last = next(ends, (0, 0))
    for sent_ns, last_ns in ends:
        first, last = min(first, sent_ns), max(last, last_ns)
    experiment = {
        "experiment": {"mode": mode, "value": value or 0},
        "requests": requests,
        "window_boundaries": [first, last] if last else [],
    }
    return {
        "experiments": [experiment],
        "version": "",
        "service_kind": "triton",
        "endpoint": "",
        "llm_perf": run.description(),
    }


def perf_analyzer_requests(run: Run) -> Iterator[dict[str, Any]]:
    """Give the requests of profile_export.json.

    Failed requests stay out: its readers have no place for them. An answer is cut into as many
    equal parts as it had responses; only together do they say what the server sent.
    """
    return map(_request, _answered(run))


def _answered(run: Run) -> Iterator[Record]:
    return (record for record in run.records if record.ok and record.chunk_ns)


def _level(run: Run) -> tuple[str, float | None]:
    load = run.load.to_json()
    return ("concurrency" if load["kind"] == "concurrency" else "request_rate"), load["value"]


def _request(record: Record) -> dict[str, Any]:
    n, size = len(record.chunk_ns), len(record.answer)
    cuts = pairwise(size * i // n for i in range(n + 1))
    prompt = record.prompt
    return {
        "timestamp": record.sent_ns,
        "request_inputs": {"text_input": prompt.text, "max_tokens": prompt.max_tokens},
        "response_timestamps": list(record.chunk_ns),
        "response_outputs": [{"text_output": record.answer[start:end]} for start, end in cuts],
    }


def genai_perf(run: Run) -> dict[str, Any]:
    """Give ``*_genai_perf.json``: the metrics, and the input_config its process command reads."""
    mode, value = _level(run)
    tokenizer = run.workload.tokenizer
    return {
        **run.metrics,
        "input_config": {
            "model_names": [run.endpoint.model],
            "perf_analyzer": {"stimulus": {mode: value}},
            "endpoint": {"type": "kserve", "backend": "tensorrtllm", "streaming": True},
            "input": {"num_dataset_entries": len(run.workload.prompts)},
            "tokenizer": {"name": str(tokenizer.path.parent) if tokenizer else None},
        },
        "llm_perf": run.description(),
    }


def csv_text(run: Run) -> str:
    """Give ``*_genai_perf.csv``: distributions, figures of the run, and what was measured."""
    spread: list[Sequence[object]] = [("Metric", *_STATISTICS)]
    single: list[Sequence[object]] = [("Metric", "Value")]
    for key, each in DEFINITIONS.items():
        if (metric := run.metrics.get(key)) is None:
            continue
        name = _name(key, each.unit)
        if each.values is None:
            single.append((name, _cell(metric["avg"])))
        else:
            spread.append((name, *(_cell(metric[statistic]) for statistic in _STATISTICS)))
    single.append(("Requests Failed (count)", run.requests_failed))
    settings = [
        ("Setting", "Value"),
        ("Model", run.endpoint.model),
        ("URL", run.endpoint.url),
        ("Load", run.title),
        ("Workload SHA-256", run.workload.sha256),
        ("Workload Seed", run.workload.seed),
        ("Started", run.started_at),
        ("llm_perf", run.description()["client"]["llm_perf"]),
        *((f"Server {name}", value) for name, value in run.server.items()),
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([*spread, (), *single, (), *settings])
    return text.getvalue()


def _name(key: str, unit: str) -> str:
    """``Time To First Token (ms)``, as genai-perf spells it."""
    return f"{key.replace('_', ' ').title()} ({unit.replace('requests/', 'per ')})"


def _cell(value: float | int | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:,.2f}"
