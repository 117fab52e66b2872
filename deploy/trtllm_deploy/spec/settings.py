"""The ``triton:`` block of a deployment file: all that a release's configs leave to a person.

In: what the file says. Out: typed values, as config.pbtxt spells them; what is not set is None, so
that the backend's default holds. Which of them a release knows, its data says (``lacking``).
Sources of meanings and defaults: the Triton backend's docs/model_config.md and its
model_instance_state.cc.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    model_validator,
)

from trtllm_deploy.releases.release import Release, load_release, release_names, spans


def _about(description: str, default: Any = None) -> Any:
    return Field(default=default, description=description)


def _rows(value: Any) -> list[list[int]]:
    """``[0, 1]`` as one row, ``[[0, 1], [2, 3]]`` as it is. Raises ValueError for anything else."""
    nested = isinstance(value, list) and bool(value) and all(isinstance(x, list) for x in value)
    rows = value if nested else [value]
    for row in rows:
        plain = isinstance(row, list) and row and all(type(x) is int and x >= 0 for x in row)
        if not plain:
            raise ValueError("write [0, 1], or [[0, 1], [2, 3]] for several")
    return list(rows)


def _ids(value: Any) -> str:
    """Ranks or GPUs as the backend wants them, ``0,1;2,3``: instances are separated by ``;``."""
    if isinstance(value, str) and re.fullmatch(r"\d+([,;]\d+)*", value):
        return value
    rows = _rows([value] if type(value) is int else value)
    return ";".join(",".join(map(str, row)) for row in rows)


def _choices(value: Any) -> str:
    """A tree of draft tokens as the backend wants it, ``{0}, {0, 1}``: a path in each brace."""
    return ", ".join("{" + ", ".join(map(str, row)) + "}" for row in _rows(value))


def _windows(value: Any) -> str:
    """Window sizes as the backend wants them, ``4096,2048``: they are repeated over the layers."""
    sizes = value if isinstance(value, list) else [value]
    if not sizes or any(type(size) is not int or size < 1 for size in sizes):
        raise ValueError("write a number of tokens, or a list of them to be repeated over layers")
    return ",".join(map(str, sizes))


def _refuse(_: Any) -> Any:
    raise ValueError("our models don't do that; serve the release's own for it")


Flag = Annotated[bool, Field(strict=True)]
Number = Annotated[int, Field(ge=0, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Bytes = Annotated[ByteSize, Field(ge=0), AfterValidator(int)]
Folder = Annotated[str, Field(pattern=r"^/[^$\x00-\x1f\x7f]*$")]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
Ids = Annotated[str, BeforeValidator(_ids)]
Choices = Annotated[str, BeforeValidator(_choices)]
Windows = Annotated[str, BeforeValidator(_windows)]
NotOurs = Annotated[str, BeforeValidator(_refuse)]
Batching = Literal["inflight_fused_batching", "inflight_batching", "V1"]
Policy = Literal["guaranteed_no_evict", "max_utilization"]
Float = Literal["TYPE_FP32", "TYPE_FP16", "TYPE_BF16"]
Decoding = Literal[
    "top_k", "top_p", "top_k_top_p", "beam_search", "medusa", "redrafter", "lookahead", "eagle"
]
OURS = frozenset({"extra_tensors", "apply_chat_template"})
"""Settings that are not the release's but of the models that we put beside it."""


