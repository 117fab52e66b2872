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

    ``ends`` is how many end tokens the server counted, which no text has; without them
    ``difference`` is Σ |server − tokenizer| over the requests that the server counted, and
    ``halves`` how many of the ``mismatches`` hold bytes that are no whole character. ``tokenizer``
    is ``None`` where there was none.
    """

    source: str
    server: int
    tokenizer: int | None
    mismatches: int
    difference: int
    ends: int = 0
    halves: int = 0

    @property
    def flagged(self) -> bool:
        """Whether the counts differ by more than 1 % of the server's."""
        return self.difference > MISMATCH_LIMIT * self.server


def count_tokens(records: Sequence[Record]) -> TokenCounts:
    """Reconcile, request by request, the server's counts with the tokenizer's."""
    counted = server = tokenizer = mismatches = difference = ends = halves = alone = 0
    for record in records:
        if not record.ok:
            continue
        own, theirs = record.tokenizer_tokens, record.server_tokens
        tokenizer += own or 0
        alone += own is None
        if theirs is not None:
            counted, server = counted + 1, server + theirs
            ends += record.end_counted
        if theirs is not None and own is not None:
            differs = theirs - record.end_counted != own
            mismatches += differs
            halves += differs and "\ufffd" in record.answer
            difference += abs(theirs - record.end_counted - own)
    source = "server" if counted else "tokenizer"
    known = None if alone else tokenizer
    return TokenCounts(source, server, known, mismatches, difference, ends, halves)


def _cause(counts: TokenCounts) -> str:
    """Why they may differ, as far as the answers show it."""
    if counts.halves == counts.mismatches:
        return "bytes of characters that never became whole"
    if counts.server - counts.ends > (counts.tokenizer or 0):
        return "special tokens without text, or text that was tokenised otherwise than generated"
    return "another tokenizer, or text that was tokenised otherwise than generated"


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
        (n and counts.tokenizer is None, "ISL and OSL are the server's: there was no tokenizer"),
        (
            counts.mismatches,
            f"server and tokenizer count {counts.mismatches} of {n} answers differently "
            f"({counts.server - counts.ends} and {counts.tokenizer} tokens in all"
            + (f", over {MISMATCH_LIMIT:.0%}: see (!))" if counts.flagged else ")")
            + f": {_cause(counts)}",
        ),
        (counts.ends, f"the server counts the end token too, in {counts.ends} of {n} answers"),
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
