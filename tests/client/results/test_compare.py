from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from llm_perf.errors import UserError
from llm_perf.figures.limits import Limit, parse_limit
from llm_perf.load.load import Concurrency, Extent
from llm_perf.record import Record, Status
from llm_perf.results.change import Change, compare, pairs
from llm_perf.results.compare import compare_command
from llm_perf.results.export import read_sweep, write_run, write_sweep
from llm_perf.results.rule import judge
from llm_perf.results.written import Side, read_side
from tests.client.runs import asked, make_run

Written = Callable[..., Path]


@pytest.fixture
def written(tmp_path: Path) -> Written:
    def write(name: str, records: Sequence[Record], scorer: str = "exact", **more) -> Path:
        return write_run(make_run(records, scorer=scorer, **more), tmp_path / f"{name}.json")[0]

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
    seen = compare(read_side(a), read_side(b), force=True)
    assert seen.pairs == 2
    moved = change(seen.changes, "time_to_first_token.avg")
    assert (moved.n, moved.a) == (2, 20)
    assert change(seen.changes, "requests_failed.avg").difference == 1


def test_a_prompt_asked_twice_is_paired_in_its_order(written: Written) -> None:
    def twice(first: int, second: int) -> list[Record]:
        return [*answered([first]), *answered([second])]

    seen = compare(read_side(written("a", twice(10, 90))), read_side(written("b", twice(12, 92))))
    moved = change(seen.changes, "time_to_first_token.avg")
    assert (moved.n, moved.difference) == (2, pytest.approx(2))
    assert (moved.low, moved.high) == (None, None)  # one prompt is no sample of prompts


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


def rule(text: str) -> Limit:
    return parse_limit(text, "--fail-if", "change")


def test_a_rule_of_a_time_takes_its_unit(written: Written) -> None:
    a, b = (read_side(written(name, answered([ttft] * 4))) for name, ttft in (("a", 10), ("b", 70)))
    both = pairs(a, b)
    for said, outcome in (("> +50ms", "broken"), ("> 0.05 s", "broken"), ("> 1m", "kept")):
        assert judge(rule(f"ttft.avg {said}"), a, b, both).outcome == outcome


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("ttft.p99 > +5%", "broken"),
        ("ttft.p99 > +10%", "kept"),
        ("ttft.p99 >= 10%", "broken"),
        ("ttft.p99 > 9", "broken"),
        ("ttft.p99 > 10", "kept"),
        ("ttft.p99 < 0", "kept"),
        ("score.avg < -1%", "broken"),
        ("score.avg < -0.1", "kept"),
        ("requests_failed.avg > 0", "broken"),
    ],
)
def test_a_figure_without_an_interval_is_judged_as_it_is(text: str, outcome: str) -> None:
    def side(p99: float, score: float, failed: int) -> Side:
        document = {
            "time_to_first_token": {"p99": p99},
            "score": {"value": score},
            "requests_failed": failed,
        }
        return Side(Path("x"), document, ())

    seen = judge(rule(text), side(100, 0.9, 0), side(110, 0.85, 1), [])
    assert (seen.outcome, seen.low) == (outcome, None)
    assert "it has no interval" in str(seen)


@pytest.mark.parametrize("text", ["ttft.p95 > 1", "itl.p99 > 1", "osl.avg > 1%", "isl.avg > 1"])
def test_a_rule_about_nothing_is_a_user_error(text: str) -> None:
    document = {
        "time_to_first_token": {"p99": 1},
        "output_sequence_length": {"avg": 0},
        "input_sequence_length": {"avg": None},
    }
    side = Side(Path("x"), document, ())
    with pytest.raises(UserError, match="there is no"):
        judge(rule(text), side, side, [])


