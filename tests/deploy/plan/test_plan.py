from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.fetch import Source
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.plan.plan import CellPlan, Facts, distinct, find_plan, plan
from trtllm_deploy.spec.deployment_file import load_deployment

EXAMPLES = Path(__file__).parents[3] / "examples"
SPEC = {
    "models": {"tiny": {"source": "model"}},
    "precisions": ["fp16", "fp8", "int8_wo"],
    "calibration": {"data": "prompts.jsonl", "samples": 8},
    "matrix": {"max_batch_size": [4, 8], "isl_osl": ["128,64"]},
}
FACTS = Facts(
    sources={"tiny": Source({"files": {"config.json": "digest"}})},
    calibration_digest="prompts",
    tools={"nvidia-modelopt": "0.47.0"},
    templates_digest="templates",
    workspace=Path("/somewhere"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "prompts.jsonl").write_text("{}")
    return tmp_path


def plans(folder: Path, facts: Facts = FACTS, **changed: object) -> list[CellPlan]:
    file = folder / "d.yaml"
    file.write_text(yaml.safe_dump({**SPEC, **changed}))
    return plan(load_deployment(file), facts)


def gpu(capability: str, memory: int = 80 * 2**30) -> Gpu:
    return Gpu(0, "GPU", memory, capability)


def keys(plans: list[CellPlan], kind: str) -> set[str]:
    return {stage.key for stage in distinct(plans) if stage.kind == kind}


def rebuilt(before: list[CellPlan], after: list[CellPlan]) -> set[str]:
    """Kinds of which the second plan needs an artifact that the first hasn't."""
    return {
        kind
        for kind in ("fetch", "checkpoint", "engine", "repository")
        if not keys(after, kind) <= keys(before, kind)
    }


def test_each_checkpoint_is_made_once_for_all_its_cells(folder: Path) -> None:
    made = Counter(stage.kind for stage in distinct(plans(folder)))
    assert made == {"fetch": 1, "checkpoint": 3, "engine": 6, "repository": 6}


def test_what_a_stage_needs_comes_before_it(folder: Path) -> None:
    order = [stage.key for stage in distinct(plans(folder))]
    for each in plans(folder):
        places = [order.index(stage.key) for stage in each.stages]
        assert places == sorted(places)


@pytest.mark.parametrize(
    ("changed", "kinds"),
    [
        ({}, set()),
        ({"matrix": {"max_batch_size": [16], "isl_osl": ["128,64"]}}, {"engine", "repository"}),
        ({"matrix": {"max_batch_size": [4], "isl_osl": ["256,64"]}}, {"engine", "repository"}),
        ({"build": {"max_num_tokens": 4096}}, {"engine", "repository"}),
        ({"triton": {"enable_kv_cache_reuse": True}}, {"repository"}),
        ({"release": "0.11.0"}, {"engine", "repository"}),
        ({"backend": "tensorrt"}, {"engine", "repository"}),
        ({"verify": {"prompts": 4}}, set()),
        ({"checkpoint_with": "scripts"}, {"checkpoint", "engine", "repository"}),
        ({"kv_cache_dtype": {"fp8": "fp8"}}, {"checkpoint", "engine", "repository"}),
        ({"measure": {"data": "prompts.jsonl"}}, set()),
        ({"precisions": ["bf16"]}, {"checkpoint", "engine", "repository"}),
        (
            {"models": {"tiny": {"source": "model", "tp": 2}}},
            {"checkpoint", "engine", "repository"},
        ),
    ],
)
def test_a_changed_setting_rebuilds_what_depends_on_it_and_no_more(
    folder: Path, changed: dict[str, object], kinds: set[str]
) -> None:
    assert rebuilt(plans(folder), plans(folder, **changed)) == kinds


def test_cells_that_differ_in_a_serving_setting_share_their_engine(folder: Path) -> None:
    matrix = {**SPEC["matrix"], "enable_kv_cache_reuse": [True, False]}  # type: ignore[dict-item]
    cells = plans(folder, matrix=matrix)
    assert len({each.cell.name for each in cells}) == len(cells) == 12
    made = Counter(stage.kind for stage in distinct(cells))
    assert made == {"fetch": 1, "checkpoint": 3, "engine": 6, "repository": 12}
    reused = [each.repository.made_from["triton"]["enable_kv_cache_reuse"] for each in cells]
    assert reused == [True, False] * 6
    (name,) = {each.cell.name for each in cells[:1]}
    kept = replace(FACTS, overrides={name: {"enable_kv_cache_reuse": False}})
    changed = plans(folder, kept, matrix=matrix)
    assert changed[0].repository.key == changed[1].repository.key


def test_each_value_of_a_varied_setting_is_judged_by_the_backend(folder: Path) -> None:
    matrix = {**SPEC["matrix"], "max_attention_window_size": [256, 8]}  # type: ignore[dict-item]
    with pytest.raises(UserError, match="looks back on all 192 tokens"):
        plans(folder, matrix=matrix)


def test_calibration_prompts_matter_only_to_what_is_calibrated(folder: Path) -> None:
    before = plans(folder)
    after = plans(folder, replace(FACTS, calibration_digest="other prompts"))
    changed = {
        old.cell.precision
        for old, new in zip(before, after, strict=True)
        if old.checkpoint.key != new.checkpoint.key
    }
    assert changed == {"fp8"}


def test_engines_are_for_one_compute_capability_and_nothing_else_is(folder: Path) -> None:
    hopper, ada = (replace(FACTS, gpus=(gpu(name),)) for name in ("9.0", "8.9"))
    before = plans(folder, hopper, backend="tensorrt")
    assert rebuilt(before, plans(folder, ada, backend="tensorrt")) == {"engine", "repository"}
    assert rebuilt(plans(folder, hopper), plans(folder, ada)) == set()


def test_stages_name_what_they_need_and_how_many_gpus(folder: Path) -> None:
    models = {"tiny": {"source": "model", "tp": 2, "pp": 2}}
    for each in plans(folder, models=models, backend="tensorrt"):
        assert each.fetch.inputs == ()
        assert each.checkpoint.inputs == (each.fetch.key,)
        assert each.engine.inputs == (each.checkpoint.key,)
        assert set(each.repository.inputs) == {each.engine.key, each.fetch.key}
        calibrated = 4 if each.cell.precision == "fp8" else 0
        assert [stage.gpus for stage in each.stages] == [0, calibrated, 4, 0]
    assert {each.engine.gpus for each in plans(folder)} == {0}


def test_calibration_takes_as_many_gpus_as_the_model_fills(folder: Path) -> None:
    models = {"tiny": {"source": "model", "tp": 4}}
    config = json.loads((EXAMPLES / "shapes" / "qwen2-72b.json").read_text())  # 145 GB

    def gpus(memory: int) -> int:
        facts = replace(FACTS, gpus=(gpu("9.0", memory),), configs={"tiny": config})
        chosen = plans(folder, facts, models=models, precisions=["fp8"])
        return chosen[0].checkpoint.gpus

    assert (gpus(200 * 10**9), gpus(141 * 10**9), gpus(80 * 10**9), gpus(24 * 10**9)) == (
        1,
        2,
        3,
        4,
    )


def test_a_models_window_reaches_its_repository_and_no_other_stage(folder: Path) -> None:
    config = {"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": 160}
    slides = replace(FACTS, configs={"tiny": config})
    plain, made = (plans(folder, facts, backend="tensorrt") for facts in (FACTS, slides))
    assert rebuilt(plain, made) == {"repository"}
    said = {each.repository.made_from["triton"]["max_attention_window_size"] for each in made}
    assert said == {"160"}
    file = load_deployment(folder / "d.yaml")
    settings = slides.file_for(made[0].cell, file).deployment.triton
    assert settings.max_attention_window_size == "160"  # as the repository is rendered


def test_fp8_falls_back_where_the_gpu_has_none_and_each_cell_is_planned_once(folder: Path) -> None:
    ampere = replace(FACTS, gpus=(gpu("8.0"),))
    with pytest.raises(UserError, match=r"fp8 needs compute capability 8.9 or more, GPU has 8.0"):
        plans(folder, ampere, backend="tensorrt")
    made = plans(folder, ampere, backend="tensorrt", fallback="fp16")
    assert Counter(each.cell.precision for each in made) == {"fp16": 2, "int8_wo": 2}
    made = plans(folder, replace(FACTS, gpus=(gpu("9.0"),)), backend="tensorrt", fallback="fp16")
    assert {each.cell.precision for each in made} == {"fp16", "fp8", "int8_wo"}


def test_a_plan_is_found_by_name_or_the_nearest_name_is_given(folder: Path) -> None:
    made = plans(folder)
    file = load_deployment(folder / "d.yaml")
    assert find_plan(made, file, made[3].cell.name) is made[3]
    with pytest.raises(UserError, match="did you mean 'tiny_fp16_tp1_pp1_isl128_osl64_bs8'"):
        find_plan(made, file, "tiny_fp16_tp1_pp1_isl128_osl64_bs88")


def test_a_moved_workspace_rebuilds_repositories_for_their_absolute_paths(folder: Path) -> None:
    moved = plans(folder, replace(FACTS, workspace=Path("/elsewhere")))
    assert rebuilt(plans(folder), moved) == {"repository"}


def test_other_weights_rebuild_everything(folder: Path) -> None:
    other = replace(FACTS, sources={"tiny": Source({"files": {"config.json": "other"}})})
    assert rebuilt(plans(folder), plans(folder, other)) == {
        "fetch",
        "checkpoint",
        "engine",
        "repository",
    }


def test_a_checkpoint_is_of_a_release_where_its_names_changed(folder: Path) -> None:
    experts = replace(FACTS, configs={"tiny": {"architectures": ["Qwen2MoeForCausalLM"]}})

    def checkpoints(facts: Facts, release: str, **more: object) -> set[str]:
        return keys(plans(folder, facts, release=release, **more), "checkpoint")

    assert checkpoints(experts, "0.15.0") == checkpoints(experts, "0.12.0")
    assert not checkpoints(experts, "0.15.0") & checkpoints(experts, "0.16.0")
    assert checkpoints(FACTS, "0.15.0") == checkpoints(FACTS, "0.16.0")
