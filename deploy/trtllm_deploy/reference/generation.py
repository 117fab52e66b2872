"""The generation engine of the reference backend: prompts of token ids in, chunks of them out.

It opens an engine folder (``config.json`` and the TensorRT-LLM checkpoint beside it) and generates
with transformers' continuous batching, under the limits of the engine's ``build_config``:
max_batch_size requests and max_num_tokens tokens per step, cache pages of tokens_per_block,
max_input_len and max_seq_len per request. It knows nothing of text, tokenizers or Triton.

As in TensorRT-LLM, the end token is not part of the answer: a request that it ends gets a last
chunk with no tokens; a request that reaches its output limit, or max_seq_len, gets the final flag
with its last tokens. A stop word is part of the answer. Requests that are wrong fail alone, in
their own stream.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching.requests import RequestStatus

from llm_perf.errors import UserError
from trtllm_deploy.checkpoint.readback import load_model
from trtllm_deploy.reference.limits import CacheSettings, Limits, cache_blocks, step_tokens
from trtllm_deploy.reference.policy import scheduler_type
from trtllm_deploy.reference.sampling import Choice, Trace, choices_processor


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt as token ids and how far to go on from it. ``end_id`` below 0 means none."""

    input_ids: tuple[int, ...]
    max_new_tokens: int
    end_id: int = -1
    streaming: bool = False
    stop_words: tuple[tuple[int, ...], ...] = ()
    choice: Choice = field(default_factory=Choice)
    wants_metrics: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one request. ``error`` says why it failed; then ``final`` is true.

    ``metrics`` are TensorRT-LLM's of the request so far, under its names: times in ns as
    ``time.perf_counter_ns`` has them, and KV pages of the prompt.
    """

    tokens: tuple[int, ...]
    final: bool
    error: str | None = None
    metrics: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Stream:
    request: Request
    on_chunk: Callable[[Chunk], None]
    trace: Trace
    arrival_ns: int
    sent: int = 0
    stop_lengths: frozenset[int] = frozenset()
    stop_words: frozenset[tuple[int, ...]] = frozenset()

    def __post_init__(self) -> None:
        self.stop_words = frozenset(self.request.stop_words)
        self.stop_lengths = frozenset(map(len, self.stop_words))

    def is_stopped(self, tokens: list[int]) -> bool:
        """Whether they end with a stop word; there may be thousands."""
        return any(tuple(tokens[-length:]) in self.stop_words for length in self.stop_lengths)


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
        self._vocabulary = model.config.vocab_size
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
                scheduler_type=scheduler_type(cache),
                use_async_batching=False,
            ),
        )
        self._manager.logit_processor = choices_processor()
        try:
            self._manager.warmup()  # makes the cache now, not in a thread that nobody watches
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise UserError(
                f"the KV cache and a step's working memory do not fit: {error}",
                where="triton",
                fix="lower max_batch_size, max_num_tokens or kv_cache_free_gpu_mem_fraction",
            ) from error
        self._scheduler: Any = self._manager.batch_processor.scheduler
        self._device = model.device
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
        prompt = len(request.input_ids)
        trace = Trace(request.choice, prompt)
        self._streams[handle] = _Stream(request, on_chunk, trace, time.perf_counter_ns())
        self._manager.add_request(
            list(request.input_ids),
            request_id=handle,
            max_new_tokens=min(request.max_new_tokens, self._limits.max_seq_len - prompt),
            streaming=request.streaming or bool(request.stop_words),
            record_timestamps=request.wants_metrics,
            eos_token_id=request.end_id,
            trace=trace,
        )
        return handle

    def cancel(self, handle: str) -> None:
        """Stop generating for a request; it gets no more chunks. Unknown handles are fine."""
        if self._streams.pop(handle, None) is not None:
            self._manager.cancel_request(handle)

    def statistics(self) -> Mapping[str, Mapping[str, float]]:
        """What runs and what the cache holds (``InFlight.statistics``), memory in bytes."""
        on_gpu = self._device.type == "cuda"
        memory = {
            "cpu": psutil.Process().memory_info().rss,
            "gpu": torch.cuda.memory_allocated(self._device) if on_gpu else 0,
            "pinned": 0,
        }
        seen: Mapping[str, Mapping[str, float]] = self._scheduler.statistics(len(self._streams))
        return {**seen, "runtime_memory": memory}

    def iterations(self) -> list[Mapping[str, Any]]:
        """What the steps since the last call did, in the form of trtllm-serve's ``/metrics``."""
        records: list[Mapping[str, Any]] = self._scheduler.drain()
        return records

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
        if prompt >= limits.max_seq_len:
            return f"the prompt has {prompt} tokens and fills max_seq_len {limits.max_seq_len}"
        bias = request.choice.embedding_bias
        if bias is not None and len(bias) > self._vocabulary:
            return f"embedding_bias has {len(bias)} entries, the vocabulary {self._vocabulary}"
        named = itertools.chain(request.input_ids, *request.choice.bad_words)
        if not all(0 <= token < self._vocabulary for token in named):
            return f"a token id is not in the vocabulary of {self._vocabulary}"
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
        elif not final and stream.is_stopped(tokens):
            self._manager.cancel_request(output.request_id)
            final = True
        elif not (final or request.streaming):
            return
        metrics = _metrics(stream, output.timestamps) if request.wants_metrics else {}
        chunk = Chunk(tuple(tokens[stream.sent :]), final, metrics=metrics)
        stream.sent = len(tokens)
        if final:
            self._finish(output.request_id, chunk)
        else:
            stream.on_chunk(chunk)

    def _finish(self, handle: str, chunk: Chunk) -> None:
        stream = self._streams.pop(handle, None)
        if stream is not None:
            stream.on_chunk(chunk)


def _metrics(stream: _Stream, token_times: list[float]) -> Mapping[str, int]:
    trace, (first, last) = stream.trace, (int(token_times[i] * 1e9) for i in (0, -1))
    trace.first_token_ns = trace.first_token_ns or first  # the list starts anew after a pause
    return {
        "arrival_time_ns": stream.arrival_ns,
        "first_scheduled_time_ns": trace.scheduled_ns,
        "first_token_time_ns": trace.first_token_ns,
        "last_token_time_ns": last,
        "kv_cache_reused_blocks": trace.reused_pages,
        "kv_cache_alloc_new_blocks": trace.allocated_pages,
        "kv_cache_alloc_total_blocks": trace.allocated_pages,
        # without speculative decoding:
        **dict.fromkeys(
            ("acceptance_rate", "total_accepted_draft_tokens", "total_draft_tokens"), 0
        ),
    }
