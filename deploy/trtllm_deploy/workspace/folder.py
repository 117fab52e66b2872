"""The workspace: the folder that holds the store, the names people use, logs and results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llm_perf.errors import UserError
from trtllm_deploy.plan.plan import CellPlan, Stage
from trtllm_deploy.spec.deployment_file import DeploymentFile
from trtllm_deploy.store.leases import Artifact
from trtllm_deploy.store.store import Store, content_key, link
from trtllm_deploy.machine.json_files import read_json, write_json

_FILES = "deployment-files.json"
_OVERRIDES = "settings.json"


@dataclass(frozen=True, slots=True)
class Built:
    """A deployment file as it was last built.

    What it needed (None: it isn't known), the names of its cells, and their variant; ``settings``
    is a digest of what isn't in names.
    """

    needs: list[Artifact] | None
    cells: tuple[str, ...] = ()
    variant: str = ""
    settings: str = ""


def _read_built(said: Mapping[str, Any]) -> Built:
    needs = said["needs"]
    read = None if needs is None else [(kind, key) for kind, key in needs]
    return Built(**{**said, "needs": read, "cells": tuple(said.get("cells", ()))})


@dataclass(frozen=True, slots=True)
class Workspace:
    """Paths below ``root`` (absolute)."""

    root: Path

    @property
    def store(self) -> Store:
        """Finished artifacts."""
        return Store(self.root / "store")

    @property
    def results(self) -> Path:
        """What was measured."""
        return self.root / "results"

    @property
    def triton(self) -> Path:
        """Triton's backend folder, put together from the nvidia-pytriton wheel."""
        return self.root / "triton"

    def log(self, stage: Stage) -> Path:
        """Full output of a stage; one file per artifact, the newest try."""
        name = f"{stage.kind}-{stage.title.replace(' ', '_')}-{stage.key[:8]}.log"
        return self.root / "logs" / name

    def failure(self, stage: Stage) -> Path:
        """Why the newest try to make a stage failed; there is none where it didn't."""
        return self.log(stage).with_suffix(".error")

    def note_failure(self, stage: Stage, error: str) -> None:
        """Keep the error for ``status``; on a full disk it is only printed."""
        file = self.failure(stage)
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{error}\n", encoding="utf-8")

    def server_log(self, cell: str) -> Path:
        """Triton's output for a cell."""
        return self.root / "logs" / f"serve-{cell}.log"

    def timing_cache(self, name: str) -> Path:
        """What TensorRT measured on one kind of GPU, shared by all builds there."""
        return self.root / "timing" / name

    def partial(self, stage: Stage) -> Path:
        """Where a download waits to be finished."""
        return self.downloads / stage.key

    def artifact(self, stage: Stage) -> Path:
        """The folder of a stage's artifact, made or not."""
        return self.store.path(stage.kind, stage.key)

    def has(self, stage: Stage) -> bool:
        """Whether the artifact is there and whole."""
        return self.store.has(stage.kind, stage.key)

    def _moved_from(self, plan: CellPlan) -> str | None:
        """Where the workspace was, if the repository under the cell's name was rendered there."""
        [_, (name, _)] = self.names(plan)
        manifest = self.store.manifest("repository", name.resolve().name) or {}
        then = manifest.get("made_from", {}).get("workspace")
        return then if then not in (None, str(self.root)) else None

    @property
    def downloads(self) -> Path:
        """Downloads that were cut, by the key of their fetch stage."""
        return self.root / "downloads"

    def names(self, plan: CellPlan) -> tuple[tuple[Path, Stage], ...]:
        """Where people find a built cell: ``engines/<cell>`` and ``ensemble_models/<cell>``."""
        return (
            (self.root / "engines" / plan.cell.name, plan.engine),
            (self.root / "ensemble_models" / plan.cell.name, plan.repository),
        )

    def name(self, plan: CellPlan, *, trying: bool = False) -> None:
        """Give a built cell its names.

        Where the cell's settings were changed since it was planned, its repository keeps the name
        that it has, unless the plan is ``trying`` out a change.
        """
        for name, stage in self.names(plan):
            kept = self.overrides.get(plan.cell.name, {})
            if trying or stage.kind != "repository" or plan.overrides == kept or not name.exists():
                link(name, self.artifact(stage))

    def named(self) -> Iterator[Path]:
        """Every name in the workspace, of whatever deployment file."""
        for folder in ("engines", "ensemble_models"):
            yield from (path for path in (self.root / folder).glob("*") if path.is_symlink())

    def named_apart(self, file: DeploymentFile) -> DeploymentFile:
        """The file, with names of its own where another one's cells were built under the same.

        A file keeps the names that it was first built with; so does a copy, or one that was moved.
        """
        known = self.deployment_files()
        mine = known.get(file.path.absolute())
        if mine is not None:
            return replace(file, variant=mine.variant)
        names, settings = {cell.name for cell in file.cells()}, content_key(file.settings())
        others = (each for each in known.values() if not each.variant)
        taken = any(each.settings != settings and names & {*each.cells} for each in others)
        return replace(file, variant=settings[:6] if taken else "")

    def remember(self, file: DeploymentFile, plans: Sequence[CellPlan]) -> None:
        """Note that a deployment file was built here, its names, and what it needs, for ``gc``."""
        needs: list[Artifact] = sorted({(stage.kind, stage.key) for plan in plans for stage in plan.stages})
        names = tuple(plan.cell.name for plan in plans)
        built = Built(needs, names, file.variant, content_key(file.settings()))
        known, path = self.deployment_files(), file.path.absolute()
        if known.get(path) != built:
            self._keep_deployment_files({**known, path: built})

    def deployment_files(self) -> dict[Path, Built]:
        """The files that were built here (absolute), in the order of their first builds."""
        known = read_json(self.root / _FILES) or {}
        if isinstance(known, list):  # as it was written before anything else was kept
            known = {file: {"needs": None} for file in known}
        return {Path(file): _read_built(said) for file, said in known.items()}

    def forget(self, files: Iterable[Path]) -> None:
        """Give up what deployment files needed that were built here."""
        gone = set(files)
        kept = {file: said for file, said in self.deployment_files().items() if file not in gone}
        self._keep_deployment_files(kept)

    def _keep_deployment_files(self, known: Mapping[Path, Built]) -> None:
        write_json(self.root / _FILES, {str(file): asdict(said) for file, said in known.items()})

    @property
    def overrides(self) -> dict[str, dict[str, Any]]:
        """Triton settings that single cells have in place of their file's, by cell name.

        Raises UserError: they can't be read.
        """
        file = self.root / _OVERRIDES
        try:
            found: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise UserError(f"isn't JSON: {error}", where=file, fix="mend or delete it") from None
        return found

    def keep_overrides(self, overrides: Mapping[str, Mapping[str, Any]]) -> None:
        """Replace them; cells without any are left out."""
        write_json(self.root / _OVERRIDES, {name: each for name, each in overrides.items() if each})

    def repository(self, plan: CellPlan) -> Path:
        """The model repository of a cell, under the cell's name.

        Raises UserError: the cell, as the deployment file describes it now, isn't built.
        """
        if not all(map(self.has, plan.stages)):
            fix = "run 'trtllm-deploy build' with the same file and workspace first"
            if all(map(self.has, plan.stages[:-1])) and (old := self._moved_from(plan)):
                raise UserError(
                    f"the workspace was {old} when {plan.cell.name} was built, and its repository"
                    " names files there",
                    where=self.root,
                    fix=f"{fix}; engines and checkpoints stay",
                )
            raise UserError(
                f"{plan.cell.name} isn't built as the deployment file has it now",
                where=self.root,
                fix=fix,
            )
        self.name(plan)
        return self.names(plan)[1][0]
