"""Files of prompts: bytes in, checked lines out, in the formats that tools of the field write.

A format is recognised by what its objects hold, one object a line or one JSON list of them:
ours and genai-perf's (``text_input`` or ``text``), trtllm-bench's (``prompt``, ``output_tokens``),
OpenAI's (``messages``; where the assistant speaks last, that turn is the reference), ShareGPT's
(``conversations``), and mooncake's, which has no text (``input_length``, ``hash_ids``) but a
``timestamp``, as any of them may. Other keys are ignored.
Knows no tokenizer and no defaults.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from llm_perf.errors import UserError
from llm_perf.workload.wrapped import is_wrapped, read_file, unwrap

_FIX: Final = 'write an object like {"text_input": "…", "max_tokens": 64, "reference": "…"}'


@dataclass(frozen=True, slots=True)
class Line:
    """What a data set says of one request; ``None`` and absent keys are left to the run.

    ``sampling`` has canonical keys (those of ``SAMPLING``), ``timestamp_ms`` is the trace's own.
    Where ``text`` is empty, it is to be made up: ``input_tokens`` long, of ``blocks`` that lines
    share where their numbers are the same.
    """

    text: str
    messages: tuple[Mapping[str, str], ...] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    reference: str | None = None
    category: str | None = None
    timestamp_ms: float | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    input_tokens: int | None = None
    blocks: Sequence[int] = ()
    extra_body: Mapping[str, Any] = field(default_factory=dict)


class _Key(NamedTuple):
    """A key under all its names, and what its value has to be."""

    names: tuple[str, ...]
    kind: str
    right: Callable[[Any], bool]


def _is_text(value: object) -> bool:
    # JSON can spell half a surrogate pair, and UTF-8 can't
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _is_words(value: object) -> bool:
    words = value if isinstance(value, list) else [value]
    return all(_is_text(word) and word for word in words)


def _is_body(value: object) -> bool:
    try:
        return isinstance(value, dict) and bool(json.dumps(value, allow_nan=False).encode())
    except (ValueError, RecursionError):  # NaN, or deeper than can be written
        return False


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def _is_whole(low: int, high: int = 2**31) -> Callable[[object], bool]:  # the tensors are INT32
    return lambda value: type(value) is int and low <= value < high


def _is_number(low: float, high: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and low <= value <= high and abs(value) < 1e300


LONGEST_TOKENS: Final = 2**22  # of a prompt that is made up: some 0.5 GB of memory
_LONGEST: Final = 2**24  # characters of a prompt: its encoding takes some 55 bytes for each
_WHOLE: Final = "a whole number, 0 or more"
_ABOVE: Final = "a whole number above 0"
_TEXTS: Final = "text, or a list of texts"
_TEXT: Final = _Key(("text_input", "prompt", "text"), "text with something in it", _is_text)
# fmt: off
_FIELDS: Final = {
    "max_tokens": _Key(("max_tokens", "output_tokens", "output_length", "max_completion_tokens"),
                       _ABOVE, _is_whole(1)),
    "min_tokens": _Key(("min_tokens", "min_length"), _WHOLE, _is_whole(0)),
    "reference": _Key(("reference",), "text", _is_text),
    "category": _Key(("category",), "text", _is_text),
    "extra_body": _Key(("extra_body",), "a JSON object", _is_body),
    "timestamp_ms": _Key(("timestamp",), "a number of milliseconds, 0 or more", _is_number(0)),
}
_LENGTHS: Final = {
    "input_tokens": _Key(("input_length",), f"{_ABOVE}, at most {LONGEST_TOKENS:,}",
                         _is_whole(1, LONGEST_TOKENS + 1)),
    "blocks": _Key(("hash_ids",), "a list of whole numbers", _is_numbers),
}
SAMPLING: Final = {
    "temperature": _Key(("temperature",), "a number, 0 or more", _is_number(0)),
    "top_k": _Key(("top_k",), _WHOLE, _is_whole(0)),
    "top_p": _Key(("top_p",), "a number from 0 to 1", _is_number(0, 1)),
    "repetition_penalty": _Key(("repetition_penalty",), "a number, 0 or more", _is_number(0)),
    "presence_penalty": _Key(("presence_penalty",), "a number", _is_number(-math.inf)),
    "frequency_penalty": _Key(("frequency_penalty",), "a number", _is_number(-math.inf)),
    "length_penalty": _Key(("length_penalty",), "a number", _is_number(-math.inf)),
    "beam_width": _Key(("beam_width",), _ABOVE, _is_whole(1)),
    "seed": _Key(("seed", "random_seed"), _WHOLE, _is_whole(0, 2**63)),
    "stop_words": _Key(("stop_words", "stop"), _TEXTS, _is_words),
    "bad_words": _Key(("bad_words",), _TEXTS, _is_words),
    "end_id": _Key(("end_id",), "a token id", _is_whole(-1)),
    "pad_id": _Key(("pad_id",), "a token id", _is_whole(-1)),
}
# fmt: on
_SPOKEN: Final = {*_TEXT.names, "messages", "conversations"}
_Wrong: TypeAlias = Callable[[str], UserError]


def read_lines(path: str | Path) -> list[Line]:
    """Read a data set, in its order.

    Raises:
        UserError: the file can't be read, holds no prompts, or a line is wrong (file and line).
    """
    path = Path(path)
    data = read_file(path)
    found: Iterable[Line | None]
    if data.lstrip().startswith(b"[") or is_wrapped(data):
        items = enumerate(unwrap(_load(data, path, None)), start=1)
        found = (read_object(value, f"{path}, item {number}") for number, value in items)
    else:
        numbered = enumerate(data.split(b"\n"), start=1)
        found = (parse_line(raw, path, number) for number, raw in numbered if raw.strip())
    lines = [line for line in found if line is not None]
    if not lines:
        raise UserError(
            "holds no prompts", where=path, fix='write one {"text_input": "…"} object a line'
        )
    return lines


def parse_line(raw: bytes, path: Path, number: int) -> Line | None:
    """Read one line of a jsonl; raises ``UserError`` with file and line."""
    return read_object(_load(raw, path, number), path, number)


def _load(raw: bytes, path: Path, number: int | None) -> Any:
    try:
        return json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})", where=path, line=number, fix=_FIX) from error


def read_object(value: object, where: str | Path, number: int | None = None) -> Line | None:
    """Check one object; ``None`` for a ShareGPT conversation in which no human speaks.

    Raises ``UserError`` with its place.
    """

    def wrong(what: str) -> UserError:
        return UserError(what, where=where, line=number, fix=_FIX)

    if not isinstance(value, dict):
        raise wrong("not a JSON object")
    known = _checked(value, _FIELDS, wrong)
    known["sampling"] = _sampling(value, wrong)
    if known.get("min_tokens", 0) > known.get("max_tokens", math.inf):
        raise wrong("min_tokens is above max_tokens")
    if value.get("input_length") is not None and not _SPOKEN & value.keys():
        return Line("", **known, **_checked(value, _LENGTHS, wrong))
    spoken = _spoken(value, known, wrong)
    return None if spoken is None else Line(*spoken, **known)


def _spoken(
    value: Mapping[str, Any], known: dict[str, Any], wrong: _Wrong
) -> tuple[str, tuple[Mapping[str, str], ...] | None] | None:
    """The prompt's text, and the messages it is made of where it is a chat.

    Where a chat ends with its answer, ``known`` gets it as the reference unless it has one.
    """
    text = _checked(value, {"text": _TEXT}, wrong).get("text")
    messages = None
    if text is None and value.get("messages") is not None:
        messages, answer = _messages(value["messages"], wrong)
        if answer is not None:
            known.setdefault("reference", answer)
        text = "\n".join(message["content"] for message in messages)
    elif text is None and value.get("conversations") is not None:
        text = _first_human(value["conversations"], wrong)
        if not text:
            return None
    if text is None and not _SPOKEN & value.keys():
        raise wrong("lacks text_input (or prompt, text, messages, conversations)")
    if not text:
        raise wrong("text_input is not text with something in it")
    if len(text) > _LONGEST:
        raise wrong(f"a prompt of {len(text):,} characters is too long ({_LONGEST:,} at most)")
    return text, messages


def _checked(value: Mapping[str, Any], keys: Mapping[str, _Key], wrong: _Wrong) -> dict[str, Any]:
    """Give the values of the known keys under their canonical names; null is as good as absent."""
    found: dict[str, Any] = {}
    for canonical, key in keys.items():
        name = next((name for name in key.names if value.get(name) is not None), None)
        if name is not None:
            if not key.right(value[name]):
                raise wrong(f"{name} is not {key.kind}")
            found[canonical] = value[name]
    return found


def _sampling(value: Mapping[str, Any], wrong: _Wrong) -> dict[str, Any]:
    known = _checked(value, SAMPLING, wrong)
    lists = {
        name: [known[name]]
        for name in ("stop_words", "bad_words")
        if isinstance(known.get(name), str)
    }
    return known | lists


def parse_sampling(words: tuple[str, ...]) -> dict[str, Any]:
    """Read ``NAME=VALUE`` words, as ``temperature=0.7``; a value is JSON, or else text.

    Raises ``UserError`` for an unknown name or a wrong value.
    """

    def wrong(what: str) -> UserError:
        return UserError(what, where="--sampling", fix=f"write {name}=VALUE")

    given: dict[str, Any] = {}
    for word in words:
        name, _, text = word.partition("=")
        if not any(name in key.names for key in SAMPLING.values()):
            raise UserError(
                f"unknown sampling parameter {name!r}",
                where="--sampling",
                fix=f"use one of: {', '.join(SAMPLING)}",
            )
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        given |= _sampling({name: text if value is None else value}, wrong)
    return given


def parse_extra_body(text: str) -> dict[str, Any]:
    """Read ``--extra-body``; raises ``UserError`` for anything but a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not _is_body(value):
        raise UserError(
            "is not a JSON object", where="--extra-body", fix="""write it like '{"n": 1}'"""
        )
    body: dict[str, Any] = value
    return body


