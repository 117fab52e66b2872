"""What a report decides and draws, on studies whose figures are known; and what it refuses."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import replace
from html import unescape
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_perf import api
from llm_perf.cli.flags import read_workload
from llm_perf.cli.main import command as command_of_llm_perf
from llm_perf.cli.report import report_command
from llm_perf.errors import UserError
from llm_perf.figures.limits import parse_limits
from llm_perf.load.load import Concurrency
from llm_perf.report.charts import against_load, throughput
from llm_perf.report.configuration import told
from llm_perf.report.decision import decide
from llm_perf.report.distributions import distribution
from llm_perf.report.draw import Axis, number, scale
from llm_perf.report.page import build
from llm_perf.report.points import Form, Line, Point, points_of
from llm_perf.report.read import read_results
from llm_perf.report.requests import read_requests
from llm_perf.report.searches import answers
from llm_perf.report.timeline import packed
from llm_perf.report.view import short_names, view_of
from llm_perf.results.export import read_sweep, write_sweep
from llm_perf.search.drawn import sentence
from llm_perf.search.measured import search
from llm_perf.search.question import Question
from llm_perf.workload.synthetic import Lengths
from tests.client.report.made import records, study
from tests.client.runs import TOKENIZER, make_run
from tests.client.search.test_hunt import criteria
from tests.client.search.test_measured import Measured, site

ASSETS = files("llm_perf.report") / "assets"
NO_NAMESPACE = {"http://www.w3.org/2000/svg", "https://github.com/leeoniya/uPlot"}


def line(target: str, load: float, rate: float, ttft: float, runs: int = 1, **more: Any) -> Line:
    """A measurement with these figures, requests/s and ms."""
    metrics = {
        "request_throughput": {"unit": "requests/sec", "avg": rate},
        "output_token_throughput": {"unit": "tokens/sec", "avg": rate * 100},
        "output_token_throughput_per_user": {"unit": "tokens/sec/user", "avg": 1000 / load},
        "inter_token_latency": {"unit": "ms", "avg": load, "p95": load},
        "time_to_first_token": {"unit": "ms", "avg": ttft, "p95": ttft, "p50": ttft / 2},
    }
    return Line(
        {
            "status": "ok",
            "target": {"name": target, "gpus": 1},
            "load": {"kind": "concurrency", "value": load},
            "metrics": metrics,
            **more,
        }
    )


def said(lines: list[Line], limits: str = "ttft.p95<1s", baseline: str | None = None) -> str:
    decision = decide(points_of(lines), parse_limits(limits, "x") if limits else (), baseline)
    return " ".join((decision.sentence, *decision.notes))


Three = tuple[float, float, float]


def three(target: str, load: float, rates: Three, ttfts: Three) -> list[Line]:
    return [line(target, load, r, t) for r, t in zip(rates, ttfts, strict=True)]


def test_the_highest_rate_within_the_limits_is_told_against_the_baseline() -> None:
    told = said([
        line("fp16", 16, 5.0, 400), line("fp16", 32, 7.0, 2000),
        line("fp8", 16, 5.5, 300), line("fp8", 32, 6.05, 900), line("fp8", 64, 8.0, 3000),
    ])  # fmt: skip
    assert told.startswith(
        "fp8 at concurrency 32: 6.05 requests/s with TTFT p95 < 1 s, "
        "21 % above fp16 (the baseline, concurrency 16)."
    )
    assert "The next load measured, concurrency 64, breaks it: TTFT p95 3,000 ms." in told
    assert "no interval" in told


def test_what_lies_on_both_sides_of_a_limit_is_undecided() -> None:
    sure = three("a", 16, (5.0, 5.1, 4.9), (500, 510, 490))
    unsure = three("a", 32, (7.0, 7.1, 6.9), (900, 990, 1080))
    told = said(sure + unsure)
    # Student's interval of 5, 5.1 and 4.9: 4.303 · 0.1 / √3
    assert told.startswith("a at concurrency 16: 5 requests/s [4.75, 5.25] with TTFT p95 < 1 s.")
    assert "Undecided: a at concurrency 32 does more, 7 requests/s [6.75, 7.25], but TTFT" in told
    assert said(unsure).startswith("Undecided: no measured point surely keeps TTFT p95 < 1 s")
    assert said([line("a", 4, 3, 1500)]).startswith("No measured point keeps TTFT p95 < 1 s.")


def test_a_difference_that_may_be_none_is_said_to_be_no_difference() -> None:
    base = three("a", 16, (5.0, 6.0, 4.0), (500, 510, 490))
    other = three("b", 16, (5.2, 6.2, 4.2), (500, 510, 490))
    assert "not told apart" in said(base + other)
    clear = three("b", 16, (9.0, 9.1, 8.9), (500, 510, 490))
    base = three("a", 16, (5.0, 5.1, 4.9), (500, 510, 490))
    assert "80 % above a" in said(base + clear) and "not told apart" not in said(base + clear)


def test_blocks_that_were_measured_in_turns_are_compared_by_pairs() -> None:
    rates = (5.0, 6.0, 4.0, 7.0)  # the same weather for both: 10 % apart in each block
    blocks = [
        line(name, 8, rate * more, 100, repetition=at, kind="block")
        for name, more in (("a", 1.0), ("b", 1.1))
        for at, rate in enumerate(rates)
    ]
    told = said(blocks, "")
    assert told.startswith("b against a at concurrency 8, 4 paired blocks: tokens/s +10.0 % [+10.0")
    assert "mean TTFT +0.0 % [+0.0, +0.0] (not told apart)" in told
    limited = said(blocks)
    assert "+10.0 % [+10.0, +10.0] against a over 4 paired blocks" in limited


def test_without_limits_nothing_is_decided_and_the_pace_says_its_form() -> None:
    told = said([line("a", 4, 3, 100), line("a", 64, 9, 100)], "")
    assert told.startswith("Most throughput: a at concurrency 64, 900 tokens/s.")
    assert "With 50 tokens/s per user or more (mean of 1/TPOT): a at concurrency 4" in told
    assert "No limits were given" in told


def test_what_ails_the_best_point_is_said() -> None:
    bound = {"client": {"client_bound": True}, "requests_failed": 3, "requests_ok": 97}
    told = said([line("a", 4, 3, 100, **bound)])
    assert "CLIENT-BOUND" in told and "3 of 100 requests failed" in told
    with pytest.raises(UserError, match=r"no target is 'c'.*name one of a"):
        said([line("a", 4, 3, 100)], baseline="c")


def test_the_score_changes_by_pairs_of_prompts(tmp_path: Path) -> None:
    for name, score in (("a", 0.9), ("b", 0.6)):
        run = make_run(records(200, 8, 9.0 if name == "a" else 5.0, score), Concurrency(8))
        api.write_run(run, tmp_path / f"{name}.json")
    points = points_of(read_results([str(tmp_path / "a.json"), str(tmp_path / "b.json")]))
    told = decide(points, parse_limits("ttft.p95<9s", "x"), None).sentence
    was, became = (point.figure("score") or 0 for point in points)
    found = re.search(r"score −(\S+) points \[−(\S+), −(\S+)\]", told)
    assert found and float(found[1]) == pytest.approx(100 * (was - became), abs=0.06)
    assert float(found[2]) > float(found[1]) > float(found[3])


def test_the_axis_has_the_form_that_the_limit_speaks_of() -> None:
    points = points_of([line("a", 4, 3, 100), line("a", 20, 9, 100)])
    forms = {
        "itl.avg<20ms": "1/mean TPOT",
        "tokens_per_user.p50>=50": "p50 of 1/TPOT",
        "ttft.p95<1s": "mean of 1/TPOT",
    }
    for limit, name in forms.items():
        view = view_of(points, parse_limits(limit, "x"), [], None)
        assert view.form.name == name
    view = view_of(points, parse_limits("itl.avg<20ms", "x"), [], None)
    chart = throughput(view)
    assert chart and "Tokens/s per user (1/mean TPOT)" in chart.svg and "feasible" in chart.svg
    assert points[0].per_user(Form("inter_token_latency")) == 250


def test_a_target_has_the_same_colour_in_every_chart(tmp_path: Path) -> None:
    points = points_of(read_results([str(study(tmp_path, n=30, loads=(4,)))]))
    view = view_of(points, (), (), None)
    for drawn in (points, points[::-1]):
        chart = distribution(view, "time_to_first_token", drawn)
        assert chart is not None
        for style in view.styles.values():
            named = rf'class="label {style.css}"[^>]*>{re.escape(style.name)}<'
            assert re.search(named, chart.svg)


def test_the_crossing_lies_between_the_loads_measured() -> None:
    points = points_of([line("a", 10, 3, 100), line("a", 40, 9, 400)])
    view = view_of(points, parse_limits("ttft.p95<200ms", "x"), [], None)
    chart = against_load(view, "time_to_first_token", "concurrency")
    # log 2 / log 4 of the way from 10 to 40
    assert chart and "a crosses 200 ms at about 20:" in chart.caption


def test_where_a_line_leaves_a_limit_of_ttft_is_crossed_on_the_chart_of_throughput() -> None:
    points = points_of([line("a", 10, 3, 100), line("a", 40, 9, 400), line("b", 10, 5, 50)])
    limits = parse_limits("ttft.p95<200ms", "x")
    chart = throughput(view_of(points, limits, [], None))
    assert chart and "A cross is where a line leaves TTFT p95 < 200 ms" in chart.caption
    # log 2 / log 4 of the way from (100, 300) to (25, 900)
    mark = r'class="mark {}" transform="translate\(([\d.]+),([\d.]+)\)"'
    crossed = re.findall(mark.format("limit-text"), chart.svg)
    kept = re.findall(mark.format(r"s\d[ a-z]*"), chart.svg)
    places = {tuple(map(float, each)) for each in kept}
    (x, y), (low, high) = map(float, crossed[0]), zip(*places, strict=True)
    assert len(crossed) == 1 and x == pytest.approx((min(low) + max(low)) / 2, abs=0.1)
    assert y == pytest.approx((min(high) + max(high)) / 2, abs=0.1)
    kept_by_all = throughput(view_of(points, parse_limits("ttft.p95<9s", "x"), [], None))
    assert kept_by_all and "cross" not in kept_by_all.caption


def test_what_an_upright_limit_says_stands_above_the_curves(tmp_path: Path) -> None:
    points = points_of(read_results([str(study(tmp_path, n=60, loads=(4, 16)))]))
    view = view_of(points, parse_limits("ttft.p95<40ms,itl.avg<11ms", "x"), (), None)
    for metric in ("time_to_first_token", "inter_token_latency"):
        chart = distribution(view, metric, points)
        assert chart
        (told,) = re.findall(r'class="label limit-text" x="[\d.]+" y="([\d.]+)"', chart.svg)
        top = min(map(float, re.findall(r'class="grid" d="M[\d.]+,([\d.]+)H', chart.svg)))
        assert float(told) < top


def test_where_files_are_on_the_machine_that_measured_stays_there(tmp_path: Path) -> None:
    run = make_run(records(20, 4, 9.0), Concurrency(4))
    run = replace(run, workload=replace(run.workload, source=str(tmp_path / "prompts.jsonl")))
    api.write_run(run, tmp_path / "x.json")
    page, *_ = build(read_results([str(tmp_path / "x.json")]), ())
    assert "--input-data prompts.jsonl" in page and "<dd>prompts.jsonl</dd>" in page
    assert str(tmp_path) not in page and "/examples/number-words" not in page


def test_the_command_of_prompts_that_were_made_up_makes_them_again(tmp_path: Path) -> None:
    lengths = Lengths(48), Lengths(16, 4)
    workload = api.synthetic_workload(TOKENIZER, *lengths, 3, shared_prefix_tokens=8, seed=7)
    run = replace(make_run(records(3, 1, 9.0), Concurrency(1)), workload=workload)
    api.write_run(run, tmp_path / "x.json")
    (point,) = points_of(read_results([str(tmp_path / "x.json")]))
    (command,) = told("x", [point])["commands"].split("\n")
    context = command_of_llm_perf.make_context("llm_perf", shlex.split(command)[1:])
    context.params["tokenizer_path"] = TOKENIZER  # the page has its name alone
    assert read_workload(context.params).sha256 == workload.sha256


def test_what_was_predicted_is_dashed_and_its_error_told() -> None:
    expected = {"output_token_throughput_per_user": 300.0, "output_token_throughput": 330.0}
    measured = [
        line("a", load, rate, 100, prediction={"source": "roofline", "metrics": expected})
        for load, rate in ((4, 3), (8, 5))
    ]
    chart = throughput(view_of(points_of(measured), (), [], None))
    assert (
        chart and "predicted" in chart.svg and chart.rows[0][-2:] == ("300 (+20 %)", "330 (+10 %)")
    )
    plain = throughput(view_of(points_of([line("a", 4, 3, 100)]), (), [], None))
    assert plain and "predicted" not in plain.svg and len(plain.heads) == 4


def test_an_interval_of_blocks_covers_the_figure_and_shrinks(tmp_path: Path) -> None:
    widths = []
    for n in (240, 960):
        run = make_run(records(n, 8, 9.0), Concurrency(8))
        api.write_run(run, tmp_path / f"{n}.json")
        (point,) = points_of(read_results([str(tmp_path / f"{n}.json")]))
        for metric, statistic in (("request_throughput", "avg"), ("time_to_first_token", "p95")):
            low, high = point.interval(metric, statistic) or (0, 0)
            assert low < (point.figure(metric, statistic) or 0) < high
        widths.append(high - low)
    assert widths[1] < widths[0]


@given(st.lists(st.tuples(*[st.floats(0, 50)] * 4, st.booleans()), min_size=1, max_size=40))
def test_packed_requests_come_out_as_they_went_in(rows: list[tuple[Any, ...]]) -> None:
    sent = np.sort(np.array([row[0] for row in rows]))
    queue, wait, flow, ok = (np.array([row[at] for row in rows]) for at in (1, 2, 3, 4))
    first = sent + queue + wait
    from llm_perf.report.requests import Requests

    columns = Requests(0, sent, first, first + flow, ok.astype(bool), sent, sent, sent,
                       {"server_queue_time": queue * 1e3}, ())  # fmt: skip
    told = packed(columns)
    got = np.array(told["requests"]).reshape(-1, 4)
    unit = told["unit_s"]
    assert np.allclose(np.cumsum(got[:, 0]) * unit, sent, atol=unit)
    assert ((got[:, 2] & 1) == ~ok.astype(bool)).all()
    waited = np.where(ok, queue + wait, queue + wait + flow)
    assert np.allclose((got[:, 2] >> 1) * unit, waited, atol=2 * unit)
    assert np.allclose(got[:, 3] * unit, np.where(ok, flow, 0), atol=2 * unit)


@given(
    st.lists(st.floats(-1e9, 1e9) | st.sampled_from([0.0, 1.0]), min_size=1),
    *(st.booleans(),) * 3,
    st.none() | st.just(1.0),
)
def test_an_axis_holds_its_values_between_round_ticks(
    values: list[float], log: bool, zero: bool, blank: bool, top: float | None
) -> None:
    axis = scale(Axis("x", values, log, zero, top, blank), 0, 100)
    for value in values:
        assert -1e-6 <= axis(value) <= 100 + 1e-6
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 12 and ticks == sorted(ticks)
    assert len({number(tick) for tick in ticks}) == len(ticks)


FIGURES = st.sampled_from([None, 0, 1, 1.0, 5e-324, 1e300, "inf", 7.5])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(FIGURES, FIGURES, FIGURES, FIGURES, st.booleans()), max_size=6))
def test_whatever_figures_a_record_has_the_page_is_drawn(rows: list[tuple[Any, ...]]) -> None:
    lines = []
    for at, (rate, ttft, itl, score, twice) in enumerate(rows):
        made = line(f"t{at // 3}", 4.0 if twice else at + 1, 1.0, 1.0)
        metrics = made.record["metrics"]
        metrics["request_throughput"] = {"unit": "", "avg": rate}
        metrics["output_token_throughput"] = {"unit": "", "avg": rate}
        metrics["time_to_first_token"] = {"unit": "ms", "avg": ttft, "p95": ttft, "p50": ttft}
        metrics["inter_token_latency"] = {"unit": "ms", "avg": itl, "p95": itl}
        value = None if score in (None, "inf") else min(float(score), 1.0)
        known = value is not None and {"value": value, "ci95": [value, value]}
        expected = {"metrics": {"output_token_throughput": 1.0, "inter_token_latency": itl}}
        record = {**made.record, "score": known or None, "prediction": expected, "workload": {}}
        lines.append(Line(record))
    for limits in ((), parse_limits("ttft.p95<1s,itl.avg<20ms,score>=0.5", "x")):
        _, charts, decision = build(lines, limits)
        assert decision.sentence
        for chart in charts:
            ElementTree.fromstring(chart.svg)
            assert "nan" not in chart.svg and "inf" not in chart.svg.replace("inference", "")


def test_names_lose_what_all_begin_with() -> None:
    assert short_names(["qwen2-fp8-b64", "qwen2-fp16-b64"]) == {
        "qwen2-fp8-b64": "fp8-b64",
        "qwen2-fp16-b64": "fp16-b64",
    }
    assert short_names(["a"]) == {"a": "a"}
    study = ["m_fp8_tp1_pp1_isl64_bs4", "m_fp8_tp1_pp1_isl64_bs8", "m_fp16_tp1_pp1_isl64_bs8"]
    assert list(short_names(study).values()) == ["fp8_bs4", "fp8_bs8", "fp16_bs8"]
    assert list(short_names(["a_b", "b_a"]).values()) == ["a_b", "b_a"]
    within = ["m_bf16_tp1_bs4", "m_fp8_bf16_tp1_bs4"]
    for names in (within, within[::-1]):
        assert {*short_names(names).values()} == {"bf16", "fp8_bf16"}


def test_the_vendored_library_is_the_published_one() -> None:
    sums = (ASSETS / "uPlot.SHA256SUMS").read_text().split("\n")
    for want, name in (each.split() for each in sums if each):
        assert hashlib.sha256((ASSETS / name).read_bytes()).hexdigest() == want, name
    assert "MIT" in (ASSETS / "uPlot.LICENSE").read_text()


def test_the_command_writes_one_page_that_names_no_place_to_go(tmp_path: Path) -> None:
    folder = study(tmp_path / "study", n=30, loads=(4, 16))
    out = tmp_path / "out" / "report.html"
    words = [str(folder), "-o", str(out), "--limit", "ttft.p95<1s", "--svg", str(tmp_path / "svg")]
    done = CliRunner().invoke(report_command, words, standalone_mode=False)
    assert done.exception is None, done.output
    page = unescape(out.read_text("utf-8"))
    assert done.output.split("\n")[0] in page
    assert set(re.findall(r"https?://[^\s\"'<)]*", page)) <= NO_NAMESPACE
    assert "default-src 'none'" in page and "prompt 3" not in page
    assert len(page) < 250_000
    drawn = [ElementTree.parse(each) for each in sorted((tmp_path / "svg").iterdir())]
    assert len(drawn) == 9


def test_a_sweep_beside_its_loads_counts_once_and_names_are_taken(tmp_path: Path) -> None:
    written = [
        api.write_run(make_run(records(20, n, 9.0), Concurrency(n)),
                      tmp_path / f"fp8_concurrency{n}.json")[0]
        for n in (2, 4)
    ]  # fmt: skip
    write_sweep(read_sweep(written), tmp_path / "fp8.json")
    lines = read_results([str(tmp_path)])
    assert [(each.record["target"]["name"], each.record["load"]["value"]) for each in lines] == [
        ("fp8", 2),
        ("fp8", 4),
    ]
    (named,) = read_results([f"mine={written[0]}"])
    assert named.record["target"]["name"] == "mine" and named.columns is not None
    (tmp_path / "fp8_concurrency2.jsonl").unlink()
    page, *_ = build(read_results([str(written[0])]), ())
    assert "Requests over time" not in page and "script-src" not in page


def test_runs_of_the_same_file_name_are_named_by_their_folders(tmp_path: Path) -> None:
    for name in ("fp8", "fp16"):
        run = make_run(records(20, 4, 9.0), Concurrency(4))
        api.write_run(run, tmp_path / name / "concurrency4.json")
        api.write_run(run, tmp_path / name / "profile_export.json")
    for file in ("concurrency4.json", "profile_export.json"):
        lines = read_results([str(tmp_path / name / file) for name in ("fp8", "fp16")])
        assert [each.record["target"]["name"] for each in lines] == ["fp8", "fp16"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no JSON"),
        ("{}", "is no result of llm_perf"),
        ('{"loads": []}', "is no result of llm_perf"),
        (None, "can't be read"),
    ],
)
def test_what_is_no_result_is_one_line(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=says) as error:
        read_results([str(path)])
    assert "give results of llm_perf" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="no measurement in it"):
        (tmp_path / "empty").mkdir()
        read_results([str(tmp_path / "empty")])


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("load", {"kind": "concurrency", "value": "four"}, r"load\.value"),
        ("load", {}, r"load\.kind"),
        ("request_throughput", {"unit": "", "avg": "fast"}, "metrics"),
        ("request_throughput", {"unit": "", "avg": [1]}, "metrics"),
        ("score", 1, "score"),
    ],
)
def test_a_result_that_was_changed_by_hand_is_one_line(
    tmp_path: Path, part: str, value: object, says: str
) -> None:
    path = api.write_run(make_run(records(2, 1, 9.0), Concurrency(1)), tmp_path / "x.json")[0]
    path.write_text(json.dumps({**json.loads(path.read_text()), part: value}))
    with pytest.raises(UserError, match=f"{says} isn't as llm_perf writes it"):
        read_results([str(path)])


def test_a_broken_line_of_requests_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"status": "ok"}) + "\n")
    with pytest.raises(UserError, match=r"x\.jsonl:1: is no line of a request"):
        read_requests(path)
    assert read_requests(tmp_path / "none.jsonl") is None


def test_a_point_with_a_run_that_lacks_a_figure_has_none() -> None:
    lines = (line("a", 4, 3, 100), line("a", 4, 3, 100))
    lines[1].record["metrics"].pop("time_to_first_token")
    point = Point("a", "concurrency", 4, lines)
    assert point.figure("time_to_first_token", "p95") is None
    assert point.figure("request_throughput") == 3


# figures of a report that a user of trtllm-bench 0.21 showed; its keys as reporting.py writes them
BENCH = {
    "engine": {"model": "meta/llama", "version": "0.21.0", "backend": "Pytorch",
               "dtype": "bfloat16", "kv_cache_dtype": "FP8", "quantization": "FP8"},
    "world_info": {"tp_size": 1, "pp_size": 1, "ep_size": None, "world_size": 1,
                   "max_batch_size": 3840, "max_num_tokens": 7680,
                   "scheduling_policy": "GUARANTEED_NO_EVICT", "kv_cache_percentage": 90.0,
                   "issue_rate": 1e9},
    "request_info": {"num_requests": 3000, "avg_num_concurrent_requests": 94.6,
                     "avg_input_length": 128.0, "avg_output_length": 128.0},
    "performance": {"total_latency_ms": 34665.0, "avg_request_latency_ms": 1093.3,
                    "request_throughput_req_s": 86.5373,
                    "system_output_throughput_tok_s": 11076.8,
                    "system_total_throughput_tok_s": 22153.5,
                    "output_throughput_per_user_tok_s": 117.15,
                    "output_throughput_per_gpu_tok_s": 11076.8},
    "streaming_metrics": {"token_output_speed_tok_s": 137.15, "avg_ttft_ms": 162.7,
                          "avg_tpot_ms": 7.3272},
    "dataset": {},
}  # fmt: skip


def test_a_report_of_trtllm_bench_is_drawn_with_what_differs(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(json.dumps(BENCH))
    api.write_run(make_run(records(40, 8, 9.0), Concurrency(8)), tmp_path / "served.json")
    lines = read_results([str(tmp_path / name) for name in ("bench.json", "served.json")])
    point = points_of(lines)[0]
    assert point.figure("request_throughput") == pytest.approx(86.5, abs=0.1)
    assert point.figure("output_token_throughput") == pytest.approx(11077, abs=1)
    assert point.figure("inter_token_latency") == pytest.approx(7.33, abs=0.01)
    # two forms of "per user" of one report, which an axis has to tell apart
    assert point.per_user(Form("output_token_throughput_per_user")) == 137.15
    assert point.per_user(Form("inter_token_latency")) == pytest.approx(136.48, abs=0.01)
    page, charts, _ = build(lines, ())
    assert (
        "bench at concurrency 94.6" in charts[0].svg and "served at concurrency 8" in charts[0].svg
    )
    assert "measured inside the engine" in page and "interpolate" in page
    broken: dict[str, Any] = {**BENCH, "world_info": None}
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    with pytest.raises(UserError, match="is no report of trtllm-bench that is known"):
        read_results([str(tmp_path / "broken.json")])


def test_what_the_reference_backend_served_says_so_at_its_head(tmp_path: Path) -> None:
    lines = read_results([str(study(tmp_path, n=20, loads=(1, 4)))])
    for at, line in enumerate(lines):
        line.record["target"]["cell"]["backend"] = "reference" if at else "tensorrt"
    _, _, decision = build(lines[:1], ())
    assert "reference backend" not in " ".join(decision.notes)
    _, _, decision = build(lines, ())
    assert "reference backend" in decision.notes[-1]


def test_a_report_without_streaming_has_no_latencies_per_token(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({**BENCH, "streaming_metrics": None}))
    (line,) = read_results([str(tmp_path)])
    assert "time_to_first_token" not in line.record["metrics"]
    assert any("--streaming" in note for note in line.record["notes"])
    page, *_ = build([line], parse_limits("ttft.p95<1s", "x"))
    assert "No measured point keeps" in page


def test_a_search_leads_the_page_with_its_own_answer(tmp_path: Path) -> None:
    question = Question(criteria("ttft.avg<1s"), seed=2)
    answer = search(question, site(tmp_path), Measured())
    lines = read_results([str(tmp_path)])
    (found,) = answers(lines)
    assert found[0] == "here" and answer.interval and found[1].interval == answer.interval
    page, charts, decision = build(lines, ())  # by the search's own limits
    assert decision.sentence == f"here: {sentence(answer)}."
    assert any("ttft" in each.name or "time-to-first" in each.name for each in charts)
    assert "&lt; 1 s</text>" in page
