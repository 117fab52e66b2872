"""The table of ``tune``, and what its evidence says of a change."""

from __future__ import annotations

from typing import Any

from llm_perf.api import Concurrency
from trtllm_deploy.study.blocks import Offer
from trtllm_deploy.study.evidence import EngineLimits, Evidence, Limit
from trtllm_deploy.study.space import Point, Setting, Space
from trtllm_deploy.study.tune import Tuned
from trtllm_deploy.study.tuned_table import HEADS, remarks, rows
from trtllm_deploy.study.tuner import Ending, Found, Seen

SPACE = Space((Setting("max_batch_size", (64, 512)),))
SMALL, LARGE = (Point((("max_batch_size", size),)) for size in (64, 512))


def blocks(speed: float) -> list[Any]:
    return [
        {
            "repetition": number,
            "score": {"value": 0.9},
            "metrics": {
                "output_token_throughput": {"avg": speed + number},
                "time_to_first_token": {"p95": 100.0},
                "inter_token_latency": {"avg": 10.0},
            },
        }
        for number in range(4)
    ]


def tuned(blamed: tuple[Limit, ...], speed: float = 120) -> Tuned:
    """64 against 512: with 30 requests in flight, as in a table that is often shown."""
    evidence = Evidence(EngineLimits(64), 30.0, 100, blamed=blamed)
    seen = {point: Seen({0: 0.0}, evidence) for point in (SMALL, LARGE)}
    ending = Ending(LARGE, seen, {SMALL: Found(4.5, 4, 5)}, {}, ())
    came = {SMALL: blocks(100), LARGE: blocks(speed)}
    return Tuned(ending, SMALL, Offer(Concurrency(1), 1), came)


def test_a_change_that_no_limit_explains_is_called_so() -> None:
    said = "\n".join(remarks(tuned(()), SPACE))
    assert "in flight 30.0 of 64 in a batch" in said
    assert "no limit was reached (max_batch_size): this change can't be explained by it" in said


def test_what_a_limit_explains_or_is_no_change_is_not() -> None:
    assert "can't be explained" not in "\n".join(remarks(tuned(("batch",)), SPACE))
    assert "can't be explained" not in "\n".join(remarks(tuned((), 100), SPACE))


def test_a_best_that_could_be_chance_is_called_so() -> None:
    said = "isn't told apart from the baseline: more blocks would tell"
    assert said in "\n".join(remarks(tuned((), 100), SPACE))
    assert said not in "\n".join(remarks(tuned(()), SPACE))


def test_rows_are_changes_in_per_cent_of_the_baseline() -> None:
    first, second = rows(tuned(()))
    assert first == ("baseline", "101.5", "100", "10", "0.900", "4.5 (4…5)", "none")
    assert second == (
        "* max_batch_size=512",
        "+20 ±0 %",
        "+0 ±0 %",
        "+0 ±0 %",
        "0.900",
        "-",
        "none",
    )
    assert len(HEADS) == len(first)
