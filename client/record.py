"""What was seen of one request: first as it happens (bytes and times), then read (a record).

``Exchange`` is filled on the hot path and holds raw messages; ``read_records`` turns exchanges
into records once the clock has stopped. All times are ``time.perf_counter_ns``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from client.tokens import Tokenizer
from client.workload import Prompt

_TOLERANCE = 0.01  # counts of one answer may differ by this share before it is flagged


class Status(str, Enum):
    """How a request ended.

    Answered; failed, with the server's text; broken off after some tokens; out of time; refused
    before anybody worked on it (nobody listens, or the server said so).
    """

    OK = "ok"
    ERROR = "error"
    CUT = "cut"
    TIMEOUT = "timeout"
    REFUSED = "refused"


@dataclass(slots=True)
class Exchange:
    """One request while it runs. ``messages`` are (time, raw bytes); ``failure`` if any."""

    request_id: str
    scheduled_ns: int = 0
    sent_ns: int = 0
    end_ns: int = 0
    messages: list[tuple[int, bytes]] = field(default_factory=list)
    failure: tuple[Status, str] | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """One message, read. ``text`` is UTF-8 and may end inside a character.

    ``tokens`` is the server's count of the tokens this message adds, ``None`` where it gives none;
    ``ids`` the same, counted from its token ids. ``facts`` are totals and server times in ns, under
    the names of Triton's tensors (``num_input_tokens``, ``arrival_time_ns``, …), and
    ``total_tokens``, the whole answer's count so far.
    """

    text: bytes = b""
    tokens: int | None = None
    ids: int | None = None
    final: bool = False
    error: str | None = None
    facts: Mapping[str, int] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Carries nothing; a held-back half of a character has no text, but it has tokens."""
        return not self.text and not self.tokens


@dataclass(frozen=True, slots=True)
class Record:
    """One request, over. ``chunk_ns`` are the times of its non-empty responses.

    Output tokens were counted by the server, from its token ids, and by the tokenizer. The server
    splits its share of TTFT: ``queue_ns`` = first scheduled − arrival, ``prefill_ns`` = first
    token − first scheduled (TensorRT-LLM's ``return_perf_metrics``).
    """

    prompt: Prompt
    request_id: str
    status: Status
    error: str | None
    scheduled_ns: int
    sent_ns: int
    end_ns: int
    chunk_ns: tuple[int, ...]
    answer: str
    server_tokens: int | None
    tokenizer_tokens: int
    ids_tokens: int | None = None
    server_input_tokens: int | None = None
    queue_ns: int | None = None
    prefill_ns: int | None = None
    kv_cache_reused_blocks: int | None = None

    @property
    def ok(self) -> bool:
        """Answered to its end."""
        return self.status is Status.OK

    @property
    def output_tokens(self) -> int:
        """OSL: the server's own count when it gives one, else the tokenizer's."""
        return self.tokenizer_tokens if self.server_tokens is None else self.server_tokens

    @property
    def counts_differ(self) -> bool:
        """Whether the ways of counting output tokens disagree by more than 1 %."""
        counts = [
            count
            for count in (self.server_tokens, self.ids_tokens, self.tokenizer_tokens)
            if count is not None
        ]
        return max(counts) - min(counts) > _TOLERANCE * self.output_tokens

    @property
    def network_ns(self) -> int | None:
        """Ensemble and network: TTFT without the server's queue and prefill."""
        if self.ttft_ns is None or self.queue_ns is None or self.prefill_ns is None:
            return None
        return self.ttft_ns - self.queue_ns - self.prefill_ns

    @property
    def ttft_ns(self) -> int | None:
        """TTFT = first non-empty response − sent."""
        return self.chunk_ns[0] - self.sent_ns if self.chunk_ns else None

    @property
    def latency_ns(self) -> int | None:
        """Request latency = last non-empty response − sent."""
        return self.chunk_ns[-1] - self.sent_ns if self.chunk_ns else None

    @property
    def itl_ns(self) -> float | None:
        """ITL = (latency − TTFT) / (OSL − 1).

        Undefined for OSL < 2, and for an answer that came in one piece: no interval was seen.
        """
        if self.output_tokens < 2 or len(self.chunk_ns) < 2:
            return None
        return (self.chunk_ns[-1] - self.chunk_ns[0]) / (self.output_tokens - 1)


