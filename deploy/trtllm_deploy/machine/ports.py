"""Where a server listens: ports that are free, and kept free for it.

Knows nothing of the server.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from llm_perf.errors import UserError


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a server listens. The defaults are Triton's."""

    grpc: int = 8001
    http: int = 8000
    metrics: int = 8002


DEFAULT_PORTS = Ports()


def free_ports(address: str = "127.0.0.1") -> Ports:
    """Three ports that nobody listens on now; for runs that no person talks to."""
    with contextlib.ExitStack() as held:
        numbers = []
        for _ in fields(Ports):
            probe = held.enter_context(socket.socket())
            probe.bind((address, 0))
            numbers.append(int(probe.getsockname()[1]))
    return Ports(*numbers)


ALL = tuple(each.name for each in fields(Ports))


def check_ports(ports: Ports, address: str = "127.0.0.1", used: Sequence[str] = ALL) -> None:
    """See that a server can listen there, on the ports that are ``used``.

    Raises UserError when two of the ports are the same or somebody listens on one already, with
    the flag to change, or when this machine has no such address.
    """
    flags: dict[int, str] = {}
    for name in used:
        port, flag = getattr(ports, name), f"--{name}-port"
        if port in flags:
            raise UserError(
                f"{flags[port]} and {flag} are both {port}", fix=f"give {len(used)} ports"
            )
        flags[port] = flag
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT is free
                probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"port {port} is already in use on {address}",
                    fix=f"see trtllm-deploy ps, or set another with {flag}",
                ) from None
            raise UserError(
                f"can't listen on {address}:{port}: {error.strerror}",
                fix="check --address and the port",
            ) from None


@contextlib.contextmanager
def claimed(ports: Ports, address: str = "127.0.0.1", used: Sequence[str] = ALL) -> Iterator[None]:
    """Ports that no other ``serve`` on this host takes meanwhile, nor does anybody else now.

    A server binds its ports only once it has started, and not while it waits for a restart. The
    claim is a locked file of this user's, so nobody else can make one; it goes with its process and
    those that were forked from it. Raises UserError as ``check_ports`` does, and when another serve
    of this user claims one.
    """
    check_ports(ports, address, used)
    with contextlib.ExitStack() as held:
        for name in used:
            port = getattr(ports, name)
            try:
                claim = held.enter_context(_claim_file(port).open("w"))
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"port {port} belongs to another serve",
                    fix=f"see trtllm-deploy ps, or set another with --{name}-port",
                ) from None
            except (OSError, RuntimeError):
                continue  # no home, or one that can't be written: nothing is claimed
        yield


def _claim_file(port: int) -> Path:
    """One for each port of this host, and of each network that containers have on it."""
    network = os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116 (no path for people)
    folder = Path.home() / ".cache" / "trtllm-deploy" / "ports"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / f"{socket.gethostname()}-{network}-{port}"
