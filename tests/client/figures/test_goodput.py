from __future__ import annotations

from dataclasses import replace

import pytest

from llm_perf.errors import UserError
from llm_perf.figures.goodput import parse_goodput
from llm_perf.record import Record, Status

from .test_metrics import record

FAST = record(0, (100, 300), tokens=11)  # TTFT 100 ms, ITL 20 ms
LATE = record(0, (1500, 1700), tokens=11)
SLOW = record(0, (100, 1100), tokens=11)  # ITL 100 ms
SHORT = record(0, (100,), tokens=1)  # no ITL
MUTE = record(0, (), tokens=0)  # answered without a token, as a tool call is: no TTFT
FAILED = record(0, (10, 2000), tokens=2, status=Status.CUT)


def test_the_former_spelling_is_read_like_the_common_one() -> None:
    assert parse_goodput("ttft:1s, itl:50ms") == parse_goodput("ttft<=1s,inter_token_latency<=50ms")
    assert parse_goodput("tpot:0.5ms") == parse_goodput("itl=500us")


@pytest.mark.parametrize("text", ["", "ttft", "ttft:1", "ttft:-1s", "osl:1s", "ttft:1s,", "ttft:s"])
def test_any_other_limit_is_a_user_error(text: str) -> None:
    with pytest.raises(UserError, match="--goodput: "):
        parse_goodput(text)


@pytest.mark.parametrize(
    ("limits", "good"),
    [
        ("ttft:1s", [FAST, SLOW, SHORT]),
        ("itl:50ms", [FAST, LATE, SHORT]),
        ("ttft:1s,itl:50ms", [FAST, SHORT]),
        ("ttft:100ms", [FAST, SLOW, SHORT]),
        ("ttft:99ms", []),
        ("ttft<100ms", []),
        ("tokens_per_user>=50", [FAST, LATE, SHORT]),
    ],
)
def test_a_request_is_good_when_it_keeps_every_limit_it_has(
    limits: str, good: list[Record]
) -> None:
    goodput = parse_goodput(limits)
    everything = [FAST, LATE, SLOW, SHORT, MUTE, FAILED]
    assert [each for each in everything if goodput.keeps(each)] == good


def test_goodput_is_a_rate_and_a_share_of_all_requests() -> None:
    asked = [
        replace(each, prompt=replace(each.prompt, index=index))
        for index, each in enumerate([FAST, LATE, SLOW, SHORT, FAILED])
    ]
    metric = parse_goodput("ttft:1s,itl:50ms").metric(asked)
    assert metric["avg"] == pytest.approx(2 / 2.0)  # until the last response, at 2 s
    assert (metric["good"], metric["count"], metric["share"]) == (2, 5, 0.4)
    assert metric["share_low"] == pytest.approx(0.1176, abs=1e-4)  # Wilson, 2 of 5
    assert metric["share_high"] == pytest.approx(0.7693, abs=1e-4)


def test_goodput_of_nothing_is_none() -> None:
    metric = parse_goodput("ttft:1s").metric([])
    assert metric["avg"] is metric["share"] is None
