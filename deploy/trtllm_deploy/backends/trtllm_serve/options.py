"""The YAML file of trtllm-serve: what a cell's settings are there, and what a release takes.

Pure: a deployment file and a release's list of options in, nested settings or what is wrong out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from trtllm_deploy.backends.linked_engine import limits
from trtllm_deploy.machine.data import load_data
from trtllm_deploy.releases.release import Release, load_release
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile

TABLE: Mapping[str, Any] = load_data("backends/trtllm_serve/settings.yaml")


def options(file: DeploymentFile, cell: Cell) -> dict[str, Any]:
    """What the YAML file says of a cell; ``options:`` of the deployment file come last.

    A release whose class of arguments checks the limits against a BuildConfig that the command
    line fills (``limits_too``) is told them there as well: its default of max_num_tokens would
    refuse a larger one.
    """
    spec = file.deployment
    release, known = load_release(spec.release), limits(file, cell)
    said: dict[str, Any] = {}
    for name, option in TABLE["limits"].items():
        if known[name] is not None and has(release, option):
            _put(said, option, known[name])
    _put(said, "cuda_graph_config.max_batch_size", known["max_batch_size"])
    for option, value in TABLE["always"].items():
        if has(release, option):
            _put(said, option, value)
    for name, option in TABLE["mapped"].items():
        value = getattr(spec.triton, name)
        if value is not None:
            _put(said, option, _spelt(name, value))
    if spec.models[cell.model].trust_remote_code:
        said["trust_remote_code"] = True
    said = _over(said, spec.options.get("trtllm-serve", {}))
    if too := release.serve.get("limits_too"):
        said[too] = {name: said[name] for name in _LIMITS if said.get(name) is not None}
    return said


_LIMITS = ("max_batch_size", "max_num_tokens", "max_seq_len", "max_beam_width")


def mistakes(release: Release, said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each name that the release's trtllm-serve doesn't take, and what to write instead."""
    groups = release.serve["options"]
    for name, value in said.items():
        known = str(groups[""]).split()
        if name not in known:
            yield name, _instead(name, known)
        elif name in groups and isinstance(value, Mapping):
            inside = str(groups[name]).split()
            yield from (
                (f"{name}.{key}", _instead(key, inside)) for key in value if key not in inside
            )


def has(release: Release, option: str) -> bool:
    """Whether a release's trtllm-serve takes an option, dotted."""
    first, _, rest = option.partition(".")
    groups: Mapping[str, str] = release.serve["options"]
    return first in groups[""].split() and (not rest or rest in groups.get(first, "").split())


def _instead(name: str, known: list[str]) -> str:
    if name in TABLE["formerly"]:
        return f"write {TABLE['formerly'][name]}"
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else "remove it"


def _spelt(name: str, value: Any) -> Any:
    if name == "max_attention_window_size":
        return [int(each) for each in str(value).split(",")]
    return value.upper() if name == "batch_scheduler_policy" else value


def _put(said: dict[str, Any], option: str, value: Any) -> None:
    first, _, rest = option.partition(".")
    if rest:
        said[first] = {**said.get(first, {}), rest: value}
    else:
        said[first] = value


def _over(known: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others over them, those inside others one by one."""
    both = {
        name: _over(known[name], value)
        for name, value in said.items()
        if isinstance(value, Mapping) and isinstance(known.get(name), Mapping)
    }
    return {**known, **said, **both}
