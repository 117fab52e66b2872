from __future__ import annotations

import csv
import json
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from llm_perf.load.load import Rate
from llm_perf.record import Record, Status
from llm_perf.results.export import EXTRAS, export_path, write_run
from llm_perf.results.genai_perf import csv_text, genai_perf, perf_analyzer, perf_analyzer_requests
from llm_perf.results.run import Run
from tests.client.runs import MS, asked, make_run

RECORDS = [
    asked(0, answer="one two", reference="one two", category="en", sampling={"top_k": 1}),
    asked(1, answer="四千七", reference="四千", chunks_ms=(200, 210), tokens=3),
    asked(2, answer="half", status=Status.CUT, chunks_ms=(300,)),
]


@pytest.fixture
def run() -> Run:
    return make_run(
        RECORDS,
        server={"version": "2.51.0"},
        server_metrics={"gpus": [{"uuid": "GPU-1"}]},
    )


def test_everything_is_written_under_names_of_the_run(run: Run, tmp_path: Path) -> None:
    written = write_run(run, tmp_path / "x.json", EXTRAS)
    assert [str(path.relative_to(tmp_path)) for path in written] == [
        "x.json",
        "x.jsonl",
        "x_answers.jsonl",
        "x/profile_export.json",
        "x/profile_export_genai_perf.json",
        "x/profile_export_genai_perf.csv",
    ]
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(written)
    assert len(write_run(run, tmp_path / "y.json")) == 2


