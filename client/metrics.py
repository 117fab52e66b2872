"""Figures from records: a pure function from what was seen to genai-perf's metric keys.

Every metric is a row of ``DEFINITIONS``, with the formula that ``--explain`` prints and
docs/metrics.md holds. Names and units are those of genai-perf's
``profile_export_genai_perf.json``. Only answered requests count; percentiles interpolate
linearly, ``std`` is the population's: numpy's defaults. Where requests failed, ``adjusted_p…``
take each of them as infinitely late (nearest rank: infinity has no middle).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np

from client.record import Record

Metric: TypeAlias = dict[str, float | int | str | None]
PERCENTILES: Final = (1, 5, 10, 25, 50, 75, 90, 95, 99)
ADJUSTED: Final = (50, 90, 99)

_MS = 1e-6  # of a nanosecond
_S = 1e-9

_NIM = "NVIDIA NIM LLM benchmarking guide, Metrics"
_GENAI_PERF = "genai-perf 0.0.16, llm_profile_data_parser.py"
_LOADGEN = "MLPerf loadgen's latency"
_TRTLLM = "TensorRT-LLM's return_perf_metrics"


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric: its key in exports, its formula, and where that is from.

    ``values`` gives what one request adds to the distribution, nothing where it is undefined; it
    is absent for figures of the whole run. In a ``late`` metric a failed request can be taken as
    infinitely late; an ``optional`` one is left out where no record has it; one of an
    ``open_loop`` has no meaning without a schedule.
    """

    key: str
    label: str
    unit: str
    formula: str
    source: str
    values: Callable[[Record], Iterable[float]] | None = None
    late: bool = False
    optional: bool = False
    open_loop: bool = False


def _scaled(value: float | None, factor: float = _MS) -> tuple[float, ...]:
    return () if value is None else (value * factor,)


def _inverse(nanoseconds: float | None, amount: int) -> float | None:
    return amount / (nanoseconds * _S) if nanoseconds else None


def _rate_of(nanoseconds: float | None, amount: int) -> tuple[float, ...]:
    return _scaled(_inverse(nanoseconds, amount), 1)


def _after_schedule(record: Record, chunk: int) -> tuple[float, ...]:
    return _scaled(record.chunk_ns[chunk] - record.scheduled_ns) if record.chunk_ns else ()


def _gaps(record: Record) -> list[float]:
    return [(later - one) * _MS for one, later in pairwise(record.chunk_ns)]


