"""A search against servers whose limits are known, in virtual time.

How often the interval holds the truth over 40 seeds is measured by benchmarks/search.py.
"""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_perf.errors import UserError
from llm_perf.figures.limits import parse_limit
from llm_perf.load.progress import Progress
from llm_perf.search.drawn import print_answer, sentence
from llm_perf.search.hopeless import Hopeless
from llm_perf.search.hunt import hunt
from llm_perf.search.probe import Probe, keeps
from llm_perf.search.question import CONFIRMED, INDICATIVE, Ask, Mode, Question
from llm_perf.search.seen import Criterion, Seen
from tests.client.search.simulated import Server, solve

SERVER = Server()
TRUE_RATE = {"ttft.p95<1s": 6.572, "ttft.avg<1s": 7.490}  # Server.true_rate, 400,000 requests
QUICK = Mode("quick", 2, 100, opened=0.2, promise=0.5)


def criteria(*limits: str) -> tuple[Criterion, ...]:
    return tuple(Criterion(parse_limit(each, "--limit")) for each in limits)


@pytest.mark.parametrize("limit", TRUE_RATE)
def test_the_interval_holds_the_true_rate_at_the_promised_width(limit: str) -> None:
    held = 0
    for seed in range(6):
        answer = solve(SERVER, Question(criteria(limit), seed=1000 * seed))
        assert answer.interval and answer.width and answer.width <= INDICATIVE.promise
        held += answer.interval[0] <= TRUE_RATE[limit] <= answer.interval[1]
        assert len({each.value for each in answer.probes}) > 1
    assert held >= 5


def test_confirmed_ends_are_held_by_five_runs_that_agree_and_lie_closer() -> None:
    asked = Question(criteria("ttft.avg<1s"), mode=CONFIRMED, seed=3)
    answer = solve(SERVER, asked)
    assert answer.interval and answer.width and answer.width <= CONFIRMED.promise
    assert answer.interval[0] <= TRUE_RATE["ttft.avg<1s"] <= answer.interval[1]
    for end, kept in ((answer.low, True), (answer.high, False)):
        assert end and len(end.seen) >= 5
        assert {keeps(seen, asked.criteria) for seen in end.seen} == {kept}
        assert all(seen.requests >= 1000 for seen in end.seen)


def test_the_concurrency_within_a_limit_is_a_whole_number() -> None:
    asked = Question(criteria("ttft.avg<1s"), "concurrency", seed=4)
    answer = solve(SERVER, asked)
    assert answer.interval and answer.interval[0] <= 23 <= answer.interval[1]
    assert all(float(each.value).is_integer() for each in answer.probes)


def test_all_limits_have_to_hold() -> None:
    both = criteria("ttft.p95<1s", "itl.avg<12ms")  # 20 ms at any rate
    answer = solve(SERVER, Question(both))
    assert answer.low is None and answer.requests < 100
    assert answer.ended == "one request at a time doesn't keep the limits either"
    loose = solve(SERVER, Question(criteria("ttft.p95<1s", "itl.avg<25ms")))
    assert loose.interval and loose.interval[0] <= TRUE_RATE["ttft.p95<1s"] <= loose.interval[1]


def test_a_limit_that_most_requests_may_miss_is_searched_for() -> None:
    low_bar = criteria("itl.p25<17ms", "ttft.avg<1s")  # which some 40 % are within
    answer = solve(SERVER, Question(low_bar, mode=QUICK, seed=2))
    assert answer.loops[0].attainment < 0.5 and answer.loops[0].kept
    assert answer.interval and answer.interval[0] <= TRUE_RATE["ttft.avg<1s"] <= answer.interval[1]


def test_a_limit_that_nothing_breaks_is_told_as_such() -> None:
    answer = solve(Server(slots=4096), Question(criteria("ttft.p95<1s"), "concurrency", QUICK))
    assert answer.high is None and answer.low and answer.low.value >= 500
    assert answer.ended == "no load was shown to break the limits"
    assert answer.interval is answer.about is answer.width is None


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 3000), st.integers(0, 5), st.sampled_from(["request_rate", "concurrency"]))
def test_a_budget_is_kept_and_ends_in_an_answer(budget_s: float, seed: int, vary) -> None:
    asked = Question(criteria("ttft.p95<1s"), vary, QUICK, seed, budget_s)
    answer = solve(SERVER, asked)
    first_loop_s = 16 * SERVER.mean_s * 2  # how long what was never measured takes, nobody knows
    longest = max((each.duration_s for probe in answer.probes for each in probe.seen), default=0)
    assert answer.spent_s <= budget_s + max(first_loop_s, longest)
    if answer.interval is None:
        assert answer.ended == "the budget is spent"


