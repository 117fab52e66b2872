"""What a data set may say of a request: keys under all their names, and what their values must be.

Values in, checked values under one name each out; which of an object's keys were taken is noted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from llm_perf.errors import UserError

Wrong: TypeAlias = Callable[[str], UserError]


class Key(NamedTuple):
    """A key under all its names, and what its value has to be."""

    names: tuple[str, ...]
    kind: str
    right: Callable[[Any], bool]


def is_text(value: object) -> bool:
    """Whether it is text that UTF-8 can spell: JSON can have half a surrogate pair."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _is_words(value: object) -> bool:
    words = value if isinstance(value, list) else [value]
    return all(is_text(word) and word for word in words)


def _is_body(value: object) -> bool:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        return isinstance(value, dict) and bool(text.encode())
    except (ValueError, RecursionError):  # NaN, half a surrogate pair, or too deep to be written
        return False


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def _is_whole(low: int, high: int = 2**31) -> Callable[[object], bool]:  # the tensors are INT32
    return lambda value: type(value) is int and low <= value < high


def _is_number(low: float, high: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and low <= value <= high and abs(value) < 1e300


LONGEST_TOKENS: Final = 2**22  # of a prompt that is made up: some 0.5 GB of memory
_WHOLE: Final = "a whole number, 0 or more"
_ABOVE: Final = "a whole number above 0"
_TEXTS: Final = "text, or a list of texts"
TEXT: Final = Key(("text_input", "prompt", "text"), "text with something in it", is_text)
# fmt: off
FIELDS: Final = {
    "max_tokens": Key(("max_tokens", "output_tokens", "output_length", "max_completion_tokens"),
                      _ABOVE, _is_whole(1)),
    "min_tokens": Key(("min_tokens", "min_length"), _WHOLE, _is_whole(0)),
    "reference": Key(("reference",), "text", is_text),
    "category": Key(("category",), "text", is_text),
    "extra_body": Key(("extra_body",), "a JSON object", _is_body),
    "timestamp_ms": Key(("timestamp",), "a number of milliseconds, 0 or more", _is_number(0)),
}
LENGTHS: Final = {
    "input_tokens": Key(("input_length",), f"{_ABOVE}, at most {LONGEST_TOKENS:,}",
                        _is_whole(1, LONGEST_TOKENS + 1)),
    "blocks": Key(("hash_ids",), "a list of whole numbers", _is_numbers),
}
SAMPLING: Final = {
    "temperature": Key(("temperature",), "a number, 0 or more", _is_number(0)),
    "top_k": Key(("top_k",), _WHOLE, _is_whole(0)),
    "top_p": Key(("top_p",), "a number from 0 to 1", _is_number(0, 1)),
    "repetition_penalty": Key(("repetition_penalty",), "a number, 0 or more", _is_number(0)),
    "presence_penalty": Key(("presence_penalty",), "a number", _is_number(-math.inf)),
    "frequency_penalty": Key(("frequency_penalty",), "a number", _is_number(-math.inf)),
    "length_penalty": Key(("length_penalty",), "a number", _is_number(-math.inf)),
    "beam_width": Key(("beam_width",), _ABOVE, _is_whole(1)),
    "seed": Key(("seed", "random_seed"), _WHOLE, _is_whole(0, 2**63)),
    "stop_words": Key(("stop_words", "stop"), _TEXTS, _is_words),
    "bad_words": Key(("bad_words",), _TEXTS, _is_words),
    "end_id": Key(("end_id",), "a token id", _is_whole(-1)),
    "pad_id": Key(("pad_id",), "a token id", _is_whole(-1)),
}
# fmt: on
SPOKEN: Final = (*TEXT.names, "messages", "conversations")
_AS_THEY_STAND: Final = (*TEXT.names, "reference", "category")


def checked(
    value: Mapping[str, Any], keys: Mapping[str, Key], wrong: Wrong, taken: set[str]
) -> dict[str, Any]:
    """Give the values of the known keys under their canonical names; null is as good as absent.

    Adds to ``taken`` the names that they had. Raises what ``wrong`` makes of a wrong value.
    """
    found: dict[str, Any] = {}
    for canonical, key in keys.items():
        name = next((name for name in key.names if value.get(name) is not None), None)
        if name is not None:
            if not key.right(value[name]):
                raise wrong(f"{name} is not {key.kind}")
            found[canonical] = value[name]
            taken.add(name)
    return found


def sampling(value: Mapping[str, Any], wrong: Wrong, taken: set[str]) -> dict[str, Any]:
    """The sampling parameters among the keys, as ``checked`` gives them; words are lists."""
    known = checked(value, SAMPLING, wrong, taken)
    lists = {
        name: [known[name]]
        for name in ("stop_words", "bad_words")
        if isinstance(known.get(name), str)
    }
    return known | lists


def from_cells(row: Mapping[str, str]) -> dict[str, Any]:
    """The values of a CSV's row: what isn't text by its name is JSON where it can be."""
    return {
        name: cell if name in _AS_THEY_STAND else _json_or_text(cell) for name, cell in row.items()
    }


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
        value = _json_or_text(text)
        given |= sampling({name: text if value is None else value}, wrong, set())
    return given


def parse_extra_body(text: str) -> dict[str, Any]:
    """Read ``--extra-body``; raises ``UserError`` for anything but a JSON object."""
    value = _json_or_text(text)
    if not _is_body(value):
        raise UserError(
            "is not a JSON object", where="--extra-body", fix="""write it like '{"n": 1}'"""
        )
    body: dict[str, Any] = value
    return body


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
