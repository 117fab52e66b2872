"""OpenAI-style servers (vLLM, trtllm-serve, transformers serve, …): ``completions`` or ``chat``.

``/v1/completions`` and ``/v1/chat/completions``, streamed, with the server's usage counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Final
from urllib.parse import urlsplit

from llm_perf.errors import UserError
from llm_perf.record import Chunk, Exchange
from llm_perf.transports import Endpoint, no_model
from llm_perf.transports.events import UNREADABLE, as_it_came, error_text, whole
from llm_perf.transports.http import HttpTransport, Server
from llm_perf.workload.workload import Prompt

# Our names of sampling parameters and the API's; those after stop are extensions that vLLM and
# trtllm-serve share, but for bad_words, which is vLLM's alone.
_NAMES: Final[dict[str, str]] = {
    **{name: name for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty")},
    "seed": "seed",
    "stop_words": "stop",
    **{name: name for name in ("top_k", "repetition_penalty", "length_penalty")},
    "bad_words": "bad_words",
    "end_id": "stop_token_ids",
}
# finish reasons of whole answers; the last two are text-generation-inference's
_ENDS: Final = ("stop", "length", "tool_calls", "function_call", "eos_token", "stop_sequence")
_COUNTS: Final = {"completion_tokens": "total_tokens", "prompt_tokens": "num_input_tokens"}
_ITS_OWN: Final = ("end_id", "pad_id")
_USAGE: Final = {"include_usage": True}
_NO_LIST: Final = (400, 404, 405, 410, 422, 500, 501)


# What makes an answer no shorter than asked for, both extensions; servers that check their
# requests' keys may refuse one or both. In the order in which they are tried.
_FIXED: Final = (("min_tokens", "ignore_eos"), ("ignore_eos",), ("min_tokens",), ())
_REFUSED: Final = re.compile(r"HTTP (400|422)\b")
_TRIAL_S: Final = 60.0  # a server may have to load the model first


@dataclass(frozen=True, slots=True)
class OpenAI:
    """A ``Dialect``: how to ask one model, to complete a text or (``chat``) to answer messages.

    ``max_tokens`` is the limit's name; ``usage`` asks for counts with ``stream_options``; ``least``
    are the keys sent for a shortest length, ``defaults`` parameters where a prompt has none.
    """

    model: str
    chat: bool
    max_tokens: str = "max_tokens"
    usage: bool = True
    least: tuple[str, ...] = _FIXED[0]
    remarks: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def request(self, prompt: Prompt, request_id: str) -> bytes:
        """Write one request; raises ``UserError`` for a parameter that the API doesn't have.

        The API has no place for an id that all servers take.
        """
        del request_id
        if lost := prompt.sampling.keys() - _NAMES.keys():
            raise UserError(
                f"OpenAI-style servers have no {', '.join(sorted(lost))}",
                fix="leave it out, or give it as --extra-body under the server's own name",
            )
        asked = {**self.defaults, **prompt.sampling}
        sampling = {_NAMES[name]: value for name, value in asked.items()}
        if "stop_token_ids" in sampling:
            sampling["stop_token_ids"] = [sampling["stop_token_ids"]]
        least = {"min_tokens": prompt.min_tokens}
        if prompt.fixed_length:
            least["ignore_eos"] = True
        sampling |= {key: least[key] for key in self.least if least.get(key) is not None}
        content: dict[str, Any] = {"prompt": prompt.text}
        if self.chat:
            content = {"messages": prompt.messages or [{"role": "user", "content": prompt.text}]}
        fixed = {"stream": True} | ({"stream_options": _USAGE} if self.usage else {})
        body = {"model": self.model, **content, self.max_tokens: prompt.max_tokens, **fixed}
        return json.dumps({**body, **sampling, **prompt.extra_body}).encode()

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
    details = usage.get("prompt_tokens_details") or {}
    counts["cached_tokens"] = whole(details.get("cached_tokens"))
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


async def connect(
    endpoint: Endpoint, streams: int, defaults: Mapping[str, int], trial: Prompt | None
) -> HttpTransport:
    """See ``transports.connect``; such a server knows by itself where an answer ends."""
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
    dialect = OpenAI(endpoint.model, chat, endpoint.max_tokens_field, endpoint.stream_options)
    known = {name: value for name, value in defaults.items() if name not in _ITS_OWN}
    dialect = replace(dialect, remarks=server.pool.remarks, defaults=known)
    transport = HttpTransport(server, target, dialect)
    try:
        transport.dialect = dialect if trial is None else await _tried(transport, dialect, trial)
    except BaseException:
        await transport.close()
        raise
    return transport


async def _tried(transport: HttpTransport, dialect: OpenAI, trial: Prompt) -> OpenAI:
    """The dialect with what the server takes of the keys for a shortest length.

    Another failure than a refusal is the run's to tell. Raises ``UserError`` when nobody counts
    tokens.
    """
    if trial.min_tokens is None and trial.input_tokens is not None:
        return dialect
    least = None if trial.min_tokens is None else 1
    prompt = replace(trial, text="Hi", messages=None, max_tokens=1, min_tokens=least)
    said = ""
    for usage, keys in product(*_ways(dialect, least)):
        tried = replace(dialect, usage=usage, least=keys)
        seen = Exchange("trial")
        await transport.stream(tried.request(prompt, seen.request_id), seen, _TRIAL_S)
        transport.read(seen)
        if seen.failure is not None and _REFUSED.match(seen.failure[1]):
            said = said or seen.failure[1]
            continue
        counted = any("total_tokens" in tried.parse(each).facts for _, each in seen.messages)
        if seen.failure is None and trial.input_tokens is None and not counted:
            raise UserError("the server counts no tokens", fix="give --tokenizer-path")
        lost = [*([] if usage == dialect.usage else ["stream_options"])]
        lost += [key for key in _FIXED[0] if key not in keys]
        left = "" if keys else ", so that answers may be shorter than asked for"
        note = f"left out what the server refuses, {' and '.join(lost)} ({said}){left}"
        return replace(tried, remarks=(*dialect.remarks, *((note,) if lost else ())))
    return dialect


def _ways(dialect: OpenAI, least: int | None) -> tuple[list[bool], Sequence[tuple[str, ...]]]:
    """What to try, the best first: asking for usage or not, and keys for a shortest length."""
    return [True, False] if dialect.usage else [False], _FIXED if least else _FIXED[:1]


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
