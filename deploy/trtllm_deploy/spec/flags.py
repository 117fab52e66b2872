"""What ``build:`` sets and the matrix varies: flags and settings that the release has.

In: a deployment file as read. Raises UserError with the line of what is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trtllm_deploy.releases.release import load_release, release_names, spans
from trtllm_deploy.spec.located import KeyPath, Located, first_error
from trtllm_deploy.spec.settings import TritonSettings, lacking
from trtllm_deploy.spec.values import as_list, unique

if TYPE_CHECKING:
    from trtllm_deploy.spec.deployment_file import DeploymentFile

_OURS = {
    *("checkpoint_dir", "output_dir", "model_config", "build_config", "model_cls_file"),
    *("model_cls_name", "input_timing_cache", "output_timing_cache", "workers", "dry_run"),
    "visualize_network",
}
"""Flags that this program gives trtllm-build itself."""


def check_flags(file: DeploymentFile) -> None:
    """Every flag, of ``build:`` and of the matrix, is one that the release's trtllm-build takes."""
    spec = file.deployment
    varied = spec.matrix.model_extra or {}
    given: list[tuple[KeyPath, Any]] = [
        (("build", key), value) for key, value in spec.build.items()
    ]
    for flag, values in varied.items():
        try:
            unique(as_list(values))
        except ValueError as error:
            raise file.error(("matrix", flag), str(error)) from None
        if file.is_serving(flag):
            _check_serving(file, flag, as_list(values))
            continue
        if flag in spec.build:
            raise file.error(("matrix", flag), "stands in 'build:' too", "keep one of them")
        given += [(("matrix", flag), value) for value in as_list(values)]
    command = load_release(spec.release).commands["trtllm-build"]
    for key, value in given:
        flag = str(key[-1])
        if flag in _OURS:
            raise file.error(key, "trtllm-deploy sets it", "remove it")
        wrong = command.mistake(flag, value)
        if wrong:
            what, fix = wrong
            others = [name for name in release_names() if _takes(name, flag, value)]
            also = f" (TensorRT-LLM {spans(others)} takes it)" if others else ""
            raise file.error(key, f"TensorRT-LLM {spec.release}: {what}{also}", fix)


def _check_serving(file: DeploymentFile, name: str, values: list[Any]) -> None:
    """Every value that the matrix has for a setting is one that ``triton:`` takes."""
    key, said = ("matrix", name), file.deployment.triton.model_fields_set
    if name in said:
        raise file.error(key, "stands in 'triton:' too", "keep one of them")
    for value in values:
        if not isinstance(value, (str, int, float)):
            raise file.error(key, f"{value!r} isn't one value", "write a list of single values")
        given = {**(file.located.value.get("triton") or {}), name: value}
        try:
            settings = TritonSettings.model_validate(given)
        except ValidationError as error:
            located = Located(file.path, given, {(name,): file.located.lines[key]})
            raise first_error(located, error, TritonSettings, file.path) from None
        for each, wrong in lacking(settings, file.deployment.release):
            if each == name:
                raise file.error(key, wrong, "remove it")


def _takes(release: str, flag: str, value: Any) -> bool:
    return load_release(release).commands["trtllm-build"].mistake(flag, value) is None
