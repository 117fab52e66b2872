import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from client.errors import UserError
from deploy.generation import CacheSettings, Chunk, Engine, Limits, Request, cache_blocks
from deploy.sampling import Choice

VOCABULARY = 500
LIMITS = Limits(
    max_batch_size=4, max_input_len=300, max_seq_len=400, max_num_tokens=128, tokens_per_block=16
)
CHUNKED = CacheSettings(enable_chunked_context=True)
REUSING = CacheSettings(enable_chunked_context=True, enable_kv_cache_reuse=True)


def model() -> Any:
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
    return Qwen2ForCausalLM(config).eval()


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
def running(cache: CacheSettings, limits: Limits = LIMITS) -> Iterator[Engine]:
    engine = Engine(model(), limits, cache)
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running(REUSING) as engine:
        yield engine


@pytest.mark.parametrize("cache", [CHUNKED, REUSING])
@pytest.mark.parametrize("batch", [1, 4])
def test_neither_batch_size_nor_reuse_changes_an_answer(batch: int, cache: CacheSettings) -> None:
    prompts = [prompt(length) for length in (1, 15, 16, 17, 140, 300)]
    prompts += [prompts[4] + prompt(9, seed) for seed in (1, 2)]
    limits = Limits(batch, 300, 400, 128, 16)
    with running(cache, limits) as engine:
        for _ in range(2):
            answers = ask(engine, [Request(ids, 12, streaming=True) for ids in prompts])
            assert [tokens(each) for each in answers] == [truth(ids, 12) for ids in prompts]


def test_a_stream_gets_a_chunk_per_token_and_another_request_one_chunk(engine: Engine) -> None:
    ids = prompt(20)
    stream, whole = ask(engine, [Request(ids, 10, streaming=True), Request(ids, 10)])
    assert [len(chunk.tokens) for chunk in stream] == [1] * 10
    assert [len(chunk.tokens) for chunk in whole] == [10]
    assert tokens(stream) == tokens(whole)


def test_the_end_token_ends_a_stream_with_an_empty_chunk(engine: Engine) -> None:
    ids = prompt(20)
    answer = truth(ids, 20)
    end_id = answer[6]
    before = answer[: answer.index(end_id)]
    stream, whole = ask(
        engine,
        [Request(ids, 20, end_id=end_id, streaming=True), Request(ids, 20, end_id=end_id)],
    )
    assert tokens(stream) == tokens(whole) == before
    assert stream[-1] == Chunk((), final=True)


def test_a_stop_word_ends_an_answer_and_is_part_of_it(engine: Engine) -> None:
    ids = prompt(20)
    answer = truth(ids, 20)
    words = ((VOCABULARY - 1, VOCABULARY - 1), answer[4:7])
    for streaming in (True, False):
        [chunks] = ask(engine, [Request(ids, 20, streaming=streaming, stop_words=words)])
        assert tokens(chunks) == answer[:7]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request(prompt(301), 5), "301 tokens, more than max_input_len 300"),
        (Request(prompt(300), 101), "300 + 101 = 401 tokens, more than max_seq_len 400"),
        (Request((), 5), "no tokens"),
        (Request(prompt(5), 0), "at least 1"),
    ],
)
def test_a_request_beyond_a_limit_fails_alone_and_says_the_limit(
    engine: Engine, request_: Request, reason: str
) -> None:
    good = Request(prompt(20), 10, streaming=True)
    first, bad, second = ask(engine, [good, request_, good])
    assert len(bad) == 1
    assert bad[0].final
    assert reason in str(bad[0].error)
    assert tokens(first) == tokens(second) == truth(prompt(20), 10)


def test_a_prompt_longer_than_a_step_needs_chunked_context() -> None:
    with running(CacheSettings()) as engine:
        [refused] = ask(engine, [Request(prompt(129), 5)])
    assert "enable_chunked_context is off" in str(refused[0].error)


def test_a_prompt_s_beginning_is_computed_once() -> None:
    shared, counted = prompt(200), model()
    seen: list[int] = []
    counted.model.embed_tokens.register_forward_hook(
        lambda _module, inputs, _output: seen.append(inputs[0].numel())
    )
    computed = []
    engine = Engine(counted, LIMITS, REUSING)
    try:
        for seed in range(3):
            seen.clear()
            ask(engine, [Request(shared + prompt(5, seed), 4, streaming=True)])
            computed.append(sum(seen))
    finally:
        engine.close()
    pages = 200 // LIMITS.tokens_per_block * LIMITS.tokens_per_block
    assert computed == [205 + 3, 205 - pages + 3, 205 - pages + 3]


