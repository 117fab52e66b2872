"""The table that a study ends with: measurements in, what a person reads out.

Repetitions of one load at one target are one row: their mean, and the standard deviation of a
single one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TypeAlias

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from llm_perf import api
from llm_perf.screen import plain

Row: TypeAlias = Sequence[api.Measurement]
"""Repetitions."""
_ALIKE = 0.01  # of mean output lengths: as far as two that are called equal may differ
Column: TypeAlias = tuple[str, Callable[[Row], str]]


def print_summary(measurements: Sequence[api.Measurement], results: Path, console: Console) -> None:
    """One table over all cells and loads, what went wrong, and where the files are."""
    rows = _rows(each for each in measurements if each["status"] != "failed")
    if rows:
        console.print(_table(rows, results))
    for line in (*_unequal_lengths(rows), *_lost_requests(rows)):
        console.print(line, markup=False, soft_wrap=True)
    failed: dict[tuple[str, str], list[str]] = {}
    for each in measurements:
        if each["status"] == "failed":
            reason = (each["target"]["name"], each["error"] or "")
            failed.setdefault(reason, []).append(_load(each))
    for (name, error), loads in failed.items():
        told = f"{name} failed at {', '.join(dict.fromkeys(loads))}: {plain(error)}"
        console.print(told, markup=False, soft_wrap=True)
    bound = sum(bool(each["client"] and each["client"]["client_bound"]) for each in measurements)
    if bound:
        console.print(
            f"{bound} of {len(measurements)} measurements are CLIENT-BOUND: this machine was too"
            " busy to take times exactly ('client' in the ledger says by how much)"
        )
    if any(_cell(each, "backend") == "reference" for each in measurements):
        console.print(
            "The reference backend shows that the pipeline works and how a precision answers; "
            "its speed says nothing about TensorRT-LLM."
        )


def _rows(measurements: Iterable[api.Measurement]) -> list[Row]:
    found: dict[tuple[str, str], list[api.Measurement]] = {}
    for each in measurements:
        found.setdefault((each["target"]["name"], _load(each)), []).append(each)
    return list(found.values())


def _table(rows: Sequence[Row], results: Path) -> Table:
    columns = [*_COLUMNS[:_SETTINGS], *_varied(rows), *_COLUMNS[_SETTINGS:]]
    same = {name: text(rows[0]) for name, text in columns if len({*map(text, rows)}) == 1}
    title = "  ".join(f"{name} {text}" for name, text in same.items() if name in _TITLE)
    times = max(map(len, rows))
    spread = f"mean ± standard deviation of up to {times} repetitions; " if times > 1 else ""
    table = Table(
        title=title,
        caption=f"times in ms; {spread}details: {results}/",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    absent = {name for name, text in same.items() if name in _TITLE or text == "-"}
    columns = [each for each in columns if each[0] not in absent]
    for name, _ in columns:
        text = name in {"model", "precision", "backend"}
        table.add_column(name, justify="left" if text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(text(row) for _, text in columns))
    return table


def _lost_requests(rows: Sequence[Row]) -> Iterator[str]:
    for each in (each for row in rows for each in row):
        if each["requests_failed"]:
            yield f"{_title(each)}: {plain('; '.join(each['notes']))}"


def _unequal_lengths(rows: Sequence[Row]) -> Iterator[str]:
    """Where backends answer the same prompts at unlike lengths; tokens/s compare nothing then."""
    alike: dict[tuple[str, ...], dict[str, tuple[float, float]]] = {}
    for row in rows:
        known = [each["workload"] for each in row if each["workload"]["osl_avg"] is not None]
        if known:
            told = tuple(_cell(row[0], name) for name in ("model", "isl", "osl"))
            length = fmean(each["osl_avg"] for each in known)
            spread = fmean(each["osl_sd"] or 0.0 for each in known)
            backends = alike.setdefault((*told, _load(row[0])), {})
            backends.setdefault(_cell(row[0], "backend"), (length, spread))
    for (model, *_, load), found in alike.items():
        lengths = [length for length, _ in found.values()]
        if max(lengths) > min(lengths) * (1 + _ALIKE):
            each = ", ".join(
                f"{name} {length:.1f} ± {sd:.1f}" for name, (length, sd) in found.items()
            )
            yield f"{model} at {load}: answers aren't equally long, in tokens on average: {each}"


def _cell(measurement: api.Measurement, name: str) -> str:
    value = (measurement["target"]["cell"] or {}).get(name)
    return "-" if value is None else str(value)


def _setting(name: str) -> Callable[[Row], str]:
    return lambda row: _cell(row[0], name)


def _varied(rows: Sequence[Row]) -> list[Column]:
    """Settings that tell the rows apart and have no column of their own."""
    known = {"model", "precision", "tp", "pp", "isl", "osl", "max_batch_size", "backend", "options"}
    known |= {"max_input_len", "max_seq_len"}  # follow from the lengths
    cells = [row[0]["target"]["cell"] or {} for row in rows]
    names = dict.fromkeys(name for cell in cells for name in cell if name not in known)
    told = ((name, _setting(name)) for name in names)
    return [(name, text) for name, text in told if len({*map(text, rows)}) > 1]


def _load(measurement: api.Measurement) -> str:
    load = measurement["load"]
    return f"{load['kind'].replace('_', ' ')} {load['value']}"


def _title(measurement: api.Measurement) -> str:
    return f"{measurement['target']['name']} at {_load(measurement)}"


def _value(kind: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        load = row[0]["load"]
        return f"{load['value']:g}" if load["kind"] == kind and load["value"] is not None else "-"

    return text


def _score(row: Row) -> str:
    known = [each["score"]["value"] for each in row if each["score"]]
    return f"{fmean(known):.3f}" if known else "-"


def _figure(metric: str, statistic: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        seen = (each["metrics"].get(metric, {}).get(statistic) for each in row)
        known = [float(value) for value in seen if value is not None]
        if not known:
            return "-"
        spread = f" ±{stdev(known):,.2f}" if len(known) > 1 else ""
        return f"{fmean(known):,.2f}{spread}"

    return text


_COLUMNS: tuple[Column, ...] = (
    ("model", _setting("model")),
    ("tp", _setting("tp")),
    ("pp", _setting("pp")),
    ("ISL", _setting("isl")),
    ("OSL", _setting("osl")),
    ("precision", _setting("precision")),
    ("batch", _setting("max_batch_size")),
    ("conc.", _value("concurrency")),
    ("rate", _value("request_rate")),
    ("score", _score),
    ("failed", lambda row: str(sum(each["requests_failed"] for each in row))),
    ("TTFT p50", _figure("time_to_first_token", "p50")),
    ("TTFT p99", _figure("time_to_first_token", "p99")),
    ("ITL avg", _figure("inter_token_latency", "avg")),
    ("tok/s", _figure("output_token_throughput", "avg")),
    ("req/s", _figure("request_throughput", "avg")),
    ("backend", _setting("backend")),
)
_SETTINGS = 7
_TITLE = {"model", "tp", "pp", "ISL", "OSL"}  # in the title where all cells agree
