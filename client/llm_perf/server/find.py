"""A server as a person names it in one word: text in, endpoint out; what it leaves out is asked.

``grpc://HOST:PORT``, ``http://…`` (Triton's or OpenAI's API, whichever answers),
``triton+http://…``, ``openai+https://…``, or HOST:PORT alone; ``#MODEL`` behind it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from llm_perf.errors import UserError
from llm_perf.loop import run_loop
from llm_perf.server.identity import identify
from llm_perf.transports import Endpoint

_SCHEMES: Final = {"grpc": "grpc", "triton+http": "http", "triton+https": "http"}
_SCHEMES_OPENAI: Final = ("openai+http", "openai+https")
_ASKED: Final = "ensemble"  # of Triton's models, where it is there: the one that takes text
_UNNAMED: Final = "-"


def find_endpoint(text: str) -> Endpoint:
    """Give the endpoint that ``text`` names.

    A protocol that it leaves out is that which the server answers, a model the only one it has (of
    a Triton its ensemble). Raises ``UserError`` for another scheme, where nothing answers, and
    where the model has to be chosen.
    """
    place, _, model = text.partition("#")
    return run_loop(_find(place, model))


async def _find(place: str, model: str) -> Endpoint:
    scheme, mark, rest = place.partition("://")
    named = model or _UNNAMED
    if mark and scheme in _SCHEMES:
        url = rest if scheme == "grpc" else place.removeprefix("triton+")
        found = Endpoint(url, _SCHEMES[scheme], named)
    elif mark and scheme in _SCHEMES_OPENAI:
        found = Endpoint(place.removeprefix("openai+"), "openai", named)
    elif mark and scheme not in ("http", "https"):
        known = ", ".join(("http", *_SCHEMES, *_SCHEMES_OPENAI))
        raise UserError(f"{place!r} begins with no known scheme", fix=f"use one of {known}")
    else:
        found = await _guess(place, named, sure=bool(mark))
    return found if model else replace(found, model=await _only_model(found))


async def _guess(place: str, model: str, *, sure: bool) -> Endpoint:
    """Ask who is there; what doesn't answer HTTP (``sure``: is no Triton) is taken as it may be."""
    as_http = Endpoint(place, "http", model)
    if (await identify(as_http)).get("name") == "triton":
        return as_http
    as_openai = replace(as_http, protocol="openai")
    with suppress(UserError):
        if sure or await _models(as_openai):
            return as_openai
    return replace(as_http, protocol="grpc")


async def _only_model(endpoint: Endpoint) -> str:
    try:
        names = await _models(endpoint)
    except UserError as error:
        raise UserError(f"{endpoint.url}: {error}") from error
    if _ASKED in names and endpoint.protocol != "openai":
        return _ASKED
    if len(names) != 1:
        which = f"has {', '.join(sorted(names))}" if names else "doesn't say which models it has"
        raise UserError(
            f"the server at {endpoint.url} {which}", fix="name one behind the URL: …#MODEL"
        )
    return names[0]


async def _models(endpoint: Endpoint) -> list[str]:
    """Ask for the names of what it serves; none where it doesn't tell them.

    Raises ``UserError`` when nothing answers.
    """
    if endpoint.protocol == "grpc":
        from llm_perf.transports import triton_rpc

        index = await triton_rpc.ask_once(endpoint, "RepositoryIndex")
        return [each.name for each in index.models] if index else []
    from llm_perf.transports import http

    if endpoint.protocol == "http":
        _, answer = await http.ask_once(endpoint, endpoint.target("/v2/repository/index"), "POST")
        return _names(answer, "name")
    version = "" if urlsplit(endpoint.base).path else "/v1"
    _, answer = await http.ask_once(endpoint, endpoint.target(f"{version}/models"))
    return _names(answer.get("data") if isinstance(answer, dict) else answer, "id")


def _names(answer: Any, key: str) -> list[str]:
    items = answer if isinstance(answer, list) else []
    return [str(each[key]) for each in items if isinstance(each, dict) and each.get(key)]
