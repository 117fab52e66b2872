"""Ten ways for a server to break, over every transport: a status each, and the run goes on."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_perf.api import Concurrency, Conditions, Endpoint, Run, load_workload, measure
from tests.client.faulty import FaultyServer

TRANSPORTS = {
    "grpc": ("grpc", "grpc"),
    "grpc.aio": ("grpc", "grpc.aio"),
    "tritonclient": ("grpc", "tritonclient"),
    "http": ("http", None),
    "openai": ("openai", None),
}
GRPC = ("grpc", "grpc.aio", "tritonclient")
# how the server breaks, and the status of that request and of the next one
FAULTS = {
    "drip": ("ok", "ok"),
    "error": ("error", "ok"),
    "reset": ("cut", "ok"),
    "refused stream": ("refused", "ok"),
    "goaway": ("refused", "ok"),
    "lost": ("cut", "ok"),
    "garbage": ("cut", "ok"),
    "silent": ("timeout", "ok"),
    "stuck": ("timeout", "ok"),
    "restart": ("cut", "ok"),
    "vanish": ("cut", "refused"),
}
LOSES_CONNECTION = ("goaway", "lost", "garbage", "restart", "vanish")
BY_HTTP = {"refused stream": ("error", "ok"), "goaway": ("error", "ok")}  # 429 and 500
ANSWERS = {"ok": "one two three", "error": "one", "cut": "one", "timeout": "one", "refused": ""}


@pytest.fixture
def run(
    request: pytest.FixtureRequest, write_prompts: Callable[..., Path], tokenizer_folder: Path
) -> Callable[..., Run]:
    def run(transport: str, *prompts: str, timeout_s: float = 10.0, n: int = 1) -> Run:
        protocol, chosen = TRANSPORTS[transport]
        workload = load_workload(write_prompts(*prompts), tokenizer_folder)
        with FaultyServer() as server:
            endpoint = Endpoint(server.url, protocol, "ensemble", chosen)
            return measure(
                endpoint, workload, Concurrency(n), Conditions(request_timeout_s=timeout_s)
            )

    return run


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_its_requests_status_and_no_other(
    fault: str, transport: str, run: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    timeout = 0.5 if fault in ("silent", "stuck") else 10.0
    got = run(transport, "good", fault, "good", timeout_s=timeout)
    by_http = BY_HTTP if transport not in GRPC else {}
    broken, after = by_http.get(fault, FAULTS[fault])
    statuses = [record.status.value for record in got.records]
    if fault in LOSES_CONNECTION and transport in ("grpc.aio", "tritonclient"):
        # gRPC's library may put the next call on the connection that it is losing
        assert statuses[2] in (after, "error", "refused")
        after = statuses[2]
    assert statuses == ["ok", broken, after], [record.error for record in got.records]
    before = fault in ("silent", "refused stream", "goaway")
    assert got.answers[1] == ("" if before else ANSWERS[broken])
    assert [record.answer for record in got.records if record.ok] == ["one two three"] * (
        statuses.count("ok")
    )
    assert all(record.output_tokens == 3 for record in got.records if record.ok and fault)
    assert all(record.ok or record.error for record in got.records)
    assert all(record.end_ns >= record.sent_ns > 0 for record in got.records)
    gc.collect()  # what nobody looked at is printed now
    assert [each.message for each in caplog.records if each.name == "asyncio"] == []


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_faults_among_many_streams_end_alone(transport: str, run: Callable[..., Run]) -> None:
    prompts = ["good", "error", "drip", "good", "reset", "good"] * 4
    got = run(transport, *prompts, n=8)
    expected = {"good": "ok", "drip": "ok", "error": "error", "reset": "cut"}
    assert [record.status.value for record in got.records] == [expected[each] for each in prompts]


@pytest.mark.parametrize("transport", ["http", "openai"])
def test_a_servers_status_and_words_are_kept(transport: str, run: Callable[..., Run]) -> None:
    got = run(transport, "refused stream", "goaway", "error")
    assert [record.error for record in got.records] == [
        "HTTP 429: queue is full",
        "HTTP 500: dying",
        "out of blocks",
    ]
