"""Files of prompts: bytes in, checked lines out, in the formats that tools of the field write.

A format is recognised by what its objects hold, one object a line or one JSON list of them:
ours and genai-perf's (``text_input`` or ``text``), trtllm-bench's (``prompt``, ``output_tokens``),
OpenAI's (``messages``), ShareGPT's (``conversations``), and mooncake's, which has no text
(``input_length``, ``hash_ids``) but a ``timestamp``, as any of them may. Other keys are ignored.
Knows no tokenizer and no defaults.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from client.errors import UserError

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


@dataclass(frozen=True, slots=True)
class _Key:
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


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def _is_whole(low: int, high: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and low <= value < high


def _is_number(low: float, high: float = math.inf) -> Callable[[Any], bool]:
    def right(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high and abs(value) < 1e300

    return right


_INT32 = 2**31  # the tensors are INT32
_LIMIT = _is_whole(1, _INT32)
_TEXT: Final = {
    "text_input": _Key(("text_input", "prompt", "text"), "text with something in it", _is_text),
}
_FIELDS: Final = {
    "max_tokens": _Key(
        ("max_tokens", "output_tokens", "output_length", "max_completion_tokens"),
        "a whole number above 0",
        _LIMIT,
    ),
    "min_tokens": _Key(
        ("min_tokens", "min_length"), "a whole number, 0 or more", _is_whole(0, _INT32)
    ),
    "reference": _Key(("reference",), "text", _is_text),
    "category": _Key(("category",), "text", _is_text),
    "timestamp_ms": _Key(("timestamp",), "a number of milliseconds, 0 or more", _is_number(0)),
}
_LENGTHS: Final = {
    "input_tokens": _Key(("input_length",), "a whole number above 0", _LIMIT),
    "blocks": _Key(("hash_ids",), "a list of whole numbers", _is_numbers),
}
_SPOKEN: Final = {*_TEXT["text_input"].names, "messages", "conversations"}
SAMPLING: Final = {
    "temperature": _Key(("temperature",), "a number, 0 or more", _is_number(0)),
    "top_k": _Key(("top_k",), "a whole number, 0 or more", _is_whole(0, _INT32)),
    "top_p": _Key(("top_p",), "a number from 0 to 1", _is_number(0, 1)),
    "repetition_penalty": _Key(("repetition_penalty",), "a number, 0 or more", _is_number(0)),
    "presence_penalty": _Key(("presence_penalty",), "a number", _is_number(-math.inf)),
    "frequency_penalty": _Key(("frequency_penalty",), "a number", _is_number(-math.inf)),
    "seed": _Key(("seed", "random_seed"), "a whole number, 0 or more", _is_whole(0, 2**63)),
    "stop_words": _Key(("stop_words", "stop"), "text, or a list of texts", _is_words),
    "bad_words": _Key(("bad_words",), "text, or a list of texts", _is_words),
    "end_id": _Key(("end_id",), "a token id", _is_whole(-1, _INT32)),
    "pad_id": _Key(("pad_id",), "a token id", _is_whole(-1, _INT32)),
}


def read_lines(path: str | Path) -> list[Line]:
    """Read a data set, in its order.

    Raises:
        UserError: the file can't be read, holds no prompts, or a line is wrong (file and line).
    """
    path = Path(path)
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UserError(
            f"can't be read: {error.strerror}", where=path, fix="give a jsonl file of prompts"
        ) from error
    listed = data.lstrip().startswith(b"[")
    lines = list(_items(data, path) if listed else _lines(data, path))
    if not lines:
        raise UserError(
            "holds no prompts", where=path, fix='write one {"text_input": "…"} object a line'
        )
    return lines


def _lines(data: bytes, path: Path) -> Iterator[Line]:
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if raw.strip() and (line := parse_line(raw, path, number)) is not None:
            yield line


def _items(data: bytes, path: Path) -> Iterator[Line]:
    for number, value in enumerate(_load(data, path, None), start=1):
        if (line := read_object(value, f"{path}, item {number}")) is not None:
            yield line


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
    sampling = _checked(value, SAMPLING, wrong)
    for name in ("stop_words", "bad_words"):
        if isinstance(sampling.get(name), str):
            sampling[name] = [sampling[name]]
    if known.get("min_tokens", 0) > known.get("max_tokens", _INT32):
        raise wrong("min_tokens is above max_tokens")
    if value.get("input_length") is not None and not _SPOKEN & value.keys():
        return Line("", sampling=sampling, **known, **_checked(value, _LENGTHS, wrong))
    spoken = _spoken(value, wrong)
    return None if spoken is None else Line(*spoken, sampling=sampling, **known)


def _spoken(
    value: Mapping[str, Any], wrong: Callable[[str], UserError]
) -> tuple[str, tuple[Mapping[str, str], ...] | None] | None:
    """The prompt's text, and the messages it is made of where it is a chat."""
    text = _checked(value, _TEXT, wrong).get("text_input")
    messages = None
    if text is None and value.get("messages") is not None:
        messages = _messages(value["messages"], wrong)
        text = "\n".join(message["content"] for message in messages)
    elif text is None and value.get("conversations") is not None:
        text = _first_human(value["conversations"], wrong)
        if not text:
            return None
    if text is None and not _SPOKEN & value.keys():
        raise wrong("lacks text_input (or prompt, text, messages, conversations)")
    if not text:
        raise wrong("text_input is not text with something in it")
    return text, messages


