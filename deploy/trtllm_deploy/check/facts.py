"""What preflight looks at, read once: a model repository, its engines, this machine.

In: a folder, by whatever tool it was made, and how it is to be launched. Out: frozen ``Facts``;
what can't be read is a finding in them. Judges nothing that could be read. The texts of all
findings are in preflight.yaml.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from llm_perf.errors import UserError
from trtllm_deploy.backends.engine_config import EngineConfig, read_engine
from trtllm_deploy.check.finding import Finding, Level
from trtllm_deploy.machine.data import load_data
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.releases.release import Release, load_release, release_of
from trtllm_deploy.spec.located import parse_yaml

_PLACEHOLDER = re.compile(r"\$\{(\w*)")
_QUOTED = re.compile(r"""("(\\.|[^"\\])*"|'(\\.|[^'\\])*')|#.*""")
_UNREADABLE = (
    *(OSError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
    yaml.YAMLError,
)
# An input that only the model of this part of the ensemble has, whatever the model's name.
_ROLES = {
    "input_ids": "tensorrt_llm",
    "QUERY": "preprocessing",
    "TOKENS_BATCH": "postprocessing",
    "text_input": "tensorrt_llm_bls",
}


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
class Model:
    """One model: its config as Triton reads it, and its parameters as they are written.

    ``role`` is the part of the ensemble that it plays, ``ensemble``, ``llmapi``, or empty;
    ``paths`` are what lies in its folder and in the version 1; ``repeated`` are keys of parameters
    and wires that are there more than once, of which a parser of the config keeps the last.
    """

    name: str
    file: Path
    text: str
    paths: frozenset[str]
    role: str
    config: Any
    parameters: Mapping[str, str]
    repeated: tuple[str, ...]

    def at(self, key: str) -> str:
        """The file, with the first line that has the key."""
        place = re.search(rf"(?<!\w){re.escape(key)}(?!\w)", self.text)
        line = f":{self.text[: place.start()].count(chr(10)) + 1}" if place else ""
        return f"{self.file}{line}"

    def get(self, key: str) -> str | None:
        """A parameter's value; None where it isn't set, or left as ``${…}``."""
        value = self.parameters.get(key, "")
        return None if not value or value.startswith("${") else value

    def flag(self, key: str) -> bool:
        """A parameter as TensorRT-LLM's backend reads a bool; false when not set."""
        return self.get(key) in ("true", "True", "TRUE", "1")

    def number(self, key: str) -> float | None:
        """A parameter as it reads a number: as far as there are digits."""
        digits = re.match(r"\s*[-+]?\d*\.?\d+", self.get(key) or "")
        return min(float(digits[0]), 1e18) if digits else None

    @property
    def instances(self) -> int:
        """Copies of the model, each a process of its own for a python model."""
        groups = self.config.instance_group
        return sum(max(1, group.count) * max(1, len(group.gpus)) for group in groups) or 1


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
        entries = sorted(repository.iterdir())
    except OSError as error:
        problem = found("unreadable", repository, problem=f"can't be read: {error.strerror}")
        return [Facts(launch, frozenset(), {}, (problem,))]
    folders = [each for each in entries if each.is_dir() and not each.name.startswith(".")]
    read = [each for folder in folders for each in _read_model(folder)]
    models = {each.name: each for each in read if isinstance(each, Model)}
    problems = [each for each in read if isinstance(each, Finding)]
    if not read:
        problems.append(found("no_models", repository))
    names = frozenset(each.name for each in folders)
    base = Facts(launch, names, models, tuple(problems))
    return [_with_engine(base, each) for each in base.playing("tensorrt_llm", "llmapi")] or [base]


def _read_model(folder: Path) -> Iterator[Model | Finding]:
    from google.protobuf import text_format  # with tritonclient 0.2 s to import
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    file = folder / "config.pbtxt"
    try:
        text = file.read_text(encoding="utf-8")
        blanks = _open_placeholders(text)
        for name, line in blanks.items():
            yield found("placeholder", f"{file}:{line}", name=name)
        if blanks:
            return
        lists = text_format.Parse(text, _as_lists()())
        config = ModelConfig.FromString(lists.SerializeToString())  # the same on the wire
        inside = [*folder.glob("*"), *folder.glob("1/*")]
    except text_format.ParseError as error:
        yield found("unreadable", f"{file}:{error.GetLine() or 1}", problem=error)
        return
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        yield found("unreadable", file, problem=f"can't be read: {why}")
        return
    paths = frozenset(path.relative_to(folder).as_posix() for path in inside)
    inputs = {each.name for each in config.input}
    role = next((role for name, role in _ROLES.items() if name in inputs), "")
    if config.HasField("ensemble_scheduling"):
        role = "ensemble"
    elif "1/model.yaml" in paths and config.backend != "tensorrtllm":
        role = "llmapi"
    elif config.backend == "tensorrtllm":
        role = role or "tensorrt_llm"
    parameters = {key: each.string_value for key, each in sorted(config.parameters.items())}
    yield Model(folder.name, file, text, paths, role, config, parameters, _repeated(lists))


@cache
def _as_lists() -> Any:
    """Triton's ModelConfig with its maps as lists of entries, which keep a key that comes again."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from tritonclient.grpc.model_config_pb2 import DESCRIPTOR

    file = descriptor_pb2.FileDescriptorProto()
    DESCRIPTOR.CopyToProto(file)
    messages = [*file.message_type]
    for message in messages:
        message.options.ClearField("map_entry")
        messages += message.nested_type
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def _repeated(config: Any) -> tuple[str, ...]:
    steps = config.ensemble_scheduling.step
    lists = [config.parameters, *[each.input_map for each in steps]]
    counts = [Counter(entry.key for entry in entries) for entries in lists]
    return tuple(sorted({key for each in counts for key, count in each.items() if count > 1}))


def _open_placeholders(text: str) -> dict[str, int]:
    """The first line of each ``${…}`` outside of quotes and comments."""
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        for name in _PLACEHOLDER.findall(_QUOTED.sub("", line)):
            lines.setdefault(name, number)
    return lines


def _with_engine(facts: Facts, llm: Model) -> Facts:
    path = facts.launch.engine or llm.get("gpt_model_path")
    try:
        if llm.role == "llmapi":
            llm, engine = _read_llmapi(llm)
            path = llm.file
        elif path is None:
            return replace(facts, llm=llm)
        else:
            engine = read_engine(Path(path))
    except UserError as error:
        problem = found("no_engine", llm.at("gpt_model_path"), problem=error)
        return replace(facts, llm=llm, unreadable=(*facts.unreadable, problem))
    release = _release(engine.version)
    return replace(facts, llm=llm, engine=engine, place=str(path), release=release)


def _release(version: str) -> Release | None:
    """What is known of an engine's release."""
    try:
        return load_release(release_of(version))
    except UserError:
        return None


def _read_llmapi(model: Model) -> tuple[Model, EngineConfig]:
    """The arguments of ``LLM()`` as the engine, and the parameters, that they stand for."""
    file = model.file.parent / "1" / "model.yaml"
    try:
        text = file.read_text(encoding="utf-8")
        said = parse_yaml(text)
        cache = dict(said.get("kv_cache_config") or {})
        tp, pp = (int(said.get(f"{way}_parallel_size") or 1) or 1 for way in ("tensor", "pipeline"))
        source = str(said["model"])
        absent = source.startswith(("/", ".", "${")) and not Path(source).is_dir()
    except _UNREADABLE as error:
        why = getattr(error, "problem", None) or repr(error)  # PyYAML's repr says nothing
        raise UserError(f"can't be read as arguments of LLM(): {why}", where=file) from None
    if absent:
        raise UserError(f"there is no model {source}", where=file)
    parameters = {
        "max_tokens_in_paged_kv_cache": str(cache.get("max_tokens") or ""),
        "kv_cache_free_gpu_mem_fraction": str(cache.get("free_gpu_memory_fraction") or ""),
    }
    engine = EngineConfig("", tp * pp, tp, pp, 0, True, {**said, "plugin_config": cache}, {})
    return replace(model, file=file, text=text, parameters=parameters), engine
