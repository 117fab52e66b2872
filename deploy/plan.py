"""The plan: which artifacts the cells need, each once, and what each is made from.

Pure: deployment values, resolved sources and tool versions go in, stages come out. Knows nothing
of whether an artifact exists, of processes, or of GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deploy.backend import BACKENDS
from deploy.fetch import Source
from deploy.precision import PRECISIONS
from deploy.spec import Cell, DeploymentFile
from deploy.store import content_key

_CHECKPOINT_FORMAT = 1  # raise it when the checkpoint stage writes something else than before

StageKind = Literal["fetch", "checkpoint", "engine", "repository"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One artifact to make. ``cell`` is the first cell that needs it."""

    kind: StageKind
    key: str
    made_from: Mapping[str, Any]
    cell: Cell
    title: str


@dataclass(frozen=True, slots=True)
class CellPlan:
    """The stages of one cell, in order."""

    cell: Cell
    fetch: Stage
    checkpoint: Stage
    engine: Stage
    repository: Stage

    @property
    def stages(self) -> tuple[Stage, Stage, Stage, Stage]:
        """First to last."""
        return (self.fetch, self.checkpoint, self.engine, self.repository)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a plan depends on beside the deployment file."""

    sources: Mapping[str, Source]
    """by model name"""
    calibration_digest: str | None
    """SHA-256 of the calibration file"""
    tools: Mapping[str, str]
    """versions that change what a checkpoint looks like"""
    templates_digest: str
    workspace: Path
    """absolute: a repository holds absolute paths into it"""


def plan(file: DeploymentFile, facts: Facts) -> list[CellPlan]:
    """The stages of every cell; equal stages of different cells have equal keys."""
    return [_plan_cell(file, facts, cell) for cell in file.cells()]


def distinct(plans: Iterable[CellPlan]) -> list[Stage]:
    """Each stage once, inputs before what needs them: all of one kind, then the next."""
    columns = zip(*(each.stages for each in plans), strict=True)
    return list({stage.key: stage for column in columns for stage in column}.values())


def _stage(kind: StageKind, made_from: Mapping[str, Any], cell: Cell, title: str) -> Stage:
    return Stage(kind, content_key(made_from), made_from, cell, title)


def _plan_cell(file: DeploymentFile, facts: Facts, cell: Cell) -> CellPlan:
    spec = file.deployment
    model, precision = spec.models[cell.model], PRECISIONS[cell.precision]
    backend = BACKENDS[spec.backend]
    source = {**facts.sources[cell.model].identity, "remote_code": model.trust_remote_code}
    fetch = _stage("fetch", source, cell, cell.model)
    calibration = spec.calibration if precision.calibrated else None
    checkpoint = _stage(
        "checkpoint",
        {
            "format": _CHECKPOINT_FORMAT,
            "fetch": fetch.key,
            "precision": cell.precision,
            "tp": cell.tp,
            "pp": cell.pp,
            "calibration": calibration
            and {
                "data": facts.calibration_digest,
                "samples": calibration.samples,
                "max_length": calibration.max_length,
            },
            "tools": dict(facts.tools),
        },
        cell,
        f"{cell.model} {cell.precision} tp{cell.tp} pp{cell.pp}",
    )
    engine = _stage(
        "engine",
        {
            "checkpoint": checkpoint.key,
            "backend": spec.backend,
            "release": spec.release,
            "build_config": backend.build_config(cell, spec.build),
        },
        cell,
        cell.name,
    )
    repository = _stage(
        "repository",
        {
            "engine": engine.key,
            "tokenizer": fetch.key,
            "max_batch_size": cell.max_batch_size,
            "triton": spec.triton.model_dump(exclude_none=True),
            "templates": facts.templates_digest,
            "workspace": str(facts.workspace),
        },
        cell,
        cell.name,
    )
    return CellPlan(cell, fetch, checkpoint, engine, repository)
