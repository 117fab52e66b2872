"""What was measured and how: a target's points in; settings, hashes, commands and notes out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llm_perf.report.points import Line, Point
from llm_perf.screen import plain


def told(name: str, points: Sequence[Point]) -> dict[str, Any]:
    """A target's configuration, hashes, commands and notes."""
    record = points[0].first
    facts: list[tuple[str, str]] = []
    known = dict(record["target"])
    cell, artifacts = known.pop("cell", None) or {}, known.pop("artifacts", None) or {}
    parts: list[Mapping[str, Any]] = [
        known,
        cell,
        {f"artifact {k}": v for k, v in artifacts.items()},
    ]
    parts += [{f"workload {k}": v for k, v in (record.get("workload") or {}).items()}]
    parts += [{f"server {k}": v for k, v in (record.get("server") or {}).items()}]
    parts += [{f"gpu {k}": v for k, v in (record.get("gpu") or {}).items()}]
    parts += [{f"version {k}": v for k, v in (record.get("versions") or {}).items()}]
    for part in parts:
        facts += [(plain(k), plain(v)) for k, v in part.items() if v not in (None, "", {})]
    notes = dict.fromkeys(
        f"{point.load}: {plain(note)}"
        for point in points
        for line in point.lines
        for note in (*(line.record.get("notes") or ()), *_failures(line))
    )
    commands = "\n".join(dict.fromkeys(filter(None, map(_command, points))))
    return {"name": plain(name), "facts": facts, "commands": plain(commands, "\n"),
            "notes": list(notes)}  # fmt: skip


def _failures(line: Line) -> Iterator[str]:
    if line.columns is not None:
        for why, times in line.columns.failures[:10]:
            yield f"{times} failed: {why}"


def _command(point: Point) -> str | None:
    """The command line that offers this load to this target with these prompts."""
    record = point.first
    target, load, workload = record["target"], record["load"], record.get("workload") or {}
    if not target.get("url") or not workload.get("source"):
        return None
    words = ["llm_perf", "--url", target["url"], "--model", target["model"]]
    words += ["--protocol", target["protocol"], "--input-data", workload["source"]]
    words += {"trace": ["--trace-replay"]}.get(
        point.kind,
        [f"--{point.kind.replace('_', '-')}", "inf" if point.value is None else f"{point.value:g}"],
    )
    flags = {"requests": "--num-requests", "duration_s": "--duration"}
    for key, flag in flags.items():
        if load.get(key):
            words += [flag, str(load[key])]
    if record.get("seed"):
        words += ["--seed", str(record["seed"])]
    return shlex.join(map(str, words))


def load_words(line: Line) -> str:
    """A measurement's load for the eye."""
    record = line.record
    return Point("", record["load"]["kind"], record["load"]["value"], (line,)).load
