"""How a server took prompts and brought answers: streamed or not, counted how, from which cache.

Records in, a sentence for each peculiarity out. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Final

from llm_perf.record import Record

_LOOKED_AT: Final = 64  # responses of an answer: enough to see how it comes
# together came what is within 1 ms and a tenth of the answer's time per response: a fast server's
# tokens are evenly near
_TOGETHER_NS: Final = 1_000_000
_TOGETHER: Final = 0.1
_BURSTS: Final = 1 / 3  # of the gaps: one in two is in pairs
_PIECES: Final = 0.5  # of the answers


def came_in_one_piece(record: Record) -> bool:
    """Whether several tokens came as one response, so that none was seen to be the first."""
    return len(record.chunk_ns) == 1 and record.output_tokens > 1


def delivery_notes(records: Iterable[Record]) -> list[str]:
    """Say what of streaming, prompt counts and prefix caches a reader of the figures must know."""
    several = pieces = gaps = together = 0
    prompts = reused = 0
    told: Counter[int] = Counter()  # the server's prompt tokens less ours, by their number
    for record in (each for each in records if each.ok):
        several += record.output_tokens > 1
        pieces += came_in_one_piece(record)
        seen, near = _gaps(record)
        gaps, together = gaps + seen, together + near
        own, theirs = record.prompt.input_tokens, record.server_input_tokens
        if own is not None and theirs is not None:
            told[theirs - own] += 1
        known = record.cached_tokens, record.kv_cache_reused_blocks
        prompts += any(each is not None for each in known)
        reused += any(known)
    facts = (
        (
            pieces > _PIECES * several,
            f"the server did not stream: {pieces} of {several} answers of several tokens came in "
            "one piece; their TTFT is their latency, and they have no ITL",
        ),
        (
            together > _BURSTS * gaps,
            f"answers came in bursts: {together / max(gaps, 1):.0%} of the responses together "
            "with the one before (held up on the way, or made several at a time); the largest "
            "gaps are the bursts'",
        ),
        (
            reused,
            f"the server had {reused} of {prompts} prompts in its cache, as far as they begin like "
            "others: TTFT is shorter than for new ones, which --unique-prefix makes of them",
        ),
    )
    return [*_input_notes(told), *(note for true, note in facts if true)]


def _gaps(record: Record) -> tuple[int, int]:
    """How many gaps between responses were looked at, and how many of them are none."""
    times = record.chunk_ns[:_LOOKED_AT]
    if len(times) < 3:
        return 0, 0
    limit = min(_TOGETHER_NS, _TOGETHER * (times[-1] - record.sent_ns) / len(times))
    return len(times) - 1, sum(later - earlier < limit for earlier, later in pairwise(times))


def _input_notes(told: Counter[int]) -> list[str]:
    n, off = told.total(), told.total() - told[0]
    if not off:
        return []
    if len(told) == 1:
        (by,) = told
        cause = f"each by {by:+d}, as special tokens or a template make that one of them leaves out"
    else:
        low, high = min(told), max(told)
        cause = f"by {low:+d} to {high:+d}: another tokenizer, a template, or a prompt cut short"
    said = f"server and tokenizer count {off} of {n} prompts differently, {cause}; ISL is ours"
    return [said]
