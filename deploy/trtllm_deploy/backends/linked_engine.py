"""An engine where nothing is compiled: a ``config.json`` of trtllm-build's shape, and a link."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from trtllm_deploy.backends.jobs import EngineJob
from trtllm_deploy.backends.protocol import Backend
from trtllm_deploy.machine.json_files import read_json_object, write_json
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile


def limits(file: DeploymentFile, cell: Cell) -> dict[str, Any]:
    """The limits of a cell, under the names that trtllm-build and ``LLM()`` use."""
    names = ("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens")
    return {
        **{name: file.flag(cell, name) for name in (*names, "tokens_per_block")},
        "tensor_parallel_size": cell.tp,
        "pipeline_parallel_size": cell.pp,
    }


class LinkedEngine(Backend, Protocol):
    """An engine that is no more than its config.json and a link to a Hugging Face checkpoint."""

    checkpoint_kind: Literal["trtllm", "hf"] = "hf"
    compiles: bool = False

    def build_config(self, file: DeploymentFile, cell: Cell) -> Mapping[str, Any]:
        """The limits; the other build flags are trtllm-build's alone."""
        return limits(file, cell)

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
