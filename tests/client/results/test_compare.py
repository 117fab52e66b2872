from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from llm_perf.errors import UserError
from llm_perf.record import Record, Status
from llm_perf.results.compare import (
    Change,
    Rule,
    Side,
    compare,
    compare_command,
    parse_rule,
    read_side,
)
from llm_perf.results.export import write_run
from tests.client.runs import asked, make_run

Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(name: str, records: Sequence[Record], scorer: str = "exact") -> Path:
        return write_run(make_run(records, scorer=scorer), tmp_path / f"{name}.json")[0]

    return write


def answered(
    ttfts_ms: Sequence[int], answers: Sequence[str] | None = None, reference: str | None = None
) -> list[Record]:
    return [
        asked(
            index,
            answers[index] if answers else "same",
            chunks_ms=(100 + ttft, 200 + ttft),
            reference=reference,
        )
        for index, ttft in enumerate(ttfts_ms)
    ]


def change(changes: Sequence[Change], name: str) -> Change:
    return next(each for each in changes if f"{each.metric}.{each.statistic}" == name)


def test_a_shift_of_every_request_is_seen_with_certainty(written: Written) -> None:
    ttfts = [10, 400, 50, 90, 1000]
    a = written("a", answered(ttfts))
    b = written("b", answered([ttft + 7 for ttft in ttfts]))
    seen = compare(read_side(a), read_side(b))
    moved = change(seen.changes, "time_to_first_token.avg")
    assert (moved.a, moved.b, moved.n) == (310, 317, 5)
    # each pair moved by 7 ms, however much the requests differ among themselves
    assert (moved.low, moved.high) == pytest.approx((7, 7)) and moved.sure
    assert moved.percent == pytest.approx(100 * 7 / 310)
    assert change(seen.changes, "time_to_first_token.p99").sure
    still = change(seen.changes, "inter_token_latency.avg")
    assert (still.low, still.high) == pytest.approx((0, 0), abs=1e-9)


def test_noise_is_not_taken_for_a_change(written: Written) -> None:
    random = np.random.default_rng(5)
    a, b = (written(name, answered(random.integers(50, 150, 60).tolist())) for name in "ab")
    moved = change(compare(read_side(a), read_side(b)).changes, "time_to_first_token.avg")
    assert moved.low is not None and moved.high is not None
    assert moved.low < 0 < moved.high and not moved.sure


def test_figures_of_the_whole_run_have_no_interval(written: Written) -> None:
    a, b = written("a", answered([10, 20])), written("b", answered([10, 40]))
    moved = change(compare(read_side(a), read_side(b)).changes, "request_throughput.avg")
    assert moved.low is None and moved.n == 0 and not moved.sure


def test_only_requests_that_both_answered_are_paired(written: Written) -> None:
    failed = asked(1, status=Status.TIMEOUT, chunks_ms=())
    a = written("a", answered([10, 20, 30]))
    b = written("b", [answered([10])[0], failed, answered([0, 0, 35])[2]])
    seen = compare(read_side(a), read_side(b))
    assert seen.pairs == 2
    moved = change(seen.changes, "time_to_first_token.avg")
    assert (moved.n, moved.a) == (2, 20)
    assert change(seen.changes, "requests_failed.avg").difference == 1


def test_a_prompt_asked_twice_is_paired_in_its_order(written: Written) -> None:
    def twice(first: int, second: int) -> list[Record]:
        return [*answered([first]), *answered([second])]

    seen = compare(read_side(written("a", twice(10, 90))), read_side(written("b", twice(12, 92))))
    moved = change(seen.changes, "time_to_first_token.avg")
    assert (moved.n, moved.low, moved.high) == (2, pytest.approx(2), pytest.approx(2))


def test_answers_that_changed_and_scores_are_compared(written: Written) -> None:
    a = written("a", answered([10] * 8, list("xxxxxyyy"), "x"))
    b = written("b", answered([10] * 8, list("yyyyxxyz"), "x"))
    seen = compare(read_side(a), read_side(b))
    assert seen.changed == (0, 1, 2, 3, 5, 7)
    assert (seen.only_a, seen.only_b) == (4, 1)
    assert seen.p == pytest.approx(2 * (1 + 5) / 32)  # at most 1 of 5 tosses, two-sided
    assert change(seen.changes, "score.avg").difference == pytest.approx((2 - 5) / 8)


def test_repeats_of_a_prompt_are_no_new_evidence(written: Written) -> None:
    def repeated(last: str) -> list[Record]:
        return answered([100] * 20, ["x"] * 19 + [last], "x") * 10

    seen = compare(read_side(written("a", repeated("x"))), read_side(written("b", repeated("y"))))
    assert (seen.pairs, seen.only_a, seen.only_b, seen.p) == (200, 1, 0, 1.0)


