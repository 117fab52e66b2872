"""What the commands that need built cells have in common: make what is missing, say what can't be.

In: a planned deployment file. Out: the outcome, with progress and errors on the screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from llm_perf.screen import plain
from trtllm_deploy.cli.options import Planned
from trtllm_deploy.machine.console import console

if TYPE_CHECKING:
    from trtllm_deploy.builds.build import Outcome
    from trtllm_deploy.plan.plan import CellPlan


def build_cells(
    asked: Planned,
    plans: Sequence[CellPlan] | None = None,
    *,
    fail_fast: bool = False,
    trial: bool = False,
) -> Outcome:
    """Make what is missing, of all cells or those of ``plans``.

    What couldn't be made is told on stderr, a line for each error. What is made for a ``trial`` is
    nothing that the file needs: ``gc`` takes it.
    """
    from trtllm_deploy.builds.build import build as build_plans
    from trtllm_deploy.builds.progress import BuildProgress
    from trtllm_deploy.machine.remains import scratch_folder, sweep_remains
    from trtllm_deploy.plan.notes import notes
    from trtllm_deploy.workspace.threshold import below_threshold

    wanted = asked.plans if plans is None else plans
    for note in notes(asked.file, [each.cell for each in wanted], asked.facts):
        click.echo(f"trtllm-deploy: note: {plain(note)}", err=True)
    if not trial:
        asked.workspace.remember(asked.file, asked.plans)
    sweep_remains()
    rejected = below_threshold(wanted, asked.file, asked.workspace)
    with scratch_folder(), BuildProgress(console()) as progress:
        outcome = build_plans(
            wanted,
            asked.workspace,
            asked.executor,
            progress,
            fail_fast=fail_fast,
            rejected=rejected,
        )
    for error in dict.fromkeys(outcome.failures.values()):
        click.echo(f"trtllm-deploy: {error}", err=True)
    if outcome.unbuilt:
        cells = f"{len(outcome.unbuilt)} of {len(wanted)} cells"
        click.echo(f"trtllm-deploy: {cells} aren't built; the same command goes on here", err=True)
    return outcome
