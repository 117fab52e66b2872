"""The prompts of a run: a jsonl file in, prompts with token counts and a hash out.

One JSON object a line: ``text_input`` (required), ``max_tokens``, ``reference`` (the right answer)
and ``category``; other keys are ignored. Knows nothing of servers or time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.errors import UserError
from client.tokens import Tokenizer, load_tokenizer

DEFAULT_MAX_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request to make. ``input_tokens`` counts special tokens too: the model sees them."""

    index: int
    text: str
    input_tokens: int
    max_tokens: int
    reference: str | None = None
    category: str | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """The prompts, in the order they are sent; ``sha256`` is over everything that is sent."""

    path: Path
    prompts: tuple[Prompt, ...]
    sha256: str
    tokenizer: Tokenizer = field(repr=False, compare=False)


def load_workload(
    path: str | Path,
    tokenizer_path: str | Path,
    max_tokens: int | None = None,
    limit: int | None = None,
) -> Workload:
    """Read, check and tokenize the prompts; only the first ``limit`` of them when given.

    ``max_tokens`` overrides the lines' own; where neither is given it is ``DEFAULT_MAX_TOKENS``.
    Raises ``UserError`` naming the tokenizer file, or the prompts file and line.
    """
    path = Path(path)
    tokenizer = load_tokenizer(tokenizer_path)
    lines = _read_lines(path)[:limit]
    counts = tokenizer.count([line["text_input"] for line in lines], special=True)
    prompts = tuple(
        Prompt(
            index=index,
            text=line["text_input"],
            input_tokens=count,
            max_tokens=max_tokens or line.get("max_tokens") or DEFAULT_MAX_TOKENS,
            reference=line.get("reference"),
            category=line.get("category"),
        )
        for index, (line, count) in enumerate(zip(lines, counts, strict=True))
    )
    return Workload(path, prompts, _hash(prompts), tokenizer)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"can't be read: {error.strerror}", where=path, fix="give a jsonl file of prompts"
        ) from error
    lines = [
        parse_line(raw, path, number)
        for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1)
        if raw.strip()
    ]
    if not lines:
        raise UserError(
            "holds no prompts", where=path, fix='write one {"text_input": "…"} object a line'
        )
    return lines


def parse_line(raw: bytes, path: Path, number: int) -> dict[str, Any]:
    """Read one line into its known keys, checked; raises ``UserError`` with file and line."""
    fix = 'write an object like {"text_input": "…", "max_tokens": 64, "reference": "…"}'
    try:
        line = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})", where=path, line=number, fix=fix) from error
    if not isinstance(line, dict):
        raise UserError("not a JSON object", where=path, line=number, fix=fix)
    if "text_input" not in line:
        raise UserError("lacks text_input", where=path, line=number, fix=fix)
    known = {key: line[key] for key in _CHECKS if line.get(key) is not None or key == "text_input"}
    for key, value in known.items():
        kind, right = _CHECKS[key]
        if not right(value):
            raise UserError(f"{key} is not {kind}", where=path, line=number, fix=fix)
    return known


def _is_text(value: object) -> bool:
    # JSON can spell half a surrogate pair, and UTF-8 can't
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _is_limit(value: object) -> bool:
    return type(value) is int and 0 < value < 2**31  # the tensor is INT32


_CHECKS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "text_input": ("text with something in it", lambda value: _is_text(value) and value != ""),
    "max_tokens": ("a whole number above 0", _is_limit),
    "reference": ("text", _is_text),
    "category": ("text", _is_text),
}


def _hash(prompts: tuple[Prompt, ...]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        sent = [prompt.text, prompt.max_tokens, prompt.reference, prompt.category]
        digest.update(json.dumps(sent, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
