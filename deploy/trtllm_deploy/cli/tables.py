"""What ``plan`` and ``releases`` print: each cell with its memory, and what releases are like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llm_perf.errors import UserError
from llm_perf.screen import plain
from trtllm_deploy.plan.memory import MemoryPlan
from trtllm_deploy.plan.plan import CellPlan, StageKind, distinct
from trtllm_deploy.plan.roofline import GpuModel, predict
from trtllm_deploy.plan.shape import ModelShape
from trtllm_deploy.releases.commands import Flag
from trtllm_deploy.releases.release import Release, load_release, release_names
from trtllm_deploy.spec.deployment_file import DeploymentFile
from trtllm_deploy.workspace.folder import Workspace

_GIB, _KIB = 2**30, 2**10
_IN_FLIGHT = (1, 8, 64)


def print_plan(
    plans: list[CellPlan],
    workspace: Workspace,
    console: Console,
    memory: Mapping[str, MemoryPlan] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Print a row per cell, how many artifacts are there and to make, and a line for each note.

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
    asked = [kind for kind in get_args(StageKind) if wanted[kind]]
    counts = ", ".join(f"{kind} {missing[kind]} of {wanted[kind]}" for kind in asked)
    console.print(f"{len(plans)} cells; to make: {counts}")
    verdicts = Counter(each.verdict for each in (memory or {}).values() if each.tokens is not None)
    if verdicts:
        console.print("memory: " + ", ".join(f"{verdicts[key]} {key}" for key in sorted(verdicts)))
    for note in notes:
        console.print(escape(f"note: {plain(note)}"), soft_wrap=True)


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


def print_rooflines(
    file: DeploymentFile,
    memory: Mapping[str, MemoryPlan],
    shapes: Mapping[str, ModelShape],
    gpu: GpuModel,
    console: Console,
) -> None:
    """Print what each cell could do at best: a prompt's time, and ITL and tokens/s by load."""
    if not memory:
        return
    table = Table(title=f"at best, by bytes and operations, on {gpu.name}: ITL ms / tokens/s/GPU")
    table.add_column("cell", overflow="fold")
    for title in ("prompt\nms", *(f"{each} in\nflight" for each in _IN_FLIGHT), "full\nbatch"):
        table.add_column(title, justify="right")
    for name, plan in memory.items():
        cell, row = plan.cell, [name]
        for in_flight in (*_IN_FLIGHT, max(1, min(cell.max_batch_size, plan.sequences or 1))):
            found = predict(file, cell, shapes[cell.model], gpu, in_flight, plan)
            if found is None:
                row.append("-")
                continue
            if len(row) == 1:
                row.append(f"{found.prefill_s * 1e3:.1f}")
            full = in_flight > found.running
            rate = found.tokens_per_s / cell.world_size
            row.append("-" if full else f"{found.itl_s * 1e3:.1f} / {rate:,.0f}")
        table.add_row(*row)
    console.print(table)


def print_releases(console: Console, names: Sequence[str]) -> None:
    """List the releases, or show what changed from the first of two names to the second.

    Raises UserError: one name, more than two, or a release there is no data for.
    """
    if not names:
        table = Table(
            "release", "backends", "trtllm-build flags", "image", "taken from a neighbour"
        )
        for name in release_names():
            release = load_release(name)
            flags = len(release.commands["trtllm-build"].flags)
            image = release.image.rpartition("/")[2]
            backends = ", ".join(release.backends)
            table.add_row(name, backends, str(flags), image, release.interpolated or "nothing")
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
    before, after = dict(_told(old)), dict(_told(new))
    commands = {**old.commands, **new.commands}
    for what, name in sorted({**before, **after}, key=lambda key: (key[0] not in commands, key[0])):
        was, now = before.get((what, name), "-"), after.get((what, name), "-")
        if was != now:
            instead = new.commands[what].instead if what in new.commands else {}
            hint = instead.get(name.removeprefix("--"))
            yield what, name, was, f"{now} ({hint})" if hint else now


def _told(release: Release) -> Iterator[tuple[tuple[str, str], str]]:
    for command, each in release.commands.items():
        for name, flag in each.flags.items():
            yield (command, f"--{name}"), _shown(flag)
        if each.script:
            yield (command, "script"), each.script
    for model in release.models.values():
        for part, tensors in (("input", model.inputs), ("output", model.outputs)):
            for tensor in tensors:
                yield (f"{model.name} {part}", tensor.name), f"{tensor.dtype}{list(tensor.dims)}"
        for name in model.parameters:
            yield (f"{model.name} parameter", name), "there"


def _shown(flag: Flag) -> str:
    kind = "|".join(flag.choices) or flag.kind
    default = "" if flag.default is None or flag.default is False else f" = {flag.default}"
    return f"{kind}{default}"