def test_a_cancelled_request_gets_no_more_chunks_and_others_go_on(engine: Engine) -> None:
    seen: list[Chunk] = []
    started = threading.Event()

    def receive(chunk: Chunk) -> None:
        seen.append(chunk)
        started.set()

    handle = engine.submit(Request(prompt(20), 300, streaming=True), receive)
    assert started.wait(30)
    engine.cancel(handle)
    [other] = ask(engine, [Request(prompt(21), 10)])
    assert tokens(other) == truth(prompt(21), 10)
    assert len(seen) < 300
    assert not any(chunk.final for chunk in seen)


def test_closing_fails_what_is_under_way() -> None:
    chunks: list[Chunk] = []
    started = threading.Event()

    def receive(chunk: Chunk) -> None:
        chunks.append(chunk)
        started.set()

    with running(CHUNKED) as engine:
        engine.submit(Request(prompt(20), 380, streaming=True), receive)
        assert started.wait(30)
    assert chunks[-1].final
    assert chunks[-1].error is not None


def test_sampling_hangs_on_the_seed_alone(engine: Engine) -> None:
    ids = prompt(20)

    def sampled(seed: int) -> Request:
        return Request(ids, 12, choice=Choice(temperature=3.0, top_p=0.95, seed=seed))

    batch = [sampled(1), Request(ids, 12), sampled(2), sampled(1)]
    one, greedy, two, again = (tokens(each) for each in ask(engine, batch))
    [alone] = ask(engine, [sampled(1)])
    assert one == again == tokens(alone)
    assert len({one, two, greedy}) == 3
    assert greedy == truth(ids, 12)


@pytest.mark.parametrize(
    "choice",
    [
        Choice(top_k=1, temperature=9.0),
        Choice(temperature=0.0, top_k=5),
        Choice(seed=4, temperature=2),
    ],
)
def test_one_candidate_is_greedy(choice: Choice) -> None:
    logits = torch.randn(50)
    assert choice.greedy
    assert torch.equal(choice.apply(logits, 0), logits)


def test_top_k_and_top_p_bound_what_can_be_taken() -> None:
    logits = torch.tensor([0.6, 0.3, 0.08, 0.02]).log()
    for choice, allowed in (
        (Choice(top_k=2), {0, 1}),
        (Choice(top_p=0.85), {0, 1}),
        (Choice(top_p=0.5), {0}),
        (Choice(top_p=0.95), {0, 1, 2}),
        (Choice(top_k=3, top_p=0.95), {0, 1, 2}),
    ):
        taken = {int(choice.apply(logits, step).argmax()) for step in range(200)}
        assert taken == allowed


def test_the_end_token_waits_for_min_tokens(engine: Engine) -> None:
    ids = prompt(20)
    end_id = truth(ids, 1)[0]
    early, late = ask(
        engine,
        [
            Request(ids, 20, end_id=end_id, streaming=True),
            Request(
                ids, 20, end_id=end_id, streaming=True, choice=Choice(min_tokens=5, end_id=end_id)
            ),
        ],
    )
    assert tokens(early) == ()
    assert len(tokens(late)) >= 5
    assert end_id not in tokens(late)


@pytest.mark.parametrize(
    "settings",
    [
        CacheSettings(max_tokens_in_paged_kv_cache=256),
        CacheSettings(kv_cache_free_gpu_mem_fraction=1e-9),
    ],
)
def test_a_cache_too_small_for_one_request_is_refused(settings: CacheSettings) -> None:
    with pytest.raises(UserError, match="one request of max_seq_len 400 needs 26"):
        cache_blocks(model(), LIMITS, settings)


def test_a_cache_too_small_for_a_full_batch_only_makes_requests_wait() -> None:
    prompts = [prompt(100, seed) for seed in range(6)]
    with running(CacheSettings(max_tokens_in_paged_kv_cache=26 * 16)) as engine:
        answers = ask(engine, [Request(ids, 60, streaming=True) for ids in prompts])
    assert [tokens(each) for each in answers] == [truth(ids, 60) for ids in prompts]


def test_an_engine_folder_needs_its_config(tmp_path: Path) -> None:
    from deploy.generation import open_engine

    with pytest.raises(FileNotFoundError):
        open_engine(tmp_path, CacheSettings())
    (tmp_path / "config.json").write_text(json.dumps({"build_config": {}}))
    with pytest.raises(KeyError):
        open_engine(tmp_path, CacheSettings())