def _checked(
    value: Mapping[str, Any], keys: Mapping[str, _Key], wrong: Callable[[str], UserError]
) -> dict[str, Any]:
    """Give the values of the known keys under their canonical names; null is as good as absent."""
    found: dict[str, Any] = {}
    for canonical, key in keys.items():
        name = next((name for name in key.names if value.get(name) is not None), None)
        if name is None:
            continue
        if not key.right(value[name]):
            raise wrong(f"{name} is not {key.kind}")
        found[canonical] = value[name]
    return found


def parse_sampling(words: tuple[str, ...]) -> dict[str, Any]:
    """Read ``NAME=VALUE`` words, as ``temperature=0.7``; a value is JSON, or else text.

    Raises ``UserError`` for an unknown name or a wrong value.
    """
    given: dict[str, Any] = {}
    for word in words:
        name, _, text = word.partition("=")
        canonical = next((key for key, known in SAMPLING.items() if name in known.names), None)
        if canonical is None:
            raise UserError(
                f"unknown sampling parameter {name!r}",
                where="--sampling",
                fix=f"use one of: {', '.join(SAMPLING)}",
            )
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if not SAMPLING[canonical].right(value):
            kind = SAMPLING[canonical].kind
            raise UserError(f"{name} is not {kind}", where="--sampling", fix=f"write {name}=VALUE")
        words_wanted = canonical in ("stop_words", "bad_words") and isinstance(value, str)
        given[canonical] = [value] if words_wanted else value
    return given


def _messages(value: object, wrong: Callable[[str], UserError]) -> tuple[dict[str, str], ...]:
    turns = value if isinstance(value, list) else []
    right = bool(turns) and all(
        isinstance(turn, dict) and _is_text(turn.get("role")) and _is_text(turn.get("content"))
        for turn in turns
    )
    if not right:
        raise wrong('messages is not a list of {"role": "…", "content": "…"}')
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)


def _first_human(value: object, wrong: Callable[[str], UserError]) -> str | None:
    """What the human says first: later turns would need answers that aren't there yet."""
    turns: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(turn, dict) and _is_text(turn.get("value")) for turn in turns):
        raise wrong('conversations is not a list of {"from": "…", "value": "…"}')
    return next((turn["value"] for turn in turns if turn.get("from") in ("human", "user")), None)
