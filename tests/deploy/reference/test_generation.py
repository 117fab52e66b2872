import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llm_perf.errors import UserError
from tests.deploy.engines import (
    CHUNKED,
    LIMITS,
    REUSING,
    VOCABULARY,
    ask,
    model,
    prompt,
    running,
    tokens,
    truth,
)
from trtllm_deploy.reference.generation import Chunk, Engine, Request
from trtllm_deploy.reference.limits import CacheSettings, Limits, cache_blocks
from trtllm_deploy.reference.sampling import Choice

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with running(REUSING) as engine:
        yield engine


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_GPU)])
@pytest.mark.parametrize("cache", [CHUNKED, REUSING])
@pytest.mark.parametrize("batch", [1, 4])
def test_neither_batch_size_nor_reuse_changes_an_answer(
    batch: int, cache: CacheSettings, device: str
) -> None:
    prompts = [prompt(length) for length in (1, 15, 16, 17, 140, 300)]
    prompts += [prompts[4] + prompt(9, seed) for seed in (1, 2)]
    limits = Limits(batch, 300, 400, 128, 16)
    with running(cache, limits, device) as engine:
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


def test_an_answer_ends_at_max_seq_len_however_much_is_asked_for(engine: Engine) -> None:
    [chunks] = ask(engine, [Request(prompt(300), 2**31 - 1)])
    assert tokens(chunks) == truth(prompt(300), 100)
    with running(REUSING, replace(LIMITS, max_seq_len=300)) as full:
        [refused] = ask(full, [Request(prompt(300), 1)])
    assert "300 tokens and fills max_seq_len 300" in str(refused[0].error)


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


def test_a_token_outside_the_vocabulary_harms_nobody_else(engine: Engine) -> None:
    good = Request(prompt(20), 10)
    bad = [
        Request((VOCABULARY,), 5),
        Request((-1,), 5),
        Request(prompt(5), 5, choice=Choice(bad_words=((VOCABULARY,),))),
        Request(prompt(5), 5, choice=Choice(embedding_bias=torch.ones(VOCABULARY + 1))),
    ]
    answers = ask(engine, [good, *bad, good])
    assert tokens(answers[0]) == tokens(answers[-1]) == truth(prompt(20), 10)
    assert all("vocabulary" in str(chunks[0].error) for chunks in answers[1:-1])


def test_what_is_seen_so_far_decides_the_next_token_in_any_batch(engine: Engine) -> None:
    ids = prompt(20)
    choices = [
        Choice(frequency_penalty=1e6),
        Choice(presence_penalty=1e6),
        Choice(repetition_penalty=1e6),
        Choice(bad_words=((truth(ids, 3)[2],),)),
        Choice(embedding_bias=torch.eye(VOCABULARY)[7] * 1e6),
    ]
    answers = ask(engine, [Request(ids, 40, choice=choice) for choice in choices] * 2)
    said = [tokens(chunks) for chunks in answers]
    assert said[: len(choices)] == said[len(choices) :]
    for once in said[:2]:  # a token that was seen, in the prompt or since, does not come again
        assert len({*ids, *once}) == len({*ids}) + 40
    assert said[2] != truth(ids, 40)
    assert said[3][:2] == truth(ids, 2)
    assert truth(ids, 3)[2] not in said[3]
    assert said[4] == (7,) * 40


def test_metrics_are_those_of_the_request(engine: Engine) -> None:
    shared, size = prompt(150, seed=7), LIMITS.tokens_per_block
    ask(engine, [Request(shared, 2)])
    before = time.perf_counter_ns()
    for streaming in (True, False):
        asked = Request(shared + prompt(30, seed=8), 5, streaming=streaming, wants_metrics=True)
        [chunks] = ask(engine, [asked])
        seen = [chunk.metrics for chunk in chunks]
        names = ("arrival", "first_scheduled", "first_token", "last_token")
        times = [seen[-1][f"{name}_time_ns"] for name in names]
        assert [before, *times] == sorted([before, *times])
        assert times[-1] < time.perf_counter_ns()
        assert len({metrics["first_token_time_ns"] for metrics in seen}) == 1
        reused = seen[0]["kv_cache_reused_blocks"]
        assert seen[0]["kv_cache_alloc_new_blocks"] == -(-180 // size) - reused
        assert reused == (150 if streaming else 180) // size
    [plain] = ask(engine, [Request(shared, 2)])
    assert plain[-1].metrics == {}


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


def test_an_engine_folder_needs_its_config(tmp_path: Path) -> None:
    from trtllm_deploy.reference.generation import open_engine

    with pytest.raises(FileNotFoundError):
        open_engine(tmp_path, CacheSettings())
    (tmp_path / "config.json").write_text(json.dumps({"build_config": {}}))
    with pytest.raises(KeyError):
        open_engine(tmp_path, CacheSettings())
