"""``build --dry-run``: a shell script that would do the same, one command after the other.

In: a plan. Out: text. The commands of TensorRT-LLM stand there as the build would run them; what
this project does itself is a step of its own, ``python3 -m trtllm_deploy.builds.dry_run STEP ...``.
The script writes to a folder of its own, never to the store.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llm_perf.errors import UserError
from llm_perf.screen import plain
from trtllm_deploy.backends.backend import BACKENDS
from trtllm_deploy.backends.jobs import EngineJob, RepositoryJob
from trtllm_deploy.builds.make import checkpoint_job
from trtllm_deploy.checkpoint.calibration import write_prompts
from trtllm_deploy.checkpoint.container_scripts import complete, script_command, write_data_set
from trtllm_deploy.checkpoint.job import CheckpointJob
from trtllm_deploy.checkpoint.source_files import UNREAD
from trtllm_deploy.plan.plan import CellPlan, Facts, Stage, distinct
from trtllm_deploy.spec.deployment_file import DeploymentFile, load_deployment
from trtllm_deploy.spec.overrides import overridden
from trtllm_deploy.workspace.folder import Workspace

_STEP = ("python3", "-m", "trtllm_deploy.builds.dry_run")


def dry_run_script(
    file: DeploymentFile, plans: Sequence[CellPlan], facts: Facts, workspace: Workspace
) -> str:
    """The script: every stage of the plan once, inputs first.

    Raises UserError: a command can't be told, for the model's config.json isn't known.
    """
    script = _Script(file, facts, workspace.root / "by-hand", {})
    lines = ["#!/bin/sh", f"# {plain(file.path)}: {len(plans)} cells", "set -eu"]
    for stage in distinct(plans):
        lines += ["", f"# {stage.kind} {plain(stage.title)}", *script.stage(stage)]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Script:
    """Commands of stages; ``places`` keeps where each one's output lies, by key."""

    file: DeploymentFile
    facts: Facts
    out: Path
    places: dict[str, Path]

    def stage(self, stage: Stage) -> Iterator[str]:
        folder = self.out / _FOLDERS[stage.kind] / stage.title.replace(" ", "_")
        self.places[stage.key] = folder
        yield shlex.join(["mkdir", "-p", str(folder if stage.kind != "fetch" else folder.parent)])
        if stage.kind == "fetch":
            yield shlex.join(self._fetch(stage, folder))
        elif stage.kind == "checkpoint":
            yield from self._checkpoint(stage, folder)
        elif stage.kind == "engine":
            yield shlex.join(self._engine(stage, folder))
        else:
            engine, model = (str(self.places[key]) for key in stage.inputs)
            where = (str(self.file.path.absolute()), str(stage.made_from["max_batch_size"]))
            changed = self.facts.changed(stage.cell, self.file)
            serving = stage.made_from.get("serving", {})
            also = [json.dumps(changed)] if changed or serving else []
            also += [json.dumps(serving)] if serving else []
            what = [*_STEP, "repository", stage.cell.backend]
            yield shlex.join([*what, *where, engine, model, str(folder), *also])

    def _fetch(self, stage: Stage, folder: Path) -> list[str]:
        source = self.facts.sources[stage.cell.model]
        if source.folder is not None:
            return ["ln", "-sfn", str(source.folder), str(folder)]
        repo, commit = str(source.identity["repo"]), str(source.identity["commit"])
        unread = [word for pattern in UNREAD for word in ("--exclude", pattern)]
        return ["hf", "download", repo, "--revision", commit, "--local-dir", str(folder), *unread]

    def _checkpoint(self, stage: Stage, folder: Path) -> Iterator[str]:
        job = checkpoint_job(stage, self.file, self.places[stage.inputs[0]], folder)
        beside = folder.parent
        calibration = job.calibration
        if calibration and (isinstance(calibration.data, str) or calibration.data.is_dir()):
            prompts = beside / f"{folder.name}.prompts.jsonl"
            data, samples = str(calibration.data), str(calibration.samples)
            yield shlex.join([*_STEP, "prompts", data, samples, str(prompts)])
            job = replace(job, calibration=replace(calibration, data=prompts))
        job_file = str(beside / f"{folder.name}.job.json")
        yield f"cat > {shlex.quote(job_file)} <<'JSON'\n{job.to_json()}\nJSON"
        if job.release is not None:
            data_set = beside / f"{folder.name}.calibration"
            if job.calibration:
                yield shlex.join([*_STEP, "data-set", job_file, str(data_set)])
            yield shlex.join(script_command(job, data_set, self._architecture(stage)))
            yield shlex.join([*_STEP, "complete", str(folder)])
        yield shlex.join(["python3", "-m", "trtllm_deploy.checkpoint.quantize", job_file])

    def _architecture(self, stage: Stage) -> str:
        names = self.facts.configs.get(stage.cell.model, {}).get("architectures")
        if not isinstance(names, list) or not names:
            raise self.file.error(
                ("models", stage.cell.model),
                "its config.json isn't known, so neither is the script that converts it",
                "name a copy of it under 'shape:'",
            )
        return str(names[0])

    def _engine(self, stage: Stage, folder: Path) -> list[str]:
        made_from = stage.made_from
        job = EngineJob(
            checkpoint=self.places[stage.inputs[0]],
            target=folder,
            release=made_from["release"],
            build_config=made_from["build_config"],
            workers=stage.gpus,
            timing_cache=self.out / "timing.cache",
        )
        command = BACKENDS[made_from["backend"]].command(job)
        if command is not None:
            return list(command)
        where = (str(self.file.path.absolute()), json.dumps(made_from["build_config"]))
        return [*_STEP, "engine", made_from["backend"], *where, str(job.checkpoint), str(folder)]


