"""A run on disk: one JSON with genai-perf's keys, one jsonl beside it with a line per request."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from client.errors import UserError
from client.record import Record
from client.run import Run


def export_path(path: str | Path, load_name: str, *, several: bool) -> Path:
    """Name a load's JSON: ``path`` itself, or of several ``path`` with the load's name.

    ``profile_export.json`` becomes ``profile_export_concurrency4.json``.
    """
    path = Path(path)
    return path.with_name(f"{path.stem}_{load_name}{path.suffix}") if several else path


def prepare_folder(path: str | Path) -> None:
    """Make the folder for ``path`` and see that it takes files; raises ``UserError``.

    Called before a run, so that no run is lost for want of a place to write it.
    """
    folder = Path(path).parent
    try:
        if Path(path).suffix != ".json":
            raise UserError("is no .json file", where=path, fix="give a path ending in .json")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"can't be written to: {error.strerror}",
            where=folder,
            fix="give another --profile-export-file",
        ) from error


def write_run(run: Run, path: str | Path) -> tuple[Path, Path]:
    """Write ``path`` and the jsonl beside it, each whole or not at all; gives both paths."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.with_suffix(".jsonl")
    _write(lines, "".join(_dump(_line(record)) + "\n" for record in run.records))
    _write(path, _dump(run.to_json(), indent=2) + "\n")
    return path, lines


def _line(record: Record) -> dict[str, Any]:
    prompt = record.prompt
    return {
        "index": prompt.index,
        "request_id": record.request_id,
        "status": record.status.value,
        "error": record.error,
        "prompt": prompt.text,
        "answer": record.answer,
        "reference": prompt.reference,
        "category": prompt.category,
        "max_tokens": prompt.max_tokens,
        "input_tokens": prompt.input_tokens,
        "output_tokens": record.output_tokens,
        "server_tokens": record.server_tokens,
        "tokenizer_tokens": record.tokenizer_tokens,
        "scheduled_ns": record.scheduled_ns,
        "sent_ns": record.sent_ns,
        "chunk_ns": record.chunk_ns,
        "end_ns": record.end_ns,
    }


def _dump(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)


def _write(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)
