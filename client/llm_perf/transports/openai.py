"""OpenAI-style servers (vLLM, trtllm-serve, transformers serve, …): ``completions`` or ``chat``.

``/v1/completions`` and ``/v1/chat/completions``, streamed, with the server's usage counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from llm_perf.errors import UserError
from llm_perf.record import Chunk
from llm_perf.transports import Endpoint, no_model
from llm_perf.transports.http import HttpTransport, ask, error_text, open_session, warm
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
        if message == b"[DONE]":
            return Chunk(final=True)
        try:
            return _parse(json.loads(message))
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            return Chunk(error=f"unreadable response: {error!r}")


def _parse(answer: Any) -> Chunk:
    if (error := error_text(answer)) is not None:
        return Chunk(error=error)
    text, final, silent = "", False, False
    for choice in answer.get("choices", ()):
        said = choice.get("delta") or choice.get("message") or choice
        # a model that thinks aloud is answering: its first token ends the TTFT
        for key in ("reasoning_content", "reasoning", "text", "content"):
            text += said.get(key) or ""
        final = final or choice.get("finish_reason") is not None
        # no text: a token that is held back or ends the answer, but for the one that names the role
        silent = silent or final or "role" not in said or bool(said.get("tool_calls"))
    count = (answer.get("usage") or {}).get("completion_tokens")
    facts = {} if count is None else {"total_tokens": int(count)}
    return Chunk(
        text.encode(errors="replace"), final=final, silent=silent and not text, facts=facts
    )


async def connect(endpoint: Endpoint, streams: int, defaults: Mapping[str, int]) -> HttpTransport:
    """See ``transports.connect``; such a server knows by itself where an answer ends."""
    del defaults
    endpoint = replace(endpoint, url=endpoint.url.rstrip("/").removesuffix("/v1"))
    chat = endpoint.chosen == "chat"
    session = open_session(endpoint)
    try:
        _check(endpoint, *await ask(session, endpoint, "/v1/models"))
        await warm(session, endpoint, "/health", streams)
    except BaseException:
        await session.close()
        raise
    path = "/v1/chat/completions" if chat else "/v1/completions"
    return HttpTransport(session, endpoint.base + path, OpenAI(endpoint.model, chat))


def _check(endpoint: Endpoint, status: int, answer: object) -> None:
    """Raise ``UserError`` when the server keeps no list of models, or this one isn't on it.

    A server that fails to list them may still answer: transformers serve has an internal error
    where the machine has no Hugging Face cache.
    """
    if status == 500:
        return
    if status in (401, 403):
        raise UserError(
            f"the server at {endpoint.base} wants a key (HTTP {status})",
            fix="name the environment variable that holds it with --api-key-env",
        )
    models = answer.get("data") if isinstance(answer, dict) else None
    if status != 200 or not isinstance(models, list):
        raise UserError(
            f"the server at {endpoint.base} is no OpenAI-style server "
            f"(HTTP {status} for /v1/models)",
            fix="give its base URL, or use -i http or -i grpc for Triton",
        )
    known = {str(model.get("id")): "" for model in models if isinstance(model, dict)}
    on_demand = endpoint.model.startswith(("/", "."))  # a folder there, loaded when asked for
    if known and endpoint.model not in known and not on_demand:
        raise no_model(endpoint, known)
