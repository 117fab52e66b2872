"""trtllm-bench's ``--report_json``, read as a measurement: their document in, a ledger's line out.

Keys are those of tensorrt_llm/bench/dataclasses/reporting.py. Values keep their names in our
metrics where the formula is the same; what is measured otherwise stands in ``notes``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from llm_perf.errors import UserError
from llm_perf.figures.metrics import DEFINITIONS

_SPREAD: Final = {"minimum": "min", "maximum": "max", "average": "avg"}
# by section: our metric, and where their mean or their percentiles are, the best first
_WHERE: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "performance": {
        "request_throughput": ("request_throughput_req_s",),
        "output_token_throughput": ("system_output_throughput_tok_s",),
        "total_token_throughput": ("system_total_throughput_tok_s",),
        "request_latency": ("request_latency_percentiles_ms", "avg_request_latency_ms"),
        "output_token_throughput_per_user_e2e": ("output_throughput_per_user_tok_s",),
    },
    "request_info": {
        "requests_in_flight": ("avg_num_concurrent_requests",),
        "input_sequence_length": ("avg_input_length",),
        "output_sequence_length": ("avg_output_length",),
    },
    "streaming_metrics": {
        "time_to_first_token": ("ttft_percentiles", "avg_ttft_ms"),
        "inter_token_latency": ("tpot_percentiles", "avg_tpot_ms"),
        "output_token_throughput_per_user": ("gen_tps_percentiles", "token_output_speed_tok_s"),
    },
}
_NOTES: Final = (
    "trtllm-bench measured inside the engine's process: no HTTP or gRPC and no tokenizer of a "
    "server, so that a served model is slower by those",
    "its percentiles are elements of the sorted values, ours interpolate",
    "a request of a single output token counts there with a TPOT of 0, and not at all here",
    "its load is the mean number of requests in flight; the report doesn't hold --concurrency",
)


def is_bench(document: Any) -> bool:
    """Whether it is such a report."""
    if not isinstance(document, dict):
        return False
    return all(isinstance(document.get(key), dict) for key in ("engine", "performance"))


def bench_record(document: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The report as a measurement of kind ``bench``; raises ``UserError`` for what it lacks."""
    try:
        world, asked = document["world_info"], document["request_info"]
        engine, n = document["engine"], int(document["request_info"]["num_requests"])
        metrics = dict(_metrics(document))
        metrics["request_count"] = {"unit": "count", "avg": n}
        in_flight = float(asked["avg_num_concurrent_requests"])
        cell = {
            "backend": f"trtllm-bench ({engine.get('backend')})",
            "release": engine.get("version"),
            "model": engine["model"],
            "precision": str(engine.get("quantization") or engine.get("dtype") or "").lower(),
            "kv_cache_dtype": engine.get("kv_cache_dtype"),
            "tp": world["tp_size"],
            "pp": world["pp_size"],
            **{key: world[key] for key in ("max_batch_size", "max_num_tokens")},
            **{key: world.get(key) for key in ("scheduling_policy", "kv_cache_percentage")},
        }
        gpus = int(world["world_size"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"is no report of trtllm-bench that is known ({error!r})",
            where=path,
            fix="give the file that trtllm-bench --report_json wrote",
        ) from error
    notes = [*_NOTES]
    if "time_to_first_token" not in metrics:
        notes.append("it ran without --streaming, so that TTFT and TPOT are unknown")
    return {
        "kind": "bench",
        "status": "ok",
        "target": {
            "name": path.stem,
            "folder": path.parent.resolve().name,
            "gpus": gpus,
            "server": "trtllm-bench",
            "cell": {key: value for key, value in cell.items() if value not in (None, "")},
        },
        "load": {"kind": "concurrency", "value": round(in_flight, 1), "arrivals": "closed"},
        "workload": {
            "isl_avg": asked.get("avg_input_length"),
            "osl_avg": asked.get("avg_output_length"),
            "source": (document.get("dataset") or {}).get("dataset_path"),
        },
        "metrics": metrics,
        "requests_ok": n,
        "requests_failed": 0,
        "notes": notes,
        "gpu": document.get("machine"),
        "versions": {"tensorrt_llm": engine.get("version")},
    }


def _metrics(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for section, metrics in _WHERE.items():
        part = document.get(section) or {}
        for metric, keys in metrics.items():
            found = next((part[key] for key in keys if key in part), None)
            if found is not None:
                known = found if isinstance(found, dict) else {"avg": found}
                spread = {str(_SPREAD.get(key, key)): float(each) for key, each in known.items()}
                yield metric, {"unit": DEFINITIONS[metric].unit, **spread}
