"""The commands that run servers: serve, ps, stop.

They print, and keep to what a person chose; a server itself is :mod:`trtllm_deploy.serve.launch`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from llm_perf.errors import UserError
from trtllm_deploy.cli.options import planned, workspace_folder
from trtllm_deploy.machine.console import console
from trtllm_deploy.workspace.folder import Workspace

if TYPE_CHECKING:
    from trtllm_deploy.backends.server import Chosen, Server
    from trtllm_deploy.machine.remains import Remains
    from trtllm_deploy.serve.serving import Target

_PORT = click.IntRange(1, 65535)
_ELSEWHERE = "servers of another folder need its --workspace"


def _restarts(text: str) -> float:
    """How often a server may be started again: ``no``, ``on-failure``, ``on-failure:N``."""
    policy, _, most = text.partition(":")
    if text == "no":
        return 0
    if policy != "on-failure" or (most and not most.isdigit()) or text.endswith(":"):
        raise click.BadParameter("write no, on-failure or on-failure:N")
    return float(most or "inf")


@click.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.argument("cell", required=False)
@click.option(
    "--repository",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Serve this model repository instead of a CELL of FILE.",
)
@workspace_folder
@click.option("--grpc-port", default=8001, show_default=True, type=_PORT)
@click.option("--http-port", default=8000, show_default=True, type=_PORT)
@click.option("--metrics-port", default=8002, show_default=True, type=_PORT)
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--timeout",
    default=600.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds until it must be ready.",
)
@click.option(
    "--restart",
    default="no",
    show_default=True,
    type=_restarts,
    metavar="no|on-failure[:N]",
    help="Start a server that failed again, N times at most.",
)
@click.option(
    "--exit-timeout",
    default=10,
    show_default=True,
    type=click.IntRange(min=1),
    help="Seconds that requests in flight get when it is told to stop; none where mpirun starts"
    " it, which kills its ranks.",
)
@click.option(
    "--log-verbose",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="The server's own: 0 is quiet, 1 tells of requests, more tells more.",
)
@click.option(
    "--executable",
    "--tritonserver",
    metavar="PATH",
    help="This program as the server; default: the file's 'executable:', else the one on PATH; for"
    " Triton else the container's or nvidia-pytriton's.",
)
@click.option("--detach", is_flag=True, help="Return when it is ready; see ps and stop.")
@click.option("--print", "show", is_flag=True, help="Only print the command that would be run.")
@click.option("--force", is_flag=True, help="Launch whatever preflight finds.")
@click.option(
    "--mode",
    type=click.Choice(["leader", "orchestrator"]),
    default="leader",
    show_default=True,
    help="mpirun starts every rank, or one process that spawns the others.",
)
@click.option("--no-mpi", is_flag=True, help="llmapi: one process, which spawns its ranks.")
@click.option("--gpus", metavar="0,1,...", help="One for each rank of a node.")
@click.option(
    "--hostfile",
    type=click.Path(path_type=Path, exists=True, dir_okay=False, resolve_path=True),
    help="mpirun's hosts, this one first.",
)
@click.option("--oversubscribe", is_flag=True, help="More ranks than mpirun sees slots.")
def serve(
    file: Path | None, cell: str | None, repository: Path | None, workspace: Path, **chosen: Any
) -> int:
    """Serve the built CELL of FILE until Ctrl-C, or with --detach."""
    from trtllm_deploy.machine.ports import Ports, claimed
    from trtllm_deploy.machine.remains import sweep_remains
    from trtllm_deploy.serve.launch import ModelServer
    from trtllm_deploy.serve.serving import in_background, keep_serving

    target = _target(file, cell, repository, workspace)
    wished = _chosen(target, chosen)
    ports = Ports(chosen["grpc_port"], chosen["http_port"], chosen["metrics_port"])
    log_file = target.workspace.server_log(f"{target.name}-{ports.http}")
    new_server = partial(
        ModelServer,
        target.repository,
        ports=ports,
        log_file=log_file,
        address=chosen["address"],
        cache_dir=target.workspace.triton,
        chosen=wished,
        exit_seconds=chosen["exit_timeout"],
    )
    first = new_server()
    for flag, why in (*first.what.idle, *_without_effect(chosen)):
        click.echo(f"trtllm-deploy: {flag} changes nothing: {why}", err=True)
    if chosen["show"]:
        click.echo(first.shell_command())
        return 0
    if not _preflight(target, first.what, wished) and not chosen["force"]:
        raise UserError("preflight found errors; nothing was started", fix="--force goes on")
    sweep_remains()  # one that was left may listen there
    with claimed(ports, chosen["address"], first.what.listens):
        if chosen["detach"]:
            code = in_background(target.workspace, log_file.with_suffix(".out"))
            if code is not None:
                return code
        return keep_serving(target, new_server, chosen["restart"], chosen["timeout"])


def _target(
    file: Path | None, cell: str | None, repository: Path | None, workspace: Path
) -> Target:
    from trtllm_deploy.backends.servers import is_served
    from trtllm_deploy.serve.serving import Target

    if repository is not None and file is None:
        space = Workspace(workspace.resolve())
        if not is_served(repository):
            raise UserError("no folder in it has a config.pbtxt", where=repository)
        return Target(repository.absolute().name, repository, space, {})
    if file is None or cell is None or repository is not None:
        raise UserError("serve takes FILE and CELL, or --repository", fix="see serve --help")
    from trtllm_deploy.plan.plan import find_plan

    asked = planned(file, workspace, as_made=True)
    plan, space = find_plan(asked.plans, asked.file, cell), asked.workspace
    variables, lengths = asked.file.deployment.env, (plan.cell.isl, plan.cell.osl)
    tokenizer, repository = space.artifact(plan.fetch), space.repository(plan)
    program = asked.file.executable(plan.cell)
    return Target(plan.cell.name, repository, space, variables, tokenizer, lengths, program)


def _chosen(target: Target, chosen: dict[str, Any]) -> Chosen:
    from trtllm_deploy.backends.server import Chosen
    from trtllm_deploy.builds.local import visible_gpus

    orchestrator = chosen["mode"] == "orchestrator"
    named = chosen["gpus"] is not None
    return Chosen(
        executable=chosen["executable"] or target.executable,
        log_verbose=chosen["log_verbose"],
        orchestrator=orchestrator,
        no_mpi=chosen["no_mpi"],
        oversubscribe=chosen["oversubscribe"],
        hostfile=chosen["hostfile"],
        gpus=visible_gpus(chosen["gpus"]) if named or orchestrator else (),
        variables=target.variables,
    )


def _without_effect(chosen: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Flags that were given and do nothing here, whatever the server, each with the reason."""
    from trtllm_deploy.machine.gpu import gpus

    if chosen["gpus"] is not None and not chosen["hostfile"] and not gpus():
        yield "--gpus", "there is no GPU here"


