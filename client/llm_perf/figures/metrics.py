"""Figures from records: a pure function from what was seen to genai-perf's metric keys.

Every metric is a row of ``DEFINITIONS``, with the formula that ``--explain`` prints and
docs/metrics.md holds. Names and units are those of genai-perf's
``profile_export_genai_perf.json``. Only answered requests count; percentiles interpolate
linearly, ``std`` is the population's: numpy's defaults. Where requests failed, ``adjusted_p…``
take each of them as infinitely late (nearest rank: infinity has no middle).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from llm_perf.figures.flight import Flights, flights, served
from llm_perf.json_text import spelt
from llm_perf.record import Record

Metric: TypeAlias = dict[str, float | int | str | None]
PERCENTILES: Final = (1, 5, 10, 25, 50, 75, 90, 95, 99)
ADJUSTED: Final = (50, 90, 99)
_NIM = "NVIDIA NIM LLM benchmarking guide, Metrics"
_GENAI_PERF = "genai-perf 0.0.16, llm_profile_data_parser.py"
_LOADGEN = "MLPerf loadgen's latency"
_OURS = "llm_perf"
_TRTLLM = "TensorRT-LLM's return_perf_metrics"


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric: its key in exports, its formula, and where that is from."""

    key: str
    unit: str
    formula: str
    source: str
    values: Callable[[Record], Sequence[float]] | None = None  # None: a figure of the whole run
    late: bool = False  # a failed request can be taken as infinitely late
    optional: bool = False  # left out where no record has it
    open_loop: bool = False  # has no meaning without a schedule

    def of(self, record: Record) -> Sequence[float]:
        """What one request adds to the distribution; nothing where it is undefined."""
        return self.values(record) if self.values else ()


def _ms(*nanoseconds: float | None) -> list[float]:
    return [each * 1e-6 for each in nanoseconds if each is not None]


def rate(amount: float, nanoseconds: float | None) -> float | None:
    """So much a second."""
    return amount / (nanoseconds * 1e-9) if nanoseconds else None


def _pace(itl_ns: float | None) -> float | None:
    """Tokens a second; infinite where all came at once, and not left out."""
    return None if itl_ns is None else 1e9 / itl_ns if itl_ns else math.inf


def _known(value: float | None) -> list[float]:
    return [] if value is None else [value]


# fmt: off
DEFINITIONS: Final = {each.key: each for each in (
    Definition("time_to_first_token", "ms", "TTFT = first response with a token − sent",
               _NIM, lambda r: _ms(r.ttft_ns), late=True),
    Definition("time_to_first_text", "ms",
               "first response with text − sent: later than TTFT where the first token is half a "
               "character",
               _OURS, lambda r: _ms(r.ttft_text_ns)),
    Definition("time_to_first_token_from_schedule", "ms",
               "first response with a token − scheduled time",
               _LOADGEN, lambda r: _ms(*r.since_due_ns[:1]), late=True, open_loop=True),
    Definition("time_to_second_token", "ms",
               "second response with tokens − first response with tokens",
               _GENAI_PERF, lambda r: _ms(*r.gaps_ns[:1])),
    Definition("inter_token_latency", "ms",
               "ITL = TPOT = (last token − first token) / (OSL − 1), one value per request, over "
               "the tokens that OSL counts, the end token among them if the server counts it; none "
               "for OSL < 2, or an answer in one response",
               _NIM, lambda r: _ms(r.itl_ns), late=True),
    Definition("inter_chunk_latency", "ms",
               "time between neighbouring responses with tokens, pooled over requests; equals ITL "
               "only where every response is one token",
               "aiperf inter_chunk_latency", lambda r: _ms(*r.gaps_ns)),
    Definition("request_latency", "ms", "last response with a token − sent",
               _NIM, lambda r: _ms(r.latency_ns), late=True),
    Definition("request_latency_from_schedule", "ms", "last response with a token − scheduled time",
               _LOADGEN, lambda r: _ms(*r.since_due_ns[-1:]), late=True, open_loop=True),
    Definition("output_sequence_length", "tokens",
               "OSL = the server's own count (num_output_tokens, sequence_length, output_ids, "
               "usage), else the tokenizer's on the whole answer",
               _NIM, lambda r: [r.output_tokens]),
    Definition("input_sequence_length", "tokens",
               "ISL = tokenizer's count of the prompt, special tokens with it; without a "
               "tokenizer the server's (usage.prompt_tokens, num_input_tokens)",
               _NIM, lambda r: _known(r.input_tokens)),
    Definition("output_token_throughput_per_user", "tokens/sec/user", "1 / ITL",
               _GENAI_PERF, lambda r: _known(_pace(r.itl_ns))),
    Definition("output_token_throughput_per_user_e2e", "tokens/sec/user", "OSL / request latency",
               _NIM, lambda r: _known(rate(r.output_tokens, r.latency_ns))),
    Definition("server_queue_time", "ms", "first scheduled − arrival, on the server's clock",
               _TRTLLM, lambda r: _ms(r.queue_ns), optional=True),
    Definition("server_prefill_time", "ms", "first token − first scheduled, on the server's clock",
               _TRTLLM, lambda r: _ms(r.prefill_ns), optional=True),
    Definition("ensemble_network_overhead", "ms",
               "TTFT − (first token − arrival): what the client waited beyond the engine's own "
               "time",
               _TRTLLM, lambda r: _ms(r.network_ns), optional=True),
    Definition("kv_cache_reused_blocks", "blocks", "blocks of the prompt found in the KV cache",
               _TRTLLM, lambda r: _known(r.kv_cache_reused_blocks), optional=True),
    Definition("cached_tokens", "tokens", "tokens of the prompt found in the server's cache",
               "OpenAI API, usage.prompt_tokens_details", lambda r: _known(r.cached_tokens),
               optional=True),
    Definition("input_token_throughput", "tokens/sec",
               "Σ ISL of answered requests / (last response − first send)", _NIM),
    Definition("total_token_throughput", "tokens/sec",
               "Σ (ISL + OSL) of answered requests / (last response − first send)",
               "vllm bench serve, total_token_throughput"),
    Definition("output_token_throughput", "tokens/sec",
               "Σ OSL of answered requests / (last response − first send)", _NIM),
    Definition("request_throughput", "requests/sec",
               "answered requests / (last response − first send)", _NIM),
    Definition("request_count", "count", "their number", _GENAI_PERF),
    Definition("requests_in_flight", "requests",
               "Σ (end − sent) of all requests, failed ones too / (last response − first send): "
               "how many were in flight on average",
               "Little 1961, doi:10.1287/opre.9.3.383"),
    Definition("request_goodput", "requests/sec",
               "answered requests that keep every limit of --goodput (an answer without a token "
               "keeps none, one of a single token any of ITL, one in one piece or without text "
               "none of TTFT) / (last response − first send); "
               "share = those / all requests, failed ones too",
               "DistServe, arXiv:2401.09670"),
)}
# fmt: on


