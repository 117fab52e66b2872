"""Files of prompts: objects in, checked lines out, in the formats that tools of the field write.

A format is recognised by what its objects hold: ours and genai-perf's (``text_input`` or ``text``),
trtllm-bench's and vLLM's (``prompt``, ``output_tokens``), OpenAI's (``messages``; where the
assistant speaks last, that turn is the reference), ShareGPT's (``conversations``), and mooncake's,
which has no text (``input_length``, ``hash_ids``) but a ``timestamp``, as any of them may. What
isn't used is named. Knows no tokenizer and no defaults, nor what the objects came wrapped in.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llm_perf.errors import UserError
from llm_perf.workload.fields import (
    FIELDS,
    LENGTHS,
    SPOKEN,
    TEXT,
    Wrong,
    checked,
    from_cells,
    is_text,
    sampling,
)
from llm_perf.workload.wrapped import FIX, load, opened, read_objects

_LONGEST: Final = 2**24  # characters of a prompt: its encoding takes some 55 bytes for each
_KEYS_NAMED: Final = 8
# what other data sets call the right answer
_ANSWERS: Final = {
    *("output", "outputs", "answer", "answers", "target", "completion", "response", "expected"),
    *("expected_output", "ground_truth", "label", "solution", "ideal"),
}
_TURN: Final = 'a list of {"role": "…", "content": "…"}'


@dataclass(frozen=True, slots=True)
class Line:
    """What a data set says of one request; ``None`` and absent keys are left to the run.

    ``sampling`` has canonical keys (those of ``SAMPLING``), ``timestamp_ms`` is the trace's own.
    Where ``text`` is empty, it is to be made up: ``input_tokens`` long, of ``blocks`` that lines
    share where their numbers are the same. ``unused`` are keys that say nothing here.
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
    unused: tuple[str, ...] = field(default=(), compare=False)


def read_lines(path: str | Path) -> list[Line]:
    """Read a data set, in its order.

    Raises:
        UserError: the file can't be read, holds no prompts, or a line is wrong (file and line).
    """
    path = Path(path)
    objects = read_objects(path, SPOKEN, from_cells)
    found = (read_object(value, where, number) for value, where, number in objects)
    lines = [line for line in found if line is not None]
    if not lines:
        raise UserError(
            "holds no prompts", where=path, fix='write one {"text_input": "…"} object a line'
        )
    return lines


def parse_line(raw: bytes, path: Path, number: int) -> Line | None:
    """Read one line of a jsonl; raises ``UserError`` with file and line."""
    return read_object(load(raw, path, number), path, number)


def read_object(value: object, where: str | Path, number: int | None = None) -> Line | None:
    """Check one object; ``None`` for a ShareGPT conversation in which no human speaks.

    Raises ``UserError`` with its place.
    """

    def wrong(what: str) -> UserError:
        return UserError(what, where=where, line=number, fix=FIX)

    value = opened(value)
    if not isinstance(value, dict):
        raise wrong("not a JSON object")
    taken: set[str] = set()
    known = checked(value, FIELDS, wrong, taken)
    known["sampling"] = sampling(value, wrong, taken)
    if known.get("min_tokens", 0) > known.get("max_tokens", math.inf):
        raise wrong("min_tokens is above max_tokens")
    if value.get("input_length") is not None and not value.keys() & SPOKEN:
        return Line(
            "", **known, **checked(value, LENGTHS, wrong, taken), unused=_left(value, taken)
        )
    spoken = _spoken(value, known, wrong, taken)
    return None if spoken is None else Line(*spoken, **known, unused=_left(value, taken))


def _left(value: Mapping[str, Any], taken: set[str]) -> tuple[str, ...]:
    turns = value["messages"] if "messages" in taken else ()
    inside = dict.fromkeys(
        f"messages[].{key}"
        for turn in turns
        for key, said in turn.items()
        if key not in ("role", "content") and said
    )
    return (*(k for k, v in value.items() if k not in taken and v is not None), *inside)


