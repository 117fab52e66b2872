"""What one TensorRT-LLM release expects, as data: its models' tensors, its commands' flags.

In: the name of a release. Out: a frozen ``Release`` read from ``releases/<name>.yaml``. It knows
nothing of a cell, a template or a machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from llm_perf.errors import UserError
from trtllm_deploy.machine.data import load_data
from trtllm_deploy.releases.commands import Command, read_command

_TENSOR = re.compile(
    r"(?P<dtype>TYPE_\w+|\$\{\w+\})\[(?P<dims>[-\d, ]+)\](?P<marks>( optional| reshape| ragged)*)"
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of a Triton model.

    ``dtype`` is a Triton data type, or ``${setting}`` where the release leaves it open. ``dims``
    are without the batch dimension. ``reshape`` stands for ``reshape { shape: [] }``.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    optional: bool = False
    reshape: bool = False
    ragged: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an ensemble: model tensor → ensemble tensor, for inputs and for outputs."""

    model: str
    input_map: Mapping[str, str]
    output_map: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TritonModel:
    """One model of the repository.

    ``parameters`` maps a config parameter to the setting that fills it, ``constants`` to its fixed
    value; ``settings`` are the settings that fill other fields of the config. Of the parameters
    the ``required`` ones are read without a default: a model that lacks one doesn't load.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, str]
    constants: Mapping[str, str]
    settings: frozenset[str]
    dynamic_batching: bool = False
    """whether Triton may batch requests, without a setting that says how"""
    steps: tuple[Step, ...] = ()
    required: frozenset[str] = frozenset()

    def takes(self, setting: str) -> bool:
        """Whether this model's config has a place for the setting."""
        return setting in self.settings or setting in self.parameters.values()


@dataclass(frozen=True, slots=True)
class Release:
    """The facts about one TensorRT-LLM release."""

    name: str
    models: Mapping[str, TritonModel]
    commands: Mapping[str, Command]
    examples: str
    """where its container has the scripts"""
    all_models: str
    """where its container has Triton's models"""
    image: str
    """NVIDIA's container with it and Triton"""
    backends: tuple[str, ...]
    cannot: frozenset[str]
    defaults: Mapping[str, Any]
    """what settings are where they aren't set, as far as releases differ in that"""

    def script(self, command: str) -> str:
        """Path of a command's script; ``TRTLLM_EXAMPLES`` says where the examples folder is.

        Raises UserError: the release has no such script.
        """
        found = self.commands.get(command)
        if found is None or found.script is None:
            raise UserError(f"TensorRT-LLM {self.name} has no script for {command}")
        return f"{os.environ.get('TRTLLM_EXAMPLES', self.examples).rstrip('/')}/{found.script}"

    def llmapi_model(self) -> str:
        """Path of Triton's llmapi model; ``TRTLLM_ALL_MODELS`` says where all_models is."""
        root = os.environ.get("TRTLLM_ALL_MODELS", self.all_models)
        return f"{root.rstrip('/')}/llmapi/tensorrt_llm"


def release_names() -> tuple[str, ...]:
    """The releases there is data for, in alphabetical order."""
    names = (each.name for each in (resources.files("trtllm_deploy") / "releases").iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def same_release(version: str, release: str) -> bool:
    """Whether ``1.2.1`` or ``1.2.0rc3`` is of the release ``1.2``."""
    return re.match(re.escape(release) + r"(?![0-9])", version) is not None


@cache
def load_release(name: str) -> Release:
    """The data of one release. Raises UserError for a release there is none for."""
    if name not in release_names():
        raise UserError(
            f"unknown TensorRT-LLM release {name!r}", fix=f"known are {', '.join(release_names())}"
        )
    data = load_data(f"releases/{name}.yaml")
    return Release(
        name=data["name"],
        models={key: _model(key, value) for key, value in data["model_repository"].items()},
        commands={key: read_command(key, value) for key, value in data["commands"].items()},
        examples=data["examples"],
        all_models=data["all_models"],
        image=data["image"],
        backends=tuple(data["backends"]),
        cannot=frozenset(data.get("cannot", ())),
        defaults=data.get("defaults", {}),
    )


def _model(name: str, data: Mapping[str, Any]) -> TritonModel:
    return TritonModel(
        name=name,
        inputs=tuple(tensor(key, text) for key, text in data["inputs"].items()),
        outputs=tuple(tensor(key, text) for key, text in data["outputs"].items()),
        parameters=_named(data.get("parameters", {})),
        constants=data.get("constants", {}),
        settings=frozenset(data["settings"]),
        dynamic_batching=data.get("dynamic_batching", False),
        steps=tuple(
            Step(step["model"], _named(step["input_map"]), _named(step["output_map"]))
            for step in data.get("steps", ())
        ),
        required=frozenset(data.get("required", ())),
    )


def _named(names: Mapping[str, str | None]) -> Mapping[str, str]:
    """What each name stands for: itself where nothing is written."""
    return {name: other or name for name, other in names.items()}


def tensor(name: str, text: str) -> Tensor:
    """Read ``TYPE_INT32[-1, 3] optional ragged``, the release files' way to write a tensor."""
    match = _TENSOR.fullmatch(text)
    if match is None:
        raise ValueError(f"tensor {name}: cannot read {text!r}")
    marks = match["marks"].split()
    return Tensor(
        name=name,
        dtype=match["dtype"],
        dims=tuple(int(dim) for dim in match["dims"].split(",")),
        optional="optional" in marks,
        reshape="reshape" in marks,
        ragged="ragged" in marks,
    )
