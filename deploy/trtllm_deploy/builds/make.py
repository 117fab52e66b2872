"""Making one artifact: each kind of stage, and what it is made from.

In: a stage, the deployment file, facts. Out: a folder in the store. Runs in whatever process and
on whatever machine an executor chose; knows nothing of other stages that run meanwhile.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llm_perf.errors import UserError
from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.backends.jobs import EngineJob, RepositoryJob
from trtllm_deploy.backends.tensorrt import timing_cache_name
from trtllm_deploy.builds.estimate import about
from trtllm_deploy.builds.executor import OnLine
from trtllm_deploy.checkpoint.fetch import fetch
from trtllm_deploy.checkpoint.job import Calibration, CheckpointJob, Verification
from trtllm_deploy.checkpoint.quantize import run_checkpoint
from trtllm_deploy.machine.gpu import gpus, pick
from trtllm_deploy.plan.plan import Facts, Stage, StageKind
from trtllm_deploy.spec.deployment_file import DeploymentFile
from trtllm_deploy.workspace.folder import Workspace


@dataclass(frozen=True, slots=True)
class StageMaker:
    """Makes stages of one deployment file; a :data:`trtllm_deploy.builds.executor.Make`."""

    file: DeploymentFile
    facts: Facts
    workspace: Workspace

    def __call__(self, stage: Stage, on_line: OnLine) -> bool:
        """Make the stage's artifact unless it is there; true if this call made it.

        Raises UserError: it can't be made; the log of the stage says more.
        """
        log = self.workspace.log(stage)

        def maker(target: Path) -> None:
            on_line("")
            try:
                self._make(stage, target, log, on_line)
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

    def _make(self, stage: Stage, target: Path, log: Path, on_line: OnLine) -> None:
        if stage.kind == "fetch":
            model = stage.cell.model
            trust = self.file.deployment.models[model].trust_remote_code
            fetch(self.facts.sources[model], trust, target, self.workspace.partial(stage))
        elif stage.kind == "checkpoint":
            job = checkpoint_job(stage, self.file, self._input(stage, "fetch"), target)
            run_checkpoint(job, log, on_line)
        elif stage.kind == "engine":
            self._make_engine(stage, target, log, on_line)
        else:
            self._make_repository(stage, target)

    def _make_engine(self, stage: Stage, target: Path, log: Path, on_line: OnLine) -> None:
        visible = tuple(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
        with _timing_cache(stage, self.workspace, visible) as timing_cache:
            job = EngineJob(
                checkpoint=self._input(stage, "checkpoint"),
                target=target,
                release=stage.made_from["release"],
                build_config=stage.made_from["build_config"],
                workers=max(1, len(visible)),
                timing_cache=timing_cache,
            )
            BACKENDS[stage.made_from["backend"]].make_engine(job, log, on_line)

    def _make_repository(self, stage: Stage, target: Path) -> None:
        spec = self.facts.file_for(stage.cell, self.file).deployment
        job = RepositoryJob(
            target=target,
            release=spec.release,
            engine_dir=self._input(stage, "engine"),
            tokenizer_dir=self._input(stage, "fetch", "tokenizer"),
            max_batch_size=stage.made_from["max_batch_size"],
            settings=spec.triton,
            serving=stage.made_from.get("serving", {}),
        )
        BACKENDS[stage.cell.backend].make_repository(job)

    def _input(self, stage: Stage, kind: StageKind, role: str | None = None) -> Path:
        """The folder of the artifact that the stage was planned on."""
        return self.workspace.store.path(kind, stage.made_from[role or kind])


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
        names=made_from.get("names", {}),
        verification=Verification(
            spec.verify.prompts, spec.verify.min_top1.get(cell.precision), text
        ),
    )


@contextmanager
def _timing_cache(
    stage: Stage, workspace: Workspace, visible: tuple[str, ...]
) -> Iterator[Path | None]:
    """A copy of what builds on this kind of GPU share; what the build adds replaces the shared one.

    So builds that run at once never write the same file, and a killed one leaves it whole.
    """
    here = pick(gpus(), visible) if visible else ()
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
