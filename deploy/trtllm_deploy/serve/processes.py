"""How many processes a server has, and what starts them.

In: a model repository and what a person chose. Out: a frozen value; mistakes are UserErrors. Knows
nothing of the command that follows from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_perf.errors import UserError


@dataclass(frozen=True, slots=True)
class Processes:
    """``world_size`` ranks load ``models``; the first serves the whole repository.

    ``llmapi``: their model is TensorRT-LLM's LLM API. ``orchestrator``: one process spawns the
    others. ``gpus``: the i-th rank of a node gets the i-th. ``variables``: for every process.
    """

    world_size: int = 1
    models: tuple[str, ...] = ("tensorrt_llm",)
    llmapi: bool = False
    orchestrator: bool = False
    no_mpi: bool = False
    oversubscribe: bool = False
    hostfile: Path | None = None
    gpus: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict, hash=False)

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


def processes_for(repository: Path, **chosen: Any) -> Processes:
    """What the engine of a repository needs, and what was ``chosen``: fields of the value."""
    from trtllm_deploy.check.facts import Launch, read_facts  # it imports protobuf

    facts = [each for each in read_facts(repository, Launch()) if each.llm and each.engine]
    return Processes(
        world_size=max((each.engine.world_size for each in facts if each.engine), default=1),
        models=tuple(each.llm.name for each in facts if each.llm) or ("tensorrt_llm",),
        llmapi=any(each.llm.role == "llmapi" for each in facts if each.llm),
        **chosen,
    )
