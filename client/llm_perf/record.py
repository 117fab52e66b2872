"""What was seen of one request: first as it happens (bytes and times), then read (a record).

``Exchange`` is filled on the hot path and holds raw messages; ``read_records`` turns exchanges
into records once the clock has stopped. All times are ``time.perf_counter_ns``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

from llm_perf.workload.tokens import Tokenizer
from llm_perf.workload.workload import Prompt

_AT_ONCE = 10_000  # messages
_MOST_TOKENS = 2**24
_MOST = 2**63  # a fact that is no 64-bit number is none
UNCOUNTED = (
    "the server counts no tokens, and there is no tokenizer (--tokenizer-path) to count them"
)


class Status(str, Enum):
    """How a request ended.

    Answered; failed, with the server's text; broken off after some tokens; out of time; refused
    before anybody worked on it (nobody listens, or the server said so); refused with a word on
    when to come again (HTTP 429 or 503 with Retry-After); longer than is kept of an answer;
    ended as an answer does, with no text and no token in it.
    """

    OK = "ok"
    ERROR = "error"
    CUT = "cut"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    THROTTLED = "throttled"
    OVERLONG = "overlong"
    EMPTY = "empty"


@dataclass(slots=True)
class Exchange:
    """One request while it runs. ``messages`` are (time, raw bytes); ``failure`` if any.

    Transports take at most ``room`` bytes of an answer and leave the rest (``overflow``).
    ``retry_after_s`` is what a THROTTLED one was told.
    """

    request_id: str
    scheduled_ns: int = 0
    sent_ns: int = 0
    end_ns: int = 0
    messages: list[tuple[int, bytes]] = field(default_factory=list)
    failure: tuple[Status, str] | None = None
    room: int = sys.maxsize
    retry_after_s: float | None = None

    def overflow(self, at_ns: int) -> None:
        """End it here: more came than is kept of an answer."""
        self.end_ns = at_ns
        self.failure = Status.OVERLONG, "the answer is longer than is kept of one; the rest is left"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One message, read."""

    text: bytes = b""  # UTF-8, may end inside a character
    tokens: int | None = None  # the server's count of the tokens this message adds
    final: bool = False
    error: str | None = None
    # a token that has no text: half a character held back, or, with ``final``, the end token
    silent: bool = False
    acts: bool = False  # calls a tool: an answer without text
    # totals and server times in ns, under the names of Triton's tensors (arrival_time_ns,
    # num_input_tokens, …), and total_tokens, the whole answer's count so far
    facts: Mapping[str, int] = field(default_factory=dict)

    @property
    def speaks(self) -> bool:
        """Carries tokens for sure: text, or the server's count of some without any."""
        return bool(self.text or self.tokens)


@dataclass(frozen=True, slots=True)
class Record:
    """One request, over. ``chunk_ns`` are the times of the responses that carry counted tokens.

    Output tokens were counted by the server and by the tokenizer, as far as there are both;
    ``server_input_tokens`` is the server's count of the prompt, ``cached_tokens`` of those of it
    that the server had computed before; ``end_counted`` says that the
    server counts the end token, whose response is then the last of ``chunk_ns``. ``first_text_ns``
    is the time of the first response with text. The server splits its share of TTFT: ``queue_ns`` =
    first scheduled − arrival, ``prefill_ns`` = first token − first scheduled (TensorRT-LLM's
    ``return_perf_metrics``).
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
    tokenizer_tokens: int | None
    queue_ns: int | None = None
    prefill_ns: int | None = None
    kv_cache_reused_blocks: int | None = None
    first_text_ns: int | None = None
    end_counted: bool = False
    server_input_tokens: int | None = None
    cached_tokens: int | None = None

    @property
    def ok(self) -> bool:
        """Answered to its end."""
        return self.status is Status.OK

    @property
    def output_tokens(self) -> int:
        """OSL: the server's own count when it gives one, else the tokenizer's.

        0 where there is neither, which no answered request has.
        """
        return (self.tokenizer_tokens or 0) if self.server_tokens is None else self.server_tokens

    @property
    def input_tokens(self) -> int | None:
        """ISL: the tokenizer's count of the prompt, without a tokenizer the server's, if any."""
        own = self.prompt.input_tokens
        return self.server_input_tokens if own is None else own

    @property
    def network_ns(self) -> int | None:
        """Ensemble and network: TTFT without the server's queue and prefill."""
        if self.ttft_ns is None or self.queue_ns is None or self.prefill_ns is None:
            return None
        return self.ttft_ns - self.queue_ns - self.prefill_ns

    @property
    def ttft_ns(self) -> int | None:
        """TTFT = first token − sent."""
        return self.chunk_ns[0] - self.sent_ns if self.chunk_ns else None

    @property
    def ttft_text_ns(self) -> int | None:
        """Time to first text = first response with text − sent."""
        return None if self.first_text_ns is None else self.first_text_ns - self.sent_ns

    @property
    def latency_ns(self) -> int | None:
        """Request latency = last token − sent."""
        return self.chunk_ns[-1] - self.sent_ns if self.chunk_ns else None

    @property
    def itl_ns(self) -> float | None:
        """ITL = (last token − first token) / (OSL − 1): span and divisor are of the same tokens.

        Undefined for OSL < 2, and for an answer that came in one piece: no interval was seen.
        """
        if self.output_tokens < 2 or len(self.chunk_ns) < 2:
            return None
        return (self.chunk_ns[-1] - self.chunk_ns[0]) / (self.output_tokens - 1)

    @property
    def gaps_ns(self) -> list[int]:
        """Times between neighbouring responses with tokens."""
        return [later - earlier for earlier, later in pairwise(self.chunk_ns)]

    @property
    def since_due_ns(self) -> list[int]:
        """Of each response with tokens its time since the request was due."""
        return [at - self.scheduled_ns for at in self.chunk_ns]


