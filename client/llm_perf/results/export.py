"""A run on disk.

For ``NAME.json``: that file has genai-perf's metric keys and says what was measured how (of a sweep
that of all loads), ``NAME.jsonl`` a line per request; on request ``NAME_answers.jsonl``, for
graders, and the folder ``NAME/``, as genai-perf's: ``profile_export.json`` (perf_analyzer's
schema), ``profile_export_genai_perf.json`` and ``.csv``.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import repeat
from pathlib import Path
from typing import Any, Final, TypeAlias

from filelock import FileLock, Timeout

from llm_perf.errors import UserError
from llm_perf.figures.metrics import DEFINITIONS
from llm_perf.files import write_whole
from llm_perf.json_text import json_text, spelt
from llm_perf.record import Record
from llm_perf.results.genai_perf import (
    csv_text,
    genai_perf,
    perf_analyzer,
    perf_analyzer_requests,
)
from llm_perf.results.run import Run

_ROOM: Final = 2**20  # bytes: a disk that hasn't got them is full
_HERE: Final = "here the requests stand"
EXTRAS: Final = ("answers", "genai-perf")
Line: TypeAlias = dict[str, Any]
_ASKED: Final = ("reference", "category", "min_tokens", "max_tokens", "sampling", "extra_body")
_SEEN: Final = (
    *("request_id", "status", "error", "answer"),
    *("input_tokens", "server_input_tokens", "cached_tokens"),
    *("output_tokens", "server_tokens", "tokenizer_tokens"),
    *("scheduled_ns", "sent_ns", "chunk_ns", "end_ns"),
)


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
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_ROOM))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"can't be written to: {error.strerror}",
            where=folder,
            fix="give another --profile-export-file",
        ) from error


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Have ``path`` for oneself; raises ``UserError`` when another run is writing there."""
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            "another run is writing there",
            where=path,
            fix="wait for its end, or give another --profile-export-file",
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def write_run(run: Run, path: str | Path, extras: tuple[str, ...] = ()) -> tuple[Path, ...]:
    """Write ``path``, the jsonl beside it, and ``extras`` (of ``EXTRAS``).

    Each file is there whole or not at all, ``path`` comes last. Gives what was written, ``path``
    and the jsonl first. Raises ``UserError`` when one can't be written; the others are.
    """
    path = Path(path)
    folder = path.with_suffix("")
    texts: dict[Path, Callable[[], Iterable[str]]] = {
        path: lambda: (json_text(run.to_json(), indent=2), "\n"),
        path.with_suffix(".jsonl"): lambda: _jsonl(request_lines(run)),
    }
    if "answers" in extras:
        answers = path.with_name(f"{path.stem}_answers.jsonl")
        texts[answers] = lambda: _jsonl(_for_graders(run, request_lines(run)))
    if "genai-perf" in extras:
        texts[folder / "profile_export.json"] = lambda: _with_requests(run)
        texts[folder / "profile_export_genai_perf.json"] = lambda: (
            json_text(genai_perf(run), indent=2),
            "\n",
        )
        texts[folder / "profile_export_genai_perf.csv"] = lambda: (csv_text(run),)
    failed: dict[Path, OSError] = {}
    broken: Exception | None = None  # a fault of ours in one file costs none of the others
    for file in reversed(texts):
        try:
            parts = texts[file]()
            write_whole(file, lambda to, parts=parts: to.writelines(parts))  # type: ignore[misc]
        except OSError as error:
            failed[file] = error
        except Exception as error:
            broken = error
    if broken is not None:
        raise broken
    if failed:
        first = next(iter(failed.values()))
        raise UserError(
            f"can't be written: {first.strerror}",
            where=", ".join(map(str, failed)),
            fix="make room; the same command with --resume then writes what was measured",
        ) from first
    return tuple(texts)


def read_sweep(written: Iterable[Path]) -> list[dict[str, Any]]:
    """Read the JSON of several loads, each with the name of its file."""
    return [{"file": each.name, **json.loads(each.read_text("utf-8"))} for each in written]


def write_sweep(documents: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the JSON of several loads as one: ``{"loads": […]}``, each as in its own file.

    Raises ``UserError`` when it can't be written.
    """
    try:
        write_whole(path, lambda to: to.write(json_text({"loads": documents}, indent=2) + "\n"))
    except OSError as error:
        raise UserError(
            f"can't be written: {error.strerror}", where=path, fix="each load's own file is there"
        ) from error


def request_lines(run: Run) -> Iterator[Line]:
    """Give each request as a line: what was asked, what came, when, and what that makes."""
    scores = run.accuracy.values if run.accuracy else repeat(None, len(run.records))
    return map(_line, run.records, scores)


def _with_requests(run: Run) -> Iterator[str]:
    """Write perf_analyzer's document around its requests, one at a time."""
    document = perf_analyzer(run, requests=[_HERE])
    before, after = json_text(document).split(json_text(_HERE), 1)
    yield before
    for number, request in enumerate(perf_analyzer_requests(run)):
        yield (", " if number else "") + json_text(request)
    yield after


def _for_graders(run: Run, lines: Iterable[Line]) -> Iterator[Line]:
    """Cut the lines down to what graders outside need."""
    keys = ("index", "status", "prompt", "answer", "reference", "category", "score")
    for line in lines:
        yield {"workload_sha256": run.workload.sha256, **{key: line[key] for key in keys}}


def _line(record: Record, score: float | None) -> Line:
    prompt = record.prompt
    return {
        "index": prompt.index,
        "prompt": prompt.text,
        **{name: getattr(prompt, name) for name in _ASKED},
        **{name: getattr(record, name) for name in _SEEN},
        "score": score,
        "metrics": _metrics(record) if record.ok else {},
    }


def _metrics(record: Record) -> dict[str, float | str | None]:
    """Every metric that has one value for this request."""
    known = {key: each.of(record) for key, each in DEFINITIONS.items()}
    once = {key: each for key, each in known.items() if each and key != "inter_chunk_latency"}
    return {key: spelt(each[0]) for key, each in once.items()}


def _jsonl(lines: Iterable[Line]) -> Iterator[str]:
    return (json_text(line) + "\n" for line in lines)
