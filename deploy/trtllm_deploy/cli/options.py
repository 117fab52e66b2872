"""What the commands of ``trtllm-deploy`` have in common: options, and what these lead to.

In: what a person typed. Out: the planned deployment file, and the executor to build it with.
Modules that cost time to import are imported where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from llm_perf.errors import UserError

if TYPE_CHECKING:
    from trtllm_deploy.builds.executor import Executor, Make
    from trtllm_deploy.machine.gpu import Gpu
    from trtllm_deploy.plan.plan import CellPlan, Facts
    from trtllm_deploy.spec.deployment_file import DeploymentFile
    from trtllm_deploy.workspace.folder import Workspace

F = TypeVar("F", bound=Callable[..., Any])

deployment_file = click.argument("file", type=click.Path(path_type=Path))
workspace_folder = click.option(
    "--workspace",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("workspace"),
    show_default=True,
    help="Folder for artifacts, logs and results.",
)


@dataclass(frozen=True, slots=True)
class Where:
    """On which machine and GPUs stages run, and how many that need no GPU at once."""

    gpus: str | None = None
    ray: str | None = None
    jobs: int | None = None


def where_to_run(function: F) -> F:
    """The options that make up a :class:`Where`, the command's argument ``where``."""

    @wraps(function)
    def command(*, gpus: str | None, ray: str | None, jobs: int | None, **others: Any) -> Any:
        return function(where=Where(gpus, ray, jobs), **others)

    for option in (
        click.option(
            "--jobs",
            type=click.IntRange(min=1),
            help="Stages without a GPU at once, per machine; default: its cores. Such a checkpoint"
            " holds its whole model in memory.",
        ),
        click.option(
            "--ray",
            metavar="ADDRESS",
            help="Build on this Ray cluster (auto, HOST:PORT), the workspace on a shared file"
            " system.",
        ),
        click.option(
            "--gpus",
            metavar="0,1,...",
            help="GPUs to use; default: CUDA_VISIBLE_DEVICES, else all that nvidia-smi lists.",
        ),
    ):
        command = option(command)
    return cast(F, command)


fail_fast = click.option(
    "--fail-fast/--keep-going",
    default=False,
    show_default=True,
    help="When a stage fails: start nothing more, or go on with what doesn't depend on it.",
)


@dataclass(frozen=True, slots=True)
class Planned:
    """A deployment file with all that follows from it on this machine."""

    file: DeploymentFile
    facts: Facts
    plans: list[CellPlan]
    workspace: Workspace
    where: Where

    def executor(self, make: Make | None = None, jobs: int | None = None) -> Executor:
        """Where stages are made, as a build does unless another ``make`` is given.

        ``jobs`` of those that need no GPU at once, instead of as many as a person said.
        """
        from trtllm_deploy.builds.make import StageMaker

        make = make or StageMaker(self.file, self.facts, self.workspace)
        jobs = jobs or self.where.jobs
        if self.where.ray is not None:
            from trtllm_deploy.builds.ray_cluster import RayExecutor

            return RayExecutor(make, self.workspace.root, jobs)
        from trtllm_deploy.builds.local import LocalExecutor, visible_gpus

        return LocalExecutor(make, visible_gpus(self.where.gpus), jobs)


def planned(
    path: Path,
    workspace: Path,
    where: Where = Where(),
    *,
    offline_ok: bool = False,
    as_made: bool = False,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Planned:
    """Read a deployment file and plan it; with other ``overrides`` than the workspace's, if given.

    ``as_made``: checkpoints count whatever tools they were made with. Raises UserError: the
    file is wrong, a source can't be resolved, the cluster doesn't answer.
    """
    from trtllm_deploy.plan.plan import plan
    from trtllm_deploy.releases.release import stand_in
    from trtllm_deploy.spec.deployment_file import load_deployment
    from trtllm_deploy.workspace.folder import Workspace
    from trtllm_deploy.workspace.gather import gather

    space = Workspace(workspace.resolve())
    file = space.named_apart(load_deployment(path))
    if other := stand_in(file.deployment.release):
        click.echo(
            f"warning: there is no data for TensorRT-LLM {file.deployment.release}: commands and"
            f" models are those of {other}",
            err=True,
        )
    from trtllm_deploy.backends.backend import BACKENDS

    compiles = any(BACKENDS[each].compiles for each in file.deployment.backend)
    facts = gather(file, space, _gpus(where, compiles), offline_ok=offline_ok, as_made=as_made)
    facts = facts if overrides is None else replace(facts, overrides=overrides)
    return Planned(file, facts, plan(file, facts), space, where)


def _gpus(where: Where, compiles: bool) -> tuple[Gpu, ...]:
    """The GPUs that engines are planned for; what ``compiles`` has to know them."""
    if where.ray is not None:
        from trtllm_deploy.builds.ray_cluster import cluster_gpus, connect

        if where.gpus is not None:
            raise UserError("--gpus and --ray exclude each other", fix="the cluster has its GPUs")
        connect(where.ray)
        return cluster_gpus()
    from trtllm_deploy.builds.local import visible_gpus
    from trtllm_deploy.machine.gpu import gpus, pick

    return pick(gpus(must_answer=compiles), visible_gpus(where.gpus))
