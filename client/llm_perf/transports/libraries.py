"""Triton's ``ModelStreamInfer`` through libraries of others: TLS, and a cross-check of ours.

``tritonclient`` takes each request apart and writes it again, and reads each answer, so that
nothing of ours but the clock is between the server and the record. ``grpc.aio`` leaves messages
bytes: 23-27 µs of CPU each against 31.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from time import perf_counter_ns
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput, service_pb2
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from llm_perf.record import Exchange
from llm_perf.transports import Endpoint, Headers, Transport, extra_headers
from llm_perf.transports.triton import TritonModel
from llm_perf.transports.triton_rpc import (
    CHANNEL_OPTIONS,
    SERVICE,
    MessageStream,
    describe,
    fail,
    open_channel,
)
from llm_perf.workload.workload import Prompt

_STREAMS_PER_CHANNEL = 32  # one HTTP/2 connection is one socket and one flow-control window


class GrpcTransport(MessageStream):
    """Streams over a few channels of ``grpc.aio``, in turn."""

    def __init__(
        self, dialect: TritonModel, channels: Sequence[grpc.aio.Channel], metadata: Headers
    ) -> None:
        super().__init__(dialect, metadata)
        self._metadata = metadata
        self._channels = channels
        self._stubs = itertools.cycle(
            [channel.stream_stream(SERVICE + "ModelStreamInfer") for channel in channels]
        )

    async def stream(self, request: bytes, seen: Exchange, timeout_s: float) -> None:
        """See ``Transport.stream``."""
        stub = next(self._stubs)
        note = seen.messages.append
        seen.sent_ns = perf_counter_ns()
        call = stub(timeout=timeout_s, metadata=self._metadata)
        try:
            await call.write(request)
            await call.done_writing()  # half-closed, so that the stream's end always comes
            while (message := await call.read()) is not grpc.aio.EOF:
                at = perf_counter_ns()
                seen.room -= len(message)
                if seen.room < 0:
                    call.cancel()
                    seen.overflow(at)
                    return
                note((at, message))
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            pass  # whatever broke, the call's status says it
        code = await call.code()
        seen.end_ns = perf_counter_ns()
        if code is not grpc.StatusCode.OK:
            fail(seen, code, await call.details() or "")

    async def close(self) -> None:
        """See ``Transport.close``."""
        for channel in self._channels:
            await channel.close()


class StockTransport(MessageStream):
    """Streams over a few of ``tritonclient``'s clients, in turn."""

    def __init__(self, dialect: TritonModel, clients: Sequence[Any], headers: Headers) -> None:
        super().__init__(dialect, headers)
        self._clients = clients
        self._turn = itertools.cycle(clients)
        self._headers = dict(headers)

    async def stream(self, request: bytes, seen: Exchange, timeout_s: float) -> None:
        """See ``Transport.stream``."""
        inputs = _once(_arguments(request))
        answers: list[tuple[int, Any]] = []
        failure: tuple[grpc.StatusCode, str] | None = None
        seen.sent_ns = perf_counter_ns()
        stream = next(self._turn).stream_infer(
            inputs, stream_timeout=timeout_s, headers=self._headers
        )
        try:
            async for answer in stream:
                answers.append((perf_counter_ns(), answer))
                seen.room -= answer[0].get_response().ByteSize() if answer[0] else 0
                if seen.room < 0:
                    stream.cancel()
                    seen.overflow(answers.pop()[0])
                    break
        except grpc.aio.AioRpcError as error:
            failure = error.code(), error.details() or ""
        seen.end_ns = seen.end_ns or perf_counter_ns()
        seen.messages = [(at, _message(*answer)) for at, answer in answers]
        if failure is not None:
            fail(seen, *failure)

    async def close(self) -> None:
        """See ``Transport.close``."""
        for client in self._clients:
            await client.close()


async def connect(
    endpoint: Endpoint, streams: int, defaults: Mapping[str, int], trial: Prompt | None
) -> Transport:
    """See ``transports.connect``; a Triton declares what it takes."""
    del trial
    dialect, headers = await describe(endpoint, defaults), extra_headers(endpoint)
    channels = range(-(-streams // _STREAMS_PER_CHANNEL))
    if endpoint.chosen == "grpc.aio":
        opened = await asyncio.gather(*(open_channel(endpoint) for _ in channels))
        return GrpcTransport(dialect, opened, headers)
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
        for _ in channels
    ]
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
