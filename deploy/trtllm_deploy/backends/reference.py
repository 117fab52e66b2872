"""Serves the checkpoint itself with transformers: no GPU, no TensorRT-LLM needed.

The engine is a ``config.json`` of the shape that trtllm-build writes, and a link to the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llm_perf.errors import UserError
from trtllm_deploy.backends.jobs import RepositoryJob
from trtllm_deploy.backends.linked_engine import LinkedEngine
from trtllm_deploy.backends.model_refusals import Configs, refuse_models, window_setting
from trtllm_deploy.backends.repository import render_repository
from trtllm_deploy.backends.server import Cluster
from trtllm_deploy.backends.triton.server import TRITON
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.spec.deployment_file import Cell, DeploymentFile

_OTHERWISE = "remove it, or write 'backend: tensorrt'"
# settings that change answers and that this engine doesn't read, and what of them it does anyway
_UNREAD: Mapping[str, tuple[Any, ...]] = {
    "decoding_mode": ("top_k_top_p",),
    "guided_decoding_backend": (),
    "xgrammar_tokenizer_info_path": (),
    "max_beam_width": (1,),
    "sink_token_length": (0,),
    "medusa_choices": (),
    "eagle_choices": (),
    "lookahead_window_size": (),
    "lookahead_ngram_size": (),
    "lookahead_verification_set_size": (),
    "lora_prefetch_dir": (),
}


class ReferenceBackend(LinkedEngine):
    """The embedded default; the flags that it knows mean what they mean in TensorRT-LLM."""

    checkpoint_kind: Literal["trtllm", "hf"] = "trtllm"
    server = TRITON

    def check(
        self,
        file: DeploymentFile,
        cells: Sequence[Cell],
        gpus: Sequence[Gpu],  # noqa: ARG002
        configs: Configs,
    ) -> None:
        """Refuse what this engine would answer otherwise than TensorRT-LLM.

        Raises UserError: a setting that it doesn't read, a window that is shorter than a sequence,
        or a model that no checkpoint can be made of.
        """
        refuse_models(file, configs, self.checkpoint_kind)
        triton = file.deployment.triton
        for setting, same in _UNREAD.items():
            value = getattr(triton, setting)
            if value is not None and value not in same:
                what = f"the reference backend has no {setting} {value}"
                raise file.error(("triton", setting), what, _OTHERWISE)
        windows = [
            int(each) for each in (triton.max_attention_window_size or "").split(",") if each
        ]
        for cell in cells:
            longest = int(file.flag(cell, "max_seq_len"))
            if any(each < longest for each in windows):
                raise file.error(
                    ("triton", "max_attention_window_size"),
                    f"the reference backend looks back on all {longest} tokens of {cell.name}",
                    _OTHERWISE,
                )
            if window := window_setting(configs.get(cell.model, {}), longest):
                raise file.error(
                    ("models", cell.model, "source"),
                    f"it looks back {min(window)} tokens, the reference backend on all {longest} of"
                    f" {cell.name}",
                    "write a shorter isl_osl, or 'backend: tensorrt'",
                )

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

    def cluster(self, release: str, cell: Cell) -> Cluster:  # noqa: ARG002
        """Never. Raises UserError."""
        raise UserError(
            "the reference backend is one process without a GPU",
            fix="use 'trtllm-deploy serve', or 'backend: tensorrt'",
        )
