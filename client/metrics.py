"""Figures from records: a pure function from what was seen to genai-perf's metric keys.

Definitions are those of NVIDIA's NIM LLM benchmarking guide (docs.nvidia.com/nim/benchmarking/llm,
"Metrics"), names and units those of genai-perf's ``profile_export_genai_perf.json``. Only answered
requests count. Percentiles interpolate linearly, ``std`` is the population's: numpy's defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from client.record import Record

Metric: TypeAlias = dict[str, float | int | str | None]
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)

_MS = 1e-6  # of a nanosecond
_S = 1e-9


@dataclass(frozen=True, slots=True)
class _PerRequest:
    """A metric with one value per answered request, or none where it is undefined."""

    key: str
    unit: str
    value: Callable[[Record], float | None]


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _inverse(nanoseconds: float | None, amount: int) -> float | None:
    return amount / (nanoseconds * _S) if nanoseconds else None


_PER_REQUEST = (
    _PerRequest("time_to_first_token", "ms", lambda r: _scaled(r.ttft_ns, _MS)),
    _PerRequest("inter_token_latency", "ms", lambda r: _scaled(r.itl_ns, _MS)),
    _PerRequest("request_latency", "ms", lambda r: _scaled(r.latency_ns, _MS)),
    _PerRequest("output_sequence_length", "tokens", lambda r: r.output_tokens),
    _PerRequest("input_sequence_length", "tokens", lambda r: r.prompt.input_tokens),
    # 1 / ITL, as genai-perf computes it …
    _PerRequest(
        "output_token_throughput_per_user", "tokens/sec/user", lambda r: _inverse(r.itl_ns, 1)
    ),
    # … and OSL / latency, as the guide defines it
    _PerRequest(
        "output_token_throughput_per_user_e2e",
        "tokens/sec/user",
        lambda r: _inverse(r.latency_ns, r.output_tokens),
    ),
)


def compute_metrics(records: Sequence[Record]) -> dict[str, Metric]:
    """Compute all metrics of one load.

    Distributions are ``{unit, count, avg, min, max, std, p1 … p99}``, throughputs ``{unit, avg}``;
    a figure that nothing was seen for is ``None``.
    """
    answered = [record for record in records if record.ok]
    window = window_ns(records)
    tokens = sum(record.output_tokens for record in answered)
    metrics: dict[str, Metric] = {
        "request_throughput": _rate(len(answered), window, "requests/sec"),
        "output_token_throughput": _rate(tokens, window, "tokens/sec"),
        "request_count": {"unit": "requests", "avg": len(answered)},
    }
    for metric in _PER_REQUEST:
        values = [v for record in answered if (v := metric.value(record)) is not None]
        metrics[metric.key] = _distribution(values, metric.unit)
    gaps = [
        (later - earlier) * _MS
        for record in answered
        for earlier, later in zip(record.chunk_ns, record.chunk_ns[1:], strict=False)
    ]
    # time between responses, pooled over requests: equals ITL only where a response is a token
    metrics["inter_chunk_latency"] = _distribution(gaps, "ms")
    return metrics


def window_ns(records: Sequence[Record]) -> int | None:
    """Length of the run: last response − first send, over all requests, failed ones too."""
    last = max((record.chunk_ns[-1] for record in records if record.chunk_ns), default=None)
    return None if last is None else last - min(record.sent_ns for record in records)


def _rate(amount: int, window: int | None, unit: str) -> Metric:
    return {"unit": unit, "avg": _inverse(window, amount)}


def _distribution(values: Sequence[float], unit: str) -> Metric:
    names = [f"p{p}" for p in PERCENTILES]
    if not values:
        return {"unit": unit, "count": 0, **dict.fromkeys(["avg", "min", "max", "std", *names])}
    data = np.asarray(values, dtype=np.float64)
    spread = np.percentile(data, PERCENTILES)
    return {
        "unit": unit,
        "count": len(values),
        "avg": float(data.mean()),
        "min": float(data.min()),
        "max": float(data.max()),
        "std": float(data.std()),
        **{name: float(value) for name, value in zip(names, spread, strict=True)},
    }
