"""Which requests run in the next step when the KV cache is short, and what is known of a step.

TensorRT-LLM's two batch_scheduler_policies on transformers' scheduler. It knows nothing of tokens'
meaning, of Triton, or of who asked.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

from trtllm_deploy.reference.limits import Policy


class MaxUtilization(FIFOScheduler):  # type: ignore[misc]
    """A request starts as soon as its prompt fits; when the cache is full, others are paused.

    A paused request starts again with its answer so far as part of its prompt.
    """

    def reset(self) -> None:
        """Forget everything; called by transformers before the first step."""
        super().reset()
        self._steps = self._reused_pages = 0
        self._last: list[Any] = []  # the last step's requests: (tokens, whether of a prompt)

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        """Choose the next step's requests, and note what they are."""
        scheduled, *rest = super().schedule_batch(token_budget, cache_budget)
        for future in scheduled or ():
            self._note_start(future.state)
        self._last = [(f.query_length, f.state.generated_len() == 0) for f in scheduled or ()]
        self._steps += 1
        return scheduled, *rest

    def _note_start(self, state: Any) -> None:
        trace = state.logit_processor_kwargs["trace"]
        if trace.scheduled_ns == 0:
            trace.scheduled_ns = time.perf_counter_ns()
            size = self.cache.block_size
            trace.reused_pages = -(-state.position_offset // size)  # found by a common beginning
            trace.allocated_pages = -(-trace.prompt_length // size) - trace.reused_pages
            self._reused_pages += trace.reused_pages

    def clear_cancelled_requests(self) -> Any:
        """Free what cancelled requests hold."""
        cancelled = super().clear_cancelled_requests()
        if cancelled:
            self.block_new_requests = False  # transformers waits for one that finishes instead
        return cancelled

    def statistics(self, active: int) -> Mapping[str, Mapping[str, float]]:
        """Requests, pages and steps, as TensorRT-LLM's Prometheus series group and name them.

        ``active`` is the number of requests that the engine has; what is said of the last step is 0
        when nothing runs. May be called from any thread.
        """
        last = self._last if self.active_requests else []
        prompts = [tokens for tokens, of_a_prompt in last if of_a_prompt]
        paused = [
            each for each in list(self.waiting_requests.values()) if each._true_initial_tokens
        ]
        pages, free = self.cache.num_blocks, self.cache.get_num_free_blocks()
        return {
            "request": {
                "active": active,
                "max": self.max_requests_per_batch,
                "scheduled": len(last),
                "context": len(prompts),
                "waiting": max(0, active - len(last)),
            },
            "kv_cache_block": {
                "max": pages,
                "free": free,
                "used": pages - free,
                "tokens_per": self.cache.block_size,
                "reused": self._reused_pages,
                "fraction": (pages - free) / pages,
            },
            "inflight_batcher": {
                "total_context_tokens": sum(prompts),
                "generation_requests": len(last) - len(prompts),
                "micro_batch_id": 0,
                "paused_requests": len(paused),
            },
            "general": {"timestamp": time.time_ns() // 1000, "iteration_counter": self._steps},
        }


class GuaranteedNoEvict(MaxUtilization):
    """A request starts once there is room for its whole answer beside those that run."""

    def _get_waiting_candidates(self) -> list[Any]:
        free = self.cache.num_blocks - sum(map(self._pages, self.active_requests.values()))
        candidates = []
        for state in super()._get_waiting_candidates():
            free -= self._pages(state)
            if free < 0:
                break
            candidates.append(state)
        return candidates

    def _pages(self, state: Any) -> int:
        """The most pages that a request ever has; the scheduler asks for one ahead."""
        tokens = len(state.initial_tokens) + state.max_new_tokens
        return int(-(-tokens // self.cache.block_size) + 1)


def scheduler_type(policy: Policy) -> str:
    """The name under which transformers finds the scheduler of a policy."""
    evicts = policy == "max_utilization"
    SCHEDULER_MAPPING[policy] = MaxUtilization if evicts else GuaranteedNoEvict
    return policy
