from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from deploy.fetch import Source
from deploy.plan import CellPlan, Facts, distinct, plan
from deploy.spec import load_deployment

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


def test_calibration_prompts_matter_only_to_what_is_calibrated(folder: Path) -> None:
    before = plans(folder)
    after = plans(folder, replace(FACTS, calibration_digest="other prompts"))
    changed = {
        old.cell.precision
        for old, new in zip(before, after, strict=True)
        if old.checkpoint.key != new.checkpoint.key
    }
    assert changed == {"fp8"}


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
