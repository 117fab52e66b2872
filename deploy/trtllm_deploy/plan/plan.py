"""The plan: which artifacts the cells need, each once, and what each is made from.

Pure: deployment values, resolved sources, GPUs and tool versions go in, stages come out. Knows
nothing of whether an artifact exists, or of processes.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from llm_perf.errors import UserError
from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.backends.refusals import can_do
from trtllm_deploy.checkpoint.architectures import former_names
from trtllm_deploy.checkpoint.fetch import Source
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.plan.memory import plan_memory
from trtllm_deploy.plan.shape import ModelShape, read_shape
from trtllm_deploy.releases.release import release_number
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile
from trtllm_deploy.spec.overrides import overridden
from trtllm_deploy.spec.precision import PRECISIONS
from trtllm_deploy.store.store import content_key

_NAMES_SHOWN = 4
_KEPT = "settings.json"  # of the workspace, with what set changed
_CHECKPOINT_FORMAT = 3  # raise it when the checkpoint stage writes something else than before
_ROOM_TO_CALIBRATE = 1.2  # a model's 16-bit weights, and a fifth for activations: an estimate

StageKind = Literal["fetch", "checkpoint", "engine", "repository", "measure"]
"""All but the last make an artifact; that one is a cell's measurements."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One artifact to make. ``cell`` is the first cell that needs it.

    ``inputs`` are the keys of the stages that must be there before; ``gpus`` it takes at most.
    """

    kind: StageKind
    key: str
    made_from: Mapping[str, Any]
    cell: Cell
    title: str
    inputs: tuple[str, ...] = ()
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class CellPlan:
    """The stages of one cell, in order."""

    cell: Cell
    fetch: Stage
    checkpoint: Stage
    engine: Stage
    repository: Stage
    overrides: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """triton settings in place of the file's, as they are kept"""

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
    """identity of the calibration data"""
    tools: Mapping[str, str]
    """versions that change what a checkpoint looks like"""
    templates_digest: str
    workspace: Path
    """absolute: a repository holds absolute paths into it"""
    gpus: tuple[Gpu, ...] = ()
    """those that engines are built for; none where they aren't known"""
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """what config.json says, by model name, where known"""
    unjudged: Mapping[str, str] = field(default_factory=dict)
    """by model name: why its config.json isn't known"""
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """by cell name: triton settings in place of the file's"""
    made_with: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """tools of checkpoints that are there, by the key of all else; they count instead of ours"""

    @property
    def shapes(self) -> Mapping[str, ModelShape]:
        """Sizes by model name, of the models whose sizes follow from their config."""
        read = {name: read_shape(config) for name, config in self.configs.items()}
        return {name: shape for name, shape in read.items() if shape is not None}

    def changed(self, cell: Cell, file: DeploymentFile) -> Mapping[str, Any]:
        """Triton settings in place of the file's: the matrix's, the model's own, ``overrides``."""
        backend, config = BACKENDS[cell.backend], self.configs.get(cell.model, {})
        own = backend.settings(overridden(file, dict(cell.triton)), cell, config)
        kept = {**dict(cell.triton), **own, **self.overrides.get(cell.name, {})}
        pool = self._pool(cell, overridden(file, kept, self.workspace / _KEPT))
        return kept if pool is None else {**kept, "max_tokens_in_paged_kv_cache": pool}

    def _pool(self, cell: Cell, file: DeploymentFile) -> int | None:
        """KV cache in tokens for a server whose share of GPU memory has another base.

        As many as TensorRT-LLM's would hold, where the file asks for a share or compares backends;
        None where it says a number itself, and where GPU or model aren't known.
        """
        triton, shape = file.deployment.triton, self.shapes.get(cell.model)
        shared = triton.kv_cache_free_gpu_mem_fraction is not None
        asked = BACKENDS[cell.backend].sizes_pool_otherwise and (
            shared or len(file.deployment.backend) > 1
        )
        if not asked or triton.max_tokens_in_paged_kv_cache or shape is None or not self.gpus:
            return None
        return plan_memory(file, cell, shape, self.gpus[0].memory).tokens or None

    def file_for(self, cell: Cell, file: DeploymentFile) -> DeploymentFile:
        """The deployment file as it is for one cell. Raises UserError for a wrong setting."""
        return overridden(file, self.changed(cell, file), self.workspace / _KEPT)


def plan(file: DeploymentFile, facts: Facts) -> list[CellPlan]:
    """The stages of every cell; equal stages of different cells have equal keys.

    Raises UserError: the backend refuses a combination, with the line that asks for it.
    """
    cells = _settled(file, facts.gpus)
    for name, varied in dict.fromkeys((cell.backend, cell.triton) for cell in cells):
        alike = [cell for cell in cells if (cell.backend, cell.triton) == (name, varied)]
        check = BACKENDS[name].check
        check(overridden(file, dict(varied)), alike, facts.gpus, facts.configs)
    for cell in cells:
        if cell.name in facts.overrides:
            check = BACKENDS[cell.backend].check
            check(facts.file_for(cell, file), [cell], facts.gpus, facts.configs)
    planner = _planner(file, facts)
    return [planner(cell) for cell in cells]


def find_plan(plans: Sequence[CellPlan], file: DeploymentFile, name: str) -> CellPlan:
    """The plan of the cell with that name.

    Raises UserError: there is none; the nearest name is given.
    """
    names = {each.cell.name: each for each in plans}
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
        like = [each for each in names if name in each] or list(names)
        some = f"{', '.join(like[:_NAMES_SHOWN])}{', …' if len(like) > _NAMES_SHOWN else ''}"
        hint = f"did you mean {near[0]!r}?" if near else f"there are {some}"
        raise UserError(f"there is no cell {name!r}", where=file.path, fix=hint)
    return names[name]


