"""OpenAI-style servers: ``completions`` or ``chat``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from client.errors import UserError
from client.openai import OpenAI
from client.transports import Endpoint
from client.transports.http import HttpTransport, ask, open_session, warm


async def connect(endpoint: Endpoint, streams: int, defaults: Mapping[str, int]) -> HttpTransport:
    """See ``transports.connect``; such a server knows by itself where an answer ends."""
    del defaults
    endpoint = replace(endpoint, url=endpoint.url.rstrip("/").removesuffix("/v1"))
    chat = endpoint.chosen == "chat"
    session = open_session(endpoint)
    try:
        status, answer = await ask(session, endpoint, "/v1/models")
        _check(endpoint, status, answer)
        await warm(session, endpoint, "/health", streams)
    except BaseException:
        await session.close()
        raise
    path = "/v1/chat/completions" if chat else "/v1/completions"
    return HttpTransport(session, endpoint.base + path, OpenAI(endpoint.model, chat))


def _check(endpoint: Endpoint, status: int, answer: object) -> None:
    """Raise ``UserError`` when the server keeps no list of models, or this one isn't on it.

    A server that fails to list them may still answer: transformers serve has an internal error
    where the machine has no Hugging Face cache.
    """
    if status == 500:
        return
    if status in (401, 403):
        raise UserError(
            f"the server at {endpoint.base} wants a key (HTTP {status})",
            fix="name the environment variable that holds it with --api-key-env",
        )
    models = answer.get("data") if isinstance(answer, dict) else None
    if status != 200 or not isinstance(models, list):
        raise UserError(
            f"the server at {endpoint.base} is no OpenAI-style server "
            f"(HTTP {status} for /v1/models)",
            fix="give its base URL, or use -i http or -i grpc for Triton",
        )
    known = [str(model.get("id")) for model in models if isinstance(model, dict)]
    on_demand = endpoint.model.startswith(("/", "."))  # a folder there, loaded when asked for
    if known and endpoint.model not in known and not on_demand:
        raise UserError(
            f"the server at {endpoint.base} has no model {endpoint.model!r}",
            fix=f"it has: {', '.join(sorted(known))}; choose one with -m",
        )
