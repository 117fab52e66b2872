"""The command ``trtllm-deploy``: a deployment file in, artifacts, servers and figures out.

The one place of this package that prints errors and decides exit codes: 0 done, 1 a server or a
measurement failed, 2 the user can mend it (one line on stderr).
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from llm_perf.ending import end_like_ctrl_c
from llm_perf.errors import UserError, exit_code
from trtllm_deploy import __version__
from trtllm_deploy.cli.building import build_cells
from trtllm_deploy.cli.compare import COMMANDS as COMPARE
from trtllm_deploy.cli.example import COMMANDS as EXAMPLE
from trtllm_deploy.cli.explain import COMMANDS as EXPLAIN
from trtllm_deploy.cli.findings import COMMANDS as FINDINGS
from trtllm_deploy.cli.options import (
    Where,
    deployment_file,
    fail_fast,
    planned,
    where_to_run,
    workspace_folder,
)
from trtllm_deploy.cli.render import COMMANDS as RENDER
from trtllm_deploy.cli.serve import COMMANDS as SERVE
from trtllm_deploy.cli.status import COMMANDS as WORKSPACE
from trtllm_deploy.cli.tune import COMMANDS as TUNE
from trtllm_deploy.machine.console import console


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="trtllm-deploy")
def command() -> None:
    """Build, serve and measure TensorRT-LLM models on Triton, from one YAML file."""


for each in (*EXAMPLE, *WORKSPACE, *FINDINGS, *SERVE, *RENDER, *COMPARE, *EXPLAIN, *TUNE):
    command.add_command(each)


@command.command()
@deployment_file
@workspace_folder
@where_to_run
@click.option(
    "--gpu-memory", help="Memory of a GPU, as 80GiB; default: that of the first one here."
)
@click.option("--gpu", help="Plan for such a GPU, like h100; default: the first one here.")
def plan(
    file: Path, workspace: Path, where: Where, gpu_memory: str | None, gpu: str | None
) -> None:
    """Show FILE's cells: what is left to make, memory, speed at best."""
    from trtllm_deploy.cli.tables import print_plan, print_rooflines
    from trtllm_deploy.plan.memory import memory_plans, parse_size
    from trtllm_deploy.plan.notes import notes
    from trtllm_deploy.plan.roofline import LISTED, find_gpu

    size = parse_size(gpu_memory) if gpu_memory else None
    kind = find_gpu(gpu) if gpu else None
    asked = planned(file, workspace, where, offline_ok=True)
    here = asked.facts.gpus[0] if asked.facts.gpus else None
    if size is None:
        size = kind.memory if kind else here.memory if here else None
    kind = kind or (LISTED.get(here.name) if here else None)
    cells = [each.cell for each in asked.plans]
    memory = memory_plans(asked.file, cells, asked.facts.shapes, size)
    said = notes(asked.file, cells, asked.facts)
    print_plan(asked.plans, asked.workspace, console(), memory, said)
    if kind is not None:
        print_rooflines(asked.file, memory, asked.facts.shapes, kind, console())


@command.command()
@deployment_file
@workspace_folder
@where_to_run
@fail_fast
@click.option("--dry-run", is_flag=True, help="Print a shell script that would do the same.")
def build(file: Path, workspace: Path, where: Where, fail_fast: bool, dry_run: bool) -> int:
    """Make every artifact of FILE that isn't there yet."""
    asked = planned(file, workspace, where, offline_ok=dry_run)
    if dry_run:
        from trtllm_deploy.builds.dry_run import dry_run_script

        click.echo(dry_run_script(asked.file, asked.plans, asked.facts, asked.workspace))
        return 0
    return 2 if build_cells(asked, fail_fast=fail_fast).unbuilt else 0


@command.command()
@deployment_file
@workspace_folder
@where_to_run
@fail_fast
@click.option("--again", is_flag=True, help="Measure what is in the ledger once more.")
def run(file: Path, workspace: Path, where: Where, fail_fast: bool, again: bool) -> int:
    """Build FILE, then serve and measure each cell that was built.

    Each measurement is kept in WORKSPACE/results/ledger.jsonl before the next begins; killed at any
    moment, the same command goes on with those that aren't there.
    """
    from llm_perf.api import cost
    from trtllm_deploy.builds.progress import BuildProgress
    from trtllm_deploy.study.asked import Asked
    from trtllm_deploy.study.measure import measure_cells
    from trtllm_deploy.study.page import write_page
    from trtllm_deploy.study.searched import Searches
    from trtllm_deploy.study.table import print_summary
    from trtllm_deploy.study.up import file_sha256

    asked = planned(file, workspace, where)
    settings = asked.file.deployment.measure
    if settings is None:
        raise UserError(
            "there is no 'measure:' block, so nothing to measure",
            where=file,
            fix="add one with 'data: FILE.jsonl', or use 'trtllm-deploy build'",
        )
    facts, sha256 = asked.facts, file_sha256(asked.file)
    measure = Asked(asked.file, settings, asked.workspace, facts.gpus, facts.shapes, sha256)
    measure.check()  # what is wrong there shows before the build
    outcome = build_cells(asked, fail_fast=fail_fast)
    out = console()
    searches = Searches.of(measure)
    for question in searches.questions:
        out.print(f"Search at each cell, {cost(question)}", markup=False)
    with BuildProgress(out, "measurements") as progress:
        measured = measure_cells(
            outcome,
            measure,
            lambda make: asked.executor(make, jobs=1),
            progress,
            again=again,
            fail_fast=fail_fast,
        )
    print_summary(measured, asked.workspace.results, out)
    write_page(measured, asked.workspace.results, settings.limits, file.name, out)
    found = [searches.show(plan) for plan in outcome.built]
    if outcome.unbuilt:
        return 2
    return 0 if all(found) and all(each["status"] == "ok" for each in measured) else 1


def main() -> None:
    """Run the command."""
    end_like_ctrl_c()  # so that every stage cleans up
    sys.exit(exit_code(command, "trtllm-deploy", "interrupted; what was finished stays"))


if __name__ == "__main__":
    main()
