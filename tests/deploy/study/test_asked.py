"""What a ``measure:`` block asks for, as measurements that are known before anything is built."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml

from llm_perf import api
from llm_perf.errors import UserError
from tests.client.runs import asked as sent
from tests.client.runs import make_run
from tests.deploy.matrix import MODEL
from tests.deploy.plan.test_plan import FACTS, SPEC
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.plan.plan import CellPlan, plan
from trtllm_deploy.plan.roofline import LISTED, Roofline
from trtllm_deploy.plan.shape import ModelShape
from trtllm_deploy.spec.deployment_file import load_deployment
from trtllm_deploy.study.asked import Asked
from trtllm_deploy.workspace.folder import Workspace

SHAPE = ModelShape(10, 100, 4, 2, 25, 200, 1000, tied=False, biases=False)


def given(folder: Path, data: int = 12, **measure: Any) -> tuple[Asked, list[CellPlan]]:
    """A file's measurements and cells; its other keys than ``measure:`` are in ``others``."""
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text("{}")
    lines = (json.dumps({"text_input": f"prompt {n}"}) + "\n" for n in range(data))
    (folder / "prompts.jsonl").write_text("".join(lines))
    others = measure.pop("others", {})
    spec = {**SPEC, "precisions": "fp16", "measure": {"data": "prompts.jsonl", **measure}, **others}
    (folder / "d.yaml").write_text(yaml.safe_dump(spec))
    file = load_deployment(folder / "d.yaml")
    settings = file.deployment.measure
    assert settings is not None
    gpus = (Gpu(0, "NVIDIA H100 80GB HBM3", 80 * 2**30, "9.0"),)
    shapes = {"tiny": SHAPE}
    return Asked(file, settings, Workspace(folder / "w"), gpus, shapes, "sha"), plan(file, FACTS)


def asked(folder: Path, data: int = 12, **measure: Any) -> list[list[api.Planned]]:
    """What is asked of each cell."""
    what, plans = given(folder, data, **measure)
    return [what.of(each) for each in plans]


@pytest.mark.parametrize(
    ("measure", "loads"),
    [
        ({}, [("concurrency", 1)]),
        ({"concurrency": [1, 4]}, [("concurrency", 1), ("concurrency", 4)]),
        ({"request_rate": 0.5}, [("request_rate", 0.5)]),
        ({"request_rate": [2], "concurrency": 8}, [("concurrency", 8), ("request_rate", 2)]),
    ],
)
def test_each_number_is_a_load(
    tmp_path: Path, measure: dict[str, Any], loads: list[tuple[str, float]]
) -> None:
    found = [each.load.to_json() for each in asked(tmp_path, **measure)[0]]
    assert [(load["kind"], load["value"]) for load in found] == loads


def test_repetitions_take_all_loads_in_turn_with_fresh_arrivals_that_cells_share(
    tmp_path: Path,
) -> None:
    first, second = asked(tmp_path, request_rate=[1, 2], repetitions=2, seed=5)
    turns = [(each.repetition, each.seed, each.load.to_json()["seed"]) for each in first]
    assert turns == [(0, 5, 5), (0, 5, 5), (1, 6, 6), (1, 6, 6)]
    assert [each.load for each in first] == [each.load for each in second]
    assert len({each.id for each in (*first, *second)}) == 8
    assert [each.id for each in asked(tmp_path, request_rate=[1, 2], repetitions=3, seed=5)[0]][
        :4
    ] == [each.id for each in first]  # more repetitions leave those that were made


def test_fresh_loads_share_no_prompt_and_cells_ask_the_same(tmp_path: Path) -> None:
    first, second = asked(tmp_path, concurrency=[1, 2], repetitions=2, fresh=True)
    prompts = [prompt.text for each in first for prompt in each.workload.prompts]
    assert len(prompts) == len(set(prompts)) == 12
    assert [each.workload for each in first] == [each.workload for each in second]
    assert len({each.workload.sha256 for each in asked(tmp_path, concurrency=[1, 2])[0]}) == 1


@pytest.mark.parametrize(
    "measure", [{"data": 1}, {"data": 5, "requests": 3}, {"data": 7, "requests": 4}]
)
def test_data_that_is_too_little_to_be_dealt_out_is_refused(
    tmp_path: Path, measure: dict[str, Any]
) -> None:
    what, _ = given(tmp_path, concurrency=[1, 2], fresh=True, **measure)
    with pytest.raises(UserError, match=r"d.yaml:\d+: measure.fresh: 2 loads leave"):
        what.check()


