"""The study: block: each cell's limits are searched for once, where it is served anyway."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_perf import api
from llm_perf.selftest.nullserver import MODEL as NULL
from llm_perf.workload.workload import Prompt, Workload
from tests.deploy.light_study import NullServer
from trtllm_deploy.spec.studies import MeasureSpec, StudySpec
from trtllm_deploy.study import measure
from trtllm_deploy.study.searched import Searches
from trtllm_deploy.study.up import Up
from trtllm_deploy.workspace.folder import Workspace

WORKLOAD = Workload("prompts", (Prompt(0, "4 5000", 2, 4),), "hash", None)  # 15 ms each
CELL = api.Target("cell", "", "", "", cell={}, artifacts={})


def test_a_cell_is_searched_after_its_loads_and_never_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []

    @contextmanager
    def served(*_: object) -> Iterator[Up]:
        with NullServer() as server:
            started.append(server.url)
            yield Up(api.Endpoint(server.url, "grpc", NULL))

    monkeypatch.setattr(measure, "served", served)
    study = [
        StudySpec.model_validate({"limits": limits, "vary": "concurrency", "budget": "1m30s"})
        for limits in ("latency.p90<1ms", "ttft.avg<1us")
    ]
    asked: Any = SimpleNamespace(
        of=lambda *_, **__: [api.Planned(CELL, api.Concurrency(2), WORKLOAD, study="mine")],
        workspace=Workspace(tmp_path),
        settings=MeasureSpec(data="prompts", seed=3),
        file=SimpleNamespace(deployment=SimpleNamespace(study=study)),
        predicted=lambda *_: None,
    )
    plan: Any = SimpleNamespace(cell=SimpleNamespace(name="cell"))
    stage: Any = SimpleNamespace(key="key")
    searches = Searches.of(asked)
    assert [(e.budget_s, e.vary) for e in searches.questions] == [(90, "concurrency")] * 2
    assert len(searches.left(plan)) == 2 and not searches.show(plan)
    for _ in range(2):
        measure.Measurer(asked, {"key": plan})(stage, print)
        kept = api.read_measurements(asked.workspace.results)
        assert [each["kind"] for each in kept] == ["load", "probe", "probe"] and len(started) == 1
    assert {each["study"] for each in kept} == {"mine"} and kept[1]["load"]["requests"] == 8
    assert "search: " in capsys.readouterr().out
    assert not searches.show(plan)  # as `llm_perf search` ends with exit code 1
    told = capsys.readouterr().out
    assert "cell | indicative | up to which concurrency" in told
    assert told.count("it ended because one request at a time doesn't keep the limits") == 2
