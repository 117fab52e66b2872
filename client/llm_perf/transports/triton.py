"""Triton's language: a model's config in, requests and parsed responses out, all as bytes.

Works from what the model declares, so that it fits the ensembles of all TensorRT-LLM releases and
the ``llmapi`` model. Knows the protobufs of the KServe protocol, but neither channel nor clock.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import DecodeError
from tritonclient.grpc import model_config_pb2, service_pb2

from llm_perf.errors import UserError
from llm_perf.record import Chunk
from llm_perf.workload.fields import SAMPLING
from llm_perf.workload.workload import Prompt

_SAMPLING: Final = ("max_tokens", "min_tokens", *SAMPLING)
# Input tensors of all releases (inflight_batcher_llm ensemble 0.11 … 1.2; sampling_param_*: the
# llmapi model) and the parameter that fills them, or …
_PARAMETERS: Final = {
    "text_input": "text",
    **{name: name for name in _SAMPLING},
    **{f"sampling_param_{name}": name for name in _SAMPLING},
    "min_length": "min_tokens",
    "random_seed": "seed",
    "sampling_param_stop": "stop_words",
    "return_num_input_tokens": "count_input",  # for prompts that nobody has counted
}
# … True, which they always get.
_PERF_METRICS: Final = ("return_perf_metrics", "sampling_param_return_perf_metrics")
_ALWAYS: Final = (
    *("exclude_input_in_output", "sampling_param_exclude_input_from_output"),
    *("return_num_output_tokens", *_PERF_METRICS),
)
_COUNTS: Final = ("num_output_tokens", "sequence_length")  # of a response's new tokens, best first
# Outputs that are read as facts where an input turns them on: asked for without it, a server of
# some releases never answers.
_INPUT_COUNT: Final = "num_input_tokens"
_FACTS: Final = (
    *("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns"),
    "kv_cache_reused_blocks",
)
_FORMATS: Final = {
    **{"BOOL": "?", "INT32": "i", "INT64": "q", "UINT32": "I", "UINT64": "Q"},
    **{"FP16": "e", "FP32": "f", "FP64": "d"},
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input: ``fill`` is the parameter that it takes its value from, or its constant value.

    ``rank`` counts the batch dimension where the model has one.
    """

    name: str
    datatype: str
    rank: int
    fill: str | bool
    optional: bool


