"""A run as it was written, read again: files in, one side of a comparison out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from llm_perf.errors import UserError

_NEEDED: Final = ("index", "metrics", "answer", "status")
Line: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Side:
    """A run as it was written: the JSON, and a line per request."""

    path: Path
    document: Mapping[str, Any]
    lines: tuple[Line, ...]

    @property
    def answered(self) -> int:
        """How many requests were answered."""
        return sum(line["status"] == "ok" for line in self.lines)

    def figure(self, metric: str, statistic: str) -> float | None:
        """A figure of the whole run; ``score.avg`` and ``requests_failed.avg`` are figures too."""
        known = self.document.get(metric) or {}
        if metric == "score":
            known = {"avg": known.get("value")}
        elif metric == "requests_failed":
            known = {"avg": self.document[metric]}
        value = known.get(statistic)
        return None if value is None else float(value)


def read_sides(path: Path) -> list[Side]:
    """Read a run, or of a sweep's JSON the run of each load; raises ``UserError`` for another."""
    try:
        loads = json.loads(path.read_text(encoding="utf-8"))["loads"]
        files = [path.with_name(each["file"]) for each in loads]
    except (OSError, ValueError, LookupError, TypeError):
        files = []
    return [read_side(each) for each in files or [path]]


def read_side(path: str | Path) -> Side:
    """Read a run's JSON and the jsonl beside it; raises ``UserError`` when either isn't one."""
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if "loads" in document:
            raise ValueError("it tells of loads whose files it doesn't name")
        text = path.with_suffix(".jsonl").read_text(encoding="utf-8")
        lines = tuple(json.loads(line) for line in text.split("\n") if line)
        lacking = {"workload", "requests_failed"} - document.keys()
        lacking |= {key for line in lines for key in _NEEDED if key not in line}
        if lacking:
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
    except OSError as error:
        raise UserError(
            f"can't be read: {error.strerror}",
            where=error.filename or path,
            fix="give the JSON of a run, with its jsonl beside it",
        ) from error
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"is no run of llm_perf ({error})", where=path, fix="give the JSON that llm_perf wrote"
        ) from error
    return Side(path, document, lines)
