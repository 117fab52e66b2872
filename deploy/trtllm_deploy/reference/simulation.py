"""The scheduler without a model: requests and budgets in, iterations out. Pure; time is counted in
iterations, all requests are there at the start or follow one another in a closed loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from llm_perf.errors import UserError
from trtllm_deploy.reference.scheduling import Bound, Budget, Job, share_out

_NAMED = 64  # of those that wait


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: tokens of its prompt and of its answer."""

    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class Part:
    """What an iteration reads of a prompt, ``begin`` to ``end`` of ``prompt`` tokens."""

    name: str
    begin: int
    end: int
    prompt: int


@dataclass(frozen=True, slots=True)
class Iteration:
    """One step: requests by name, KV blocks as it ends, and what kept others out.

    ``waiting`` are the first of ``queued``. ``reserved`` are the blocks that those who run may come
    to need. ``holding`` ended an iteration ago and leave their slot now (the overlap scheduler).
    """

    context: tuple[Part, ...]
    generation: tuple[str, ...]
    waiting: tuple[str, ...]
    queued: int
    ended: tuple[str, ...]
    paused: tuple[str, ...]
    holding: tuple[str, ...]
    used: int
    reserved: int
    bound: Bound | None
    rounded: int

    @property
    def requests(self) -> int:
        """How many requests take part."""
        return len(self.context) + len(self.generation)

    @property
    def context_tokens(self) -> int:
        """How many tokens of prompts are read."""
        return sum(part.end - part.begin for part in self.context)

    @property
    def tokens(self) -> int:
        """How many tokens are computed."""
        return self.context_tokens + len(self.generation)


def simulate(
    asked: Sequence[Asked], budget: Budget, *, overlap: bool = False, in_flight: int | None = None
) -> Iterator[Iteration]:
    """Run requests named "1", "2", … to their end; at most ``in_flight`` are there at a time.

    ``overlap``: as PyTorch's overlap scheduler, which launches a step before it reads the last
    one's result, so that a slot and its blocks are free one step later (an assumption; engines of
    trtllm-build don't). The last token of a prompt's reading is the answer's first.
    Raises ``UserError`` for a request that can never run.
    """
    _refuse_what_never_runs(asked, budget)
    coming = deque(Job(str(n), each.prompt, each.output) for n, each in enumerate(asked, 1))
    there: list[Job] = []
    lingering: list[Job] = []
    while coming or there:
        room = len(coming) if in_flight is None else min(len(coming), in_flight - len(there))
        # no more can start in a step than there are slots: the rest needn't be looked at
        look = budget.max_batch_size + 1 - sum(not job.held for job in there)
        for _ in range(min(room, look)):
            there.append(coming.popleft())
            room -= 1
        kept = sum(job.held for job in lingering)
        shares = share_out(there, budget, len(lingering), kept)
        if not (shares.context or shares.generation or lingering):  # paused, and too long by now
            raise UserError("no request can go on", fix="raise --max-num-tokens or --kv-blocks")
        after = {job.name: _read(job, share, budget) for job, share in shares.context}
        after |= {job.name: _advance(job, budget) for job in shares.generation}
        after |= {job.name: _thrown_out(job) for job in shares.paused}
        there = [after.get(job.name, job) for job in there]
        ended = [job for job in there if job.made >= job.output]
        there = [job for job in there if job.made < job.output]
        started = [job for job in there if job.held]
        waiting = [job.name for job in there if not job.held]
        parts = [
            Part(job.name, job.read, job.read + share, job.prompt) for job, share in shares.context
        ]
        yield Iteration(
            context=tuple(parts),
            generation=tuple(job.name for job in shares.generation),
            waiting=tuple(
                [*waiting, *(job.name for job in islice(coming, min(room, _NAMED)))][:_NAMED]
            ),
            queued=len(waiting) + room,
            ended=tuple(job.name for job in ended),
            paused=tuple(job.name for job in shares.paused),
            holding=tuple(job.name for job in lingering),
            used=sum(job.held for job in (*started, *ended)) + kept,
            reserved=sum(budget.most_blocks(job) for job in (*started, *ended)) + kept,
            bound=shares.bound,
            rounded=shares.rounded,
        )
        lingering = ended if overlap else []


def _read(job: Job, share: int, budget: Budget) -> Job:
    read = job.read + share
    made = int(read == job.prompt)
    return replace(job, read=read, made=made, held=budget.blocks_of(job.prompt + made))


def _advance(job: Job, budget: Budget) -> Job:
    made = job.made + 1
    return replace(job, made=made, held=max(job.held, budget.blocks_of(job.prompt + made)))


def _thrown_out(job: Job) -> Job:
    """It starts again, with its answer so far as part of its prompt."""
    return Job(job.name, job.prompt + job.made, job.output - job.made)


def _refuse_what_never_runs(asked: Sequence[Asked], budget: Budget) -> None:
    for number, each in enumerate(asked, 1):
        where = f"request {number} ({each.prompt}:{each.output})"
        whole = not budget.chunked or budget.max_num_tokens < budget.tokens_per_block
        if whole and each.prompt > budget.max_num_tokens:
            raise UserError(
                f"its prompt never fits into {budget.max_num_tokens} tokens at once",
                where=where,
                fix="raise --max-num-tokens"
                if budget.chunked
                else "raise --max-num-tokens, or add --chunked-context",
            )
        need = budget.most_blocks(Job("", each.prompt, each.output))
        if budget.blocks is not None and need > budget.blocks:
            raise UserError(
                f"it needs {need} KV blocks, of {budget.blocks}",
                where=where,
                fix="raise --kv-blocks, or ask for less",
            )
