"""What a reader of the figures should know: records in, a sentence for each peculiarity out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from llm_perf.record import Record, Status

MISMATCH_LIMIT: Final = 0.01


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Output tokens of the answered requests, counted both ways, and who disagrees.

    ``difference`` is Σ |server − tokenizer| over the requests that the server counted.
    """

    source: str
    server: int
    tokenizer: int
    mismatches: int
    difference: int

    @property
    def flagged(self) -> bool:
        """Whether the counts differ by more than 1 % of the server's."""
        return self.difference > MISMATCH_LIMIT * self.server


def count_tokens(records: Sequence[Record]) -> TokenCounts:
    """Reconcile, request by request, the server's counts with the tokenizer's."""
    counted = server = tokenizer = mismatches = difference = 0
    for record in records:
        if not record.ok:
            continue
        own, theirs = record.tokenizer_tokens, record.server_tokens
        tokenizer += own
        if theirs is not None:
            counted, server = counted + 1, server + theirs
            mismatches += theirs != own
            difference += abs(theirs - own)
    source = "server" if counted else "tokenizer"
    return TokenCounts(source, server, tokenizer, mismatches, difference)


def failure_notes(records: Sequence[Record]) -> list[str]:
    """Say how many requests failed in which way, and what the first was told."""
    first = next((record for record in records if not record.ok), None)
    if first is None:
        return []
    kinds = Counter(record.status for record in records if not record.ok)
    told = ", ".join(f"{kinds[status]} {status.value}" for status in Status if kinds[status])
    return [f"failed requests: {told}; the first: {first.error}"]


def answer_notes(records: Sequence[Record]) -> list[str]:
    """Say what is odd about the answers and their counts."""
    counts = count_tokens(records)
    n = limited = disobeyed = broken = echoes = 0
    first = None
    for record in records:
        if not record.ok:
            continue
        tokens, limit = record.output_tokens, record.prompt.max_tokens
        n += 1
        broken += "\ufffd" in record.answer
        echoes += record.answer.startswith(record.prompt.text)
        if not record.prompt.fixed_length:
            limited += tokens >= limit
        elif tokens != limit:
            disobeyed += 1
            first = first or f"{tokens} of {limit}"
    facts = (
        (n and counts.source == "tokenizer", "output tokens counted by the tokenizer"),
        (
            counts.mismatches,
            f"server and tokenizer count {counts.mismatches} of {n} answers differently "
            f"({counts.server} and {counts.tokenizer} tokens in all"
            + (f", over {MISMATCH_LIMIT:.0%}: see (!))" if counts.flagged else ")"),
        ),
        (limited, f"{limited} of {n} answers reached max_tokens: the run is not EOS-terminated"),
        (
            first,
            f"{disobeyed} of {n} answers haven't the length asked for (first: {first})",
        ),
        (broken, f"{broken} of {n} answers hold U+FFFD: characters were cut in two"),
        (
            n and echoes == n,
            "all answers begin with their prompt: the server echoes its input, and counts it",
        ),
    )
    return [note for true, note in facts if true]
