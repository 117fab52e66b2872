"""How sure a rate is of which one run is known."""

from __future__ import annotations

import numpy as np
import pytest

from llm_perf.report.points import rate_spread
from llm_perf.report.requests import Requests


def in_step(loop: int, rounds: int, jitter: float = 0.01) -> Requests:
    """A closed loop whose requests are answered together, every 2 s."""
    random = np.random.default_rng(5)
    sent = np.repeat(2.0 * np.arange(rounds), loop)
    end = sent + 2 + random.normal(0, jitter, len(sent)).clip(-0.1, 0.1)
    end[4 * loop + 3] -= 1.5  # one is done with those of the round before
    nothing = np.zeros(len(sent))
    tokens = np.full(len(sent), 16.0)
    every = np.ones(len(sent), dtype=np.bool_)
    return Requests(0, sent, sent, end, every, tokens, nothing, nothing, {}, ())


@pytest.mark.parametrize("metric", ["request_throughput", "output_token_throughput"])
def test_requests_that_end_in_step_are_counted_by_whole_rounds(metric: str) -> None:
    spread = rate_spread([in_step(64, 9)], metric, 64)
    assert spread is not None and 0.97 < spread[0] < 1 < spread[1] < 1.03
    by_time = rate_spread([in_step(64, 9)], metric)
    assert by_time is not None and by_time[1] - by_time[0] > 0.5  # what it looks like otherwise
