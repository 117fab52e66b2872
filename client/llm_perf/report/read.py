"""RESULTS, as they are named on the command line: words in, measurements out.

A word is a result that llm_perf wrote (of one load or of all), a report of trtllm-bench, a folder
with a ledger, or a folder of results; NAME= before it names what was measured.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from llm_perf.errors import UserError
from llm_perf.ledger.ledger import NAME, read_measurements, results_of
from llm_perf.report.bench import bench_record, is_bench
from llm_perf.report.points import Line

_NAMED: Final = re.compile(r"([^=/\\]+)=(.+)", re.DOTALL)
_LOAD: Final = re.compile(r"[_-]?(concurrency\d+|rate[\d.]+(e[+-]?\d+)?|rateinf|trace)(_\d+)?$")
_FIX: Final = "give results of llm_perf, or a folder with them or with a ledger.jsonl"
_NO_METRIC: Final = ("score", "endpoint", "load", "health", "workload", "server", "client")


def read_results(words: Sequence[str]) -> list[Line]:
    """Read everything that the words name; raises ``UserError`` where nothing can be read."""
    found: list[tuple[str | None, Line]] = []
    for word in words:
        match = None if Path(word).exists() else _NAMED.fullmatch(word)
        name, path = (match[1], Path(match[2])) if match else (None, Path(word))
        new = [(name, line) for line in _read(path)]
        if not new:
            raise UserError("there is no measurement in it", where=path, fix=_FIX)
        for _, line in new:
            _check(line)
        found += new
    return _named(_once(found))


def _read(path: Path) -> Iterator[Line]:
    if path.is_dir():
        lines = list(_of_ledger(path))
        yield from lines
        told = {line.requests for line in lines}
        for each in sorted(path.rglob("*.json")):
            if each.with_suffix(".jsonl") not in told and _is_result(document := _load_json(each)):
                yield from (line for line in _result(document, each) if line.requests not in told)
        return
    if path.name == NAME:
        yield from _of_ledger(path.parent)
        return
    document = _load_json(path)
    if not _is_result(document):
        raise UserError("is no result of llm_perf", where=path, fix=_FIX)
    yield from _result(document, path)


def _of_ledger(folder: Path) -> Iterator[Line]:
    for line in lines_of(read_measurements(folder), folder):
        target = {**line.record["target"], "folder": folder.resolve().name}
        yield replace(line, record={**line.record, "target": target})


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"can't be read: {error.strerror}", where=path, fix=_FIX) from error
    except ValueError as error:
        raise UserError(f"is no JSON ({error})", where=path, fix=_FIX) from error


def _is_result(document: Any) -> bool:
    if not isinstance(document, dict):
        return False
    if is_bench(document):
        return True
    if isinstance(loads := document.get("loads"), list):
        return bool(loads) and all(map(_is_result, loads))
    shaped = all(isinstance(document.get(key), dict) for key in ("endpoint", "load", "workload"))
    return shaped and "requests_ok" in document


def _result(document: dict[str, Any], path: Path) -> Iterator[Line]:
    if is_bench(document):
        yield Line(bench_record(document, path), None, str(path))
        return
    for each in document.get("loads", [document]):
        own = path.with_name(Path(str(each["file"])).name) if "file" in each else path
        yield Line(_record(each, own), own.with_suffix(".jsonl"), str(path))


def _record(run: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A result as a line of a ledger; what it hasn't got is left out."""
    stem = _LOAD.sub("", path.stem)
    metrics = {
        key: value
        for key, value in run.items()
        if isinstance(value, dict) and "unit" in value and key not in _NO_METRIC
    }
    server = run.get("server") or {}
    return {
        "kind": "load",
        "status": "stopped" if run.get("stopped") else "ok",
        "error": run.get("stopped"),
        "started_at": run.get("started_at"),
        "target": {
            **run["endpoint"],
            "name": stem or path.parent.resolve().name,
            "folder": path.parent.resolve().name,
            "gpus": None,
            "server": server.get("name"),
            "cell": None,
        },
        "load": {"arrivals": run["load"].get("arrival", "closed"), **run["load"]},
        "seed": run["workload"].get("seed"),
        "workload": run["workload"],
        "metrics": metrics,
        "score": run.get("score"),
        "requests_ok": run["requests_ok"],
        "requests_failed": run.get("requests_failed", 0),
        "notes": run.get("notes") or [],
        "client": run.get("health"),
        "server": server,
        "server_metrics": run.get("server_metrics") or None,
        "versions": run.get("client") or {},
        "max_in_flight_seen": run.get("max_in_flight_seen"),
    }


def lines_of(measurements: Iterable[Mapping[str, Any]], folder: Path) -> list[Line]:
    """Measurements of the ledger in ``folder``, with where their requests are.

    Those whose results another run was written over are left out, as they would be of results
    alone: one name may have stood for other prompts, or another server, each time.
    """
    lines = []
    for each in measurements:
        name = (each.get("files") or {}).get("requests")
        requests = None if name is None else folder / name
        over = requests is not None and requests.with_suffix(".json").exists()
        if not over or results_of(each, folder):
            lines.append(Line(each, requests, str(folder / NAME)))
    return lines


def _check(line: Line) -> None:
    """Raise ``UserError`` for a measurement whose parts aren't what they are said to be."""
    record = line.record
    load, target = record["load"], record["target"]
    number = (int, float, type(None))
    figures = [
        value
        for metric in record["metrics"].values()
        for key, value in (metric.items() if isinstance(metric, dict) else [("", ())])
        if key not in ("unit", "limits")
    ]
    wrong = {
        "target.name": not isinstance(target["name"], str),
        "target.gpus": target.get("gpus") is not None and not isinstance(target["gpus"], int),
        "load.kind": not isinstance(load.get("kind"), str),
        "load.value": not isinstance(load.get("value"), number),
        "metrics": any(not isinstance(x, number) and x not in ("inf", "-inf") for x in figures),
        "score": not isinstance(record.get("score"), dict | None),
        "workload": not isinstance(record.get("workload"), dict),
    }
    for part, bad in wrong.items():
        if bad:
            raise UserError(f"{part} isn't as llm_perf writes it", where=line.source, fix=_FIX)


def _once(found: list[tuple[str | None, Line]]) -> list[tuple[str | None, Line]]:
    """Leave out what is there twice, as in the file of all loads beside each load's own."""
    seen: set[tuple[str, str | None]] = set()
    kept = []
    for name, line in found:
        record = line.record
        told = record.get("id") or (record["target"], record["load"], record["workload"])
        key = json.dumps([told, record.get("started_at")], sort_keys=True, default=str)
        if (key, name) not in seen:
            seen.add((key, name))
            kept.append((name, line))
    return kept


def _named(found: list[tuple[str | None, Line]]) -> list[Line]:
    """Give names that tell targets apart: those given, else of files or ledgers, or of folders.

    Where several are in what has one name, each keeps its own behind it.
    """
    places, within = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for name, line in found:
        own, folder = line.record["target"]["name"], line.record["target"]["folder"]
        within[name or folder].add(own)
        if name is None:
            places[own].add(folder)
    lines = []
    for name, line in found:
        target = dict(line.record["target"])
        folder, own = target.pop("folder"), target["name"]
        if name is not None or len(places[own]) > 1:
            place = name or folder
            target["name"] = place if len(within[place]) == 1 else f"{place}/{own}"
        lines.append(replace(line, record={**line.record, "target": target}))
    return lines
