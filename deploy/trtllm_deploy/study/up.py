"""A built cell as something that can be asked: plan in, endpoint out, for as long as it is needed.

The one place of a study that starts a server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from llm_perf import api
from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.backends.server import Chosen
from trtllm_deploy.machine.ports import free_ports
from trtllm_deploy.plan.plan import CellPlan
from trtllm_deploy.serve.launch import ModelServer
from trtllm_deploy.spec.deployment_file import DeploymentFile
from trtllm_deploy.workspace.folder import Workspace

NOT_UP = api.Endpoint("localhost:8001", "grpc", "ensemble")
"""In place of the endpoint of a server that isn't up, where only the ledger is asked."""
_EXIT_SECONDS = 30  # to unload a large engine; as long as Kubernetes gives a pod


@dataclass(frozen=True, slots=True)
class Up:
    """What is up: who to ask, and where its Prometheus metrics are, if it has any."""

    endpoint: api.Endpoint
    metrics_url: str | None = None

    def conditions(self, conditions: api.Conditions) -> api.Conditions:
        """Conditions here: with its metrics, and greedy answers of servers of all kinds.

        TensorRT-LLM takes the likeliest token unless top_k or top_p say otherwise, and 1 leaves the
        logits as they are. Others sample by the model's generation_config.json, or at 1.
        """
        greedy = {"temperature": 0 if self.endpoint.protocol == "openai" else 1}
        return replace(conditions, defaults=greedy, server_metrics_url=self.metrics_url)


def target_of(
    plan: CellPlan, file: DeploymentFile, deployment_sha256: str | None = None
) -> api.Target:
    """A cell as a ledger knows it; how it is reached its server tells once it is up.

    ``deployment_sha256`` is that of the file as it was read, by default as it is now.
    """
    spec, cell = file.deployment, plan.cell
    settings = {
        "backend": cell.backend,
        "release": spec.release,
        "kv_cache_dtype": spec.kv_cache_dtype.get(cell.precision),
        **{name: getattr(cell, name) for name in ("model", "precision", "tp", "pp", "isl", "osl")},
        **file.given_flags(cell),
        **plan.repository.made_from["triton"],
        **({"env": dict(spec.env)} if spec.env else {}),
        **({"options": spec.options[cell.backend]} if cell.backend in spec.options else {}),
    }
    return api.Target(
        cell.name,
        url="",
        protocol="",
        model="",
        gpus=cell.world_size,
        server=BACKENDS[cell.backend].server.name,
        cell=settings,
        artifacts={stage.kind: stage.key for stage in plan.stages},
        deployment_sha256=deployment_sha256 or file_sha256(file),
    )


def file_sha256(file: DeploymentFile) -> str:
    """SHA-256 of a deployment file as it is now."""
    return hashlib.sha256(file.path.read_bytes()).hexdigest()


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
        chosen=Chosen(
            executable=file.executable(plan.cell),
            gpus=tuple(gpus),
            variables=file.deployment.env,
        ),
        cache_dir=workspace.triton,
        exit_seconds=_EXIT_SECONDS,
    ) as server:
        server.wait_ready()
        yield Up(api.Endpoint(*server.asked), server.metrics_url)
