"""Making what the plan asks for and the store lacks.

Here the plan meets the disk, the network and child processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from client.errors import UserError
from deploy.backend import BACKENDS
from deploy.fetch import Source, fetch, resolve_folder, resolve_hub
from deploy.plan import CellPlan, Facts, Stage, StageKind, distinct
from deploy.quantize import Calibration, CheckpointJob, run_checkpoint
from deploy.release import load_release
from deploy.repository import render_repository, templates_digest
from deploy.spec import DeploymentFile
from deploy.workspace import Workspace

_TOOLS = ("nvidia-modelopt", "transformers", "torch")


class Watcher(Protocol):
    """Is told how a build goes."""

    def started(self, stage: Stage) -> None:
        """A stage starts."""

    def line(self, stage: Stage, text: str) -> None:
        """A stage said something."""

    def finished(self, stage: Stage, made: bool) -> None:
        """A stage's artifact is there: made just now, or before."""


def gather(file: DeploymentFile, workspace: Workspace, offline_ok: bool = False) -> Facts:
    """Look up what the plan depends on: sources, calibration data, tool versions, templates.

    ``offline_ok`` lets hub ids stay unresolved when the hub can't be reached, as a plan may.

    Raises:
        UserError: a source can't be resolved.
    """
    spec = file.deployment
    return Facts(
        sources={name: _resolve(file, name, workspace, offline_ok) for name in spec.models},
        calibration_digest=_digest(file.resolve(spec.calibration.data))
        if spec.calibration
        else None,
        tools={name: _version(name) for name in _TOOLS},
        templates_digest=templates_digest(),
        workspace=workspace.root,
    )


def build(
    plans: Iterable[CellPlan],
    file: DeploymentFile,
    facts: Facts,
    workspace: Workspace,
    watcher: Watcher,
) -> int:
    """Make every missing artifact, then name the cells; returns how many were made.

    Raises:
        UserError: a stage failed; what was finished before stays.
    """
    plans = list(plans)
    by_key = {stage.key: stage for each in plans for stage in each.stages}
    made = 0
    for stage in distinct(plans):
        made += _make(_Context(stage, by_key, file, facts, workspace, watcher))
    for each in plans:
        workspace.name(each)
    return made


def _make(context: _Context) -> bool:
    stage, watcher = context.stage, context.watcher

    def maker(target: Path) -> None:
        watcher.started(stage)
        _MAKERS[stage.kind](context, target)

    def waiting() -> None:
        watcher.line(stage, "another process makes it; waiting")

    _, new = context.workspace.store.make(stage.kind, stage.made_from, maker, waiting)
    watcher.finished(stage, new)
    return new


@dataclass(frozen=True, slots=True)
class _Context:
    """What a maker may look at."""

    stage: Stage
    by_key: Mapping[str, Stage]
    file: DeploymentFile
    facts: Facts
    workspace: Workspace
    watcher: Watcher

    def input(self, kind: StageKind | str) -> Path:
        """The folder of the artifact that the stage was planned on."""
        return self.workspace.artifact(self.by_key[self.stage.made_from[kind]])


def _make_fetch(context: _Context, target: Path) -> None:
    name = context.stage.cell.model
    model = context.file.deployment.models[name]
    partial = context.workspace.partial(context.stage)
    fetch(context.facts.sources[name], model.trust_remote_code, target, partial)


def _make_checkpoint(context: _Context, target: Path) -> None:
    stage, spec = context.stage, context.file.deployment
    asked = stage.made_from["calibration"]
    job = CheckpointJob(
        model_dir=context.input("fetch"),
        output_dir=target,
        precision=stage.cell.precision,
        tp=stage.cell.tp,
        pp=stage.cell.pp,
        calibration=Calibration(
            context.file.resolve(spec.calibration.data), asked["samples"], asked["max_length"]
        )
        if asked and spec.calibration
        else None,
        trust_remote_code=spec.models[stage.cell.model].trust_remote_code,
    )
    run_checkpoint(
        job,
        log_file=context.workspace.log(stage),
        on_line=lambda text: context.watcher.line(stage, text),
    )


def _make_engine(context: _Context, target: Path) -> None:
    made_from = context.stage.made_from
    BACKENDS[made_from["backend"]].make_engine(
        context.input("checkpoint"), made_from["build_config"], made_from["release"], target
    )


def _make_repository(context: _Context, target: Path) -> None:
    spec = context.file.deployment
    render_repository(
        target,
        release=load_release(spec.release),
        backend=spec.backend,
        engine_dir=context.input("engine"),
        tokenizer_dir=context.input("tokenizer"),
        max_batch_size=context.stage.cell.max_batch_size,
        settings=spec.triton,
    )


_MAKERS: dict[StageKind, Callable[[_Context, Path], None]] = {
    "fetch": _make_fetch,
    "checkpoint": _make_checkpoint,
    "engine": _make_engine,
    "repository": _make_repository,
}


def _resolve(file: DeploymentFile, name: str, workspace: Workspace, offline_ok: bool) -> Source:
    model = file.deployment.models[name]
    folder = file.resolve(model.source)
    memory = workspace.root / "store" / "fetch"
    if folder.is_dir():
        return resolve_folder(folder, model.trust_remote_code, memory / "digests.json")
    try:
        return resolve_hub(model.source, model.revision, memory / "commits.json", offline_ok)
    except UserError as error:
        raise file.error(("models", name, "source"), str(error)) from None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
