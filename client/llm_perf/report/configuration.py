"""What was measured and how: a target's points in; settings, hashes, commands and notes out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

from llm_perf.report.points import Line, Point
from llm_perf.screen import plain

_PARTS: Final = {  # of a record: what they are called before each of their keys
    **{each: each for each in ("workload", "server", "gpu")},
    "versions": "version",
}
_MADE_UP: Final = re.compile(r"synthetic: ISL (\S+), OSL ([^\s,]+)(?:, shared prefix (\d+))?")


def bare(value: Any) -> Any:
    """The name of a file that is given by its place: whoever gets the page needn't know that."""
    absolute = isinstance(value, str) and PurePath(value).is_absolute()
    return PurePath(value).name if absolute else value


def told(name: str, points: Sequence[Point]) -> dict[str, Any]:
    """A target's configuration, hashes, commands and notes."""
    record = points[0].first
    target = dict(record["target"])
    cell, artifacts = target.pop("cell", None) or {}, target.pop("artifacts", None) or {}
    facts = [*target.items(), *cell.items()]
    facts += [(f"artifact {key}", value) for key, value in artifacts.items()]
    for part, called in _PARTS.items():
        facts += [(f"{called} {k}", bare(v)) for k, v in (record.get(part) or {}).items()]
    notes = dict.fromkeys(
        f"{point.load}: {plain(note)}"
        for point in points
        for line in point.lines
        for note in (*(line.record.get("notes") or ()), *_failures(line))
    )
    commands = "\n".join(dict.fromkeys(filter(None, map(_command, points))))
    known = [(plain(key), plain(value)) for key, value in facts if value not in (None, "", {})]
    return {"name": plain(name), "facts": known, "commands": plain(commands, "\n"),
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
    words += ["--protocol", target["protocol"], *_prompts(workload)]
    if target.get("transport"):
        words += ["--transport", target["transport"]]
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


def _prompts(workload: Mapping[str, Any]) -> list[str]:
    """The flags of the prompts: of their file, or of how they were made up."""
    made_up = _MADE_UP.fullmatch(workload["source"])
    if made_up is None:
        return ["--input-data", bare(workload["source"])]
    isl, osl, shared = made_up.groups()
    values = {
        **{"--isl": isl, "--osl": osl, "--shared-prefix-tokens": shared},
        **{"--num-prompts": workload.get("prompts"), "--tokenizer-path": workload.get("tokenizer")},
    }
    return [word for key, value in values.items() if value for word in (key, bare(value))]


def load_words(line: Line) -> str:
    """A measurement's load for the eye."""
    record = line.record
    return Point("", record["load"]["kind"], record["load"]["value"], (line,)).load