@pytest.mark.parametrize(
    ("rule", "outcome", "returned"),
    [
        ("time_to_first_token.avg > 1", "unsure", 0),  # 3 ms more, but from -12 to 18
        ("time_to_first_token.avg > 50", "kept", 0),
        ("inter_token_latency.avg > 5%", "broken", 3),  # each pair by 10 %
        ("inter_token_latency.avg > 15%", "kept", 0),
        ("inter_token_latency.p95 > 5%", "broken", 3),  # not in the table, but in the JSON
        ("score.avg < -0.01", "unsure", 0),  # one of 40 is worse, and one is nothing
    ],
)
def test_a_rule_is_judged_by_the_near_end_of_the_interval(
    written: Written, rule: str, outcome: str, returned: int
) -> None:
    random = np.random.default_rng(1)
    ttfts = random.integers(50, 150, 80)

    def records(ttfts: Sequence[int], gap: int, answers: str) -> list[Record]:
        return [
            asked(i, answers[i], (100 + ttft, 100 + ttft + 4 * gap), reference="x")
            for i, ttft in enumerate(ttfts)
        ]

    a = written("a", records(ttfts[:40].tolist(), 10, "x" * 40))
    b = written("b", records((ttfts[40:] + 3).tolist(), 11, "x" * 39 + "y"))
    said = invoke(a, b, "--fail-if", rule)
    document = json.loads(invoke(a, b, "--fail-if", rule, "--json").stdout)
    verdict = document["rules"][0]
    assert (verdict["outcome"], said.return_value) == (outcome, returned)
    assert document["failed"] == ([rule] if returned else [])
    assert verdict["low"] < verdict["change"] < verdict["high"] or outcome != "unsure"
    begin = {"broken": "FAILED", "unsure": "not sure", "kept": "passed"}[outcome]
    assert f"{begin}: {rule}: the change is " in said.stdout and "interval" in said.stdout


def test_repeats_of_a_prompt_do_not_narrow_an_interval(written: Written) -> None:
    random = np.random.default_rng(3)
    ttfts, later = random.integers(50, 150, (2, 10)).tolist()

    def width(times: int) -> float:
        a, b = (written(name, answered(of) * times) for name, of in (("a", ttfts), ("b", later)))
        moved = change(compare(read_side(a), read_side(b)).changes, "time_to_first_token.avg")
        assert moved.low is not None and moved.high is not None
        return moved.high - moved.low

    assert width(10) == pytest.approx(width(1), rel=0.15)


def test_other_loads_and_other_failures_are_refused_or_said(written: Written) -> None:
    fine = answered([10] * 20)
    bad = [asked(each.prompt.index, status=Status.CUT) for each in fine[:3]] + fine[3:]
    a = read_side(written("a", fine, max_in_flight_seen=4))
    faster = read_side(written("b", fine, load=Concurrency(8), max_in_flight_seen=8))
    with pytest.raises(UserError, match=r"different loads \(concurrency 4 and concurrency 8\)"):
        compare(a, faster)
    assert any("loads differ" in each for each in compare(a, faster, force=True).warnings)
    broken = read_side(written("c", bad, max_in_flight_seen=4))
    with pytest.raises(UserError, match=r"0% of the requests failed in .*, 15% in .*"):
        compare(a, broken)
    fewer = read_side(
        written(
            "d",
            [bad[0], *fine[1:]],
            max_in_flight_seen=3,
            extent=Extent(warmup_requests=5),
            stopped="interrupted",
            unique_prefix=True,
        )
    )
    assert compare(a, fewer).warnings == (
        "warm-up requests: 0 in A, 5 in B",
        "--unique-prefix: False in A, True in B",
        "requests in flight, at most: 4 in A, 3 in B",
        "requests failed: 0 of 20 in A, 1 of 20 in B; figures are of the others",
        "B ended early: interrupted",
    )
    assert compare(a, a).warnings == ()


def test_two_failed_runs_are_not_equal(written: Written) -> None:
    failed = [asked(i, status=Status.REFUSED, chunks_ms=()) for i in range(20)]
    a, b = written("a", failed), written("b", failed)
    for words in ((a, b), (a, b, "--fail-if", "time_to_first_token.p99 > 5%")):
        said = invoke(*words)
        assert said.return_value == 3
        assert (
            "FAILED: there is nothing to compare: A answered 0 of 20 requests, B 0 of 20"
            in said.stdout
        )
    one_dead = invoke(written("c", answered([10] * 20)), b, "--fail-if", "requests_failed.avg > 0")
    assert one_dead.return_value == 3


