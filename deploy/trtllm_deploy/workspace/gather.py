"""What a plan depends on beside the deployment file: sources, data, tools, templates, GPUs.

Here disk, network and nvidia-smi are asked; the answers are values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from llm_perf.errors import UserError
from trtllm_deploy.backends.repository import templates_digest
from trtllm_deploy.checkpoint.fetch import Source, resolve_folder, resolve_hub
from trtllm_deploy.checkpoint.hub import UnreachableError, hub_config
from trtllm_deploy.checkpoint.source_files import model_config
from trtllm_deploy.checkpoint.trtllm_format import CONFIG
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.machine.json_files import read_json_object
from trtllm_deploy.plan.plan import Facts, fetched_from
from trtllm_deploy.releases.release import load_release
from trtllm_deploy.spec.deployment_file import DeploymentFile
from trtllm_deploy.store.store import content_key
from trtllm_deploy.store.store import content_key
from trtllm_deploy.workspace.folder import Workspace

_ABSENT = "not installed"
_TOOLS = ("nvidia-modelopt", "transformers", "torch")


def gather(
    file: DeploymentFile,
    workspace: Workspace,
    gpus: tuple[Gpu, ...] = (),
    *,
    offline_ok: bool = False,
    as_made: bool = False,
) -> Facts:
    """Look up what the plan depends on; ``gpus`` are those that stages will run on.

    ``offline_ok`` lets hub ids stay unresolved when the hub can't be reached, as a plan may. With
    ``as_made``, and where a tool isn't installed, checkpoints that are there count whatever tools
    they were made with. Raises UserError: a source can't be resolved.
    """
    spec = file.deployment
    tools = {name: _version(name) for name in _TOOLS}
    as_made = as_made or _ABSENT in tools.values()
    sources = {name: _resolve(file, name, workspace, offline_ok) for name in spec.models}
    configs, unjudged = _configs(file, sources, workspace, offline_ok)
    return Facts(
        sources=sources,
        calibration_digest=_identity(file.calibration_data()),
        tools=tools,
        templates_digest=templates_digest(load_release(spec.release)),
        workspace=workspace.root,
        gpus=gpus,
        configs=configs,
        unjudged=unjudged,
        overrides=workspace.overrides,
        made_with=_made_with(workspace, tools) if as_made else {},
    )


def _made_with(
    workspace: Workspace, ours: Mapping[str, str]
) -> dict[str, Mapping[str, str]]:
    """Tools of the checkpoints that are there, by the key of all else: our own, or the newest."""
    made = sorted(workspace.store.manifests("checkpoint"), key=lambda each: each["created"])
    found: dict[str, Mapping[str, str]] = {}
    for made_from in (dict(each["made_from"]) for each in made):
        tools = made_from.pop("tools")
        key = content_key(made_from)
        if found.get(key) != ours:
            found[key] = tools
    return found


def _resolve(file: DeploymentFile, name: str, workspace: Workspace, offline_ok: bool) -> Source:
    model = file.deployment.models[name]
    folder = file.resolve(model.source)
    memory = workspace.root / "store" / "fetch"
    if folder.is_dir():
        return resolve_folder(folder, model.trust_remote_code, memory / "digests.json")
    try:
        return resolve_hub(model.source, model.revision, memory / "commits.json", offline_ok)
    except UserError as error:
        nowhere = f"there is no folder {folder}, and as a Hugging Face id: {error}"
        raise file.error(("models", name, "source"), nowhere) from None


def _configs(
    file: DeploymentFile, sources: Mapping[str, Source], workspace: Workspace, offline_ok: bool
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """config.json by model name; and why it isn't known: no hub, or what a plan can do without."""
    found: dict[str, dict[str, Any]] = {}
    unknown: dict[str, str] = {}
    for name, source in sources.items():
        try:
            found[name] = _config(file, name, source, workspace)
        except UserError as error:
            if not offline_ok and not isinstance(error, UnreachableError):
                raise file.error(("models", name, "source"), str(error)) from None
            unknown[name] = str(error)
    return found, unknown


def _config(
    file: DeploymentFile, name: str, source: Source, workspace: Workspace
) -> dict[str, Any]:
    """From a local folder, ``shape:``, what was fetched before, or the hub; no weights are moved.

    Raises UserError: it can't be read, or isn't there; UnreachableError: the hub isn't.
    """
    shape = file.deployment.models[name].shape
    fetched = workspace.store.path("fetch", content_key(fetched_from(file, source, name)))
    if source.folder is not None:
        return model_config(source.folder)
    if shape is not None:
        return read_json_object(file.resolve(shape))
    if (fetched / CONFIG).is_file():
        return model_config(fetched)
    if source.unresolved:
        raise UnreachableError("the Hugging Face hub can't be reached")
    return hub_config(source.identity["repo"], source.identity["commit"])


def _identity(data: Path | str) -> str:
    """The SHA-256 of a file, or of a folder's files; the name of a data set on the hub."""
    if isinstance(data, str):
        return f"hub:{data}"
    digest = hashlib.sha256()
    for path in sorted(data.rglob("*")) if data.is_dir() else [data]:
        if path.is_file():
            digest.update(f"{path.relative_to(data)}\0".encode() if data.is_dir() else b"")
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return _ABSENT
