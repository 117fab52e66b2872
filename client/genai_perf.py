"""A run in the files of genai-perf and perf_analyzer 24.09 to 25.05, so that their tools read it.

``perf_analyzer`` is the schema of src/profile_data_exporter.cc, ``genai_perf`` and ``csv_text``
are those of genai-perf 0.0.16's exporters. A run in, values and text out; no files.
"""

from __future__ import annotations

import csv
import io
from itertools import pairwise
from typing import Any, Final

from client.metrics import DEFINITIONS
from client.record import Record
from client.run import Run

_STATISTICS: Final = (
    *("avg", "min", "max", "p99", "p95", "p90", "p75", "p50", "p25", "p10", "p5", "p1"),
)


def perf_analyzer(run: Run) -> dict[str, Any]:
    """Give perf_analyzer's profile_export.json.

    Failed requests stay out: its readers have no place for them. An answer is cut into as many
    equal parts as it had responses; only together do they say what the server sent.
    """
    load = run.load.to_json()
    closed = load["kind"] == "concurrency"
    answered = [record for record in run.records if record.ok and record.chunk_ns]
    return {
        "experiments": [
            {
                "experiment": {
                    "mode": "concurrency" if closed else "request_rate",
                    "value": load["value"] or 0,
                },
                "requests": [_request(record) for record in answered],
                "window_boundaries": _window(answered),
            }
        ],
        "version": "",
        "service_kind": "triton",
        "endpoint": "",
        "llm_perf": run.description(),
    }


def _window(records: list[Record]) -> list[int]:
    if not records:
        return []
    return [min(r.sent_ns for r in records), max(r.chunk_ns[-1] for r in records)]


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
    closed = run.load.to_json()["kind"] == "concurrency"
    level = {"concurrency" if closed else "request_rate": run.load.to_json()["value"]}
    return {
        **run.metrics,
        "input_config": {
            "model_names": [run.endpoint.model],
            "perf_analyzer": {"stimulus": level},
            "endpoint": {"type": "kserve", "backend": "tensorrtllm", "streaming": True},
            "input": {"num_dataset_entries": len(run.workload.prompts)},
            "tokenizer": {"name": str(run.workload.tokenizer.path.parent)},
        },
        "llm_perf": run.description(),
    }


def csv_text(run: Run) -> str:
    """Give ``*_genai_perf.csv``: distributions, figures of the run, and what was measured."""
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n").writerow
    own = [each for each in DEFINITIONS if each.key in run.metrics]
    write(["Metric", *_STATISTICS])
    for each in own:
        if each.values is not None:
            metric = run.metrics[each.key]
            write([_name(each.key, each.unit), *(_cell(metric[stat]) for stat in _STATISTICS)])
    write([])
    write(["Metric", "Value"])
    for each in own:
        if each.values is None:
            write([_name(each.key, each.unit), _cell(run.metrics[each.key]["avg"])])
    write(["Requests Failed (count)", run.requests_failed])
    write([])
    write(["Setting", "Value"])
    for name, value in _settings(run):
        write([name, value])
    return text.getvalue()


def _settings(run: Run) -> list[tuple[str, object]]:
    described = run.description()
    return [
        ("Model", run.endpoint.model),
        ("URL", run.endpoint.url),
        ("Load", run.load.title),
        ("Workload SHA-256", run.workload.sha256),
        ("Workload Seed", run.workload.seed),
        ("Started", run.started_at),
        ("llm_perf", described["client"]["llm_perf"]),
        *((f"Server {name}", value) for name, value in run.server.items()),
    ]


def _name(key: str, unit: str) -> str:
    """``Time To First Token (ms)``, as genai-perf spells it."""
    return f"{key.replace('_', ' ').title()} ({unit.replace('requests/', 'per ')})"


def _cell(value: float | int | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:,.2f}"
