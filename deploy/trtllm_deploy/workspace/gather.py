"""What a plan depends on beside the deployment file: sources, data, tools, templates, GPUs.

Here disk, network and nvidia-smi are asked; the answers are values.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.fetch import Source, resolve_folder, resolve_hub
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.plan.plan import Facts
from trtllm_deploy.releases.release import load_release
from trtllm_deploy.backends.repository import templates_digest
from trtllm_deploy.plan.shape import model_shapes
from trtllm_deploy.spec.deployment_file import DeploymentFile
from trtllm_deploy.workspace.folder import Workspace

_TOOLS = ("nvidia-modelopt", "transformers", "torch")


def gather(
    file: DeploymentFile,
    workspace: Workspace,
    gpus: tuple[Gpu, ...] = (),
    *,
    offline_ok: bool = False,
) -> Facts:
    """Look up what the plan depends on; ``gpus`` are those that stages will run on.

    ``offline_ok`` lets hub ids stay unresolved when the hub can't be reached, as a plan may. Raises
    UserError: a source can't be resolved.
    """
    spec = file.deployment
    return Facts(
        sources={name: _resolve(file, name, workspace, offline_ok) for name in spec.models},
        calibration_digest=_identity(file.calibration_data()),
        tools={name: _version(name) for name in _TOOLS},
        templates_digest=templates_digest(load_release(spec.release)),
        workspace=workspace.root,
        gpus=gpus,
        shapes=model_shapes(file),
        overrides=workspace.overrides,
    )


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
        return "not installed"
