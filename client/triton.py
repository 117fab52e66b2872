"""Triton's language: a model's config in, requests and parsed responses out, all as bytes.

Works from what the model declares, so that it fits the ensembles of all TensorRT-LLM releases and
the ``llmapi`` model. Knows the protobufs of the KServe protocol, but neither channel nor clock.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError
from tritonclient.grpc import model_config_pb2, service_pb2

from client.errors import UserError
from client.record import Chunk
from client.workload import Prompt

# Prompt attribute or constant that fills an input tensor, by the names of all releases
# (inflight_batcher_llm ensemble 0.11 … 1.2; sampling_param_*: the llmapi model).
_FILL: Final[dict[str, str | bool]] = {
    "text_input": "text",
    "max_tokens": "max_tokens",
    "sampling_param_max_tokens": "max_tokens",
    "stream": True,
    "streaming": True,
    "exclude_input_in_output": True,
    "sampling_param_exclude_input_from_output": True,
    "return_num_output_tokens": True,
}
# Outputs that count the new tokens of a response, best first: a scalar, lengths, the ids.
_COUNTS: Final = ("num_output_tokens", "sequence_length", "output_ids")

_NUMBERS: Final = {"BOOL": "?", "INT32": "i", "INT64": "q", "UINT32": "I", "UINT64": "Q"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a request: ``shape`` with the batch dimension where the model has one."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    fill: str | bool


@dataclass(frozen=True, slots=True)
class TritonModel:
    """How to ask one model and how to read what it answers; a ``Dialect``."""

    name: str
    inputs: tuple[Tensor, ...]
    count_output: str | None

    def request(self, prompt: Prompt, request_id: str) -> bytes:
        """Serialize one ``ModelInferRequest``, asking for the outputs that are read and no more."""
        request: Any = service_pb2.ModelInferRequest(model_name=self.name, id=request_id)
        # without it the end of some models (BLS) can't be seen before the end of the stream
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        for tensor in self.inputs:
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            value = tensor.fill if isinstance(tensor.fill, bool) else getattr(prompt, tensor.fill)
            request.raw_input_contents.append(_encode(value, tensor.datatype))
        request.outputs.add(name="text_output")
        if self.count_output:
            request.outputs.add(name=self.count_output)
        data: bytes = request.SerializeToString()
        return data

    def parse(self, message: bytes) -> Chunk:
        """Read one ``ModelStreamInferResponse``; a tensor that is not there reads as nothing.

        Never raises: a message that can't be read is that request's error.
        """
        try:
            return self._parse(service_pb2.ModelStreamInferResponse.FromString(message))
        except (DecodeError, struct.error, KeyError) as error:
            return Chunk(error=f"unreadable response: {error!r}")

    def _parse(self, response: Any) -> Chunk:
        if response.error_message:
            return Chunk(error=response.error_message)
        answer = response.infer_response
        text, tokens = b"", None
        for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=False):
            if tensor.name == "text_output":
                text = _join_strings(raw)
            elif tensor.name == self.count_output:
                tokens = _count(tensor.name, tensor.datatype, raw)
        final = answer.parameters["triton_final_response"].bool_param
        return Chunk(text, tokens, final)


def model_from_config(config: Any) -> TritonModel:
    """Plan requests for a model from its ``ModelConfig`` protobuf.

    Asks to stream where the model is decoupled (a served ensemble says so when one of its models
    is), since TensorRT-LLM refuses it elsewhere.
    Raises ``UserError`` for a model that doesn't take and give text, or whose required inputs
    nothing here can fill.
    """
    declared = {tensor.name: tensor for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    for name, has, what in (
        ("text_input", declared, "input"),
        ("text_output", outputs, "output"),
    ):
        if name not in has:
            raise UserError(
                f"model {config.name!r} has no {what} {name} (it has: {', '.join(has) or 'none'})",
                fix="measure the model that takes and gives text, as a rule the ensemble",
            )
    unknown = [name for name, it in declared.items() if not it.optional and name not in _FILL]
    if unknown:
        raise UserError(
            f"model {config.name!r} requires the input {', '.join(unknown)}, "
            "which llm_perf can't fill",
            fix="make it optional in the model's config.pbtxt",
        )
    decoupled = config.model_transaction_policy.decoupled
    batch = (1,) if config.max_batch_size > 0 else ()
    return TritonModel(
        name=config.name,
        inputs=tuple(
            Tensor(
                name,
                _datatype(tensor.data_type),
                (*batch, *(1 for _ in tensor.dims)),
                decoupled if name in ("stream", "streaming") else _FILL[name],
            )
            for name, tensor in declared.items()
            if name in _FILL
        ),
        count_output=next((name for name in _COUNTS if name in outputs), None),
    )


def _datatype(data_type: int) -> str:
    name: str = model_config_pb2.DataType.Name(data_type).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def _encode(value: str | int, datatype: str) -> bytes:
    if isinstance(value, str):
        data = value.encode()
        return struct.pack("<I", len(data)) + data
    return struct.pack("<" + _NUMBERS[datatype], value)


def _join_strings(raw: bytes) -> bytes:
    """Join the elements of a BYTES tensor: each is a little-endian uint32 length and its bytes."""
    parts, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        parts.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    return b"".join(parts)


def _count(name: str, datatype: str, raw: bytes) -> int:
    code = _NUMBERS[datatype]
    count = len(raw) // struct.calcsize("<" + code)
    return count if name == "output_ids" else sum(struct.unpack(f"<{count}{code}", raw))
