"""Questions about a workspace: how far is a build, why is something made anew, what needs what.

In: plans and a workspace. Out: values; nothing is printed or changed here. Knows nothing of how
artifacts are made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from trtllm_deploy.plan.plan import CellPlan, Stage, StageKind
from trtllm_deploy.workspace.folder import Workspace

State: TypeAlias = Literal["there", "running", "failed", "missing"]


@dataclass(frozen=True, slots=True)
class Status:
    """How a stage stands. ``note``: its error, or the last line of the log of what runs."""

    state: State
    note: str = ""


def status(stage: Stage, workspace: Workspace) -> Status:
    """How a stage stands; a failure counts until the stage is made."""
    if workspace.has(stage):
        return Status("there")
    if workspace.store.being_made(stage.kind, stage.key):
        return Status("running", last_line(workspace.log(stage)))
    if (failure := workspace.failure(stage)).is_file():
        return Status("failed", failure.read_text(encoding="utf-8").strip())
    return Status("missing")


def last_line(log: Path, look_at: int = 4096) -> str:
    """The last line with text; only the last ``look_at`` bytes of the file are read."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(log.stat().st_size - look_at, 0))
            lines = stream.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a stage of a cell is made, or isn't: each change as a line for people."""

    stage: Stage
    there: bool
    changes: tuple[str, ...]


def why(plan: CellPlan, workspace: Workspace) -> list[Reason]:
    """Compare what a cell is made from now with what the artifacts under its name were made from.

    An input that changed is named only as a change of that stage.
    """
    linked = _linked(plan, workspace)
    reasons = []
    for stage in plan.stages:
        before = linked.get(stage.kind)
        if before is None:
            changed = ["nothing was built before under this name"]
        elif before["key"] == stage.key:
            damaged = workspace.store.damages(stage.kind, stage.key)
            changed = [f"{name} isn't as it was made" for name in damaged]
        else:
            changed = list(changes(before["made_from"], stage.made_from))
        reasons.append(Reason(stage, workspace.has(stage), tuple(changed)))
    return reasons


def _linked(plan: CellPlan, workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Manifests by kind, from the repository that has the cell's name down to its sources."""
    names = workspace.names(plan)
    wanted = [(stage.kind, name.resolve().name) for name, stage in names]
    found: dict[str, dict[str, Any]] = {}
    for (kind, _), manifest in behind(wanted, workspace).items():
        found.setdefault(kind, manifest)
    return found


def behind(
    artifacts: Iterable[tuple[str, str]], workspace: Workspace
) -> dict[tuple[str, str], dict[str, Any]]:
    """Manifests of artifacts and of all that they were made from, by kind and key."""
    manifests: dict[tuple[str, str], dict[str, Any]] = {}
    wanted = list(artifacts)
    while wanted:
        kind, key = wanted.pop()
        manifest = workspace.store.manifest(kind, key)
        if manifest is not None and (kind, key) not in manifests:
            manifests[kind, key] = manifest
            wanted += _inputs(manifest["made_from"])
    return manifests


_KINDS: Mapping[str, StageKind] = {kind: kind for kind in get_args(StageKind)} | {
    "tokenizer": "fetch"
}


def _inputs(made_from: Mapping[str, Any]) -> Iterator[tuple[StageKind, str]]:
    for role, kind in _KINDS.items():
        if isinstance(key := made_from.get(role), str):
            yield kind, key


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """A line for each value that differs, however deep; an input's key isn't shown."""
    old, new = dict(_flat(before)), dict(_flat(after))
    for name in sorted({*old, *new}):
        if old.get(name) == new.get(name):
            continue
        if name in _KINDS:
            yield f"its {name} changed"
        else:
            yield f"{name}: {_shown(old, name)} → {_shown(new, name)}"


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{name}[{inner.get('name', index)}]")
    else:
        yield name, value


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "not set"
    text = json.dumps(values[name], ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:24]}…"