def unused_remarks(lines: Sequence[Line]) -> Iterator[str]:
    """Say which keys of the data aren't used, and which of them look like references."""
    counts = Counter(key for line in lines for key in line.unused)
    if counts:
        named = [f"{key} ({n} of {len(lines)})" for key, n in counts.most_common(_KEYS_NAMED)]
        more = f" and {len(counts) - _KEYS_NAMED} more" if len(counts) > _KEYS_NAMED else ""
        yield f"keys of the data that aren't used: {', '.join(named)}{more}"
    answers = sorted(
        {k for line in lines if line.reference is None for k in line.unused} & _ANSWERS
    )
    if answers:
        yield f"{' and '.join(answers)}: called reference, the answers would be scored against it"


def _spoken(
    value: Mapping[str, Any], known: dict[str, Any], wrong: Wrong, taken: set[str]
) -> tuple[str, tuple[Mapping[str, str], ...] | None] | None:
    """The prompt's text, and the messages it is made of where it is a chat.

    Where a chat ends with its answer, ``known`` gets it as the reference unless it has one.
    """
    text = checked(value, {"text": TEXT}, wrong, taken).get("text")
    messages = None
    if text is None and value.get("messages") is not None:
        messages, answer = _messages(value["messages"], wrong)
        taken.add("messages")
        if answer is not None:
            known.setdefault("reference", answer)
        text = "\n".join(message["content"] for message in messages)
    elif text is None and value.get("conversations") is not None:
        text = _first_human(value["conversations"], wrong)
        taken.add("conversations")
        if not text:
            return None
    if text is None and not value.keys() & SPOKEN:
        has = ", ".join(list(value)[:_KEYS_NAMED]) or "nothing"
        raise wrong(f"lacks text_input (or prompt, text, messages, conversations); it has: {has}")
    if not text:
        raise wrong("text_input is not text with something in it")
    if len(text) > _LONGEST:
        raise wrong(f"a prompt of {len(text):,} characters is too long ({_LONGEST:,} at most)")
    return text, messages


def _messages(value: object, wrong: Wrong) -> tuple[tuple[dict[str, str], ...], str | None]:
    """The turns to send, and the assistant's last one, which is what was answered to them."""
    if not isinstance(value, list) or not value:
        raise wrong(f"messages is not {_TURN}")
    said = tuple(_turn(turn, number, wrong) for number, turn in enumerate(value, start=1))
    if said[-1]["role"] != "assistant":
        return said, None
    if len(said) == 1:
        raise wrong("messages holds an answer and nothing that was asked")
    return said[:-1], said[-1]["content"]


def _turn(turn: object, number: int, wrong: Wrong) -> dict[str, str]:
    """One message; a content that is a list of text parts as one text."""
    if not isinstance(turn, dict) or not is_text(turn.get("role")):
        raise wrong(f"messages is not {_TURN}")
    content = turn.get("content")
    parts = content if isinstance(content, list) else []
    kinds = [part.get("type") if isinstance(part, dict) else part for part in parts]
    if other := next((kind for kind in kinds if kind != "text"), None):
        raise wrong(f"message {number} holds a part of type {other!r}: only text can be sent")
    texts = [part.get("text") for part in parts] or [content]
    if not all(map(is_text, texts)):
        raise wrong(f"messages is not {_TURN}: message {number} has no text as its content")
    return {"role": turn["role"], "content": "".join(texts)}


def _first_human(value: object, wrong: Wrong) -> str | None:
    """What the human says first: later turns would need answers that aren't there yet."""
    turns: list[Any] = value if isinstance(value, list) else [value]
    if not all(isinstance(turn, dict) and is_text(turn.get("value")) for turn in turns):
        raise wrong('conversations is not a list of {"from": "…", "value": "…"}')
    return next((turn["value"] for turn in turns if turn.get("from") in ("human", "user")), None)
