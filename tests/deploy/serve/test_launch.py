import socket
from dataclasses import astuple, replace
from pathlib import Path

import pytest

from llm_perf.errors import UserError
from trtllm_deploy.machine.ports import Ports, check_ports, claimed, free_ports
from trtllm_deploy.serve.launch import ModelServer


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
    server = ModelServer(repository, ports=free_ports(), log_file=tmp_path / "log")
    with pytest.raises(UserError, match="spaces or quotes"):
        server.__enter__()
    assert not (tmp_path / "log").exists()


def test_a_server_is_not_started_on_a_port_in_use(tmp_path: Path) -> None:
    ports = free_ports()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", ports.grpc))
        listener.listen()
        server = ModelServer(tmp_path, ports=ports, log_file=tmp_path / "log")
        with pytest.raises(UserError, match=rf"port {ports.grpc} is already in use.*--grpc-port"):
            server.__enter__()
    assert not (tmp_path / "log").exists()


def test_a_missing_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing-here: there is no such model repository"):
        ModelServer(tmp_path / "nothing-here", log_file=tmp_path / "log").__enter__()


def test_ports_of_a_serve_are_nobody_else_s_before_its_server_binds_them() -> None:
    ports = free_ports()
    others = replace(free_ports(), metrics=ports.http)
    with (
        claimed(ports),
        pytest.raises(UserError, match=f"port {ports.http} belongs to another serve"),
        claimed(others),
    ):
        pass
    with claimed(others):
        pass


def test_a_name_that_another_user_takes_blocks_no_serve() -> None:
    ports = free_ports()
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(f"\0trtllm-deploy port {ports.http}")
        with claimed(ports):
            pass


def test_without_a_home_ports_are_still_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/nowhere")
    ports = free_ports()
    with claimed(ports), claimed(ports):
        pass
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports.http))
        other.listen()
        with pytest.raises(UserError, match="already in use"), claimed(ports):
            pass
