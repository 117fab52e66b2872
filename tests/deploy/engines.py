"""Small engines for tests: a random model whose answers transformers' plain generate tells too."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from trtllm_deploy.reference.generation import Chunk, Engine, Request
from trtllm_deploy.reference.limits import CacheSettings, Limits

VOCABULARY = 500
LIMITS = Limits(
    max_batch_size=4, max_input_len=300, max_seq_len=400, max_num_tokens=128, tokens_per_block=16
)
CHUNKED = CacheSettings(enable_chunked_context=True)
REUSING = CacheSettings(enable_chunked_context=True, enable_kv_cache_reuse=True)


def model(device: str = "cpu") -> Any:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,  # far apart logits: greedy answers do not hang on rounding
    )
    return Qwen2ForCausalLM(config).eval().to(device)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return tuple(torch.randint(0, VOCABULARY, (length,), generator=generator).tolist())


def truth(ids: tuple[int, ...], new_tokens: int) -> tuple[int, ...]:
    """What transformers' plain generate says."""
    inputs = torch.tensor([ids])
    answer = model().generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
    )
    return tuple(answer[0, len(ids) :].tolist())


def ask(engine: Engine, requests: list[Request]) -> list[list[Chunk]]:
    """Every request's chunks, all requests submitted at once."""
    answers: list[list[Chunk]] = [[] for _ in requests]
    ended = threading.Semaphore(0)

    def receiver(index: int) -> Any:
        def receive(chunk: Chunk) -> None:
            answers[index].append(chunk)
            if chunk.final:
                ended.release()

        return receive

    for index, request in enumerate(requests):
        engine.submit(request, receiver(index))
    for _ in requests:
        assert ended.acquire(timeout=60)
    return answers


def tokens(chunks: list[Chunk]) -> tuple[int, ...]:
    assert [chunk.final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert not any(chunk.error for chunk in chunks)
    return sum((chunk.tokens for chunk in chunks), ())


@contextmanager
def running(cache: CacheSettings, limits: Limits = LIMITS, device: str = "cpu") -> Iterator[Engine]:
    engine = Engine(model(device), limits, cache)
    try:
        yield engine
    finally:
        engine.close()
