"""Limits as people write them: every spelling is read as meant, and everything else is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.errors import UserError
from llm_perf.figures.limits import SHORT, Kind, Limit, parse_limit, parse_limits
from llm_perf.figures.metrics import DEFINITIONS, PERCENTILES


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("ttft.p95<1s", Limit("time_to_first_token", "p95", "<", 1000)),
        ("ttft.p95=1s", Limit("time_to_first_token", "p95", "<=", 1000)),
        ("tpot.avg < 20 ms", Limit("inter_token_latency", "avg", "<", 20)),
        ("latency.max<=1.5m", Limit("request_latency", "max", "<=", 90_000)),
        ("itl.p50<300us", Limit("inter_token_latency", "p50", "<", 0.3)),
        ("score>=0.98", Limit("score", "avg", ">=", 0.98)),
        ("score=98%", Limit("score", "avg", ">=", 0.98)),
        (
            "tokens_per_user.p50>=50",
            Limit("output_token_throughput_per_user", "p50", ">=", 50),
        ),
        ("tokens_per_s:900/s", Limit("output_token_throughput", "avg", ">=", 900)),
        ("goodput.share>0.9", Limit("request_goodput", "share", ">", 0.9)),
        ("requests_failed=0", Limit("requests_failed", "avg", "<=", 0)),
    ],
)
def test_a_limit_of_a_run_is_read_as_it_is_meant(text: str, limit: Limit) -> None:
    assert parse_limit(text, "--limit") == limit


def test_limits_on_each_request_have_no_statistic() -> None:
    ttft, user = parse_limits("ttft:1s, tokens_per_user>=50", "--goodput", "request")
    assert ttft == Limit("time_to_first_token", None, "<=", 1000)
    assert user == Limit("output_token_throughput_per_user", None, ">=", 50)


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("run", "ttft<1s", "ttft of a run is many; ttft has avg, min, max, std, p1"),
        ("run", "ttft.p96<1s", "ttft has no statistic 'p96'; ttft has avg, min"),
        ("run", "tokens_per_s.p50>1", "no statistic 'p50'; tokens_per_s has avg"),
        ("run", "score.p50>1", "score has avg"),
        ("run", "tttf.p50<1s", "there is no metric 'tttf'; use ttft, "),
        ("run", "ttft.p50<1", "'ttft.p50<1' has no unit that fits; give it one of us, ms, s"),
        ("run", "ttft.p50<1/s", "no unit that fits"),
        ("run", "osl.avg>1ms", "output_sequence_length is no time; leave the ms out"),
        ("run", "ttft.p50<5%", "no unit that fits"),
        ("run", "ttft.p50<-1s", "is no limit; write METRIC.STATISTIC<X"),
        ("run", "ttft.p50<1e3s", "is no limit"),
        ("run", "", "'' is no limit"),
        ("run", "osl.avg<9999999999999999999999", "is out of all bounds"),
        ("request", "score>=1", "no request has a 'score'; limit ttft, "),
        ("request", "ttft.p50<1s", "this limit is on each request; leave .p50 out"),
        ("request", "ttft<+1s", "is no limit; write METRIC<X"),
        ("change", "ttft.p99 +5%", "write METRIC.STATISTIC > ±X"),
    ],
)
def test_what_is_no_limit_is_told_with_what_there_is(kind: Kind, text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        parse_limit(text, "--limit", kind)
    assert str(error.value).startswith("--limit: ") and said in str(error.value)


def test_holding_is_the_comparison_that_was_written() -> None:
    below, most = parse_limit("ttft.p50<1s", "x"), parse_limit("ttft.p50<=1s", "x")
    assert [below.holds(999), below.holds(1000), most.holds(1000), most.holds(1001)] == [
        *(True, False, True, False)
    ]
    assert parse_limit("score>=0.5", "x").holds(0.5)


@st.composite
def written(draw: st.DrawFn) -> tuple[Kind, str]:
    kind: Kind = draw(st.sampled_from(["request", "run", "change"]))
    of_requests = [key for key, each in DEFINITIONS.items() if each.values]
    whole = [*(key for key, each in DEFINITIONS.items() if not each.values), "score"]
    name = draw(st.sampled_from(of_requests + ([] if kind == "request" else whole)))
    time = name in DEFINITIONS and DEFINITIONS[name].unit == "ms"
    units = ["us", "ms", "s", "m", "min", "h"] if time else [""]
    statistic = ""
    if kind != "request" and name in of_requests:
        statistic = "." + draw(st.sampled_from(["avg", "min", "max", "std", "p1", "p95"]))
    sign = ""
    if kind == "change":
        units, sign = [*units, "", "%"], draw(st.sampled_from(["", "+", "-"]))
    short = [word for word, key in SHORT.items() if key == name]
    name = draw(st.sampled_from([name, *short]))
    number = draw(st.from_regex(r"[0-9]{1,9}(\.[0-9]{1,5})?", fullmatch=True))
    gap, operator = (draw(st.sampled_from(each)) for each in (["", " "], ["<", "<=", ">=", "=="]))
    return kind, f"{name}{statistic}{gap}{operator[:2].replace('==', '=')}{sign}{number}{gap}" + (
        draw(st.sampled_from(units))
    )


@given(written())
def test_a_limit_spelt_is_the_same_limit(case: tuple[Kind, str]) -> None:
    kind, text = case
    limit = parse_limit(text, "--limit", kind)
    again = parse_limit(str(limit), "--limit", kind)
    assert again == limit and str(again) == str(limit)
    assert limit.text == text.strip()


@given(st.text(max_size=30), st.sampled_from(["request", "run", "change"]))
def test_any_other_text_is_a_limit_or_an_error_that_names_its_place(text: str, kind: Kind) -> None:
    try:
        assert parse_limit(text, "--limit", kind).text == text.strip()
    except UserError as error:
        assert str(error).startswith("--limit: ")


def test_every_percentile_of_the_results_can_be_limited() -> None:
    for percentile in PERCENTILES:
        assert parse_limit(f"ttft.p{percentile}<1s", "x").statistic == f"p{percentile}"
