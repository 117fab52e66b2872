"""The table at the end of a study: repetitions as mean and spread, failures with their reason."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from statistics import stdev

from rich.console import Console

from llm_perf import api
from llm_perf.load.health import LoopSample, judge
from llm_perf.load.load import Concurrency, Rate
from tests.client.runs import FOUR, asked, make_run
from trtllm_deploy.study.table import print_summary

CELL = {"model": "m", "precision": "fp8", "tp": 1, "backend": "tensorrt", "multi_block_mode": True}


def measured(
    ttft_ms: int = 50, repetition: int = 0, load: api.Load = FOUR, **cell: object
) -> api.Measurement:
    run = make_run([asked(chunks_ms=(100 + ttft_ms, 200 + ttft_ms), reference="one two")], load)
    name = "-".join(["cell", *map(str, cell.values())])
    target = api.Target(name, "", "", "", cell={**CELL, **cell}, artifacts={})
    return api.Planned(target, load, run.workload, repetition=repetition).measured(run)


def printed(*measurements: api.Measurement) -> list[str]:
    console = Console(width=180, file=io.StringIO())
    print_summary(measurements, Path("results"), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_repetitions_are_one_row_with_mean_and_spread() -> None:
    lines = printed(measured(50), measured(50, multi_block_mode=False), measured(70, 1))
    head = next(line for line in lines if "TTFT p50" in line)
    assert "multi_block_mode" in head and "rate" not in head
    (row,) = [line for line in lines if " True " in line]
    assert f"60.00 ±{stdev([50, 70]):.2f}" in row and "1.000" in row
    (other,) = [line for line in lines if " False " in line]
    assert " 50.00 " in other and "±" not in other
    assert any("mean ± standard deviation of up to 2 repetitions" in line for line in lines)


def test_what_all_cells_have_in_common_takes_no_column() -> None:
    lines = printed(measured(), measured(load=Rate(2.5)))
    assert "model m  tp 1" in lines[0].strip()
    head = next(line for line in lines if "TTFT p50" in line)
    assert "multi_block_mode" not in head and "model" not in head
    assert "conc." in head and "rate" in head
    assert not any("±" in line for line in lines)


def test_who_was_too_busy_to_measure_is_told() -> None:
    slow = judge([LoopSample((10**8,) * 20, 0, 3 * 10**9)], [])
    line = measured()
    bound: api.Measurement = {**line, "client": slow.to_json(), "repetition": 1}
    assert printed(line, bound)[-1].startswith("1 of 2 measurements are CLIENT-BOUND")
    assert not any("CLIENT" in each for each in printed(line))


def test_a_failure_is_told_once_with_its_loads_and_leaves_no_row() -> None:
    run = make_run([asked()])
    target = api.Target("bad", "", "", "", cell=CELL, artifacts={})
    planned = [api.Planned(target, Concurrency(n), run.workload) for n in (1, 2)]
    failed = [each.failed("out of \x1b[31mmemory") for each in planned]
    *_, last = printed(measured(), *failed)
    assert last == "bad failed at concurrency 1, concurrency 2: out of \\x1b[31mmemory"
    assert printed(*failed) == [last]
    again = replace(planned[0], repetition=1).failed("no room")
    assert printed(*failed, again)[-1] == "bad failed at concurrency 1: no room"


def test_answers_of_unlike_lengths_are_told_for_their_rates_compare_nothing() -> None:
    def with_length(mean: float, **cell: object) -> api.Measurement:
        line = measured(**cell)
        return {**line, "workload": {**line["workload"], "osl_avg": mean, "osl_sd": 2.0}}

    lines = printed(with_length(13.7), with_length(14.7, backend="vllm", options={"dtype": "auto"}))
    (told,) = [line for line in lines if "aren't equally long" in line]
    assert "tensorrt 13.7 ± 2.0, vllm 14.7 ± 2.0" in told
    assert not any("dtype" in line for line in lines)
    alike = printed(with_length(128.0), with_length(128.5, backend="vllm"))
    assert not any("equally long" in line for line in alike)
