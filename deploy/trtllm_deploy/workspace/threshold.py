"""Checkpoints that are there, judged again: the file may ask for more now than when they were made.

In: plans, the file, a workspace. Out: an error for each checkpoint that its report no longer
passes. Nothing is measured again.
"""

from __future__ import annotations

from collections.abc import Iterable

from trtllm_deploy.machine.json_files import read_json
from trtllm_deploy.plan.plan import CellPlan
from trtllm_deploy.spec.deployment_file import DeploymentFile
from trtllm_deploy.spec.precision import find_precision, least_top1
from trtllm_deploy.workspace.folder import Workspace

_REPORT = "verify.json"


def below_threshold(
    plans: Iterable[CellPlan], file: DeploymentFile, workspace: Workspace
) -> dict[str, str]:
    """Errors by the key of the checkpoint."""
    spec, found = file.deployment, dict[str, str]()
    for plan in plans:
        precision, stage = plan.cell.precision, plan.checkpoint
        if stage.key in found or not workspace.has(stage):
            continue
        asked = spec.verify.min_top1.get(precision)
        if asked is None:
            kv_cache_dtype = stage.made_from["kv_cache_dtype"]
            asked = least_top1(find_precision(precision), kv_cache_dtype)
        report = read_json(workspace.artifact(stage) / _REPORT) or {}
        top1 = report.get("top1")
        if top1 is not None and not top1 >= asked:
            found[stage.key] = str(
                file.error(
                    ("verify", "min_top1", precision),
                    f"the checkpoint of {stage.title} has the same top token at {top1:.1%} of"
                    f" {report.get('positions')} positions, and {asked:.1%} are asked for",
                    "ask for less, or for another precision or more calibration samples",
                )
            )
    return found
