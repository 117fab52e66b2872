"""A run on disk.

For ``NAME.json``: that file has genai-perf's metric keys and says what was measured how,
``NAME.jsonl`` a line per request; on request ``NAME_answers.jsonl``, for graders, and the folder
``NAME/``, as genai-perf's: ``profile_export.json`` (perf_analyzer's schema),
``profile_export_genai_perf.json`` and ``.csv``.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, Final

from client.errors import UserError
from client.genai_perf import csv_text, genai_perf, perf_analyzer
from client.metrics import DEFINITIONS
from client.record import Record
from client.run import Run

EXTRAS: Final = ("answers", "genai-perf")


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


def write_run(run: Run, path: str | Path, extras: tuple[str, ...] = ()) -> tuple[Path, ...]:
    """Write ``path``, the jsonl beside it, and ``extras`` (of ``EXTRAS``).

    Each file is there whole or not at all. Gives what was written, ``path`` and the jsonl first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.with_suffix(".jsonl")
    _write(lines, "".join(_dump(line) + "\n" for line in request_lines(run)))
    _write(path, _dump(run.to_json(), indent=2) + "\n")
    written = [path, lines]
    if "answers" in extras:
        answers = path.with_name(f"{path.stem}_answers.jsonl")
        _write(answers, "".join(_dump(line) + "\n" for line in answer_lines(run)))
        written.append(answers)
    if "genai-perf" in extras:
        written += _write_genai_perf(run, path.with_suffix(""))
    return tuple(written)


def _write_genai_perf(run: Run, folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    texts = {
        "profile_export.json": _dump(perf_analyzer(run)),
        "profile_export_genai_perf.json": _dump(genai_perf(run), indent=2) + "\n",
        "profile_export_genai_perf.csv": csv_text(run),
    }
    for name, text in texts.items():
        _write(folder / name, text)
    return [folder / name for name in texts]


def request_lines(run: Run) -> list[dict[str, Any]]:
    """Give each request as a line: what was asked, what came, when, and what that makes."""
    scores = run.accuracy.values if run.accuracy else (None,) * len(run.records)
    return [_line(record, score) for record, score in zip(run.records, scores, strict=True)]


def answer_lines(run: Run) -> list[dict[str, Any]]:
    """Give what a grader wants of each request."""
    keys = ("index", "status", "prompt", "answer", "reference", "category", "score")
    return [
        {"workload_sha256": run.workload.sha256, **{key: line[key] for key in keys}}
        for line in request_lines(run)
    ]


def _line(record: Record, score: float | None) -> dict[str, Any]:
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
        "score": score,
        "min_tokens": prompt.min_tokens,
        "max_tokens": prompt.max_tokens,
        "sampling": dict(prompt.sampling),
        "input_tokens": prompt.input_tokens,
        "output_tokens": record.output_tokens,
        "server_tokens": record.server_tokens,
        "tokenizer_tokens": record.tokenizer_tokens,
        "scheduled_ns": record.scheduled_ns,
        "sent_ns": record.sent_ns,
        "chunk_ns": record.chunk_ns,
        "end_ns": record.end_ns,
        "metrics": _metrics(record) if record.ok else {},
    }


def _metrics(record: Record) -> dict[str, float]:
    """Every metric that has one value for this request."""
    values = {each.key: list(each.values(record)) for each in DEFINITIONS if each.values}
    return {key: each[0] for key, each in values.items() if each and key != "inter_chunk_latency"}


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
