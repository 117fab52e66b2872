"""How many processes a Triton has, and what starts them.

In: a model repository and what a person chose. Out: a frozen value; mistakes are UserErrors. Knows
nothing of the command that follows from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from llm_perf.errors import UserError
from trtllm_deploy.backends.engine_config import EngineConfig
from trtllm_deploy.backends.server import Chosen
from trtllm_deploy.backends.triton.models import (
    LLM_ROLES,
    Model,
    engine_of,
    model_folders,
    read_model,
)


@dataclass(frozen=True, slots=True)
class Processes(Chosen):
    """``world_size`` ranks load ``models``; the first serves the whole repository.

    ``llmapi``: their model is TensorRT-LLM's LLM API. ``orchestrator``: one process spawns the
    others.
    """

    world_size: int = 1
    models: tuple[str, ...] = ("tensorrt_llm",)
    llmapi: bool = False

    def __post_init__(self) -> None:
        if self.no_mpi and self.world_size > 1 and not self.llmapi:
            raise UserError(
                f"--no-mpi: the engine has {self.world_size} ranks, which only mpirun starts",
                fix="leave it out",
            )
        if self.hostfile and self.started == 1:
            raise UserError("--hostfile is for several ranks that mpirun starts")
        if self.gpus and not self.hostfile and len(self.gpus) < self.world_size:
            raise UserError(
                f"--gpus names {len(self.gpus)} GPUs for {self.world_size} ranks",
                fix="name one for each rank",
            )

    @property
    def mpirun(self) -> bool:
        """Whether mpirun starts them."""
        return not self.no_mpi and (self.world_size > 1 or self.orchestrator)

    @property
    def started(self) -> int:
        """Processes that the command starts itself."""
        return self.world_size if self.mpirun and not self.orchestrator else 1

    @property
    def asked(self) -> str:
        """The model that answers text with text."""
        return self.models[0] if self.llmapi else "ensemble"

    @property
    def environment(self) -> dict[str, str]:
        """What is set for all of them, on every node."""
        spawning = ("TRTLLM_ORCHESTRATOR", "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES")
        return {
            **({"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)} if self.gpus else {}),
            **(dict.fromkeys(spawning, "1") if self.orchestrator else {}),
            **self.variables,
        }


def processes_for(repository: Path, chosen: Chosen) -> Processes:
    """What the engines of a repository need, and what was ``chosen``."""
    found = list(_engines(repository))
    return Processes(
        **{each.name: getattr(chosen, each.name) for each in fields(chosen)},
        world_size=max((engine.world_size for _, engine in found), default=1),
        models=tuple(llm.name for llm, _ in found) or ("tensorrt_llm",),
        llmapi=any(llm.role == "llmapi" for llm, _ in found),
    )


def _engines(repository: Path) -> Iterator[tuple[Model, EngineConfig]]:
    """What can be read; the rest is preflight's to tell."""
    with suppress(OSError):
        for model in (each for folder in model_folders(repository) for each in read_model(folder)):
            if isinstance(model, Model) and model.role in LLM_ROLES:
                with suppress(UserError):
                    llm, engine, _ = engine_of(model)
                    if engine is not None:
                        yield llm, engine
