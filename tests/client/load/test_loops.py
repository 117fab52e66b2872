"""Every loop with every number of workers: what they finished is handed in, however much it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_perf.api import Concurrency, Run
from tests.client.scripted import FINAL, Say, ScriptedTriton, Step

LONG = "x" * 2**16
MANY = 60  # together far more than a pipe or a socket pair holds, some 200 KiB


def long_answer(prompt: str) -> list[Step]:
    return [Say(prompt, 1), Say(LONG, 1), FINAL]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("fast", [True, False], ids=["uvloop", "asyncio"])
def test_outcomes_larger_than_a_pipe_are_handed_in(
    fast: bool,
    workers: int,
    ask: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    if fast:
        pytest.importorskip("uvloop")
    else:  # not to be had, here and in workers: they search where we do
        (tmp_path / "uvloop.py").write_text("raise ImportError")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "uvloop", raising=False)
    prompts = [f"p{i} " for i in range(MANY)]
    with ScriptedTriton(long_answer) as server:
        run = ask(server, *prompts, load=Concurrency(6), workers=workers)
    assert run.stopped is None
    assert run.answers == tuple(prompt + LONG for prompt in prompts)
