"""Triton as a server: what it is started with here and on a cluster, where it answers, to what.

In: a model repository. Out: values of :mod:`trtllm_deploy.backends.server`. Starts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from llm_perf.errors import UserError
from trtllm_deploy.backends.repository import template
from trtllm_deploy.backends.server import Cluster, Kind, Launch, Server
from trtllm_deploy.backends.triton.command import server_command
from trtllm_deploy.backends.triton.find import find_triton
from trtllm_deploy.backends.triton.processes import Processes, processes_for
from trtllm_deploy.machine import supervise
from trtllm_deploy.releases.release import load_release

_STUB = "triton_python_backend_stub"  # Triton says it is ready whether or not it lives
_SHELL_SAFE = re.compile(r"[\w@%+=:,./-]+")  # what shlex.quote would leave alone


def triton(launch: Launch) -> Server:
    """One tritonserver, or mpirun with one for each rank.

    Raises UserError: there is no Triton here, or the processes can't be as they were chosen.
    """
    for path in (launch.folder.absolute(), launch.cache.absolute()):
        if not _SHELL_SAFE.fullmatch(str(path)):  # its python backend starts stubs with sh -c
            raise UserError(
                "Triton can't serve from a path with spaces or quotes in it",
                where=path,
                fix="choose another --workspace",
            )
    processes = processes_for(launch.folder, launch.chosen)
    found = find_triton(launch.cache, launch.chosen.executable)
    environment = {**found.environment, **processes.environment}
    if processes.mpirun:  # else what it keeps there stays when it is killed
        environment["OMPI_MCA_orte_tmpdir_base"] = str(supervise.scratch(launch.name))
    return Server(
        command=tuple(server_command(found, launch, processes)),
        environment=environment,
        world_size=processes.world_size,
        model=processes.asked,
        protocol="grpc",
        listens=("grpc", "http", "metrics"),
        asked="grpc",
        ready="/v2/health/ready",
        metrics="metrics",
        vital=_STUB,
        drains=not processes.mpirun,  # which kills ranks a second after it is told to stop
        idle=tuple(_idle(processes)),
        absent=f"{processes.world_size} ranks need Open MPI: run in the container",
    )


def _idle(processes: Processes) -> Iterator[tuple[str, str]]:
    if processes.no_mpi and processes.world_size == 1:
        yield "--no-mpi", "one process serves it"
    if processes.oversubscribe and not processes.mpirun:
        yield "--oversubscribe", "mpirun doesn't start it"


def triton_cluster(release: str, launcher: str = "") -> Cluster:
    """Triton in NVIDIA's image of a release; ``launcher`` stands before each rank's command."""

    def script(folder: str, address: str, ports: Mapping[str, str]) -> str:
        rank = template("deployment/rank.sh.j2")
        return rank.render(folder=folder, address=address, ports=ports, launcher=launcher)

    return Cluster(
        app="tritonserver",
        container="triton",
        image=load_release(release).image,
        listens=("http", "grpc", "metrics"),
        metrics="metrics",
        ready="/v2/health/ready",
        live="/v2/health/live",
        script=script,
    )


TRITON = Kind("triton", "Triton", triton)
