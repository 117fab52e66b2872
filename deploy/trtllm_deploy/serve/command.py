"""The command that starts a server: tritonserver by itself, or mpirun with one for each rank.

In: a Triton, a model repository, ports, how its processes are started. Out: words and environment
variables. With several ranks as scripts/launch_triton_server.py of TensorRT-LLM has it, but each
port is given once, the server listens where it is told, and each rank has a log of its own.
Starts nothing.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

from trtllm_deploy.serve.find_triton import Triton
from trtllm_deploy.serve.ports import Ports
from trtllm_deploy.serve.processes import Processes

RELOAD_HEADER = "trtllm-deploy-key"


def reloads(processes: Processes, address: str) -> bool:
    """Whether models may be reloaded: through an API that lets its caller run code, so only here.

    The key keeps out what only reaches the port, as a web page does; who may list this machine's
    processes sees it. Several ranks would have to load a model at once; Triton tells the first.
    """
    try:
        local = ipaddress.ip_address(address).is_loopback
    except ValueError:  # a name
        local = address == "localhost"
    return local and not processes.mpirun


def server_command(
    triton: Triton,
    repository: Path,
    ports: Ports,
    address: str,
    processes: Processes,
    *,
    name: str,
    key: str | None,
    rank_logs: Path,
    exit_seconds: int,
) -> list[str]:
    """The whole command line.

    ``name`` keeps the servers of one host apart; with a ``key`` models can be reloaded by who sends
    it in :data:`RELOAD_HEADER`; mpirun writes what rank N says to ``<rank_logs>/1/rank.N/stdout``.
    """

    def server(rank: int) -> list[str]:
        return [
            str(triton.binary),
            f"--model-repository={repository.absolute()}",
            f"--exit-timeout-secs={exit_seconds}",
            *_models(processes, key, rank),
            *_memory(processes),
            *(f"--{kind}-port={getattr(ports, kind)}" for kind in ("grpc", "http", "metrics")),
            *(f"--{kind}-address={address}" for kind in ("grpc", "http", "metrics")),
            "--disable-auto-complete-config",
            f"--backend-config=python,shm-region-prefix-name={name}{rank}_",
            *triton.flags,
        ]

    if not processes.mpirun:
        return server(0)
    command = ["mpirun", "--allow-run-as-root"]
    command += ["--oversubscribe"] if processes.oversubscribe else []
    command += ["--output-filename", f"{rank_logs.absolute()}:nocopy", "--merge-stderr-to-stdout"]
    command += ["--hostfile", str(processes.hostfile)] if processes.hostfile else []
    for rank in range(processes.started):
        # what mpirun exports it exports to one part of the command, not to all
        command += ["-n", "1", *(word for each in processes.environment for word in ("-x", each))]
        command += ["trtllm-llmapi-launch"] if processes.llmapi else []
        command += [*server(rank), ":"]
    return command


def _models(processes: Processes, key: str | None, rank: int) -> list[str]:
    """What a rank loads; by default all there is."""
    if rank:
        return [
            "--model-control-mode=explicit",
            *(f"--load-model={each}" for each in processes.models),
        ]
    if key is None:
        return []
    return [
        "--model-control-mode=explicit",
        "--load-model=*",
        f"--http-restricted-api=model-repository:{RELOAD_HEADER}={key}",
        f"--grpc-restricted-protocol=model-repository:{RELOAD_HEADER}={key}",
    ]


def _memory(processes: Processes) -> list[str]:
    """An orchestrator leaves the GPUs to the processes that it spawns."""
    if not processes.orchestrator:
        return []
    pools = (f"--cuda-memory-pool-byte-size={index}:0" for index in range(len(processes.gpus)))
    return ["--pinned-memory-pool-byte-size=0", "--enable-peer-access=false", *pools]
