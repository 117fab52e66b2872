"""What files of prompts come wrapped in: gzip, a byte-order mark, perf_analyzer's ``data``.

A path in, bytes out; one parsed document in, its objects out. Knows no key of a prompt.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import Any, Final

from llm_perf.errors import UserError

_LARGEST: Final = 2**31  # bytes that a packed file may unfold to
_WRAPPED: Final = re.compile(rb'\s*\{\s*"data"\s*:\s*\[')


def read_file(path: Path) -> bytes:
    """Give the file's bytes, unpacked where it is gzip, without a byte-order mark.

    Raises ``UserError`` when it can't be read or unfolds to 2 GiB or more.
    """
    fix = "give a jsonl file of prompts"
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            with gzip.open(path) as packed:
                data = packed.read(_LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"can't be read: {why}", where=path, fix=fix) from error
    if len(data) == _LARGEST:
        raise UserError("unfolds to 2 GiB or more", where=path, fix="give a smaller file")
    return data.removeprefix(b"\xef\xbb\xbf")


def is_wrapped(data: bytes) -> bool:
    """Whether this is one object that holds all prompts as its ``data``."""
    return _WRAPPED.match(data) is not None


def unwrap(document: Any) -> list[Any]:
    """Give the objects of a list, or of perf_analyzer's ``{"data": […]}``.

    There a tensor is the list of its elements, of which a prompt has one; genai-perf's
    ``payload`` is a list of one request.
    """
    if isinstance(document, list):
        return document
    items = document["data"]
    return [_single(item) for item in items] if isinstance(items, list) else [items]


def _single(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    payload = item.get("payload")
    if isinstance(payload, list) and len(payload) == 1:
        return payload[0]
    return {key: _element(value) for key, value in item.items()}


def _element(value: Any) -> Any:
    alone = isinstance(value, list) and len(value) == 1
    return value[0] if alone and isinstance(value[0], str | int | float) else value