_FOLDERS = {
    "fetch": "models",
    "checkpoint": "checkpoints",
    "engine": "engines",
    "repository": "ensemble_models",
}


def _prompts(data: str, samples: str, target: str) -> None:
    folder = Path(data)
    write_prompts(folder if folder.exists() else data, int(samples), Path(target))


def _data_set(job: str, folder: str) -> None:
    text = Path(job).read_text(encoding="utf-8")
    write_data_set(CheckpointJob.from_json(text), Path(folder))


def _complete(folder: str) -> None:
    complete(Path(folder))


def _engine(backend: str, file: str, build_config: str, checkpoint: str, target: str) -> None:
    spec = load_deployment(Path(file)).deployment
    job = EngineJob(Path(checkpoint), Path(target), spec.release, json.loads(build_config))
    BACKENDS[backend].make_engine(job, Path(f"{target}.log"), print)


def _repository(
    backend: str,
    file: str,
    batch: str,
    engine: str,
    tokenizer: str,
    target: str,
    changed: str = "{}",
    serving: str = "{}",
) -> None:
    spec = overridden(load_deployment(Path(file)), json.loads(changed)).deployment
    folders = (Path(engine), Path(tokenizer))
    made = json.loads(serving)
    job = RepositoryJob(Path(target), spec.release, *folders, int(batch), spec.triton, made)
    BACKENDS[backend].make_repository(job)


_STEPS: Mapping[str, Callable[..., None]] = {
    "prompts": _prompts,
    "data-set": _data_set,
    "complete": _complete,
    "engine": _engine,
    "repository": _repository,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """One step of a script; exit code 2 when the user can mend what is wrong."""
    parser = argparse.ArgumentParser(
        prog="trtllm_deploy.builds.dry_run", description="One step of a dry run."
    )
    parser.add_argument("step", choices=_STEPS)
    parser.add_argument("rest", nargs="*")
    options = parser.parse_args(arguments)
    try:
        _STEPS[options.step](*options.rest)
    except UserError as error:
        print(f"trtllm_deploy.builds.dry_run: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