def test_a_budget_says_no_more_than_it_paid_for() -> None:
    asked = Question(criteria("ttft.p95<1s"), seed=5)
    for server, true_rate, budgets in (
        (Server(slots=120, mean_s=3, spread=0.1), 38.58, (60, 180, 300)),
        (Server(slots=16, mean_s=0.2), 77.7, (20, 40, 60)),
    ):
        for budget_s in budgets:
            answer = solve(server, replace(asked, budget_s=budget_s))
            text = sentence(answer)
            assert "; the budget is spent" in text and answer.spent_s > 0.8 * budget_s
            most, broke = answer.single
            assert "perhaps " in text and most and most < 1.05 * true_rate
            assert answer.high is None and (broke is None or broke > true_rate)
            if answer.low:
                assert answer.least and f"at least {answer.least:.3g} requests/s" in text
                assert answer.least < min(true_rate, answer.low.value)


def test_runs_get_shorter_so_that_a_budget_decides_both_ends() -> None:
    server = Server(slots=120, mean_s=3, spread=0.1)  # 60 turns of what is in flight: 3 minutes
    for seed in (1, 2, 3):
        answer = solve(server, Question(criteria("ttft.p95<1s"), seed=seed, budget_s=600))
        assert answer.interval and answer.interval[0] <= 38.58 <= answer.interval[1]
        assert answer.width and answer.width < 0.25


def test_every_run_has_arrivals_of_its_own_and_the_same_search_asks_the_same() -> None:
    def asked(question: Question) -> list[Ask]:
        hunting, asks = hunt(question), []
        ask = next(hunting)
        while True:
            asks.append(ask)
            try:
                ask = hunting.send(SERVER.show(question.criteria, ask))
            except StopIteration:
                return asks

    question = Question(criteria("ttft.avg<1s"), mode=QUICK)
    first = asked(question)
    assert first == asked(question)
    assert len({each.seed for each in first}) == len(first)
    other = asked(replace(question, criteria=criteria("ttft.avg<2s")))
    assert not {each.seed for each in first} & {each.seed for each in other}


def probe(*runs: Seen, of: int = 3, open_loop: bool = True) -> Probe:
    return Probe(5.0, criteria("ttft.p95<1s"), of, open_loop, list(runs))


def seen(*shares: float, ttft: tuple[float, ...] = (9, 11, 10, 9, 11, 10), **more) -> Seen:
    known = {
        "blocks": (shares,),
        "means": (sum(shares) / len(shares),),
        "ttft_ms": ttft,
        "attainment": 0.9,
        "goodput": 1.0,
        "throughput": 1.0,
        "in_flight": 1.0,
        "requests": 400,
        "failed": 0,
        "duration_s": 1.0,
    }
    return Seen(**{**known, **more})


GOOD = seen(0.99, 0.98, 1.0, 0.99, 0.98, 1.0)
BAD = seen(0.7, 0.8, 0.75, 0.8, 0.7, 0.75)


def test_runs_that_agree_make_a_verdict_and_runs_at_odds_none() -> None:
    assert (probe(GOOD, GOOD).verdict, probe(GOOD, GOOD).finished) == ("undecided", False)
    assert probe(GOOD, GOOD, GOOD).verdict == "pass"
    assert probe(BAD, BAD, BAD).verdict == "fail"
    odds = probe(GOOD, BAD)
    assert (odds.verdict, odds.finished) == ("undecided", True)
    assert odds.why == "1 of 2 runs kept the limits"


def test_agreement_without_an_interval_that_says_so_asks_for_more_runs() -> None:
    close = seen(0.96, 0.93, 0.97, 0.95, 0.96, 0.94)
    three = probe(close, close, close)
    assert (three.verdict, three.finished) == ("undecided", False)
    assert probe(*[close] * 6).finished


def test_a_probe_that_is_not_steady_is_undecided() -> None:
    rising = seen(0.99, 0.98, 1.0, 0.99, 0.98, 1.0, ttft=(10, 21, 29, 41, 49, 61))
    found = probe(rising, rising, rising)
    assert found.verdict == "undecided" and found.why.startswith("not steady: TTFT rises by 1")
    assert probe(rising, rising, rising, open_loop=False).verdict == "pass"  # it has no queue
    # for real: above capacity, with a limit that a run is too short to reach
    (loose,) = criteria("ttft.avg<1000s")
    over = Probe(8.5, [loose], 3, open_loop=True)
    for seed in range(3):
        ask = Ask("request_rate", 8.5, 1000, seed, seed, "ends", seed)
        over.seen.append(SERVER.show([loose], ask))
    assert all(keeps(each, [loose]) for each in over.seen)
    assert over.verdict == "undecided" and over.why.startswith("not steady")


