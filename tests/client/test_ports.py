from __future__ import annotations

import socket

import pytest

from tests.client.scripted import ScriptedTriton, answer


def test_the_port_of_a_server_that_stopped_refuses_and_is_nobody_else_s() -> None:
    with ScriptedTriton(answer) as server, socket.socket() as other:
        host, port = server.url.split(":")
        socket.create_connection((host, int(port))).close()
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)))
        with pytest.raises(OSError, match="in use"):
            other.bind((host, int(port)))
