from __future__ import annotations

import json
from pathlib import Path

from tests.deploy.workspace.artifacts import Planning, make
from trtllm_deploy.spec.deployment_file import load_deployment
from trtllm_deploy.workspace.folder import Workspace
from trtllm_deploy.workspace.threshold import below_threshold


def test_a_checkpoint_that_is_there_is_judged_by_what_is_asked_now(
    planned: Planning, space: Workspace, tmp_path: Path
) -> None:
    plans = planned()
    make(space, *plans)
    fp8 = plans[2]
    report = space.artifact(fp8.checkpoint) / "verify.json"
    report.write_text(json.dumps({"top1": 0.95, "positions": 400}))

    def errors(asked: float) -> dict[str, str]:
        again = planned(verify={"min_top1": {"fp8": asked}})
        assert again[2].checkpoint.key == fp8.checkpoint.key
        return below_threshold(again, load_deployment(tmp_path / "d.yaml"), space)

    assert errors(0.94) == {}
    [(key, error)] = errors(0.96).items()
    assert key == fp8.checkpoint.key
    assert "verify.min_top1.fp8: the checkpoint of tiny fp8 tp1 pp1" in error
    assert "at 95.0% of 400 positions, and 96.0% are asked for" in error
    report.write_text(json.dumps({"skipped": "no reader"}))
    assert errors(1.0) == {}
