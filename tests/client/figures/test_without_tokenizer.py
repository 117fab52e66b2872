"""Without a tokenizer the figures are of the server's counts, or there are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_perf.api import Concurrency, Endpoint, Run, load_workload, measure
from llm_perf.errors import UserError
from llm_perf.record import Status
from tests.client.scripted import ENSEMBLE, FINAL, Say, ScriptedTriton
from tests.client.talking import TalkingServer

Write = Callable[..., Path]


def run(url: str, protocol: str, model: str, prompts: Path) -> Run:
    return measure(Endpoint(url, protocol, model), load_workload(prompts, None), Concurrency(1))


def test_isl_and_osl_are_the_servers(write_prompts: Write) -> None:
    with TalkingServer() as server:
        done = run(server.url, "openai", "m", write_prompts("a b", "c"))
    assert done.metrics["input_sequence_length"]["avg"] == 7
    assert done.metrics["output_sequence_length"]["avg"] == 3
    assert done.metrics["input_token_throughput"]["avg"] > 0
    assert done.description()["workload"]["tokenizer"] is None
    assert done.token_counts.tokenizer is None and done.token_counts.mismatches == 0
    assert "ISL and OSL are the server's: there was no tokenizer" in done.notes


def test_a_server_that_counts_nothing_is_refused_before_the_start(write_prompts: Write) -> None:
    with (
        TalkingServer(counts=False) as server,
        pytest.raises(UserError, match="the server counts no tokens; give --tokenizer-path"),
    ):
        run(server.url, "openai", "m", write_prompts("a"))
    assert [body["max_tokens"] for body in server.asked] == [1]


def test_an_answer_that_nobody_has_counted_is_no_answer(write_prompts: Write) -> None:
    with TalkingServer() as server:
        server.silent_for = "a"
        done = run(server.url, "openai", "m", write_prompts("a", "b"))
    first, second = done.records
    assert (first.status, second.status) == (Status.ERROR, Status.OK)
    assert first.error is not None and "--tokenizer-path" in first.error


def test_triton_counts_the_answer_and_the_prompt_where_it_can(write_prompts: Write) -> None:
    def script(prompt: str) -> list[Say]:
        return [Say("one", 1), Say(" two", 2), FINAL]

    with ScriptedTriton(script) as server:
        done = run(server.url, "grpc", "ensemble", write_prompts("a"))
        assert done.metrics["output_sequence_length"]["avg"] == 3
        assert done.metrics["input_sequence_length"]["count"] == 0
        assert done.metrics["total_token_throughput"]["avg"] is None
    silent = ENSEMBLE.replace("sequence_length", "x").replace("output_ids", "y")
    with (
        ScriptedTriton(script, models=(silent,)) as server,
        pytest.raises(UserError, match="counts no tokens; give --tokenizer-path"),
    ):
        run(server.url, "grpc", "ensemble", write_prompts("a"))


@pytest.mark.parametrize("line", [{"input_length": 9}, {"text": "a"}])
def test_what_takes_a_tokenizer_says_so(write_prompts: Write, line: dict[str, object]) -> None:
    with pytest.raises(UserError, match="takes the model's tokenizer; give --tokenizer-path"):
        load_workload(write_prompts(line), None, chat_template="text" in line)
