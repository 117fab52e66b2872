"""A study goes on where it was killed, and what fails is a line of its ledger like the rest."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import psutil
import pytest

from llm_perf import api
from llm_perf.selftest.nullserver import MODEL as NULL
from llm_perf.workload.tokens import load_tokenizer
from llm_perf.workload.workload import Prompt, Workload
from tests.deploy.light_study import NullServer
from tests.deploy.matrix import MODEL, Matrix, kill_tree
from tests.processes import tree
from trtllm_deploy.spec.studies import MeasureSpec
from trtllm_deploy.study import measure
from trtllm_deploy.study.up import Up
from trtllm_deploy.workspace.folder import Workspace

LOADS = {"concurrency": [1, 2], "request_rate": 200, "fresh": True}


@dataclass
class Study(Matrix):
    """A matrix that is measured too, each request 20 ms long."""

    script: ClassVar[Path] = Path(__file__).parents[1] / "light_study.py"
    does: ClassVar[str] = "run"
    measure: dict[str, Any] = field(default_factory=lambda: LOADS)

    def _spec(self) -> dict[str, Any]:
        prompts = self.root / "prompts.jsonl"
        prompts.write_text(
            "".join(json.dumps({"text_input": f"8 {2500 + n}"}) + "\n" for n in range(30))
        )
        self.environment["STUDY_SERVERS"] = str(self.root / "servers")
        return {**super()._spec(), "measure": {"data": str(prompts), **self.measure}}

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """Every line, as it stands."""
        path = self.workspace / "results" / "ledger.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def wait_for_lines(self, count: int) -> None:
        until = time.monotonic() + 60
        while len(self.ledger) < count:
            assert time.monotonic() < until, len(self.ledger)
            time.sleep(0.01)

    def servers(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.root / "servers").read_text().splitlines()]


def test_a_killed_study_goes_on_and_no_measurement_is_lost_or_doubled(tmp_path: Path) -> None:
    study = Study(tmp_path, models=1, batches=2, tp=4)
    for alone in (False, True):
        before = len(study.ledger)
        running = study.start()
        study.wait_for_lines(before + 1)
        assert running.poll() is None
        below = tree(running.pid)
        if alone:
            running.kill()
        else:
            kill_tree(running.pid)
        running.wait()
        made = Counter(line["target"]["name"] for line in study.ledger)
        least = min((study.workspace / "ensemble_models").iterdir(), key=lambda x: made[x.name])
        folder = study.workspace / "results" / least.name
        folder.mkdir(exist_ok=True)
        (folder / ".concurrency1.json.0123abcd").touch()
        if alone:  # its workers end by themselves; the next run waits for those it meets
            assert psutil.wait_procs(below, timeout=20)[1] == []
    done = study.run()
    assert done.returncode == 0, done.stderr
    lines = study.ledger
    assert [line["status"] for line in lines] == ["ok"] * 12
    each = Counter((line["target"]["name"], json.dumps(line["load"])) for line in lines)
    assert len(each) == 12 and set(each.values()) == {1}
    assert len({line["id"] for line in lines}) == 12
    for line in lines:
        requests = study.workspace / "results" / line["files"]["requests"]
        assert len(requests.read_text().splitlines()) == line["requests_ok"] == 10
        assert requests.with_suffix(".json").is_file()
    assert not list((study.workspace / "results").rglob(".*.0123abcd"))
    _share_no_gpu(study.servers())
    known = study.servers()
    again = study.run()
    assert again.returncode == 0 and "12 measurements were there already" in again.stdout
    assert study.ledger == lines and study.servers() == known
    assert _table(again.stdout) == _table(done.stdout)


def _table(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.endswith("tensorrt")]


def _share_no_gpu(servers: list[dict[str, Any]]) -> None:
    """Of servers up at a time no two have a GPU in common, and two were up at some time."""
    up: dict[str, set[str]] = {}
    most = 0
    for each in servers:
        if not each["begins"]:
            up.pop(each["cell"], None)
            continue
        assert len(each["gpus"]) == 4
        up[each["cell"]] = set(each["gpus"])
        most = max(most, len(up))
    assert most >= 2


def test_what_fails_is_a_line_too_and_the_rest_goes_on(tmp_path: Path) -> None:
    measure = {"concurrency": [1, 2], "limits": "ttft.p95<10s"}
    study = Study(tmp_path, models=1, batches=2, tp=4, measure=measure)
    faults = {"TRT_STANDIN_FAULT": "oom", "TRT_STANDIN_FAULT_IN": "--max_batch_size 2"}
    done = study.run(**faults, STUDY_FAULT="fp8")
    assert done.returncode == 2  # two cells aren't built
    state = {
        (each["target"]["cell"]["precision"], each["target"]["cell"]["max_batch_size"]): each
        for each in study.ledger
    }
    assert len(study.ledger) == 8 and len(state) == 4
    assert state["fp16", 1]["status"] == "ok"
    assert "before it was ready: out of memory" in state["fp8", 1]["error"]
    for precision in ("fp16", "fp8"):
        assert state[precision, 2]["status"] == "failed"
        assert "trtllm-build" in state[precision, 2]["error"]
    assert "fp8_tp4_pp1_isl64_osl64_bs1 failed at concurrency 1, concurrency 2: " in done.stdout
    page = (study.workspace / "results" / "report.html").read_text(encoding="utf-8")
    assert "TTFT p95 &lt; 10 s" in page and "before it was ready: out of memory" in page
    assert "requests/s with TTFT p95 < 10 s" in done.stdout
    good = study.run(STUDY_FAULT="fp8")
    assert good.returncode == 1  # all are built, not all measured
    assert "4 measurements" not in good.stdout and "2 measurements were there" in good.stdout
    assert study.run("--again").returncode == 0
    assert [line["status"] for line in study.ledger[-8:]] == ["ok"] * 8
    assert len(api.read_measurements(study.workspace / "results")) == 8


PROMPTS = tuple(Prompt(n, "2 1000", 2, 4) for n in range(4))
WORKLOAD = Workload("prompts", PROMPTS, "hash", load_tokenizer(MODEL))
CELL = api.Target("cell", "", "", "", cell={}, artifacts={})
STAGE: Any = SimpleNamespace(key="key")


@pytest.fixture
def measurer(tmp_path: Path) -> measure.Measurer:
    """Three loads of one cell."""
    asked = SimpleNamespace(
        of=lambda *_, **__: [api.Planned(CELL, api.Concurrency(n), WORKLOAD) for n in (1, 2, 3)],
        workspace=Workspace(tmp_path),
        settings=MeasureSpec(data="prompts"),
        file=SimpleNamespace(deployment=SimpleNamespace(study=[])),
        predicted=lambda *_: None,
    )
    plan = SimpleNamespace(cell=SimpleNamespace(name="cell"))
    return measure.Measurer(asked, {"key": plan})  # type: ignore[arg-type, dict-item]


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> list[NullServer]:
    """The servers that were started, in their order."""
    started: list[NullServer] = []

    @contextmanager
    def served(*_: object) -> Iterator[Up]:
        with NullServer() as server:
            started.append(server)
            yield Up(api.Endpoint(server.url, "grpc", NULL))

    monkeypatch.setattr(measure, "served", served)
    return started


@pytest.mark.parametrize(("dies_at", "starts"), [("never", 1), ("concurrency 2: 4/4", 2)])
def test_after_the_end_of_a_server_the_next_load_has_a_new_one(
    measurer: measure.Measurer, up: list[NullServer], dies_at: str, starts: int
) -> None:
    kept = []

    def on_line(text: str) -> None:
        if text.endswith("\n"):
            kept.append(text)
        elif text.startswith(dies_at):
            up[-1].end()

    assert measurer(STAGE, on_line)
    assert kept == [f"concurrency {n}: 4 requests ok\n" for n in (1, 2, 3)]
    lines = api.read_measurements(measurer.asked.workspace.results)
    assert [each["status"] for each in lines] == ["ok"] * 3
    assert [each["load"]["value"] for each in lines] == [1, 2, 3]
    assert len(up) == starts
    assert measurer(STAGE, on_line) and len(up) == starts  # nothing is left


def test_a_server_that_answers_nobody_fails_each_load_and_is_tried_again(
    measurer: measure.Measurer, up: list[NullServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    enter = NullServer.__enter__
    monkeypatch.setattr(NullServer, "__enter__", lambda self: (enter(self), self.end())[0])
    for turn in (1, 2):
        assert measurer(STAGE, lambda _: None)
        lines = api.read_measurements(measurer.asked.workspace.results)
        assert [each["status"] for each in lines] == ["failed"] * 3
        assert len(up) == 3 * turn


def test_two_runs_at_once_measure_nothing_twice(
    measurer: measure.Measurer, up: list[NullServer]
) -> None:
    said: list[str] = []
    with ThreadPoolExecutor() as both:
        assert all(both.map(lambda _: measurer(STAGE, said.append), range(2)))
    assert len(up) == 1 and "another run measures it; waiting" in said
    lines = (measurer.asked.workspace.results / "ledger.jsonl").read_text().splitlines()
    assert len(lines) == 3
