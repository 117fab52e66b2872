import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import psutil
import pytest

from client.errors import UserError
from deploy import launch
from deploy.launch import Ports, Triton, TritonServer, check_ports, free_ports, server_command

SUPERVISE = Path(launch.__file__).with_name("supervise.py")


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_free_ports_are_three_and_free() -> None:
    ports = free_ports()
    assert len(set(astuple(ports))) == 3
    check_ports(ports)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_found_with_its_flag(address: str) -> None:
    ports = free_ports()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", ports.http))
        listener.listen()
        with pytest.raises(UserError, match=rf"port {ports.http} is already in use.*--http-port"):
            check_ports(ports, address)


def test_the_same_port_twice_is_refused() -> None:
    with pytest.raises(UserError, match="--grpc-port and --http-port are both 9"):
        check_ports(Ports(grpc=9, http=9, metrics=10))


def test_an_address_of_another_machine_is_no_port_in_use() -> None:
    with pytest.raises(UserError, match=r"can't listen on 192\.0\.2\.1"):  # RFC 5737: nobody's
        check_ports(free_ports(), "192.0.2.1")


def test_a_path_that_triton_s_shell_would_break_is_refused(tmp_path: Path) -> None:
    repository = tmp_path / "my models"
    repository.mkdir()
    server = TritonServer(repository, ports=free_ports(), log_file=tmp_path / "log")
    with pytest.raises(UserError, match="spaces or quotes"):
        server.__enter__()
    assert not (tmp_path / "log").exists()


def test_a_server_is_not_started_on_a_port_in_use(tmp_path: Path) -> None:
    ports = free_ports()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", ports.grpc))
        listener.listen()
        server = TritonServer(tmp_path, ports=ports, log_file=tmp_path / "log")
        with pytest.raises(UserError, match=rf"port {ports.grpc} is already in use.*--grpc-port"):
            server.__enter__()
    assert not (tmp_path / "log").exists()


def test_a_missing_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing-here: there is no such model repository"):
        TritonServer(tmp_path / "nothing-here", log_file=tmp_path / "log").__enter__()


def test_a_machine_without_triton_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(launch, "_CONTAINER_TRITON", tmp_path / "none")
    with pytest.raises(UserError, match=r"pip install 'trtllm-deploy\[local\]'"):
        launch.find_triton(tmp_path)


def test_a_container_s_own_triton_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "tritonserver"
    binary.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = launch.find_triton(tmp_path / "cache")
    assert (found.binary, found.flags) == (binary, ())
    assert not (tmp_path / "cache").exists()


def test_the_server_listens_where_it_is_told_and_nowhere_else() -> None:
    triton = Triton(Path("/bin/tritonserver"), ("--backend-directory=/b",), {})
    command = server_command(triton, Path("/repo"), Ports(1, 2, 3), "127.0.0.1", "prefix-")
    assert command[0] == "/bin/tritonserver"
    assert {
        "--model-repository=/repo",
        "--grpc-port=1",
        "--http-port=2",
        "--metrics-port=3",
        "--grpc-address=127.0.0.1",
        "--http-address=127.0.0.1",
        "--metrics-address=127.0.0.1",
        "--backend-config=python,shm-region-prefix-name=prefix-",
        "--backend-directory=/b",
    } <= set(command)


def supervised(script: str, *, launcher: int, grace: float = 5.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script]
    return subprocess.Popen(
        [sys.executable, str(SUPERVISE), str(launcher), str(grace), "no-such-shm-", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# a server with a child of its own, like Triton and its stubs; prints both pids
SERVER = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
{handler}
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) for pid in pids)


def test_the_exit_code_is_the_server_s(tmp_path: Path) -> None:
    for script, code in (("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)):
        with supervised(script, launcher=os.getpid()) as process:
            assert process.wait(20) == code


@pytest.mark.parametrize(
    "handler", ["", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"], ids=["polite", "stubborn"]
)
def test_closing_standard_input_ends_the_server_and_its_children(handler: str) -> None:
    with supervised(SERVER.format(handler=handler), launcher=os.getpid(), grace=0.5) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.stdin.close()
        process.wait(20)
        assert until(lambda: gone(pids))


def test_the_death_of_the_launcher_ends_the_server_and_its_children() -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as launcher,
        supervised(SERVER.format(handler=""), launcher=launcher.pid) as process,
    ):
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        launcher.kill()
        launcher.wait()
        process.wait(20)
        assert until(lambda: gone(pids))


def test_the_death_of_the_supervisor_ends_the_server() -> None:
    with supervised(SERVER.format(handler=""), launcher=os.getpid()) as process:
        assert process.stdout is not None
        server, child = (int(pid) for pid in process.stdout.readline().split())
        process.kill()
        process.wait()
        assert until(lambda: gone([server]))
        os.kill(child, signal.SIGKILL)  # a stub of Triton notices by itself
