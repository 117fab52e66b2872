"""Ask a Triton server what it is, before the clock starts: an endpoint in, a ``TritonModel`` out.

All transports that speak to Triton's gRPC port share it; only their streams differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from llm_perf.errors import UserError
from llm_perf.record import Exchange, Status
from llm_perf.transports import Endpoint, Headers, Tls, extra_headers, no_model
from llm_perf.transports.masked import Mask
from llm_perf.transports.triton import TritonModel, model_from_config

SERVICE = "/inference.GRPCInferenceService/"
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),  # a proxy of the environment would be measured as well
    ("grpc.enable_retries", 0),  # a retry would hide a failure and blur the times
    ("grpc.use_local_subchannel_pool", 1),  # else all channels share one connection
)
_PATIENCE_S = 10.0
# how gRPC's library words it: nobody listens, REFUSED_STREAM, GOAWAY before the stream was begun
_REFUSALS = ("failed to connect", "error code 7", "goaway received")


class MessageStream:
    """What all of them read alike: messages came as such, and repeat none of our secrets."""

    def __init__(self, dialect: TritonModel, headers: Headers) -> None:
        self.dialect = dialect
        self._mask = Mask(headers)

    def read(self, seen: Exchange) -> None:
        """See ``Transport.read``."""
        if self._mask.secrets:
            seen.messages = [(at, self._mask.hide(message)) for at, message in seen.messages]
            if seen.failure is not None:
                seen.failure = seen.failure[0], self._mask.hide_in(seen.failure[1])

    def so_far(self, seen: Exchange) -> list[bytes]:
        """See ``Transport.so_far``."""
        return [self._mask.hide(message) for _, message in seen.messages]


async def open_channel(endpoint: Endpoint) -> grpc.aio.Channel:
    """Connect, and make a first call; raises ``UserError`` when no Triton answers."""
    if endpoint.tls is None:
        channel = grpc.aio.insecure_channel(endpoint.url, options=CHANNEL_OPTIONS)
    else:
        credentials = grpc.ssl_channel_credentials(*_read_pem(endpoint.tls))
        channel = grpc.aio.secure_channel(endpoint.url, credentials, options=CHANNEL_OPTIONS)
    try:
        await call(channel, endpoint, "ServerLive")
    except grpc.aio.AioRpcError as error:
        await channel.close()
        raise _no_server(endpoint, error) from error
    return channel


def _read_pem(tls: Tls) -> list[bytes | None]:
    """The bytes of CA, key and certificate, in gRPC's order."""
    try:
        return [path.read_bytes() if path else None for path in (tls.ca, tls.key, tls.cert)]
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", where=error.filename) from error


async def call(channel: grpc.aio.Channel, endpoint: Endpoint, method: str, **fields: Any) -> Any:
    """Make one unary call: ``ModelConfig`` sends a ``ModelConfigRequest`` with ``fields``."""
    request_type = getattr(service_pb2, f"{method}Request")
    stub = channel.unary_unary(
        SERVICE + method,
        request_serializer=request_type.SerializeToString,
        response_deserializer=getattr(service_pb2, f"{method}Response").FromString,
    )
    return await stub(request_type(**fields), timeout=_PATIENCE_S, metadata=extra_headers(endpoint))


async def ask_once(endpoint: Endpoint, method: str) -> Any | None:
    """Make one call on a channel of its own; ``None`` where the server forbids it.

    Raises ``UserError`` when no Triton answers.
    """
    async with await open_channel(endpoint) as channel:
        try:
            return await call(channel, endpoint, method)
        except grpc.aio.AioRpcError:
            return None


async def describe(endpoint: Endpoint, defaults: Mapping[str, int]) -> TritonModel:
    """Find out how to ask ``endpoint.model``; ``defaults`` as in ``transports.connect``.

    Raises ``UserError`` when no Triton answers, or it has no such model (then it says which it
    has), or the model is not ready or not fit.
    """
    async with await open_channel(endpoint) as channel:
        try:
            config = (await call(channel, endpoint, "ModelConfig", name=endpoint.model)).config
        except grpc.aio.AioRpcError as error:
            try:
                models = (await call(channel, endpoint, "RepositoryIndex")).models
            except grpc.aio.AioRpcError:  # servers may forbid it
                models = ()
            known = {model.name: model.reason or error.details() for model in models}
            raise no_model(endpoint, known) from error
    return model_from_config(config, defaults)


def fail(seen: Exchange, code: grpc.StatusCode, details: str) -> None:
    """Note why gRPC's library gave a call up; its messages are in ``seen`` already."""
    refused = any(words in details.lower() for words in _REFUSALS)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        status = Status.TIMEOUT
    elif seen.messages:
        status = Status.CUT
    else:
        status = Status.REFUSED if refused else Status.ERROR
    seen.failure = status, f"{code.name}: {details}"


def _no_server(endpoint: Endpoint, error: grpc.aio.AioRpcError) -> UserError:
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return UserError(
            f"the server at {endpoint.url} speaks gRPC, but is no Triton",
            fix="give the host and gRPC port of Triton (8001 unless set otherwise)",
        )
    return UserError(
        f"no Triton server answers at {endpoint.url} ({error.details()})",
        fix="start it, or give its host and gRPC port (8001 unless set otherwise)",
    )
