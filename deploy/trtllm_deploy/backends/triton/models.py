"""What is in a model repository, whatever tool made it: each config.pbtxt as Triton reads it.

In: a folder. Out: frozen values, and what keeps one from being read. Judges nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from llm_perf.errors import UserError
from trtllm_deploy.backends.engine_config import EngineConfig, read_engine
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
LLM_ROLES = ("tensorrt_llm", "llmapi")
"""Of the models that run an engine."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a model can't be read: a rule of preflight.yaml, and what fills its blanks."""

    rule: str
    where: str
    values: Mapping[str, object] = field(hash=False)


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


def model_folders(repository: Path) -> list[Path]:
    """The folders that Triton looks into, by name. Raises OSError: it can't be read."""
    entries = sorted(repository.iterdir())
    return [each for each in entries if each.is_dir() and not each.name.startswith(".")]


def read_model(folder: Path) -> Iterator[Model | Problem]:
    """The model of a folder, or what keeps it from being read."""
    from google.protobuf import text_format  # with tritonclient 0.2 s to import
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    file = folder / "config.pbtxt"
    try:
        text = file.read_text(encoding="utf-8")
        blanks = _open_placeholders(text)
        for name, line in blanks.items():
            yield Problem("placeholder", f"{file}:{line}", {"name": name})
        if blanks:
            return
        lists = text_format.Parse(text, _as_lists()())
        config = ModelConfig.FromString(lists.SerializeToString())  # the same on the wire
        inside = [*folder.glob("*"), *folder.glob("1/*")]
    except text_format.ParseError as error:
        yield Problem("unreadable", f"{file}:{error.GetLine() or 1}", {"problem": error})
        return
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        yield Problem("unreadable", str(file), {"problem": f"can't be read: {why}"})
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


def engine_of(
    llm: Model, path: Path | None = None
) -> tuple[Model, EngineConfig | None, Path | None]:
    """The engine of a model, in ``path`` or where the model says; and the model as that has it.

    None where it says nothing. Raises UserError: the engine can't be read.
    """
    said = path or llm.get("gpt_model_path")
    if llm.role == "llmapi":
        llm, engine = _read_llmapi(llm)
        return llm, engine, llm.file
    return (llm, read_engine(Path(said)), Path(said)) if said is not None else (llm, None, None)


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
