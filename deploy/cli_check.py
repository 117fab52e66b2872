"""The command that looks before the leap: ``trtllm-deploy check``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from client.errors import UserError
from deploy.options import console, planned, workspace_folder


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
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def check(
    target: Path,
    cell: str | None,
    workspace: Path,
    engine: Path | None,
    world_size: int | None,
    as_json: bool,
) -> int:
    """Find what will go wrong with a model repository and its engine, without starting anything.

    TARGET is the folder of a repository, whichever tool made it, or the name of a built cell; or a
    deployment file, then CELL is one of its cells. The exit code is 1 if there is an error.
    """
    from deploy.finding import print_findings
    from deploy.gpu import gpus
    from deploy.preflight import installed_tensorrt_llm, preflight

    repository, lengths = _repository(target, cell, workspace)
    here, version = gpus(), installed_tensorrt_llm()
    findings = preflight(
        repository,
        world_size=world_size,
        gpus=here,
        tensorrt_llm=version,
        lengths=lengths,
        engine=engine,
    )
    out = console()
    if as_json:
        click.echo(json.dumps([asdict(each) for each in findings], indent=2))
    else:
        print_findings(findings, out)
        if not findings:
            out.print(f"no findings in {repository}", soft_wrap=True)
    blind = ["what a GPU can hold and compute (there is none here)"] * (not here)
    blind += ["the engine's version (TensorRT-LLM isn't installed)"] * (version is None)
    if blind:
        click.echo(f"not checked: {', '.join(blind)}", err=True)
    return int(any(each.level == "error" for each in findings))


def _repository(
    target: Path, cell: str | None, workspace: Path
) -> tuple[Path, tuple[int, int] | None]:
    """The folder that is meant, with ISL and OSL if a deployment file says them."""
    if cell is not None:
        from deploy.plan import find_plan

        asked = planned(target, workspace, offline_ok=True)
        chosen = find_plan(asked.plans, asked.file, cell)
        lengths = (chosen.cell.isl, chosen.cell.osl)
        return asked.workspace.repository(chosen), lengths
    for folder in (target, workspace / "ensemble_models" / target):
        if folder.is_dir():
            return folder, None
    raise UserError(
        f"{target} is neither a folder nor a cell that was built in {workspace}",
        fix="name a repository's folder, or a deployment file and one of its cells",
    )


COMMANDS = (check,)