class TritonSettings(BaseModel):
    """The settings. What is not set is left to the backend."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # all models
    decoupled_mode: Flag = _about("several responses per request: streaming", True)
    extra_tensors: Flag = _about(
        "tensors beyond the release's own: an answer's token ids, whole characters in streams"
        " (docs/templates.md)",
        True,
    )
    max_queue_delay_microseconds: Number = _about(
        "how long Triton may hold a request back to form a batch", 0
    )
    max_queue_size: Number | None = _about(
        "requests that may wait before new ones are refused; 0 is no limit"
    )
    logits_datatype: Float | None = _about("type of the logits outputs; default: the engine's")
    # preprocessing, postprocessing, tensorrt_llm_bls
    add_special_tokens: Flag | None = _about(
        "whether the tokenizer adds its special tokens to a prompt (true)"
    )
    apply_chat_template: Flag | None = _about(
        "put each prompt into the tokenizer's chat template, as a user's message (false)"
    )
    skip_special_tokens: Flag | None = _about(
        "whether special tokens are left out of the answer's text (true)"
    )
    preprocessing_instance_count: Count = _about("processes that tokenize", 1)
    postprocessing_instance_count: Count = _about(
        "processes that detokenize; more than one only without decoupled_mode", 1
    )
    bls_instance_count: Count | None = _about(
        "processes of tensorrt_llm_bls, one request each at a time: max_batch_size of them fill"
        " the engine; default: 5, or max_batch_size if that is less"
    )
    accumulate_tokens: Flag | None = _about(
        "tensorrt_llm_bls: each response's text is that of all tokens so far (false)"
    )
    tensorrt_llm_model_name: ModelName | None = _about(
        "the model that tensorrt_llm_bls asks (tensorrt_llm)"
    )
    tensorrt_llm_draft_model_name: NotOurs | None = _about("refused: no speculative decoding")
    multimodal_encoders_name: NotOurs | None = _about("refused: no images")
    multimodal_model_path: NotOurs | None = _about("refused: no images")
    max_num_images: NotOurs | None = _about("refused: no images")
    # tensorrt_llm: batching and scheduling
    batching_strategy: Batching = _about(
        "how TensorRT-LLM batches requests", "inflight_fused_batching"
    )
    batch_scheduler_policy: Policy | None = _about(
        "whether requests may be paused for others when the KV cache is full (guaranteed_no_evict)"
    )
    enable_chunked_context: Flag | None = _about(
        "split a prompt over steps, so that it may exceed max_num_tokens (false)"
    )
    exclude_input_in_output: Flag | None = _about(
        "leave the prompt's tokens out of an answer that is not streamed (false)"
    )
    cancellation_check_period_ms: Count | None = _about(
        "pause between two looks for cancelled requests (100)"
    )
    # tensorrt_llm: KV cache and attention
    enable_kv_cache_reuse: Flag | None = _about(
        "share KV cache pages between prompts with a common beginning (false, from 0.19 on true)"
    )
    kv_cache_free_gpu_mem_fraction: Fraction | None = _about(
        "share of the memory free after loading that the KV cache may take (0.9)"
    )
    cross_kv_cache_fraction: Fraction | None = _about(
        "share of the KV cache for cross attention; encoder-decoder models only"
    )
    max_tokens_in_paged_kv_cache: Count | None = _about("upper limit of the KV cache, in tokens")
    kv_cache_host_memory_bytes: Bytes | None = _about(
        "host memory for pages that leave the GPU, as 16GiB or in bytes (0)"
    )
    kv_cache_onboard_blocks: Flag | None = _about(
        "bring reused pages back to the GPU before they are used (true)"
    )
    max_attention_window_size: Windows | None = _about(
        "tokens that attention looks back on, a number or a list over layers; the whole sequence"
        " when not set"
    )
    sink_token_length: Number | None = _about("first tokens that always stay in the window")
    # tensorrt_llm: decoding
    max_beam_width: Count | None = _about("most beams of a request (1)")
    decoding_mode: Decoding | None = _about(
        "how tokens are chosen (top_k_top_p, beam_search when max_beam_width is over 1)"
    )
    medusa_choices: Choices | None = _about("draft tree, as [[0], [0, 1]]")
    eagle_choices: Choices | None = _about("draft tree, as [[0], [0, 1]]")
    lookahead_window_size: Count | None = _about("with decoding_mode lookahead: its window")
    lookahead_ngram_size: Count | None = _about("with decoding_mode lookahead: its n-grams")
    lookahead_verification_set_size: Count | None = _about(
        "with decoding_mode lookahead: n-grams to verify at once"
    )
    speculative_decoding_fast_logits: Flag | None = _about(
        "draft logits straight between the models; orchestrator mode only (false)"
    )
    normalize_log_probs: Flag | None = _about("normalize output_log_probs (true)")
    guided_decoding_backend: Literal["xgrammar"] | None = _about("what guides decoding")
    xgrammar_tokenizer_info_path: Folder | None = _about("JSON that guided decoding needs")
    # tensorrt_llm: where and how it runs
    encoder_engine_dir: Folder | None = _about("engine of the encoder; encoder-decoder models only")
    encoder_input_features_data_type: Float = _about("type of encoder_input_features", "TYPE_FP16")
    prompt_embedding_table_data_type: Float = _about("type of prompt_embedding_table", "TYPE_FP16")
    gpu_device_ids: Ids | None = _about(
        "GPUs of the ranks, as [0, 1], or [[0, 1], [2, 3]] for two instances"
    )
    participant_ids: Ids | None = _about("MPI ranks; orchestrator mode without spawned processes")
    num_nodes: Count | None = _about("MPI nodes (1)")
    gpu_weights_percent: Annotated[float, Field(ge=0, le=1)] | None = _about(
        "share of the weights on the GPU; under 1 only with a weight_streaming engine (1)"
    )
    multi_block_mode: Flag | None = _about("several blocks per head in attention (true)")
    enable_context_fmha_fp32_acc: Flag | None = _about("sum in fp32 in the prompt's FMHA (false)")
    cuda_graph_mode: Flag | None = _about("run decoding steps as CUDA graphs (false)")
    cuda_graph_cache_size: Number | None = _about("CUDA graphs to keep (0)")
    stats_check_period_ms: Count | None = _about("pause between two reports of statistics (100)")
    iter_stats_max_iterations: Number | None = _about("steps to keep statistics of")
    request_stats_max_iterations: Number | None = _about("steps to keep statistics by request of")
    # tensorrt_llm: LoRA
    lora_cache_optimal_adapter_size: Count | None = _about("rank that a cache page fits (8)")
    lora_cache_max_adapter_size: Count | None = _about("largest rank (64)")
    lora_cache_gpu_memory_fraction: Fraction | None = _about(
        "share of the memory left after engine and KV cache (0.05)"
    )
    lora_cache_host_memory_bytes: Bytes | None = _about("host memory, as 1GiB or in bytes (1 GB)")
    lora_prefetch_dir: Folder | None = _about("adapters to load at the start")

    @model_validator(mode="after")
    def _keep_streams_in_order(self) -> TritonSettings:
        if self.decoupled_mode and self.postprocessing_instance_count > 1:
            raise ValueError(
                "postprocessing_instance_count must be 1 with decoupled_mode: Triton spreads the"
                " responses of one stream over the instances and they arrive out of order"
            )
        return self


def lacking(settings: TritonSettings, release: str) -> Iterator[tuple[str, str]]:
    """The settings that the file names and the release lacks, each with what is wrong."""
    for name in sorted(settings.model_fields_set - OURS):
        if not _takes(load_release(release), name):
            able = [each for each in release_names() if _takes(load_release(each), name)]
            also = f" (TensorRT-LLM {spans(able)} has it)" if able else ""
            yield name, f"TensorRT-LLM {release} has no such setting{also}"


def _takes(release: Release, setting: str) -> bool:
    return any(model.takes(setting) for model in release.models.values())
