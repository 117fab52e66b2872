"""OpenAI-style servers (vLLM, trtllm-serve, transformers serve, …): ``completions`` or ``chat``.

``/v1/completions`` and ``/v1/chat/completions``, streamed, with the server's usage counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from llm_perf.errors import UserError
from llm_perf.record import Chunk
from llm_perf.transports import Endpoint, no_model
from llm_perf.transports.events import UNREADABLE, as_it_came, error_text, whole
from llm_perf.transports.http import HttpTransport, Server
from llm_perf.workload.workload import Prompt

# Our names of sampling parameters and the API's; those after seed are extensions that vLLM and
# trtllm-serve share.
_NAMES: Final[dict[str, str]] = {
    **{name: name for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty")},
    "seed": "seed",
    "stop_words": "stop",
    **{name: name for name in ("top_k", "repetition_penalty", "bad_words")},
    "end_id": "stop_token_ids",
}
# finish reasons of whole answers; the last two are text-generation-inference's
_ENDS: Final = ("stop", "length", "tool_calls", "function_call", "eos_token", "stop_sequence")
_COUNTS: Final = {"completion_tokens": "total_tokens", "prompt_tokens": "num_input_tokens"}
_NO_LIST: Final = (404, 405, 500, 501)


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
        content: dict[str, Any] = {"prompt": prompt.text}
        if self.chat:
            content = {"messages": prompt.messages or [{"role": "user", "content": prompt.text}]}
        fixed = {"stream": True, "stream_options": {"include_usage": True}}
        asked = {"model": self.model, **content, "max_tokens": prompt.max_tokens, **fixed}
        return json.dumps({**asked, **sampling}).encode()

    def parse(self, message: bytes) -> Chunk:
        """Read one event's data. Never raises: what can't be read is that request's error."""
        message = message.strip()
        if message in (b"", b"[DONE]"):
            return Chunk(final=bool(message))
        try:
            return _parse(json.loads(message))
        except UNREADABLE:
            return Chunk(error=f"unreadable response: {as_it_came(message)}")

    def ended(self, message: bytes) -> bool:
        """Whether the answer ends here: ``[DONE]``, a finish_reason, or an error."""
        chunk = self.parse(message)
        return chunk.final or chunk.error is not None


def _parse(answer: Any) -> Chunk:
    if (error := error_text(answer)) is not None:
        return Chunk(error=error)
    text, final, silent, acts = "", False, False, False
    for choice in answer.get("choices") or ():
        said = choice.get("delta") or choice.get("message") or choice
        # a model that thinks aloud is answering: its first token ends the TTFT
        thought = dict.fromkeys(_text(said.get(key)) for key in ("reasoning_content", "reasoning"))
        text += "".join([*thought, _text(said.get("text")), _text(said.get("content"))])
        reason = choice.get("finish_reason")
        if reason is not None and reason not in _ENDS:
            return Chunk(text.encode(errors="replace"), error=f"finish_reason: {reason}")
        final = final or reason is not None
        # no text: a token that is held back or ends the answer, but for the one that names the role
        acts = acts or bool(said.get("tool_calls") or said.get("function_call"))
        silent = silent or final or "role" not in said or acts
    usage = answer.get("usage") or {}
    counts = {fact: whole(usage.get(key)) for key, fact in _COUNTS.items()}
    facts = {fact: count for fact, count in counts.items() if count is not None}
    return Chunk(
        text.encode(errors="replace"),
        final=final,
        silent=silent and not text,
        acts=acts,
        facts=facts,
    )


def _text(said: Any) -> str:
    """A text, or the texts of a list of content parts."""
    if isinstance(said, list):
        return "".join(_text(part.get("text")) for part in said)
    if said is None or isinstance(said, str):
        return said or ""
    raise TypeError("text of another kind")


async def connect(endpoint: Endpoint, streams: int, defaults: Mapping[str, int]) -> HttpTransport:
    """See ``transports.connect``; such a server knows by itself where an answer ends."""
    del defaults
    server = Server(endpoint)
    version = "" if urlsplit(endpoint.base).path else "/v1"  # a base with a path holds it already
    try:
        _check(endpoint, *await server.ask(endpoint.target(f"{version}/models")))
        await server.pool.warm(streams)
    except BaseException:
        server.pool.close()
        raise
    chat = endpoint.chosen == "chat"
    target = endpoint.target(f"{version}/{'chat/' if chat else ''}completions")
    return HttpTransport(server, target, OpenAI(endpoint.model, chat))


def _check(endpoint: Endpoint, status: int, answer: object) -> None:
    """Raise ``UserError`` when the server keeps no list of models, or this one isn't on it.

    A server that has no list, or fails to write it, may still answer: transformers serve has an
    internal error where the machine has no Hugging Face cache.
    """
    if status in _NO_LIST:
        return
    if status in (401, 403):
        raise UserError(
            f"the server at {endpoint.base} wants a key (HTTP {status})",
            fix="name the environment variable that holds it with --api-key-env",
        )
    models = answer.get("data") if isinstance(answer, dict) else answer
    if status != 200 or not isinstance(models, list):
        raise UserError(
            f"the server at {endpoint.base} is no OpenAI-style server "
            f"(HTTP {status} for /v1/models)",
            fix="give its base URL, or use -i http or -i grpc for Triton",
        )
    known = {str(model.get("id")): "" for model in models if isinstance(model, dict)}
    on_demand = endpoint.model.startswith(("/", "."))  # a folder there, loaded when asked for
    names = {endpoint.model, f"{endpoint.model}:latest"}  # Ollama lists names with their tag
    if known and not names & known.keys() and not on_demand:
        raise no_model(endpoint, known)
