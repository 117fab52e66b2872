"""What ``tune`` takes, before it starts: a search gone through with nothing to see. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llm_perf import api
from llm_perf.duration import spell_duration
from trtllm_deploy.spec.studies import TuneSpec
from trtllm_deploy.study.space import Point
from trtllm_deploy.study.tuner import Search, Seen, Tuner


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a search asks for where no limit is seen to bind, and all that is asked can be done.

    ``points`` in the order of their first measurement, ``starts`` of their servers, ``blocks`` of
    all of them, ``searches`` for a rate.
    """

    points: tuple[Point, ...]
    starts: int
    blocks: int
    searches: int
    excluded: dict[Point, str]


def rehearse(tuner: Tuner) -> Rehearsal:
    """Go through a search with nothing to see; the tuner is used up by it."""
    points, starts, blocks, searches = dict[Point, None](), 0, 0, 0
    steps = tuner.steps()
    try:
        asked = next(steps)
        while True:
            if isinstance(asked, Search):
                searches, starts = searches + 1, starts + 1
                points[asked.point] = None
                asked = steps.send(None)
                continue
            points |= dict.fromkeys(asked.points)
            starts += len(asked.points)
            blocks += len(asked.points) * len(asked.numbers)
            asked = steps.send(
                {each: Seen(dict.fromkeys(asked.numbers, 0.0)) for each in asked.points}
            )
    except StopIteration as ended:
        return Rehearsal(tuple(points), starts, blocks, searches, ended.value.excluded)


def price(asked: Rehearsal, spec: TuneSpec, block_s: float | None = None) -> str:
    """What a search takes where nothing binds, in words; ``block_s`` is what a block is seen to."""
    if spec.request_rate is not None:
        block_s = spec.requests / spec.request_rate
    said = [
        f"To measure, and more where a limit binds: combinations: {len(asked.points)}",
        f"server starts: {asked.starts}, twice as many where they don't fit side by side",
        f"blocks of {spec.requests} requests: {asked.blocks}",
    ]
    if block_s is not None:
        said[-1] += f", {spell_duration(asked.blocks * block_s)} of load"
    if asked.searches:
        ends = spell_duration(spec.budget)
        said.append(f"searches for a rate: {asked.searches}, each ended after {ends} of load")
    return f"{'; '.join(said)}."


def seconds(blocks: Sequence[api.Measurement]) -> float | None:
    """What a block takes on average."""
    rates = [each["metrics"].get("request_throughput", {}).get("avg") for each in blocks]
    took = [
        each["requests_ok"] / rate
        for each, rate in zip(blocks, rates, strict=True)
        if isinstance(rate, (int, float)) and rate > 0
    ]
    return sum(took) / len(took) if took else None
