"""A built cell as something that can be asked: plan in, endpoint out, for as long as it is needed.

The one place of a study that starts a server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from llm_perf import api
from trtllm_deploy.backends.server import Chosen
from trtllm_deploy.machine.ports import free_ports
from trtllm_deploy.plan.plan import CellPlan
from trtllm_deploy.serve.launch import ModelServer
from trtllm_deploy.spec.deployment_file import DeploymentFile
from trtllm_deploy.workspace.folder import Workspace

_EXIT_SECONDS = 30  # to unload a large engine; as long as Kubernetes gives a pod


@dataclass(frozen=True, slots=True)
class Up:
    """What is up: who to ask, and where its Prometheus metrics are, if it has any."""

    endpoint: api.Endpoint
    metrics_url: str | None = None


def target_of(plan: CellPlan, file: DeploymentFile) -> api.Target:
    """A cell as the ledger has it; its ``url`` is known once it is up."""
    cell, spec = plan.cell, file.deployment
    own = asdict(cell)
    for key in ("build", "triton", "variant"):
        del own[key]
    return api.Target(
        cell.name,
        "",
        "grpc",
        "ensemble",
        gpus=cell.world_size,
        server="triton",
        cell={
            "backend": spec.backend,
            "release": spec.release,
            **own,
            **dict(cell.build),
            **plan.repository.made_from["triton"],
        },
        artifacts={stage.kind: stage.key for stage in plan.stages},
        deployment_sha256=hashlib.sha256(file.path.read_bytes()).hexdigest(),
    )


@contextmanager
def served(
    plan: CellPlan, file: DeploymentFile, workspace: Workspace, gpus: Sequence[str] = ()
) -> Iterator[Up]:
    """Serve a built cell, on these ``gpus`` where it matters which, until the context ends.

    Raises UserError: it doesn't come up.
    """
    repository = workspace.artifact(plan.repository)  # as planned, whatever has its name by now
    with ModelServer(
        repository,
        ports=free_ports(),
        log_file=workspace.server_log(plan.cell.name),
        chosen=Chosen(gpus=tuple(gpus), variables=file.deployment.env),
        cache_dir=workspace.triton,
        exit_seconds=_EXIT_SECONDS,
    ) as server:
        server.wait_ready()
        yield Up(api.Endpoint(*server.asked), server.metrics_url)
