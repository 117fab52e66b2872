"""What a server says it is: an endpoint in, name and version out. Asked beside the clock."""

from __future__ import annotations

from typing import Any

from client.errors import UserError
from client.transports import Endpoint, extra_headers

_PATIENCE_S = 5.0
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
    import grpc
    from tritonclient.grpc import service_pb2

    from client.transports.triton_rpc import SERVICE, open_channel

    async with await open_channel(endpoint) as channel:
        ask = channel.unary_unary(
            f"{SERVICE}ServerMetadata",
            request_serializer=service_pb2.ServerMetadataRequest.SerializeToString,
            response_deserializer=service_pb2.ServerMetadataResponse.FromString,
        )
        try:
            answer = await ask(
                service_pb2.ServerMetadataRequest(),
                timeout=_PATIENCE_S,
                metadata=extra_headers(endpoint),
            )
        except grpc.aio.AioRpcError:  # servers may forbid it
            return {}
    return {"name": answer.name, "version": answer.version}


async def _by_http(endpoint: Endpoint) -> Any:
    from client.transports.http import ask, open_session

    async with open_session(endpoint) as session:
        status, answer = await ask(session, endpoint, _PATHS[endpoint.protocol])
    return answer if status == 200 else {}
