"""Who takes part in the next iteration: TensorRT-LLM's in-flight batching as a function of values.

Requests as they stand and the budgets in, shares of an iteration out. Two stages, as in
TensorRT-LLM: the capacity scheduler picks those whose KV blocks there are, the micro-batch
scheduler shares out the iteration's tokens, a request that generates one each, then prompts. The
same code drives the reference engine and, without a model, ``explain scheduling``.
Sources: tensorrt_llm/_torch/pyexecutor/scheduler.py (1.3.0rc3: PyMicroBatchScheduler,
GuaranteedNoEvictPolicy, MaxUtilizationPolicy), docs/features/paged-attention-ifb-scheduler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Policy = Literal["guaranteed_no_evict", "max_utilization", "static_batch"]
Bound = Literal["max_batch_size", "max_num_tokens", "kv_cache", "static_batch"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
BOUNDS: tuple[Bound, ...] = get_args(Bound)


@dataclass(frozen=True, slots=True)
class Budget:
    """The limits of an iteration. Lengths in tokens, ``blocks`` of the KV cache (``None``: any).

    With ``chunked`` a prompt may be read in parts, all but the last whole blocks. ``spare`` is how
    many blocks an engine asks for beyond what a request fills.
    """

    max_batch_size: int
    max_num_tokens: int
    tokens_per_block: int = 32
    blocks: int | None = None
    chunked: bool = False
    policy: Policy = "guaranteed_no_evict"
    spare: int = 0

    def blocks_of(self, tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-tokens // self.tokens_per_block)

    def most_blocks(self, job: Job) -> int:
        """How many a request has in the end, if it generates all that it may."""
        return self.blocks_of(job.prompt + job.output) + self.spare


@dataclass(frozen=True, slots=True)
class Job:
    """A request as it stands: ``read`` tokens of its prompt, ``made`` of at most ``output``.

    ``held`` are its KV blocks; who holds none hasn't started.
    """

    name: str
    prompt: int
    output: int
    read: int = 0
    made: int = 0
    held: int = 0

    @property
    def generating(self) -> bool:
        """Whether its prompt is read."""
        return self.read >= self.prompt


@dataclass(frozen=True, slots=True)
class Shares:
    """An iteration: who reads how many tokens of its prompt, who generates, who is thrown out.

    ``bound`` is what kept the first request that got less than it could use; ``rounded`` how many
    tokens stayed free because a part of a prompt is whole blocks.
    """

    context: tuple[tuple[Job, int], ...]
    generation: tuple[Job, ...]
    paused: tuple[Job, ...] = ()
    bound: Bound | None = None
    rounded: int = 0


def share_out(jobs: Sequence[Job], budget: Budget, lingering: int = 0, kept: int = 0) -> Shares:
    """Share out the next iteration among ``jobs``, which are in the order of their arrival.

    ``lingering`` requests have ended, but still have their slots, and ``kept`` blocks.
    """
    fit = _max_utilization if budget.policy == "max_utilization" else _no_evict
    fitting, paused, bound = fit(jobs, budget, budget.max_batch_size - lingering, kept)
    context, generation, less, rounded = _micro_batch(fitting, budget)
    return Shares(tuple(context), tuple(generation), tuple(paused), less or bound, rounded)


_Fitting = tuple[list[Job], list[Job], Bound | None]


def _no_evict(jobs: Sequence[Job], budget: Budget, slots: int, kept: int) -> _Fitting:
    """Who started goes on; who waits starts with all blocks it may ever need set aside.

    A static batch takes nobody in while anybody generates.
    """
    running = [job for job in jobs if job.generating][: max(slots, 0)]
    free = None
    if budget.blocks is not None:
        held = sum(job.held for job in jobs) + kept
        free = budget.blocks - held - sum(budget.most_blocks(job) - job.held for job in running)
    fitting = list(running)
    reading = [job for job in jobs if not job.generating]
    if budget.policy == "static_batch" and running:
        return fitting, [], "static_batch" if reading else None
    for job in reading:
        if len(fitting) >= slots:
            return fitting, [], "max_batch_size"
        more = budget.most_blocks(job) - job.held
        if free is not None and more > free:
            return fitting, [], "kv_cache"
        free = None if free is None else free - more
        fitting.append(job)
    return fitting, [], None


def _max_utilization(jobs: Sequence[Job], budget: Budget, slots: int, kept: int) -> _Fitting:
    """Whoever has room for this one step takes part; for the older ones the youngest is paused."""
    fitting: list[Job] = []
    paused: list[Job] = []
    left = list(jobs)
    free = None
    if budget.blocks is not None:
        free = budget.blocks - kept - sum(job.held for job in jobs)
    while len(fitting) < len(left):
        job = left[len(fitting)]
        more = _next_blocks(job, budget)
        fits = free is None or more <= free
        if len(fitting) < slots and fits:
            free = None if free is None else free - more
            fitting.append(job)
            continue
        bound: Bound = "max_batch_size" if len(fitting) >= slots else "kv_cache"
        last = next((n for n in range(len(left) - 1, len(fitting) - 1, -1) if left[n].held), None)
        if last is None:
            return fitting, paused, bound
        paused.append(left[last])
        free = None if free is None else free + left[last].held
        del left[last:]
    return fitting, paused, "kv_cache" if paused else None


def _next_blocks(job: Job, budget: Budget) -> int:
    """How many blocks more a request needs for the step: of its whole prompt when it starts."""
    if not job.generating and job.held:
        return 0
    spare = 0 if job.held else budget.spare
    return max(0, budget.blocks_of(job.prompt + job.made + 1) + spare - job.held)


def _micro_batch(
    jobs: Sequence[Job], budget: Budget
) -> tuple[list[tuple[Job, int]], list[Job], Bound | None, int]:
    """Share out the tokens, first come, first served."""
    context: list[tuple[Job, int]] = []
    generation: list[Job] = []
    free = budget.max_num_tokens
    for job in (each for each in jobs if each.generating):
        if free == 0:
            return context, generation, "max_num_tokens", 0
        generation.append(job)
        free -= 1
    bound: Bound | None = None
    rounded = False
    for job in (each for each in jobs if not each.generating):
        share = rest = job.prompt - job.read
        if rest > free:
            bound = "max_num_tokens"
            if not budget.chunked:
                break
            share = free // budget.tokens_per_block * budget.tokens_per_block
            rounded = rounded or share < free
        if share:
            context.append((job, share))
            free -= share
    return context, generation, bound, free if rounded else 0
