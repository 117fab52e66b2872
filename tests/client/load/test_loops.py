"""Every loop with every number of workers: what they finished is handed in, however much it is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llm_perf.api import Concurrency, Conditions, Endpoint, Extent, Prompt
from llm_perf.load.arrivals import plan
from llm_perf.load.runner import Job
from llm_perf.load.workers import run_workers
from tests.client.scripted import FINAL, Say, ScriptedTriton, Step

LONG = "x" * 2**16
MANY = 60  # together far more than a pipe or a socket pair holds, some 200 KiB


def long_answer(prompt: str) -> list[Step]:
    return [Say(prompt, 1), Say(LONG, 1), FINAL]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("fast", [True, False], ids=["uvloop", "asyncio"])
def test_outcomes_larger_than_a_pipe_are_handed_in(
    fast: bool, workers: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if fast:
        pytest.importorskip("uvloop")
    else:  # not to be had, here and in workers: they search where we do
        (tmp_path / "uvloop.py").write_text("raise ImportError")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "uvloop", raising=False)
    prompts = tuple(Prompt(i, f"p{i} ", 1, 2) for i in range(MANY))
    order = plan(Concurrency(6), Extent(), MANY)
    with ScriptedTriton(long_answer) as server:
        place = Endpoint(server.url, "grpc", "ensemble")
        # without a journal all comes through the pipe
        outcomes = run_workers(Job(place, prompts, order, Conditions()), workers)
    assert len(outcomes) == workers
    read = outcomes[0].dialect.parse
    answers = {
        number: b"".join(read(message).text for _, message in seen.messages).decode()
        for outcome in outcomes
        for number, seen in outcome.exchanges.items()
    }
    assert answers == {prompt.index: prompt.text + LONG for prompt in prompts}
