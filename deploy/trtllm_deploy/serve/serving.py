"""Keeping one server going: started, watched, started again, noted for others, told about.

In: what to serve, a maker of servers, a policy. Out: what a person sees, the last exit code. Knows
nothing of how a server is started, or of deployment files.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import click

from llm_perf.screen import plain
from trtllm_deploy.check.failures import diagnose_logs, stays_so
from trtllm_deploy.machine.console import console
from trtllm_deploy.machine.finding import print_findings
from trtllm_deploy.machine.remains import process_start
from trtllm_deploy.serve.launch import ModelServer, ServerError
from trtllm_deploy.serve.running import (
    CHANGED,
    Running,
    State,
    forget,
    note,
    running,
)
from trtllm_deploy.store.leases import Lease
from trtllm_deploy.workspace.folder import Workspace

_UNDO_SECONDS = 60.0  # for who changed the settings to see that they don't work
_LONGEST_PAUSE = 30.0  # seconds between restarts; the first is 1


@dataclass(frozen=True, slots=True)
class Target:
    """What is served: a cell, or a repository that was made elsewhere.

    ``lengths`` are ISL and OSL, ``variables`` what its processes find in their environment.
    ``executable`` is the server's program where the deployment file names it.
    """

    name: str
    repository: Path
    workspace: Workspace
    variables: Mapping[str, str]
    tokenizer: Path | None = None
    lengths: tuple[int, int] | None = None
    executable: str | None = None


def keep_serving(
    target: Target, new_server: Callable[[], ModelServer], restarts: float, timeout: float
) -> int:
    """Serve, and again while the policy allows; what to exit with, 0 for a stop.

    What never was ready for a known reason that another start can't change isn't started again.
    Told of a change (:func:`trtllm_deploy.serve.running.start_anew`) it ends the server and starts
    it on what the repository is then; where that doesn't come up, it waits for a change back.
    """
    changes: list[int] = []
    signal.signal(CHANGED, lambda number, _: changes.append(number))
    restarted, starts, anew, ever = 0, 0, False, False
    lease = Lease(target.workspace.store.root)
    try:
        while True:
            starts += 1
            changes.clear()
            lease.hold([("repository", target.repository.resolve().name)])
            server = new_server()
            came = _serve_once(target, server, timeout, starts, changes)
            if came.changed:
                console().print("the settings changed: starting anew")
                anew = True
                continue
            if anew and not came.ready:
                note(target.workspace, _record(target, server, "refused", starts))
                if _soon(lambda: bool(changes)):
                    continue
            anew, ever = False, ever or came.ready
            if came.code == 0 or restarted >= restarts:
                return _exit_code(came.code)
            if not ever and came.stays_so:
                console().print("it never was ready, and another start changes nothing in that")
                return _exit_code(came.code)
            pause = min(2.0**restarted, _LONGEST_PAUSE)
            restarted += 1
            console().print(f"restart {restarted} in {pause:g} s")
            note(target.workspace, _record(target, server, "restarting", starts))
            time.sleep(pause)
    except KeyboardInterrupt:
        console().print("stopped")
        return 0
    finally:
        forget(target.workspace, os.getpid())
        lease.end()


def _soon(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _UNDO_SECONDS
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)
    return true()


class _Came(NamedTuple):
    """How a server ended.

    ``code`` is its exit code, None where it was ended: not ready in time, or a change is to be
    loaded. ``stays_so``: another start wouldn't help.
    """

    code: int | None
    ready: bool
    changed: bool = False
    stays_so: bool = False


def _exit_code(code: int | None) -> int:
    """0 and signals as they are; a server's own codes mean nothing beside ours."""
    return code if code is not None and (code == 0 or code > 128) else 1


def _serve_once(
    target: Target, server: ModelServer, timeout: float, starts: int, changes: list[int]
) -> _Came:
    out = console()
    code: int | None
    ready = False
    with server:
        out.print(f"starting {server.title}; its log: {server.log_file}", soft_wrap=True)
        note(target.workspace, _record(target, server, "starting", starts))
        try:
            server.wait_ready(timeout, _say)
            ready = True
            note(target.workspace, _record(target, server, "ready", starts))
            out.print(f"ready: {target.name}", style="bold", soft_wrap=True)
            out.print(_how_to_ask(target, server), soft_wrap=True)
            code = server.wait(_say, lambda: bool(changes))
            if code is not None:
                out.print(
                    f"{server.title} ended by itself with exit code {code}; see {server.log_file}"
                )
        except ServerError as error:
            click.echo(f"trtllm-deploy: {error}", err=True)
            code = error.code
    if ready and code is None:
        return _Came(code, ready, changed=True)
    if code != 0:
        print_findings(diagnose_logs(server.log.files), out)
    by_itself = code is not None and code < 128
    return _Came(code, ready, stays_so=by_itself and stays_so(server.log.files))


def _how_to_ask(target: Target, server: ModelServer) -> str:
    """Where it listens, and the command that measures it."""
    titles = {"grpc": "gRPC", "http": "HTTP"}
    listens = [
        f"{title} {server.url(port)}"
        for port, title in titles.items()
        if port in server.what.listens
    ]
    url, protocol, model = server.asked
    speaks = "" if protocol == "grpc" else f" -i {protocol}"
    return (
        f"  {'  '.join(listens)}  metrics {server.metrics_url}\n"
        f"  llm_perf -u {url}{speaks} -m {model} --concurrency 1,4"
        f" --tokenizer-path {target.tokenizer or 'FOLDER'} --input-data FILE.jsonl"
    )


def _say(error: str) -> None:
    click.echo(f"  {plain(error)}", err=True)


def _record(target: Target, server: ModelServer, state: State, starts: int) -> Running:
    pid = os.getpid()
    return Running(
        cell=target.name,
        pid=pid,
        started=process_start(pid) or 0,
        state=state,
        address=server.address,
        ports=server.ports,
        world_size=server.what.world_size,
        listens=server.what.listens,
        server=server.title,
        repository=str(server.repository.absolute()),
        log_files=tuple(map(str, server.log.files)),
        since=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        starts=starts,
        exit_seconds=server.exit_seconds,
        drains=server.what.drains,
    )


def in_background(workspace: Workspace, output: Path) -> int | None:
    """Go on in a new process, for which it is None; here the exit code, once that one is ready.

    What the new process says goes to ``output``, and until it is ready it is shown here.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(b"")
    child = os.fork()
    if not child:
        os.setsid()
        with output.open("ab") as said, Path(os.devnull).open("rb") as nothing:
            for stream, number in ((nothing, 0), (said, 1), (said, 2)):
                os.dup2(stream.fileno(), number)
        return None
    try:
        with output.open(errors="replace") as shown:
            while True:  # one that was stopped before it was ready ended with 0
                ended, status = os.waitpid(child, os.WNOHANG)
                records = running(workspace)
                ready = any(each.pid == child and each.state == "ready" for each in records)
                click.echo(shown.read(), nl=False)
                if ready or ended:
                    code = os.waitstatus_to_exitcode(status)
                    return 0 if ready else 128 - code if code < 0 else code or 1
                time.sleep(0.2)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
