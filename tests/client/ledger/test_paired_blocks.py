"""Blocks of two servers: their differences are told from what both have in common."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from llm_perf.ledger.measurement import Measurement, Planned, Target
from llm_perf.ledger.paired_blocks import block_change, block_changes, drifts
from llm_perf.load.load import Concurrency
from llm_perf.results.export import write_run
from tests.client.runs import asked, make_run

A, B = (Target(name, f"127.0.0.1:{port}", "grpc", "m") for name, port in (("a", 1), ("b", 2)))


def blocks(ttfts_ms: Iterable[float], target: Target = A) -> list[Measurement]:
    made = []
    for number, ttft in enumerate(map(round, ttfts_ms)):
        run = make_run([asked(0, chunks_ms=(100 + ttft, 200 + ttft))])
        made.append(Planned(target, Concurrency(1), run.workload, repetition=number).measured(run))
    return made


def test_what_both_have_in_common_is_no_doubt_of_their_difference() -> None:
    common = np.random.default_rng(1).integers(5, 50, 8) * 100  # the same arrivals, the same day
    change = block_change(blocks(common), blocks((1.1 * common), B), "time_to_first_token", "avg")
    assert change is not None and change.percent == pytest.approx(10)
    assert change.sure and change.n == 8
    assert change.low == pytest.approx(change.high, rel=1e-6)


def test_of_two_servers_10_percent_apart_the_sign_is_right_and_the_difference_near() -> None:
    random = np.random.default_rng(2)
    for _ in range(40):
        common = random.lognormal(9, 0.4, 6)
        noise = random.normal(1, 0.01, (2, 6))
        a, b = blocks(common * noise[0]), blocks(1.1 * common * noise[1])
        change = block_change(a, b, "time_to_first_token", "avg")
        assert change is not None and change.sure
        assert change.percent == pytest.approx(10, abs=2)


def test_one_block_has_no_interval() -> None:
    change = block_change(blocks([10]), blocks([20], B), "time_to_first_token", "p50")
    assert change is not None and (change.low, change.percent) == (None, pytest.approx(100))


def test_a_drift_is_told_in_per_cent_of_the_mean() -> None:
    moved = dict(drifts(blocks([100, 110, 120, 130, 140])))
    assert moved["request_latency"].percent == pytest.approx(100 * 40 / 220)
    assert moved["request_latency"].sure


def scored(folder: Path, answers: str, target: Target) -> list[Measurement]:
    made = []
    for number, word in enumerate(answers.split()):
        run = make_run(
            [asked(2 * number + at, each, reference="x") for at, each in enumerate(word)]
        )
        write_run(run, folder / f"{target.name}{number}.json")
        planned = Planned(target, Concurrency(1), run.workload, repetition=number)
        made.append(planned.measured(run, {"requests": f"{target.name}{number}.jsonl"}))
    return made


def test_scores_are_paired_by_request_over_all_blocks(tmp_path: Path) -> None:
    a, b = scored(tmp_path, "xx xx xx xx", A), scored(tmp_path, "xy xx yx xx", B)
    changes = list(block_changes(a, b, tmp_path))
    score = next(each for each in changes if each.metric == "score")
    assert (score.a, score.b, score.n) == (1, 0.75, 8)
    assert score.low is not None and -0.7 < score.low < -0.25 < (score.high or 0)
