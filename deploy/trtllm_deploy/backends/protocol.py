"""The seam between a cell and what serves it: one protocol.

A backend says what checkpoint it takes, what its engine is, how that is made, and what folder a
server is started on. It knows nothing of the store or of other cells; nothing else asks which one
it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from trtllm_deploy.backends.jobs import EngineJob, RepositoryJob
from trtllm_deploy.backends.model_refusals import Configs
from trtllm_deploy.backends.server import Cluster, Kind
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile


class Backend(Protocol):
    """One way to turn a checkpoint into something that serves."""

    checkpoint_kind: Literal["trtllm", "hf"]
    compiles: bool
    """an engine is built on the GPUs that will serve it, and is for their kind only"""
    server: Kind
    """what is started on the folder that it makes"""
    splits_anywhere: bool = False
    """it splits prompts over steps at any token, without being told"""
    sizes_pool_otherwise: bool = False
    """its share of GPU memory has another base, so that a KV cache is given to it in tokens"""

    def check(
        self, file: DeploymentFile, cells: Sequence[Cell], gpus: Sequence[Gpu], configs: Configs
    ) -> None:
        """Refuse what can't work, before anything is made. Raises UserError with line and fix."""

    def settings(
        self,
        file: DeploymentFile,  # noqa: ARG002
        cell: Cell,  # noqa: ARG002
        config: Mapping[str, Any],  # noqa: ARG002
    ) -> Mapping[str, Any]:
        """``triton:`` settings that follow from the model's config.json; none by default."""
        return {}

    def build_config(self, file: DeploymentFile, cell: Cell) -> Mapping[str, Any]:
        """What an engine is made with; part of its key."""

    def command(self, job: EngineJob) -> tuple[str, ...] | None:
        """The command line that makes the engine; None where no process is needed."""

    def make_engine(self, job: EngineJob, log_file: Path, on_line: Callable[[str], None]) -> None:
        """Fill ``job.target`` with the engine and check it. Raises UserError."""

    def make_repository(self, job: RepositoryJob) -> None:
        """Fill ``job.target`` with what a server is started on. Raises UserError.

        Without its cell, :mod:`trtllm_deploy.backends.servers` tells the kind from the folder.
        """

    def serving(self, file: DeploymentFile, cell: Cell) -> Mapping[str, Any]:  # noqa: ARG002
        """What a server is started with beside the ``triton:`` settings; part of a folder's key."""
        return {}

    def notes(self, file: DeploymentFile, cell: Cell) -> Iterator[str]:  # noqa: ARG002
        """What of the file means something else to this server, or nothing: sentences."""
        yield from ()

    def cluster(self, release: str, cell: Cell) -> Cluster:
        """The server as a scheduler starts it. Raises UserError: none is needed for it."""
