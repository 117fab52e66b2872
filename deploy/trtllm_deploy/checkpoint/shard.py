"""One safetensors file: is it what its header says. Reads no weights; knows nothing of models."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_perf.errors import UserError

_LONGEST_HEADER = 100_000_000  # bytes, as safetensors itself has it (MAX_HEADER_SIZE)
_DTYPE_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}


def check_shard(file: Path) -> None:
    """See that a safetensors file is what its header says; its weights aren't read.

    The format: 8 bytes little-endian header length, a JSON header with each tensor's ``dtype``,
    ``shape`` and ``data_offsets``, then the data, without holes
    (https://huggingface.co/docs/safetensors, "Format"). Raises UserError: the file is missing, no
    regular file, truncated, has no readable header, or one that lies about a tensor, with its name.
    """
    header, room = _header(file)
    at = 0
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    try:
        spans = sorted((*entry["data_offsets"], name) for name, entry in entries.items())
        for begin, end, name in spans:
            wanted = _bytes_of(entries[name])
            if begin != at or end < begin or wanted not in (None, end - begin):
                raise UserError(f"its header lies about tensor {name!r}", where=file)
            at = end
    except (TypeError, KeyError, ValueError):
        raise UserError("its safetensors header is malformed", where=file) from None
    if at != room:
        what = f"has {room} bytes of weights, its header asks for {at}: truncated?"
        raise UserError(what, where=file)


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The header, and the bytes that follow it."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would never end
            raise UserError("isn't a regular file", where=file)
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            room = status.st_size - 8 - length
            read = 0 < length <= _LONGEST_HEADER and room >= 0
            header = json.loads(stream.read(length)) if read else None
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", where=file) from None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise UserError("no readable safetensors header: truncated?", where=file)
    return header, room


def _bytes_of(entry: Mapping[str, Any]) -> int | None:
    """The size of a tensor's data; None for a data type that isn't known here."""
    size = _DTYPE_BYTES.get(entry["dtype"])
    if any(type(each) is not int or each < 0 for each in entry["shape"]):
        raise ValueError
    return None if size is None else size * math.prod(entry["shape"])
