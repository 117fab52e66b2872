"""The commands that tell what is wrong, or will be: check of a repository, doctor of a machine.

They print; findings come from :mod:`trtllm_deploy.check`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click
from rich.markup import escape

from llm_perf.errors import UserError
from llm_perf.screen import plain
from trtllm_deploy.cli.options import planned, workspace_folder
from trtllm_deploy.machine.console import console
from trtllm_deploy.machine.finding import Finding, print_findings

if TYPE_CHECKING:
    from trtllm_deploy.plan.plan import CellPlan
    from trtllm_deploy.workspace.folder import Workspace

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.argument("cell", required=False)
@workspace_folder
@click.option(
    "--engine",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Engine folder to check against; default: the one that gpt_model_path names.",
)
@click.option("--world-size", type=click.IntRange(min=1), help="Processes that will be started.")
@_JSON
def check(
    target: Path,
    cell: str | None,
    workspace: Path,
    engine: Path | None,
    world_size: int | None,
    as_json: bool,
) -> int:
    """Find what will go wrong with a repository and its engine.

    Nothing is started. TARGET is the folder of a repository, whichever tool made it, or the name of
    a built cell; or a deployment file, then CELL is one of its cells. The exit code is 1 if there
    is an error.
    """
    from trtllm_deploy.check.preflight import has_own_rules, here, judge

    findings: list[Finding] = []
    lengths = None
    if cell is None:
        repository = _repository(target, workspace)
    else:
        chosen, space, findings = _asked(target, cell, workspace)
        lengths = (chosen.cell.isl, chosen.cell.osl)
        repository = target if findings else space.repository(chosen)
    launch = here(world_size=world_size, lengths=lengths, engine=engine)
    findings = findings or judge(repository, launch)  # what is refused isn't there
    blind = ["what a GPU can hold and compute (there is none here)"] * (not launch.gpus)
    tensorrt_llm = launch.tensorrt_llm is not None or has_own_rules(repository)
    blind += ["the engine's version (TensorRT-LLM isn't installed)"] * (not tensorrt_llm)
    if blind:
        click.echo(f"not checked: {', '.join(blind)}", err=True)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in findings], indent=2))
        return _code(findings)
    return _print(findings, f"no findings in {repository}")


def _asked(target: Path, cell: str, workspace: Path) -> tuple[CellPlan, Workspace, list[Finding]]:
    """A cell of a deployment file, and what the installed TensorRT-LLM refuses of it."""
    from trtllm_deploy.check.judged import judged
    from trtllm_deploy.plan.plan import find_plan

    asked = planned(target, workspace, offline_ok=True)
    chosen = find_plan(asked.plans, asked.file, cell)
    findings, unasked = judged(chosen, asked.workspace)
    if unasked is not None:
        why = plain(unasked)
        click.echo(f"not checked: whether TensorRT-LLM takes the cell ({why})", err=True)
    return chosen, asked.workspace, findings


def _repository(target: Path, workspace: Path) -> Path:
    """The folder that is meant."""
    for folder in (target, workspace / "ensemble_models" / target):
        if folder.is_dir():
            return folder
    raise UserError(
        f"{target} is neither a folder nor a cell that was built in {workspace}",
        fix="name one of the file's cells after it: see 'trtllm-deploy status'"
        if target.is_file()
        else "name a repository's folder, or a deployment file and one of its cells",
    )


@click.command()
@click.argument(
    "logs", nargs=-1, metavar="[LOGFILE]...", type=click.File(encoding="utf-8", errors="replace")
)
@workspace_folder
@_JSON
def doctor(logs: tuple[TextIO, ...], workspace: Path, as_json: bool) -> int:
    """Examine this machine, or explain a server's LOGFILE (-: stdin).

    The exit code is 1 where an error was found, explained or not. Nothing is changed, and no
    network is used.
    """
    return _logs(logs, as_json) if logs else _machine(workspace, as_json)


def _machine(workspace: Path, as_json: bool) -> int:
    from trtllm_deploy.check.doctor import check as check_machine
    from trtllm_deploy.check.doctor import examine, lines

    machine, gpus = examine(workspace.absolute())
    findings = check_machine(machine, gpus)
    if as_json:
        return _json(findings, machine=machine, gpus=gpus)
    out = console()
    for label, value in lines(machine, gpus):
        out.print(f"[bold]{label:<16}[/]{escape(plain(value))}", soft_wrap=True)
    return _print(findings, "nothing is wrong")


def _logs(logs: Sequence[TextIO], as_json: bool) -> int:
    from trtllm_deploy.check.failures import diagnose, error_in, first_errors, once

    found: list[Finding] = []
    unexplained = False
    for log in logs:
        lines = log.read().splitlines()
        causes = diagnose(lines, log.name)
        found += causes
        unexplained |= not causes and any(map(error_in, lines))
        if not causes and not as_json:
            told = "nothing known was found; its first errors, or last lines:"
            shown = [f"{log.name}: {told}", *first_errors(lines)]
            click.echo("\n  ".join(map(plain, shown)))
    return (_json if as_json else _print)(once(found)) or int(unexplained)


def _json(findings: Collection[Finding], **told: object) -> int:
    click.echo(json.dumps({**told, "findings": [asdict(each) for each in findings]}, indent=2))
    return _code(findings)


def _print(findings: Collection[Finding], otherwise: str = "") -> int:
    out = console()
    print_findings(findings, out)
    if otherwise and not findings:
        out.print(escape(otherwise), soft_wrap=True)
    return _code(findings)


def _code(findings: Collection[Finding]) -> int:
    return int(any(each.level == "error" for each in findings))


COMMANDS = (check, doctor)
