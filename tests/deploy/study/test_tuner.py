"""The search of ``tune`` on servers that are made up, in no time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from trtllm_deploy.study.evidence import EngineLimits, Evidence, read_evidence
from trtllm_deploy.study.price import rehearse
from trtllm_deploy.study.space import Lessons, Point, Setting, Space
from trtllm_deploy.study.tuner import Blocks, Ending, Found, Search, Seen, Tuner

PROMPT, OUTPUT, BLOCK = 40, 40, 16
COLUMNS = ["scheduled", "waiting", "context", "tokens", "kv_free", "kv_max", "times"]
WIDE = {"max_batch_size": 64, "max_num_tokens": 4096, "kv_tokens": 64_000}


def measured(
    in_flight: float, rows: list[list[float]], queue_ms: float = 0, **server: Any
) -> dict[str, Any]:
    metrics = {
        "requests_in_flight": {"avg": in_flight},
        "request_latency": {"avg": 1000.0},
        "server_queue_time": {"avg": queue_ms},
    }
    engine = {"engine": {"columns": COLUMNS, "rows": rows}} if rows else {}
    return {"metrics": metrics, "server_metrics": {**engine, **server}}


def evidence_of(values: dict[str, Any], in_flight: int) -> tuple[Evidence, float]:
    """What an engine with these limits is seen at, and how many requests run at once."""
    known = {**WIDE, **values}
    pages = known["kv_tokens"] // BLOCK
    need = math.ceil((PROMPT + OUTPUT) / BLOCK)
    running = min(in_flight, known["max_batch_size"], pages // need)
    waiting = in_flight - running
    tokens = min(known["max_num_tokens"], PROMPT + running - 1)
    decode = [running, waiting, 0, running, pages - running * need // 2, pages, 4]
    prefill = [running, waiting, 1, tokens, pages - running * need // 2, pages]
    rows = [decode, [*prefill, 1 + 2 * (PROMPT // known["max_num_tokens"])]]
    limits = EngineLimits(known["max_batch_size"], known["max_num_tokens"], BLOCK, chunk=1)
    queue = 1000 * waiting / in_flight
    blocks: list[Any] = [measured(in_flight, rows, queue)]
    return read_evidence(blocks, limits, PROMPT, OUTPUT), running


@pytest.mark.parametrize(
    ("planted", "blamed"),
    [
        ({"max_batch_size": 1}, "batch"),
        ({"max_num_tokens": 16}, "tokens"),
        ({"kv_tokens": 160}, "kv"),
    ],
)
def test_a_planted_limit_is_named_and_not_blamed_where_it_does_not_bind(
    planted: dict[str, int], blamed: str
) -> None:
    evidence, _ = evidence_of(planted, 8)
    assert evidence.binds == blamed
    assert "binds" in evidence.verdict
    roomy = {name: WIDE[name] for name in planted}
    assert evidence_of(roomy, 8)[0].binds is None
    if blamed != "tokens":  # a prompt longer than a step is cut, whoever else is there
        alone, _ = evidence_of(planted, 1)
        assert alone.binds is None and "no limit was reached" in alone.verdict


def test_iterations_that_the_server_counts_count() -> None:
    label = "iteration_specific_metric"
    grown = {"total": 200, "waited": 60, "at_kv_cache": 60, "at_max_batch_size": 0}
    gauges = [
        {"name": "nv_trt_llm_iteration_metrics", "labels": {label: key}, "min": 10, "max": 10 + by}
        for key, by in grown.items()
    ]
    limits = EngineLimits(8, 1024)
    blocks: list[Any] = [measured(4, [[1, 0, 0, 1, 90, 100, 5]], gauges=gauges)]
    evidence = read_evidence(blocks, limits, PROMPT, OUTPUT)
    assert evidence.binds == "kv" and evidence.shares["kv"] == pytest.approx(0.3)


def test_without_the_server_little_s_law_decides() -> None:
    blocks: list[Any] = [measured(7.4, [])]
    assert read_evidence(blocks, EngineLimits(4), 1, 1).binds == "batch"
    below = read_evidence(blocks, EngineLimits(8), 1, 1)
    assert below.binds is None and "as far as the client can tell" in below.verdict
    assert "the server tells nothing" in str(below)


def test_requests_that_an_engine_never_took_are_seen_by_their_queue_time() -> None:
    """TensorRT-LLM counts those as waiting that it has taken, which are as many as run."""
    full = [[4.0, 0, 0, 4, 90, 100, 9]]
    held: list[Any] = [measured(8, full, 500)]
    alone: list[Any] = [measured(4, full, 1)]
    assert read_evidence(held, EngineLimits(4), 1, 1).binds == "batch"
    assert read_evidence(alone, EngineLimits(4), 1, 1).binds is None


def run(
    space: Space,
    world: Callable[[Point], Seen],
    unfit: Callable[[Point], str | None] = lambda _: None,
    rate: Callable[[Point], float] | None = None,
    blocks: int = 2,
) -> tuple[Ending, list[Blocks | Search]]:
    """Answer a search from a made-up world; also what it asked for."""
    tuner = Tuner(space, unfit, blocks, searches=rate is not None)
    steps, asked = tuner.steps(), list[Blocks | Search]()
    try:
        ask = next(steps)
        while True:
            asked.append(ask)
            if isinstance(ask, Search):
                assert rate is not None
                at = rate(ask.point)
                ask = steps.send(Found(at, 0.95 * at, 1.05 * at))
                continue
            answer = {}
            for point in ask.points:
                seen = world(point)
                cost = dict.fromkeys(ask.numbers, seen.cost[0]) if seen.cost else {}
                answer[point] = Seen(cost, seen.evidence, seen.failed)
            ask = steps.send(answer)
    except StopIteration as ended:
        return ended.value, asked


def engine(in_flight: int, fails: Callable[[Point], bool] = lambda _: False) -> Any:
    def world(point: Point) -> Seen:
        if fails(point):
            return Seen(failed="out of memory")
        values = {key: value for key, value in point.values if key in WIDE}
        evidence, running = evidence_of(values, in_flight)
        steps = 1 + PROMPT / values.get("max_num_tokens", 4096)
        return Seen({0: math.log(steps) - math.log(running)}, evidence)

    return world


def test_the_setting_that_binds_is_doubled_until_another_binds() -> None:
    space = Space((Setting("max_batch_size", (1,), 64), Setting("max_num_tokens", (16,), 1024)))
    ending, asked = run(space, engine(16))
    assert dict(ending.best.values) == {"max_batch_size": 16, "max_num_tokens": 64}
    tried = {point for each in asked if isinstance(each, Blocks) for point in each.points}
    assert len(tried) == 7  # of 7 * 7: only what the evidence asked for
    assert any("max_batch_size binds: max_batch_size to 2" in each for each in ending.path)
    assert ending.path[-1].endswith("no limit was reached")


def test_a_planted_setting_that_does_not_bind_is_left_alone() -> None:
    space = Space((Setting("max_batch_size", (8,), 64),))
    ending, asked = run(space, engine(4))
    assert ending.best == space.baseline and len(asked) == 1


def test_what_failed_excludes_what_asks_for_more() -> None:
    space = Space((Setting("max_batch_size", (1, 2, 4, 8)), Setting("max_num_tokens", (64, 128))))
    ending, asked = run(space, engine(16, lambda p: float(p["max_batch_size"]) >= 4))
    tried = {point for each in asked if isinstance(each, Blocks) for point in each.points}
    assert Point((("max_batch_size", 8), ("max_num_tokens", 64))) not in tried
    assert "asks for no less than max_batch_size=4 max_num_tokens=64, which failed" in str(
        ending.excluded
    )
    assert ending.best["max_batch_size"] == 2


def test_the_memory_plan_excludes_before_anything_is_built() -> None:
    space = Space((Setting("max_batch_size", (1, 2, 4)),))
    ending, asked = run(
        space, engine(16), lambda p: "doesn't fit" if p["max_batch_size"] == 4 else None
    )
    tried = {point for each in asked if isinstance(each, Blocks) for point in each.points}
    assert len(tried) == 2 and ending.best["max_batch_size"] == 2
    assert list(ending.excluded.values()) == ["doesn't fit"]


def test_listed_combinations_are_halved_with_twice_the_blocks() -> None:
    space = Space((Setting("a", tuple(range(4))), Setting("b", (0, 1))))

    def world(point: Point) -> Seen:
        return Seen({0: -float(point["a"]) - 0.5 * float(point["b"])})

    ending, asked = run(space, world, rate=lambda point: 10 + float(point["a"]) + float(point["b"]))
    rounds = [(len(each.points), len(each.numbers)) for each in asked if isinstance(each, Blocks)]
    assert rounds == [(1, 2), (8, 2), (5, 4)]  # the baseline beside 4 of them
    assert dict(ending.best.values) == {"a": 3, "b": 1}
    searched = [each.point for each in asked if isinstance(each, Search)]
    assert searched[0] == space.baseline and ending.best in searched and len(searched) == 3
    blocks = [set(each.numbers) for each in asked if isinstance(each, Blocks)]
    assert sum(map(len, blocks)) == len(set().union(*blocks))  # each with arrivals of its own


def test_the_highest_rate_decides_among_finalists() -> None:
    space = Space((Setting("a", (0, 1, 2)),))
    rates = {0: 5.0, 1: 9.0, 2: 7.0}
    ending, _ = run(space, lambda p: Seen({0: -float(p["a"])}), rate=lambda p: rates[int(p["a"])])
    assert ending.best["a"] == 1 and ending.rates[space.baseline] == Found(5, 4.75, 5.25)


def test_rates_that_are_not_told_apart_leave_it_to_the_blocks() -> None:
    space = Space((Setting("a", (0, 1, 2)),))
    rates = {0: 5.0, 1: 9.0, 2: 8.9}
    ending, _ = run(space, lambda p: Seen({0: -float(p["a"])}), rate=lambda p: rates[int(p["a"])])
    assert ending.best["a"] == 2 and "aren't told apart: the blocks decide" in ending.path[-1]


def test_a_baseline_whose_server_fails_in_its_search_ends_the_search() -> None:
    space = Space((Setting("max_batch_size", (1, 2)),))
    tuner = Tuner(space, lambda _: None)
    steps = tuner.steps()
    assert next(steps) == Search(space.baseline)
    tuner.lessons.learn(space.baseline, "out of memory")
    with pytest.raises(StopIteration) as ended:
        steps.send(None)
    assert ended.value.value.excluded == {space.baseline: "out of memory"}


def test_what_is_asked_for_is_known_before_and_in_the_order_of_what_is_expected() -> None:
    space = Space((Setting("a", tuple(range(4))), Setting("b", (0, 1))))

    def by_a(point: Point) -> float:
        return float(point["a"])

    world = lambda _: Seen({0: 0.0})  # noqa: E731
    _, asked = run(space, world, lambda p: "too large" if p["a"] == 3 else None, lambda _: 1.0)
    blocks = [each for each in asked if isinstance(each, Blocks)]
    told = rehearse(Tuner(space, lambda p: "too large" if p["a"] == 3 else None))
    assert told.blocks == sum(len(each.points) * len(each.numbers) for each in blocks)
    assert told.searches == sum(isinstance(each, Search) for each in asked)
    assert told.starts == told.searches + sum(len(each.points) for each in blocks)
    assert len(told.points) == 6 and len(told.excluded) == 2
    ordered = rehearse(Tuner(space, lambda _: None, expected=by_a)).points
    assert ordered[0] == space.baseline and [p["a"] for p in ordered[1:]] == [3, 3, 2, 2, 1, 1, 0]


@pytest.mark.parametrize(
    ("point", "failed", "excluded"),
    [
        (("fp16", 8, True), ("fp8", 8, True), True),
        (("fp8", 8, True), ("fp16", 8, True), False),
        (("fp16", 4, True), ("fp8", 8, True), False),
        (("fp16", 8, False), ("fp16", 8, True), False),
    ],
)
def test_worse_in_every_direction_is_by_memory(point: Any, failed: Any, excluded: bool) -> None:
    names = ("precision", "max_batch_size", "multi_block_mode")
    lessons = Lessons()
    lessons.learn(Point(tuple(zip(names, failed, strict=True))), "out of memory")
    why = lessons.against(Point(tuple(zip(names, point, strict=True))))
    assert (why is not None) is excluded


@pytest.mark.parametrize(("blocks", "best"), [(2, 4), (3, 1)])
def test_a_step_that_is_worse_by_chance_does_not_end_the_climb(blocks: int, best: int) -> None:
    space = Space((Setting("max_batch_size", (1,), 4),))
    worth = {1: 0.0, 2: 0.3, 4: -1.0}

    def world(point: Point) -> Seen:
        size = int(point["max_batch_size"])
        evidence, _ = evidence_of({"max_batch_size": size}, 8)
        return Seen({0: worth[size]}, evidence)

    ending, _ = run(space, world, blocks=blocks)
    assert ending.best["max_batch_size"] == best
    assert any("worse in every block" in each for each in ending.path) == (best == 1)
