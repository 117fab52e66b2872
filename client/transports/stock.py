"""Triton's ``ModelStreamInfer`` through the stock ``tritonclient`` library: TLS, and a cross-check.

Each request is taken apart and written again by the library, and each answer read by it, so that
nothing of ours but the clock is between the server and the record.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from time import perf_counter_ns
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput, service_pb2
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from client.record import Exchange
from client.transports import Endpoint, Headers, extra_headers
from client.transports.triton_rpc import CHANNEL_OPTIONS, describe, fail
from client.triton import TritonModel

_STREAMS_PER_CLIENT = 32


class StockTransport:
    """Streams over a few clients, in turn."""

    def __init__(self, dialect: TritonModel, clients: Sequence[Any], headers: Headers) -> None:
        self.dialect = dialect
        self._clients = clients
        self._turn = itertools.cycle(clients)
        self._headers = dict(headers)

    async def stream(self, request: bytes, seen: Exchange, timeout_s: float) -> None:
        """See ``Transport.stream``."""
        inputs = _arguments(request)
        answers: list[tuple[int, Any]] = []
        seen.sent_ns = perf_counter_ns()
        try:
            async for answer in next(self._turn).stream_infer(
                _once(inputs), stream_timeout=timeout_s, headers=self._headers
            ):
                answers.append((perf_counter_ns(), answer))
            seen.end_ns = perf_counter_ns()
        except grpc.aio.AioRpcError as error:
            seen.end_ns = perf_counter_ns()
            seen.messages = [(at, _message(*answer)) for at, answer in answers]
            fail(seen, error.code(), error.details() or "")
        else:
            seen.messages = [(at, _message(*answer)) for at, answer in answers]

    async def close(self) -> None:
        """See ``Transport.close``."""
        for client in self._clients:
            await client.close()


async def connect(endpoint: Endpoint, streams: int, defaults: Mapping[str, int]) -> StockTransport:
    """See ``transports.connect``."""
    dialect = await describe(endpoint, defaults)
    tls = endpoint.tls
    clients = [
        InferenceServerClient(
            endpoint.url,
            ssl=tls is not None,
            root_certificates=tls and tls.ca,
            private_key=tls and tls.key,
            certificate_chain=tls and tls.cert,
            channel_args=CHANNEL_OPTIONS,
        )
        for _ in range(-(-streams // _STREAMS_PER_CLIENT))
    ]
    headers = extra_headers(endpoint)
    for client in clients:
        await client.is_server_live(headers=dict(headers))  # connects
    return StockTransport(dialect, clients, headers)


def _arguments(request: bytes) -> dict[str, Any]:
    """A serialized request as what ``stream_infer`` takes."""
    parsed = service_pb2.ModelInferRequest.FromString(request)
    inputs = []
    for tensor, raw in zip(parsed.inputs, parsed.raw_input_contents, strict=True):
        shape = list(tensor.shape)
        if tensor.datatype == "BYTES":
            array = deserialize_bytes_tensor(raw).reshape(shape)
        else:
            array = np.frombuffer(raw, triton_to_np_dtype(tensor.datatype)).reshape(shape)
        inputs.append(InferInput(tensor.name, shape, tensor.datatype).set_data_from_numpy(array))
    return {
        "model_name": parsed.model_name,
        "request_id": parsed.id,
        "inputs": inputs,
        "outputs": [InferRequestedOutput(output.name) for output in parsed.outputs],
    }


async def _once(arguments: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    yield arguments


def _message(result: Any, error: Any) -> bytes:
    """What the library read, as the message that it came in."""
    message = service_pb2.ModelStreamInferResponse()
    if error is not None:
        message.error_message = error.message()
    else:
        message.infer_response.CopyFrom(result.get_response())
    data: bytes = message.SerializeToString()
    return data
