"""Settings that ``set`` changed for one cell, in place of those in the file's ``triton:`` block.

In: ``KEY=VALUE`` as typed, or what the workspace kept. Out: values by key, and the deployment file
as it is for that cell, both checked as the file is. Knows nothing of plans and servers.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from llm_perf.errors import UserError
from trtllm_deploy.releases.release import load_release
from trtllm_deploy.spec.deployment_file import DeploymentFile
from trtllm_deploy.spec.located import Located, first_error, parse_yaml
from trtllm_deploy.spec.schema import Deployment, ModelSpec
from trtllm_deploy.spec.settings import TritonSettings, lacking

_SHOWN = 200  # characters of a value


def parse_changes(words: Sequence[str], file: DeploymentFile) -> dict[str, Any]:
    """Values by key; None where the file's own shall hold again.

    Raises UserError: no such key (with the nearest), one that is built in, or no value.
    """
    changes = {}
    for word in words:
        key, equals, text = word.partition("=")
        if key not in TritonSettings.model_fields:
            raise _not_a_setting(key, file)
        if not equals:
            raise UserError(f"{word!r} has no value", fix=f"write {key}=VALUE, or {key}= to reset")
        try:
            changes[key] = parse_yaml(text)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise UserError(f"{key}: can't read the value {text[:_SHOWN]!r}") from None
    return changes


def _not_a_setting(key: str, file: DeploymentFile) -> UserError:
    flags = load_release(file.deployment.release).commands["trtllm-build"].flags
    if key not in flags and key not in {*Deployment.model_fields, *ModelSpec.model_fields}:
        near = difflib.get_close_matches(key, TritonSettings.model_fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see 'triton' in docs/reference.md"
        return UserError(f"unknown key {key!r}", fix=hint)
    line = next((at for path, at in file.located.lines.items() if key in path[-1:]), None)
    where = "there" if line or key not in flags else "under 'build:'"
    return UserError(
        f"{key} is built into the cell, so it can't be set afterwards",
        where=file.path,
        line=line,
        fix=f"change it {where} and run 'trtllm-deploy build'",
    )


def overridden(
    file: DeploymentFile, changed: Mapping[str, Any], where: Path | None = None
) -> DeploymentFile:
    """The file with some of its triton settings changed; ``where`` the changes are kept.

    Raises UserError: a value of the wrong type or range, or a key that the release lacks.
    """
    if not changed:
        return file
    given = {**(file.located.value.get("triton") or {}), **changed}
    try:
        settings = TritonSettings.model_validate(given)
    except ValidationError as error:
        raise first_error(Located(file.path, given, {}), error, TritonSettings, where) from None
    for key, wrong in lacking(settings, file.deployment.release):
        raise UserError(f"{key}: {wrong}", where=where, fix="reset it: trtllm-deploy set … KEY=")
    return replace(file, deployment=file.deployment.model_copy(update={"triton": settings}))


def shown(changed: Mapping[str, Any]) -> list[str]:
    """What was changed, as ``set`` takes it."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changed.items()]
