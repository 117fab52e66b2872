"""``explain scheduling`` as typed: what is shown, written, refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from llm_perf.errors import UserError
from trtllm_deploy.cli.main import command

TOY = ["--max-batch-size", "4", "--max-num-tokens", "12", "--tokens-per-block", "1"]


def explain(*words: str) -> str:
    done = CliRunner().invoke(command, ["explain", "scheduling", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_documented_example_is_drawn() -> None:
    shown = explain(*TOY, "--chunked-context", "--requests", "5:2,5:3,6:3,4:3,5:2")
    rows = [line.split() for line in shown.splitlines()]
    assert ["1", "111112222233", "12", "3/4", "tokens:", "45"] in rows
    assert ["2", "1233334444··", "10", "4/4", "batch:", "5"] in rows
    assert "max_batch_size in 1 (25%), max_num_tokens in 1 (25%)" in shown


def test_it_says_why_chunking_is_idle() -> None:
    words = [*TOY[:4], "--chunked-context", "--requests"]
    assert "was idle: kept from 2 tokens in 1 iterations" in explain(*words, "5:2,5:3,6:3")
    assert "idle: every prompt fitted whole" in explain(*words, "5:2,5:3")


@pytest.mark.parametrize(
    "line",
    [
        {"task_id": 0, "input_ids": [1] * 5, "output_tokens": 2},
        {"timestamp": 0, "input_length": 5, "output_length": 2},
    ],
)
def test_lengths_come_from_files_that_say_them(tmp_path: Path, line: object) -> None:
    (file := tmp_path / "w.jsonl").write_text(f"{json.dumps(line)}\n" * 3)
    assert "3 requests in 3 iterations" in explain(*TOY, "--workload", str(file))


def test_prompts_are_counted(tmp_path: Path) -> None:
    model = Path(__file__).parents[3] / "examples" / "number-words" / "model"
    (file := tmp_path / "w.jsonl").write_text('{"text_input": "one two", "max_tokens": 2}\n')
    shown = explain(*TOY, "--workload", str(file), "--tokenizer-path", str(model))
    assert "1 requests in 2 iterations" in shown
    assert "as long as they may, 2 tokens" in shown


def test_a_server_s_records_are_held_against_it_and_the_picture_is_written(tmp_path: Path) -> None:
    batch = {"numScheduledRequests": 2, "numGenRequests": 0, "numCtxTokens": 10}
    later = {"numScheduledRequests": 2, "numGenRequests": 2, "numCtxTokens": 0}
    records = [{"inflightBatchingStats": each} for each in (batch, later, later)]
    (file := tmp_path / "r.json").write_text(json.dumps(records))
    words = ["--requests", "5:2,5:2", "--iterations", str(file), "--svg", str(tmp_path / "s.svg")]
    shown = [line.split() for line in explain(*TOY, *words).splitlines()]
    assert ["iterations", "2.00", "3.00", "-33.3%"] in shown
    assert ["requests", "per", "iteration", "2.00", "2.00", "+0.0%"] in shown
    assert (tmp_path / "s.svg").read_text().startswith("<svg ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give --requests or --workload"),
        (["--requests", "5:2,x"], "'x' is no ISL:OSL"),
        (["--requests", "0:2"], "request 1 has 0:2 tokens"),
        (["--requests", "13:2"], "never fits into 12 tokens"),
        (["--requests", "5:2", "--kv-blocks", "3"], "needs 7 KV blocks, of 3"),
        (["--workload", "gone.jsonl"], "gone.jsonl: can't be read"),
        (["--requests", "5:2", "--iterations", __file__], "holds no iteration records"),
    ],
)
def test_what_cannot_be_played_is_refused_in_a_line(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        explain(*TOY, *words)
    assert said in str(error.value) and "\n" not in str(error.value)
