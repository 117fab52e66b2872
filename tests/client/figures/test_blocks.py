"""Intervals over blocks hold what they promise, for values that lean on each other too."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.figures.blocks import block_means, drift, estimate, lag1, paired, t975


def leaning(random: np.random.Generator, n: int, by: float) -> np.ndarray:
    """A process of first order with mean 0 and spread 1."""
    values, now = np.empty(n), random.standard_normal()
    for i in range(n):
        now = by * now + math.sqrt(1 - by * by) * random.standard_normal()
        values[i] = now
    return values


@pytest.mark.parametrize(  # from a table of Student's t
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (10, 2.22814), (120, 1.97993)],
)
def test_the_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert t975(freedom) == pytest.approx(quantile, rel=2e-3)
    assert t975(freedom + 0.5) == t975(freedom)


def test_blocks_are_spans_of_time_whatever_falls_into_them() -> None:
    assert block_means([0, 1, 2, 9, 10], [1, 2, 3, 10, 20], 5) == [1.5, 3, 15]
    assert block_means([], [], 5) == []
    assert block_means([7, 7], [1, 3], 4) == [2]


def test_the_correlation_of_neighbours_is_the_one_that_was_put_in() -> None:
    random = np.random.default_rng(1)
    assert lag1([leaning(random, 20_000, 0.6)]) == pytest.approx(0.6, abs=0.03)
    assert lag1([leaning(random, 20_000, 0.0)]) == pytest.approx(0.0, abs=0.03)
    assert lag1([[1, 2, 3]]) is None  # too few to say
    assert lag1([[1.0] * 9]) is None


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    random, held, bare = np.random.default_rng(2), 0, 0
    for _ in range(400):
        values = leaning(random, 60, 0.5)
        found = estimate([values])
        held += found.low <= 0 <= found.high
        half = t975(59) * values.std(ddof=1) / math.sqrt(60)
        bare += abs(values.mean()) <= half
    assert held >= 0.92 * 400
    assert bare < 0.8 * 400  # as if the blocks were independent: what is to be avoided


def test_too_few_blocks_say_nothing() -> None:
    one = estimate([[3.0]])
    assert (one.low, one.high, one.verdict(1)) == (-math.inf, math.inf, "undecided")
    stuck = estimate([[0, 0, 0, 0, 0, 1, 1, 1, 1, 1]])
    assert stuck.lag1 is not None and stuck.lag1 > 0.5 and stuck.high - stuck.low > 1


@pytest.mark.parametrize(("least", "verdict"), [(1, "pass"), (5, "undecided"), (9, "fail")])
def test_a_verdict_is_given_where_the_whole_interval_is(least: float, verdict: str) -> None:
    assert estimate([[3, 4, 5, 6, 7, 5, 4, 6, 3, 7]]).verdict(least) == verdict


def test_pairs_tell_a_difference_that_the_runs_themselves_hide() -> None:
    random, right = np.random.default_rng(3), 0
    for _ in range(100):
        weather = random.uniform(50, 150, 10)  # common to both
        found = paired(weather, weather * 1.1 * random.normal(1, 0.01, 10))
        assert found is not None and found.sure and abs(found.percent - 10) < 2
        right += found.low <= 10 <= found.high
    assert right >= 90


def test_pairs_of_nothing_have_no_difference() -> None:
    assert paired([1], [2]) is None and paired([0, 0], [1, 2]) is None
    with pytest.raises(ValueError, match="2 blocks of A and 1 of B"):
        paired([1, 2], [1])


@given(
    st.lists(st.floats(0.1, 100), min_size=2, max_size=12),
    st.floats(0.1, 10),
    st.sampled_from([1.0, -1.0]),
)
def test_a_difference_in_per_cent_does_not_hang_on_the_unit(
    a: list[float], factor: float, sign: float
) -> None:
    b = [sign * factor * each for each in a]
    found = paired([sign * each for each in a], b)
    assert found is not None
    assert found.percent == pytest.approx(100 * sign * (factor - 1), abs=1e-6)
    assert found.low == pytest.approx(found.high, abs=1e-4)


def test_drift_is_the_way_from_the_first_block_to_the_last() -> None:
    moved = drift([9, 10, 11])
    assert moved is not None and (moved.percent, moved.low) == (pytest.approx(20),) * 2
    random, wrong = np.random.default_rng(4), 0
    for _ in range(200):
        still = drift(random.normal(10, 1, 12))
        assert still is not None
        wrong += still.sure
    assert wrong <= 20  # of 200, at 95 %
    assert drift([1, 2]) is None and drift([0, 0, 0]) is None