@dataclass(frozen=True, slots=True)
class TritonModel:
    """How to ask one model and how to read what it answers; a ``Dialect``.

    ``count_output`` is the tensor that counts tokens, if any; ``ids_output`` says whether there
    are token ids; ``counts_input`` whether the prompt's are counted when asked for; ``facts`` are
    the outputs with totals and times.
    """

    name: str
    inputs: tuple[Tensor, ...]
    decoupled: bool
    count_output: str | None
    ids_output: bool
    facts: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    counts_input: bool = False

    def values(self, prompt: Prompt) -> list[tuple[Tensor, Any]]:
        """The inputs to send for a prompt.

        Raises ``UserError`` when the prompt sets a parameter that the model has no input for, or
        leaves out one that it requires, or when nobody counts tokens.
        """
        if prompt.extra_body:
            raise UserError("Triton's requests have no extra body", fix="use it with -i openai")
        if prompt.input_tokens is None and not (self.count_output or self.ids_output):
            raise UserError(f"model {self.name!r} counts no tokens", fix="give --tokenizer-path")
        asked = {
            "text": prompt.text,
            "max_tokens": prompt.max_tokens,
            **({} if prompt.min_tokens is None else {"min_tokens": prompt.min_tokens}),
            **({"count_input": True} if self._asks_count(prompt) else {}),
            **prompt.sampling,
        }
        if lost := asked.keys() - {tensor.fill for tensor in self.inputs}:
            raise UserError(
                f"model {self.name!r} has no input for {', '.join(sorted(lost))}",
                fix="leave it out of the options and the prompts",
            )
        given: dict[Any, Any] = {True: True, False: False, **self.defaults, **asked}
        for tensor in self.inputs:
            if tensor.fill not in given and not tensor.optional:
                raise UserError(
                    f"model {self.name!r} requires the input {tensor.name}",
                    fix=f"give {tensor.fill} with the prompts",
                )
        return [(each, given[each.fill]) for each in self.inputs if each.fill in given]

    def request(self, prompt: Prompt, request_id: str) -> bytes:
        """Serialize one ``ModelInferRequest``, asking for the outputs that are read and no more."""
        request: Any = service_pb2.ModelInferRequest(model_name=self.name, id=request_id)
        # without it the end of some models (BLS) can't be seen before the end of the stream
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        for tensor, value in self.values(prompt):
            elements = value if isinstance(value, list | tuple) else [value]
            shape = [1] * (tensor.rank - 1) + [len(elements)] if tensor.rank else []
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
            raw = b"".join(_encoded(each, tensor) for each in elements)
            request.raw_input_contents.append(raw)
        for name in (*self.outputs, *((_INPUT_COUNT,) if self._asks_count(prompt) else ())):
            request.outputs.add(name=name)
        data: bytes = request.SerializeToString()
        return data

    def _asks_count(self, prompt: Prompt) -> bool:
        return self.counts_input and prompt.input_tokens is None

    @property
    def read(self) -> tuple[str, ...]:
        """The outputs that are read as facts, where they are there."""
        return (*self.facts, _INPUT_COUNT)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The output tensors that are read of every answer."""
        count = (self.count_output,) if self.count_output else ()
        return ("text_output", *count, *(("output_ids",) if self.ids_output else ()), *self.facts)

    def parse(self, message: bytes) -> Chunk:
        """Read one ``ModelStreamInferResponse``; a tensor that is not there reads as nothing.

        Never raises: a message that can't be read is that request's error.
        """
        try:
            return self._parse(service_pb2.ModelStreamInferResponse.FromString(message))
        except (DecodeError, struct.error, KeyError, ValueError, OverflowError) as error:
            return Chunk(error=f"unreadable response: {error!r}")

    def _parse(self, response: Any) -> Chunk:
        if response.error_message:
            return Chunk(error=response.error_message)
        answer = response.infer_response
        text, tokens, ids = b"", None, None
        facts: dict[str, int] = {}
        for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=False):
            if tensor.name == "text_output":
                text = _join_strings(raw)
            elif tensor.name == self.count_output:
                tokens = int(sum(_numbers(tensor.datatype, raw)))
            elif tensor.name == "output_ids":
                ids = len(_numbers(tensor.datatype, raw))
            elif tensor.name in self.read and raw:
                facts[tensor.name] = int(_numbers(tensor.datatype, raw)[0])
        final = answer.parameters["triton_final_response"].bool_param
        return Chunk(text, ids if tokens is None else tokens, final, facts=facts)


def model_from_config(config: Any, defaults: Mapping[str, Any] | None = None) -> TritonModel:
    """Plan requests for a model from its ``ModelConfig`` protobuf.

    ``defaults`` are parameters for prompts that leave them out. Asks to stream where the model is
    decoupled (a served ensemble says so when one of its models is), since TensorRT-LLM refuses it
    elsewhere.
    Raises ``UserError`` for a model that doesn't take and give text, or whose required inputs
    nothing here can fill.
    """
    declared = {tensor.name: tensor for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    for name, has, what in (("text_input", declared, "input"), ("text_output", outputs, "output")):
        if name not in has:
            raise UserError(
                f"model {config.name!r} has no {what} {name} (it has: {', '.join(has) or 'none'})",
                fix="measure the model that takes and gives text, as a rule the ensemble",
            )
    decoupled = config.model_transaction_policy.decoupled
    always = dict.fromkeys(_ALWAYS, True) | {"stream": decoupled, "streaming": decoupled}
    fills: dict[str, str | bool] = {**_PARAMETERS, **always}
    unknown = [name for name, it in declared.items() if not it.optional and name not in fills]
    if unknown:
        raise UserError(
            f"model {config.name!r} requires the input {', '.join(unknown)}, "
            "which llm_perf can't fill",
            fix="make it optional in the model's config.pbtxt",
        )
    batch = int(config.max_batch_size > 0)
    inputs = [
        Tensor(name, _datatype(it), batch + len(it.dims), fills[name], it.optional)
        for name, it in declared.items()
        if name in fills
    ]
    timed = any(name in declared for name in _PERF_METRICS)
    return TritonModel(
        name=config.name,
        inputs=tuple(inputs),
        decoupled=decoupled,
        count_output=next((name for name in _COUNTS if name in outputs), None),
        ids_output="output_ids" in outputs,
        facts=tuple(name for name in _FACTS if timed and name in outputs),
        defaults=defaults or {},
        counts_input="return_num_input_tokens" in declared and _INPUT_COUNT in outputs,
    )


def _datatype(tensor: Any) -> str:
    name: str = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def _encoded(value: str | float, tensor: Tensor) -> bytes:
    """One element of an input; raises ``UserError`` for a value that its type can't hold."""
    try:
        if tensor.datatype == "BYTES":
            data = str(value).encode()
            return struct.pack("<I", len(data)) + data
        return struct.pack("<" + _FORMATS[tensor.datatype], value)
    except (struct.error, OverflowError) as error:
        raise UserError(
            f"{tensor.fill} {value!r} does not fit the input {tensor.name} ({tensor.datatype})",
            fix="give another value",
        ) from error


def _join_strings(raw: bytes) -> bytes:
    """Join the elements of a BYTES tensor: each is a little-endian uint32 length and its bytes."""
    parts, at = [], 0
    while at < len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        parts.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    return b"".join(parts)


def _numbers(datatype: str, raw: bytes) -> tuple[int, ...]:
    code = _FORMATS[datatype]
    return struct.unpack(f"<{len(raw) // struct.calcsize('<' + code)}{code}", raw)
