"""What a deployment file asks to be measured: a cell's plan in, its measurements to make out.

Starts nothing; a cell's identity is that of its artifacts, so it is known before it is built.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llm_perf import api
from trtllm_deploy import __version__
from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.plan.plan import CellPlan
from trtllm_deploy.spec.deployment_file import DeploymentFile
from trtllm_deploy.spec.schema import MeasureSpec
from trtllm_deploy.workspace.folder import Workspace


def target_of(plan: CellPlan, file: DeploymentFile, sha256: str | None = None) -> api.Target:
    """A cell as a ledger knows it; where it listens its server tells.

    ``sha256`` is that of the deployment file.
    """
    spec, cell = file.deployment, plan.cell
    settings = {
        "backend": cell.backend,
        "release": spec.release,
        "kv_cache_dtype": spec.kv_cache_dtype.get(cell.precision),
        **{name: getattr(cell, name) for name in ("model", "precision", "tp", "pp", "isl", "osl")},
        **file.given_flags(cell),
        **plan.repository.made_from["triton"],
        **({"env": dict(spec.env)} if spec.env else {}),
    }
    return api.Target(
        cell.name,
        url="",
        protocol="",
        model="",
        gpus=cell.world_size,
        server=BACKENDS[cell.backend].server.name,
        cell=settings,
        artifacts={stage.kind: stage.key for stage in plan.stages},
        deployment_sha256=sha256,
    )


def file_sha256(file: DeploymentFile) -> str:
    """SHA-256 of a deployment file as it is now."""
    return hashlib.sha256(file.path.read_bytes()).hexdigest()


def gpu_facts(gpus: Sequence[Gpu], count: int) -> dict[str, Any] | None:
    """Of the first GPU what a ledger keeps, and how many a cell has; None without any."""
    if not gpus:
        return None
    first = gpus[0]
    about = {"name": first.name, "memory": first.memory, "capability": first.capability}
    return {**about, "count": count}


@dataclass(frozen=True, slots=True)
class Asked:
    """The ``measure:`` block of a file, for each of its cells."""

    file: DeploymentFile
    settings: MeasureSpec
    workspace: Workspace
    gpus: tuple[Gpu, ...] = ()
    sha256: str | None = None
    _known: dict[tuple[Any, ...], api.Workload] = field(default_factory=dict, repr=False)

    @property
    def loads(self) -> tuple[api.Load, ...]:
        """The loads of one repetition, closed loops first; their arrivals are drawn from 0."""
        rates = self.settings.request_rate or ()
        closed = self.settings.concurrency or ([] if rates else [1])
        return (*map(api.Concurrency, closed), *map(api.Rate, rates))

    def of(self, plan: CellPlan, *, counted: bool = False) -> list[api.Planned]:
        """A cell's measurements, all loads in turn; with their prompts' tokens ``counted``.

        Counting takes the cell's tokenizer, so its model must be there. Raises UserError: the
        prompts can't be read, or are too few to be dealt out.
        """
        settings, file = self.settings, self.file
        turns = [(n, load) for n in range(settings.repetitions) for load in self.loads]
        target = target_of(plan, file, self.sha256)
        versions: Mapping[str, Any] = {
            "trtllm_deploy": __version__,
            "release": file.deployment.release,
        }
        planned = []
        for number, (repetition, load) in enumerate(turns):
            part = (number, len(turns)) if settings.fresh else (0, 1)
            seed = settings.seed + repetition
            planned.append(
                api.Planned(
                    target,
                    api.Rate(load.per_s, seed=seed) if isinstance(load, api.Rate) else load,
                    self._workload(plan, part, counted=counted),
                    api.Extent(settings.requests),
                    seed,
                    repetition,
                    study=file.path.stem,
                    gpu=gpu_facts(self.gpus, plan.cell.world_size),
                    versions=versions,
                )
            )
        return planned

    def _workload(self, plan: CellPlan, part: tuple[int, int], *, counted: bool) -> api.Workload:
        tokenizer = self.workspace.artifact(plan.fetch) if counted else None
        limit = self.settings.max_tokens or plan.cell.osl
        key = (part, tokenizer, limit)
        if key not in self._known:
            data = self.file.resolve(self.settings.data)
            workload = api.load_workload(data, tokenizer, limit, part=part)
            self._known[key] = workload
            have, wanted = len(workload.prompts), self.settings.requests or 1
            if part[1] > 1 and have < wanted:
                raise self.file.error(
                    ("measure", "fresh"),
                    f"{part[1]} loads leave {have} prompts of {data} for one, {wanted} are asked",
                    "give more data, or fewer loads or requests",
                )
        return self._known[key]
