"""What preflight looks at, read once: a model repository, its engines, this machine.

In: a folder, by whatever tool it was made, and how it is to be launched. Out: frozen ``Facts``;
what can't be read is a finding in them. Judges nothing that could be read. The texts of all
findings are in preflight.yaml.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from llm_perf.errors import UserError
from trtllm_deploy.backends.engine_config import EngineConfig
from trtllm_deploy.backends.triton.models import (
    LLM_ROLES,
    Model,
    Problem,
    engine_of,
    model_folders,
    read_model,
)
from trtllm_deploy.machine.data import load_data
from trtllm_deploy.machine.finding import Finding, Level
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.releases.release import Release, load_release, release_of


def found(rule: str, where: str | Path, **values: object) -> Finding:
    """A finding of preflight.yaml with its blanks filled."""
    texts = {
        key: text.format(**values) for key, text in load_data("check/preflight.yaml")[rule].items()
    }
    level: Level = "error" if "error" in texts else "warning"
    return Finding(level, texts[level], str(where), texts["why"], texts["fix"])


@dataclass(frozen=True, slots=True)
class Launch:
    """How and where a repository is launched; None for what isn't known, sizes in bytes.

    ``world_size`` processes, on ``nodes`` machines with these ``gpus`` each; ``tensorrt_llm`` is
    the version there; ``lengths`` are ISL and OSL; ``engine`` stands in for gpt_model_path.
    """

    world_size: int | None = None
    gpus: tuple[Gpu, ...] = ()
    nodes: int = 1
    tensorrt_llm: str | None = None
    lengths: tuple[int, int] | None = None
    engine: Path | None = None
    shared_memory: int | None = None
    locked_memory: int | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the rules see. ``llm`` is the model that runs ``engine``, in the place named.

    ``models`` are those of the ``folders`` whose config can be read.
    ``release`` is that of the engine, where there is data for it.
    """

    launch: Launch
    folders: frozenset[str]
    models: Mapping[str, Model]
    unreadable: tuple[Finding, ...]
    llm: Model | None = None
    engine: EngineConfig | None = None
    place: str = ""
    release: Release | None = None

    def playing(self, *roles: str) -> list[Model]:
        """The models of some roles."""
        return [model for model in self.models.values() if model.role in roles]


def read_facts(repository: Path, launch: Launch) -> list[Facts]:
    """The facts, once for each model that runs an engine; once without, if there is none."""
    try:
        folders = model_folders(repository)
    except OSError as error:
        problem = found("unreadable", repository, problem=f"can't be read: {error.strerror}")
        return [Facts(launch, frozenset(), {}, (problem,))]
    read = [each for folder in folders for each in read_model(folder)]
    models = {each.name: each for each in read if isinstance(each, Model)}
    problems = [
        found(each.rule, each.where, **each.values) for each in read if isinstance(each, Problem)
    ]
    if not any((folder / "config.pbtxt").is_file() for folder in folders):
        problems = [found("no_models", repository)]
    names = frozenset(each.name for each in folders)
    base = Facts(launch, names, models, tuple(problems))
    return [_with_engine(base, each) for each in base.playing(*LLM_ROLES)] or [base]


def _with_engine(facts: Facts, llm: Model) -> Facts:
    try:
        llm, engine, path = engine_of(llm, facts.launch.engine)
    except UserError as error:
        problem = found("no_engine", llm.at("gpt_model_path"), problem=error)
        return replace(facts, llm=llm, unreadable=(*facts.unreadable, problem))
    if engine is None:
        return replace(facts, llm=llm)
    release = _release(engine.version)
    return replace(facts, llm=llm, engine=engine, place=str(path), release=release)


def _release(version: str) -> Release | None:
    """What is known of an engine's release."""
    try:
        return load_release(release_of(version))
    except UserError:
        return None
