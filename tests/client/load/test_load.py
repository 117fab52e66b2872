"""Loads and schedules: pure functions, so their laws are tested, not their examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.errors import UserError
from llm_perf.load.arrivals import Closed, Open, arrivals, plan, share, without
from llm_perf.load.load import (
    ONCE,
    Concurrency,
    Extent,
    Rate,
    Trace,
    parse_concurrencies,
    parse_rates,
)

_rates = st.builds(
    lambda per_s, arrival, shape, seed, ramp_s: Rate(
        per_s, arrival, shape if arrival == "gamma" else 1.0, seed, ramp_s
    ),
    st.floats(0.1, 5000),
    st.sampled_from(["constant", "poisson", "gamma"]),
    st.floats(0.2, 5),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.5, 10.0]),
)
_extents = st.builds(
    Extent,
    requests=st.none() | st.integers(1, 60),
    warmup_requests=st.integers(0, 10),
)


@given(_rates, st.integers(1, 300), st.integers(0, 300))
def test_a_schedule_is_its_seeds_and_a_longer_one_only_adds(rate: Rate, n: int, more: int) -> None:
    times = arrivals(rate, n)
    assert np.array_equal(times, arrivals(rate, n))
    assert np.array_equal(times, arrivals(rate, n + more)[:n])
    assert (np.diff(times) >= 0).all() and (times >= 0).all()


def test_other_seeds_give_other_times() -> None:
    assert not np.array_equal(arrivals(Rate(5, seed=1), 20), arrivals(Rate(5, seed=2), 20))


@given(_rates.filter(lambda rate: not rate.ramp_s), st.integers(0, 2**32))
def test_the_mean_gap_is_the_rates(rate: Rate, seed: int) -> None:
    n = 4000
    last = arrivals(Rate(rate.per_s, rate.arrival, rate.burstiness, seed), n)[-1] / 1e9
    # the last of n gamma gaps has a standard deviation of √(n / shape) mean gaps; six of them
    allowed = 6 * math.sqrt(n / rate.burstiness) + 1
    assert last * rate.per_s == pytest.approx(n, abs=allowed)


@given(st.floats(0.1, 5000), st.integers(1, 200))
def test_constant_gaps_are_exact(per_s: float, n: int) -> None:
    times = arrivals(Rate(per_s, "constant"), n)
    assert all(abs(at - i / per_s * 1e9) <= 1 for i, at in enumerate(times.tolist()))


@given(st.integers(0, 2**32))
def test_gamma_gaps_of_burstiness_one_are_poissons(seed: int) -> None:
    assert np.array_equal(
        arrivals(Rate(3, "poisson", seed=seed), 100),
        arrivals(Rate(3, "gamma", 1.0, seed=seed), 100),
    )


@given(st.integers(0, 2**32))
def test_poisson_gaps_are_exponential(seed: int) -> None:
    gaps = np.sort(np.diff(arrivals(Rate(2.0, seed=seed), 3001))) / 1e9
    law = 1 - np.exp(-2.0 * gaps)
    distance = np.abs(law - (np.arange(len(gaps)) + 0.5) / len(gaps)).max()
    assert distance < 3.0 / math.sqrt(len(gaps))  # Kolmogorov: p < 1e-7


@pytest.mark.parametrize(("shape", "variation"), [(0.25, 2.0), (1.0, 1.0), (4.0, 0.5)])
def test_burstiness_is_the_gammas_shape(shape: float, variation: float) -> None:
    gaps = np.diff(arrivals(Rate(10, "gamma", shape), 20_000))
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.1)  # 1 / √shape


def test_a_ramp_grows_linearly_to_the_full_rate() -> None:
    times = arrivals(Rate(100, "constant", ramp_s=10), 2000) / 1e9
    counts = [int(np.searchsorted(times, end)) for end in (5, 10, 15)]
    assert counts == pytest.approx([125, 500, 1000], abs=1)  # 100 t² / 20, then 100 a second
    assert np.diff(times)[1500:] == pytest.approx(0.01)


def test_an_infinite_rate_is_all_at_once() -> None:
    order = plan(Rate(math.inf), ONCE, 3)
    assert order == Open(((0, 0), (1, 0), (2, 0)))


@given(_rates, _extents, st.integers(1, 50), st.integers(1, 7))
def test_every_request_is_due_once_and_shares_lose_none(
    rate: Rate, extent: Extent, prompts: int, workers: int
) -> None:
    order = plan(rate, extent, prompts)
    assert isinstance(order, Open)
    measured, warm = extent.requests or prompts, extent.warmup_requests
    assert [number for number, _ in order.dues] == [*range(measured)]
    assert [number for number, _ in order.warmup] == [*range(-1, -1 - warm, -1)]
    parts = [share(order, worker, workers) for worker in range(workers)]
    assert sorted(due for part in parts for due in part.dues) == sorted(order.dues)
    assert sorted(due for part in parts for due in part.warmup) == sorted(order.warmup)


@given(st.integers(1, 30), _extents, st.integers(1, 50), st.integers(1, 7))
def test_shares_of_a_closed_loop_lose_no_slot_and_no_request(
    n: int, extent: Extent, prompts: int, workers: int
) -> None:
    order = plan(Concurrency(n, ramp_s=3), extent, prompts)
    assert isinstance(order, Closed)
    assert order.total == (extent.requests or prompts)
    parts = [share(order, worker, workers) for worker in range(workers)]
    for name in ("slots", "warmup", "numbers"):
        together = sorted(each for part in parts for each in getattr(part, name))
        assert together == sorted(getattr(order, name))


def test_slots_of_a_ramp_start_evenly() -> None:
    order = plan(Concurrency(4, ramp_s=2), ONCE, 10)
    assert isinstance(order, Closed)
    assert order.slots == (0, 500_000_000, 1_000_000_000, 1_500_000_000)


def test_time_ends_a_closed_loop_that_has_no_number() -> None:
    order = plan(Concurrency(2), Extent(duration_s=5), 10)
    assert isinstance(order, Closed)
    assert (order.total, order.duration_ns) == (None, 5_000_000_000)
    assert share(order, 1, 2).total is None
    assert plan(Concurrency(2), Extent(requests=30, duration_s=5), 10).total == 30


def test_time_ends_an_open_loop_after_its_warm_up() -> None:
    rate = Rate(10, "constant")
    by_number = plan(rate, Extent(duration_s=1, warmup_requests=5), 3)
    by_time = plan(rate, Extent(duration_s=1, warmup_s=0.5), 3)
    assert by_number == by_time
    assert [number for number, _ in by_number.warmup] == [-1, -2, -3, -4, -5]
    assert by_number.dues[0] == (0, 0)  # on a clock of its own
    assert by_number.dues[-1] == (9, 900_000_000)


def test_a_trace_keeps_its_gaps_and_its_prompts() -> None:
    order = plan(Trace(), ONCE, 3, [5.0, 4.5, 7.25])
    assert order == Open(((1, 0), (0, 500_000_000), (2, 2_750_000_000)))
    assert plan(Trace(), Extent(requests=2), 3, [5.0, 4.5, 7.25]).total == 2
    assert plan(Trace(), Extent(duration_s=1), 3, [5.0, 4.5, 7.25]).total == 2


@pytest.mark.parametrize(
    ("load", "extent", "times", "said"),
    [
        (Trace(), ONCE, [1.0, None], "1 of 2 prompts have no time"),
        (Trace(), Extent(requests=3), [1.0, 2.0], "the trace has 2 requests, not 3"),
        (Trace(), Extent(warmup_s=3), [1.0, 2.0], "a trace has no warm-up"),
        (Rate(math.inf), Extent(duration_s=3), [], "no duration ends it"),
        (Rate(0.1, "constant"), Extent(warmup_s=3, requests=None, duration_s=1), [], "no request"),
    ],
)
def test_what_can_not_be_scheduled_is_said(load, extent: Extent, times, said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan(load, extent, 2, times)


@given(_rates, _extents, st.integers(1, 30), st.sets(st.integers(0, 60)))
def test_what_was_done_before_is_not_due_again(
    rate: Rate, extent: Extent, prompts: int, done: set[int]
) -> None:
    order = plan(rate, extent, prompts)
    left = without(order, done)
    assert isinstance(order, Open) and isinstance(left, Open)
    assert [number for number, _ in left.dues] == [n for n, _ in order.dues if n not in done]
    gaps = np.diff([at for number, at in order.dues if number not in done and number >= 0])
    assert np.array_equal(np.diff([at for number, at in left.dues if number >= 0]), gaps)
    measured = [at for number, at in left.dues if number >= 0]
    if measured:  # it doesn't wait for those that are not sent
        assert measured[0] == next(at for number, at in order.dues if number == 0)


def test_a_closed_loop_goes_on_with_what_is_missing() -> None:
    left = without(plan(Concurrency(4), ONCE, 6), {0, 1, 2, 4})
    assert isinstance(left, Closed)
    assert (tuple(left.numbers), len(left.slots)) == ((3, 5), 2)


def test_a_closed_loop_goes_on_for_the_time_that_is_left() -> None:
    order = plan(Concurrency(4), Extent(duration_s=3), 6)
    left = without(order, {0, 1, 2, 4}, passed_ns=1_000_000_000)
    assert isinstance(left, Closed)
    assert (left.numbers[0], left.total, left.duration_ns) == (5, None, 2_000_000_000)
    nothing = without(order, {0, 1}, passed_ns=3_100_000_000)
    assert (nothing.total, nothing.streams) == (0, 0)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=5, unique=True))
def test_concurrencies_are_read_back(numbers: list[int]) -> None:
    text = ", ".join(map(str, numbers))
    assert [load.n for load in parse_concurrencies(text)] == numbers


@given(st.lists(st.floats(1e-6, 1e9) | st.just(math.inf), min_size=1, max_size=5, unique=True))
def test_rates_are_read_back(numbers: list[float]) -> None:
    assert list(parse_rates(",".join(map(repr, numbers)))) == numbers


@given(st.text(max_size=20))
def test_any_other_text_is_a_user_error(text: str) -> None:
    for parse in (parse_concurrencies, parse_rates):
        try:
            parse(text)
        except UserError as error:
            assert "write" in str(error)


def test_loads_say_what_they_are() -> None:
    assert Concurrency(4).to_json() == {"kind": "concurrency", "value": 4, "ramp_s": 0.0}
    assert Rate(math.inf).to_json()["value"] is None  # JSON has no infinity
    assert [Concurrency(4).name, Rate(0.5).name, Rate(math.inf).name, Trace().name] == [
        "concurrency4",
        "rate0.5",
        "rateinf",
        "trace",
    ]
    with pytest.raises(UserError, match="no burstiness"):
        Rate(1, "poisson", 2.0)
    with pytest.raises(UserError, match="unknown arrival"):
        Rate(1, "uniform")
