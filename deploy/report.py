"""What ``plan`` and ``releases`` print: each cell with its memory, and what releases are like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from rich.console import Console
from rich.table import Table

from client.errors import UserError
from deploy.commands import Flag
from deploy.memory import MemoryPlan
from deploy.plan import CellPlan, StageKind, distinct
from deploy.release import Release, load_release, release_names
from deploy.workspace import Workspace

_GIB, _KIB = 2**30, 2**10


def print_plan(
    plans: list[CellPlan],
    workspace: Workspace,
    console: Console,
    memory: Mapping[str, MemoryPlan] | None = None,
) -> None:
    """Print a row per cell, and how many artifacts are there and to make.

    ``memory``, by cell name, adds what a GPU has to hold.
    """
    there = {stage.key: workspace.has(stage) for stage in distinct(plans)}
    table = Table()
    table.add_column("cell", overflow="fold")
    table.add_column("to make", overflow="fold")
    if memory:
        for title in ("weights\nGiB/GPU", "KV cache\nKiB/token", "tokens\nfit", "at\nonce"):
            table.add_column(title, justify="right")
        table.add_column("verdict")
    for each in plans:
        kinds = [stage.kind for stage in each.stages if not there[stage.key]]
        made = ", ".join(kinds) if len(kinds) < len(each.stages) else "all"
        row = [each.cell.name, made or "[dim]nothing[/dim]"]
        table.add_row(*row, *(_memory_row(memory.get(each.cell.name)) if memory else ()))
    console.print(table)
    wanted = Counter(stage.kind for stage in distinct(plans))
    missing = Counter(stage.kind for stage in distinct(plans) if not there[stage.key])
    counts = ", ".join(f"{kind} {missing[kind]} of {wanted[kind]}" for kind in get_args(StageKind))
    console.print(f"{len(plans)} cells; to make: {counts}")
    verdicts = Counter(each.verdict for each in (memory or {}).values() if each.tokens is not None)
    if verdicts:
        console.print("memory: " + ", ".join(f"{verdicts[key]} {key}" for key in sorted(verdicts)))


_STYLES = {"fits": "green", "batch can't fill": "yellow", "doesn't fit": "red"}


def _memory_row(plan: MemoryPlan | None) -> Sequence[str]:
    if plan is None:
        return ("?", "?", "?", "?", "unknown model")
    style = _STYLES.get(plan.verdict, "dim")
    weights = plan.weights / _GIB
    return (
        f"{weights:.1f}" if weights >= 1 else f"{weights:.3f}",
        f"{plan.kv_per_token / _KIB:g}",
        "?" if plan.tokens is None else f"{plan.tokens:,}",
        "?" if plan.sequences is None else f"{plan.sequences:,}",
        f"[{style}]{plan.verdict}[/{style}]",
    )


def print_releases(console: Console, names: Sequence[str]) -> None:
    """List the releases, or show what changed from the first of two names to the second.

    Raises:
        UserError: one name, more than two, or a release there is no data for.
    """
    if not names:
        table = Table("release", "backends", "trtllm-build flags", "models")
        for name in release_names():
            release = load_release(name)
            flags = len(release.commands["trtllm-build"].flags)
            table.add_row(name, ", ".join(release.backends), str(flags), ", ".join(release.models))
        console.print(table)
        return
    if len(names) != 2:
        raise UserError("name two releases, or none", fix=f"known: {', '.join(release_names())}")
    old, new = (load_release(name) for name in names)
    table = Table()
    for title in ("what", "name", old.name, new.name):
        table.add_column(title, overflow="fold")
    for row in changes(old, new):
        table.add_row(*row)
    console.print(table)


def changes(old: Release, new: Release) -> Iterator[tuple[str, str, str, str]]:
    """Rows of (what, name, in the old release, in the new one); what is the same is left out.

    What the new release lacks comes with what to write instead, where there is that.
    """
    for command in sorted(old.commands.keys() | new.commands.keys()):
        before, after = old.commands.get(command), new.commands.get(command)
        instead = after.instead if after else {}
        flags = (
            {name: _shown(flag) for name, flag in each.flags.items()} if each else {}
            for each in (before, after)
        )
        for name, was, now in _differences(*flags):
            hint = f"{now} ({instead[name]})" if name in instead else now
            yield command, f"--{name}", was, hint
        if before and after and before.script != after.script:
            yield command, "script", before.script or "", after.script or ""
    for model in sorted(old.models.keys() | new.models.keys()):
        for part in ("inputs", "outputs"):
            tensors = (
                {each.name: f"{each.dtype}{list(each.dims)}" for each in getattr(found, part, ())}
                for found in (old.models.get(model), new.models.get(model))
            )
            for name, was, now in _differences(*tensors):
                yield f"{model} {part[:-1]}", name, was, now
        parameters = (
            dict.fromkeys(found.parameters, "there") if found else {}
            for found in (old.models.get(model), new.models.get(model))
        )
        for name, was, now in _differences(*parameters):
            yield f"{model} parameter", name, was, now


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for name in [*old, *(name for name in new if name not in old)]:
        was, now = old.get(name, "-"), new.get(name, "-")
        if was != now:
            yield name, was, now


def _shown(flag: Flag) -> str:
    kind = "|".join(flag.choices) or flag.kind
    default = "" if flag.default is None or flag.default is False else f" = {flag.default}"
    return f"{kind}{default}"
