"""The command ``tune``, from its block to the patch, on servers that are quick to start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llm_perf import Endpoint
from llm_perf.errors import UserError
from llm_perf.ledger.ledger import read_measurements
from tests.deploy.study.token_server import TokenServer, token_servers
from trtllm_deploy.cli.options import planned
from trtllm_deploy.cli.tune import _Cells, tune
from trtllm_deploy.machine.gpu import Gpu
from trtllm_deploy.plan.plan import CellPlan
from trtllm_deploy.study.space import Point
from trtllm_deploy.study.tune import Placed
from trtllm_deploy.study.up import Up
from trtllm_deploy.study.worth import cost

EXAMPLE = Path(__file__).parents[3] / "examples/number-words"
FILE = f"""
backend: reference
models: {{words: {{source: {EXAMPLE}/model}}}}
precisions: [fp16]
calibration: {{data: {EXAMPLE}/calibration.jsonl}}
matrix:
  max_batch_size: [1]  # as it was
  isl_osl: ["64,8"]
measure: {{data: prompts.jsonl}}
tune:
  concurrency: 2
  requests: 8
  blocks: 1
  settings:
    max_batch_size: 1..64
"""


started: list[int] = []


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"text_input": f"{n} in words:"}) + "\n" for n in range(16))
    )
    path = tmp_path / "d.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[TokenServer]]:
    """Cells of max_batch_size 1, 2 and 4 are served at once, and more of them fail to start."""

    def build(cells: _Cells, placed: Placed) -> None:
        tokenizer = cells.asked.workspace.artifact(placed.plan.fetch)
        tokenizer.parent.mkdir(parents=True, exist_ok=True)
        if not tokenizer.exists():
            tokenizer.symlink_to(EXAMPLE / "model")

    started.clear()
    with token_servers(3, 30, 300) as servers:
        for each in servers:
            each.pause_s = 0.05

        @contextmanager
        def served(plan: CellPlan, *_: Any) -> Iterator[Up]:
            started.append(plan.cell.max_batch_size)
            by_size = dict(zip((1, 2, 4), servers, strict=True))
            if plan.cell.max_batch_size not in by_size:
                raise UserError("out of memory")
            url = by_size[plan.cell.max_batch_size].url
            yield Up(Endpoint(url, "openai", "m"))

        monkeypatch.setattr(_Cells, "build", build)
        monkeypatch.setattr("trtllm_deploy.study.tune.served", served)
        yield servers


def invoke(file: Path, *words: str) -> Result:
    asked = [str(file), "--workspace", str(file.parent / "w"), *words]
    return CliRunner().invoke(tune, asked, standalone_mode=False)


def test_the_limit_that_binds_is_moved_and_the_best_is_a_patch(
    file: Path, quick: list[TokenServer]
) -> None:
    came = invoke(file)
    assert came.return_value == 0, came.output
    assert "step: max_batch_size=1: max_batch_size binds: max_batch_size to 2" in came.stdout
    assert "step: max_batch_size=2: no limit was reached" in came.stdout
    assert "not tried" not in came.stdout and not [x for x in quick[2].log if x[0] == "C"]
    assert "-  max_batch_size: [1]  # as it was\n+  max_batch_size: [2]  # as it was" in came.stdout
    kept = (file.parent / "w/results/tune-d.patch").read_text()
    assert kept in came.stdout and "in flight" in came.stdout
    quick[0].log.clear()
    assert invoke(file).return_value == 0 and not quick[0].log  # all of it is in the ledger
    file.write_text(FILE.replace("[1]  # as it was", "[2]  # as it was"))
    assert "nothing is better: the file has the best settings" in invoke(file).stdout


def test_what_breaks_the_score_is_left_out_and_not_called_untried(
    file: Path, quick: list[TokenServer]
) -> None:
    asked = ({"text_input": str(number), "reference": "none"} for number in range(16))
    (file.parent / "prompts.jsonl").write_text("".join(json.dumps(x) + "\n" for x in asked))
    text = FILE.replace("1..64", "[1, 2]").replace(
        "  concurrency", "  limits: [score>=0.5]\n  concurrency"
    )
    file.write_text(text)
    came = invoke(file)
    assert "left out: max_batch_size=2: its score, 0.000, breaks score>=0.5" in came.stdout
    assert "nothing is better, but its score, 0.000, breaks score>=0.5" in came.stdout
    assert "not tried" not in came.stdout and quick[1].log


def test_a_failed_start_ends_the_climb_and_is_told(file: Path, quick: list[TokenServer]) -> None:
    text = FILE.replace("concurrency: 2", "concurrency: 8").replace("requests: 8", "requests: 16")
    file.write_text(text)
    came = invoke(file)
    assert came.return_value == 0, came.output
    assert "not tried: max_batch_size=8: out of memory" in came.stdout
    assert "+  max_batch_size: [4]" in came.stdout


def test_what_failed_in_a_round_keeps_worse_from_starting_in_it(
    file: Path, quick: list[TokenServer]
) -> None:
    text = FILE.replace("concurrency: 2", "concurrency: 1")  # nothing binds: there is no climb
    file.write_text(text.replace("1..64", "[1, 8, 16]"))
    came = invoke(file)
    assert came.return_value == 0, came.output
    assert 8 in started and 16 not in started and quick[0].log
    said = "not tried: max_batch_size=16: asks for no less than max_batch_size=8, which failed"
    assert f"{said}: out of memory" in came.stdout


def test_the_cost_is_said_before_and_as_time_once_a_block_was_seen(
    file: Path, quick: list[TokenServer]
) -> None:
    file.write_text(FILE.replace("1..64", "[1, 2]"))
    came = invoke(file)
    said = came.stderr.splitlines()
    assert "combinations: 2; server starts: 3" in said[0] and "of load" not in said[0]
    assert "To make: 1 fetch, 1 checkpoint, 2 engine, 2 repository." in said[0]
    assert "blocks of 8 requests: 3" in said[0] and quick[0].log
    assert any("blocks of 8 requests: 3, " in each and "of load" in each for each in said[1:])


def test_the_roofline_expects_more_of_larger_batches_and_of_no_unknown_gpu(file: Path) -> None:
    file.write_text(FILE.replace("  concurrency: 2\n", "  concurrency: 64\n"))
    asked = planned(file, file.parent / "w")
    gpus = [Gpu(0, name, 80 * 2**30, "9.0") for name in ("NVIDIA H100 80GB HBM3", "some card")]
    facts = [replace(asked.facts, gpus=(each,)) for each in gpus]
    lease: Any = None
    known, unknown = (_Cells(replace(asked, facts=each), None, lease) for each in facts)
    small, large = (Point((("max_batch_size", size),)) for size in (1, 64))
    assert known.expected(large) > 4 * known.expected(small) > 0
    assert unknown.expected(large) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FILE.partition("tune:")[0], "no 'tune:' block"),
        (FILE.replace("  concurrency: 2\n", ""), "without limits there is no highest rate"),
        (FILE.replace("  requests", "  request_rate: 2\n  requests"), "there are two loads"),
        (FILE.replace("1..64", "[1, x]"), r"max_batch_size\b.*should be a valid integer"),
        (FILE.replace("concurrency: 2", "limits: [ttft<1s]"), "is no limit|of a run is many"),
    ],
)
def test_what_can_not_be_tuned_is_told_in_a_line(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        CliRunner().invoke(
            tune,
            [str(file), "--workspace", str(file.parent / "w")],
            standalone_mode=False,
            catch_exceptions=False,
        )


def block(kind: str, ttft: float, speed: float, failed: int = 0, score: float = 1) -> Any:
    return {
        "requests_ok": 10 - failed,
        "requests_failed": failed,
        "load": {"kind": kind},
        "score": {"value": score},
        "metrics": {
            "time_to_first_token": {"p95": ttft},
            "output_token_throughput": {"avg": speed},
        },
    }


def test_a_cell_costs_what_it_is_nearer_to_its_limits_or_slower_or_fails() -> None:
    from llm_perf.api import parse_limit

    limits = [parse_limit("ttft.p95<1s", "x"), parse_limit("score>=0.9", "x")]
    rate, closed = "request_rate", "concurrency"
    assert cost(block(rate, 500, 10), limits) < cost(block(rate, 900, 99), limits) < 0
    assert cost(block(rate, 50, 10), limits) < cost(block(rate, 100, 10), limits)  # both score 1
    assert cost(block(rate, 1100, 10), limits) > 0
    assert cost(block(rate, 500, 10, score=0.5), limits) > 0
    assert cost(block(closed, 500, 20), limits) < cost(block(closed, 100, 10), limits)
    assert cost(block(closed, 500, 20), limits) < cost(block(closed, 5000, 20), limits)
    assert cost(block(rate, 500, 10, failed=5), limits) > cost(block(rate, 500, 10), limits)
    assert cost(block(rate, 500, 10, failed=10), limits) == float("inf")


def test_without_a_load_cells_compete_at_the_baseline_s_highest_rate(
    file: Path, quick: list[TokenServer]
) -> None:
    load = "limits: [ttft.p95<30s, score>=0]\n  budget: 500ms"
    text = FILE.replace("concurrency: 2", load).replace("1..64", "[1, 2]")
    file.write_text(text)
    came = invoke(file)
    assert came.return_value == 0, came.output
    assert "looking for the highest rate of max_batch_size=1" in came.stderr
    kinds = [each["kind"] for each in read_measurements(file.parent / "w/results")]
    assert kinds[0] == "probe" and "block" in kinds
    assert "comparing at " in came.stderr and "no rate was shown: the budget" in came.stderr
