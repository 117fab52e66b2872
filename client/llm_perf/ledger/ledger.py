"""The file of a study: a line per measurement, on the disk before the next one starts.

A line without its end was cut by a kill or a full disk: it is none, and the next append takes it
away. Several processes may append; the system gives their lock back however they end.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, cast

from llm_perf.errors import UserError
from llm_perf.files import sync
from llm_perf.json_text import json_text
from llm_perf.ledger.measurement import SCHEMA, Measurement

NAME: Final = "ledger.jsonl"
_NEEDED: Final = frozenset({"schema", "id", "status", "target", "load", "metrics"})
_LOOK_BACK: Final = 2**16  # bytes read at once to find where the last whole line ends


def append_measurement(folder: Path, measurement: Measurement) -> None:
    """Add a line to the ledger in ``folder`` and see that it is on the disk; makes what lacks.

    Raises ``UserError`` when it can't be written; the ledger is then as it was.
    """
    path = folder / NAME
    line = (json_text(measurement) + "\n").encode(errors="backslashreplace")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = _whole(file)
            try:
                _write(file, line, end)
                os.fsync(file)
            except OSError:
                os.ftruncate(file, end)
                raise
        finally:
            os.close(file)
        if new:
            sync(folder)
    except OSError as error:
        raise UserError(
            f"can't be written: {error.strerror}",
            where=path,
            fix="make room; the same command goes on with what was measured before",
        ) from error


def read_measurements(folder: Path) -> list[Measurement]:
    """The measurements in ``folder``, in the order they were made; none where there is no ledger.

    Of those with one id the last counts: what failed, or was asked again, was made once more.
    Raises ``UserError`` for a line that is no measurement, or one of a later version's.
    """
    path = folder / NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", where=path) from error
    lines = data.split(b"\n")[:-1]  # what stands behind the last end of a line was cut
    found: dict[str, Measurement] = {}
    for number, line in enumerate(lines, start=1):
        each = _measurement(line, path, number)
        found.pop(each["id"], None)
        found[each["id"]] = each
    return list(found.values())


def finished(measurements: Iterable[Measurement]) -> frozenset[str]:
    """The ids of those that were made to their end: a study that goes on leaves them out."""
    return frozenset(each["id"] for each in measurements if each["status"] == "ok")


def results_of(measurement: Mapping[str, Any], folder: Path) -> Path | None:
    """The JSON of a measurement in the ledger in ``folder``; ``None`` where it isn't there.

    Nor is it where another run was written in its place since.
    """
    requests = (measurement.get("files") or {}).get("requests")
    if requests is None:
        return None
    path = (folder / requests).with_suffix(".json")
    try:
        began = json.loads(path.read_text(encoding="utf-8"))["started_at"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return path if began == measurement["started_at"] else None


def _measurement(line: bytes, path: Path, number: int) -> Measurement:
    try:
        read: Any = json.loads(line)
    except ValueError as error:
        raise UserError(
            f"is no JSON ({error})", where=path, line=number, fix="remove the line"
        ) from error
    lacking = _NEEDED - read.keys() if isinstance(read, Mapping) else _NEEDED
    if lacking:
        raise UserError(
            f"is no measurement: it lacks {', '.join(sorted(lacking))}",
            where=path,
            line=number,
            fix="remove the line",
        )
    if read["schema"] != SCHEMA:
        raise UserError(
            f"is of schema {read['schema']}, and this llm_perf reads {SCHEMA}",
            where=path,
            line=number,
            fix="read it with the version that wrote it",
        )
    return cast(Measurement, read)


def _whole(file: int) -> int:
    """Where the last whole line ends; what a cut left behind it is taken away."""
    size = at = os.fstat(file).st_size
    while at:
        start = max(at - _LOOK_BACK, 0)
        end = os.pread(file, at - start, start).rfind(b"\n") + 1
        at = start
        if end:
            at += end
            break
    if at < size:
        os.ftruncate(file, at)
    return at


def _write(file: int, data: bytes, at: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, at)
        left, at = left[written:], at + written
