"""Which requests run in the next step, and what is known of steps: our scheduling in transformers.

``scheduling.share_out`` decides, as TensorRT-LLM would; transformers carries it out. It knows
nothing of tokens' meaning, of Triton, or of who asked.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping
from itertools import islice
from typing import Any, ClassVar

from transformers.generation.continuous_batching.requests import RequestStatus
from transformers.generation.continuous_batching.scheduler import SCHEDULER_MAPPING, FIFOScheduler

from trtllm_deploy.reference.iterations import record
from trtllm_deploy.reference.limits import CacheSettings
from trtllm_deploy.reference.scheduling import BOUNDS, Budget, Job, Policy, Shares, share_out

_MOST_RECORDS = 100_000  # kept while nobody asks for them
_COUNTED = ("total", "waited", *(f"at_{bound}" for bound in BOUNDS))


class InFlight(FIFOScheduler):  # type: ignore[misc]
    """In-flight batching under one of TensorRT-LLM's policies.

    A request that is paused starts again with its answer so far as part of its prompt.
    """

    policy: ClassVar[Policy]
    chunked: ClassVar[bool]

    def reset(self) -> None:
        """Forget everything; called by transformers before the first step."""
        super().reset()
        self._steps = self._reused_pages = 0
        self._last: list[Any] = []  # the last step's requests: (tokens, whether of a prompt)
        self._granted: dict[str, int] = {}
        self._counts = Counter(dict.fromkeys(_COUNTED, 0))
        self._records: deque[Mapping[str, Any]] = deque(maxlen=_MOST_RECORDS)

    def schedule_batch(self, token_budget: int, cache_budget: int) -> Any:
        """Choose the next step's requests, and note what they are."""
        began_ns = time.perf_counter_ns()
        shares = self._share_out(token_budget)
        for job in shares.paused:
            self._pause(job.name)
        self._granted = {job.name: share for job, share in shares.context}
        self._granted |= dict.fromkeys((job.name for job in shares.generation), 1)
        scheduled, *rest = super().schedule_batch(token_budget, cache_budget)
        for future in scheduled or ():
            self._note_start(future.state)
        self._last = [(f.query_length, f.state.generated_len() == 0) for f in scheduled or ()]
        self._steps += 1
        if scheduled:
            self._note_step(shares, began_ns)
        return scheduled, *rest

    def _share_out(self, token_budget: int) -> Shares:
        jobs = [_job(state) for state in self.active_requests.values()]
        if not self.block_new_requests:
            # no more can start than there are slots: the rest needn't be looked at
            first = islice(self.waiting_requests_order, self.max_requests_per_batch + 1)
            jobs += [_job(self.waiting_requests[name]) for name in first]
        longest = max((job.prompt for job in jobs), default=0)
        budget = Budget(
            max_batch_size=self.max_requests_per_batch,
            max_num_tokens=token_budget,
            tokens_per_block=self.cache.block_size,
            blocks=self.cache.num_blocks,
            chunked=self.chunked or longest > token_budget,  # a step is bounded here, see limits
            policy=self.policy,
            spare=1,
        )
        return share_out(jobs, budget)

    def _pause(self, name: str) -> None:
        """Free what a request holds, and put it at the head of those that wait."""
        state = self.active_requests[name]
        again = state.create_equivalent_initial_request()
        state._status = RequestStatus.FINISHED  # as transformers' own offloading does
        self.finish_request(name)
        self.waiting_requests[name] = again
        self.waiting_requests_order.appendleft(name)

    def _process_candidates(self, candidates: list[Any], *budgets: Any) -> Any:
        chosen = [state for state in candidates if state.request_id in self._granted]
        return super()._process_candidates(chosen, *budgets)

    def _schedule_request(self, state: Any, tokens: list[int], budget: int, removed: Any) -> None:
        share = min(budget, self._granted[state.request_id])
        super()._schedule_request(state, tokens, share, removed)

    def _note_start(self, state: Any) -> None:
        trace = state.logit_processor_kwargs["trace"]
        if trace.scheduled_ns == 0:
            trace.scheduled_ns = time.perf_counter_ns()
            size = self.cache.block_size
            trace.reused_pages = -(-state.position_offset // size)  # found by a common beginning
            trace.allocated_pages = -(-trace.prompt_length // size) - trace.reused_pages
            self._reused_pages += trace.reused_pages

    def _note_step(self, shares: Shares, began_ns: int) -> None:
        self._counts["total"] += 1
        if shares.bound is not None:
            self._counts["waited"] += 1
            self._counts[f"at_{shares.bound}"] += 1
        prompts = [tokens for tokens, of_a_prompt in self._last if of_a_prompt]
        blocks, free = self.cache.num_blocks, self.cache.get_num_free_blocks()
        self._records.append(
            record(
                number=self._counts["total"],
                at_ns=began_ns,
                context=len(prompts),
                context_tokens=sum(prompts),
                generation=len(self._last) - len(prompts),
                paused=len(shares.paused),
                queued=len(self.waiting_requests),
                max_requests=self.max_requests_per_batch,
                blocks=blocks,
                used=blocks - free,
                tokens_per_block=self.cache.block_size,
            )
        )

    def drain(self) -> list[Mapping[str, Any]]:
        """The records of the steps since the last call, in the form of trtllm-serve's."""
        return [self._records.popleft() for _ in range(len(self._records))]

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
            "iteration": dict(self._counts),
            "general": {"timestamp": time.time_ns() // 1000, "iteration_counter": self._steps},
        }


def _job(state: Any) -> Job:
    waiting = state.status == RequestStatus.PENDING
    read = len(state.initial_tokens) - len(state.remaining_prefill_tokens)
    return Job(
        name=state.request_id,
        prompt=len(state.initial_tokens),
        output=state.max_new_tokens,
        read=0 if waiting else read,
        made=state.generated_len(),
        held=state.allocated_blocks,
    )


def scheduler_type(cache: CacheSettings) -> str:
    """The name under which transformers finds the scheduler for these settings."""
    policy, chunked = cache.batch_scheduler_policy, cache.enable_chunked_context
    name = f"{policy}{'_chunked' if chunked else ''}"
    SCHEDULER_MAPPING[name] = type(name, (InFlight,), {"policy": policy, "chunked": chunked})
    return name
