"""What a server says it is: an endpoint in, name and version out. Asked beside the clock."""

from __future__ import annotations

from llm_perf.errors import UserError
from llm_perf.transports import Endpoint

_PATHS = {"http": "/v2", "openai": "/version"}
_TOLD = ("name", "version")


async def identify(endpoint: Endpoint) -> dict[str, str]:
    """Ask Triton for its metadata, an OpenAI-style server for its ``/version``.

    Gives what there is of ``name`` and ``version``: a server may keep both to itself.
    """
    try:
        if endpoint.protocol == "grpc":
            from llm_perf.transports import triton_rpc

            told = await triton_rpc.ask_once(endpoint, "ServerMetadata")
            known = {key: getattr(told, key, "") for key in _TOLD}
        else:
            from llm_perf.transports import http

            target = endpoint.target(_PATHS[endpoint.protocol], root=True)
            status, answer = await http.ask_once(endpoint, target)
            known = answer if status == 200 and isinstance(answer, dict) else {}
    except UserError:
        return {}
    return {key: str(known[key]) for key in _TOLD if known.get(key)}
