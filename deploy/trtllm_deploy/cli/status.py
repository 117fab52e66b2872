"""The commands that look at a workspace, or sweep it: status, logs, why, gc; and releases.

They print; what they tell comes from :mod:`trtllm_deploy.workspace.questions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
from rich.markup import escape
from rich.table import Table

from llm_perf.errors import UserError
from llm_perf.screen import plain
from trtllm_deploy.cli.options import Planned, deployment_file, planned, workspace_folder
from trtllm_deploy.machine.console import console

if TYPE_CHECKING:
    from trtllm_deploy.store.leases import Artifact
    from trtllm_deploy.workspace.folder import Built
    from trtllm_deploy.workspace.leftovers import Leftover

_COLOURS = {"there": "green", "running": "bold", "failed": "red", "missing": "dim"}


@click.command()
@deployment_file
@workspace_folder
def status(file: Path, workspace: Path) -> None:
    """Show what of each cell of FILE is there, runs or has failed."""
    from trtllm_deploy.plan.plan import StageKind, distinct
    from trtllm_deploy.spec.overrides import shown
    from trtllm_deploy.workspace.questions import status as status_of

    asked = planned(file, workspace, offline_ok=True)
    found = {stage.key: status_of(stage, asked.workspace) for stage in distinct(asked.plans)}
    table = Table()
    table.add_column("cell", overflow="fold")
    for kind in get_args(StageKind):
        table.add_column(kind)
    for each in asked.plans:
        states = (found[stage.key].state for stage in each.stages)
        table.add_row(each.cell.name, *(f"[{_COLOURS[state]}]{state}" for state in states))
    out = console()
    out.print(table)
    for each in asked.plans:
        for change in shown(each.overrides):
            out.print(escape(plain(f"set      {each.cell.name}: {change}")), soft_wrap=True)
    for stage in distinct(asked.plans):
        if note := found[stage.key].note:
            state = f"{found[stage.key].state:<8}"
            out.print(f"{state} {stage.kind} {stage.title}: {escape(plain(note))}", soft_wrap=True)


@click.command()
@deployment_file
@click.argument("cell")
@workspace_folder
@click.option("--paths", is_flag=True, help="Only say where the logs are.")
def logs(file: Path, cell: str, workspace: Path, paths: bool) -> None:
    """Print the logs of the stages of CELL, as FILE describes it now."""
    from trtllm_deploy.plan.plan import find_plan

    asked = planned(file, workspace, offline_ok=True)
    stages = find_plan(asked.plans, asked.file, cell).stages
    found = [log for log in map(asked.workspace.log, stages) if log.is_file()]
    if not found:
        raise UserError(
            f"{cell} has no logs in {workspace}", fix="run 'trtllm-deploy build' with the same file"
        )
    for log in found:
        click.secho(str(log), bold=True)
        if not paths:
            click.echo(plain(log.read_text(encoding="utf-8", errors="replace"), keep="\n\t"))


@click.command()
@deployment_file
@click.argument("cell")
@workspace_folder
def why(file: Path, cell: str, workspace: Path) -> None:
    """Say what the next build of CELL makes, and what has changed."""
    from trtllm_deploy.plan.plan import find_plan
    from trtllm_deploy.spec.overrides import shown
    from trtllm_deploy.workspace.questions import why as reasons_of

    asked = planned(file, workspace, offline_ok=True)
    out, chosen = console(), find_plan(asked.plans, asked.file, cell)
    for change in shown(chosen.overrides):
        out.print(escape(plain(f"set        {change}, in place of the file's")), soft_wrap=True)
    for reason in reasons_of(chosen, asked.workspace):
        verdict = "is there" if reason.there else "[bold]will be made[/bold]"
        out.print(f"{reason.stage.kind:<10} {verdict}")
        for change in reason.changes:
            out.print(f"           {escape(plain(change))}", soft_wrap=True)


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@workspace_folder
@click.option("--yes", is_flag=True, help="Delete; without it, only say what would be deleted.")
@click.option(
    "--forget",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Also what FILE needed, which was built here and isn't there any more.",
)
def gc(files: tuple[Path, ...], workspace: Path, yes: bool, forget: tuple[Path, ...]) -> None:
    """Find what none of FILES needs, by default of all built here.

    What a running build or server uses stays, and so does what a file needed that was built here
    and isn't there now: it may have moved, or not be mounted.
    """
    from trtllm_deploy.plan.plan import distinct
    from trtllm_deploy.workspace.folder import Workspace
    from trtllm_deploy.workspace.leftovers import in_use, leftovers, sweep

    space = Workspace(workspace.absolute())
    known = space.deployment_files()
    forgotten = {file.absolute() for file in forget}
    if unknown := forgotten - known.keys():
        raise UserError(f"--forget {min(unknown)}: it wasn't built in {workspace}")
    missing = [file for file in known if not file.is_file() and file not in forgotten]
    asked = [
        planned(file, workspace)
        for file in files or [each for each in known if each not in {*missing, *forgotten}]
    ]
    if not (asked or missing or forgotten):
        raise UserError(f"no deployment file was built in {workspace}", fix="name FILES")
    needed: set[Artifact] = set()
    for each in asked:
        _check_gpus_known(each)
        needed.update((stage.kind, stage.key) for stage in distinct(each.plans))
    needed.update(_needs_of_missing(missing, known, needed))
    found = leftovers(needed, space)
    stayed = (sweep if yes else in_use)(found, space)
    named = {each.file.path.absolute() for each in asked}
    for folder in found:
        verb = "in use" if folder in stayed else "deleted" if yes else "would delete"
        what = f"{folder.kind:<10} {folder.key[:8]} {folder.size / 2**20:10.1f} MiB"
        needing = (str(file) for file in known if _needs(known, file, folder) and file not in named)
        whose = ", of ".join((plain(folder.title), *map(plain, needing)))
        click.echo(f"{verb} {what} {whose}")
    if yes and forgotten:
        space.forget(forgotten)
    freed = sum(each.size for each in found if each not in stayed)
    done = "freed" if yes else "to free with --yes"
    click.echo(f"{len(found) - len(stayed)} folders, {freed / 2**20:.1f} MiB {done}")


def _needs(known: Mapping[Path, Built], file: Path, folder: Leftover) -> bool:
    return (folder.kind, folder.key) in (known[file].needs or ())


def _needs_of_missing(
    missing: list[Path], known: Mapping[Path, Built], needed: set[Artifact]
) -> Iterator[Artifact]:
    """What files that aren't there needed when they were built; said, so that it can be mended."""
    for file in missing:
        needs = known[file].needs
        if needs is None:
            raise UserError(
                "it was built here and isn't there, and what it needs isn't known",
                where=file,
                fix="bring it back and build it, or give up what it needs: --forget FILE",
            )
        only = len(set(needs) - needed)
        shown = plain(str(file))
        click.echo(f"kept {only} artifacts of {shown}, which isn't there (--forget {shown})")
        yield from needs


def _check_gpus_known(asked: Planned) -> None:
    """Without GPUs a plan asks for other engines than those that were built on GPUs."""
    from trtllm_deploy.backends.backend import BACKENDS

    if (
        any(BACKENDS[each].compiles for each in asked.file.deployment.backend)
        and not asked.facts.gpus
    ):
        raise UserError(
            "which engines this file needs depends on the GPUs, and there are none here",
            where=asked.file.path,
            fix="run gc where the engines were built",
        )


@click.command()
@click.argument("names", nargs=-1, metavar="[A [B]]")
def releases(names: tuple[str, ...]) -> None:
    """List TensorRT-LLM releases, or what changed from A to B."""
    from trtllm_deploy.cli.tables import print_releases

    print_releases(console(), names)


COMMANDS = (status, logs, why, gc, releases)
