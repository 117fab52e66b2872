"""What the installed TensorRT-LLM says of a cell: its command, and its checkpoint once it is made.

In: a cell's plan. Out: findings, or why nothing could be asked. Nothing is built.
"""

from __future__ import annotations

from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.backends.jobs import EngineJob
from trtllm_deploy.backends.judge import Question, ask, fix_of
from trtllm_deploy.check.facts import found
from trtllm_deploy.machine.finding import Finding
from trtllm_deploy.plan.plan import CellPlan
from trtllm_deploy.workspace.folder import Workspace


def judged(plan: CellPlan, workspace: Workspace) -> tuple[list[Finding], str | None]:
    """Its refusal as a finding; and why it couldn't be asked, None where it was or needn't be."""
    made_from = plan.engine.made_from
    checkpoint = workspace.store.path("checkpoint", plan.checkpoint.key)
    target = workspace.store.path("engine", plan.engine.key)
    job = EngineJob(checkpoint, target, made_from["release"], made_from["build_config"])
    command = BACKENDS[made_from["backend"]].command(job)
    if command is None:
        return [], None
    made = checkpoint if workspace.has(plan.checkpoint) else None
    (verdict,) = ask([Question(tuple(command[1:]), made)])
    if verdict.refused is None:
        return [], verdict.unasked
    fix = fix_of(verdict.refused) or "see what 'trtllm-build --help' says in that container"
    said = {"release": job.release, "refused": verdict.refused, "fix": fix}
    return [found("refused", made or plan.cell.name, **said)], None
