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
    answered = [record for record in records if record.ok]
    pairs = [(r.server_tokens, r.tokenizer_tokens) for r in answered if r.server_tokens is not None]
    return TokenCounts(
        source="server" if pairs else "tokenizer",
        server=sum(server for server, _ in pairs),
        tokenizer=sum(record.tokenizer_tokens for record in answered),
        mismatches=sum(server != own for server, own in pairs),
        difference=sum(abs(server - own) for server, own in pairs),
    )


def failure_notes(records: Sequence[Record]) -> list[str]:
    """Say how many requests failed in which way, and what the first was told."""
    failed = [record for record in records if not record.ok]
    if not failed:
        return []
    kinds = Counter(record.status for record in failed)
    told = ", ".join(f"{kinds[status]} {status.value}" for status in Status if kinds[status])
    return [f"failed requests: {told}; the first: {failed[0].error}"]


def answer_notes(records: Sequence[Record]) -> list[str]:
    """Say what is odd about the answers and their counts."""
    answered = [record for record in records if record.ok]
    n, counts = len(answered), count_tokens(records)
    free = [record for record in answered if not record.prompt.fixed_length]
    limited = sum(record.output_tokens >= record.prompt.max_tokens for record in free)
    fixed = [record for record in answered if record.prompt.fixed_length]
    disobeyed = [record for record in fixed if record.output_tokens != record.prompt.max_tokens]
    broken = sum("\ufffd" in record.answer for record in answered)
    echoes = sum(record.answer.startswith(record.prompt.text) for record in answered)
    first = next((f"{r.output_tokens} of {r.prompt.max_tokens}" for r in disobeyed), None)
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
            f"{len(disobeyed)} of {n} answers haven't the length asked for (first: {first})",
        ),
        (broken, f"{broken} of {n} answers hold U+FFFD: characters were cut in two"),
        (
            n and echoes == n,
            "all answers begin with their prompt: the server echoes its input, and counts it",
        ),
    )
    return [note for true, note in facts if true]