def compute_metrics(
    records: Sequence[Record], *, open_loop: bool = False, concurrency: int | None = None
) -> dict[str, Metric]:
    """Compute all metrics of one load; those from the schedule only of an ``open_loop``.

    Distributions are ``{unit, count, avg, min, max, std, p1 … p99}``, throughputs ``{unit, avg}``;
    a figure that nothing was seen for is ``None``. Throughputs of a closed loop that keeps
    ``concurrency`` in flight also have ``steady``, over the part of the window in which it did
    (``llm_perf.figures.flight``), and ``steady_share``, how large that is. Where requests failed
    there is also ``adjusted_p50 … p99``; infinity is spelled ``"inf"``, as JSON has none.
    """
    shown = [each for each in DEFINITIONS.values() if each.values]
    columns = {each: array("d") for each in shown if open_loop or not each.open_loop}
    ok = tokens = read = counted = 0
    for record in records:  # once: they may be on disk
        if record.ok:
            ok, tokens = ok + 1, tokens + record.output_tokens
            read += record.input_tokens or 0
            counted += record.input_tokens is not None
            for each, values in columns.items():
                values.extend(each.of(record))
    failed = len(records) - ok
    flown = flights(records)
    length = flown.window_ns
    known = length if counted == ok else None  # what some prompts lack, all together have not
    metrics: dict[str, Metric] = {
        "request_throughput": {"unit": "requests/sec", "avg": rate(ok, length)},
        "output_token_throughput": {"unit": "tokens/sec", "avg": rate(tokens, length)},
        "input_token_throughput": {"unit": "tokens/sec", "avg": rate(read, known)},
        "total_token_throughput": {"unit": "tokens/sec", "avg": rate(read + tokens, known)},
        "request_count": {"unit": "count", "avg": ok},
        "requests_in_flight": {"unit": "requests", "avg": flown.mean},
    }
    if concurrency is not None and length:
        for key, steady in _steady(records, flown, concurrency).items():
            if metrics[key]["avg"] is not None:
                metrics[key] |= steady
    for each, values in columns.items():
        if values or not each.optional:
            late = _adjusted(values, failed) if each.late and failed else {}
            metrics[each.key] = {"unit": each.unit} | _distribution(values) | late
    return metrics


def window_ns(records: Sequence[Record]) -> int | None:
    """Length of the run: last response − first send, over all requests, failed ones too."""
    return flights(records).window_ns


def _steady(records: Sequence[Record], flown: Flights, concurrency: int) -> dict[str, Metric]:
    """Throughputs over the part in which a closed loop was full; none where it never was."""
    if (part := flown.steady(concurrency)) is None:
        return {}
    seen, length = served(records, *part), part[1] - part[0]
    amounts = {
        "request_throughput": seen.requests,
        "output_token_throughput": seen.output_tokens,
        "input_token_throughput": seen.input_tokens,
        "total_token_throughput": seen.input_tokens + seen.output_tokens,
    }
    share = min(length / (flown.window_ns or length), 1.0)
    return {
        key: {"steady": rate(amount, length), "steady_share": share}
        for key, amount in amounts.items()
    }


def _adjusted(values: array[float], failed: int) -> Metric:
    data = np.concatenate((np.frombuffer(values), np.full(failed, math.inf)))
    spread = np.percentile(data, ADJUSTED, method="nearest").tolist()
    shown = map(spelt, spread)
    return {f"adjusted_p{p}": value for p, value in zip(ADJUSTED, shown, strict=True)}


def _distribution(values: array[float]) -> Metric:
    names = ["avg", "min", "max", "std", *(f"p{p}" for p in PERCENTILES)]
    if not values:
        return {"count": 0, **dict.fromkeys(names)}
    data = np.frombuffer(values)
    with np.errstate(invalid="ignore"):  # infinity less infinity
        plain = [data.mean(), data.min(), data.max(), data.std()]
        spread = np.percentile(data, PERCENTILES, overwrite_input=True)
        if np.isnan(spread).any():  # between two infinities, or at the last value before one
            spread = np.fmax(spread, np.percentile(data, PERCENTILES, method="lower"))
    figures = (spelt(float(each)) for each in (*plain, *spread))
    return {"count": len(values), **dict(zip(names, figures, strict=True))}