def test_grades_have_an_interval_instead_of_a_test(written: Written) -> None:
    a = written("a", answered([10] * 4, ["red up"] * 4, "red"), "f1")
    b = written("b", answered([10] * 4, ["red"] * 4, "red"), "f1")
    seen = compare(read_side(a), read_side(b))
    assert seen.p is None
    assert change(seen.changes, "score.avg").low == pytest.approx(1 / 3)


def test_runs_of_different_workloads_are_not_compared_by_accident(written: Written) -> None:
    a, b = written("a", answered([10])), written("b", answered([10], reference="other"))
    with pytest.raises(UserError, match="runs of different workloads"):
        compare(read_side(a), read_side(b))
    assert compare(read_side(a), read_side(b), force=True).pairs == 1


@given(
    st.from_regex(r"[a-z_]{1,9}\.[a-z0-9]{1,4}", fullmatch=True),
    st.sampled_from([">", ">=", "<", "<="]),
    st.decimals(-1000, 1000, places=2),
    st.booleans(),
    st.sampled_from(["", " "]),
)
def test_rules_are_read_as_written(
    name: str, operator: str, limit, relative: bool, gap: str
) -> None:
    percent = "%" if relative else ""
    text = f"{name}{gap}{operator}{gap}{limit:+}{gap if relative else ''}{percent}"
    metric, statistic = name.split(".")
    assert parse_rule(text) == Rule(
        text.strip(), metric, statistic, operator, float(limit), relative
    )


@given(st.text(max_size=30))
def test_any_other_text_is_a_user_error_or_a_rule(text: str) -> None:
    try:
        assert parse_rule(text).text == text.strip()
    except UserError as error:
        assert "--fail-if" in str(error)


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        ("m.p99 > +5%", True),
        ("m.p99 > +10%", False),
        ("m.p99 >= 10%", True),
        ("m.p99 > 9", True),
        ("m.p99 > 10", False),
        ("m.p99 < 0", False),
        ("score.avg < -1%", True),
        ("score.avg < -0.1", False),
        ("requests_failed.avg > 0", True),
    ],
)
def test_a_rule_is_about_the_change(rule: str, broken: bool) -> None:
    def side(p99: float, score: float, failed: int) -> Side:
        document = {"m": {"p99": p99}, "score": {"value": score}, "requests_failed": failed}
        return Side(Path("x"), document, ())

    assert parse_rule(rule).broken(side(100, 0.9, 0), side(110, 0.85, 1)) is broken


@pytest.mark.parametrize("rule", ["m.p98 > 1", "n.p99 > 1", "zero.avg > 1%", "none.avg > 1"])
def test_a_rule_about_nothing_is_a_user_error(rule: str) -> None:
    document = {"m": {"p99": 1}, "zero": {"avg": 0}, "none": {"avg": None}}
    side = Side(Path("x"), document, ())
    with pytest.raises(UserError, match="there is no"):
        parse_rule(rule).broken(side, side)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"workload": {}}'])
def test_another_file_is_no_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    (tmp_path / "x.jsonl").write_text("")
    with pytest.raises(UserError, match=r"x\.json: is no run of llm_perf"):
        read_side(tmp_path / "x.json")
    with pytest.raises(UserError, match=r"y\.json: can't be read"):
        read_side(tmp_path / "y.json")


def invoke(*words: object) -> Result:
    return CliRunner().invoke(compare_command, [str(word) for word in words], standalone_mode=False)


def test_the_command_prints_and_its_exit_code_says_what_failed(written: Written) -> None:
    a = written("a", answered([100] * 4, list("xxxx"), "x"))
    b = written("b", answered([110] * 4, list("xxxy"), "x"))
    fine = invoke(a, b, "--fail-if", "time_to_first_token.p99 > +15%")
    assert fine.return_value == 0
    assert "Answers that changed: 1 of 4" in fine.stdout
    assert "prompt 3: 'x' became 'y'" in fine.stdout
    assert "Prompts right only in A: 1, only in B: 0; McNemar's exact p = 1.0000" in fine.stdout
    worse = invoke(a, b, "--fail-if", "time_to_first_token.p99 > +5%", "--fail-if", "score.avg < 0")
    assert worse.return_value == 3
    assert "FAILED: time_to_first_token.p99 > +5%" in worse.stdout
    assert "FAILED: score.avg < 0" in worse.stdout


def test_the_command_speaks_json(written: Written) -> None:
    a = written("a", answered([100] * 4))
    document = json.loads(invoke(a, a, "--json").stdout)
    assert (document["pairs"], document["changed"], document["failed"]) == (4, [], [])
    assert {"metric", "statistic", "a", "b", "low", "high", "n"} == document["changes"][0].keys()
