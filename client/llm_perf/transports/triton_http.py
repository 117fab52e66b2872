"""Triton's HTTP port: ``generate_stream`` for decoupled models, ``generate`` for others.

The generate extension has a model's inputs as a JSON object, its outputs as another; what they
are, the same plan of the model says as for the protobufs (``llm_perf.transports.triton``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from google.protobuf.json_format import ParseDict, ParseError
from tritonclient.grpc import model_config_pb2

from llm_perf.errors import UserError
from llm_perf.record import Chunk
from llm_perf.transports import Endpoint, no_model
from llm_perf.transports.events import UNREADABLE, as_it_came, error_text, whole
from llm_perf.transports.http import HttpTransport, Server
from llm_perf.transports.triton import TritonModel, model_from_config
from llm_perf.workload.workload import Prompt


@dataclass(frozen=True, slots=True)
class GenerateModel:
    """A ``Dialect`` of ``/v2/models/M/generate`` and ``generate_stream``."""

    model: TritonModel
    remarks: tuple[str, ...] = ()

    def request(self, prompt: Prompt, request_id: str) -> bytes:
        """Write one request; raises ``UserError`` as ``TritonModel.values`` does."""
        values = {tensor.name: value for tensor, value in self.model.values(prompt)}
        return json.dumps({"id": request_id, **values}).encode()

    def parse(self, message: bytes) -> Chunk:
        """Read one JSON object. Never raises: what can't be read is that request's error."""
        try:
            answer = json.loads(message)
            if (error := error_text(answer)) is not None:
                return Chunk(error=error)
            return self._parse(answer)
        except UNREADABLE:
            return Chunk(error=f"unreadable response: {as_it_came(message)}")

    def ended(self, message: bytes) -> bool:
        """The generate extension has no mark for it: the body's end is the answer's."""
        del message
        return True

    def _parse(self, answer: dict[str, Any]) -> Chunk:
        tokens = None
        if self.model.count_output and answer.get(self.model.count_output) is not None:
            counts = map(whole, _elements(answer[self.model.count_output]))
            tokens = sum(count for count in counts if count is not None)
        elif "output_ids" in answer:
            tokens = len(_elements(answer["output_ids"]))
        text = "".join(map(str, _elements(answer.get("text_output", ""))))
        told = {name: _elements(answer.get(name, [])) for name in self.model.read}
        known = {name: whole(values[0]) for name, values in told.items() if values}
        facts = {name: value for name, value in known.items() if value is not None}
        return Chunk(text.encode(errors="replace"), tokens, facts=facts)


def _elements(value: Any) -> list[Any]:
    """A tensor's elements: Triton writes one element without its brackets."""
    if not isinstance(value, list):
        return [value]
    return [each for part in value for each in _elements(part)]


async def connect(
    endpoint: Endpoint, streams: int, defaults: Mapping[str, int], trial: Prompt | None
) -> HttpTransport:
    """See ``transports.connect``; a Triton declares what it takes."""
    del trial
    server = Server(endpoint)
    path = f"/v2/models/{quote(endpoint.model, safe='')}"
    try:
        status, config = await server.ask(endpoint.target(f"{path}/config"))
        if status != 200:
            _, models = await server.ask(endpoint.target("/v2/repository/index"), "POST")
            raise _no_model(endpoint, config, models)
        try:
            parsed = ParseDict(config, model_config_pb2.ModelConfig(), ignore_unknown_fields=True)
        except (ParseError, TypeError, AttributeError) as error:
            raise _no_triton(endpoint) from error
        model = model_from_config(parsed, defaults)
        await server.pool.warm(streams)
    except BaseException:
        server.pool.close()
        raise
    verb = "generate_stream" if model.decoupled else "generate"
    return HttpTransport(
        server, endpoint.target(f"{path}/{verb}"), GenerateModel(model, server.pool.remarks)
    )


def _no_model(endpoint: Endpoint, answer: object, models: object) -> UserError:
    if not isinstance(models, list):
        unknown = isinstance(answer, dict) and "unknown model" in str(answer.get("error"))
        return no_model(endpoint, {}) if unknown else _no_triton(endpoint)
    said = answer.get("error") if isinstance(answer, dict) else answer
    known = (model for model in models if isinstance(model, dict))
    return no_model(endpoint, {str(each.get("name")): each.get("reason") or said for each in known})


def _no_triton(endpoint: Endpoint) -> UserError:
    return UserError(
        f"the server at {endpoint.base} speaks HTTP, but is no Triton",
        fix="give Triton's HTTP port (8000 unless set otherwise), or use -i openai",
    )
