"""The command ``trtllm-deploy``: a deployment file in, artifacts, servers and figures out.

The one place of this package that prints errors and decides exit codes: 0 done, 1 a server or a
measurement failed, 2 the user can mend it (one line on stderr).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console

from client.errors import UserError

if TYPE_CHECKING:
    from deploy.plan import CellPlan, Facts
    from deploy.spec import DeploymentFile
    from deploy.workspace import Workspace

F = TypeVar("F", bound=Callable[..., Any])


def _common(function: F) -> F:
    """The argument and the option that every command has."""
    file = click.argument("file", type=click.Path(path_type=Path))
    workspace = click.option(
        "--workspace",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("workspace"),
        show_default=True,
        help="Folder for artifacts, logs and results.",
    )
    return file(workspace(function))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="trtllm-deploy")
def command() -> None:
    """Build, serve and measure TensorRT-LLM models on Triton, from one YAML file."""


@command.command()
@_common
def plan(file: Path, workspace: Path) -> None:
    """Show the cells of FILE and what is left to make."""
    from deploy.report import print_plan

    _, _, plans, space = _planned(file, workspace, offline_ok=True)
    print_plan(plans, space, _console())


@command.command()
@_common
def build(file: Path, workspace: Path) -> None:
    """Make every artifact of FILE that isn't there yet."""
    _build(file, workspace)


@command.command()
@_common
@click.argument("cell")
@click.option("--grpc-port", default=8001, show_default=True, type=click.IntRange(1, 65535))
@click.option("--http-port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--metrics-port", default=8002, show_default=True, type=click.IntRange(1, 65535))
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
def serve(
    file: Path,
    cell: str,
    workspace: Path,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    address: str,
) -> int:
    """Serve the built CELL of FILE with Triton until Ctrl-C."""
    from deploy.launch import Ports, TritonServer

    deployment, _, plans, space = _planned(file, workspace)
    name = deployment.cell(cell).name
    chosen = next(each for each in plans if each.cell.name == name)
    server = TritonServer(
        space.repository(chosen),
        ports=Ports(grpc=grpc_port, http=http_port, metrics=metrics_port),
        log_file=space.server_log(name),
        address=address,
        cache_dir=space.triton,
    )
    console = _console()
    try:
        with server:
            console.print(f"starting Triton; its log: {server.log_file}", soft_wrap=True)
            server.wait_ready()
            console.print(f"ready: {name}", style="bold", soft_wrap=True)
            console.print(
                f"  gRPC {server.grpc_url}  HTTP {server.http_url}"
                f"  metrics http://{address}:{metrics_port}/metrics\n"
                f"  llm_perf -u {server.grpc_url} -m ensemble --concurrency 1,4"
                f" --tokenizer-path {space.artifact(chosen.fetch)} --input-data FILE.jsonl",
                soft_wrap=True,
            )
            code = server.wait()
    except KeyboardInterrupt:
        console.print("stopped")
        return 0
    console.print(f"Triton ended by itself with exit code {code}; see {server.log_file}")
    return code or 1


@command.command()
@_common
def run(file: Path, workspace: Path) -> int:
    """Build FILE, then serve and measure each cell."""
    from deploy.measure import measure_cells, print_summary

    deployment, plans, space = _build(file, workspace)
    settings = deployment.deployment.measure
    if settings is None:
        raise UserError(
            "there is no 'measure:' block, so nothing to measure",
            where=file,
            fix="add one with 'data: FILE.jsonl', or use 'trtllm-deploy build'",
        )
    console = _console()
    rows = measure_cells(plans, deployment, settings, space, console.print)
    print_summary(rows, space.results, console)
    return 0 if any(row["requests_ok"] for row in rows) else 1


def _planned(
    file: Path, workspace: Path, offline_ok: bool = False
) -> tuple[DeploymentFile, Facts, list[CellPlan], Workspace]:
    from deploy.build import gather
    from deploy.plan import plan as plan_cells
    from deploy.spec import load_deployment
    from deploy.workspace import Workspace

    deployment = load_deployment(file)
    space = Workspace(workspace.absolute())
    facts = gather(deployment, space, offline_ok)
    return deployment, facts, plan_cells(deployment, facts), space


def _build(file: Path, workspace: Path) -> tuple[DeploymentFile, list[CellPlan], Workspace]:
    from deploy.build import build as build_plans
    from deploy.progress import BuildProgress

    deployment, facts, plans, space = _planned(file, workspace)
    with BuildProgress(_console()) as progress:
        build_plans(plans, deployment, facts, space, progress)
    return deployment, plans, space


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140  # a file or a pipe has no width of its own
    return console


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command; print what the user can mend as one line."""
    signal.signal(signal.SIGTERM, _interrupt)  # so that every stage cleans up, as on Ctrl-C
    try:
        code = command.main(standalone_mode=False)
    except UserError as error:
        click.echo(f"trtllm-deploy: {error}", err=True)
        code = 2
    except click.ClickException as error:
        click.echo(f"trtllm-deploy: {error.format_message()} (see trtllm-deploy --help)", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("trtllm-deploy: interrupted; what was finished stays", err=True)
        code = 130
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
