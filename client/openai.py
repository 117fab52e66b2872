"""The language of OpenAI-style servers (vLLM, trtllm-serve, transformers serve, …), as bytes.

``/v1/completions`` and ``/v1/chat/completions``, streamed, with the server's usage counts. Knows
no network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from client.errors import UserError
from client.record import Chunk
from client.workload import Prompt

# Our names of sampling parameters and the API's; those after seed are extensions that vLLM and
# trtllm-serve share.
_NAMES: Final[dict[str, str]] = {
    **{name: name for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty")},
    "seed": "seed",
    "stop_words": "stop",
    "top_k": "top_k",
    "repetition_penalty": "repetition_penalty",
    "bad_words": "bad_words",
    "end_id": "stop_token_ids",
}


@dataclass(frozen=True, slots=True)
class OpenAI:
    """A ``Dialect``: how to ask one model, to complete a text or (``chat``) to answer messages."""

    model: str
    chat: bool

    def request(self, prompt: Prompt, request_id: str) -> bytes:
        """Write one request; raises ``UserError`` for a parameter that the API doesn't have.

        The API has no place for an id that all servers take.
        """
        del request_id
        if lost := prompt.sampling.keys() - _NAMES.keys():
            raise UserError(
                f"OpenAI-style servers have no {', '.join(sorted(lost))}",
                fix="leave it out of the options and the prompts",
            )
        sampling = {_NAMES[name]: value for name, value in prompt.sampling.items()}
        if "stop_token_ids" in sampling:
            sampling["stop_token_ids"] = [sampling["stop_token_ids"]]
        if prompt.min_tokens is not None:
            sampling["min_tokens"] = prompt.min_tokens
            if prompt.min_tokens == prompt.max_tokens:
                sampling["ignore_eos"] = True
        return json.dumps(
            {
                "model": self.model,
                **self._content(prompt),
                "max_tokens": prompt.max_tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
                **sampling,
            }
        ).encode()

    def _content(self, prompt: Prompt) -> dict[str, Any]:
        if not self.chat:
            return {"prompt": prompt.text}
        messages = prompt.messages or ({"role": "user", "content": prompt.text},)
        return {"messages": [dict(message) for message in messages]}

    def parse(self, message: bytes) -> Chunk:
        """Read one event's data. Never raises: what can't be read is that request's error."""
        if message == b"[DONE]":
            return Chunk(final=True)
        try:
            return _parse(json.loads(message))
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            return Chunk(error=f"unreadable response: {error!r}")


def error_text(answer: Any) -> str | None:
    """What a JSON answer says is wrong, if it does: OpenAI's shape, vLLM's, or Triton's."""
    if not isinstance(answer, dict):
        return None
    error = answer.get("error")
    if isinstance(error, dict):
        error = error.get("message", error)
    elif answer.get("object") == "error":
        error = answer.get("message", answer)
    return None if error is None else str(error)


def _parse(answer: Any) -> Chunk:
    if (error := error_text(answer)) is not None:
        return Chunk(error=error)
    text, final = "", False
    for choice in answer.get("choices", ()):
        said = choice.get("delta") or choice.get("message") or choice
        # a model that thinks aloud is answering: its first token ends the TTFT
        for key in ("reasoning_content", "reasoning", "text", "content"):
            text += said.get(key) or ""
        final = final or choice.get("finish_reason") is not None
    usage = answer.get("usage") or {}
    names = (("prompt_tokens", "num_input_tokens"), ("completion_tokens", "total_tokens"))
    facts = {ours: int(usage[theirs]) for theirs, ours in names if usage.get(theirs) is not None}
    return Chunk(text.encode(errors="replace"), final=final, facts=facts)
