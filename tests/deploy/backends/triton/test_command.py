"""The command against what TensorRT-LLM's own scripts/launch_triton_server.py builds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_perf.errors import UserError
from trtllm_deploy.backends.server import Launch
from trtllm_deploy.backends.triton.command import server_command
from trtllm_deploy.backends.triton.find import Triton
from trtllm_deploy.backends.triton.processes import Processes
from trtllm_deploy.machine.ports import Ports

TRITON = Triton(Path("/opt/tritonserver/bin/tritonserver"), (), {})
# get_cmd of the script, executed: world_size 2; the last release's says each port twice
PORTS = "--grpc-port=8001 --http-port=8000 --metrics-port=8002"
SERVER = "/opt/tritonserver/bin/tritonserver --model-repository=/repo"
SCRIPTS = {
    "0.11.0": f"mpirun --allow-run-as-root -n 1 {SERVER} {PORTS} --disable-auto-complete-config"
    f" --backend-config=python,shm-region-prefix-name=prefix0_ : -n 1 {SERVER}"
    f" --model-control-mode=explicit --load-model=tensorrt_llm {PORTS}"
    " --disable-auto-complete-config --backend-config=python,shm-region-prefix-name=prefix1_ :",
    "1.2": f"mpirun --allow-run-as-root -n 1 {SERVER} --exit-timeout-secs=4 {PORTS} {PORTS}"
    " --disable-auto-complete-config --backend-config=python,shm-region-prefix-name=prefix0_ :"
    f" -n 1 {SERVER} --exit-timeout-secs=4 {PORTS} --model-control-mode=explicit"
    f" --load-model=tensorrt_llm {PORTS} --disable-auto-complete-config"
    " --backend-config=python,shm-region-prefix-name=prefix1_ :",
}


def command(processes: Processes, *, address: str = "127.0.0.1") -> str:
    return " ".join(server_command(TRITON, launch(processes, address=address), processes))


def launch(processes: Processes, **changed: Any) -> Launch:
    known = Launch(
        folder=Path("/repo"),
        ports=Ports(),
        address="127.0.0.1",
        name="prefix",
        rank_logs=Path("/logs"),
        cache=Path("/cache"),
        exit_seconds=4,
        chosen=processes,
    )
    return replace(known, **changed)


def parts(text: str) -> list[set[str]]:
    """What is said for each rank, in any order; mpirun's own words are in the first."""
    return [set(part.split()) for part in text.split(" :")]


@pytest.mark.parametrize("release", SCRIPTS)
def test_several_ranks_start_as_the_release_s_script_starts_them(release: str) -> None:
    script, ours = SCRIPTS[release], command(Processes(world_size=2))
    listens = {f"--{kind}-address=127.0.0.1" for kind in ("grpc", "http", "metrics")}
    closed = "model-repository,trace,logging,shared-memory:trtllm-deploy="
    more = listens | {f"--http-restricted-api={closed}", f"--grpc-restricted-protocol={closed}"}
    more |= {"--exit-timeout-secs=4"}  # 0.11.0's script doesn't say it
    logs = {"--output-filename", "/logs:nocopy", "--merge-stderr-to-stdout"}
    first, second, end = parts(script)
    assert parts(ours) == [first | more | logs, second | more, end]
    assert ours.startswith("mpirun --allow-run-as-root ")
    assert ours.endswith(" :")
    for part in ours.split(" : "):
        assert part.count("-port=") == 3  # each port once


def test_mpirun_exports_names_and_never_values_to_every_rank() -> None:
    processes = Processes(
        world_size=3,
        gpus=("4", "5", "7"),
        hostfile=Path("/hosts"),
        oversubscribe=True,
        variables={"NCCL_DEBUG": "a secret perhaps"},
    )
    ours = command(processes)
    assert "mpirun --allow-run-as-root --oversubscribe " in ours
    assert " --hostfile /hosts " in ours
    assert ours.count("-n 1 -x CUDA_VISIBLE_DEVICES -x NCCL_DEBUG /opt") == 3
    assert "secret" not in ours
    assert processes.environment == {
        "CUDA_VISIBLE_DEVICES": "4,5,7",
        "NCCL_DEBUG": "a secret perhaps",
    }


def test_one_rank_needs_no_mpirun() -> None:
    ours = command(Processes())
    assert ours.startswith("/opt/tritonserver/bin/tritonserver --model-repository=/repo ")
    assert "model-control-mode" not in ours


@pytest.mark.parametrize("processes", [Processes(), Processes(world_size=2)])
def test_nobody_can_load_models_write_files_or_read_memory_over_a_port(
    processes: Processes,
) -> None:
    """Each rank has its ports; the value is one that no header can carry, so no secret."""
    words = server_command(TRITON, launch(processes), processes)
    for flag in ("--http-restricted-api", "--grpc-restricted-protocol"):
        closed = [word for word in words if word.startswith(f"{flag}=")]
        assert len(closed) == processes.started
        for word in closed:
            apis, _, header = word.partition("=")[2].partition(":")
            assert {"model-repository", "trace", "logging", "shared-memory"} == set(apis.split(","))
            assert header.endswith("=\n")


def test_an_orchestrator_is_one_process_that_leaves_the_gpus_alone() -> None:
    processes = Processes(world_size=2, orchestrator=True, gpus=("0", "1"))
    words = command(processes).split()
    assert words.count("-n") == 1
    assert {
        "--pinned-memory-pool-byte-size=0",
        "--enable-peer-access=false",
        "--cuda-memory-pool-byte-size=0:0",
        "--cuda-memory-pool-byte-size=1:0",
    } <= set(words)
    assert processes.environment["TRTLLM_ORCHESTRATOR"] == "1"
    assert processes.environment["TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES"] == "1"


def test_llmapi_has_a_launcher_for_each_rank_or_none_at_all() -> None:
    ours = command(Processes(world_size=2, llmapi=True))
    assert ours.count("-n 1 trtllm-llmapi-launch /opt/tritonserver/bin/tritonserver") == 2
    alone = command(Processes(world_size=2, llmapi=True, no_mpi=True))
    assert alone.startswith("/opt/tritonserver/bin/tritonserver")


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"world_size": 2, "no_mpi": True}, "--no-mpi: the engine has 2 ranks"),
        ({"hostfile": Path("hosts")}, "--hostfile is for several ranks"),
        ({"world_size": 4, "gpus": ("0", "1")}, "--gpus names 2 GPUs for 4 ranks"),
    ],
)
def test_what_does_not_go_together_is_refused(chosen: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Processes(**chosen)  # type: ignore[arg-type]
