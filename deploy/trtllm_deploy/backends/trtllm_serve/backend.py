"""Cells that trtllm-serve serves: the checkpoint as it is, and the settings as one YAML file.

Nothing is compiled. The folder that it is started on holds that file, ``server.json``, and a link
to the checkpoint under the model's name: trtllm-serve calls a model as its folder is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trtllm_deploy.backends.configured import ConfiguredServer
from trtllm_deploy.backends.jobs import RepositoryJob
from trtllm_deploy.backends.server import Cluster
from trtllm_deploy.backends.trtllm_serve.options import TABLE, has, mistakes, options
from trtllm_deploy.backends.trtllm_serve.server import TRTLLM_SERVE, serve_cluster
from trtllm_deploy.releases.release import load_release
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile

_NAME = "trtllm-serve"


class TrtllmServeBackend(ConfiguredServer):
    """Of the build flags, the limits hold here too; the rest is trtllm-build's alone."""

    server = TRTLLM_SERVE
    table = TABLE

    def refuse(self, file: DeploymentFile) -> None:
        """Raises UserError: an option that the release hasn't."""
        spec = file.deployment
        release = load_release(spec.release)
        lacks = f"{_NAME} of TensorRT-LLM {spec.release} has no"
        for name, option in TABLE["mapped"].items():
            if getattr(spec.triton, name) is not None and not has(release, option):
                raise file.error(("triton", name), f"{lacks} {option}", "remove it")
        for option, instead in mistakes(release, spec.options.get(_NAME, {})):
            where = ("options", _NAME, *option.split("."))
            raise file.error(where, f"{lacks} {option}", instead)

    def options(self, file: DeploymentFile, cell: Cell) -> dict[str, Any]:
        """The YAML file of a cell."""
        return options(file, cell)

    def make_repository(self, job: RepositoryJob) -> None:
        """The YAML file, ``server.json`` and the link."""
        (job.target / job.serving["model"]).symlink_to((job.engine_dir / "checkpoint").absolute())
        self.write(job, job.serving["options"], release=job.release)

    def cluster(self, release: str, cell: Cell) -> Cluster:
        """One process for each rank, in NVIDIA's image of the release."""
        return serve_cluster(release, cell.model, cell.world_size)

    def notes(self, file: DeploymentFile, cell: Cell) -> Iterator[str]:
        """What of the file means something else to trtllm-serve, or nothing."""
        spec, release = file.deployment, load_release(file.deployment.release)
        option = TABLE["limits"]["tokens_per_block"]
        if "tokens_per_block" in file.given_flags(cell) and not has(release, option):
            yield f"{_NAME} of {spec.release} has no {option}: blocks are of 32 tokens"
        yield from super().notes(file, cell)
        if len(spec.backend) > 1 and spec.triton.enable_kv_cache_reuse is None:
            yield f"enable_kv_cache_reuse isn't set: {_NAME} has it on; write it to have all alike"
