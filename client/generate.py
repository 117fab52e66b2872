"""Triton's generate extension: a model's inputs as a JSON object, its outputs as another.

Works on the same plan of the model as the protobufs do (``client.triton``); knows no network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from client.openai import error_text
from client.record import Chunk
from client.triton import TritonModel
from client.workload import Prompt


@dataclass(frozen=True, slots=True)
class GenerateModel:
    """A ``Dialect`` of ``/v2/models/M/generate`` and ``generate_stream``."""

    model: TritonModel

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
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            return Chunk(error=f"unreadable response: {error!r}")

    def _parse(self, answer: dict[str, Any]) -> Chunk:
        count = answer.get(self.model.count_output) if self.model.count_output else None
        tokens = None if count is None else sum(map(int, _elements(count)))
        ids = len(_elements(answer["output_ids"])) if "output_ids" in answer else None
        return Chunk(
            text="".join(map(str, _elements(answer.get("text_output", "")))).encode(
                errors="replace"
            ),
            tokens=ids if tokens is None else tokens,
            ids=ids,
            facts={
                name: int(_elements(answer[name])[0])
                for name in self.model.facts
                if _elements(answer.get(name, []))
            },
        )


def _elements(value: Any) -> list[Any]:
    """A tensor's elements: Triton writes one element without its brackets."""
    if not isinstance(value, list):
        return [value]
    return [each for part in value for each in _elements(part)]
