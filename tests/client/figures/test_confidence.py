from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.figures.confidence import bootstrap, mcnemar, wilson


def test_wilson_gives_the_textbooks_interval() -> None:
    # Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E, table I
    for successes, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_agrees_with_scipy(n: int, data: st.DataObject) -> None:
    stats = pytest.importorskip("scipy.stats")
    successes = data.draw(st.integers(0, n))
    theirs = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_agrees_with_the_binomial_test(one: int, other: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    n = one + other
    theirs = stats.binomtest(min(one, other), n, 0.5).pvalue if n else 1.0
    assert mcnemar(one, other) == pytest.approx(theirs)


def test_the_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    data = np.random.default_rng(3).normal(10, 2, 400)
    low, high = bootstrap([data], lambda drawn: drawn[:, 0].mean(axis=-1))
    half = 1.96 * data.std() / 20
    assert (low, high) == pytest.approx((data.mean() - half, data.mean() + half), abs=0.03)


def test_the_bootstrap_keeps_pairs_together_and_repeats() -> None:
    a = list(range(100))
    shifted = [value + 5 for value in a]

    def difference(drawn: np.ndarray) -> np.ndarray:
        return drawn[:, 1].mean(axis=-1) - drawn[:, 0].mean(axis=-1)

    assert bootstrap([a, shifted], difference) == (5, 5)
    noisy = [value + value % 7 for value in a]
    assert bootstrap([a, noisy], difference) == bootstrap([a, noisy], difference)


def test_much_data_is_drawn_in_parts() -> None:
    data = np.arange(3_000_000, dtype=float)
    low, high = bootstrap([data[::1000]], lambda drawn: drawn[:, 0].mean(axis=-1))
    assert low < data.mean() < high
