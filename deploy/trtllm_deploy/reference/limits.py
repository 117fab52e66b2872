"""What an engine was built for, and how large its KV cache gets on this machine.

In: the limits of the engine's ``build_config``, the cache settings of Triton's config.pbtxt, the
loaded model. Out: pages and tokens per step. It knows nothing of requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch
from transformers import PreTrainedModel

from llm_perf.errors import UserError
from trtllm_deploy.reference.scheduling import Policy

_REUSE_ROOM = 4  # finished prompts worth keeping, in multiples of what a full batch needs
_LARGEST_STEP = 2048  # tokens; the attention mask is a row of the whole cache for each of them


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine was built for, under trtllm-build's names. Lengths in tokens."""

    max_batch_size: int
    max_input_len: int
    max_seq_len: int
    max_num_tokens: int
    tokens_per_block: int = 64


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """The KV cache settings of Triton's config.pbtxt; None stands for the default.

    The cache holds what a full batch needs, four times that when prompts are reused, and never
    more than ``max_tokens_in_paged_kv_cache`` tokens or ``kv_cache_free_gpu_mem_fraction`` of the
    memory that is free once the model is loaded. Without ``enable_chunked_context`` a prompt must
    fit in one step of max_num_tokens.
    """

    enable_kv_cache_reuse: bool = False
    enable_chunked_context: bool = False
    max_tokens_in_paged_kv_cache: int | None = None
    kv_cache_free_gpu_mem_fraction: float = 0.9
    batch_scheduler_policy: Policy = "guaranteed_no_evict"


def step_tokens(limits: Limits) -> int:
    """The most tokens of one step: max_num_tokens, but no more than can come together.

    Nor more than 2048: a longer step only costs memory here, and prompts are split anyway.
    """
    together = limits.max_batch_size * limits.max_input_len
    return min(limits.max_num_tokens, together, _LARGEST_STEP)


def cache_blocks(model: PreTrainedModel, limits: Limits, cache: CacheSettings) -> int:
    """How many pages the KV cache gets (see ``CacheSettings``).

    Raises UserError when the settings leave less than one request of max_seq_len needs.
    """
    size = limits.tokens_per_block
    one_request = -(-limits.max_seq_len // size) + 1  # the scheduler asks for one page ahead
    wanted = one_request * limits.max_batch_size
    if cache.enable_kv_cache_reuse:
        wanted *= _REUSE_ROOM
    if cache.max_tokens_in_paged_kv_cache is not None:
        wanted = min(wanted, cache.max_tokens_in_paged_kv_cache // size)
    memory = int(_free_bytes(model.device) * cache.kv_cache_free_gpu_mem_fraction)
    blocks: int = min(wanted, memory // (_bytes_per_token(model, step_tokens(limits)) * size))
    if blocks < one_request:
        raise UserError(
            f"the KV cache has room for {blocks} pages of {size} tokens, one request of"
            f" max_seq_len {limits.max_seq_len} needs {one_request}",
            where="triton",
            fix="raise max_tokens_in_paged_kv_cache or kv_cache_free_gpu_mem_fraction",
        )
    return blocks


def _bytes_per_token(model: PreTrainedModel, step: int) -> int:
    """What a token of the cache takes: its key and value, for every layer and KV head; and in a
    step that reads it a column of the mask, and, a layer at a time, copies for all heads."""
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = 2 * config.num_hidden_layers * kv_heads * head
    copied = 2 * (kv_heads + heads) * head
    return int((kept + copied + step) * model.dtype.itemsize)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return psutil.virtual_memory().available
