"""What one TensorRT-LLM release expects, as data: its models' tensors, its commands' flags.

In: the name of a release. Out: a frozen ``Release`` read from ``releases/<name>.yaml``. It knows
nothing of a cell, a template or a machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import groupby
from pathlib import Path
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
    serve: Mapping[str, Any] = field(default_factory=dict)
    """trtllm-serve: its ``flags``, and the names of ``options`` in its file by what they are inside
    of; ``limits_too`` is where it wants the limits again"""
    interpolated: str = ""
    """what is taken from its neighbours, for want of its sources; empty: all is its own"""

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


def release_files() -> Path:
    """The folder of the release files."""
    return Path(str(resources.files("trtllm_deploy") / "releases"))


def release_names() -> tuple[str, ...]:
    """The releases there is data for, the oldest first."""
    return tuple(sorted((each.stem for each in release_files().glob("*.yaml")), key=release_number))


def release_number(version: str) -> tuple[int, ...]:
    """``1.2`` as (1, 2, 0), by which releases are ordered; what follows (``rc3``) is left out."""
    match = re.match(r"[0-9]{1,6}(\.[0-9]{1,6}){0,2}(?![0-9])", version)
    if match is None:
        raise UserError(
            f"{version!r} is no TensorRT-LLM release", fix=f"known are {', '.join(release_names())}"
        )
    parts = [int(part) for part in match[0].split(".")]
    return (*parts, 0, 0)[:3]


def same_release(version: str, release: str) -> bool:
    """Whether ``1.2.1`` or ``1.2.0rc3`` is of the release ``1.2``."""
    return re.match(re.escape(release) + r"(?![0-9])", version) is not None


def spans(names: Iterable[str]) -> str:
    """Some of the releases in few words: ``0.12.0 to 0.15.0, 1.2``."""
    known, chosen = release_names(), set(names)
    runs = groupby(known, key=lambda name: name in chosen)
    groups = [list(run) for taken, run in runs if taken]
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in groups)


def release_of(version: str) -> str:
    """The release whose data is used for a version: its own, else the next lower one.

    Raises UserError: no version, or one before the first or past the last known release.
    """
    number, known = release_number(version), release_names()
    if own := [name for name in known if _is(version, name)]:
        return own[-1]
    lower = [name for name in known if release_number(name) < number]
    if not lower or len(lower) == len(known):
        raise UserError(
            f"there is no data for TensorRT-LLM {version}", fix=f"known are {', '.join(known)}"
        )
    return lower[-1]


def _is(version: str, release: str) -> bool:
    return same_release(version, release) or release_number(version) == release_number(release)


def stand_in(version: str) -> str | None:
    """The release whose data stands in for a version that there is none for; None: it has its own.

    Raises UserError as ``release_of`` does.
    """
    release = release_of(version)
    return None if _is(version, release) else release


@cache
def load_release(name: str) -> Release:
    """The data of one release, or for a version between two known ones that of the lower.

    Then ``interpolated`` says so. Raises UserError as ``release_of`` does.
    """
    data, other = read_release(release_of(name)), stand_in(name)
    return Release(
        name=name,
        models={key: _model(key, value) for key, value in data["model_repository"].items()},
        commands={key: read_command(key, value) for key, value in data["commands"].items()},
        examples=data["examples"],
        all_models=data["all_models"],
        image=data["image"],
        backends=tuple(data["backends"]),
        cannot=frozenset(data.get("cannot", ())),
        defaults=data.get("defaults", {}),
        serve=data.get("serve", {}),
        interpolated=f"all is that of {other}" if other else data["interpolated"],
    )


GONE = "gone"
"""What a release file writes for an entry of the other release that it doesn't have."""


def read_release(name: str) -> dict[str, Any]:
    """A release file with what it takes from the release that it is ``as``.

    Mappings (tensors, parameters, flags) are taken entry by entry, all else whole. A command says
    of each flag that is gone what to write instead.
    """
    said = dict(load_data(f"releases/{name}.yaml"))
    if "as" not in said:
        return {**said, "interpolated": said.get("interpolated", "")}
    known = read_release(said["as"])
    gone = {
        command: {
            "instead": {
                flag: "remove it: it is gone"
                for flag, what in facts.get("flags", {}).items()
                if what == GONE and flag not in known["commands"][command].get("instead", {})
            }
        }
        for command, facts in said.get("commands", {}).items()
    }
    whole = _over(_over(known, {"commands": gone}), said)
    return {**whole, "interpolated": said.get("interpolated", "")}


def _over(known: Any, said: Any) -> Any:
    if not isinstance(known, Mapping) or not isinstance(said, Mapping):
        return said
    merged = {**known, **{key: _over(known.get(key), value) for key, value in said.items()}}
    return {key: value for key, value in merged.items() if value != GONE}


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
            Step(model, _named(step["input_map"]), _named(step["output_map"]))
            for model, step in data.get("steps", {}).items()
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