def read_records(
    exchanges: Sequence[Exchange],
    prompts: Sequence[Prompt],
    parse: Callable[[bytes], Chunk],
    tokenizer: Tokenizer,
) -> tuple[Record, ...]:
    """Parse, join and count what was seen; exchange i belongs to prompt i."""
    readings = [_read(exchange, parse) for exchange in exchanges]
    counts = tokenizer.count([reading.answer for reading in readings], special=False)
    return tuple(
        Record(
            prompt=prompt,
            request_id=exchange.request_id,
            status=reading.status,
            error=reading.error,
            scheduled_ns=exchange.scheduled_ns,
            sent_ns=exchange.sent_ns,
            end_ns=exchange.end_ns,
            chunk_ns=reading.chunk_ns,
            answer=reading.answer,
            server_tokens=reading.server_tokens,
            tokenizer_tokens=count,
            ids_tokens=reading.ids_tokens,
            server_input_tokens=reading.facts.get("num_input_tokens"),
            queue_ns=_span(reading.facts, "arrival_time_ns", "first_scheduled_time_ns"),
            prefill_ns=_span(reading.facts, "first_scheduled_time_ns", "first_token_time_ns"),
            kv_cache_reused_blocks=reading.facts.get("kv_cache_reused_blocks"),
        )
        for exchange, prompt, reading, count in zip(
            exchanges, prompts, readings, counts, strict=True
        )
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    status: Status
    error: str | None
    chunk_ns: tuple[int, ...]
    answer: str
    server_tokens: int | None
    ids_tokens: int | None
    facts: Mapping[str, int]


def _read(exchange: Exchange, parse: Callable[[bytes], Chunk]) -> _Reading:
    stamped = [(at, parse(message)) for at, message in exchange.messages]
    status, error = _outcome(exchange, [chunk for _, chunk in stamped])
    facts: dict[str, int] = {}
    for _, chunk in stamped:
        facts.update(chunk.facts)  # totals: the last word counts
    return _Reading(
        status=status,
        error=error,
        chunk_ns=tuple(at for at, chunk in stamped if not chunk.empty),
        answer=b"".join(chunk.text for _, chunk in stamped).decode(errors="replace"),
        server_tokens=facts.get("total_tokens", _sum([chunk.tokens for _, chunk in stamped])),
        ids_tokens=_sum([chunk.ids for _, chunk in stamped]),
        facts=facts,
    )


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _span(facts: Mapping[str, int], start: str, end: str) -> int | None:
    """Nanoseconds between two of the server's times; 0 and −1 stand for none."""
    first, last = facts.get(start, 0), facts.get(end, 0)
    return last - first if 0 < first <= last else None


def _outcome(exchange: Exchange, chunks: list[Chunk]) -> tuple[Status, str | None]:
    said = next((chunk.error for chunk in chunks if chunk.error is not None), None)
    if said is not None:
        return Status.ERROR, said
    # a final flag ends the answer: what breaks after it is not the answer's failure
    if any(chunk.final for chunk in chunks):
        return Status.OK, None
    if exchange.failure is not None:
        return exchange.failure
    if not chunks:
        return Status.ERROR, "the stream ended without a response"
    return Status.OK, None


def shifted(seen: Exchange, by_ns: int) -> Exchange:
    """The same exchange on a clock that is ``by_ns`` ahead."""
    return Exchange(
        request_id=seen.request_id,
        scheduled_ns=seen.scheduled_ns + by_ns,
        sent_ns=seen.sent_ns + by_ns,
        end_ns=seen.end_ns + by_ns,
        messages=[(at + by_ns, message) for at, message in seen.messages],
        failure=seen.failure,
    )