def test_data_that_only_says_how_long_prompts_are_waits_for_the_tokenizer(tmp_path: Path) -> None:
    what, (cell, *_) = given(tmp_path)
    assert what.knows(cell)
    (tmp_path / "prompts.jsonl").write_text('{"input_length": 5, "output_length": 2}\n' * 3)
    what = replace(what)
    what.check()
    assert not what.knows(cell)
    what.workspace.store.make(
        "fetch", cell.fetch.made_from, lambda folder: copytree(MODEL, folder, dirs_exist_ok=True)
    )
    assert what.knows(cell)
    (planned,) = what.of(cell)
    assert [each.input_tokens for each in planned.workload.prompts] == [5, 5, 5]
    assert [each.id for each in pickle.loads(pickle.dumps(what)).of(cell)] == [planned.id]


def test_without_data_prompts_have_the_lengths_that_each_cell_is_built_for(tmp_path: Path) -> None:
    matrix = {"matrix": {"max_batch_size": [4], "isl_osl": ["16,4", "7,3"]}}
    measure = {"requests": 3, "duration": "30s", "concurrency": [2], "fresh": True}
    what, plans = given(tmp_path, others=matrix, **measure)
    what = replace(what, settings=what.settings.model_copy(update={"data": None}))
    what.check()
    assert not what.knows(plans[0])
    what.workspace.store.make(
        "fetch",
        plans[0].fetch.made_from,
        lambda folder: copytree(MODEL, folder, dirs_exist_ok=True),
    )
    found = {}
    for each in plans:
        (planned,) = what.of(each)
        lengths = {(e.input_tokens, e.min_tokens, e.max_tokens) for e in planned.workload.prompts}
        found[each.cell.isl] = (lengths, len(planned.workload.prompts))
        assert planned.extent == api.Extent(requests=3, duration_s=30)
    assert found == {16: ({(16, 4, 4)}, 3), 7: ({(7, 3, 3)}, 3)}


def test_a_target_says_how_the_cell_was_built_and_served(tmp_path: Path) -> None:
    varied = {"matrix": {**SPEC["matrix"], "enable_kv_cache_reuse": [True, False]}}  # type: ignore[dict-item]
    more = {"build": {"max_num_tokens": 2048}, "env": {"NCCL_DEBUG": "INFO"}, **varied}
    cells = asked(tmp_path, others=more)
    target = cells[0][0].target
    assert target.cell is not None and target.artifacts is not None
    assert target.cell["max_num_tokens"] == 2048 and target.cell["isl"] == 128
    assert target.cell["env"] == {"NCCL_DEBUG": "INFO"}
    assert [each[0].target.cell["enable_kv_cache_reuse"] for each in cells] == [True, False] * 2
    assert target.artifacts.keys() == {"fetch", "checkpoint", "engine", "repository"}
    assert target.deployment_sha256 == "sha"
    gpu = {"name": "NVIDIA H100 80GB HBM3", "memory": 80 * 2**30, "capability": "9.0", "count": 1}
    assert cells[0][0].gpu == gpu
    other = asked(tmp_path, others={**more, "env": {"NCCL_DEBUG": "WARN"}})
    assert other[0][0].id != cells[0][0].id
    assert replace(cells[0][0], target=replace(target, deployment_sha256="y")).id == cells[0][0].id


def test_a_closed_loop_is_told_beside_what_a_gpu_allows_at_the_lengths_that_were_seen(
    tmp_path: Path,
) -> None:
    what, (small, *_) = given(tmp_path)
    records = [sent(n, input_tokens=100 + 10 * n, tokens=20) for n in range(3)]
    gpu = LISTED["NVIDIA H100 80GB HBM3"]
    for n, running in ((2, 2), (32, 4)):  # of max_batch_size 4
        told = what.predicted(small, make_run(records, api.Concurrency(n)))
        assert told is not None and told["source"] == "roofline"
        assert told["metrics"] == Roofline(SHAPE, gpu).at(n, 110, 20, running).metrics()
    assert what.predicted(small, make_run(records, api.Rate(2))) is None
    assert replace(what, gpus=()).predicted(small, make_run(records)) is None
    assert replace(what, shapes={}).predicted(small, make_run(records)) is None
