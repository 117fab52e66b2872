"""Triton's HTTP port: ``generate_stream`` for decoupled models, ``generate`` for others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from google.protobuf.json_format import ParseDict, ParseError
from tritonclient.grpc import model_config_pb2

from client.errors import UserError
from client.generate import GenerateModel
from client.transports import Endpoint
from client.transports.http import HttpTransport, ask, open_session, warm
from client.triton import TritonModel, model_from_config


async def connect(endpoint: Endpoint, streams: int, defaults: Mapping[str, int]) -> HttpTransport:
    """See ``transports.connect``."""
    session = open_session(endpoint)
    path = f"/v2/models/{quote(endpoint.model, safe='')}"
    try:
        status, answer = await ask(session, endpoint, f"{path}/config")
        if status != 200:
            _, models = await ask(session, endpoint, "/v2/repository/index", "POST")
            raise _no_model(endpoint, answer, models)
        model = _model(endpoint, answer, defaults)
        await warm(session, endpoint, "/v2/health/ready", streams)
    except BaseException:
        await session.close()
        raise
    verb = "generate_stream" if model.decoupled else "generate"
    return HttpTransport(session, f"{endpoint.base}{path}/{verb}", GenerateModel(model))


def _model(endpoint: Endpoint, config: Any, defaults: Mapping[str, int]) -> TritonModel:
    try:
        parsed = ParseDict(config, model_config_pb2.ModelConfig(), ignore_unknown_fields=True)
    except (ParseError, TypeError, AttributeError) as error:
        raise UserError(
            f"the server at {endpoint.base} speaks HTTP, but is no Triton",
            fix="give Triton's HTTP port (8000 unless set otherwise), or use -i openai",
        ) from error
    return model_from_config(parsed, defaults)


def _no_model(endpoint: Endpoint, answer: object, models: object) -> UserError:
    if not isinstance(models, list):
        return UserError(
            f"the server at {endpoint.base} speaks HTTP, but is no Triton",
            fix="give Triton's HTTP port (8000 unless set otherwise), or use -i openai",
        )
    known = {str(model.get("name")): model for model in models if isinstance(model, dict)}
    if endpoint.model in known:
        said = answer.get("error") if isinstance(answer, dict) else answer
        return UserError(
            f"model {endpoint.model!r} at {endpoint.base} is not ready: "
            f"{known[endpoint.model].get('reason') or said}",
            fix="wait until it is loaded, or see the server's log",
        )
    return UserError(
        f"the server at {endpoint.base} has no model {endpoint.model!r}",
        fix=f"it has: {', '.join(sorted(known)) or 'none'}; choose one with -m",
    )
