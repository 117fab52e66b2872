"""What a scheduler takes to serve a cell: a script for Slurm's sbatch, manifests for Kubernetes.

In: a cell and its server, where its workspace lies on the cluster, the machines' GPUs. Out: text.
One process runs for each rank, or one for all of a node. It knows nothing of clusters that exist;
nothing is submitted here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from llm_perf.errors import UserError
from trtllm_deploy.backends.repository import template
from trtllm_deploy.backends.server import Cluster
from trtllm_deploy.machine.ports import DEFAULT_PORTS
from trtllm_deploy.spec.deployment_file import Cell

_NAME_LENGTH = 45  # of 63: pods and revisions of a LeaderWorkerSet get up to 18 more
_PORT_TITLES = {"grpc": "gRPC", "http": "HTTP", "metrics": "metrics"}
_ALLOWED = {
    "image": r"[A-Za-z0-9][\w.:/@#+-]*|/[\w./+-]+",
    "workspace": r"/[\w@%+./-]*",
    "address": r"[0-9a-fA-F.:]+",
    "partition": r"[\w.,+-]+",
    "account": r"[\w.@+-]+",
    "time": r"[0-9]+([:-][0-9]+)*",
    "namespace": r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
    "pvc": r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?",
    "cell": r"[A-Za-z0-9][A-Za-z0-9_.-]*",
    "variable": r"[A-Za-z_][A-Za-z0-9_]*",
}
"""What may stand in a script or a manifest without quotes, by option."""


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """A cell to be served from ``workspace``, a path that is the same on every machine.

    ``environment`` is for all its processes. Raises UserError when its ranks don't spread evenly
    over nodes, or its server can't be on several.
    """

    cell: Cell
    server: Cluster
    workspace: Path
    gpus_per_node: int = 8
    image: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check(image=self.image, workspace=str(self.workspace), cell=self.cell.name)
        for name, value in self.environment.items():
            _check(variable=name)
            if "\0" in value:
                raise UserError(f"{name} has a NUL in it, which no environment holds")
        if self.ranks % self.gpus:
            raise UserError(
                f"the {self.ranks} ranks of {self.cell.name} don't fill nodes of {self.gpus} GPUs",
                fix="choose a --gpus-per-node that divides them",
            )
        if self.nodes > 1 and not self.server.each_rank:
            raise UserError(
                f"{self.server.container} starts the {self.ranks} ranks of {self.cell.name} itself,"
                f" on one node, which has {self.gpus} GPUs",
                fix="choose a larger --gpus-per-node, or a smaller tp x pp",
            )

    @property
    def ranks(self) -> int:
        """Processes, each with one GPU."""
        return self.cell.world_size

    @property
    def gpus(self) -> int:
        """On each node."""
        return min(self.ranks, self.gpus_per_node)

    @property
    def nodes(self) -> int:
        """As few as hold the cell."""
        return self.ranks // self.gpus

    @property
    def tasks(self) -> int:
        """Processes that are started on each node."""
        return self.gpus if self.server.each_rank else 1

    @property
    def container(self) -> str:
        """The image; by default the server's own."""
        return self.image or self.server.image

    @property
    def folder(self) -> str:
        """What is served."""
        return f"{self.workspace}/ensemble_models/{self.cell.name}"

    @property
    def port_variable(self) -> str:
        """What a Slurm job's first port is kept in."""
        return f"{re.sub('[^A-Z]', '_', self.server.container.upper())}_HTTP_PORT"


def slurm(
    job: ClusterJob,
    *,
    partition: str | None = None,
    account: str | None = None,
    time: str | None = None,
    address: str = "127.0.0.1",
) -> str:
    """A script for sbatch, for clusters with pyxis; the server listens at ``address``.

    Its ports follow from the job's number, or from ``port_variable`` where sbatch is called.
    """
    options = {"partition": partition, "account": account, "time": time}
    registry, slash, rest = job.container.partition("/")
    enroot = f"{registry}#{rest}" if slash and {".", ":"} & set(registry) else job.container
    first = job.port_variable  # two jobs on a node share its network, and two pods don't
    ports = {"http": f"${first}", "grpc": f"$(({first} + 1))", "metrics": f"$(({first} + 2))"}
    listens = ", ".join(
        f"{_PORT_TITLES[each]} {ports[each]}" for each in _PORT_TITLES if each in job.server.listens
    )
    values = {"image": enroot, "options": options, "address": address, "listens": listens}
    return _rendered("slurm.sh", job, ports=ports, **values, **options)


def server(job: ClusterJob, *, options: Mapping[str, Any], address: str = "127.0.0.1") -> str:
    """The command of a server as a shell has it, and the file that it is told to read."""
    _check(address=address)
    ports = {name: str(port) for name, port in asdict(DEFAULT_PORTS).items()}
    command = job.server.script(job.folder, address, ports).removeprefix("exec ")
    text = yaml.safe_dump(dict(options), sort_keys=False)
    return f"# {command}# its file:\n{text}"


def kubernetes(
    job: ClusterJob,
    *,
    namespace: str | None = None,
    pvc: str = "trtllm-workspace",
    memory_per_gpu: int = 32,
) -> str:
    """YAML documents: scripts, a Deployment or a LeaderWorkerSet, a Service, a PodMonitor.

    ``pvc`` is an existing claim that holds the workspace; ``memory_per_gpu`` is the host's, in GiB.
    """
    return _rendered(
        "kubernetes.yaml",
        job,
        name=dns_name(job.cell.name),
        namespace=namespace,
        pvc=pvc,
        memory=job.gpus * memory_per_gpu,
        address="0.0.0.0",  # of the pod, which probes and the Service reach
        ports=asdict(DEFAULT_PORTS),  # of the pod's own network: two on a node don't meet
    )


def dns_name(cell: str) -> str:
    """The cell's name as Kubernetes allows it (RFC 1035); different for different cells."""
    name = re.sub("[^a-z0-9]+", "-", cell.lower()).strip("-")
    name = name if name[0].isalpha() else f"cell-{name}"
    if name.replace("-", "_") == cell and len(name) <= _NAME_LENGTH:
        return name
    digest = hashlib.sha256(cell.encode()).hexdigest()[:8]
    return f"{name[: _NAME_LENGTH - 9].rstrip('-')}-{digest}"


def _check(**words: object) -> None:
    """Raises UserError for a value that would mean something else where it is put."""
    for option, word in words.items():
        allowed = _ALLOWED.get(option)
        if allowed and word is not None and not re.fullmatch(allowed, str(word), re.ASCII):
            name = option if option in ("cell", "variable") else f"--{option}"
            raise UserError(f"{name} can't be {word!r}", fix=f"it has to match {allowed}")


def _rendered(source: str, job: ClusterJob, **values: Any) -> str:
    _check(**values)
    script = job.server.script(job.folder, values["address"], values["ports"])
    return template(f"deployment/{source}.j2").render(job=job, script=script, **values)
