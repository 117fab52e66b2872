"""How long a load takes: at least, before it starts, and at its pace once answers come. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from llm_perf.duration import spell_duration
from llm_perf.load.arrivals import Closed, plan
from llm_perf.load.load import Extent, Load
from llm_perf.workload.workload import Prompt

LONG_S: Final = 600.0  # nobody waits for it by the screen
_TOKEN_S: Final = 0.002  # 500 tokens/s to one user: faster than servers of language models stream
_WAY_OUT: Final = "--duration 10m measures for ten minutes instead"


def at_least_s(load: Load, extent: Extent, prompts: Sequence[Prompt]) -> float:
    """The time that a load takes however fast the server is, in seconds; 0 where nobody knows.

    An open loop lasts until its last request is due, a closed one as long as its answers of a
    fixed length stream at 2 ms a token.
    """
    order = plan(load, extent, len(prompts), [prompt.at_s for prompt in prompts])
    if not isinstance(order, Closed):
        return order.dues[-1][1] / 1e9
    if order.total is None:
        return 0.0
    tokens = sum(prompt.min_tokens or 0 for prompt in prompts) * order.total / len(prompts)
    return tokens / order.streams * _TOKEN_S


def warning_before(load: Load, extent: Extent, prompts: Sequence[Prompt]) -> str | None:
    """What to say before a load that takes long, unless time ends it."""
    if extent.duration_s is not None or (least := at_least_s(load, extent, prompts)) < LONG_S:
        return None
    return f"{load.title}: this takes at least {spell_duration(least)}; {_WAY_OUT}"


def warning_meanwhile(done: int, total: int | None, passed_s: float) -> str | None:
    """What to say of a load that takes long at the pace of what is done."""
    if total is None or not done or (left := passed_s * (total - done) / done) < LONG_S:
        return None
    return f"at this pace it takes another {spell_duration(left)}; {_WAY_OUT}"
