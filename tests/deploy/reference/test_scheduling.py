"""The scheduler without a model, and the reference engine that it drives."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_perf.errors import UserError
from tests.deploy.engines import LIMITS, prompt, running
from trtllm_deploy.reference.drawing import schedule_svg, strip
from trtllm_deploy.reference.generation import Request
from trtllm_deploy.reference.iterations import apart, compare, predicted, read_iterations
from trtllm_deploy.reference.limits import CacheSettings
from trtllm_deploy.reference.scheduling import POLICIES, Budget, Job, Shares, share_out
from trtllm_deploy.reference.simulation import Asked, Iteration, simulate

# the documented example: 1 and 2 have prompts of 5; 3 and 4 fit together, each longer than 2
EXAMPLE = [Asked(5, 2), Asked(5, 3), Asked(6, 3), Asked(4, 3), Asked(5, 2)]


def steps(budget: Budget, **how: Any) -> list[tuple[dict[str, int], str, Any, int]]:
    """Of each iteration: prompt tokens by request, who generates, what binds, tokens lost."""
    return [
        ({p.name: p.end - p.begin for p in each.context}, "".join(each.generation), each.bound,
         each.rounded)
        for each in simulate(EXAMPLE, budget, **how)
    ]  # fmt: skip


def test_the_documented_example_without_chunks() -> None:
    assert steps(Budget(4, 12, 1)) == [
        ({"1": 5, "2": 5}, "", "max_num_tokens", 0),
        ({"3": 6, "4": 4}, "12", "max_batch_size", 0),
        ({"5": 5}, "234", None, 0),
        ({}, "345", None, 0),
    ]


def test_the_documented_example_with_chunks() -> None:
    assert steps(Budget(4, 12, 1, chunked=True)) == [
        ({"1": 5, "2": 5, "3": 2}, "", "max_num_tokens", 0),
        ({"3": 4, "4": 4}, "12", "max_batch_size", 0),
        ({"5": 5}, "234", None, 0),
        ({}, "345", None, 0),
    ]


def test_a_block_of_32_keeps_the_example_from_chunks() -> None:
    without = steps(Budget(4, 12, 32))
    assert without == steps(Budget(4, 12, 1))
    chunked = steps(Budget(4, 12, 32, chunked=True))
    assert [each[:3] for each in chunked] == [each[:3] for each in without]
    assert [each[3] for each in chunked] == [2, 0, 0, 0]


def test_the_overlap_scheduler_frees_a_slot_one_step_later() -> None:
    assert steps(Budget(4, 12, 1), overlap=True)[2:4] == [
        ({}, "234", "max_batch_size", 0),
        ({"5": 5}, "34", None, 0),
    ]


def test_a_static_batch_waits_for_its_end() -> None:
    shares = steps(Budget(2, 12, 1, policy="static_batch"))
    assert [context for context, *_ in shares if context] == [
        {"1": 5, "2": 5}, {"3": 6, "4": 4}, {"5": 5}
    ]  # fmt: skip


def test_what_never_runs_is_refused_by_number() -> None:
    with pytest.raises(UserError, match=r"request 2 .*13:1.*12 tokens"):
        list(simulate([Asked(5, 1), Asked(13, 1)], Budget(4, 12, 1)))
    with pytest.raises(UserError, match=r"request 1 .*needs 4 KV blocks, of 3"):
        list(simulate([Asked(5, 3)], Budget(4, 12, 2, blocks=3)))


def test_a_long_queue_is_not_gone_through_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0

    def counted(jobs: Sequence[Job], *limits: Any) -> Shares:
        nonlocal most
        most = max(most, len(jobs))
        return share_out(jobs, *limits)

    monkeypatch.setattr("trtllm_deploy.reference.simulation.share_out", counted)
    first, *_ = simulate([Asked(5, 2)] * 500, Budget(4, 12, 1))
    assert most <= 2 * 4 + 1
    assert (first.queued, len(first.waiting)) == (498, 64)


asked = st.lists(st.builds(Asked, st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=14)
budgets = st.builds(
    Budget,
    max_batch_size=st.integers(1, 6),
    max_num_tokens=st.integers(40, 90),
    tokens_per_block=st.sampled_from([1, 2, 8, 32]),
    blocks=st.sampled_from([None, 60, 90]),
    chunked=st.booleans(),
    policy=st.sampled_from(POLICIES),
)


@settings(max_examples=150, deadline=None)
@given(requests=asked, budget=budgets, overlap=st.booleans(), at_once=st.integers(1, 20))
def test_no_budget_is_exceeded_and_every_request_ends(
    requests: Sequence[Asked], budget: Budget, overlap: bool, at_once: int
) -> None:
    done = list(simulate(requests, budget, overlap=overlap, in_flight=at_once))
    made: Counter[str] = Counter()
    for each in done:
        assert each.requests + len(each.holding) <= budget.max_batch_size
        assert each.tokens <= budget.max_num_tokens
        assert budget.blocks is None or each.used <= budget.blocks
        if budget.policy != "max_utilization":
            assert not each.paused
            assert budget.blocks is None or each.reserved <= budget.blocks
        for part in each.context:
            whole = part.end == part.prompt
            assert whole or (part.end - part.begin) % budget.tokens_per_block == 0
            assert budget.chunked or (part.begin, part.end) == (0, part.prompt)
            made[part.name] += whole
        made.update(each.generation)
    assert sorted((name for each in done for name in each.ended), key=int) == [
        str(number) for number in range(1, len(requests) + 1)
    ]
    assert [made[str(n)] for n in range(1, len(requests) + 1)] == [e.output for e in requests]


LENGTHS = [(100, 60), (30, 40), (90, 70), (40, 20), (60, 50), (120, 30), (16, 60), (33, 30)]


@pytest.mark.parametrize(
    ("policy", "chunked"), [("guaranteed_no_evict", False), ("max_utilization", True)]
)
def test_the_reference_engine_does_what_was_predicted(policy: Any, chunked: bool) -> None:
    blocks = 26
    cache = CacheSettings(
        max_tokens_in_paged_kv_cache=blocks * LIMITS.tokens_per_block,
        batch_scheduler_policy=policy,
        enable_chunked_context=chunked,
    )
    with running(cache) as engine:
        engine._scheduler.block_new_requests = True  # until all are there
        for length, output in LENGTHS:
            engine.submit(Request(prompt(length), output), lambda _chunk: None)
        while len(engine._scheduler.waiting_requests) < len(LENGTHS):
            time.sleep(0.005)
        engine._scheduler.block_new_requests = False
        while engine._streams:
            time.sleep(0.005)
        records, counts = engine.iterations(), engine.statistics()["iteration"]
        assert engine.iterations() == []
    budget = Budget(
        LIMITS.max_batch_size, LIMITS.max_num_tokens, LIMITS.tokens_per_block, blocks, chunked,
        policy, spare=1,
    )  # fmt: skip
    done = list(simulate([Asked(*each) for each in LENGTHS], budget))
    seen = read_iterations(str(records).replace("'", '"'), "the engine")
    ours = predicted(done)
    shares = [(each.requests, each.generation, each.context_tokens) for each in seen]
    assert shares == [(each.requests, each.generation, each.context_tokens) for each in ours]
    assert apart(ours, seen) == 0
    assert any(each.paused for each in done) == (policy == "max_utilization")
    assert {figure.error for figure in compare(ours, seen, 4, 128)} <= {0.0, None}
    assert counts["total"] == len(done)
    bounds = Counter(each.bound for each in done if each.bound)
    assert {bound: counts[f"at_{bound}"] for bound in bounds} == dict(bounds)
    assert counts["waited"] == bounds.total()


def test_records_of_trtllm_serve_are_read_and_others_refused() -> None:
    one = (
        '{"iter": 7, "numQueuedRequests": 2, "inflightBatchingStats": {"numScheduledRequests": 3, '
        '"numContextRequests": 1, "numGenRequests": 2, "numCtxTokens": 50}, "kvCacheStats": null}'
    )
    (step,) = read_iterations(f"[{one}]", "f")
    assert (step.requests, step.tokens, step.waiting) == (3, 52, 2)
    idle = one.replace('"numScheduledRequests": 3', '"numScheduledRequests": 0')
    assert read_iterations(f"{one}\n[{idle}, {one}]\n", "f") == [step, step]
    for wrong in ("", "nv_x 1\n", "[1]", '[{"iter": 1}]'):
        if wrong:
            with pytest.raises(UserError, match="holds no iteration records"):
                read_iterations(wrong, "f")
    assert read_iterations("[]", "f") == []


def _iterations(budget: Budget) -> list[Iteration]:
    return list(simulate(EXAMPLE, budget))


def test_a_strip_has_a_character_for_each_token() -> None:
    first, second, *_ = _iterations(Budget(4, 12, 1, chunked=True))
    assert "".join(text for text, _ in strip(first, 12, 36)) == "111112222233"
    assert "".join(text for text, _ in strip(second, 12, 36)) == "1233334444··"
    assert len("".join(text for text, _ in strip(first, 120, 36))) == 36


def test_the_picture_is_an_svg_with_words_for_who_cannot_see_it() -> None:
    budget = Budget(4, 12, 1, chunked=True)
    picture = ElementTree.fromstring(schedule_svg(_iterations(budget), budget))
    space = "{http://www.w3.org/2000/svg}"
    assert "max_num_tokens 12" in str(picture.findtext(f"{space}title"))
    assert "4 of 4 iterations, 5 requests" in str(picture.findtext(f"{space}desc"))
    numbers = [t.text for t in picture.iter(f"{space}text") if t.get("text-anchor") == "middle"]
    assert numbers == ["5", "5", "2", "4", "4", "5"]
    assert not any("http" in value for each in picture.iter() for value in each.attrib.values())
