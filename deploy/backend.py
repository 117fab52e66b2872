"""How a cell is served: what its engine is, and how it is made.

A backend knows nothing of the store, of other cells, or of Triton's templates.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from deploy.spec import BuildSpec, Cell
from deploy.store import write_json


class Backend(Protocol):
    """One way to turn a TensorRT-LLM checkpoint into something that serves."""

    def build_config(self, cell: Cell, build: BuildSpec) -> Mapping[str, Any]:
        """The ``build_config`` of the engine's config.json; part of what the engine's key is."""

    def make_engine(
        self, checkpoint: Path, build_config: Mapping[str, Any], release: str, target: Path
    ) -> None:
        """Fill ``target`` with the engine of ``checkpoint``."""


class ReferenceBackend:
    """Serves the checkpoint itself with transformers: no GPU, no TensorRT-LLM needed.

    The engine is a ``config.json`` of the shape that trtllm-build writes, and a link to the
    checkpoint.
    """

    def build_config(self, cell: Cell, build: BuildSpec) -> Mapping[str, Any]:
        """Limits under the names that trtllm-build uses; lengths in tokens."""
        return {
            "max_input_len": cell.isl,
            "max_seq_len": cell.isl + cell.osl,
            "max_batch_size": cell.max_batch_size,
            "max_beam_width": 1,
            "max_num_tokens": build.max_num_tokens,
            "kv_cache_type": "PAGED",
            "plugin_config": {
                "tokens_per_block": build.tokens_per_block,
                "paged_kv_cache": True,
                "use_paged_context_fmha": True,
            },
        }

    def make_engine(
        self, checkpoint: Path, build_config: Mapping[str, Any], release: str, target: Path
    ) -> None:
        """Write config.json and ``checkpoint``, a link that is relative to the finished folder."""
        config = {
            "version": release,
            "pretrained_config": json.loads((checkpoint / "config.json").read_text("utf-8")),
            "build_config": build_config,
        }
        write_json(target / "config.json", config)
        (target / "checkpoint").symlink_to(os.path.relpath(checkpoint, target))


BACKENDS: Mapping[str, Backend] = {"reference": ReferenceBackend()}