DEFINITIONS: Final = (
    Definition(
        "time_to_first_token",
        "Time to first token (ms)",
        "ms",
        "TTFT = first non-empty response − sent",
        _NIM,
        lambda r: _scaled(r.ttft_ns),
        late=True,
    ),
    Definition(
        "time_to_first_token_from_schedule",
        "Time to first token from schedule (ms)",
        "ms",
        "first non-empty response − scheduled time",
        _LOADGEN,
        lambda r: _after_schedule(r, 0),
        late=True,
        open_loop=True,
    ),
    Definition(
        "time_to_second_token",
        "Time to second token (ms)",
        "ms",
        "second non-empty response − first non-empty response",
        _GENAI_PERF,
        lambda r: _gaps(r)[:1],
    ),
    Definition(
        "inter_token_latency",
        "Inter token latency (ms)",
        "ms",
        "ITL = TPOT = (request latency − TTFT) / (OSL − 1), one value per request; none for "
        "OSL < 2, or an answer in one response",
        _NIM,
        lambda r: _scaled(r.itl_ns),
        late=True,
    ),
    Definition(
        "inter_chunk_latency",
        "Time between responses (ms)",
        "ms",
        "time between neighbouring non-empty responses, pooled over requests; equals ITL only "
        "where every response is one token",
        "aiperf inter_chunk_latency",
        _gaps,
    ),
    Definition(
        "request_latency",
        "Request latency (ms)",
        "ms",
        "last non-empty response − sent",
        _NIM,
        lambda r: _scaled(r.latency_ns),
        late=True,
    ),
    Definition(
        "request_latency_from_schedule",
        "Request latency from schedule (ms)",
        "ms",
        "last non-empty response − scheduled time",
        _LOADGEN,
        lambda r: _after_schedule(r, -1),
        late=True,
        open_loop=True,
    ),
    Definition(
        "output_sequence_length",
        "Output sequence length (tokens)",
        "tokens",
        "OSL = the server's own count (num_output_tokens, sequence_length, output_ids, usage), "
        "else the tokenizer's on the whole answer",
        _NIM,
        lambda r: (r.output_tokens,),
    ),
    Definition(
        "input_sequence_length",
        "Input sequence length (tokens)",
        "tokens",
        "ISL = tokenizer's count of the prompt, special tokens with it",
        _NIM,
        lambda r: (r.prompt.input_tokens,),
    ),
    Definition(
        "output_token_throughput_per_user",
        "Output tokens per user (1/ITL)",
        "tokens/sec/user",
        "1 / ITL",
        _GENAI_PERF,
        lambda r: _rate_of(r.itl_ns, 1),
    ),
    Definition(
        "output_token_throughput_per_user_e2e",
        "Output tokens per user (OSL/latency)",
        "tokens/sec/user",
        "OSL / request latency",
        _NIM,
        lambda r: _rate_of(r.latency_ns, r.output_tokens),
    ),
    Definition(
        "server_queue_time",
        "Server: queue (ms)",
        "ms",
        "first scheduled − arrival, on the server's clock",
        _TRTLLM,
        lambda r: _scaled(r.queue_ns),
        optional=True,
    ),
    Definition(
        "server_prefill_time",
        "Server: prefill (ms)",
        "ms",
        "first token − first scheduled, on the server's clock",
        _TRTLLM,
        lambda r: _scaled(r.prefill_ns),
        optional=True,
    ),
    Definition(
        "ensemble_network_overhead",
        "Ensemble and network (ms)",
        "ms",
        "TTFT − (first token − arrival): what the client waited beyond the engine's own time",
        _TRTLLM,
        lambda r: _scaled(r.network_ns),
        optional=True,
    ),
    Definition(
        "kv_cache_reused_blocks",
        "KV-cache blocks reused",
        "blocks",
        "blocks of the prompt found in the KV cache",
        _TRTLLM,
        lambda r: _scaled(r.kv_cache_reused_blocks, 1),
        optional=True,
    ),
    Definition(
        "output_token_throughput",
        "Output token throughput (tokens/s)",
        "tokens/sec",
        "Σ OSL of answered requests / (last response − first send)",
        _NIM,
    ),
    Definition(
        "request_throughput",
        "Request throughput (requests/s)",
        "requests/sec",
        "answered requests / (last response − first send)",
        _NIM,
    ),
    Definition("request_count", "Requests answered", "count", "their number", _GENAI_PERF),
    Definition(
        "request_goodput",
        "Goodput (requests/s)",
        "requests/sec",
        "answered requests that keep every limit of --goodput they have the metric of / (last "
        "response − first send); share = those / all requests, failed ones too",
        "DistServe, arXiv:2401.09670",
    ),
)
BY_KEY: Final = {definition.key: definition for definition in DEFINITIONS}


def metric_rows() -> list[tuple[str, str, str, str]]:
    """(key, unit, formula, source) of each metric, for --explain and docs/metrics.md."""
    return [(each.key, each.unit, each.formula, each.source) for each in DEFINITIONS]


def compute_metrics(records: Sequence[Record], *, open_loop: bool = False) -> dict[str, Metric]:
    """Compute all metrics of one load; those from the schedule only of an ``open_loop``.

    Distributions are ``{unit, count, avg, min, max, std, p1 … p99}``, throughputs ``{unit, avg}``;
    a figure that nothing was seen for is ``None``. Where requests failed there is also
    ``adjusted_p50 … p99``; infinity is spelled ``"inf"``, as JSON has none.
    """
    answered = [record for record in records if record.ok]
    failed = len(records) - len(answered)
    window = window_ns(records)
    tokens = sum(record.output_tokens for record in answered)
    metrics: dict[str, Metric] = {
        "request_throughput": {"unit": "requests/sec", "avg": _inverse(window, len(answered))},
        "output_token_throughput": {"unit": "tokens/sec", "avg": _inverse(window, tokens)},
        "request_count": {"unit": "count", "avg": len(answered)},
    }
    for each in DEFINITIONS:
        if each.values is None or (each.open_loop and not open_loop):
            continue
        values = [value for record in answered for value in each.values(record)]
        if values or not each.optional:
            late = _adjusted(values, failed) if each.late and failed else {}
            metrics[each.key] = _distribution(values, each.unit) | late
    return metrics


def window_ns(records: Sequence[Record]) -> int | None:
    """Length of the run: last response − first send, over all requests, failed ones too."""
    last = max((record.chunk_ns[-1] for record in records if record.chunk_ns), default=None)
    # a request that found no connection was never sent
    first = min((r.sent_ns for r in records if r.sent_ns or r.chunk_ns), default=0)
    return None if last is None else last - first


def _adjusted(values: Sequence[float], failed: int) -> Metric:
    data = np.sort(np.array([*values, *[math.inf] * failed]))
    spread = np.percentile(data, ADJUSTED, method="nearest")
    return {
        f"adjusted_p{p}": float(value) if math.isfinite(value) else "inf"
        for p, value in zip(ADJUSTED, spread, strict=True)
    }


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
