"""A server is known by one word."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from llm_perf.errors import UserError
from llm_perf.server.find import find_endpoint
from tests.client.scripted import ScriptedTriton

Serve = Callable[..., AbstractContextManager[str]]


def openai_style(*models: str) -> Callable[[str], tuple[int, bytes]]:
    listed = json.dumps({"data": [{"id": each} for each in models]}).encode()
    return lambda path: (200, listed) if path == "/v1/models" else (404, b"{}")


def test_an_openai_style_server_is_known_by_its_models(http_server: Serve) -> None:
    with http_server(openai_style("qwen")) as place:
        for word in (
            place,
            f"http://{place}",
            f"openai+http://{place}",
            f"openai+http://{place}/v1",
        ):
            found = find_endpoint(word)
            assert (found.protocol, found.model) == ("openai", "qwen"), word


def test_a_model_is_chosen_behind_the_url(http_server: Serve) -> None:
    with http_server(openai_style("a", "b")) as place:
        assert find_endpoint(f"http://{place}#b").model == "b"
        with pytest.raises(UserError, match=r"has a, b; name one behind the URL"):
            find_endpoint(f"http://{place}")


def test_what_speaks_no_http_is_asked_over_grpc() -> None:
    with ScriptedTriton({}) as server:
        found = find_endpoint(f"grpc://{server.url}#ensemble")
        assert (found.url, found.protocol, found.model) == (server.url, "grpc", "ensemble")
        assert find_endpoint(f"{server.url}#ensemble").protocol == "grpc"


def test_another_scheme_is_refused() -> None:
    with pytest.raises(UserError, match="begins with no known scheme; use one of http, grpc"):
        find_endpoint("ftp://localhost:8000")