def _messages(value: object, wrong: _Wrong) -> tuple[tuple[dict[str, str], ...], str | None]:
    """The turns to send, and the assistant's last one, which is what was answered to them."""
    turns = [_joined(turn) for turn in value] if isinstance(value, list) else []
    right = bool(turns) and all(
        isinstance(turn, dict) and _is_text(turn.get("role")) and _is_text(turn.get("content"))
        for turn in turns
    )
    if not right:
        raise wrong('messages is not a list of {"role": "…", "content": "…"}')
    said = tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)
    if said[-1]["role"] != "assistant":
        return said, None
    if len(said) == 1:
        raise wrong("messages holds an answer and nothing that was asked")
    return said[:-1], said[-1]["content"]


def _joined(turn: object) -> Any:
    """The turn, with a content that is a list of text parts as one text."""
    parts = turn.get("content") if isinstance(turn, dict) else None
    if not isinstance(turn, dict) or not isinstance(parts, list) or not parts:
        return turn
    texts = [
        part["text"]
        for part in parts
        if isinstance(part, dict) and part.get("type") == "text" and _is_text(part.get("text"))
    ]
    return {**turn, "content": "".join(texts) if len(texts) == len(parts) else None}


def _first_human(value: object, wrong: _Wrong) -> str | None:
    """What the human says first: later turns would need answers that aren't there yet."""
    turns: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(turn, dict) and _is_text(turn.get("value")) for turn in turns):
        raise wrong('conversations is not a list of {"from": "…", "value": "…"}')
    return next((turn["value"] for turn in turns if turn.get("from") in ("human", "user")), None)
