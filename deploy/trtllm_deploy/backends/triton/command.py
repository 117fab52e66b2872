"""The command that starts a server: tritonserver by itself, or mpirun with one for each rank.

In: a Triton, how it is to be launched, its processes. Out: words. With several ranks as
scripts/launch_triton_server.py of TensorRT-LLM has it, but each port is given once, the server
listens where it is told, each rank has a log of its own, and what Triton would let anybody do but
ask its models is closed. Starts nothing.
"""

from __future__ import annotations

from trtllm_deploy.backends.server import Launch
from trtllm_deploy.backends.triton.find import Triton
from trtllm_deploy.backends.triton.processes import Processes

# What answers anybody who reaches a port, and lets him load code of his own, write files or see
# this server's memory. A value that no header can carry closes it for all.
_CLOSED = "model-repository,trace,logging,shared-memory:trtllm-deploy=\n"


def server_command(triton: Triton, launch: Launch, processes: Processes) -> list[str]:
    """The whole command line; mpirun writes what rank N says to ``<rank_logs>/1/rank.N/stdout``."""
    ports, address, rank_logs = launch.ports, launch.address, launch.rank_logs

    def server(rank: int) -> list[str]:
        return [
            str(triton.binary),
            f"--model-repository={launch.folder.absolute()}",
            f"--exit-timeout-secs={launch.exit_seconds}",
            *_models(processes, rank),
            f"--http-restricted-api={_CLOSED}",
            f"--grpc-restricted-protocol={_CLOSED}",
            *_memory(processes),
            *(f"--{kind}-port={getattr(ports, kind)}" for kind in ("grpc", "http", "metrics")),
            *(f"--{kind}-address={address}" for kind in ("grpc", "http", "metrics")),
            "--disable-auto-complete-config",
            *([f"--log-verbose={processes.log_verbose}"] if processes.log_verbose else []),
            f"--backend-config=python,shm-region-prefix-name={launch.name}{rank}_",
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


def _models(processes: Processes, rank: int) -> list[str]:
    """What a rank loads; the first all there is."""
    if not rank:
        return []
    loaded = (f"--load-model={each}" for each in processes.models)
    return ["--model-control-mode=explicit", *loaded]


def _memory(processes: Processes) -> list[str]:
    """An orchestrator leaves the GPUs to the processes that it spawns."""
    if not processes.orchestrator:
        return []
    pools = (f"--cuda-memory-pool-byte-size={index}:0" for index in range(len(processes.gpus)))
    return ["--pinned-memory-pool-byte-size=0", "--enable-peer-access=false", *pools]
