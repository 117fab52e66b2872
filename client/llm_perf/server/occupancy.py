"""What an engine was doing when it was looked at: a page of its metrics in, one row of numbers out.

Reads TensorRT-LLM's ``nv_trt_llm_*`` gauges as Triton shows them (its backend's
custom_metrics_reporter), vLLM's ``vllm:*`` (docs/design/metrics.md), and the iterations of
trtllm-serve. Knows nothing of limits.
"""

from __future__ import annotations

from collections import Counter
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


_TRTLLM: Final = {
    "nv_trt_llm_request_metrics": "request_type",
    "nv_trt_llm_kv_cache_block_metrics": "kv_cache_block_type",
    "nv_trt_llm_inflight_batcher_metrics": "inflight_batcher_specific_metric",
}


def state_of(values: Mapping[Series, float]) -> State | None:
    """What a page says of the engine; ``None`` where it has none, or nothing was to do."""
    found: dict[str, float] = {}
    for (name, pairs), value in values.items():
        if label := _TRTLLM.get(name):
            key = dict(pairs).get(label, "")
            found[f"{name}.{key}"] = found.get(f"{name}.{key}", 0.0) + value
        elif name.startswith(("vllm:", PREFIX)):
            found[name] = found.get(name, 0.0) + value
    seen = _trtllm(found) or _vllm(found) or _iterations(found)
    return seen if seen and (seen.scheduled or seen.waiting) else None


def _trtllm(found: Mapping[str, float]) -> State | None:
    request, blocks, batcher = (
        {key.partition(".")[2]: value for key, value in found.items() if key.startswith(family)}
        for family in _TRTLLM
    )
    if "scheduled" not in request:
        return None
    scheduled = request["scheduled"]
    waiting = request.get("waiting", max(0.0, request.get("active", scheduled) - scheduled))
    tokens = batcher.get("total_context_tokens")
    return State(
        scheduled,
        waiting,
        request.get("context"),
        None if tokens is None else tokens + batcher.get("generation_requests", 0.0),
        blocks.get("free"),
        blocks.get("max"),
    )


def _vllm(found: Mapping[str, float]) -> State | None:
    if "vllm:num_requests_running" not in found:
        return None
    used = found.get("vllm:kv_cache_usage_perc", found.get("vllm:gpu_cache_usage_perc"))
    return State(
        found["vllm:num_requests_running"],
        found.get("vllm:num_requests_waiting", 0.0),
        kv_free=None if used is None else round(1 - used, 3),
        kv_max=None if used is None else 1.0,
    )


def _iterations(found: Mapping[str, float]) -> State | None:
    """Of trtllm-serve: means over the iterations of a page."""
    scheduled = found.get(f"{PREFIX}scheduled_requests")
    if scheduled is None:
        return None
    tokens = found.get(f"{PREFIX}context_tokens")
    return State(
        scheduled,
        found.get(f"{PREFIX}queued_requests", 0.0),
        found.get(f"{PREFIX}context_requests"),
        None if tokens is None else tokens + found.get(f"{PREFIX}generation_requests", 0.0),
        found.get(f"{PREFIX}kv_blocks_free"),
        found.get(f"{PREFIX}kv_blocks_max"),
    )


def told(states: Counter[State]) -> dict[str, Any]:
    """States as JSON: a row for each that was seen, how often it was in the last place."""
    rows = [[*state, times] for state, times in states.items()]
    return {"columns": [*State._fields, "times"], "rows": rows}
