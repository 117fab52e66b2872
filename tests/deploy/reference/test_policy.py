import threading
import time
from typing import Any

import pytest

from tests.deploy.engines import LIMITS, REUSING, ask, prompt, running, tokens, truth
from trtllm_deploy.reference.generation import Chunk, Request
from trtllm_deploy.reference.limits import CacheSettings, Policy


@pytest.mark.parametrize("policy", ["guaranteed_no_evict", "max_utilization"])
def test_a_full_cache_pauses_requests_or_makes_them_wait(policy: Policy) -> None:
    prompts = [prompt(100, seed) for seed in range(5)]
    cache = CacheSettings(max_tokens_in_paged_kv_cache=26 * 16, batch_scheduler_policy=policy)
    paused = []
    with running(cache) as engine:

        def watch() -> None:
            while not over.wait(0.002):
                paused.append(engine.statistics()["inflight_batcher"]["paused_requests"])

        over = threading.Event()
        watcher = threading.Thread(target=watch)
        watcher.start()
        answers = ask(engine, [Request(ids, 40, streaming=True) for ids in prompts])
        over.set()
        watcher.join()
    assert [tokens(each) for each in answers] == [truth(ids, 40) for ids in prompts]
    assert (max(paused) > 0) == (policy == "max_utilization")


@pytest.mark.parametrize("policy", ["guaranteed_no_evict", "max_utilization"])
def test_those_who_wait_go_on_when_all_who_run_are_cancelled(policy: Policy) -> None:
    cache = CacheSettings(max_tokens_in_paged_kv_cache=26 * 16, batch_scheduler_policy=policy)
    with running(cache) as engine:
        for _ in range(3):
            handles = [
                engine.submit(Request(prompt(100, seed), 200), lambda _: None) for seed in range(4)
            ]
            time.sleep(0.2)
            for handle in handles:
                engine.cancel(handle)
            [answer] = ask(engine, [Request(prompt(100), 20)])
            assert tokens(answer) == truth(prompt(100), 20)
        statistics = engine.statistics()
    assert statistics["request"]["active"] == statistics["kv_cache_block"]["used"] == 0


def test_statistics_count_what_runs_and_what_the_cache_holds() -> None:
    with running(REUSING) as engine:
        before = engine.statistics()
        seen: list[Any] = []
        ended = threading.Semaphore(0)

        def receive(chunk: Chunk) -> None:
            seen.append(engine.statistics())
            if chunk.final:
                ended.release()

        for seed in range(6):
            engine.submit(Request(prompt(50, seed), 30, streaming=True), receive)
        for _ in range(6):
            assert ended.acquire(timeout=60)
        assert max(each["request"]["scheduled"] for each in seen) == LIMITS.max_batch_size
        assert max(each["request"]["waiting"] for each in seen) >= 2
        # a look may miss the few steps that read prompts; their records are all there
        steps = [each["inflightBatchingStats"] for each in engine.iterations()]
        assert sum(each["numCtxTokens"] for each in steps) == 6 * 50
        assert all("total_context_tokens" in each["inflight_batcher"] for each in seen)
        used = max(each["kv_cache_block"]["used"] for each in seen)
        after = engine.statistics()
        ask(engine, [Request(prompt(50), 2)])
        assert engine.statistics()["kv_cache_block"]["reused"] == 50 // LIMITS.tokens_per_block
    assert 4 * (50 // LIMITS.tokens_per_block) <= used <= before["kv_cache_block"]["max"]
    for idle in (before, after):
        assert idle["request"] == {
            "active": 0, "max": LIMITS.max_batch_size, "scheduled": 0, "context": 0, "waiting": 0
        }  # fmt: skip
        assert idle["kv_cache_block"]["used"] == idle["kv_cache_block"]["fraction"] == 0
        assert idle["runtime_memory"]["cpu"] > 2**20
    assert after["general"]["iteration_counter"] > before["general"]["iteration_counter"]