def read_records(
    asked: Iterable[tuple[Prompt, Exchange]],
    parse: Callable[[bytes], Chunk],
    tokenizer: Tokenizer | None,
) -> Iterator[Record]:
    """Parse, join and count what was seen, some at a time.

    Without a tokenizer an answer that the server doesn't count is an error.
    """
    for batch in _batches(asked):
        chunks = [[parse(message) for _, message in seen.messages] for _, seen in batch]
        answers = [b"".join(each.text for each in part).decode(errors="replace") for part in chunks]
        counts = tokenizer.count(answers, special=False) if tokenizer else [None] * len(batch)
        for (prompt, seen), part, answer, count in zip(batch, chunks, answers, counts, strict=True):
            yield _record(prompt, seen, part, answer, count)


def _batches(
    pairs: Iterable[tuple[Prompt, Exchange]],
) -> Iterator[list[tuple[Prompt, Exchange]]]:
    """Group what is read and counted together: few enough messages to have them all in memory."""
    batch, messages = [], 0
    for prompt, seen in pairs:
        batch.append((prompt, seen))
        messages += 1 + len(seen.messages)
        if messages >= _AT_ONCE:
            yield batch
            batch, messages = [], 0
    yield batch


def _record(
    prompt: Prompt, seen: Exchange, chunks: Sequence[Chunk], answer: str, count: int | None
) -> Record:
    status, error = _outcome(seen, chunks)
    facts: dict[str, int] = {}
    for chunk in chunks:
        facts.update(chunk.facts)  # totals: the last word counts
    facts = {name: value for name, value in facts.items() if -_MOST <= value < _MOST}
    tokens = [chunk.tokens for chunk in chunks if chunk.tokens is not None]
    counted = _believed(facts.get("total_tokens", sum(tokens) if tokens else None))
    stamped = [(at, chunk) for (at, _), chunk in zip(seen.messages, chunks, strict=True)]
    chunk_ns, end_counted = _token_times(stamped, counted, count)
    if status is Status.OK and not (chunk_ns or counted or any(chunk.acts for chunk in chunks)):
        status, error = Status.EMPTY, "the answer is empty: it ended without a text or a token"
    if status is Status.OK and counted is None and count is None:
        status, error = Status.ERROR, UNCOUNTED
    return Record(
        prompt=prompt,
        request_id=seen.request_id,
        status=status,
        error=error,
        scheduled_ns=seen.scheduled_ns,
        sent_ns=seen.sent_ns,
        end_ns=seen.end_ns,
        chunk_ns=chunk_ns,
        answer=answer,
        server_tokens=counted,
        tokenizer_tokens=count,
        queue_ns=_span(facts, "arrival_time_ns", "first_scheduled_time_ns"),
        prefill_ns=_span(facts, "first_scheduled_time_ns", "first_token_time_ns"),
        kv_cache_reused_blocks=facts.get("kv_cache_reused_blocks"),
        first_text_ns=next((at for at, chunk in stamped if chunk.text), None),
        end_counted=end_counted,
        server_input_tokens=_believed(facts.get("num_input_tokens")),
        cached_tokens=_believed(facts.get("cached_tokens")),
    )


def _believed(count: int | None) -> int | None:
    """A count of the server's; what is below none, or more than any model takes, is none."""
    return count if count is not None and 0 <= count <= _MOST_TOKENS else None


def _token_times(
    stamped: Sequence[tuple[int, Chunk]], counted: int | None, tokenizer_tokens: int | None
) -> tuple[tuple[int, ...], bool]:
    """The times of the responses with counted tokens, and whether the end token is one of them.

    A response that is silent amid an answer holds a token back, unless there are more of them than
    the server counts. The silent one that ends it has the end token; whether that is counted shows
    in the count: it is one more than there are responses with a token, or, where a response brings
    several, more than the text has.
    """
    spoken = [at for at, chunk in stamped if chunk.speaks]
    held = [at for at, chunk in stamped if chunk.silent and not (chunk.final or chunk.speaks)]
    if counted is None or len(spoken) + len(held) <= counted:
        spoken = sorted(spoken + held)
    end = [at for at, chunk in stamped if chunk.silent and chunk.final and not chunk.speaks]
    if counted is None or not end or counted <= len(spoken):
        return tuple(spoken), False
    more = tokenizer_tokens is not None and counted > tokenizer_tokens
    if counted == len(spoken) + 1 or more:
        return (*spoken, end[0]), True
    return tuple(spoken), False


def _span(facts: Mapping[str, int], start: str, end: str) -> int | None:
    """Nanoseconds between two of the server's times; 0 and −1 stand for none."""
    first, last = facts.get(start, 0), facts.get(end, 0)
    return last - first if 0 < first <= last else None


def _outcome(exchange: Exchange, chunks: Sequence[Chunk]) -> tuple[Status, str | None]:
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
