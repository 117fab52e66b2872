"""What a deployment file asks to be measured: a cell's plan in, its measurements to make out.

Starts nothing; a cell's identity is that of its artifacts, so it is known before it is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_perf import api
from trtllm_deploy import __version__
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.plan.memory import plan_memory
from trtllm_deploy.plan.plan import CellPlan
from trtllm_deploy.plan.roofline import LISTED, cell_roofline
from trtllm_deploy.plan.shape import ModelShape
from trtllm_deploy.spec.deployment_file import DeploymentFile
from trtllm_deploy.spec.studies import MeasureSpec
from trtllm_deploy.study.up import target_of
from trtllm_deploy.workspace.folder import Workspace

_MADE_UP = 256  # prompts, where nothing says how many


def gpu_facts(gpus: Sequence[Gpu], count: int) -> dict[str, Any] | None:
    """Of the first GPU what a ledger keeps, and how many a cell has; None without any."""
    if not gpus:
        return None
    first = gpus[0]
    about = {"name": first.name, "memory": first.memory, "capability": first.capability}
    return {**about, "count": count}


@dataclass(frozen=True)
class Asked:
    """The ``measure:`` block of a file, for each of its cells."""

    file: DeploymentFile
    settings: MeasureSpec
    workspace: Workspace
    gpus: tuple[Gpu, ...] = ()
    shapes: Mapping[str, ModelShape] = field(default_factory=dict)
    """by model name, where known"""
    sha256: str | None = None
    _known: dict[tuple[Any, ...], api.Workload] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> tuple[type[Asked], tuple[Any, ...]]:
        """Leave behind what was read: a worker needs prompts of one cell, with other counts."""
        own = (self.file, self.settings, self.workspace, self.gpus, self.shapes, self.sha256)
        return Asked, own

    @cached_property
    def _data(self) -> Path | None:
        return None if self.settings.data is None else self.file.resolve(self.settings.data)

    @cached_property
    def made_up(self) -> bool:
        """Whether prompts are only known by their lengths: making them up takes the tokenizer."""
        return self._data is None or not all(line.text for line in api.read_lines(self._data))

    def check(self) -> None:
        """Raises UserError: the prompts can't be read, or are too few to be dealt out."""
        if self._data is None:
            return
        loads = len(self.loads) * self.settings.repetitions
        have, wanted = len(api.read_lines(self._data)) // loads, self.settings.requests or 1
        if self.settings.fresh and have < wanted:
            raise self.file.error(
                ("measure", "fresh"),
                f"{loads} loads leave {have} prompts of {self._data} for one, {wanted} are asked",
                "give more data, or fewer loads or requests",
            )

    def knows(self, plan: CellPlan) -> bool:
        """Whether a cell's measurements can be told: there are its prompts, or their tokenizer."""
        return not self.made_up or self.workspace.has(plan.fetch)

    @property
    def loads(self) -> tuple[api.Load, ...]:
        """The loads of one repetition, closed loops first; their arrivals are drawn from 0."""
        rates = self.settings.request_rate or ()
        closed = self.settings.concurrency or ([] if rates else [1])
        return (*map(api.Concurrency, closed), *map(api.Rate, rates))

    def of(self, plan: CellPlan, *, counted: bool = False) -> list[api.Planned]:
        """A cell's measurements, all loads in turn; with their prompts' tokens ``counted``.

        Counting takes the cell's tokenizer, so its model must be there. Raises UserError: the
        prompts can't be read.
        """
        settings, file = self.settings, self.file
        turns = [(n, load) for n in range(settings.repetitions) for load in self.loads]
        target = target_of(plan, file, self.sha256)
        versions: Mapping[str, Any] = {
            "trtllm_deploy": __version__,
            "release": file.deployment.release,
        }
        extent = api.Extent(settings.requests, settings.duration, settings.warmup_requests)
        planned = []
        for number, (repetition, load) in enumerate(turns):
            part = (number, len(turns)) if settings.fresh else (0, 1)
            seed = settings.seed + repetition
            planned.append(
                api.Planned(
                    target,
                    api.Rate(load.per_s, seed=seed) if isinstance(load, api.Rate) else load,
                    self._workload(plan, part, counted=counted),
                    extent,
                    seed,
                    repetition,
                    study=file.path.stem,
                    gpu=gpu_facts(self.gpus, plan.cell.world_size),
                    versions=versions,
                )
            )
        return planned

    def predicted(self, plan: CellPlan, run: api.Run) -> dict[str, Any] | None:
        """What the roofline says of a closed loop of the lengths that were seen, for the ledger.

        None where GPU or model aren't known, or the load isn't a closed loop.
        """
        shape = self.shapes.get(plan.cell.model)
        kind = LISTED.get(self.gpus[0].name) if self.gpus else None
        isl, osl = (run.metrics[f"{each}_sequence_length"]["avg"] for each in ("input", "output"))
        if shape is None or kind is None or not isinstance(run.load, api.Concurrency):
            return None
        memory = plan_memory(self.file, plan.cell, shape, self.gpus[0].memory)
        fits = plan.cell.max_batch_size if memory.sequences is None else memory.sequences
        most, roof = (
            min(plan.cell.max_batch_size, fits),
            cell_roofline(self.file, plan.cell, shape, kind),
        )
        if roof is None or most < 1 or not (isinstance(isl, float) and isinstance(osl, float)):
            return None
        metrics = roof.at(run.load.n, isl, osl, most).metrics()
        return {"source": "roofline", "gpu": kind.name, "metrics": metrics}

    def _workload(self, plan: CellPlan, part: tuple[int, int], *, counted: bool) -> api.Workload:
        tokenizer = self.workspace.artifact(plan.fetch) if counted or self.made_up else None
        limit = self.settings.max_tokens or plan.cell.osl
        isl = plan.cell.isl if self._data is None else None
        key = (part, tokenizer, limit, isl)
        if key not in self._known:
            self._known[key] = (
                api.load_workload(self._data, tokenizer, limit, part=part)
                if self._data
                else self._synthetic(tokenizer, plan.cell.isl, limit, part[0])
            )
        return self._known[key]

    def _synthetic(self, tokenizer: Path | None, isl: int, osl: int, turn: int) -> api.Workload:
        lengths = [api.parse_lengths(str(each), "measure") for each in (isl, osl)]
        count, seed = self.settings.requests or _MADE_UP, self.settings.seed
        return api.synthetic_workload(
            tokenizer, lengths[0], lengths[1], count, seed=seed, turn=str(turn)
        )
