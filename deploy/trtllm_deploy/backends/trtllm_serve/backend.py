"""Cells that trtllm-serve serves: the checkpoint as it is, and the settings as one YAML file.

Nothing is compiled. The folder that it is started on holds that file, ``server.json``, and a link
to the checkpoint under the model's name: trtllm-serve calls a model as its folder is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import yaml

from trtllm_deploy.backends.jobs import RepositoryJob
from trtllm_deploy.backends.linked_engine import LinkedEngine, limits
from trtllm_deploy.backends.model_refusals import Configs, refuse_models
from trtllm_deploy.backends.refusals import refuse_gpus, refuse_without_hf
from trtllm_deploy.backends.server import SAID, Cluster
from trtllm_deploy.backends.trtllm_serve.options import TABLE, has, mistakes, options
from trtllm_deploy.backends.trtllm_serve.server import CONFIG, TRTLLM_SERVE, serve_cluster
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.machine.json_files import write_json
from trtllm_deploy.releases.release import load_release
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile

_NAME = "trtllm-serve"


class TrtllmServeBackend(LinkedEngine):
    """Of the build flags, the limits hold here too; the rest is trtllm-build's alone."""

    checkpoint_kind: Literal["trtllm", "hf"] = "hf"
    server = TRTLLM_SERVE
    splits_anywhere = False

    def check(
        self, file: DeploymentFile, cells: Sequence[Cell], gpus: Sequence[Gpu], configs: Configs
    ) -> None:
        """Refuse what the release's trtllm-serve wouldn't take, or would answer otherwise.

        Raises UserError: a checkpoint that it doesn't load, a setting that changes answers and has
        no counterpart, an option that the release hasn't or that this program gives itself.
        """
        refuse_without_hf(file, _NAME)
        spec = file.deployment
        release = load_release(spec.release)
        for name, able in TABLE["refused"].items():
            value = getattr(spec.triton, name)
            if value is not None and value not in able:
                raise file.error(("triton", name), f"{_NAME} has no {name} {value}", "remove it")
        for name, option in TABLE["mapped"].items():
            if getattr(spec.triton, name) is not None and not has(release, option):
                what = f"{_NAME} of TensorRT-LLM {spec.release} has no {option}"
                raise file.error(("triton", name), what, "remove it")
        given = spec.options.get(_NAME, {})
        for option in given:
            if option in TABLE["ours"]:
                what = "trtllm-deploy sets it"
                raise file.error(("options", _NAME, option), what, "remove it")
        for option, instead in mistakes(release, given):
            what = f"{_NAME} of TensorRT-LLM {spec.release} has no {option}"
            raise file.error(("options", _NAME, *option.split(".")), what, instead)
        refuse_gpus(file, cells, gpus)
        refuse_models(file, configs, self.checkpoint_kind)

    def build_config(self, file: DeploymentFile, cell: Cell) -> Mapping[str, Any]:
        """The limits."""
        return limits(file, cell)

    def serving(self, file: DeploymentFile, cell: Cell) -> Mapping[str, Any]:
        """The YAML file of a cell, and the name that clients use."""
        return {
            "model": cell.model,
            "world_size": cell.world_size,
            "options": options(file, cell),
        }

    def make_repository(self, job: RepositoryJob) -> None:
        """The YAML file, ``server.json`` and the link."""
        text = yaml.safe_dump(job.serving["options"], sort_keys=False)
        (job.target / CONFIG).write_text(text, encoding="utf-8")
        (job.target / job.serving["model"]).symlink_to((job.engine_dir / "checkpoint").absolute())
        known = {name: job.serving[name] for name in ("model", "world_size")}
        write_json(job.target / SAID, {"server": _NAME, "release": job.release, **known})

    def cluster(self, release: str, cell: Cell) -> Cluster:
        """One process for each rank, in NVIDIA's image of the release."""
        return serve_cluster(release, cell.model, cell.world_size)

    def notes(self, file: DeploymentFile, cell: Cell) -> Iterator[str]:
        """What of the file means something else to trtllm-serve, or nothing."""
        spec, release = file.deployment, load_release(file.deployment.release)
        option = TABLE["limits"]["tokens_per_block"]
        if "tokens_per_block" in file.given_flags(cell) and not has(release, option):
            yield f"{_NAME} of {spec.release} has no {option}: blocks are of 32 tokens"
        if lost := sorted({*spec.build, *dict(cell.build)} - {*TABLE["limits"], "max_input_len"}):
            yield f"{_NAME} has no counterpart of the build flags {', '.join(lost)}"
        if len(spec.backend) > 1 and spec.triton.enable_kv_cache_reuse is None:
            yield f"enable_kv_cache_reuse isn't set: {_NAME} has it on; write it to have all alike"
