from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from trtllm_deploy.checkpoint.fetch import Source
from trtllm_deploy.plan.plan import CellPlan, Facts, plan
from trtllm_deploy.spec.deployment_file import load_deployment
from trtllm_deploy.workspace.folder import Workspace

from tests.deploy.workspace.artifacts import Planning


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def planned(tmp_path: Path, space: Workspace) -> Planning:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "prompts.jsonl").write_text("{}")

    def planned(
        samples: int = 8, workspace: Path = space.root, **changed: object
    ) -> list[CellPlan]:
        spec = {
            "models": {"tiny": {"source": "model"}},
            "precisions": ["fp16", "fp8"],
            "calibration": {"data": "prompts.jsonl", "samples": samples},
            "matrix": {"max_batch_size": [4, 8], "isl_osl": ["128,64"]},
            **changed,
        }
        file = tmp_path / "d.yaml"
        file.write_text(yaml.safe_dump(spec))
        facts = Facts(
            sources={"tiny": Source({"files": {"config.json": "digest"}})},
            calibration_digest="prompts",
            tools={},
            templates_digest="templates",
            workspace=workspace,
        )
        return plan(load_deployment(file), facts)

    return planned
