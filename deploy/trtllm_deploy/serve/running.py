"""Which cells are served from a workspace, by which process, on which ports.

``serve`` writes ``<workspace>/servers/<cell>-<HTTP port>.json`` when it starts, again when the
server is ready, and removes it at its end. What a killed ``serve`` left behind doesn't count: a
record holds until its process is gone, and only in the workspace that has its logs: not in a copy.
Knows nothing of how a server is started.
"""

from __future__ import annotations

import json
import os
import select
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from trtllm_deploy.machine.json_files import write_json
from trtllm_deploy.machine.ports import ALL, Ports
from trtllm_deploy.machine.remains import process_start
from trtllm_deploy.workspace.folder import Workspace

CHANGED = signal.SIGUSR1
"""What tells a ``serve`` to start its server anew."""

_ROOM_SECONDS = 15  # for all that a stop takes beside requests in flight
State: TypeAlias = Literal["starting", "ready", "restarting", "refused"]


@dataclass(frozen=True, slots=True)
class Running:
    """A served cell.

    ``pid`` is ``serve``'s own process, ``started`` its start in clock ticks since boot: together
    they name one process for good. ``since`` is ISO 8601. ``starts`` counts the servers that it
    started. A server that ``drains`` gives requests in flight ``exit_seconds`` when it is told to
    stop. ``server`` is its kind, for people; it listens on the ports ``listens``.
    """

    cell: str
    pid: int
    started: int
    state: State
    address: str
    ports: Ports
    world_size: int
    repository: str
    log_files: tuple[str, ...]
    since: str
    starts: int
    exit_seconds: int
    server: str = ""
    listens: tuple[str, ...] = ALL
    drains: bool = False


def running(workspace: Workspace) -> list[Running]:
    """The cells that are served now, by name."""
    found = []
    for file in sorted(_folder(workspace).glob("*.json")):
        with suppress(OSError, ValueError, TypeError, KeyError):
            data = json.loads(file.read_text(encoding="utf-8"))
            tuples = {each: tuple(data[each]) for each in ("log_files", "listens") if each in data}
            data |= {"ports": Ports(**data["ports"]), **tuples}
            found.append(Running(**data))
    root = workspace.root.resolve()
    return [
        each
        for each in found
        if process_start(each.pid) == each.started
        and all(Path(log).resolve().is_relative_to(root) for log in each.log_files)
    ]


def note(workspace: Workspace, served: Running) -> None:
    """Write the record of a cell."""
    _folder(workspace).mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(_file(workspace, served), asdict(served))


def forget(workspace: Workspace, pid: int) -> None:
    """Remove the record of a process."""
    for each in running(workspace):
        if each.pid == pid:
            _file(workspace, each).unlink(missing_ok=True)


def start_anew(served: Running) -> None:
    """Have a ``serve`` end its server and start it on what the repository is now.

    Only who may send a signal to the process can do so: its owner.
    """
    with suppress(ProcessLookupError):
        process = os.pidfd_open(served.pid)
        try:
            if process_start(served.pid) == served.started:
                signal.pidfd_send_signal(process, CHANGED)
        finally:
            os.close(process)


def stop(served: Running) -> None:
    """End a ``serve`` and its server; one that takes too long is killed, and the server with it."""
    with suppress(ProcessLookupError):
        process = os.pidfd_open(served.pid)
        try:
            if process_start(served.pid) != served.started:
                return
            waiting = select.poll()
            waiting.register(process, select.POLLIN)
            for number in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(process, number)
                if waiting.poll((served.exit_seconds + _ROOM_SECONDS) * 1000):
                    return
        finally:
            os.close(process)


def _folder(workspace: Workspace) -> Path:
    return workspace.root / "servers"


def _file(workspace: Workspace, served: Running) -> Path:
    return _folder(workspace) / f"{served.cell}-{served.ports.http}.json"
