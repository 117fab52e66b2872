"""What ``serve`` leaves behind, and says, when a process of real Triton is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import psutil
import pytest

from tests.processes import command_line
from trtllm_deploy.machine.ports import Ports, free_ports

COMMAND = str(Path(sys.executable).with_name("trtllm-deploy"))
STUB = "triton_python_backend_stub"


@pytest.fixture(scope="module")
def served(repository: Callable[..., Path]) -> tuple[Path, Ports]:
    """A repository and the ports that each server in turn listens on."""
    return repository("1.2"), free_ports()


def pids(launcher: psutil.Process, text: str) -> list[int]:
    return [
        each.pid
        for each in launcher.children(recursive=True)
        if text in " ".join(command_line(each)[:1])
    ]


def but_stubs(launcher: psutil.Process) -> list[int]:
    family = [launcher, *launcher.children(recursive=True)]
    stubs = pids(launcher, STUB)
    return [each.pid for each in family if each.pid not in stubs]


VICTIMS: dict[str, Callable[[psutil.Process], list[int]]] = {
    "serve": lambda launcher: [launcher.pid],
    "serve and the supervisor": lambda launcher: [launcher.pid, launcher.children()[0].pid],
    "all but the stubs": but_stubs,
    "tritonserver": lambda launcher: pids(launcher, "bin/tritonserver")[:1],
    "a python stub": lambda launcher: pids(launcher, STUB)[-1:],
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_nothing_of_triton_outlives_a_kill_and_the_next_start_works(
    served: tuple[Path, Ports], tmp_path: Path, victim: str
) -> None:
    repository, ports = served
    numbers = zip(("--grpc-port", "--http-port", "--metrics-port"), astuple(ports), strict=True)
    flags = [str(text) for pair in numbers for text in pair]
    command = [COMMAND, "serve", "--repository", str(repository), *flags]
    with subprocess.Popen(
        [*command, "--workspace", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as server:
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            if line.startswith("ready"):
                break
        launcher = psutil.Process(server.pid)
        family = [launcher, *launcher.children(recursive=True)]
        assert len(family) >= 7, said  # the supervisor, Triton, a stub for each model but one
        regions = list(Path("/dev/shm").glob(f"trtllm-deploy-*-{server.pid}-*"))
        assert regions
        began = time.monotonic()
        for pid in VICTIMS[victim](launcher):
            os.kill(pid, signal.SIGKILL)
        if victim == "all but the stubs":
            told = subprocess.run([COMMAND, "ps"], cwd=tmp_path, capture_output=True, text=True)
            assert "MiB of shared memory; 'stop' or the next start ends that" in told.stdout
            subprocess.run([COMMAND, "stop"], cwd=tmp_path, check=True)
        rest = server.stdout.read()
        assert server.wait(30) not in (0, 2)
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive
        while any(region.exists() for region in regions):
            assert time.monotonic() - began < 30, "shared memory stays"
            time.sleep(0.02)
        print(f"kill -9 {victim}: all gone after {time.monotonic() - began:.1f} s")
    if victim == "a python stub":
        assert f"{STUB}, process" in rest
        assert server.returncode == 128 + signal.SIGKILL
