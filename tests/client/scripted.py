"""A Triton gRPC server that does what a test scripts: which response, when, and how it ends.

It speaks the real protocol over a real socket and keeps count of what it saw.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2

from tests.client.ports import own_port

ENSEMBLE = """
name: "ensemble" platform: "ensemble" max_batch_size: 8
input { name: "text_input" data_type: TYPE_STRING dims: [-1] }
input { name: "max_tokens" data_type: TYPE_INT32 dims: [-1] }
input { name: "bad_words" data_type: TYPE_STRING dims: [-1] optional: true }
input { name: "end_id" data_type: TYPE_INT32 dims: [1] optional: true }
input { name: "stream" data_type: TYPE_BOOL dims: [1] optional: true }
output { name: "text_output" data_type: TYPE_STRING dims: [-1] }
output { name: "cum_log_probs" data_type: TYPE_FP32 dims: [-1] }
output { name: "output_ids" data_type: TYPE_INT32 dims: [-1, -1] }
output { name: "sequence_length" data_type: TYPE_INT32 dims: [-1] }
model_transaction_policy { decoupled: true }
"""
PREPROCESSING = 'name: "preprocessing" backend: "python"'
MODELS = (ENSEMBLE, PREPROCESSING)


@dataclass(frozen=True)
class Say:
    """A response; ``tokens`` goes out as ``sequence_length`` unless it is ``None``."""

    text: str | bytes | None = None
    tokens: int | None = None
    final: bool = False


@dataclass(frozen=True)
class Wait:
    seconds: float


@dataclass(frozen=True)
class Fail:
    """An error in the stream; the gRPC status stays OK."""

    message: str


@dataclass(frozen=True)
class Abort:
    """Break the stream off."""

    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE


@dataclass(frozen=True)
class Hang:
    """Say nothing more until the client gives up."""


FINAL = Say(final=True)
Step = Say | Wait | Fail | Abort | Hang


@dataclass
class Asked:
    """A request as the server read it."""

    id: str
    tensors: dict[str, object]
    shapes: dict[str, list[int]]
    outputs: list[str]
    wants_empty_final: bool


def answer(prompt: str) -> list[Step]:
    """A script: two responses that repeat the prompt."""
    return [Say(f"re {prompt}", 1), Say(".", 1), FINAL]


def response(step: Say, model: str = "ensemble") -> service_pb2.ModelStreamInferResponse:
    message = service_pb2.ModelStreamInferResponse()
    answer = message.infer_response
    answer.model_name = model
    answer.parameters["triton_final_response"].bool_param = step.final
    if step.text is not None:
        data = step.text if isinstance(step.text, bytes) else step.text.encode()
        answer.outputs.add(name="text_output", datatype="BYTES", shape=[1])
        answer.raw_output_contents.append(struct.pack("<I", len(data)) + data)
    if step.tokens is not None:
        answer.outputs.add(name="sequence_length", datatype="INT32", shape=[1])
        answer.raw_output_contents.append(struct.pack("<i", step.tokens))
    return message


def _read(request: service_pb2.ModelInferRequest) -> Asked:
    tensors: dict[str, object] = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            assert struct.unpack_from("<I", raw)[0] == len(raw) - 4
            tensors[tensor.name] = raw[4:].decode()
        else:
            tensors[tensor.name] = struct.unpack(
                {"BOOL": "?", "INT32": "<i"}[tensor.datatype], raw
            )[0]
    return Asked(
        id=request.id,
        tensors=tensors,
        shapes={tensor.name: list(tensor.shape) for tensor in request.inputs},
        outputs=[output.name for output in request.outputs],
        wants_empty_final=request.parameters["triton_enable_empty_final_response"].bool_param,
    )


@dataclass
class ScriptedTriton:
    """Answers a prompt with ``script(prompt)``; ``hold`` streams meet before any goes on."""

    script: Callable[[str], list[Step]]
    models: tuple[str, ...] = MODELS
    hold: int = 1
    credentials: grpc.ServerCredentials | None = None
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0

    def __enter__(self) -> ScriptedTriton:
        self._lock = threading.Lock()
        self._met = threading.Event()
        self.configs = {
            config.name: config
            for config in (
                text_format.Parse(text, model_config_pb2.ModelConfig()) for text in self.models
            )
        }
        self._server = grpc.server(ThreadPoolExecutor(max_workers=64))
        self._server.add_generic_rpc_handlers((self._handlers(),))
        self.url = f"127.0.0.1:{own_port(self)}"
        if self.credentials is None:
            self._server.add_insecure_port(self.url)
        else:
            self._server.add_secure_port(self.url, self.credentials)
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Listen no more, and drop who is connected; who comes is refused."""
        self._server.stop(None).wait()

    def _handlers(self) -> grpc.GenericRpcHandler:
        def unary(name: str, call: Callable[..., object]) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(
                call,
                request_deserializer=getattr(service_pb2, f"{name}Request").FromString,
                response_serializer=getattr(service_pb2, f"{name}Response").SerializeToString,
            )

        return grpc.method_handlers_generic_handler(
            "inference.GRPCInferenceService",
            {
                "ServerLive": unary("ServerLive", self._live),
                "ModelConfig": unary("ModelConfig", self._config),
                "RepositoryIndex": unary("RepositoryIndex", self._index),
                "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
                    self._stream,
                    request_deserializer=service_pb2.ModelInferRequest.FromString,
                    response_serializer=service_pb2.ModelStreamInferResponse.SerializeToString,
                ),
            },
        )

    def _live(self, request: object, context: object) -> service_pb2.ServerLiveResponse:
        return service_pb2.ServerLiveResponse(live=True)

    def _config(self, request, context) -> service_pb2.ModelConfigResponse:
        if request.name not in self.configs:
            details = f"Request for unknown model: '{request.name}' is not found"
            context.abort(grpc.StatusCode.NOT_FOUND, details)
        return service_pb2.ModelConfigResponse(config=self.configs[request.name])

    def _index(self, request: object, context: object) -> service_pb2.RepositoryIndexResponse:
        index = service_pb2.RepositoryIndexResponse()
        for name in self.configs:
            index.models.add(name=name, version="1", state="READY")
        return index

    def _stream(self, requests, context) -> Iterator[service_pb2.ModelStreamInferResponse]:
        for request in requests:
            asked = _read(request)
            self._enter(asked)
            try:
                yield from self._play(self.script(str(asked.tensors["text_input"])), context)
            finally:
                with self._lock:
                    self.in_flight -= 1

    def _enter(self, asked: Asked) -> None:
        with self._lock:
            self.asked.append(asked)
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            if self.peak >= self.hold:
                self._met.set()
        self._met.wait(10)

    def _play(self, steps: list[Step], context) -> Iterator[service_pb2.ModelStreamInferResponse]:
        for step in steps:
            if isinstance(step, Say):
                yield response(step)
            elif isinstance(step, Wait):
                time.sleep(step.seconds)
            elif isinstance(step, Fail):
                yield service_pb2.ModelStreamInferResponse(error_message=step.message)
            elif isinstance(step, Abort):
                context.abort(step.code, "scripted")
            else:
                given_up = threading.Event()
                if context.add_callback(given_up.set):
                    given_up.wait(10)
