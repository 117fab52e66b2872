"""Serves the checkpoint itself with transformers: no GPU, no TensorRT-LLM needed.

The engine is a ``config.json`` of the shape that trtllm-build writes, and a link to the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from trtllm_deploy.backends.jobs import RepositoryJob
from trtllm_deploy.backends.linked_engine import LinkedEngine
from trtllm_deploy.backends.repository import render_repository
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile


class ReferenceBackend(LinkedEngine):
    """The embedded default; the flags that it knows mean what they mean in TensorRT-LLM."""

    checkpoint_kind: Literal["trtllm", "hf"] = "trtllm"

    def check(self, file: DeploymentFile, cells: Sequence[Cell], gpus: Sequence[Gpu]) -> None:
        """Nothing that the file alone shows is refused."""

    def build_config(self, file: DeploymentFile, cell: Cell) -> Mapping[str, Any]:
        """Limits under the names that trtllm-build uses; lengths in tokens."""
        return {
            "max_input_len": file.flag(cell, "max_input_len"),
            "max_seq_len": file.flag(cell, "max_seq_len"),
            "max_batch_size": file.flag(cell, "max_batch_size"),
            "max_beam_width": 1,
            "max_num_tokens": file.flag(cell, "max_num_tokens"),
            "kv_cache_type": "PAGED",
            "plugin_config": {
                "tokens_per_block": file.flag(cell, "tokens_per_block"),
                "paged_kv_cache": True,
                "use_paged_context_fmha": True,
            },
        }

    def make_repository(self, job: RepositoryJob) -> None:
        """The ensemble, with a python model in place of TensorRT-LLM's."""
        render_repository(job, "reference")