def distinct(plans: Iterable[CellPlan]) -> list[Stage]:
    """Each stage once, inputs before what needs them: all of one kind, then the next."""
    found: dict[str, Stage] = {}
    for column in zip(*(each.stages for each in plans), strict=True):
        for stage in column:
            found.setdefault(stage.key, stage)
    return list(found.values())


def _settled(file: DeploymentFile, gpus: Sequence[Gpu]) -> list[Cell]:
    """The cells, those in fp8 replaced by ``fallback`` where the GPUs can't; each once."""
    spec, cells = file.deployment, file.cells()
    if spec.fallback is None:
        return cells
    able = {each: can_do(each, spec.kv_cache_dtype.get(each), gpus) for each in spec.precisions}
    settled = (
        cell if able[cell.precision] else replace(cell, precision=spec.fallback) for cell in cells
    )
    return list(dict.fromkeys(settled))


def _planner(file: DeploymentFile, facts: Facts) -> Callable[[Cell], CellPlan]:
    """A function from a cell to its plan, which makes what cells share only once."""
    spec = file.deployment
    shared = spec.triton.model_dump(exclude_none=True)

    def triton(cell: Cell) -> Mapping[str, Any]:
        if not facts.changed(cell, file):
            return shared
        return facts.file_for(cell, file).deployment.triton.model_dump(exclude_none=True)

    fetched: dict[str, Stage] = {}
    quantized: dict[tuple[str, str, str], Stage] = {}

    def planned(cell: Cell) -> CellPlan:
        if cell.model not in fetched:
            fetched[cell.model] = _fetch(file, facts, cell)
        backend = BACKENDS[cell.backend]
        made = (cell.model, cell.precision, backend.checkpoint_kind)
        if made not in quantized:
            quantized[made] = _checkpoint(file, facts, cell, fetched[cell.model])
        before = quantized[made]
        capability = facts.gpus[0].capability if facts.gpus and backend.compiles else None
        engine_from = {
            "checkpoint": before.key,
            "backend": cell.backend,
            "release": spec.release,
            "capability": capability,
            "build_config": backend.build_config(file, cell),
        }
        engine = Stage(
            "engine",
            content_key(engine_from),
            engine_from,
            cell,
            cell.name,
            inputs=(before.key,),
            gpus=cell.world_size if backend.compiles else 0,
        )
        repository_from = {
            "engine": engine.key,
            "tokenizer": fetched[cell.model].key,
            "max_batch_size": cell.max_batch_size,
            "triton": triton(cell),
            "templates": facts.templates_digest,
            "workspace": str(facts.workspace),
        }
        if serving := backend.serving(facts.file_for(cell, file), cell):
            repository_from |= {"serving": serving, "templates": None}
        repository = Stage(
            "repository",
            content_key(repository_from),
            repository_from,
            cell,
            cell.name,
            inputs=(engine.key, fetched[cell.model].key),
        )
        changed = facts.overrides.get(cell.name, {})
        return CellPlan(cell, fetched[cell.model], before, engine, repository, changed)

    return planned


def fetched_from(file: DeploymentFile, source: Source, model: str) -> dict[str, Any]:
    """What the fetch stage of a model is made from."""
    trusted = file.deployment.models[model].trust_remote_code
    return {**source.identity, "remote_code": trusted}


def _fetch(file: DeploymentFile, facts: Facts, cell: Cell) -> Stage:
    made_from = fetched_from(file, facts.sources[cell.model], cell.model)
    return Stage("fetch", content_key(made_from), made_from, cell, cell.model)


def _checkpoint(file: DeploymentFile, facts: Facts, cell: Cell, fetched: Stage) -> Stage:
    spec = file.deployment
    kv_cache_dtype = spec.kv_cache_dtype.get(cell.precision)
    scripts = spec.checkpoint_with == "scripts"
    calibrated = PRECISIONS[cell.precision].calibrated or kv_cache_dtype is not None
    made_from: dict[str, Any] = {
        "format": _CHECKPOINT_FORMAT,
        "kind": BACKENDS[cell.backend].checkpoint_kind,
        "with": spec.checkpoint_with,
        "release": spec.release if scripts else None,
        "fetch": fetched.key,
        "precision": cell.precision,
        "kv_cache_dtype": kv_cache_dtype,
        "tp": cell.tp,
        "pp": cell.pp,
        "calibration": {
            "data": facts.calibration_digest,
            "samples": spec.calibration.samples,
            "max_length": spec.calibration.max_length,
        }
        if calibrated
        else None,
    }
    config = facts.configs.get(cell.model, {})
    architecture = str(next(iter(config.get("architectures") or ()), None))
    names = former_names(architecture, release_number(spec.release))
    if names and made_from["kind"] == "trtllm" and not scripts:
        made_from["names"] = dict(names)
    made_from["tools"] = dict(facts.made_with.get(content_key(made_from), facts.tools))
    return Stage(
        "checkpoint",
        content_key(made_from),
        made_from,
        cell,
        f"{cell.model} {cell.precision} tp{cell.tp} pp{cell.pp}",
        inputs=(fetched.key,),
        gpus=_gpus_to_calibrate(cell, facts) if calibrated or scripts else 0,
    )


def _gpus_to_calibrate(cell: Cell, facts: Facts) -> int:
    """As many GPUs as the 16-bit model fills; those that will serve it at most."""
    shape = facts.shapes.get(cell.model)
    memory = facts.gpus[0].memory if facts.gpus else None
    if shape is None or not memory:
        return cell.world_size
    needed = shape.parameters * 2 * _ROOM_TO_CALIBRATE / memory
    return min(cell.world_size, math.ceil(needed))
