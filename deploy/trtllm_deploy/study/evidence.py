"""Which limit of an engine held requests back in a measurement, and what shows it. Pure.

In: measurements, with the states that the engine was seen in (``engine`` of llm_perf's server
metrics) and the engine's limits. Out: shares of the time, and the limit that binds, if one does.

A limit is reached when the next request wouldn't fit: a step with ``max_batch_size`` requests; one
whose tokens leave no room for a prompt, or with chunked context for a chunk; a KV cache without the
blocks that the next request takes (TensorRT-LLM, "Paged attention, IFB and request scheduling":
guaranteed_no_evict reserves ceil((prompt + output) / block) for each, max_utilization what a step
needs). It binds only where requests wait meanwhile, or a prompt is in the making.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from llm_perf.api import Measurement

Limit: TypeAlias = Literal["batch", "tokens", "kv"]
NAMES: Final[Mapping[Limit, str]] = {
    "batch": "max_batch_size",
    "tokens": "max_num_tokens",
    "kv": "the KV cache",
}
_QUEUES: Final[tuple[Limit, ...]] = ("batch", "kv")
_ITERATIONS: Final = "nv_trt_llm_iteration_metrics"  # the reference backend's, counted since start
_ITERATIONS_LABEL: Final = "iteration_specific_metric"
_COUNTS: Final[Mapping[Limit, str]] = {
    "batch": "at_max_batch_size",
    "tokens": "at_max_num_tokens",
    "kv": "at_kv_cache",
}
_BINDS: Final = 0.1  # of the time in which the engine had work
_OVER: Final = 1.05  # requests in flight, of the batch limit: the rest is on its way
_QUEUED: Final = 0.1  # of a request's latency


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What a step may hold, ``None`` where it isn't known.

    ``chunk``: prompts are split over steps in multiples of so many tokens, ``None``: not at all.
    ``reserves``: guaranteed_no_evict.
    """

    max_batch_size: int | None = None
    max_num_tokens: int | None = None
    tokens_per_block: int = 32
    chunk: int | None = None
    reserves: bool = True


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen of the limits. Shares are of the ``looks`` that found the engine at work.

    ``in_flight`` is Little's law on the client's figures; ``queue_ms`` the mean wait for a first
    step on the server's clock; ``shares`` how often each limit was reached with requests waiting
    for it, of the engine's steps where the server counts them; ``blamed`` those that bind, the most
    often reached first.
    """

    limits: EngineLimits
    in_flight: float | None
    looks: int
    queue_ms: float | None = None
    queue_share: float | None = None
    shares: Mapping[Limit, float] = field(default_factory=dict)
    blamed: tuple[Limit, ...] = ()

    @property
    def binds(self) -> Limit | None:
        """The limit that holds requests back, if one does."""
        return self.blamed[0] if self.blamed else None

    def __str__(self) -> str:
        """One line for the eye."""
        batch = self.limits.max_batch_size
        flight = "?" if self.in_flight is None else f"{self.in_flight:.1f}"
        said = [f"in flight {flight}{f' of {batch} in a batch' if batch else ''}"]
        if self.queue_ms is not None:
            share = f" ({self.queue_share:.0%} of the latency)" if self.queue_share else ""
            said.append(f"queue {self.queue_ms:,.1f} ms{share}")
        if self.shares:
            parts = (f"{NAMES[limit]} {share:.0%}" for limit, share in self.shares.items())
            said.append(f"steps at a limit that somebody waited for: {', '.join(parts)}")
        else:
            said.append("the server tells nothing of its steps")
        return "; ".join(said)

    @property
    def verdict(self) -> str:
        """Which limit binds, in words."""
        if self.binds is None:
            unknown = "" if self.looks else ", as far as the client can tell"
            return f"no limit was reached{unknown}"
        return f"{NAMES[self.binds]} binds"


def read_evidence(
    blocks: Sequence[Measurement],
    limits: EngineLimits,
    prompt_tokens: float,
    output_tokens: float,
) -> Evidence:
    """Judge blocks of one server.

    ``prompt_tokens`` and ``output_tokens`` are what a request brings and may ask for, on average.
    """
    in_flight = _mean(blocks, "requests_in_flight")
    latency, queue_ms = _mean(blocks, "request_latency"), _mean(blocks, "server_queue_time")
    share = queue_ms / latency if queue_ms is not None and latency else None
    states = [state for each in blocks for state in _states(each["server_metrics"] or {})]
    looks = round(sum(state["times"] for state in states))
    reached: dict[Limit, float] = {}
    waited: dict[Limit, float] = {}
    for limit in NAMES:
        seen = [
            (state["times"], bool(state["waiting"]), at)
            for state in states
            if (at := _at(limit, state, limits, prompt_tokens, output_tokens)) is not None
        ]
        if seen:
            reached[limit] = sum(times for times, _, at in seen if at) / looks
            # a prompt that fills steps is held back by them, whoever waits behind it
            held = sum(times for times, waits, at in seen if at and (waits or limit == "tokens"))
            waited[limit] = held / looks
    batch = limits.max_batch_size
    over = batch is not None and in_flight is not None and in_flight > _OVER * batch
    if over or (share is not None and share >= _QUEUED):  # in a queue that the engine doesn't count
        waited |= {limit: reached[limit] for limit in _QUEUES if limit in reached}
    if over and not looks:
        waited["batch"] = 1.0
    waited = _counted(blocks) or waited
    blamed = sorted((each for each in waited if waited[each] >= _BINDS), key=lambda x: -waited[x])
    return Evidence(limits, in_flight, looks, queue_ms, share, waited, tuple(blamed))


def _mean(blocks: Sequence[Measurement], metric: str) -> float | None:
    values = [each["metrics"].get(metric, {}).get("avg") for each in blocks]
    known = [float(each) for each in values if isinstance(each, (int, float))]
    return sum(known) / len(known) if known else None


def _counted(blocks: Sequence[Measurement]) -> dict[Limit, float]:
    """Shares of iterations in which a request waited for a limit, where the server counts them."""
    grown: dict[str, float] = {}
    for block in blocks:
        for gauge in (block["server_metrics"] or {}).get("gauges", ()):
            if gauge["name"] == _ITERATIONS:
                key = gauge["labels"].get(_ITERATIONS_LABEL, "")
                grown[key] = grown.get(key, 0.0) + gauge["max"] - gauge["min"]
    total = grown.get("total", 0.0)
    return {limit: grown.get(key, 0.0) / total for limit, key in _COUNTS.items() if total}


def _states(server: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    engine = server.get("engine") or {"columns": (), "rows": ()}
    return (dict(zip(engine["columns"], row, strict=True)) for row in engine["rows"])


def _at(
    limit: Limit, state: Mapping[str, Any], limits: EngineLimits, prompt: float, output: float
) -> bool | None:
    """Whether a state has no room for one more; ``None`` where it doesn't tell."""
    if limit == "batch":
        most = limits.max_batch_size
        return None if most is None else bool(state["scheduled"] >= most)
    if limit == "tokens":
        most = limits.max_num_tokens
        if most is None or state["tokens"] is None:
            return None
        return _tokens_full(state, limits, most, prompt)
    free, whole = state["kv_free"], state["kv_max"]
    if free is None or not whole:
        return None
    if whole == 1:  # a share
        return bool(free < 0.01)
    block = limits.tokens_per_block
    if not limits.reserves:
        return bool(free < math.ceil(prompt / block))
    return bool((state["scheduled"] + 1) * math.ceil((prompt + output) / block) > whole)


def _tokens_full(state: Mapping[str, Any], limits: EngineLimits, most: int, prompt: float) -> bool:
    if not state["context"]:  # only prompts need more than a token
        return bool(state["tokens"] >= most)
    if limits.chunk is not None:
        return bool(state["tokens"] > most - min(limits.chunk, most / 2))
    return bool(state["waiting"] and state["tokens"] + prompt > most)
