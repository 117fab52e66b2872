"""What a server says it is: an endpoint in, name and version out. Asked beside the clock."""

from __future__ import annotations

from typing import Any

from llm_perf.errors import UserError
from llm_perf.transports import Endpoint

_PATHS = {"http": "/v2", "openai": "/version"}


async def identify(endpoint: Endpoint) -> dict[str, str]:
    """Ask Triton for its metadata, an OpenAI-style server for its ``/version``.

    Gives what there is of ``name`` and ``version``: a server may keep both to itself.
    """
    try:
        answer = await (_by_grpc(endpoint) if endpoint.protocol == "grpc" else _by_http(endpoint))
    except UserError:
        return {}
    known = answer if isinstance(answer, dict) else {}
    return {key: str(known[key]) for key in ("name", "version") if known.get(key)}


async def _by_grpc(endpoint: Endpoint) -> Any:
    from grpc.aio import AioRpcError

    from llm_perf.transports.triton_rpc import call, open_channel

    async with await open_channel(endpoint) as channel:
        try:
            answer = await call(channel, endpoint, "ServerMetadata")
        except AioRpcError:  # servers may forbid it
            return {}
    return {"name": answer.name, "version": answer.version}


async def _by_http(endpoint: Endpoint) -> Any:
    from llm_perf.transports.http import Server

    server = Server(endpoint)
    try:
        status, answer = await server.ask(endpoint.target(_PATHS[endpoint.protocol], root=True))
    finally:
        server.pool.close()
    return answer if status == 200 else {}
