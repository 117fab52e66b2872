"""What files of prompts come wrapped in: a path in, its objects and their places out.

Packing (gzip), encoding (a byte-order mark), the shape of the file (an object a line, one list,
perf_analyzer's ``data``, a CSV with a header) and envelopes (genai-perf's ``payload``, a batch's
``body``). Knows no key of a prompt but those that it is told.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from llm_perf.errors import UserError

Objects: TypeAlias = Iterator[tuple[Any, str | Path, int | None]]
FIX: Final = 'write an object like {"text_input": "…", "max_tokens": 64, "reference": "…"}'
_LARGEST: Final = 2**31  # bytes that a packed file may unfold to
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_JSONL: Final = "write it as a jsonl, one object a line"
_OTHERS: Final = {  # what it begins with → what it is
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip archive, or a spreadsheet",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ": "packed with xz",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
}


def read_objects(
    path: Path,
    spoken: Collection[str],
    from_cells: Callable[[Mapping[str, str]], dict[str, Any]],
) -> Objects:
    """Give each object with its file (or "file, item N") and line.

    Of a CSV one column is one of ``spoken``; a row becomes an object by ``from_cells``.
    Raises ``UserError`` when the file can't be read, or is of a format that isn't known.
    """
    data = _text(_unpacked(path), path)
    begins = data.lstrip()[:1]
    document = _one(data) if begins == b"{" else None
    if begins == b"{" and document is None:
        for number, raw in enumerate(data.splitlines(), start=1):
            if raw.strip():
                yield load(raw, path, number), path, number
    elif begins in (b"{", b"["):
        document = load(data, path, None) if document is None else document
        for number, value in enumerate(_items(document, path, spoken), start=1):
            yield value, f"{path}, item {number}", None
    elif begins:
        for row, number in _rows(data.decode(), path, spoken):
            yield from_cells(row), path, number


def load(raw: bytes, path: str | Path, number: int | None) -> Any:
    """Read JSON; raises ``UserError`` with its place."""
    try:
        return json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})", where=path, line=number, fix=FIX) from error


def _unpacked(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            with gzip.open(path) as packed:
                data = packed.read(_LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        fix = "give a jsonl file of prompts"
        raise UserError(f"can't be read: {why}", where=path, fix=fix) from error
    if len(data) == _LARGEST:
        raise UserError("unfolds to 2 GiB or more", where=path, fix="give a smaller file")
    return data


def _text(data: bytes, path: Path) -> bytes:
    """The file as UTF-8 without a byte-order mark; raises ``UserError`` where it is no text."""
    if other := next((name for mark, name in _OTHERS.items() if data.startswith(mark)), None):
        raise UserError(f"is {other}, which isn't read", where=path, fix=_JSONL)
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        data = data.decode("utf-16").encode() if data.startswith(_UTF16) else data
        if not data.lstrip().startswith(
            (b"{", b"[")
        ):  # of JSON the line is named, where it is read
            data.decode()
    except UnicodeError as error:
        raise UserError(f"is no text ({error})", where=path, fix="write it in UTF-8") from error
    return data


def _one(data: bytes) -> Any:
    """The one document of a file that begins with an object, over several lines or not.

    None: it has an object a line, or what is wrong is told by line.
    """
    first, *others = re.split(rb"[\r\n]", data.strip(), maxsplit=1)
    try:
        found = json.loads(first.decode())
        return found if isinstance(found.get("data"), list) and not others else None
    except (ValueError, RecursionError):  # it goes on below, or is wrong
        pass
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError):
        return None


def _items(document: Any, path: Path, spoken: Collection[str]) -> list[Any]:
    """The objects of a list, or of perf_analyzer's ``{"data": […]}``; one object is itself."""
    if isinstance(document, list):
        return document
    if isinstance(items := document.get("data"), list):
        return [_single(item) for item in items]
    lists = [key for key, value in document.items() if isinstance(value, list)]
    if lists and not document.keys() & {*spoken}:
        what = f"is one object that holds {', '.join(lists)}, not a list of prompts"
        raise UserError(what, where=path, fix=_JSONL)
    return [document]


def opened(value: Any) -> Any:
    """What is in the envelope of a request: genai-perf's ``payload``, an OpenAI batch's ``body``.

    What stands beside a payload (a timestamp) is the request's too.
    """
    if not isinstance(value, dict):
        return value
    payload, body = value.get("payload"), value.get("body")
    only: Any = payload[0] if isinstance(payload, list) and len(payload) == 1 else payload
    if isinstance(only, dict):
        return {**{key: each for key, each in value.items() if key != "payload"}, **only}
    if isinstance(body, dict) and "custom_id" in value:
        return body
    return value


def _single(item: Any) -> Any:
    """An item of perf_analyzer's: a tensor is a list of elements, of which a prompt has one."""
    if not isinstance(item, dict):
        return item
    return {key: _element(value) for key, value in item.items()}


def _element(value: Any) -> Any:
    tensor = value.get("content") if isinstance(value, dict) and "shape" in value else value
    if isinstance(tensor, list) and len(tensor) == 1 and isinstance(tensor[0], str | int | float):
        return tensor[0]
    return value


def _csv(text: str, mark: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)


def _head(text: str, mark: str) -> list[str]:
    return [cell.strip() for cell in next(_csv(text, mark), [])]


def _rows(text: str, path: Path, spoken: Collection[str]) -> Iterator[tuple[dict[str, str], int]]:
    """The rows of a CSV by their header, empty cells left out, and the line that each ends at."""
    limit = csv.field_size_limit(_LARGEST - 1)
    try:
        heads = {mark: _head(text, mark) for mark in ",;\t"}
        mark = next((each for each, head in heads.items() if {*head} & {*spoken}), None)
        if mark is None:
            raise UserError(
                "is neither JSON nor a CSV whose header names a column of prompts",
                where=path,
                fix=f"call it {' or '.join(spoken)}, or write a jsonl",
            )
        names, rows = heads[mark], _csv(text, mark)
        next(rows)
        if len(set(names)) < len(names):
            raise UserError("has two columns of one name", where=path, line=1, fix="rename one")
        for row in rows:
            if row and len(row) != len(names):
                what = f"has {len(row)} cells, the header {len(names)}"
                raise UserError(
                    what, where=path, line=rows.line_num, fix="quote cells that hold a comma"
                )
            if row:
                yield {n: cell for n, cell in zip(names, row, strict=True) if cell}, rows.line_num
    except csv.Error as error:
        raise UserError(f"is no CSV ({error})", where=path, fix=_JSONL) from error
    finally:
        csv.field_size_limit(limit)
