"""What is in flight and what is finished, on one event loop: a number in, its exchange kept.

Whoever offers the load asks here, one request at a time; progress, the journal and the limit of
failures are served from here. Knows no schedule.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial

from llm_perf.load.journal import Journal
from llm_perf.load.load import Conditions
from llm_perf.load.progress import Progress
from llm_perf.load.turns import Turns
from llm_perf.record import Exchange, Status
from llm_perf.transports import Transport
from llm_perf.workload.fresh import prompt_for
from llm_perf.workload.workload import Prompt

_TTFTS_SHOWN = 500
_TOKEN_BYTES = 1024  # what protocols and logprobs put around a token: vLLM's chunks have 350
_TOKENS_AT_MOST = 2**17  # of one answer that are believed to come
_SAMPLE = 16  # messages read for a glimpse: some 50 µs


class Requests:
    """Asks, and keeps what came of it: in the journal, without one in ``finished``.

    ``stop`` gets a result when the job's ``stop_after_failures`` requests have failed, and may get
    one from elsewhere; ``enough`` says why no more is to be asked. ``held`` are the numbers that
    were due and had to wait for room.
    """

    def __init__(
        self,
        transport: Transport,
        prompts: Sequence[Prompt],
        conditions: Conditions,
        stop: asyncio.Future[str],
        journal: Journal | None = None,
    ) -> None:
        self.stop = stop
        self.finished: dict[int, Exchange] = {}
        self.held: list[int] = []
        self.enough: str | None = None
        self.warmups = 0
        self._transport = transport
        self._prompts = prompts
        self._conditions = conditions
        self._journal = journal
        self._turns = Turns()
        self._ready: dict[int, tuple[str, bytes]] = {}
        self._in_flight: dict[int, Exchange] = {}
        self._done = self._broken = self._responses = 0
        self._refused_since_ns: int | None = None
        self._ttfts: deque[int] = deque(maxlen=_TTFTS_SHOWN)
        self._latest: Exchange | None = None

    def prepare(self, numbers: Iterable[int]) -> None:
        """Serialize these requests ahead; raises ``UserError`` for what can't be asked."""
        for number in numbers:
            self._ready[number] = self._request(number)

    def _request(self, number: int) -> tuple[str, bytes]:
        request_id = str(uuid.uuid4())
        tag = request_id if self._conditions.unique_prefix else None
        prompt = prompt_for(self._prompts, number, tag)
        return request_id, self._transport.dialect.request(prompt, request_id)

    async def ask(self, number: int, due_ns: int) -> Exchange:
        """Send request ``number``, which was due at ``due_ns``, and wait for its end.

        Its answer is read and kept when nobody waits to send; ``catch_up`` sees to the last ones.
        One that failed is at once: it may end the run.
        """
        await self._turns.turn()
        ready = self._ready.pop(number, None)
        request_id, body = ready or self._request(number)
        seen = self._in_flight[number] = Exchange(request_id, due_ns, room=self._room(number))
        try:
            await self._transport.stream(body, seen, self._conditions.request_timeout_s)
        finally:
            del self._in_flight[number]
        if seen.failure is not None or self._conditions.stop_after_failures is not None:
            self._keep(number, seen)
        else:
            self._turns.later(partial(self._keep, number, seen))
        return seen

    def catch_up(self) -> None:
        """Read and keep all answers that have ended."""
        self._turns.catch_up()

    def _keep(self, number: int, seen: Exchange) -> None:
        try:
            self._transport.read(seen)
            self._note(number, seen)
        except Exception as error:  # a fault of ours: no request is lost without a word
            if not self.stop.done():
                self.stop.set_exception(error)

    def _room(self, number: int) -> int:
        """How many bytes of its answer are kept."""
        tokens = self._prompts[number % len(self._prompts)].max_tokens
        return self._conditions.max_answer_bytes + _TOKEN_BYTES * min(tokens, _TOKENS_AT_MOST)

    def _note(self, number: int, seen: Exchange) -> None:
        self._responses += len(seen.messages)
        if seen.messages:
            self._ttfts.append(seen.messages[0][0] - seen.sent_ns)
            self._latest = seen
        failed = seen.failure is not None or any(
            self._transport.dialect.parse(message).error is not None
            for _, message in seen.messages[-2:]  # an error is the last word, but for a final flag
        )
        self._broken += failed
        why = self._why_to_stop(seen)
        if why is not None and not self.stop.done():
            self.stop.set_result(why)
        if number < 0:
            self.warmups += 1
            return
        self._done += 1
        if self._journal:
            self._journal.note(number, seen)
        else:
            self.finished[number] = seen

    def _why_to_stop(self, seen: Exchange) -> str | None:
        """Too many have failed, or for too long nothing came but refusals."""
        limit = self._conditions.stop_after_failures
        if limit is not None and self._broken >= limit:
            return f"{self._broken} requests failed"
        status, text = seen.failure or (None, "")
        since = self._refused_since_ns or seen.end_ns
        if status is not Status.REFUSED:
            # a timeout is no sign of life, nor one of death; an answer is read after its end
            if status is not Status.TIMEOUT and seen.end_ns >= since:
                self._refused_since_ns = None
            return None
        self._refused_since_ns = since
        if seen.end_ns - since < self._conditions.give_up_after_s * 1e9:
            return None
        return f"for {(seen.end_ns - since) / 1e9:.0f} s nothing but refusals: {text}"

    def look(self, total: int | None) -> Progress:
        """How far it is of ``total``; called on the event loop's thread."""
        sample = self._latest.messages[:_SAMPLE] if self._latest else []
        counts = [self._transport.dialect.parse(message).tokens for _, message in sample]
        known = [count for count in counts if count is not None]
        return Progress(
            done=self._done,
            total=total,
            broken=self._broken,
            in_flight=len(self._in_flight),
            responses=self._responses + sum(len(e.messages) for e in self._in_flight.values()),
            tokens_per_response=sum(known) / len(sample) if known else None,
            ttfts_ns=tuple(self._ttfts),
        )
