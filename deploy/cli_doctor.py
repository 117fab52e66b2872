"""The command ``trtllm-deploy doctor``: is this machine fit, or what does that log say.

It prints; what it tells comes from :mod:`deploy.doctor` and :mod:`deploy.failures`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

import click
from rich.markup import escape

from deploy.finding import Finding, print_findings
from deploy.options import console, workspace_folder


@click.command()
@click.argument(
    "logs", nargs=-1, metavar="[LOGFILE]...", type=click.File(encoding="utf-8", errors="replace")
)
@workspace_folder
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(logs: tuple[TextIO, ...], workspace: Path, as_json: bool) -> int:
    """Examine this machine, or say what went wrong in a server's LOGFILE (- is standard input).

    The exit code is 1 where an error was found. Nothing is changed, and no network is used.
    """
    return _logs(logs, as_json) if logs else _machine(workspace, as_json)


def _machine(workspace: Path, as_json: bool) -> int:
    from deploy.doctor import check, examine, lines

    machine, gpus = examine(workspace.absolute())
    findings = check(machine, gpus)
    if as_json:
        return _json(findings, machine=machine, gpus=gpus)
    out = console()
    for label, value in lines(machine, gpus):
        out.print(f"[bold]{label:<16}[/]{escape(value)}", soft_wrap=True)
    print_findings(findings, out)
    if not findings:
        out.print("nothing is wrong")
    return _code(findings)


def _logs(logs: Sequence[TextIO], as_json: bool) -> int:
    from deploy.failures import diagnose, first_errors

    out = console()
    found: dict[str, Finding] = {}  # a cause that several ranks' logs tell of is one
    for log in logs:
        lines = log.read().splitlines()
        causes = diagnose(lines, log.name)
        for each in causes:
            found.setdefault(each.what, each)
        if not causes and not as_json:
            told = [
                "nothing known was found; its first errors, or last lines:",
                *first_errors(lines),
            ]
            out.print(escape(f"{log.name}: " + "\n  ".join(told)), soft_wrap=True)
    if as_json:
        return _json(found.values())
    print_findings(found.values(), out)
    return _code(found.values())


def _json(findings: Collection[Finding], **told: object) -> int:
    click.echo(json.dumps({**told, "findings": [asdict(each) for each in findings]}, indent=2))
    return _code(findings)


def _code(findings: Collection[Finding]) -> int:
    return int(any(each.level == "error" for each in findings))