def test_a_fault_in_one_file_costs_no_other(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(_run: Run) -> str:
        raise LookupError("odd")

    monkeypatch.setattr("llm_perf.results.export.csv_text", odd)
    with pytest.raises(LookupError, match="odd"):
        write_run(run, tmp_path / "x.json", EXTRAS)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 5


def test_a_checkout_that_is_not_installed_writes_its_results(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("llm_perf.results.run.version", lost)
    path, _ = write_run(run, tmp_path / "x.json")
    assert json.loads(path.read_text())["client"]["llm_perf"] == "not installed"


def test_every_export_says_what_was_measured(run: Run, tmp_path: Path) -> None:
    for path in write_run(run, tmp_path / "x.json", EXTRAS):
        if path != tmp_path / "x.jsonl":  # the JSON beside it does
            assert run.workload.sha256 in path.read_text()
    document = json.loads((tmp_path / "x.json").read_text())
    assert document["workload"]["seed"] == 7
    assert document["server"] == {"version": "2.51.0"}
    assert document["server_metrics"]["gpus"] == [{"uuid": "GPU-1"}]
    assert document["client"].keys() == {"llm_perf", "python", "host", "clock"}


def test_a_request_is_a_line_with_its_own_figures(run: Run, tmp_path: Path) -> None:
    _, path = write_run(run, tmp_path / "x.json")
    first, second, cut = (json.loads(line) for line in path.read_text().splitlines())
    assert first["metrics"]["time_to_first_token"] == pytest.approx(50)
    assert first["metrics"]["inter_token_latency"] == pytest.approx(10)
    assert first["sampling"] == {"top_k": 1}
    assert (first["score"], second["score"], cut["score"]) == (1, 0, None)
    assert (cut["status"], cut["error"], cut["metrics"]) == ("cut", "out of pages", {})


def test_answers_are_for_graders(run: Run, tmp_path: Path) -> None:
    path = write_run(run, tmp_path / "x.json", ("answers",))[2]
    assert next(json.loads(line) for line in path.read_text().splitlines()) == {
        "workload_sha256": run.workload.sha256,
        "index": 0,
        "status": "ok",
        "prompt": "prompt 0",
        "answer": "one two",
        "reference": "one two",
        "category": "en",
        "score": 1,
    }


def test_perf_analyzers_schema_has_one_timestamp_and_output_per_response(run: Run) -> None:
    document = perf_analyzer(run, list(perf_analyzer_requests(run)))
    assert (document["service_kind"], document["endpoint"]) == ("triton", "")
    (experiment,) = document["experiments"]
    assert experiment["experiment"] == {"mode": "concurrency", "value": 4}
    assert experiment["window_boundaries"] == [100 * MS, 210 * MS]
    first, second = experiment["requests"]
    assert first == {
        "timestamp": 100 * MS,
        "request_inputs": {"text_input": "prompt 0", "max_tokens": 64},
        "response_timestamps": [150 * MS, 160 * MS, 190 * MS],
        "response_outputs": [
            {"text_output": "on"},
            {"text_output": "e "},
            {"text_output": "two"},
        ],
    }
    assert "".join(each["text_output"] for each in second["response_outputs"]) == "四千七"


def test_a_rate_is_perf_analyzers_request_rate() -> None:
    for rate, value in ((2.5, 2.5), (float("inf"), 0)):
        (experiment,) = perf_analyzer(make_run([asked()], Rate(rate)), [])["experiments"]
        assert experiment["experiment"] == {"mode": "request_rate", "value": value}


def test_a_run_without_answers_can_be_written(tmp_path: Path) -> None:
    failed: list[Record] = [asked(0, status=Status.REFUSED, chunks_ms=())]
    assert len(write_run(make_run(failed), tmp_path / "x.json", EXTRAS)) == 6


def test_genai_perfs_json_has_its_keys(run: Run) -> None:
    document = genai_perf(run)
    assert document["input_config"]["model_names"] == ["ensemble"]
    for key in (
        *("request_throughput", "request_latency", "time_to_first_token", "time_to_second_token"),
        *("inter_token_latency", "output_token_throughput", "output_token_throughput_per_user"),
        *("output_sequence_length", "input_sequence_length", "request_count"),
    ):
        assert {"unit", "avg"} <= document[key].keys()


def test_genai_perfs_csv_has_its_header_and_names(run: Run) -> None:
    rows = list(csv.reader(csv_text(run).splitlines()))
    assert ",".join(rows[0]) == "Metric,avg,min,max,p99,p95,p90,p75,p50,p25,p10,p5,p1"
    first = rows[1]
    assert first[:4] == ["Time To First Token (ms)", "75.00", "50.00", "100.00"]
    system = rows.index([], 0)
    assert rows[system + 1] == ["Metric", "Value"]
    figures = dict(rows[system + 2 : rows.index([], system + 1)])
    assert figures["Request Count (count)"] == "2.00"
    assert figures["Requests Failed (count)"] == "1"
    assert {"Request Throughput (per sec)", "Output Token Throughput (tokens/sec)"} <= set(figures)
    settings = dict(rows[rows.index(["Setting", "Value"]) + 1 :])
    assert settings["Workload SHA-256"] == run.workload.sha256
    assert settings["Server version"] == "2.51.0"


def test_several_loads_have_files_of_their_own() -> None:
    assert export_path("a/x.json", "rate2", several=True) == Path("a/x_rate2.json")
    assert export_path("a/x.json", "rate2", several=False) == Path("a/x.json")


def test_what_no_file_can_hold_loses_no_run(tmp_path: Path) -> None:
    half = "half \ud800 a pair"
    odd = replace(asked(0, half, status=Status.ERROR), error=half)
    pages = {"gauge": {"avg": float("nan"), "max": float("inf"), "all": (1.5, float("-inf"))}}
    run = make_run([odd, asked(1)], server={"version": half}, server_metrics=pages)
    path, lines, *_ = write_run(run, tmp_path / "r.json", EXTRAS)
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["server"]["version"] == half  # as JSON escapes it
    assert document["server_metrics"]["gauge"] == {"avg": None, "max": "inf", "all": [1.5, "-inf"]}
    first = json.loads(lines.read_text(encoding="utf-8").splitlines()[0])
    assert (first["answer"], first["error"]) == (half, half)