def test_what_is_the_same_is_not_an_interval_of_zeros(written: Written) -> None:
    a = written("a", answered([100, 110], ["x", "x"], "x"))
    text = invoke(a, a).stdout
    assert "+0.000 to +0.000" not in text
    assert "no change" in text
    score = change(compare(read_side(a), read_side(a)).changes, "score.avg")
    assert score.low is not None and score.low < -0.3  # two equal answers prove little


def test_an_infinite_pace_leaves_the_other_statistics_their_intervals(written: Written) -> None:
    """Tokens that come at once have an infinite pace: no mean, but a median like any."""

    def paced(by_ms: int, at_once: int) -> list[Record]:
        gaps = [0] * at_once + [by_ms + index % 3 for index in range(20 - at_once)]
        return [asked(index, chunks_ms=(150, 150 + gap)) for index, gap in enumerate(gaps)]

    a, b = written("a", paced(40, 0)), written("b", paced(80, 1))
    seen = compare(read_side(a), read_side(b))
    mean, median = (
        change(seen.changes, f"output_token_throughput_per_user.{each}") for each in ("avg", "p50")
    )
    assert (mean.b, mean.low, mean.percent) == (float("inf"), None, None)
    assert median.low is not None and median.low < median.difference < 0 and median.sure
    assert "nan" not in invoke(a, b).stdout
    told = json.loads(invoke(a, b, "--json").stdout, parse_constant=pytest.fail)
    assert any(each["b"] == "inf" for each in told["changes"])
    assert "nan" not in invoke(b, b).stdout  # infinity less itself


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"workload": {}}'])
def test_another_file_is_no_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    (tmp_path / "x.jsonl").write_text("")
    with pytest.raises(UserError, match=r"x\.json: is no run of llm_perf"):
        read_side(tmp_path / "x.json")
    (tmp_path / "sweep.json").write_text('{"loads": []}')
    with pytest.raises(UserError, match=r"sweep\.json: .* loads whose files it doesn't name"):
        read_side(tmp_path / "sweep.json")
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
    assert (
        "FAILED: time_to_first_token.p99 > +5%: the change is +10 %, 95 % interval" in worse.stdout
    )
    assert "not sure: score.avg < 0: the change is -0.25, 95 % interval" in worse.stdout


def test_sweeps_are_compared_load_by_load(written: Written, tmp_path: Path) -> None:
    def sweep(name: str, ttfts: dict[int, int]) -> Path:
        runs = [
            written(f"{name}_{n}", answered([ttft] * 4), load=Concurrency(n))
            for n, ttft in ttfts.items()
        ]
        write_sweep(read_sweep(runs), tmp_path / f"{name}.json")
        return tmp_path / f"{name}.json"

    a, b = sweep("a", {1: 100, 4: 200, 8: 400}), sweep("b", {2: 0, 4: 230, 1: 101})
    done = invoke(a, b, "--fail-if", "ttft.avg > +10%")
    assert done.return_value == 3
    said = ("FAILED", "passed", "a_1.json", "b_4.json")
    assert [done.stdout.count(each) for each in said] == [1] * 4
    assert done.stderr == "Only in A: concurrency 8\nOnly in B: concurrency 2\n"
    loads = json.loads(invoke(a, b, "--json", "--fail-if", "ttft.avg > +10%").stdout)["loads"]
    assert [(Path(each["b"]).name, bool(each["failed"])) for each in loads] == [
        ("b_1.json", False),
        ("b_4.json", True),
    ]
    one = json.loads(invoke(tmp_path / "a_4.json", b, "--json").stdout)["loads"]
    assert [(each["pairs"], Path(each["a"]).name) for each in one] == [(4, "a_4.json")]
    assert "no load in common" in str(invoke(a, sweep("c", {16: 1, 32: 1})).exception)


def test_the_command_speaks_json(written: Written) -> None:
    a = written("a", answered([100] * 4))
    document = json.loads(invoke(a, a, "--json").stdout)
    assert (document["pairs"], document["changed"], document["failed"]) == (4, [], [])
    assert {"metric", "statistic", "a", "b", "low", "high", "n"} == document["changes"][0].keys()
