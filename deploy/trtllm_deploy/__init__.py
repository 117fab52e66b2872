"""From one deployment file to TensorRT-LLM checkpoints, engines, Triton repositories, servers.

What this module names is public, the rest isn't.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from llm_perf import __version__

if TYPE_CHECKING:
    from trtllm_deploy.machine.ports import Ports, free_ports
    from trtllm_deploy.releases.release import Release, load_release, release_names
    from trtllm_deploy.serve.launch import ModelServer
    from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile, load_deployment
    from trtllm_deploy.workspace.folder import Workspace

__all__ = [
    "Cell",
    "DeploymentFile",
    "ModelServer",
    "Ports",
    "Release",
    "Workspace",
    "__version__",
    "free_ports",
    "load_deployment",
    "load_release",
    "release_names",
]

_HOMES: Final = {
    "Cell": "spec.deployment_file",
    "DeploymentFile": "spec.deployment_file",
    "Ports": "machine.ports",
    "Release": "releases.release",
    "ModelServer": "serve.launch",
    "Workspace": "workspace.folder",
    "free_ports": "machine.ports",
    "load_deployment": "spec.deployment_file",
    "load_release": "releases.release",
    "release_names": "releases.release",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used: ``--help`` needs none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"trtllm_deploy.{_HOMES[name]}"), name)
