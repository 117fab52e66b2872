from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.figures.confidence import bootstrap, mcnemar, paired_shares, share_interval, wilson


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


@given(st.lists(st.booleans(), min_size=2, max_size=60))
def test_a_share_without_repeats_has_wilsons_interval(outcomes: list[bool]) -> None:
    known = share_interval(outcomes, range(len(outcomes)))
    assert known == pytest.approx(wilson(sum(outcomes), len(outcomes)))


def test_repeats_count_as_far_as_they_tell_something_new() -> None:
    def width(outcomes: list[int], prompts: list[int]) -> float:
        low, high = share_interval(outcomes, prompts)
        return high - low

    prompts = [i // 10 for i in range(200)]  # 20 prompts, ten times each
    alike = [int(prompt < 15) for prompt in prompts]  # a prompt is right or wrong, always
    low, high = wilson(15, 20)
    assert width(alike, prompts) == pytest.approx(high - low, abs=0.03)
    random = np.random.default_rng(1)
    by_chance = (random.random(200) < 0.75).astype(int).tolist()  # the prompt plays no part
    assert width(by_chance, prompts) < 0.6 * (high - low)
    assert share_interval([1] * 200, prompts) == wilson(20, 20)


def test_the_bootstrap_draws_all_of_a_prompt_however_often_it_was_asked() -> None:
    random = np.random.default_rng(2)
    once = random.normal(10, 2, 50)

    def width(times: list[int]) -> float:
        prompts = np.repeat(np.arange(50), times)
        drawn = bootstrap([once[prompts]], lambda drawn: drawn[:, 0].mean(axis=-1), prompts)
        return drawn[1] - drawn[0]

    assert width([8] * 50) == pytest.approx(width([1] * 50), rel=0.01)
    assert width([8] * 25 + [7] * 25) == pytest.approx(width([1] * 50), rel=0.15)


def test_equal_pairs_do_not_make_it_certain_that_nothing_changed() -> None:
    low, high = paired_shares([1] * 20, [1] * 20, range(20))
    # Bonett and Price 2012: (0 + 1) / 22 on either side, so ±1.96 sqrt(2 / 22 / 22)
    assert (low, high) == pytest.approx((-0.126, 0.126), abs=1e-3)
    low, high = paired_shares([1] * 20, [1] * 10 + [0] * 10, range(20))
    assert -0.75 < low < -0.5 < high < -0.1
    assert paired_shares([1] * 200, [1] * 200, [i % 20 for i in range(200)]) == (
        pytest.approx(-0.126, abs=1e-3),
        pytest.approx(0.126, abs=1e-3),
    )
