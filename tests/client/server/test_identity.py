from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from llm_perf.server.identity import identify
from llm_perf.transports import Endpoint
from tests.client.scripted import FINAL, ScriptedTriton

ANSWERS = {
    "/v2": {"name": "triton", "version": "2.51.0", "extensions": ["classification"]},
    "/version": {"version": "0.11.2"},
}


@pytest.mark.parametrize(
    ("protocol", "known"),
    [("http", {"name": "triton", "version": "2.51.0"}), ("openai", {"version": "0.11.2"})],
)
def test_a_server_says_name_and_version(
    http_server: Callable, protocol: str, known: dict[str, str]
) -> None:
    with http_server(lambda path: (200, json.dumps(ANSWERS[path]).encode())) as url:
        assert asyncio.run(identify(Endpoint(url, protocol, "m"))) == known


def test_a_server_may_keep_them_to_itself() -> None:
    with ScriptedTriton(lambda _: [FINAL]) as server:
        assert asyncio.run(identify(Endpoint(server.url, "grpc", "ensemble"))) == {}
    assert asyncio.run(identify(Endpoint("127.0.0.1:9", "http", "m"))) == {}
