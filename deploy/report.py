"""What ``plan`` prints: each cell, and for each stage whether its artifact is there."""

from __future__ import annotations

from collections import Counter
from typing import get_args

from rich.console import Console
from rich.table import Table

from deploy.plan import CellPlan, StageKind, distinct
from deploy.workspace import Workspace


def print_plan(plans: list[CellPlan], workspace: Workspace, console: Console) -> None:
    """Print a row per cell, and how many artifacts are there and to make."""
    there = {stage.key: workspace.has(stage) for stage in distinct(plans)}
    table = Table()
    table.add_column("cell", overflow="fold")
    for kind in get_args(StageKind):
        table.add_column(kind)
    for each in plans:
        states = ("there" if there[stage.key] else "[bold]make[/bold]" for stage in each.stages)
        table.add_row(each.cell.name, *states)
    console.print(table)
    wanted = Counter(stage.kind for stage in distinct(plans))
    missing = Counter(stage.kind for stage in distinct(plans) if not there[stage.key])
    counts = ", ".join(f"{kind} {missing[kind]} of {wanted[kind]}" for kind in get_args(StageKind))
    console.print(f"{len(plans)} cells; to make: {counts}")