def test_runs_that_are_short_for_what_is_in_flight_hold_nothing() -> None:
    crowded = replace(GOOD, in_flight=40)
    question = Question(criteria("ttft.p95<1s"))
    found = question.probe(5, crowded, crowded, crowded)
    assert (found.verdict, found.finished) == ("undecided", True)
    assert found.why == "400 requests tell nothing with 40 in flight"
    assert question.probe(5, *[replace(crowded, requests=1200)] * 3).verdict == "pass"
    assert question.probe(5, *[replace(BAD, in_flight=40)] * 3).verdict == "fail"


def test_a_load_that_was_not_offered_is_not_held() -> None:
    late = replace(GOOD, offered=0.8)  # of 5 requests/s 4 left: a full client, or a slow one
    found = probe(late, late, late)
    assert (found.verdict, found.kept) == ("undecided", False)
    assert found.why == "requests left late, at 80% of the rate"
    assert probe(*[replace(BAD, offered=0.8)] * 3).verdict == "fail"


@pytest.mark.parametrize("vary", ["request_rate", "concurrency"])
def test_a_server_that_answers_no_two_at_a_time_is_searched_to_the_end(vary) -> None:
    asked = Question(criteria("ttft.avg<1s"), vary, QUICK, budget_s=1e6)
    hunting = hunt(asked)
    ask = next(hunting)
    with pytest.raises(StopIteration) as found:
        while True:
            alone = SERVER.show(asked.criteria, replace(ask, vary="concurrency", value=1))
            refused = replace(alone, failed=alone.requests, throughput=0.0, attainment=0.0)
            ask = hunting.send(alone if ask.value <= 1 else refused)
    assert found.value.value.capacity < 1 and found.value.value.requests < 10_000


def test_a_load_that_holds_above_one_that_broke_is_a_warning() -> None:
    answer = solve(SERVER, Question(criteria("ttft.avg<1s"), mode=QUICK))
    assert answer.high and answer.changing is None
    above = replace(answer.low, value=answer.high.value + 1)  # type: ignore[type-var]
    later = replace(answer, probes=(*answer.probes, above))
    assert later.changing == answer.high.value + 1
    out = io.StringIO()
    print_answer(later, file=out)
    assert "Warning: " in out.getvalue() and "isn't the same all the time" in out.getvalue()
    assert "CLIENT-BOUND" not in out.getvalue()
    answer.probes[0].seen[0] = replace(answer.probes[0].seen[0], client_bound=True)
    print_answer(answer, file=out)
    assert "Warning: 1 of " in out.getvalue() and "runs are CLIENT-BOUND" in out.getvalue()


def test_failed_requests_break_limits() -> None:
    assert probe(*[replace(GOOD, failed=5)] * 3).verdict == "fail"
    assert probe(*[replace(GOOD, failed=4)] * 3).verdict == "pass"  # of 400, 1 %


@pytest.mark.parametrize(
    "limit", ["ttft.max<1s", "ttft.std<1s", "tokens_per_s>9", "requests_failed=0"]
)
def test_what_no_number_of_requests_tells_is_not_searched_for(limit: str) -> None:
    with pytest.raises(UserError, match="can't be searched for"):
        criteria(limit)


def test_a_lost_run_is_ended_early_and_one_that_keeps_its_limits_never() -> None:
    def lost(limit: str, rate: float, seed: int) -> float | None:
        """Part of a run after which it was ended."""
        at, ttft, services = SERVER.open(rate, 1000, seed)
        watch = Hopeless([parse_limit(limit, "x")])
        begun, ends = at + ttft, at + ttft + services
        for number in range(int(2 * at[-1])):
            now = number / 2
            first = ttft[begun < now][-500:] * 1e9
            done = int((ends < now).sum())
            in_flight = int((at < now).sum()) - done
            if watch.look(Progress(done, 1000, 0, in_flight, ttfts_ns=tuple(first.tolist()))):
                return now / float(at[-1])
        return None

    assert (lost("ttft.p95<1s", 12, 0) or 1) < 0.3
    assert (lost("itl.avg<25ms", 14, 1) or 1) < 0.5
    for limit, rate in (("ttft.p95<1s", 5.0), ("ttft.avg<1s", 6.5)):
        assert all(lost(limit, rate, seed) is None for seed in range(4))
