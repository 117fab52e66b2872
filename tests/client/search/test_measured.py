"""Searches whose runs are kept: killed at any run and begun again, none is made twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llm_perf.api import (
    Answer,
    Conditions,
    Endpoint,
    Planned,
    Question,
    Site,
    Target,
    read_measurements,
)
from llm_perf.cli.search import search_command
from llm_perf.errors import UserError
from llm_perf.figures.metrics import compute_metrics
from llm_perf.load.load import Concurrency, Extent, Load, Rate
from llm_perf.record import Record, Status
from llm_perf.results.run import Run
from llm_perf.search.drawn import print_answer, sentence, to_json
from llm_perf.search.measured import look_at, search, searched
from llm_perf.search.question import Mode
from llm_perf.selftest.nullserver import MODEL
from llm_perf.selftest.selftest import null_server
from llm_perf.workload.workload import Prompt, Workload
from tests.client.runs import MS
from tests.client.search.simulated import TOKENS, Server
from tests.client.search.test_hunt import criteria

QUICK = Mode("quick", 2, 60, opened=0.2, promise=0.5)
PROMPT = Prompt(0, "x", None, TOKENS)
SERVER = Server(slots=4)


class Measured:
    """Measures the simulated server; counts, and may end or break off what it is asked for."""

    def __init__(self, ends: Sequence[str | None] = (), kill_at: int | None = None) -> None:
        self.asked: list[tuple[Load, int | None]] = []
        self.ends: Iterator[str | None] = iter(ends)
        self.kill_at = kill_at

    def __call__(
        self, endpoint: Endpoint, workload: Workload, load: Load, conditions: Conditions
    ) -> Run:
        n = conditions.extent.requests or 1
        if len(self.asked) == self.kill_at:
            raise KeyboardInterrupt
        self.asked.append((load, conditions.extent.requests))
        if isinstance(load, Concurrency):
            at, ttft, services = SERVER.closed(load.n, n, len(self.asked))
        else:
            assert isinstance(load, Rate)
            at, ttft, services = SERVER.open(load.per_s, n, load.seed)
        records = [
            _record(number, *each)
            for number, each in enumerate(zip(at, ttft, at + ttft + services, strict=True))
        ]
        metrics = compute_metrics(records)
        if conditions.goodput:
            metrics["request_goodput"] = conditions.goodput.metric(records)
        return Run(
            endpoint,
            workload,
            load,
            started_at="2026-01-02T03:04:05+00:00",
            records=records,
            metrics=metrics,
            accuracy=None,
            extent=conditions.extent,
            stopped=next(self.ends, None),
        )


def _record(number: int, at: float, ttft: float, end: float) -> Record:
    due, first, last = (round(each * 1000) * MS for each in (at, at + ttft, end))
    return Record(
        PROMPT, f"r{number}", Status.OK, None, due, due, last, (first, last), "x", TOKENS, None
    )


def site(folder: Path) -> Site:
    endpoint = Endpoint("localhost:8001", "grpc", "ensemble")
    target = Target("here", endpoint.url, endpoint.protocol, endpoint.model)
    workload = Workload("prompts.jsonl", (PROMPT,), "0" * 64, None, 0)
    return Site(endpoint, target, workload, folder, Conditions())


ASKED = Question(criteria("ttft.avg<1s"), mode=QUICK, seed=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer, Measured]:
    """A search of one go: its ledger, its answer, what it measured."""
    folder, measured = tmp_path_factory.mktemp("whole"), Measured()
    return folder, search(ASKED, site(folder), measured), measured


def test_a_killed_search_goes_on_where_it_was_and_answers_the_same(tmp_path: Path) -> None:
    for kill_at in (1, 4, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            search(ASKED, site(tmp_path), Measured(kill_at=kill_at))
    known: list[bool] = []
    answer = search(ASKED, site(tmp_path), Measured(), lambda ask, seen, had: known.append(had))
    assert known[:13] == [True] * 13 and not any(known[13:])
    again = Measured()
    assert to_json(search(ASKED, site(tmp_path), again)) == to_json(answer)
    assert again.asked == []
    lines = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert len({each["id"] for each in lines}) == len(lines) == len(known)


def test_every_run_stands_in_the_ledger_as_a_probe(whole: tuple[Path, Answer, Measured]) -> None:
    folder, answer, _ = whole
    kept = read_measurements(folder)
    assert sum(each["load"]["requests"] for each in kept) == answer.requests
    assert {each["kind"] for each in kept} == {"probe"}
    assert [each["search"]["number"] for each in kept if each["search"]] == list(range(len(kept)))
    last = kept[-1]
    assert last["search"] and last["search"]["stage"] == "ends"
    assert last["search"]["limits"] == ["ttft.avg<1s"]
    assert last["metrics"]["request_goodput"]["limits"] == "ttft<1s"
    assert {each["repetition"] for each in kept} >= {0, 1}


def test_other_limits_over_the_same_ledger_are_measured_anew(
    whole: tuple[Path, Answer, Measured],
) -> None:
    folder, answer, _ = whole
    with pytest.raises(KeyboardInterrupt):  # asks at once
        other = replace(ASKED, criteria=criteria("ttft.avg<2s"))
        search(other, site(folder), Measured(kill_at=0))
    assert to_json(search(ASKED, site(folder), Measured(kill_at=0))) == to_json(answer)


def test_a_known_run_counts_only_where_no_longer_one_is_asked_for(
    tmp_path: Path, whole: tuple[Path, Answer, Measured]
) -> None:
    folder, short, _ = whole
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    again = Measured()
    longer = replace(ASKED, mode=replace(QUICK, requests=400))
    answer = search(longer, site(tmp_path), again)
    assert answer.loops == short.loops and answer.rough[0].value == short.rough[0].value
    assert (short.rough[0].seen[0].requests, answer.rough[0].seen[0].requests) == (100, 200)
    assert sum(requests or 0 for _, requests in again.asked) < answer.requests


def test_a_run_says_at_which_share_of_its_rate_requests_left(tmp_path: Path) -> None:
    here = site(tmp_path)
    conditions = replace(here.conditions, extent=Extent(100))
    run = Measured()(here.endpoint, here.workload, Rate(1.0), conditions)
    late = [replace(each, sent_ns=2 * each.sent_ns) for each in run.records]
    assert look_at(ASKED, run, 1.0).offered == 1.0
    assert look_at(ASKED, replace(run, records=late), 1.0).offered == pytest.approx(0.5)
    assert look_at(ASKED, replace(run, records=late, load=Concurrency(4)), 1.0).offered == 1.0


def test_a_lost_run_breaks_the_limits(tmp_path: Path, whole: tuple[Path, Answer, Measured]) -> None:
    _, _, first = whole
    rough = next(number for number, (load, _) in enumerate(first.asked) if isinstance(load, Rate))
    lost = Measured([*[None] * rough, "hopeless: 9, 20, 40 in flight"])
    answer = search(ASKED, site(tmp_path / "lost"), lost)
    assert answer.rough[0].seen[0].hopeless
    stopped = [each for each in read_measurements(tmp_path / "lost") if each["status"] == "stopped"]
    assert len(stopped) == 1
    assert search(ASKED, site(tmp_path / "lost"), Measured(kill_at=0)).rough[0].seen[0].hopeless


@pytest.mark.parametrize("why", ["for 10 s nothing but refusals: no", "5 requests failed"])
def test_a_server_that_is_gone_ends_the_search_with_a_word(tmp_path: Path, why: str) -> None:
    with pytest.raises(UserError, match=f"the search ended at concurrency 8: {why}"):
        search(ASKED, site(tmp_path), Measured([None, why]))
    assert len(read_measurements(tmp_path)) == 1


def test_a_budget_that_ends_in_the_middle_of_a_run_ends_in_an_answer(tmp_path: Path) -> None:
    asked = replace(ASKED, budget_s=3600)
    answer = search(asked, site(tmp_path), Measured([None, None, "the budget is spent"]))
    assert answer.ended == "the budget is spent" and answer.interval is None
    assert [each["status"] for each in read_measurements(tmp_path)] == ["ok", "ok", "stopped"]
    assert searched(asked, site(tmp_path)) == answer  # which is all that this budget gives
    assert searched(replace(asked, budget_s=3700), site(tmp_path)) is None
    loop = answer.loops[0].seen[0].throughput
    assert sentence(answer) == (
        f"ttft.avg<1s: perhaps {loop:.3g} requests/s, by single runs, which prove nothing; "
        "the budget is spent"
    )


def test_an_answer_is_drawn_within_80_columns(
    whole: tuple[Path, Answer, Measured], capsys: pytest.CaptureFixture[str]
) -> None:
    _, answer, _ = whole
    print_answer(answer)
    text = capsys.readouterr().out
    assert sentence(answer) in text and answer.about is not None and answer.low and answer.high
    assert f"up to about {answer.about:.3g} requests/s (±" in text
    assert "● held  ✗ broken" in text and text.count("✗") >= 2
    assert f"{answer.low.value:.3g}" in text and f"{answer.high.value:.3g}" in text
    plot = [line for line in text.splitlines() if ("│" in line and "╌" in line) or "└───" in line]
    assert plot and all(len(line) <= 80 for line in plot)
    assert json.loads(json.dumps(to_json(answer)))["mode"] == "quick"


def test_the_command_searches_a_server_and_goes_on_from_its_ledger(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"text_input": "4 2000", "max_tokens": 4}\n')

    def run(url: str, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-m", "llm_perf", "search", "-u", url, "-m", MODEL),
                *("--input-data", str(prompts), "--limit", "ttft.p95<1us", "--limit", "itl.avg<1s"),
                *("--ledger", str(tmp_path / "ledger"), *more),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    with null_server() as url:
        found = run(url)
        assert found.returncode == 1, found.stderr
        assert "one request at a time doesn't keep the limits either" in found.stdout
        assert "indicative: 3 runs that agree at each end, ±20%" in found.stderr
        again = run(url, "--json")
        assert "from the ledger" in again.stderr
        assert json.loads(again.stdout)["requests"] == 8
        wrong = run(url, "--limit", "ttft<1s")
    assert wrong.returncode == 2 and "ttft has avg" in wrong.stderr
    assert len(read_measurements(tmp_path / "ledger")) == 1


def test_probes_of_one_load_are_different_measurements(tmp_path: Path) -> None:
    here = site(tmp_path)
    one = Planned(here.target, Concurrency(8), here.workload, seed=1, kind="probe")
    assert one.id != replace(one, seed=2).id


def test_a_search_that_is_refused_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"text_input": "one"}\n')
    words = ["-u", "http://127.0.0.1:9", "--input-data", "prompts.jsonl", "--limit", "ttft.p95<1s"]
    with pytest.raises(UserError):
        search_command.main(words, standalone_mode=False)
    assert not (tmp_path / "artifacts").exists()
