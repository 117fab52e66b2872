"""The workspace: the folder that holds the store, the names people use, logs and results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from client.errors import UserError
from deploy.plan import CellPlan, Stage
from deploy.store import Store, link


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
        return self.root / "logs" / f"{stage.kind}-{stage.title.replace(' ', '_')}.log"

    def server_log(self, cell: str) -> Path:
        """Triton's output for a cell."""
        return self.root / "logs" / f"serve-{cell}.log"

    def partial(self, stage: Stage) -> Path:
        """Where a download waits to be finished."""
        return self.root / "downloads" / stage.key

    def artifact(self, stage: Stage) -> Path:
        """The folder of a stage's artifact, made or not."""
        return self.store.path(stage.kind, stage.key)

    def has(self, stage: Stage) -> bool:
        """Whether the artifact is there and whole."""
        return self.store.has(stage.kind, stage.key)

    def name(self, plan: CellPlan) -> None:
        """Give a built cell its names: ``engines/<cell>`` and ``ensemble_models/<cell>``."""
        link(self.root / "engines" / plan.cell.name, self.artifact(plan.engine))
        link(self.root / "ensemble_models" / plan.cell.name, self.artifact(plan.repository))

    def repository(self, plan: CellPlan) -> Path:
        """The model repository of a cell, under the cell's name.

        Raises:
            UserError: the cell, as the deployment file describes it now, isn't built.
        """
        if not all(map(self.has, plan.stages)):
            raise UserError(
                f"{plan.cell.name} isn't built as the deployment file has it now",
                fix="run 'trtllm-deploy build' with the same file and workspace first",
            )
        self.name(plan)
        return self.root / "ensemble_models" / plan.cell.name
