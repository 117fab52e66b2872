"""A server's own records of its iterations, in the form of trtllm-serve's ``/metrics``: written,
read, and held against a prediction.

Keys: tensorrt_llm 1.2's ``IterationStats.to_json_str`` (docs of trtllm-serve). Pure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from llm_perf.errors import UserError
from trtllm_deploy.reference.simulation import Iteration

Record = Mapping[str, Any]


def record(
    *,
    number: int,
    at_ns: int,
    context: int,
    context_tokens: int,
    generation: int,
    paused: int,
    queued: int,
    max_requests: int,
    blocks: int,
    used: int,
    tokens_per_block: int,
) -> Record:
    """One iteration; ``at_ns`` is when it began, of ``perf_counter_ns``."""
    return {
        "iter": number,
        "iterLatencyMS": (time.perf_counter_ns() - at_ns) / 1e6,
        "timestamp": time.strftime("%m-%d-%Y %H:%M:%S", time.gmtime()),
        "numActiveRequests": context + generation + queued,
        "numQueuedRequests": queued,
        "maxNumActiveRequests": max_requests,
        "inflightBatchingStats": {
            "numScheduledRequests": context + generation,
            "numContextRequests": context,
            "numGenRequests": generation,
            "numPausedRequests": paused,
            "numCtxTokens": context_tokens,
            "microBatchId": 0,
        },
        "kvCacheStats": {
            "maxNumBlocks": blocks,
            "usedNumBlocks": used,
            "freeNumBlocks": blocks - used,
            "tokensPerBlock": tokens_per_block,
        },
    }


@dataclass(frozen=True, slots=True)
class Step:
    """What is known of an iteration, seen or predicted."""

    requests: int
    generation: int
    context_tokens: int
    waiting: int
    blocks: int

    @property
    def tokens(self) -> int:
        """How many tokens were computed."""
        return self.context_tokens + self.generation


def read_iterations(text: str, where: str) -> list[Step]:
    """Read a JSON list of records, or one a line; those of idle iterations are left out.

    Raises ``UserError`` for anything else.
    """
    try:
        lines = [json.loads(text)] if text.lstrip().startswith("[") else _lines(text)
        records = [each for line in lines for each in (line if isinstance(line, list) else [line])]
        steps = [_step(each) for each in records]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"holds no iteration records ({type(error).__name__}: {error})",
            where=where,
            fix="give what trtllm-serve's /metrics gave, with enable_iter_perf_stats: true",
        ) from error
    return [step for step in steps if step.requests]


def _lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _step(record: Record) -> Step:
    batch, cache = record["inflightBatchingStats"], record.get("kvCacheStats") or {}
    return Step(
        requests=int(batch["numScheduledRequests"]),
        generation=int(batch["numGenRequests"]),
        context_tokens=int(batch["numCtxTokens"]),
        waiting=int(record.get("numQueuedRequests") or 0),
        blocks=int(cache.get("usedNumBlocks") or 0),
    )


def predicted(iterations: Sequence[Iteration]) -> list[Step]:
    """A simulation's iterations in the same form."""
    return [
        Step(
            requests=each.requests,
            generation=len(each.generation),
            context_tokens=each.context_tokens,
            waiting=each.queued,
            blocks=each.used,
        )
        for each in iterations
    ]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a prediction and of what was seen."""

    name: str
    predicted: float
    seen: float

    @property
    def error(self) -> float | None:
        """(predicted − seen) / seen; ``None`` where nothing was seen."""
        return (self.predicted - self.seen) / self.seen if self.seen else None


def compare(
    ours: Sequence[Step], theirs: Sequence[Step], max_batch_size: int, max_num_tokens: int
) -> list[Figure]:
    """Hold a prediction against what a server said; both have at least one iteration."""

    def full(steps: Sequence[Step]) -> float:
        return fmean(step.requests >= max_batch_size for step in steps)

    def spent(steps: Sequence[Step]) -> float:
        return fmean(step.tokens >= max_num_tokens for step in steps)

    kinds = {
        "iterations": len,
        "requests per iteration": lambda steps: fmean(step.requests for step in steps),
        "tokens per iteration": lambda steps: fmean(step.tokens for step in steps),
        "share at max_batch_size": full,
        "share at max_num_tokens": spent,
    }
    return [Figure(name, float(of(ours)), float(of(theirs))) for name, of in kinds.items()]


def apart(ours: Sequence[Step], theirs: Sequence[Step]) -> float:
    """The mean difference of requests per iteration, iteration by iteration from the first on.

    Where one has more iterations than the other, they count in full.
    """
    length = max(len(ours), len(theirs))
    pad = [[step.requests for step in side] + [0] * (length - len(side)) for side in (ours, theirs)]
    return fmean(abs(one - other) for one, other in zip(*pad, strict=True))
