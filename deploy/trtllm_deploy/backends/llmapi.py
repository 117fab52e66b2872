"""TensorRT-LLM's LLM API: no engine build; Triton's python model ``llmapi`` loads the checkpoint.

The engine is a ``config.json`` with the limits and a link to a Hugging Face checkpoint. The
repository is one model, ``tensorrt_llm``: the release's own, copied from its container, with a
``1/model.yaml`` that holds the arguments of ``LLM()``. Of the ``triton:`` block the settings that
``LLM()`` knows are taken; the others belong to the C++ backend and are refused. ``decoupled`` is in
config.pbtxt too: where Triton completes no configs (--disable-auto-complete-config), the model
can't say it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from llm_perf.errors import UserError
from trtllm_deploy.backends.jobs import RepositoryJob
from trtllm_deploy.backends.linked_engine import LinkedEngine
from trtllm_deploy.backends.model_refusals import Configs, refuse_models
from trtllm_deploy.backends.refusals import refuse_gpus, refuse_without_hf
from trtllm_deploy.backends.repository import check_config
from trtllm_deploy.backends.server import Cluster
from trtllm_deploy.backends.triton.server import TRITON, triton_cluster
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.machine.json_files import read_json_object
from trtllm_deploy.releases.release import load_release
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile
from trtllm_deploy.spec.settings import TritonSettings


class LlmApiBackend(LinkedEngine):
    """One model in Triton, which loads the checkpoint."""

    server = TRITON

    def check(
        self, file: DeploymentFile, cells: Sequence[Cell], gpus: Sequence[Gpu], configs: Configs
    ) -> None:
        """Refuse what the LLM API can't load.

        Raises UserError: a precision without a Hugging Face form, the container's scripts, which
        write TensorRT-LLM checkpoints only, a setting of the C++ backend's, or a quantized model.
        """
        refuse_without_hf(file, "llmapi")
        for setting in sorted(file.deployment.triton.model_fields_set - _TAKEN):
            raise file.error(
                ("triton", setting),
                "llmapi has no such setting",
                f"it has {', '.join(sorted(_TAKEN))}",
            )
        refuse_gpus(file, cells, gpus)
        refuse_models(file, configs, self.checkpoint_kind)

    def make_repository(self, job: RepositoryJob) -> None:
        """One model, from the engine's limits and the ``triton:`` block."""
        limits = read_json_object(job.engine_dir / "config.json")["build_config"]
        arguments = model_arguments(limits, job.engine_dir / "checkpoint", job.settings)
        target = job.target / "tensorrt_llm"
        source = Path(load_release(job.release).llmapi_model())
        if not (source / "1" / "model.py").is_file():
            raise UserError(
                "Triton's llmapi model isn't there",
                where=source,
                fix="run this in the TensorRT-LLM container, or set TRTLLM_ALL_MODELS to the"
                " folder all_models of its release",
            )
        shutil.copytree(source, target, copy_function=shutil.copyfile)
        config = target / "config.pbtxt"
        declared = config.read_text(encoding="utf-8")
        check_config(declared, str(source / config.name))
        decoupled = str(job.settings.decoupled_mode).lower()
        policy = f"\nmodel_transaction_policy {{ decoupled: {decoupled} }}\n"
        config.write_text(declared + policy, encoding="utf-8")
        text = yaml.safe_dump(arguments, sort_keys=False)
        if yaml.safe_load(text) != arguments:
            raise UserError("model.yaml doesn't read back as it was meant", where=target)
        (target / "1" / "model.yaml").write_text(text, encoding="utf-8")

    def cluster(self, release: str, cell: Cell) -> Cluster:
        """Triton in NVIDIA's image, each of several ranks by the LLM API's launcher."""
        return triton_cluster(release, "trtllm-llmapi-launch " if cell.world_size > 1 else "")


def model_arguments(
    limits: Mapping[str, Any], checkpoint: Path, settings: TritonSettings
) -> dict[str, Any]:
    """What model.yaml says: keyword arguments of ``LLM()``, and ``triton_config``.

    ``triton_config.max_batch_size`` is 0: the model batches requests itself.
    """
    window, policy = settings.max_attention_window_size, settings.batch_scheduler_policy
    cache = {
        **{name: getattr(settings, setting) for name, setting in _KV_CACHE_CONFIG.items()},
        "max_attention_window": [int(each) for each in window.split(",")] if window else None,
        "tokens_per_block": limits["tokens_per_block"],
    }
    arguments = {
        "model": str(checkpoint.absolute()),
        "backend": "pytorch",
        **{name: value for name, value in limits.items() if name != "tokens_per_block"},
        **{name: getattr(settings, setting) for name, setting in _LLM.items()},
        "scheduler_config": {"capacity_scheduler_policy": policy.upper()} if policy else None,
        "kv_cache_config": _set(cache),
        "triton_config": _set(
            {
                "max_batch_size": 0,
                "decoupled": settings.decoupled_mode,
                "cancellation_check_period_ms": settings.cancellation_check_period_ms,
            }
        ),
    }
    return _set(arguments)


_LLM = {
    "max_beam_width": "max_beam_width",
    "enable_chunked_prefill": "enable_chunked_context",
    "guided_decoding_backend": "guided_decoding_backend",
    "iter_stats_max_iterations": "iter_stats_max_iterations",
    "request_stats_max_iterations": "request_stats_max_iterations",
}
_KV_CACHE_CONFIG = {
    "free_gpu_memory_fraction": "kv_cache_free_gpu_mem_fraction",
    "enable_block_reuse": "enable_kv_cache_reuse",
    "max_tokens": "max_tokens_in_paged_kv_cache",
    "sink_token_length": "sink_token_length",
    "host_cache_size": "kv_cache_host_memory_bytes",
    "onboard_blocks": "kv_cache_onboard_blocks",
    "cross_kv_cache_fraction": "cross_kv_cache_fraction",
}
"""Names of TensorRT-LLM 1.2's llmapi/llm_args.py (BaseLlmArgs, KvCacheConfig), and our settings."""

_TAKEN = {
    *_LLM.values(),
    *_KV_CACHE_CONFIG.values(),
    *("max_attention_window_size", "batch_scheduler_policy"),
    *("decoupled_mode", "cancellation_check_period_ms"),
}


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
