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

import click

from trtllm_deploy.check.failures import diagnose_logs
from trtllm_deploy.check.finding import print_findings
from trtllm_deploy.machine.console import console
from trtllm_deploy.serve.launch import ServerError, TritonServer
from trtllm_deploy.serve.running import Running, State, forget, note, process_start, running
from trtllm_deploy.workspace.folder import Workspace

_LONGEST_PAUSE = 30.0  # seconds between restarts; the first is 1


@dataclass(frozen=True, slots=True)
class Target:
    """What is served: a cell, or a repository that was made elsewhere.

    ``lengths`` are ISL and OSL, ``variables`` what its processes find in their environment.
    """

    name: str
    repository: Path
    workspace: Workspace
    variables: Mapping[str, str]
    tokenizer: Path | None = None
    lengths: tuple[int, int] | None = None


def keep_serving(
    target: Target, new_server: Callable[[], TritonServer], restarts: float, timeout: float
) -> int:
    """Serve, and again while the policy allows; the exit code of the last server, 0 for a stop."""
    restarted, server = 0, new_server()
    try:
        while (code := _serve_once(target, server, timeout)) and restarted < restarts:
            pause = min(2.0**restarted, _LONGEST_PAUSE)
            restarted += 1
            console().print(f"restart {restarted} in {pause:g} s")
            note(target.workspace, _record(target, server, "restarting"))
            time.sleep(pause)
            server = new_server()
    except KeyboardInterrupt:
        console().print("stopped")
        return 0
    finally:
        forget(target.workspace, os.getpid())
    return code


def _serve_once(target: Target, server: TritonServer, timeout: float) -> int:
    out = console()
    with server:
        out.print(f"starting Triton; its log: {server.log_file}", soft_wrap=True)
        note(target.workspace, _record(target, server, "starting"))
        try:
            server.wait_ready(timeout, _say)
            note(target.workspace, _record(target, server, "ready"))
            out.print(f"ready: {target.name}", style="bold", soft_wrap=True)
            out.print(
                f"  gRPC {server.grpc_url}  HTTP {server.http_url}"
                f"  metrics http://{server.address}:{server.ports.metrics}/metrics\n"
                f"  llm_perf -u {server.grpc_url} -m {server.processes.asked} --concurrency 1,4"
                f" --tokenizer-path {target.tokenizer or 'FOLDER'} --input-data FILE.jsonl",
                soft_wrap=True,
            )
            code = server.wait(_say)
            out.print(f"Triton ended by itself with exit code {code}; see {server.log_file}")
        except ServerError as error:
            click.echo(f"trtllm-deploy: {error}", err=True)
            code = error.code
    if code:
        print_findings(diagnose_logs(server.log.files), out)
    return code


def _say(error: str) -> None:
    click.echo(f"  {error}", err=True)


def _record(target: Target, server: TritonServer, state: State) -> Running:
    pid = os.getpid()
    return Running(
        cell=target.name,
        pid=pid,
        started=process_start(pid) or 0,
        state=state,
        address=server.address,
        ports=server.ports,
        world_size=server.processes.world_size,
        repository=str(server.repository.absolute()),
        log_files=tuple(map(str, server.log.files)),
        since=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        key=server.key,
        exit_seconds=server.exit_seconds,
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
            while True:
                ended, status = os.waitpid(child, os.WNOHANG)
                records = running(workspace)
                ready = any(each.pid == child and each.state == "ready" for each in records)
                click.echo(shown.read(), nl=False)
                if ready or ended:
                    return 0 if ready else os.waitstatus_to_exitcode(status)
                time.sleep(0.2)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise
