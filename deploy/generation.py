"""The generation engine of the reference backend: prompts of token ids in, chunks of them out.

It opens an engine folder (``config.json`` and the TensorRT-LLM checkpoint beside it) and generates
with transformers' continuous batching, under the limits of the engine's ``build_config``:
max_batch_size requests and max_num_tokens tokens per step, cache pages of tokens_per_block,
max_input_len and max_seq_len per request. It knows nothing of text, tokenizers or Triton.

As in TensorRT-LLM, the end token is not part of the answer: a request that it ends gets a last
chunk with no tokens; a request that reaches its output limit gets the final flag with its last
tokens. A stop word is part of the answer. Requests that are wrong fail alone, in their own stream.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching.requests import RequestStatus

from client.errors import UserError
from deploy.readback import load_model
from deploy.sampling import Choice, choice_kwargs, choices_processor

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


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt as token ids and how far to go on from it. ``end_id`` below 0 means none."""

    input_ids: tuple[int, ...]
    max_new_tokens: int
    end_id: int = -1
    streaming: bool = False
    stop_words: tuple[tuple[int, ...], ...] = ()
    choice: Choice = field(default_factory=Choice)


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one request. ``error`` says why it failed; then ``final`` is true."""

    tokens: tuple[int, ...]
    final: bool
    error: str | None = None


@dataclass(slots=True)
class _Stream:
    request: Request
    on_chunk: Callable[[Chunk], None]
    sent: int = 0


def open_engine(engine_dir: Path, cache: CacheSettings, *, device: str = "cpu") -> Engine:
    """The engine of an engine folder, loaded and running. Raises UserError for what it lacks."""
    config = json.loads((engine_dir / "config.json").read_text("utf-8"))
    build = config["build_config"]
    limits = Limits(
        max_batch_size=build["max_batch_size"],
        max_input_len=build["max_input_len"],
        max_seq_len=build["max_seq_len"],
        max_num_tokens=build["max_num_tokens"],
        tokens_per_block=build["plugin_config"]["tokens_per_block"],
    )
    model = load_model(engine_dir / "checkpoint", device=device)
    return Engine(model, limits, cache)


class Engine:
    """Generates for many requests at once; ``submit`` may be called from any thread.

    Chunks are handed out from one thread of the engine's own, in order for each request.
    """

    def __init__(self, model: PreTrainedModel, limits: Limits, cache: CacheSettings) -> None:
        self._limits = limits
        self._cache = cache
        self._ids = itertools.count()
        self._streams: dict[str, _Stream] = {}
        model.requires_grad_(False)
        self._manager = model.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=-1),
            ContinuousBatchingConfig(
                block_size=limits.tokens_per_block,
                num_blocks=cache_blocks(model, limits, cache),
                max_batch_tokens=step_tokens(limits),
                max_requests_per_batch=limits.max_batch_size,
                max_memory_percent=1.0,
                allow_block_sharing=cache.enable_kv_cache_reuse,
                safety_margin=0.0,
                use_async_batching=False,
            ),
        )
        self._manager.logit_processor = choices_processor()
        try:
            self._manager.warmup()  # makes the cache now, not in a thread that nobody watches
        except MemoryError as error:
            raise UserError(
                f"the KV cache and a step's working memory do not fit: {error}",
                where="triton",
                fix="lower max_batch_size, max_num_tokens or kv_cache_free_gpu_mem_fraction",
            ) from error
        self._manager.start()
        self._running = True
        self._router = threading.Thread(target=self._hand_out, name="chunks", daemon=True)
        self._router.start()

    def submit(self, request: Request, on_chunk: Callable[[Chunk], None]) -> str:
        """Queue a request; ``on_chunk`` gets its chunks, the last one with ``final``.

        A streaming request gets a chunk per step, any other one chunk. Returns the handle for
        ``cancel``. What the engine cannot serve comes back at once as a chunk with an error.
        """
        handle = f"request-{next(self._ids)}"
        refusal = self._refusal(request)
        if refusal is not None:
            on_chunk(Chunk((), final=True, error=refusal))
            return handle
        self._streams[handle] = _Stream(request, on_chunk)
        self._manager.add_request(
            list(request.input_ids),
            request_id=handle,
            max_new_tokens=request.max_new_tokens,
            streaming=request.streaming or bool(request.stop_words),
            eos_token_id=request.end_id,
            **choice_kwargs(request.choice, len(request.input_ids)),
        )
        return handle

    def cancel(self, handle: str) -> None:
        """Stop generating for a request; it gets no more chunks. Unknown handles are fine."""
        if self._streams.pop(handle, None) is not None:
            self._manager.cancel_request(handle)

    def close(self) -> None:
        """End generation. Requests under way get an error."""
        self._running = False
        self._manager.stop(block=True, hard_stop=True)
        self._router.join()

    def _refusal(self, request: Request) -> str | None:
        """Why the engine cannot serve a request, or None."""
        limits, prompt, asked = self._limits, len(request.input_ids), request.max_new_tokens
        if self._manager.fatal_error is not None:
            return f"the engine has stopped: {self._manager.fatal_error}"
        if prompt == 0:
            return "the prompt has no tokens"
        if asked < 1:
            return f"request_output_len must be at least 1, not {asked}"
        if prompt > limits.max_input_len:
            return f"the prompt has {prompt} tokens, more than max_input_len {limits.max_input_len}"
        if prompt > limits.max_num_tokens and not self._cache.enable_chunked_context:
            return (
                f"the prompt has {prompt} tokens, more than max_num_tokens {limits.max_num_tokens}"
                " and enable_chunked_context is off"
            )
        if prompt + asked > limits.max_seq_len:
            return (
                f"prompt and output are {prompt} + {asked} = {prompt + asked} tokens, more than"
                f" max_seq_len {limits.max_seq_len}"
            )
        return None

    def _hand_out(self) -> None:
        while self._running or self._streams:
            output = self._manager.get_result(timeout=0.1)
            if output is not None:
                self._hand_out_one(output)
            elif not self._manager.is_running():
                error = f"the engine has stopped: {self._manager.fatal_error or 'shut down'}"
                for handle in list(self._streams):
                    self._finish(handle, Chunk((), final=True, error=error))
                if not self._running:
                    return

    def _hand_out_one(self, output: Any) -> None:
        stream = self._streams.get(output.request_id)
        if stream is None:  # cancelled, or ended by a stop word
            return
        if output.status == RequestStatus.FAILED:
            self._finish(output.request_id, Chunk((), final=True, error=output.error))
            return
        request, tokens = stream.request, output.generated_tokens
        final = output.is_finished()
        if final and tokens and tokens[-1] == request.end_id:
            tokens = tokens[:-1]
        elif not final and _ends_with(tokens, request.stop_words):
            self._manager.cancel_request(output.request_id)
            final = True
        chunk = Chunk(tuple(tokens[stream.sent :]), final)
        stream.sent = len(tokens)
        if final:
            chunk = chunk if request.streaming else Chunk(tuple(tokens), final)
            self._finish(output.request_id, chunk)
        elif request.streaming:
            stream.on_chunk(chunk)

    def _finish(self, handle: str, chunk: Chunk) -> None:
        stream = self._streams.pop(handle, None)
        if stream is not None:
            stream.on_chunk(chunk)


def _ends_with(tokens: list[int], words: tuple[tuple[int, ...], ...]) -> bool:
    return any(tuple(tokens[-len(word) :]) == word for word in words)


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
    mask = step_tokens(limits) * model.dtype.itemsize
    blocks: int = min(wanted, memory // ((_bytes_per_token(model) + mask) * size))
    if blocks < one_request:
        raise UserError(
            f"the KV cache has room for {blocks} pages of {size} tokens, one request of"
            f" max_seq_len {limits.max_seq_len} needs {one_request}",
            where="triton",
            fix="raise max_tokens_in_paged_kv_cache or kv_cache_free_gpu_mem_fraction",
        )
    return blocks


def _bytes_per_token(model: PreTrainedModel) -> int:
    """Key and value, for every layer and KV head."""
    config = model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * head
    return int(numbers * model.dtype.itemsize)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return psutil.virtual_memory().available
