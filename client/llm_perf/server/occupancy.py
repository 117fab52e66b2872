"""What an engine was doing when it was looked at: a page of its metrics in, one row of numbers out.

Reads TensorRT-LLM's ``nv_trt_llm_*`` gauges as Triton shows them (its backend's
custom_metrics_reporter), vLLM's ``vllm:*`` (docs/design/metrics.md), and the iterations of
trtllm-serve. Knows nothing of limits.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias

PREFIX: Final = "trtllm_iteration_"
Series: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]


class State(NamedTuple):
    """Requests that a step held, and of these in their prompt; those that waited; tokens of the
    step; KV cache free and in all, in blocks (vLLM tells a share: then 1 is all). ``None`` is not
    told.
    """

    scheduled: float
    waiting: float
    context: float | None = None
    tokens: float | None = None
    kv_free: float | None = None
    kv_max: float | None = None


_LABELS: Final = {  # of TensorRT-LLM's families: the label whose values are what is counted
    "nv_trt_llm_request_metrics": "request_type",
    "nv_trt_llm_kv_cache_block_metrics": "kv_cache_block_type",
    "nv_trt_llm_inflight_batcher_metrics": "inflight_batcher_specific_metric",
}
_SERVERS: Final = (  # what each calls it
    {
        "scheduled": "nv_trt_llm_request_metrics.scheduled",
        "waiting": "nv_trt_llm_request_metrics.waiting",
        "active": "nv_trt_llm_request_metrics.active",
        "context": "nv_trt_llm_request_metrics.context",
        "context_tokens": "nv_trt_llm_inflight_batcher_metrics.total_context_tokens",
        "generation": "nv_trt_llm_inflight_batcher_metrics.generation_requests",
        "kv_free": "nv_trt_llm_kv_cache_block_metrics.free",
        "kv_max": "nv_trt_llm_kv_cache_block_metrics.max",
    },
    {
        "scheduled": "vllm:num_requests_running",
        "waiting": "vllm:num_requests_waiting",
        "kv_share": "vllm:kv_cache_usage_perc",
        "kv_share_before": "vllm:gpu_cache_usage_perc",
    },
    {  # trtllm-serve: means over the iterations of a page
        "scheduled": f"{PREFIX}scheduled_requests",
        "waiting": f"{PREFIX}queued_requests",
        "context": f"{PREFIX}context_requests",
        "context_tokens": f"{PREFIX}context_tokens",
        "generation": f"{PREFIX}generation_requests",
        "kv_free": f"{PREFIX}kv_blocks_free",
        "kv_max": f"{PREFIX}kv_blocks_max",
    },
)


def state_of(values: Mapping[Series, float]) -> State | None:
    """What a page says of the engine; ``None`` where it has none, or nothing was to do."""
    found: defaultdict[str, float] = defaultdict(float)
    for (name, pairs), value in values.items():
        if label := _LABELS.get(name):
            found[f"{name}.{dict(pairs).get(label, '')}"] += value
        elif name.startswith(("vllm:", PREFIX)):
            found[name] += value
    for names in _SERVERS:
        known = {what: found[name] for what, name in names.items() if name in found}
        if "scheduled" in known:
            seen = _state(known)
            return seen if seen.scheduled or seen.waiting else None
    return None


def _state(known: Mapping[str, float]) -> State:
    scheduled, tokens = known["scheduled"], known.get("context_tokens")
    used = known.get("kv_share", known.get("kv_share_before"))
    return State(
        scheduled,
        known.get("waiting", max(0.0, known.get("active", scheduled) - scheduled)),
        known.get("context"),
        None if tokens is None else tokens + known.get("generation", 0.0),
        known.get("kv_free") if used is None else round(1 - used, 3),
        known.get("kv_max") if used is None else 1.0,
    )


def told(states: Counter[State]) -> dict[str, Any]:
    """States as JSON: a row for each that was seen, how often it was in the last place."""
    rows = [[*state, times] for state, times in states.items()]
    return {"columns": [*State._fields, "times"], "rows": rows}
