"""What a run keeps is bounded, whatever the server sends."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat

import pytest

from llm_perf.api import Concurrency, Conditions, Endpoint, Status, load_workload, measure
from tests.client.scripted import FINAL, Say, ScriptedTriton

LIMIT = 100_000
ENDLESS = repeat(Say("x" * 1000, 1))
HUGE = [Say("x" * 10 * LIMIT, 1), FINAL]
GOOD = [Say("one", 1), Say(" two", 1), FINAL]


@pytest.mark.parametrize("transport", ["grpc", "grpc.aio", "tritonclient"])
@pytest.mark.parametrize("answer", [ENDLESS, HUGE], ids=["endless", "one huge message"])
def test_an_answer_without_an_end_is_cut_and_its_own_status(
    answer, transport: str, write_prompts: Callable[..., object], tokenizer_folder
) -> None:
    prompts = write_prompts({"text_input": "bad", "max_tokens": 10}, "good")
    with ScriptedTriton(lambda prompt: answer if prompt == "bad" else GOOD) as server:
        place = Endpoint(server.url, "grpc", "ensemble", transport)
        workload = load_workload(prompts, tokenizer_folder)
        conditions = Conditions(request_timeout_s=20, max_answer_bytes=LIMIT)
        run = measure(place, workload, Concurrency(1), conditions)
    bad, good = run.records
    assert (bad.status, good.status) == (Status.OVERLONG, Status.OK)
    assert len(bad.answer) <= LIMIT + 10 * 1024
    assert "failed requests: 1 overlong" in run.notes[0]
