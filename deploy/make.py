"""Making one artifact: each kind of stage, and what it is made from.

In: a stage, the deployment file, facts. Out: a folder in the store. Runs in whatever process and
on whatever machine an executor chose; knows nothing of other stages that run meanwhile.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from client.errors import UserError
from deploy.backend import BACKENDS
from deploy.backends.jobs import EngineJob, RepositoryJob
from deploy.backends.tensorrt import timing_cache_name
from deploy.checkpoint_job import Calibration, CheckpointJob, Verification
from deploy.estimate import about
from deploy.executor import OnLine
from deploy.fetch import fetch
from deploy.gpu import gpus
from deploy.plan import Facts, Stage, StageKind
from deploy.quantize import run_checkpoint
from deploy.spec import DeploymentFile
from deploy.workspace import Workspace


@dataclass(frozen=True, slots=True)
class StageMaker:
    """Makes stages of one deployment file; a :data:`deploy.executor.Make`."""

    file: DeploymentFile
    facts: Facts
    workspace: Workspace

    def __call__(self, stage: Stage, on_line: OnLine) -> bool:
        """Make the stage's artifact unless it is there; true if this call made it.

        Raises:
            UserError: it can't be made; the log of the stage says more.
        """
        log = self.workspace.log(stage)

        def maker(target: Path) -> None:
            on_line("")
            try:
                _MAKERS[stage.kind](_Context(stage, self, on_line), target)
            except (UserError, OSError):
                raise
            except Exception as error:
                log.parent.mkdir(parents=True, exist_ok=True)
                with log.open("a", encoding="utf-8") as stream:
                    traceback.print_exc(file=stream)
                raise UserError(f"{type(error).__name__}: {error}", where=log) from error

        def waiting() -> None:
            on_line("another process makes it; waiting")

        store = self.workspace.store
        return store.make(stage.kind, stage.made_from, maker, waiting, about(stage))[1]


@dataclass(frozen=True, slots=True)
class _Context:
    """What the maker of one stage may look at."""

    stage: Stage
    maker: StageMaker
    on_line: OnLine

    @property
    def log(self) -> Path:
        return self.maker.workspace.log(self.stage)

    def input(self, kind: StageKind, role: str | None = None) -> Path:
        """The folder of the artifact that the stage was planned on."""
        return self.maker.workspace.store.path(kind, self.stage.made_from[role or kind])


def _make_fetch(context: _Context, target: Path) -> None:
    stage, maker = context.stage, context.maker
    name = stage.cell.model
    trust = maker.file.deployment.models[name].trust_remote_code
    fetch(maker.facts.sources[name], trust, target, maker.workspace.partial(stage))


def _make_checkpoint(context: _Context, target: Path) -> None:
    job = checkpoint_job(context.stage, context.maker.file, context.input("fetch"), target)
    run_checkpoint(job, log_file=context.log, on_line=context.on_line)


def checkpoint_job(
    stage: Stage, file: DeploymentFile, model_dir: Path, target: Path
) -> CheckpointJob:
    """What a checkpoint stage asks for, of the model in ``model_dir``."""
    cell, made_from, spec = stage.cell, stage.made_from, file.deployment
    asked, calibration, data = made_from["calibration"], None, file.calibration_data()
    if asked:
        calibration = Calibration(data, asked["samples"], asked["max_length"])
    text = data if isinstance(data, Path) and data.is_file() else None
    return CheckpointJob(
        model_dir=model_dir,
        output_dir=target,
        precision=cell.precision,
        tp=cell.tp,
        pp=cell.pp,
        calibration=calibration,
        trust_remote_code=spec.models[cell.model].trust_remote_code,
        kv_cache_dtype=made_from["kv_cache_dtype"],
        kind=made_from["kind"],
        release=made_from["release"],
        verification=Verification(
            spec.verify.prompts, spec.verify.min_top1.get(cell.precision), text
        ),
    )


def _make_engine(context: _Context, target: Path) -> None:
    made_from, workspace = context.stage.made_from, context.maker.workspace
    visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
    with _timing_cache(context.stage, workspace, visible) as timing_cache:
        job = EngineJob(
            checkpoint=context.input("checkpoint"),
            target=target,
            release=made_from["release"],
            build_config=made_from["build_config"],
            workers=max(1, len(visible)),
            timing_cache=timing_cache,
        )
        BACKENDS[made_from["backend"]].make_engine(job, context.log, context.on_line)


@contextmanager
def _timing_cache(stage: Stage, workspace: Workspace, visible: list[str]) -> Iterator[Path | None]:
    """A copy of what builds on this kind of GPU share; what the build adds replaces the shared one.

    So builds that run at once never write the same file, and a killed one leaves it whole.
    """
    here = [gpu for gpu in gpus() if str(gpu.index) in visible] if visible else []
    if not here:
        yield None
        return
    shared = workspace.timing_cache(timing_cache_name(stage.made_from["release"], here[0]))
    own = shared.with_name(f".{shared.name}.{stage.key}")
    shared.parent.mkdir(parents=True, exist_ok=True)
    try:
        own.touch()  # trtllm-build wants it to be there
        with suppress(FileNotFoundError):
            shutil.copyfile(shared, own)
        yield own
        with suppress(FileNotFoundError):
            own.replace(shared)
    finally:
        own.unlink(missing_ok=True)


def _make_repository(context: _Context, target: Path) -> None:
    maker, made_from = context.maker, context.stage.made_from
    spec = maker.facts.file_for(context.stage.cell, maker.file).deployment
    job = RepositoryJob(
        target=target,
        release=spec.release,
        engine_dir=context.input("engine"),
        tokenizer_dir=context.input("fetch", "tokenizer"),
        max_batch_size=made_from["max_batch_size"],
        settings=spec.triton,
    )
    BACKENDS[spec.backend].make_repository(job)


_MAKERS: dict[StageKind, Callable[[_Context, Path], None]] = {
    "fetch": _make_fetch,
    "checkpoint": _make_checkpoint,
    "engine": _make_engine,
    "repository": _make_repository,
}