def _preflight(target: Target, server: Server, chosen: Chosen) -> bool:
    """Print what is wrong; whether nothing is that stops a launch."""
    from trtllm_deploy.check.preflight import here, judge
    from trtllm_deploy.machine.finding import print_findings

    hosts = chosen.hostfile.read_text("utf-8").splitlines() if chosen.hostfile else ["here"]
    nodes = sum(bool(host.partition("#")[0].strip()) for host in hosts)
    asked = {"world_size": server.world_size, "nodes": nodes, "lengths": target.lengths}
    found = judge(target.repository, here(chosen.gpus, **asked))
    print_findings(found, console())
    return all(each.level != "error" for each in found)


@click.command()
@workspace_folder
def ps(workspace: Path) -> None:
    """List what is served from this workspace, or was left by a kill."""
    from trtllm_deploy.machine.remains import remains
    from trtllm_deploy.serve.running import running

    table = Table()
    for name in ("cell", "server", "state", "pid", "gRPC", "HTTP", "metrics", "ranks", "since"):
        table.add_column(name, overflow="fold")
    space = Workspace(workspace.resolve())
    for each in running(space):
        numbers = {name: str(getattr(each.ports, name)) for name in each.listens}
        first = next(name for name in ("grpc", "http") if name in numbers)
        numbers[first] = f"{each.address}:{numbers[first]}"
        numbers.setdefault("metrics", str(each.ports.http))
        ports = (numbers.get(name, "-") for name in ("grpc", "http", "metrics"))
        since = datetime.fromisoformat(each.since).astimezone().strftime("%F %T")
        table.add_row(
            each.cell, each.server, each.state, str(each.pid), *ports, str(each.world_size), since
        )
    if table.rows:
        console().print(table)
    else:
        click.echo(f"nothing is served from {space.root}; {_ELSEWHERE}")
    for left in remains():
        click.echo(f"a killed command left {_told(left)}; 'stop' or the next start ends that")


def _told(left: Remains) -> str:
    pids = ", ".join(map(str, left.processes))
    processes = f"{len(left.processes)} processes ({pids})" if pids else "no process"
    return f"{processes}, {left.memory / 2**20:.1f} MiB of shared memory"


@click.command()
@click.argument("cell", required=False)
@workspace_folder
def stop(cell: str | None, workspace: Path) -> None:
    """Stop the server of CELL, or all of this workspace.

    What killed commands of this user left on this machine ends as well.
    """
    from trtllm_deploy.machine.remains import remains
    from trtllm_deploy.machine.supervise import sweep
    from trtllm_deploy.serve.running import running
    from trtllm_deploy.serve.running import stop as end

    served = running(Workspace(workspace.resolve()))
    chosen = [each for each in served if cell in (None, each.cell)]
    left = remains()
    for each in left:
        sweep(each.name)
        click.echo(f"ended what a killed command left: {_told(each)}")
    if not chosen and (cell or not left):
        what = f"{cell} isn't" if cell else "nothing is"
        raise UserError(
            f"{what} served from {workspace}", fix=f"see trtllm-deploy ps; {_ELSEWHERE}"
        )
    for server in chosen:
        get = f"get {server.exit_seconds} s" if server.drains else "are cut off"
        click.echo(f"stopping {server.cell}; requests in flight {get}")
        end(server)
        click.echo(f"stopped {server.cell}")


COMMANDS = (serve, ps, stop)
