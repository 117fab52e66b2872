"""Cells that vLLM serves: the checkpoint as it is, and the settings as its options.

Nothing is compiled. The folder that it is started on holds ``vllm.yaml``, options as ``vllm serve
--config`` reads them, and ``server.json``. How settings correspond is told in settings.yaml.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trtllm_deploy.backends.configured import OTHERWISE, ConfiguredServer
from trtllm_deploy.backends.jobs import RepositoryJob
from trtllm_deploy.backends.linked_engine import limits
from trtllm_deploy.backends.server import Cluster
from trtllm_deploy.backends.vllm.server import VLLM, vllm_cluster
from trtllm_deploy.machine.data import load_data
from trtllm_deploy.releases.release import load_release
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile
from trtllm_deploy.spec.precision import PRECISIONS

_TABLE: Mapping[str, Any] = load_data("backends/vllm/settings.yaml")


class VllmBackend(ConfiguredServer):
    """Of the build flags, the limits hold here too; the rest is trtllm-build's alone."""

    server = VLLM
    table = _TABLE
    splits_anywhere = True
    sizes_pool_otherwise = True

    def refuse(self, file: DeploymentFile) -> None:
        """Raises UserError: a precision, or a KV cache's, that it has no kernels for."""
        spec = file.deployment
        for precision in spec.precisions:
            algo, cache = PRECISIONS[precision].quant_algo, spec.kv_cache_dtype.get(precision)
            if algo is not None and algo not in _TABLE["quant_algos"]:
                what = f"vllm loads no {algo} that modelopt wrote"
                raise file.error(("precisions",), f"{precision}: {what}", OTHERWISE)
            if cache is not None and cache not in _TABLE["kv_cache_dtypes"]:
                what = f"vllm has no KV cache of {cache}"
                raise file.error(("kv_cache_dtype", precision), what, OTHERWISE)

    def options(self, file: DeploymentFile, cell: Cell) -> dict[str, Any]:
        """What ``vllm serve`` is told, as its --config has it; those of ``options:`` come last.

        An option that is off is written ``no-NAME: true``: not all releases read ``NAME: false``.
        """
        known, triton = limits(file, cell), file.deployment.triton
        said: dict[str, Any] = {
            option: known[name]
            for name, option in _TABLE["limits"].items()
            if known[name] is not None
        }
        for name, told in _TABLE["mapped"].items():
            value = getattr(triton, name)
            if value is not None:
                said[told["option"]] = (
                    value // known["tokens_per_block"] if "in_blocks" in told else value
                )
        if file.deployment.models[cell.model].trust_remote_code:
            said["trust-remote-code"] = True
        said |= file.deployment.options.get("vllm", {})
        return {
            f"no-{option}" if value is False else option: True if value is False else value
            for option, value in said.items()
            if value is not None
        }

    def serving(self, file: DeploymentFile, cell: Cell) -> Mapping[str, Any]:
        """Also the settings that are left out."""
        left_out = sorted(file.deployment.triton.model_fields_set & _TABLE["left_out"].keys())
        return {**super().serving(file, cell), "left_out": left_out}

    def make_repository(self, job: RepositoryJob) -> None:
        """``vllm.yaml`` and ``server.json``."""
        said = {
            "served-model-name": job.serving["model"],
            "tokenizer": str(job.tokenizer_dir.absolute()),
            **job.serving["options"],
        }
        checkpoint = str((job.engine_dir / "checkpoint").absolute())
        self.write(job, said, left_out=job.serving["left_out"], checkpoint=checkpoint)

    def cluster(self, release: str, cell: Cell) -> Cluster:  # noqa: ARG002
        """One process on one node, which starts its ranks itself."""
        return vllm_cluster()

    def notes(self, file: DeploymentFile, cell: Cell) -> Iterator[str]:
        """What of the file means something else to vLLM, or nothing."""
        spec = file.deployment
        for name in sorted(spec.triton.model_fields_set & _TABLE["left_out"].keys()):
            yield f"vLLM has no counterpart of {name}: {_TABLE['left_out'][name]}"
        yield from super().notes(file, cell)
        if len(spec.backend) > 1:
            yield from _unlike(file)


def _unlike(file: DeploymentFile) -> Iterator[str]:
    """What differs from TensorRT-LLM where the file says nothing."""
    triton, release = file.deployment.triton, file.deployment.release
    words = {True: "on", False: "off"}
    for name, told in _TABLE["mapped"].items():
        theirs, ours = bool(load_release(release).defaults.get(name)), told.get("default")
        if getattr(triton, name) is None and ours not in (None, theirs):
            yield (
                f"{name} isn't set: it is {words[theirs]} in TensorRT-LLM {release} and"
                f" {words[ours]} in vLLM; write it to have both alike"
            )
    if triton.max_tokens_in_paged_kv_cache is None:
        yield (
            "vLLM's KV cache is what its own --gpu-memory-utilization leaves, a share of all"
            " memory; write max_tokens_in_paged_kv_cache to have both alike"
        )
