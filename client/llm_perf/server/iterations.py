"""trtllm-serve's records of iterations as a page of metrics: JSON in, Prometheus' text out.

``GET /metrics`` gives the iterations since the last read, a list of objects that reading drains
(tensorrt_llm/serve/openai_server.py, get_iteration_stats). Whoever else reads them takes them away.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from llm_perf.server.occupancy import PREFIX

_NAMES: Final = {
    "numActiveRequests": "active_requests",
    "numQueuedRequests": "queued_requests",
    "iterLatencyMS": "latency_ms",
    "inflightBatchingStats.numScheduledRequests": "scheduled_requests",
    "inflightBatchingStats.numContextRequests": "context_requests",
    "inflightBatchingStats.numGenRequests": "generation_requests",
    "inflightBatchingStats.numPausedRequests": "paused_requests",
    "inflightBatchingStats.numCtxTokens": "context_tokens",
    "kvCacheStats.freeNumBlocks": "kv_blocks_free",
    "kvCacheStats.maxNumBlocks": "kv_blocks_max",
    "kvCacheStats.usedNumBlocks": "kv_blocks_used",
    "kvCacheStats.cacheHitRate": "kv_hit_rate",
}


def as_text(page: bytes) -> bytes:
    """Gauges ``trtllm_iteration_*``, the mean of each over the iterations, and how many they are.

    Empty where the page isn't such a list.
    """
    try:
        read: Any = json.loads(page)
    except ValueError:
        return b""
    records = [each for each in read if isinstance(each, dict)] if isinstance(read, list) else []
    return "".join(_lines(records)).encode()


def _lines(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not records:
        return
    yield f"# TYPE {PREFIX}seen gauge\n{PREFIX}seen {len(records)}\n"
    for path, name in _NAMES.items():
        found = [value for each in records if (value := _number(each, path)) is not None]
        if found:
            yield f"# TYPE {PREFIX}{name} gauge\n{PREFIX}{name} {sum(found) / len(found):.6g}\n"


def _number(record: Mapping[str, Any], path: str) -> float | None:
    value: Any = record
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if good else None
