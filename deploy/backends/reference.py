"""Serves the checkpoint itself with transformers: no GPU, no TensorRT-LLM needed.

The engine is a ``config.json`` of the shape that trtllm-build writes, and a link to the checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from deploy.backends.jobs import EngineJob, RepositoryJob
from deploy.gpu import Gpu
from deploy.repository import render_repository
from deploy.spec import Cell, DeploymentFile
from deploy.store import write_json
from deploy.trtllm_checkpoint import read_json_object


class LinkedEngine:
    """An engine that is no more than its config.json and a link to its checkpoint."""

    compiles = False

    def command(self, job: EngineJob) -> tuple[str, ...] | None:  # noqa: ARG002
        """None: two files are written."""
        return None

    def make_engine(
        self,
        job: EngineJob,
        log_file: Path,  # noqa: ARG002
        on_line: Callable[[str], None],  # noqa: ARG002
    ) -> None:
        """Write config.json and ``checkpoint``, a link that is relative to the finished folder."""
        config = {
            "version": job.release,
            "pretrained_config": read_json_object(job.checkpoint / "config.json"),
            "build_config": job.build_config,
        }
        write_json(job.target / "config.json", config)
        (job.target / "checkpoint").symlink_to(os.path.relpath(job.checkpoint, job.target))


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
