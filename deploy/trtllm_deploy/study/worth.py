"""What blocks say a point is worth, against limits: less is better. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llm_perf import api


def cost(measured: api.Measurement, limits: Sequence[api.Limit]) -> float:
    """What a block costs, on a log scale: the less the better.

    At a given rate how near it comes to the worst kept of the limits, or how far it is beyond;
    in a closed loop (or without limits) its throughput, and what it is beyond the limits. A score,
    which no load brings nearer to its limit, counts where it is beyond. Requests that fail cost
    what they are of all.
    """
    ok, failed = measured["requests_ok"], measured["requests_failed"]
    if not ok:
        return math.inf
    asked = [(limit, _ratio(measured, limit)) for limit in limits]
    ratios = [ratio for limit, ratio in asked if limit.metric != "score" or ratio > 0]
    lost = -math.log(ok / (ok + failed))
    if ratios and measured["load"]["kind"] == "request_rate":
        return max(ratios) + lost
    speed = measured["metrics"].get("output_token_throughput", {}).get("avg")
    if not isinstance(speed, (int, float)) or speed <= 0:
        return math.inf
    return max([0.0, *ratios]) - math.log(speed) + lost


def _ratio(measured: api.Measurement, limit: api.Limit) -> float:
    """How near a figure is to its limit: 0 at it, below within; infinite where there is none."""
    if limit.metric == "score":
        value = (measured["score"] or {}).get("value")
    else:
        value = measured["metrics"].get(limit.metric, {}).get(limit.statistic or "avg")
    if not isinstance(value, (int, float)) or value <= 0 or limit.value <= 0:
        within = isinstance(value, (int, float)) and limit.holds(value)
        return -math.inf if within else math.inf
    ratio = math.log(value / limit.value)
    return ratio if limit.upper else -ratio


def unfit(blocks: Sequence[api.Measurement], limits: Sequence[api.Limit]) -> str | None:
    """The limit on the score that a point breaks: no load mends that."""
    scores = [each["score"]["value"] for each in blocks if each["score"]]
    mean = sum(scores) / len(scores) if scores else None
    for limit in limits:
        if limit.metric == "score" and mean is not None and not limit.holds(mean):
            return f"its score, {mean:.3f}, breaks {limit}"
    return None
