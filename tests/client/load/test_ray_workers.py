"""One run over a real Ray cluster of two nodes, which here share a machine."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from llm_perf.api import Concurrency, Load, Progress, Rate, Run
from llm_perf.errors import UserError
from tests.client.scripted import Abort, ScriptedTriton, Step, answer


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    try:
        yield nodes.address
    finally:
        nodes.shutdown()


@pytest.mark.parametrize("load", [Concurrency(4), Rate(100.0, "constant")])
def test_machines_together_ask_every_prompt_once_on_one_clock(
    load: Load, cluster: str, ask: Callable[..., Run]
) -> None:
    prompts = [f"p{i}" for i in range(20)]
    seen: list[Progress] = []
    with ScriptedTriton(answer) as server:
        run = ask(server, *prompts, load=load, workers=None, ray=cluster, watch=seen.append)
    assert run.answers == tuple(f"re {prompt}." for prompt in prompts)
    assert len(server.asked) == 20
    assert run.health is not None and run.health.workers == 2
    assert seen[-1].done == 20
    told = [note for note in run.notes if "clock was" in note]
    assert len(told) == 2  # the same clock, as both are one machine
    assert all(abs(float(note.split("clock was ")[1].split(" ms")[0])) < 1000 for note in told)
    sent = [record.sent_ns for record in run.records]
    assert max(sent) - min(sent) < 10_000_000_000


def test_what_is_wrong_on_a_machine_is_said(cluster: str, ask: Callable[..., Run]) -> None:
    with ScriptedTriton(answer) as server:
        server.configs.clear()
        with pytest.raises(UserError, match="has no model 'ensemble'"):
            ask(server, "a", "b", load=Concurrency(2), workers=None, ray=cluster)


def test_failures_on_all_machines_count_together(cluster: str, ask: Callable[..., Run]) -> None:
    hold = threading.Event()

    def script(prompt: str) -> list[Step]:
        hold.wait(0.05)
        return [Abort()]

    options = {"load": Concurrency(2), "workers": 2, "ray": cluster, "stop_after_failures": 5}
    with ScriptedTriton(script) as server:
        run = ask(server, *(f"p{i}" for i in range(500)), **options)
    assert run.stopped is not None and run.stopped.endswith("requests failed")
    assert 5 <= len(run.records) < 500


def test_without_ray_the_extra_is_named(
    ask: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"--ray: Ray isn't installed; pip install 'trtllm"):
        ask(ScriptedTriton(answer, url="localhost:1"), "a", ray="auto")
